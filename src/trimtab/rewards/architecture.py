"""What PairScorer must know of a causal LM: where its parts are, and which shortcuts its architecture rules out."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from trimtab.errors import ConfigError
from trimtab.rewards.layout import PairBatch, branch_mask

_MASKED_ATTENTION = ("sdpa", "eager")


def causal_model(model: Any) -> Any:
    """Return the transformers causal LM inside ``model``, which may be a PEFT model or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def logit_shape(config: Any) -> tuple[float, float | None]:
    """Return (scale, softcap) of the logits, by the names that architectures give them."""
    text = config.get_text_config()
    scale = float(getattr(text, "logit_scale", None) or 1.0)
    divisor = float(getattr(text, "logits_scaling", None) or 1.0)
    softcap = getattr(text, "final_logit_softcapping", None)
    return scale / divisor, None if softcap is None else float(softcap)


def same_kind(base: Any, causal: Any) -> Any:
    """Return the causal LM in ``base``, after comparing it with the trained one.

    Raises:
        ConfigError: their architectures or vocabularies differ.
    """
    found = causal_model(base)
    sizes = [m.get_output_embeddings().weight.shape[0] for m in (found, causal)]
    if type(found) is not type(causal) or logit_shape(found.config) != logit_shape(causal.config):
        raise ConfigError(
            f"The base is a {type(found).__name__} and the trained model a {type(causal).__name__}, or they shape "
            "their logits differently, so one batch cannot serve both: pass a copy of the model before its training."
        )
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"The base has {sizes[0]} tokens and the trained model {sizes[1]}, so their distributions cannot be "
            "combined: pass a copy of the model before its training."
        )
    return found


def cannot_branch(causal: Any, parameters: set[str], max_length: int) -> str:
    """Return why a shared prompt cannot be exact for this model, or ``""`` where only the probe can tell."""
    config = causal.config.get_text_config()
    if "position_ids" not in parameters:
        return "the model takes no position ids"
    if _attention(causal) not in _MASKED_ATTENTION:
        return f"attention {_attention(causal)!r} takes no mask for every pair of tokens"
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True) and window < max_length:
        return f"its attention window ({window}) is shorter than the sequences ({max_length})"
    chunk = getattr(config, "attention_chunk_size", None)
    return f"it attends within chunks of {chunk} tokens" if chunk and chunk < max_length else ""


def attention_mask(causal: Any, batch: PairBatch) -> Tensor:
    """Return which token sees which in a batch of trees, in the form that the model's attention takes."""
    mask = branch_mask(batch["node"], batch["above"])
    if _attention(causal) == "sdpa":
        return mask
    dtype = causal.dtype
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


def _attention(causal: Any) -> str:
    return str(getattr(causal.config, "_attn_implementation", ""))


@contextmanager
def as_in_decoding(model: Any) -> Generator[None]:
    """Dropout and gradients off; every module's mode and every parameter's flag as they were afterwards.

    Switching PEFT's adapters on again makes them trainable, whatever they were.
    """
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for module, _ in modes:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)


@contextmanager
def outputs_of(module: Any) -> Generator[list[Tensor]]:
    """Collect the first output of each call of ``module``."""
    outputs: list[Tensor] = []

    def keep(_module: Any, _arguments: Any, output: Any) -> None:
        outputs.append(output[0])

    handle = module.register_forward_hook(keep)
    try:
        yield outputs
    finally:
        handle.remove()
