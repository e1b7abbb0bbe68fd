"""Pairs for Trainer: a data set of encoded pairs, and batches laid out as the model allows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from trimtab.rewards.labelled import LabelledPair
from trimtab.rewards.layout import PairBatch
from trimtab.rewards.scoring import PairScorer


class TrainingBatch(PairBatch):
    """A batch of P pairs with what K objectives say of them."""

    strengths: Tensor
    """(P, K) float32: Δ_i; NaN where an objective did not judge a pair."""
    number: Tensor
    """(P,) long: each pair's place in the data."""
    alpha: Tensor | None
    """(P, K) float32: the preferences to evaluate at; ``None`` in training."""


class PairDataset(Dataset[LabelledPair]):
    """Encoded pairs in the file's order (Trainer's sampler shuffles)."""

    def __init__(self, pairs: Sequence[LabelledPair]) -> None:
        self.pairs = list(pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> LabelledPair:
        return self.pairs[index]


class PairCollator:
    """Turns pairs into one batch, in the layout that ``scorer`` found exact.

    Args:
        scorer: of the model that is trained.
        share_root: ``False`` where each pair of a batch has a preference of its own, so that not even the beginning
            that all prompts share is read alike.
    """

    def __init__(self, scorer: PairScorer, *, share_root: bool = True) -> None:
        self._scorer = scorer
        self._share_root = share_root

    def __call__(self, items: Sequence[LabelledPair]) -> TrainingBatch:
        """Return the batch of ``items``."""
        alphas = [item.alpha for item in items if item.alpha is not None]
        share = self._share_root if not alphas else len(set(alphas)) == 1
        batch = self._scorer.layout([item.pair for item in items], share_root=share)
        return TrainingBatch(
            **batch,
            strengths=torch.tensor([item.strengths for item in items], dtype=torch.float32),
            number=torch.tensor([item.number for item in items]),
            alpha=torch.tensor(alphas, dtype=torch.float32) if alphas else None,
        )
