"""Which forward a backbone runs with: compiled kernels, torch operations, or transformers' own."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import itertools
import logging
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from trimtab.engine.adapters import RowAdapters
from trimtab.engine.cuda_graphs import GraphRecorder, SteppedForward
from trimtab.engine.families import NotLlamaShapedError, read_shape
from trimtab.engine.kv_cache import KVCache, KVShape
from trimtab.engine.llama import TorchForward
from trimtab.engine.shape import Shape
from trimtab.engine.spans import PAGE, Forward, Span
from trimtab.errors import ConfigError, ModelError

log = logging.getLogger("trimtab")

Kernels = Literal["auto", "native", "torch", "generic"]

_NATIVE = "trimtab.engine.native"
_NATIVE_DTYPES = (torch.float32, torch.bfloat16)
# Largest ‖ours − theirs‖ / ‖theirs‖ over the probe's centred logits that rounding explains.
_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.15}
_PROBE_TOKENS = 24
_PROBE_BEYOND_WINDOW = 128


class Choice:
    """What is known of a model and of this machine that decides on the forward."""

    def __init__(self, model: Any, kernels: Kernels) -> None:
        self.model, self.asked = model, kernels

    @functools.cached_property
    def shape(self) -> Shape | None:
        """The model's shape if it is a Llama-like decoder that the fast forwards reproduce, else ``None``.

        Raises:
            ConfigError: a fast forward was asked for by name, and the model is none.
        """
        if self.asked == "generic":
            return None
        name = type(self.model).__name__
        try:
            shape = read_shape(self.model)
        except NotLlamaShapedError as reason:
            self._refuse(f"{name} is no Llama-like decoder: {reason}.")
            log.info("%s runs through transformers' own forward: %s.", name, reason)
            return None
        error = probe(self.model, shape)
        if error <= _TOLERANCE.get(shape.dtype, 1e-3):
            return shape
        self._refuse(f"the fast forward of {name} differs from transformers' own by {error:.2g} of the logits' size.")
        log.warning(
            "%s runs through transformers' own forward, which is slower: the fast one differs by %.2g of the logits' "
            "size.",
            name,
            error,
        )
        return None

    def _refuse(self, reason: str) -> None:
        if self.asked != "auto":
            raise ConfigError(f"kernels={self.asked!r} cannot be had, for {reason} Use 'auto' or 'generic'.")

    @functools.cached_property
    def kv_layers(self) -> Sequence[KVShape]:
        """Sizes of each layer's keys and values."""
        if self.shape is not None:
            return kv_layers(self.shape)
        from trimtab.engine.generic import probe_layers  # transformers takes seconds to import

        found = probe_layers(self.model)
        if found is None:
            raise ModelError(
                f"The state of {type(self.model).__name__} is more than keys and values of its tokens, which the "
                "engine cannot keep: use a model whose layers are attention."
            )
        return found

    @functools.cached_property
    def kv_dtype(self) -> torch.dtype:
        """Of the KV cache."""
        return self.shape.dtype if self.shape is not None else self.model.dtype

    @property
    def wants_native(self) -> bool:
        """Whether the compiled forward is to be used as soon as it is there."""
        if self.asked == "native":
            return True
        if self.asked != "auto" or self.shape is None:
            return False
        return self.model.device.type == "cpu" and self.shape.dtype in _NATIVE_DTYPES and has_native()

    @property
    def now(self) -> str:
        """Name of the forward that would run now."""
        if self.shape is None:
            return "generic"
        return "native" if self.wants_native and native().ready() else "torch"


class Forwards:
    """The forwards over one KV cache, of which a better one takes over as soon as it is ready."""

    def __init__(self, choice: Choice, cache: KVCache, adapters: RowAdapters) -> None:
        self._choice, self._cache, self._adapters = choice, cache, adapters
        self._waits_for_native = choice.wants_native
        if choice.asked == "native":
            self._build_native()
        elif self._waits_for_native:
            native().build(wait=False)
        self._current = self._without_native()
        self.current()

    def current(self) -> Forward:
        """Return the forward for the next run."""
        if self._waits_for_native and native().ready():
            self._waits_for_native = False
            self._current = native().NativeForward(self._choice.shape, self._cache, self._adapters)
        return self._current

    def _without_native(self) -> Forward:
        choice = self._choice
        if choice.shape is None:
            from trimtab.engine.generic import GenericForward

            return GenericForward(choice.model, self._cache, self._adapters)
        forward = TorchForward(choice.shape, self._cache, self._adapters)
        device = choice.shape.embedding.device
        return SteppedForward(forward, GraphRecorder(device)) if device.type == "cuda" else forward

    def _build_native(self) -> None:
        if not has_native():
            raise ConfigError("kernels='native' cannot be had: this trimtab has no compiled kernels. Use 'auto'.")
        shape, device = self._choice.shape, self._choice.model.device
        if device.type != "cpu" or (shape is not None and shape.dtype not in _NATIVE_DTYPES):
            dtype = str(self._choice.kv_dtype).removeprefix("torch.")
            raise ConfigError(
                f"kernels='native' runs on a CPU in float32 or bfloat16, and the model is in {dtype} on {device.type}: "
                "load it there, or use 'auto'."
            )
        native().build(wait=True)
        if not native().ready():
            raise ConfigError("kernels='native' cannot be had: the kernels could not be compiled here. Use 'auto'.")


def has_native() -> bool:
    """Whether the compiled kernels' module is there."""
    return importlib.util.find_spec(_NATIVE) is not None


def native() -> Any:
    """Return the compiled kernels' module."""
    return importlib.import_module(_NATIVE)


def kv_layers(shape: Shape) -> list[KVShape]:
    """Return the sizes of each layer's keys and values."""
    return [KVShape(shape.kv_heads, shape.head_dim, shape.head_dim)] * len(shape.layers)


def probe(model: Any, shape: Shape) -> float:
    """Return how far our forward is from the model's own, as a share of the size of the centred logits.

    The tokens are read as a chunk, two single tokens and a chunk, and go beyond the windows where those are short.
    """
    windows = [layer.window for layer in shape.layers if layer.window is not None]
    n = max([_PROBE_TOKENS, *(w + 8 for w in windows if w <= _PROBE_BEYOND_WINDOW)])
    n = min(n, shape.context_length)
    vocabulary = int(shape.embedding.shape[0])
    ids = [(7919 * (i + 1)) % vocabulary for i in range(n)]
    cuts = sorted({0, n // 2, n // 2 + 1, n // 2 + 2, n})
    needed = -(-n // PAGE)
    table = np.arange(needed, 0, -1, dtype=np.int32)
    with torch.inference_mode():
        cache = KVCache(kv_layers(shape), needed + 1, dtype=shape.dtype, device=shape.embedding.device)
        forward = TorchForward(shape, cache, RowAdapters(model))
        parts = [forward([Span(ids[a:b], a, table, keep=b - a)]) for a, b in itertools.pairwise(cuts) if b > a]
        theirs = model(input_ids=torch.tensor([ids], device=model.device)).logits[0].float()
    return _distance(torch.cat(parts), theirs)


def _distance(ours: Tensor, theirs: Tensor) -> float:
    ours, theirs = (logits - logits.mean(-1, keepdim=True) for logits in (ours, theirs))
    share = (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1).clamp_min(1e-6)
    worst = float(share.max())
    return worst if worst == worst else float("inf")  # NaN
