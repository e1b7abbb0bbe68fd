"""What one answer's drafts are made of."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from trimtab.decoding.drafting import DraftLength, NGramDrafter
from trimtab.engine.requests import Row


class Drafting:
    """How the next tokens of one answer are drafted.

    Attributes:
        length: decides how many tokens to draft, from how many were kept.
        ngrams: looks them up in the text; ``None`` where a model drafts.
        drafts: those of the step under way, base ids.
        proposals: (V,) probabilities that each was drawn with; empty where drafts are certain.
        scored: logits that rows have got for drafts while they were made, for each position (logits, line).
    """

    def __init__(self, length: DraftLength, ngrams: NGramDrafter | None = None) -> None:
        self.length = length
        self.ngrams = ngrams
        self.drafts: list[int] = []
        self.proposals: list[Tensor] = []
        self.scored: dict[Row, list[tuple[Tensor, int]]] = {}

    def drop(self) -> None:
        """Forget the drafts of the step under way."""
        self.drafts, self.proposals, self.scored = [], [], {}

    def learn(self, drafted: int, kept: int, tokens: Sequence[int]) -> None:
        """Note what a step wrote.

        Args:
            drafted: tokens that were drafted for it.
            kept: how many of them stayed.
            tokens: those, and the one after them.
        """
        self.length.update(drafted, kept)
        if self.ngrams is not None:
            self.ngrams.extend(tokens)
        self.drop()
