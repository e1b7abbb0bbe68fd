"""The keys and values of every sequence of one backbone, in pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.engine.spans import PAGE


@dataclass(frozen=True)
class KVShape:
    """The size of one layer's keys and values: H_kv heads of D_k and D_v numbers."""

    kv_heads: int
    key_dim: int
    value_dim: int


class KVCache:
    """Keys and values by layer and page.

    Attributes:
        keys: for each layer (pages, H_kv, PAGE, D_k).
        values: for each layer (pages, H_kv, PAGE, D_v).
    """

    def __init__(self, layers: Sequence[KVShape], pages: int, *, dtype: torch.dtype, device: torch.device) -> None:
        # Not zeroed: a CPU gives memory to a page only when it is first written to. See `clear` for what is read.
        shapes = [(pages, s.kv_heads, PAGE, s.key_dim) for s in layers]
        shapes += [(pages, s.kv_heads, PAGE, s.value_dim) for s in layers]
        if len(set(shapes)) == 1:  # one block of memory, which is cleared by one operation
            block = torch.empty((len(shapes), *shapes[0]), dtype=dtype, device=device)
            self._by_page = [block.transpose(0, 1)]
            tensors = list(block.unbind(0))
        else:
            tensors = [torch.empty(shape, dtype=dtype, device=device) for shape in shapes]
            self._by_page = tensors
        self.keys: list[Tensor] = tensors[: len(layers)]
        self.values: list[Tensor] = tensors[len(layers) :]

    def clear(self, pages: Tensor) -> None:
        """Zero the pages (N,) that a sequence is about to begin.

        A forward that reads whole pages masks what lies behind a sequence's end, but a NaN from fresh memory or from
        a sequence that had the page before would come through the mask, as 0 · NaN.
        """
        for tensor in self._by_page:
            tensor.index_fill_(0, pages, 0)

    @staticmethod
    def bytes_per_page(layers: Sequence[KVShape], dtype: torch.dtype) -> int:
        """Return the memory of one page over all layers."""
        return sum(PAGE * s.kv_heads * (s.key_dim + s.value_dim) * dtype.itemsize for s in layers)
