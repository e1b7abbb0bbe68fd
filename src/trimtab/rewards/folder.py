"""What a guide's folder may hold. It came from somewhere, so it is checked before anything in it is used.

Pickles, code and links out are refused; a safetensors file is compared with its own header before it is loaded, so
that a cut-off download or an invented size is one clear line and never an allocation.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from trimtab.errors import GuideError, OutputError
from trimtab.rewards.manifest import GUIDE_FILE, read_json

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

_PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill"})
_CODE_KEYS = ("auto_map", "_attn_implementation_internal")
_JSON_FILES = (
    GUIDE_FILE,
    ADAPTER_CONFIG,
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
)
_CHECKED_FOR_CODE = _JSON_FILES[:-1]  # tokenizer.json may be large, and transformers reads no code from it
_MAX_HEADER = 16 * 2**20
_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "U16": 2,
    "U32": 4,
    "U64": 8,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}

Header = dict[str, tuple[str, tuple[int, ...]]]
"""Tensor name → (dtype, shape)."""

T = TypeVar("T")


def write_whole(folder: str | Path, stage: Callable[[Path], T], *, what: str, last: Sequence[str]) -> T:
    """Write files into a folder whole or not at all: beside their place first, then renamed into it.

    Args:
        folder: where they shall lie; made if it is not there. Other files that it holds stay.
        stage: writes the files into the folder it is given; its result is returned.
        what: what the files are, for messages.
        last: names that are put in place after all others, in this order: what says that the rest is there.

    Raises:
        OutputError: the folder cannot be written; it is then as it was before.
    """
    folder = Path(folder)
    is_new = not folder.exists()
    staged: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Inside the folder, because a rename is atomic within one file system only and the folder may be a mount.
        staged = Path(tempfile.mkdtemp(dir=folder, prefix=".staged-"))
        result = stage(staged)
        _publish(staged, folder, last)
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())[:200]
        raise OutputError(
            f"The {what} cannot be written to {folder} ({reason}): free space there, or choose another folder. Nothing "
            "was changed."
        ) from error
    finally:
        if staged is not None:
            shutil.rmtree(staged, ignore_errors=True)
        if is_new and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    return result


def _publish(staged: Path, folder: Path, last: Sequence[str]) -> None:
    """Rename the staged files into place, the manifest last: a folder with a new manifest has all its files."""
    files = sorted(staged.iterdir(), key=lambda path: (path.name in last and 1 + last.index(path.name), path.name))
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    for path in files:
        path.replace(folder / path.name)


def weights_hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each weights file."""
    return {path.name: file_sha256(path) for path in sorted(folder.glob("*.safetensors"))}


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_hashes(folder: str | Path, expected: dict[str, str], *, listed_in: str) -> None:
    """Compare the weights files with the hashes that a manifest gives.

    Raises:
        GuideError: a file is missing or is not the one that was saved.
    """
    for name, digest in expected.items():
        path = Path(folder) / name
        if Path(name).name != name or not path.is_file():
            raise GuideError(f"{path} is missing, but {listed_in} lists it: copy the folder again.")
        if file_sha256(path) != digest:
            raise GuideError(
                f"{path} is not the file that {listed_in} describes (SHA-256 differs): it was changed or cut off; "
                "copy the folder again."
            )


def check_folder(folder: str | Path) -> None:
    """Refuse a guide's folder that is unsafe or damaged; subfolders such as checkpoints are not looked at.

    Raises:
        GuideError: names the file, why it is refused, and what to do.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise GuideError(f"There is no guide folder {str(folder)!r}: name the --output-dir of 'trimtab train'.")
    for path in sorted(folder.iterdir()):
        _check_link(path, folder)
        if path.suffix.lower() in _PICKLES and not path.is_dir():
            raise GuideError(
                f"{path} may be a pickle, which can run code when read, so the whole guide is refused: convert it to "
                "safetensors (save_pretrained does) and remove it."
            )
    for name in _CHECKED_FOR_CODE:
        if (folder / name).is_file():
            _check_no_code(folder / name)
    for path in sorted(folder.glob("*.safetensors")):
        read_header(path)


def read_header(path: Path) -> Header:
    """Return the tensors a safetensors file holds, after comparing its header with its size.

    Raises:
        GuideError: the file is missing, cut off, or its header does not describe it.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER):
                raise _damaged(path, f"its header claims {length} bytes, the file has {size}")
            raw = file.read(length)
    except OSError as error:
        raise GuideError(
            f"{path} cannot be read ({error.strerror or error}): copy the guide's folder again."
        ) from error
    try:
        entries = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "its header is not JSON") from error
    if not isinstance(entries, dict):
        raise _damaged(path, "its header is not an object")
    return _check_entries(path, cast("dict[str, Any]", entries), size - 8 - length)


def _check_entries(path: Path, entries: dict[str, Any], data_bytes: int) -> Header:
    header: Header = {}
    spans: list[tuple[int, int]] = []
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape = str(entry["dtype"]), tuple(_count(n) for n in entry["shape"])
            start, end = (_count(n) for n in entry["data_offsets"])
            expected = math.prod(shape) * _BYTES[dtype]
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(path, f"the header's entry for {name[:120]!r} makes no sense") from error
        if end - start != expected:
            raise _damaged(path, f"{name[:120]!r} of shape {list(shape)} needs {expected} bytes, not {end - start}")
        header[name] = (dtype, shape)
        spans.append((start, end))
    position = 0
    for start, end in sorted(spans):
        if start != position:
            raise _damaged(path, "its tensors overlap or leave gaps")
        position = end
    if position != data_bytes:
        raise _damaged(path, f"its tensors need {position} bytes, the file holds {data_bytes}")
    return header


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError("not a count")
    return value


def _damaged(path: Path, why: str) -> GuideError:
    return GuideError(f"{path} is cut off or damaged ({why}): copy the guide's folder again, or train it again.")


def _check_link(path: Path, folder: Path) -> None:
    if not path.is_symlink():
        return
    target, root = path.resolve(), folder.resolve()
    # The hub's download cache links each file of snapshots/<revision>/ to ../../blobs/: those links are its own.
    is_hub_cache = root.parent.name == "snapshots" and target.parent == root.parent.parent / "blobs"
    if not target.is_relative_to(root) and not is_hub_cache:
        raise GuideError(f"{path} is a link that leads out of the guide's folder: copy the file itself into it.")


def _check_no_code(path: Path) -> None:
    waiting: list[Any] = [read_json(path)]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            entries = cast("dict[str, Any]", value)
            found = next((key for key in _CODE_KEYS if key in entries), None)
            if found:
                raise GuideError(
                    f"{path} has {found!r}, which names code to run; trimtab never runs code from a folder: remove "
                    "the key, or use a model whose architecture transformers ships."
                )
            waiting.extend(entries.values())
        elif isinstance(value, list):
            waiting.extend(cast("list[Any]", value))
