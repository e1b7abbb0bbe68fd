"""A backbone, one set of transformer weights, and the sequences that run through it with their KV cache."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trimtab.engine.adapters import RowAdapters, RowSlice
from trimtab.engine.choice import Choice, Forwards, Kernels
from trimtab.engine.conditioned import RowConditions
from trimtab.engine.kv_cache import KVCache, KVShape
from trimtab.engine.spans import Span
from trimtab.errors import ConfigError
from trimtab.models.loading import context_length, vocabulary_size


@dataclass(frozen=True)
class Pending:
    """Logits that a GPU may still be computing.

    Attributes:
        logits: (Σ keep, V) float32.
        done: recorded behind them on the stream that computes them; ``None`` where nothing is left to wait for.
    """

    logits: Tensor
    done: Any | None = None

    def result(self) -> Tensor:
        """Return the logits; what the caller's stream does next waits for them, the caller does not."""
        if self.done is not None:
            stream = torch.cuda.current_stream(self.logits.device)
            stream.wait_event(self.done)
            self.logits.record_stream(stream)
        return self.logits


class Backbone:
    """One causal LM and the adapters that share its weights.

    Attributes:
        model: the transformers model.
        adapters: its row adapters; a row with slot ``None`` uses the weights as they are.
        context_length: most tokens in a row.
    """

    def __init__(self, model: Any, *, kernels: Kernels = "auto", stream: Any | None = None) -> None:
        """Take a model.

        Args:
            model: the transformers model, in eval mode.
            kernels: which forward to use. ``"auto"`` takes the compiled one on a CPU as soon as it is built and torch
                operations until then and on a GPU; ``"generic"`` is transformers' own forward, which ``"auto"``
                takes for models that are no Llama-like decoders.
            stream: the CUDA stream that :meth:`run` computes on, beside what the caller's does; ``None`` for the
                caller's own.
        """
        self.model = model
        self.adapters = RowAdapters(model)
        self.context_length = context_length(model.config)
        known = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in known
        self._keeps_logits = "logits_to_keep" in known
        # One forward at a time: which rows use which adapter is state of the layers while it runs.
        self._lock = threading.Lock()
        self._choice = Choice(model, kernels)
        self._stream = stream
        self._forwards: Forwards | None = None

    @property
    def kv_layers(self) -> Sequence[KVShape]:
        """Sizes of each layer's keys and values."""
        return self._choice.found.layers

    @property
    def bytes_per_page(self) -> int:
        """Memory that one page of the KV cache takes, over all layers."""
        return KVCache.bytes_per_page(self.kv_layers, self._choice.found.dtype)

    @property
    def kernels(self) -> str:
        """Which forward the next run uses: ``"native"``, ``"torch"`` or ``"generic"``."""
        return self._choice.now

    def allocate(self, pages: int) -> None:
        """Make the KV cache; what was in an earlier one is lost.

        Raises:
            ConfigError: the forward that was asked for cannot run this model here.
        """
        cache = KVCache(self.kv_layers, pages, dtype=self._choice.found.dtype, device=self.device)
        self._forwards = Forwards(self._choice, cache, self.adapters)

    def run(self, spans: Sequence[Span]) -> Tensor:
        """Run spans; return (Σ keep, V) float32 logits on the device, good until the next run."""
        return self.run_async(spans).result()

    def run_async(self, spans: Sequence[Span]) -> Pending:
        """Start running spans; on a GPU with a stream of its own, two backbones can so compute side by side."""
        if self._forwards is None:
            raise ConfigError("The backbone has no KV cache yet: allocate(pages) makes it.")
        with self._lock, torch.inference_mode():
            if self._stream is None:
                return Pending(self._forwards.current()(spans))
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self._stream):
                logits = self._forwards.current()(spans)
                return Pending(logits, self._stream.record_event())

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        device: torch.device = self.model.device
        return device

    @property
    def vocabulary_size(self) -> int:
        """Width of the logits."""
        return vocabulary_size(self.model)

    def forward(
        self,
        ids: Tensor,
        *,
        slices: Sequence[RowSlice],
        mask: Tensor | None,
        positions: Tensor,
        cache: Any | None,
        keep: int = 1,
    ) -> Tensor:
        """Run rows through the weights, once for all of them.

        Args:
            ids: (R, T) tokens.
            slices: which rows use which adapter.
            mask: (R, S + T), 0 at padding, S the tokens in the cache; ``None`` if there is no padding.
            positions: (R, T) position of each token in its row.
            cache: KV cache, appended to; ``None`` for none.
            keep: for how many last tokens logits are wanted.

        Returns:
            (R, keep, V) logits in the model's dtype.
        """
        options: dict[str, Any] = {"input_ids": ids, "use_cache": cache is not None}
        if mask is not None:
            options["attention_mask"] = mask
        if cache is not None:
            options["past_key_values"] = cache
        if self._takes_positions:
            options["position_ids"] = positions
        if self._keeps_logits:
            options["logits_to_keep"] = keep
        with self._lock, torch.inference_mode():
            self.adapters.use(slices)
            try:
                logits: Tensor = self.model(**options).logits
            finally:
                self.adapters.use(())
        return logits[:, -keep:]


