"""Loading a base model: any local folder or hub id, safetensors only, never code from the folder."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from trimtab.errors import ModelError
from trimtab.models import minilm, smollm2
from trimtab.models.quantized import QuantizedLinear
from trimtab.models.quantizing import check_quantization, quantize

_WEIGHTS = "*.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_JSON_TO_CHECK = ("config.json", "tokenizer_config.json", "adapter_config.json", "generation_config.json")
_SAMPLES_PER_TENSOR = 16
_ADAPTER = re.compile(r"\.((?:lora|moslora|pblora)_\w+|modules_to_save|trainable_tokens_\w+)\.")


@dataclass(frozen=True)
class Base:
    """A frozen causal language model with its tokenizer.

    Attributes:
        model: the transformers model, in eval mode, gradients off.
        tokenizer: its tokenizer.
        id: what the user named it by: ``"smollm2"``, a hub id or a folder.
        revision: the hub revision asked for, or ``None``.
        folder: where its files lie.
        quantization: ``"int8"``, ``"int4"``, or ``None`` for weights as they were loaded.
        loaded_fingerprint: of the weights before they were quantised; ``None`` where they were not.
    """

    model: Any
    tokenizer: Any
    id: str
    revision: str | None
    folder: Path
    quantization: str | None = None
    loaded_fingerprint: str | None = None

    @functools.cached_property
    def fingerprint(self) -> str:
        """A short hash of the weights; equal for one model loaded in different dtypes or from different places."""
        return self.loaded_fingerprint or weights_fingerprint(self.model)

    @property
    def vocabulary_size(self) -> int:
        """V, the width of the logits (may exceed the tokenizer)."""
        return vocabulary_size(self.model)

    @property
    def context_length(self) -> int:
        """The most tokens, prompt and answer together, that the model can read."""
        return context_length(self.model.config)

    @property
    def device(self) -> torch.device:
        """Where the model's weights lie."""
        return cast("torch.device", self.model.device)


def context_length(config: Any) -> int:
    """Return the model's context length in tokens (``max_position_embeddings`` or its older names)."""
    text = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length"):
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return 2048


def vocabulary_size(model: Any) -> int:
    """Return V, the width of a model's logits."""
    head = model.get_output_embeddings()
    return int(head.out_features if isinstance(head, QuantizedLinear) else head.weight.shape[0])


def load_base(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    quantization: str | None = None,
) -> Base:
    """Load a base model and its tokenizer.

    Args:
        name: ``"smollm2"`` (the packaged default), a local folder, or a hub id.
        revision: hub revision (branch, tag or commit).
        dtype: ``"auto"`` (bfloat16 where the hardware multiplies it fast, else float32), ``"float32"``,
            ``"bfloat16"`` or ``"float16"``.
        device: ``"auto"`` (CUDA if there is one), or a torch device.
        quantization: ``"int8"`` or ``"int4"`` to keep the weights of linear layers so (weight-only, by torchao);
            ``dtype`` is then that of everything else, activations included. Such a base is for decoding, not training.

    Raises:
        ModelError: the model is missing, holds code or pickles, or is not a causal language model.
        ConfigError: the quantization is unknown, or needs torchao, which is not installed.
    """
    from transformers import AutoModelForCausalLM

    scheme = check_quantization(quantization)
    folder = resolve_folder(name, revision=revision)
    tokenizer = load_tokenizer(name, revision=revision)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=resolve_dtype(dtype, device), use_safetensors=True, trust_remote_code=False
        )
    except Exception as error:  # transformers raises many classes here; each means the folder cannot be used
        raise ModelError(
            f"The model {name!r} cannot be loaded as a causal language model: {_one_line(error)}"
        ) from error
    model.eval().requires_grad_(False)
    model = model.to(resolve_device(device))
    if scheme is None:
        return Base(model, tokenizer, name, revision, folder)
    # Guides know their base by its weights as they lie on disk.
    fingerprint = weights_fingerprint(model)
    quantize(model, scheme)
    return Base(model, tokenizer, name, revision, folder, scheme, fingerprint)


