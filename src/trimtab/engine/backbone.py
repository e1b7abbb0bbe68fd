"""A backbone, one set of transformer weights, and the sequences that run through it with their KV cache."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trimtab.engine.adapters import RowAdapters
from trimtab.engine.choice import Choice, Forwards
from trimtab.engine.config import Kernels
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
