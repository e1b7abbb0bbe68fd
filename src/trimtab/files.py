"""Writing a result file whole or not at all."""

from __future__ import annotations

import gzip
import os
import tempfile
from pathlib import Path

from trimtab.errors import OutputError


def check_writable(path: Path) -> None:
    """Refuse an output path before the work starts that would be lost.

    Raises:
        OutputError: its folder does not exist or cannot be written to, or the path is a folder.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".trimtab-"):
            pass
    except OSError as error:
        raise _cannot(path, error) from error


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file (gzipped if its name ends in .gz) beside its place, then rename it.

    Raises:
        OutputError: it cannot be written; a file that was there stays.
    """
    content = content.encode("utf-8") if isinstance(content, str) else content
    if path.suffix == ".gz":
        content = gzip.compress(content, mtime=0)
    staged: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
            staged = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        staged.chmod(0o666 & ~_umask())
        staged.replace(path)
    except OSError as error:
        if staged is not None:
            staged.unlink(missing_ok=True)
        raise _cannot(path, error) from error


def _cannot(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path} cannot be written ({error.strerror or error}): name a file in a folder you may write to."
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
