"""Any causal LM whose state is keys and values, through transformers' own forward on the paged cache."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from trimtab.engine.adapters import RowAdapters, RowSlice
from trimtab.engine.kv_cache import KVCache, KVShape
from trimtab.engine.layouts import ConditionStacks, fresh_pages, to_device
from trimtab.engine.spans import PAGE, Span


def probe_layers(model: Any) -> list[KVShape] | None:
    """Return the sizes of a model's keys and values by a forward of two tokens; ``None`` if it keeps other state."""
    if "past_key_values" not in inspect.signature(model.forward).parameters:
        return None
    cache: Any = DynamicCache(config=model.config)
    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers):
        return None
    ids = torch.zeros((1, 2), dtype=torch.long, device=model.device)
    with torch.inference_mode():
        model(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache, use_cache=True)
    shapes: list[KVShape] = []
    for layer in cache.layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) or not _holds_two_tokens(layer):
            return None
        shapes.append(KVShape(layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3]))
    return shapes or None


def _holds_two_tokens(layer: Any) -> bool:
    return all(
        isinstance(t, Tensor) and t.dim() == 4 and t.shape[0] == 1 and t.shape[2] == 2
        for t in (layer.keys, layer.values)
    )


@dataclass(frozen=True)
class _Rows:
    """Where the tokens of R rows lie, right-aligned in W columns.

    Attributes:
        length: T, new tokens of each row; the last T columns.
        new: (R, T) pages and offsets of the new tokens.
        all: (R, W) pages and offsets of all; a padded column repeats the row's first.
        width: W.
    """

    length: int
    new: tuple[Tensor, Tensor]
    all: tuple[Tensor, Tensor]
    width: int


class _PagedLayer(CacheLayerMixin):
    """One layer's pages as transformers sees them: keys and values that it hands new ones and gets all of."""

    is_sliding = False  # a window is in the mask; keys behind it are kept, for pages are shared

    def __init__(self, keys: Tensor, values: Tensor, rows: _Rows) -> None:
        super().__init__()
        self._pages, self._rows, self._seen = (keys, values), rows, rows.width - rows.length
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """There is nothing to do: the pages are there."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write (R, H, T, D) new keys and values; return all, (R, H, W, D)."""
        self._seen = self._rows.width
        pages, offsets = self._rows.new
        everything: list[Tensor] = []
        for stored, fresh in zip(self._pages, (key_states, value_states), strict=True):
            stored[pages, :, offsets] = fresh.transpose(1, 2)
            everything.append(stored[self._rows.all[0], :, self._rows.all[1]].transpose(1, 2))
        return everything[0], everything[1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many keys the mask covers, and where they begin."""
        return self._seen + query_length, 0

    def get_seq_length(self) -> int:
        """Return how many columns there are, padding included."""
        return self._seen

    def get_max_length(self) -> int:
        """Return -1: there is no limit."""
        return -1


class GenericForward:
    """Runs spans row by row of a batch: rows with equally many new tokens go together, padded on the left."""

    def __init__(self, model: Any, cache: KVCache, adapters: RowAdapters) -> None:
        self.model, self.cache, self.adapters = model, cache, adapters
        self.stacks = ConditionStacks()
        known = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in known
        self._keeps_logits = "logits_to_keep" in known

    def __call__(self, spans: Sequence[Span]) -> Tensor:
        """Return (Σ keep, V) float32 logits."""
        device = self.model.device
        fresh = fresh_pages(spans)
        if len(fresh):
            self.cache.clear(to_device(fresh, device))
        logits: list[Tensor | None] = [None] * len(spans)
        for length in sorted({len(span.tokens) for span in spans}):
            members = [i for i, span in enumerate(spans) if len(span.tokens) == length]
            found = self._run([spans[i] for i in members], device)
            for i, row in zip(members, found, strict=True):
                logits[i] = row[len(row) - spans[i].keep :].float()
        return torch.cat([row for row in logits if row is not None])

    def _run(self, spans: Sequence[Span], device: torch.device) -> Tensor:
        """Return (R, ≥ keep, V) logits of rows with equally many tokens."""
        length = len(spans[0].tokens)
        starts = np.array([span.start for span in spans])
        rows, mask = self._rows(spans, starts, length, device)
        layers: list[Any] = [_PagedLayer(k, v, rows) for k, v in zip(self.cache.keys, self.cache.values, strict=True)]
        options: dict[str, Any] = {
            "input_ids": torch.tensor([list(span.tokens) for span in spans], device=device),
            "past_key_values": Cache(layers=layers),
            "use_cache": True,
            "attention_mask": mask,
        }
        if self._takes_positions:
            options["position_ids"] = to_device(starts[:, None] + np.arange(length), device)
        if self._keeps_logits:
            options["logits_to_keep"] = max(1, *(span.keep for span in spans))
        self.adapters.use(self._slices(spans))
        try:
            return self.model(**options).logits
        finally:
            self.adapters.use(())

    def _rows(self, spans: Sequence[Span], starts: Any, length: int, device: torch.device) -> tuple[_Rows, Tensor]:
        """Return where the rows' tokens lie, and the (R, W) mask, 0 at padding."""
        width = int(starts.max()) + length
        columns = np.arange(width) - (width - length - starts)[:, None]  # position in the row; negative is padding
        positions = np.maximum(columns, 0)
        pages = np.stack([span.pages[own // PAGE] for span, own in zip(spans, positions, strict=True)])
        numbers = to_device(np.stack([pages, positions % PAGE, columns >= 0]).astype(np.int64), device)
        every = numbers[0], numbers[1]
        new = every[0][:, width - length :], every[1][:, width - length :]
        return _Rows(length, new, every, width), numbers[2]

    def _slices(self, spans: Sequence[Span]) -> list[RowSlice]:
        slices: list[RowSlice] = []
        for slot in dict.fromkeys(span.slot for span in spans if span.slot is not None):
            own = [i for i, span in enumerate(spans) if span.slot == slot]
            conditions = self.stacks([spans[i].conditions for i in own])
            slices.append(RowSlice(slot, own[0], own[-1] + 1, conditions))
        return slices
