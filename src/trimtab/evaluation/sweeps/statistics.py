"""The arithmetic of the report: means and intervals over prompts, and one setting against another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.evaluation.sweeps.store import Record

Array = NDArray[np.float64]
RESAMPLES = 2000
LIKE_LENGTH = 0.1
"""Two answers are of like length if their tokens differ by this share of the longer one at most."""


class Answers:
    """One setting's answers as arrays; prompts in the same order in every setting.

    Attributes:
        records: prompt → its samples.
        tokens: (P, S).
        kl: (P, S), nats a token.
    """

    def __init__(self, records: Sequence[Record], samples: int) -> None:
        """Take P · S records, prompt by prompt."""
        self.records = [list(records[i : i + samples]) for i in range(0, len(records), samples)]
        self.tokens = self._array("tokens")
        self.kl = self.diagnostic("kl")

    def scores(self, spec: str) -> Array:
        """Return (P, S)."""
        return self._array("scores", spec)

    def diagnostic(self, name: str) -> Array:
        """Return (P, S)."""
        return self._array("diagnostics", name)

    def mean_kl(self) -> float:
        """Return KL to the base in nats a token: of all answers together, so a long one counts more."""
        return float((self.kl * self.tokens).sum() / self.tokens.sum())

    def stopped(self) -> float:
        """Return the share of answers that ended by themselves."""
        return float(np.mean([[record["finish_reason"] == "stop" for record in row] for row in self.records]))

    def _array(self, *path: str) -> Array:
        """Return the number at a path of keys in every record, (P, S)."""
        return np.array([[_at(record, path) for record in row] for row in self.records], dtype=np.float64)


def _at(record: Any, path: Sequence[str]) -> Any:
    for key in path:
        record = record[key]
    return record


def resample_weights(prompts: int, seed: int = 0) -> Array:
    """Return (R, P): the share of every prompt in every bootstrap sample; the same for the same number of prompts."""
    return np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=RESAMPLES) / prompts


def interval(values: Array, weights: Array) -> dict[str, float]:
    """Return the mean of one value a prompt, (P,), with its 95 % percentile-bootstrap interval over prompts."""
    low, high = np.percentile(weights @ values, [2.5, 97.5])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def ratio_interval(above: Array, below: Array, weights: Array) -> dict[str, float]:
    """Return Σ above / Σ below, both (P,), with its interval: for means a token, in which prompts weigh by length."""
    low, high = np.percentile((weights @ above) / (weights @ below), [2.5, 97.5])
    return {"mean": float(above.sum() / below.sum()), "low": float(low), "high": float(high)}


def spearman(x: Array, y: Array) -> float | None:
    """Return the rank correlation; equal values share their mean rank. ``None`` where one of them never varies."""
    first, second = _ranks(x.ravel()), _ranks(y.ravel())
    first, second = first - first.mean(), second - second.mean()
    scale = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / scale if scale > 0 else None


def _ranks(values: Array) -> Array:
    unique, place, count = np.unique(values, return_inverse=True, return_counts=True)
    del unique
    ends = np.cumsum(count)
    return (ends - (count - 1) / 2)[place]


def like_length(one: Answers, other: Answers, scores: tuple[Array, Array]) -> Mapping[str, Any]:
    """Return the mean difference over the pairs of answers whose lengths are alike, and how many those are."""
    longer = np.maximum(one.tokens, other.tokens)
    alike = np.abs(one.tokens - other.tokens) <= LIKE_LENGTH * longer
    difference = (scores[0] - scores[1])[alike]
    return {"pairs": int(alike.sum()), "difference": float(difference.mean()) if alike.any() else None}
