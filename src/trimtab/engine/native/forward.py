"""Lays the spans of a step out for the kernels and calls them, once a step."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trimtab.engine.adapters import RowAdapters
from trimtab.engine.kv_cache import KVCache
from trimtab.engine.native.build import Library, library
from trimtab.engine.native.layout import STRUCTS, CBatch, Description, conditions_of, unsupported
from trimtab.engine.shape import Shape
from trimtab.engine.spans import PAGE, Span

__all__ = ["NativeForward", "unsupported"]


class NativeForward:
    """A forward of a Llama-shaped model on a CPU, by kernels that read the model's own weights.

    A token's logits are the same to the last bit whatever the other spans are, however its sequence is cut into
    spans, and whatever the number of threads, which is PyTorch's (:func:`torch.get_num_threads`).
    """

    def __init__(self, shape: Shape, cache: KVCache, adapters: RowAdapters, *, kernels: Library | None = None) -> None:
        """Describe the model to the kernels.

        Args:
            shape: the model, one that :func:`unsupported` has nothing against.
            cache: its KV cache, in the dtype of the shape.
            adapters: those it has now; what is added later is seen.
            kernels: the compiled kernels, by default those that :func:`trimtab.engine.native.build` has loaded.

        Raises:
            RuntimeError: the kernels are not ready, or cannot run such a model.
        """
        kernels = kernels or library()
        reason = unsupported(shape)
        if kernels is None or reason is not None:
            raise RuntimeError(f"the CPU kernels cannot run this model: {reason or 'they are not built yet'}")
        _check_structs(kernels)
        self._kernels, self._adapters = kernels, adapters
        self._description = Description(shape, cache, adapters)
        self._workspace = kernels.workspace(*_openmp())
        weakref.finalize(self, kernels.free, self._workspace)
        self._vocabulary = shape.head.d_out
        self._logits = torch.empty((0, self._vocabulary))
        self._numbers: npt.NDArray[np.int32] = np.empty(0, dtype=np.int32)
        self._batch = CBatch()

    def __call__(self, spans: Sequence[Span]) -> Tensor:
        """Return (Σ keep, V) float32 logits in the order of the spans, good until the next call."""
        if len(self._adapters) != self._description.slots:
            self._description.describe_adapters()
        kept = sum(span.keep for span in spans)
        if kept > len(self._logits):
            self._logits = torch.empty((kept, self._vocabulary))
        alive = self._lay_out(spans)
        self._batch.kept = kept
        self._batch.threads = torch.get_num_threads()
        self._batch.logits = self._logits.data_ptr()
        self._kernels.forward(self._workspace, ctypes.byref(self._description.model), ctypes.byref(self._batch))
        del alive
        return self._logits[:kept]

    def _lay_out(self, spans: Sequence[Span]) -> list[Any]:
        """Fill the batch; return what must live until the kernels are done."""
        n = len(spans)
        counts = [len(span.tokens) for span in spans]
        starts = [span.start for span in spans]
        needed = [(start + count + PAGE - 1) // PAGE for start, count in zip(starts, counts, strict=True)]
        tokens = sum(counts)
        addresses, halves, tensors = conditions_of([span.conditions for span in spans])
        numbers = self._room(tokens + 6 * n + sum(needed))
        at = 0
        for span, count in zip(spans, counts, strict=True):
            numbers[at : at + count] = span.tokens
            at += count
        columns = numbers[at : at + 6 * n].reshape(6, n)
        columns[0], columns[1], columns[2] = counts, starts, [span.keep for span in spans]
        columns[3] = [-1 if span.slot is None else span.slot for span in spans]
        columns[5] = halves
        first = at = at + 6 * n
        for i, (span, pages) in enumerate(zip(spans, needed, strict=True)):
            columns[4, i] = at - first
            numbers[at : at + pages] = span.pages[:pages]
            at += pages
        base = numbers.ctypes.data
        conditions = (ctypes.c_void_p * n)(*addresses)
        batch, step = self._batch, 4 * n
        batch.spans, batch.tokens, batch.ids = n, tokens, base
        table = base + 4 * tokens
        batch.counts, batch.starts, batch.keeps, batch.slots = (table + i * step for i in range(4))
        batch.first_page, batch.conditions_bf16, batch.pages = table + 4 * step, table + 5 * step, table + 6 * step
        batch.conditions = ctypes.addressof(conditions)
        return [conditions, tensors]

    def _room(self, count: int) -> npt.NDArray[np.int32]:
        if count > len(self._numbers):
            self._numbers = np.empty(2 * count, dtype=np.int32)
        return self._numbers


def _check_structs(kernels: Library) -> None:
    sizes = (ctypes.c_int64 * len(STRUCTS))()
    kernels.sizes(sizes)
    expected = [ctypes.sizeof(struct) for struct in STRUCTS]
    if list(sizes) != expected:
        raise RuntimeError(f"the kernels' structs have {list(sizes)} bytes, and {expected} were expected")


def _openmp() -> tuple[int | None, int | None, int | None]:
    """Return libgomp's functions as PyTorch loaded them, or ``None``s: two pools on the same cores fight each other."""
    loaded = ctypes.CDLL(None)
    try:
        parallel, threads, thread = (
            ctypes.cast(getattr(loaded, name), ctypes.c_void_p).value
            for name in ("GOMP_parallel", "omp_get_num_threads", "omp_get_thread_num")
        )
    except AttributeError:
        return None, None, None
    return parallel, threads, thread
