"""Pairs for Trainer: a data set of encoded pairs, and batches laid out as the model allows."""

from __future__ import annotations

from collections.abc import Sequence

from torch.utils.data import Dataset

from trimtab.rewards.encoding import EncodedPair
from trimtab.rewards.layout import PairBatch
from trimtab.rewards.scoring import PairScorer


class PairDataset(Dataset[EncodedPair]):
    """Encoded pairs, chosen answer first, in the file's order (Trainer's sampler shuffles)."""

    def __init__(self, pairs: Sequence[EncodedPair]) -> None:
        self.pairs = list(pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> EncodedPair:
        return self.pairs[index]


class PairCollator:
    """Turns pairs into one batch, in the layout that ``scorer`` found exact."""

    def __init__(self, scorer: PairScorer) -> None:
        self._scorer = scorer

    def __call__(self, pairs: Sequence[EncodedPair]) -> PairBatch:
        """Return the batch of ``pairs``."""
        return self._scorer.layout(pairs)