def load_tokenizer(name: str, *, revision: str | None = None) -> Any:
    """Load the tokenizer of a base model (see :func:`load_base`).

    Raises:
        ModelError: the folder has no tokenizer that loads without code.
    """
    from transformers import AutoTokenizer

    folder = resolve_folder(name, revision=revision)
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise ModelError(f"The tokenizer of {name!r} cannot be loaded: {_one_line(error)}") from error


def resolve_folder(name: str, *, revision: str | None = None) -> Path:
    """Return the local folder of a model, fetching a hub id's safetensors and JSON files if need be.

    Raises:
        ModelError: there is no such model, or its folder holds code or only pickles.
    """
    if name == smollm2.NAME:
        return smollm2.materialise()
    if name == minilm.NAME:
        return minilm.materialise()
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _download(name, revision)
    refuse_unsafe(folder, name)
    return folder


def refuse_unsafe(folder: Path, name: str) -> None:
    """Refuse a model folder that asks for its own code, or that has no safetensors weights.

    Raises:
        ModelError: says what was found and what to do.
    """
    for file in _JSON_TO_CHECK:
        path = folder / file
        if path.is_file() and "auto_map" in _read_json(path, name):
            raise ModelError(
                f"{name!r} wants to run its own code ({file} has 'auto_map'), which trimtab never does: "
                "use a model whose architecture transformers ships."
            )
    if not (folder / "config.json").is_file():
        raise ModelError(f"{name!r} is not a model folder: it has no config.json.")
    if not any(folder.glob(_WEIGHTS)):
        pickled = any(next(folder.glob(p), None) for p in _PICKLES)
        why = "only pickled weights, which can run code when read" if pickled else "no weights"
        raise ModelError(f"{name!r} has {why}: convert them to safetensors (model.save_pretrained does).")


def resolve_device(device: str) -> torch.device:
    """Return the torch device for ``"auto"`` or a device name.

    Raises:
        ModelError: there is no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"There is no device {device!r}: use 'auto', 'cpu' or 'cuda'.") from error


def resolve_dtype(dtype: str, device: str = "auto") -> torch.dtype:
    """Return the torch dtype for a name; ``"auto"`` is bfloat16 where the hardware multiplies it fast.

    Raises:
        ModelError: the name is unknown.
    """
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype in known:
        return known[dtype]
    if dtype != "auto":
        raise ModelError(f"Unknown dtype {dtype!r}: use 'auto', {', '.join(map(repr, known))}.")
    if resolve_device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if _cpu_multiplies_bfloat16() else torch.float32


def _cpu_multiplies_bfloat16() -> bool:
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe()) if callable(probe) else False


def weights_fingerprint(model: Any) -> str:
    """Return a short SHA-256 over every parameter's name, shape and a few values rounded to bfloat16.

    Adapters that PEFT has put into the model do not count: the base below them is the same base.
    """
    digest = hashlib.sha256()
    own = {_own_name(name): parameter for name, parameter in model.named_parameters() if not _ADAPTER.search(name)}
    for name, parameter in sorted(own.items()):
        flat = parameter.detach().reshape(-1)
        step = max(1, flat.numel() // _SAMPLES_PER_TENSOR)
        sample = flat[::step][:_SAMPLES_PER_TENSOR].to("cpu", torch.bfloat16).view(torch.int16)
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def _own_name(name: str) -> str:
    """Return a parameter's name without what PEFT's wrappers put into it."""
    return re.sub(r"\.(base_layer|original_module)(?=\.)", "", name.removeprefix("base_model.model."))


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model"]
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:  # network, permission, unknown id: one line for all
        raise ModelError(
            f"There is no model {name!r}: not a folder here, not 'smollm2', and the hub gave: {_one_line(error)}"
        ) from error


def _read_json(path: Path, name: str) -> dict[str, Any]:
    try:
        return cast("dict[str, Any]", json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path.name} of {name!r} cannot be read: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
