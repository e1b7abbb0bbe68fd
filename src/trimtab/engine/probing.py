"""Checking a forward of ours against the model's own, once, so that none is ever wrong silently."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab.engine.kv_cache import KVCache, KVShape
from trimtab.engine.spans import PAGE, Forward, Span

_TOKENS = 24
_WINDOW_TO_LEAVE = 128
# Largest ‖ours − theirs‖ / ‖theirs‖ over the probe's centred logits that rounding explains.
_TOLERANCE = {torch.float16: 0.05, torch.bfloat16: 0.2}
_TOLERANCE_ELSE = 1e-3


def tolerance(dtype: torch.dtype) -> float:
    """Return the distance up to which :func:`distances` are rounding."""
    return _TOLERANCE.get(dtype, _TOLERANCE_ELSE)


def probe_length(windows: Sequence[int | None], context: int) -> int:
    """Return how many tokens to compare, at least 12: some, and beyond the windows where those are short."""
    near = [window + 8 for window in windows if window is not None and window <= _WINDOW_TO_LEAVE]
    return max(min(max([_TOKENS, *near]), context), 12)


def distances(
    model: Any,
    make: Callable[[KVCache], Forward],
    layers: Sequence[KVShape],
    length: int,
    *,
    dtype: torch.dtype,
) -> Tensor:
    """Return how far our logits are from the model's own, for each token, as a share of the centred logits' size.

    Two texts, one half as long as the other, are read in chunks, then by one token and by two tokens of both.
    """
    texts = [_ids(model, length, 7919), _ids(model, length // 2, 104729)]
    pages = -(-length // PAGE)
    tables = [np.arange(2 * pages - i, 0, -2, dtype=np.int32) for i in range(2)]
    cache = KVCache(layers, 2 * pages + 1, dtype=dtype, device=model.device)
    forward = make(cache)

    def read(*pieces: tuple[int, int, int]) -> list[Tensor]:
        spans = [Span(texts[i][a:b], a, tables[i], keep=b - a) for i, a, b in pieces]
        return list(forward(spans).clone().split([span.keep for span in spans]))

    ours: list[list[Tensor]] = [[], []]
    ends = [len(text) for text in texts]
    a, b = ends
    steps = [
        [(0, 0, a // 2), (1, 0, b - 4)],
        [(0, a // 2, a - 3), (1, b - 4, b - 3)],
        [(0, a - 3, a - 2), (1, b - 3, b - 2)],
        [(0, a - 2, a), (1, b - 2, b)],
    ]
    with torch.inference_mode():
        for step in steps:
            for (i, _, _), logits in zip(step, read(*step), strict=True):
                ours[i].append(logits)
        found = [_distance(torch.cat(own), _full(model, text)) for own, text in zip(ours, texts, strict=True)]
    return torch.cat(found).nan_to_num(torch.inf, torch.inf)


def _ids(model: Any, n: int, step: int) -> list[int]:
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    return [step * (i + 1) % vocabulary for i in range(n)]


def _full(model: Any, ids: Sequence[int]) -> Tensor:
    """Return the model's own logits of a whole text, (T, V)."""
    tokens = torch.tensor([list(ids)], device=model.device)
    options: dict[str, Any] = {"input_ids": tokens, "use_cache": False}
    if "attention_mask" in inspect.signature(model.forward).parameters:
        options["attention_mask"] = torch.ones_like(tokens)
    logits: Tensor = model(**options).logits[0]
    return logits.float()


def _distance(ours: Tensor, theirs: Tensor) -> Tensor:
    ours, theirs = (logits - logits.mean(-1, keepdim=True) for logits in (ours, theirs))
    return (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1).clamp_min(1e-6)
