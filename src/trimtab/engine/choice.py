"""Which forward a backbone runs with: compiled kernels, torch operations, or transformers' own."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trimtab.engine.adapters import RowAdapters
from trimtab.engine.config import Kernels
from trimtab.engine.cuda_graphs import GraphRecorder, SteppedForward
from trimtab.engine.families import NotLlamaShapedError, read_shape
from trimtab.engine.fusing import lay_side_by_side
from trimtab.engine.kv_cache import KVCache, KVShape
from trimtab.engine.llama import TorchForward
from trimtab.engine.probing import distances, probe_length, tolerance
from trimtab.engine.shape import Shape
from trimtab.engine.spans import Forward
from trimtab.errors import ConfigError
from trimtab.models.loading import context_length

log = logging.getLogger("trimtab")


_NATIVE = "trimtab.engine.native"


@dataclass(frozen=True)
class Found:
    """How a model can be run.

    Attributes:
        shape: of a Llama-like decoder that the fast forwards reproduce, else ``None``.
        layers: sizes of each layer's keys and values.
        dtype: of the KV cache.
        make: makes the forward that needs no compiler, over a cache.
    """

    shape: Shape | None
    layers: Sequence[KVShape]
    dtype: torch.dtype
    make: Callable[[KVCache, RowAdapters], Forward]


class Choice:
    """What is known of a model and of this machine that decides on the forward."""

    def __init__(self, model: Any, kernels: Kernels) -> None:
        self.model, self.asked = model, kernels

    @functools.cached_property
    def found(self) -> Found:
        """How the model can be run. The first look runs a few tokens, ours against the model's own forward.

        Raises:
            ConfigError: a fast forward was asked for by name, and the model is no Llama-like decoder.
        """
        if self.asked != "generic":
            name = type(self.model).__name__
            try:
                found = fast(self.model)
            except NotLlamaShapedError as reason:
                if self.asked != "auto":
                    raise ConfigError(
                        f"kernels={self.asked!r} cannot be had, for {name} is no Llama-like decoder: {reason}. "
                        "Use 'auto' or 'generic'."
                    ) from reason
                log.log(
                    logging.WARNING if isinstance(reason, DiffersError) else logging.INFO,
                    "%s runs through transformers' own forward, which is slower: %s.",
                    name,
                    reason,
                )
            else:
                return found
        return slow(self.model)

    @property
    def shape(self) -> Shape | None:
        """The model's shape if it is a Llama-like decoder."""
        return self.found.shape

    @functools.cached_property
    def wants_native(self) -> bool:
        """Whether the compiled forward is to be used as soon as it is there."""
        return self.asked in ("auto", "native") and self.without_native is None

    @property
    def without_native(self) -> str | None:
        """Why the compiled forward cannot run this model here, ``None`` if it can."""
        if self.shape is None:
            return "the model is no Llama-like decoder"
        if not has_native():
            return "this trimtab has none"
        return native().unsupported(self.shape)

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
        self._current = choice.found.make(cache, adapters)
        self.current()

    def current(self) -> Forward:
        """Return the forward for the next run."""
        if self._waits_for_native and native().ready():
            self._waits_for_native = False
            self._current = native().NativeForward(self._choice.shape, self._cache, self._adapters)
        return self._current

    def _build_native(self) -> None:
        reason = self._choice.without_native
        if reason is None and not native().build(wait=True):
            reason = "they could not be compiled here"
        if reason is not None:
            raise ConfigError(f"kernels='native' cannot be had: {reason}. Use 'auto'.")


def has_native() -> bool:
    """Whether the compiled kernels' module is there."""
    return importlib.util.find_spec(_NATIVE) is not None


def native() -> Any:
    """Return the compiled kernels' module."""
    return importlib.import_module(_NATIVE)


class DiffersError(NotLlamaShapedError):
    """The fast forward should reproduce the model's own and does not."""


def fast(model: Any) -> Found:
    """Return how a Llama-like decoder is run.

    Raises:
        NotLlamaShapedError: the model is none, or the fast forward says something else than the model's own.
    """
    if model.device.type == "cuda":
        lay_side_by_side(model)
    shape = read_shape(model)
    layers = [KVShape(shape.kv_heads, shape.head_dim, shape.head_dim)] * len(shape.layers)

    def make(cache: KVCache, adapters: RowAdapters) -> Forward:
        return TorchForward(shape, cache, adapters)

    def make_stepped(cache: KVCache, adapters: RowAdapters) -> Forward:
        return SteppedForward(TorchForward(shape, cache, adapters), GraphRecorder(model.device))

    length = probe_length([layer.window for layer in shape.layers], shape.context_length)
    found = Found(shape, layers, shape.dtype, make_stepped if model.device.type == "cuda" else make)
    worst = float(_distances(model, dataclasses.replace(found, make=make), length).max())
    if worst > tolerance(shape.dtype):
        raise DiffersError(f"the fast one differs from it by {worst:.2g} of the logits' size")
    return found


def slow(model: Any) -> Found:
    """Return how any other causal LM is run: the first of three ways that says what the model itself says."""
    from trimtab.engine.generic import GenericForward, probe_layers  # transformers takes seconds to import
    from trimtab.engine.recurrent import DTYPE, LAYERS, RecurrentForward

    layers = probe_layers(model)
    if layers is not None:
        found = Found(None, layers, model.dtype, functools.partial(GenericForward, model))
        if _agrees(model, found):
            return found
    found = Found(None, LAYERS, DTYPE, functools.partial(RecurrentForward, model))
    if _agrees(model, found):
        return found
    log.warning("%s reads each text again for each token: no state of it could be kept.", type(model).__name__)
    return Found(None, LAYERS, DTYPE, functools.partial(RecurrentForward, model, keeps_state=False))


def _agrees(model: Any, found: Found) -> bool:
    config = model.config.get_text_config()
    length = probe_length([getattr(config, "sliding_window", None)], context_length(config))
    try:
        # The median, for a token near the border between two experts may go to another in bfloat16.
        return float(_distances(model, found, length).median()) <= tolerance(model.dtype)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a model that cannot be run this way fails in a way of its own
        log.info("%s does not run with %s: %s", type(model).__name__, found.make, error)
        return False


def _distances(model: Any, found: Found, length: int) -> Tensor:
    return distances(
        model, lambda cache: found.make(cache, RowAdapters(model)), found.layers, length, dtype=found.dtype
    )
