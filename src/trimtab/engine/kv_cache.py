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
        # Not zeroed: a CPU gives memory to a page only when it is first written to. What is read was written before.
        self.keys: list[Tensor] = [
            torch.empty((pages, s.kv_heads, PAGE, s.key_dim), dtype=dtype, device=device) for s in layers
        ]
        self.values: list[Tensor] = [
            torch.empty((pages, s.kv_heads, PAGE, s.value_dim), dtype=dtype, device=device) for s in layers
        ]

    @staticmethod
    def bytes_per_page(layers: Sequence[KVShape], dtype: torch.dtype) -> int:
        """Return the memory of one page over all layers."""
        return sum(PAGE * s.kv_heads * (s.key_dim + s.value_dim) * dtype.itemsize for s in layers)
