"""Sequences read in pieces over pages in odd order, and what the model itself says of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab.engine.spans import PAGE, Span


@dataclass
class Text:
    """A sequence: its tokens, the adapter that reads them, and how much of it is read."""

    ids: list[int]
    slot: int | None = None
    conditions: Tensor | None = None
    model: Any = None  # the oracle's, of this adapter; None for the base
    pages: Any = None
    read: int = 0
    logits: list[Tensor] = field(default_factory=list)

    def span(self, n: int, *, keep: int | None = None) -> Span:
        tokens = self.ids[self.read : self.read + n]
        keep = n if keep is None else keep
        return Span(tokens, self.read, self.pages, self.slot, self.conditions, keep)


def texts(lengths: Sequence[int], *, vocabulary: int = 100, seed: int = 0) -> list[Text]:
    generator = random.Random(seed)
    return [Text([generator.randrange(3, vocabulary) for _ in range(n)]) for n in lengths]


def give_pages(texts: Sequence[Text], pages: int, *, seed: int = 0) -> None:
    """Deal page tables out of a shuffled deck; page 0 is nobody's."""
    deck = list(range(1, pages))
    random.Random(seed).shuffle(deck)
    for text in texts:
        needed = -(-len(text.ids) // PAGE)
        text.pages = np.array([deck.pop() for _ in range(needed)], dtype=np.int32)


def read(run: Callable[[Sequence[Span]], Tensor], texts: Sequence[Text], steps: Sequence[Sequence[int]]) -> None:
    """Read texts in steps; each step says how many tokens of each text. Logits are added to the texts."""
    for step in steps:
        chosen = [(text, n) for text, n in zip(texts, step, strict=True) if n]
        chosen.sort(key=lambda pair: -1 if pair[0].slot is None else pair[0].slot)
        logits = run([text.span(n) for text, n in chosen]).clone()
        for (text, n), part in zip(chosen, logits.split([n for _, n in chosen]), strict=True):
            text.logits.append(part)
            text.read += n


def expected(model: Any, text: Text) -> Tensor:
    """The model's own logits of the whole text, without a cache."""
    with torch.no_grad():
        return (text.model or model)(input_ids=torch.tensor([text.ids])).logits[0]


def check(model: Any, texts: Sequence[Text], tolerance: float) -> None:
    for text in texts:
        got = torch.cat(text.logits)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected(model, text)[: len(got)].float(), atol=tolerance, rtol=tolerance)


STEPS = [
    [20, 5, 0, 0, 3],
    [1, 1, 17, 0, 1],
    [1, 9, 1, 33, 9],
    [1, 1, 1, 1, 1],
    [0, 1, 1, 1, 1],
    [3, 3, 3, 3, 3],
    [1, 1, 1, 1, 1],
    [1, 1, 1, 1, 1],
]
LENGTHS = [sum(step[i] for step in STEPS) for i in range(5)]
PAGES = 1 + sum(-(-n // PAGE) for n in LENGTHS)
