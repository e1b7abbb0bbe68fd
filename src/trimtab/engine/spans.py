"""What one forward of a backbone reads: a few tokens of each of many sequences, laid end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

PAGE = 16
"""Positions in one page of the KV cache."""

SCRATCH = 0
"""A page that belongs to no sequence: what is padded writes there, and nothing reads it."""

PageTable = npt.NDArray[np.int32]
"""Page p of a table holds the positions 16·p to 16·p + 15 of its sequence."""


@dataclass(slots=True)
class Span:
    """The next T tokens of one sequence.

    The keys and values of earlier tokens are in the pages already; those of these tokens are written there, and each
    token attends to itself and to all before it. Spans of one forward are in the order of their slots, bare weights
    first, so that the tokens of one adapter are a slice.

    Attributes:
        tokens: (T,) ids of the backbone's vocabulary.
        start: how many tokens of the sequence come before.
        pages: its page table, which covers start + T positions.
        slot: its adapter; ``None`` for the bare weights.
        conditions: what a conditioned adapter's layers need of this sequence's preference, (L, C, ...); else ``None``.
        keep: for how many of its last tokens logits are wanted; 0 for a prompt that goes on in a later forward.
    """

    tokens: Sequence[int]
    start: int
    pages: PageTable
    slot: int | None = None
    conditions: Tensor | None = None
    keep: int = 1


class Forward(Protocol):
    """One way to run a backbone. All of them read and write the same KV cache, so one can take over from another."""

    def __call__(self, spans: Sequence[Span]) -> Tensor:
        """Return (Σ keep, V) float32 logits in the order of the spans, good until the next call."""
        ...