def pad_left(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return (R, T) ids, (R, T) mask (``None`` if nothing is padded) and (R, T) positions of unequal rows."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], dtype=torch.long, device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    columns = torch.arange(width, device=device)
    positions = (columns - (width - lengths).unsqueeze(1)).clamp_min(0)
    if all(len(row) == width for row in rows):
        return ids, None, positions
    return ids, (columns >= (width - lengths).unsqueeze(1)).long(), positions


@dataclass(frozen=True)
class StreamRows:
    """The rows of one stream: those of the base, or those of one guide.

    Attributes:
        number: the stream's.
        slot: its adapter, ``None`` for the bare weights.
        owners: the numbers of the answers its rows belong to, in order.
        conditions: of its rows, where the adapter is conditioned on a preference.
    """

    number: int
    slot: int | None
    owners: Sequence[int]
    conditions: RowConditions | None = None

    def select(self, owners: Sequence[int]) -> tuple[StreamRows, list[int]]:
        """Return the stream in which new answer i continues old answer ``owners[i]``, and its rows' old places."""
        place = {owner: i for i, owner in enumerate(self.owners)}
        kept = [(new, place[owner]) for new, owner in enumerate(owners) if owner in place]
        rows = [row for _, row in kept]
        conditions = self.conditions.select(rows) if self.conditions and rows else None
        return StreamRows(self.number, self.slot, [new for new, _ in kept], conditions), rows


class Rows:
    """Rows of one backbone being decoded: stream by stream, each stream's rows a contiguous slice.

    Attributes:
        streams: the streams in the order of their rows.
    """

    def __init__(self, backbone: Backbone, streams: Sequence[StreamRows]) -> None:
        self.backbone = backbone
        self.streams = list(streams)
        self._cache: Any = None
        self._mask: Tensor | None = None  # (R, S)
        self._next: Tensor = torch.empty(0, dtype=torch.long)  # (R,) position of each row's next token

    def prefill(self, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
        """Read the rows' prompts (in the order of the streams); return (B_s, V) logits for each stream."""
        from transformers import DynamicCache

        device = self.backbone.device
        self._cache = DynamicCache(config=self.backbone.model.config)
        ids, self._mask, positions = pad_left(prompts, device)
        self._next = positions[:, -1] + 1
        return self._run(ids, positions)

    def step(self, tokens: Sequence[int]) -> list[Tensor]:
        """Read one token a row; return (B_s, V) logits for each stream."""
        ids = torch.tensor(tokens, dtype=torch.long, device=self.backbone.device).unsqueeze(1)
        if self._mask is not None:
            self._mask = torch.cat([self._mask, self._mask.new_ones((len(tokens), 1))], dim=1)
        positions = self._next.unsqueeze(1)
        self._next = self._next + 1
        return self._run(ids, positions)

    def select(self, owners: Sequence[int]) -> None:
        """Keep, drop or clone rows: new answer i continues from what was answer ``owners[i]``."""
        index: list[int] = []
        start = 0
        for s, stream in enumerate(self.streams):
            self.streams[s], rows = stream.select(owners)
            index.extend(start + row for row in rows)
            start += len(stream.owners)
        chosen = torch.tensor(index, dtype=torch.long, device=self.backbone.device)
        with torch.inference_mode():
            self._cache.batch_select_indices(chosen)
            self._mask = None if self._mask is None else self._mask[chosen]
            self._next = self._next[chosen]

    def _slices(self) -> list[RowSlice]:
        slices: list[RowSlice] = []
        start = 0
        for stream in self.streams:
            stop = start + len(stream.owners)
            if stream.slot is not None and stream.owners:
                slices.append(RowSlice(stream.slot, start, stop, stream.conditions))
            start = stop
        return slices

    def _run(self, ids: Tensor, positions: Tensor) -> list[Tensor]:
        logits = self.backbone.forward(
            ids, slices=self._slices(), mask=self._mask, positions=positions, cache=self._cache
        )
        return list(logits[:, -1].split([len(stream.owners) for stream in self.streams]))
