"""What all scorers share: how they describe themselves, and how often they agree with held-out labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import DataError
from trimtab.models import Text
from trimtab.preferences.records import Comparison, response_text


@dataclass(frozen=True)
class About:
    """What a scorer's number means.

    Attributes:
        objective: what is scored.
        measures: one sentence on how.
        low: least score possible.
        high: greatest score possible.
        unit: of the score.
        licence: of the scorer's rules or weights.
        direction: always ``"higher is better"``; a cost is negated by its scorer.
    """

    objective: str
    measures: str
    low: float = -math.inf
    high: float = math.inf
    unit: str = "nats"
    licence: str = "Apache-2.0"
    direction: str = "higher is better"


class Scorer(Protocol):
    """Gives each answer to a prompt a number; higher is better."""

    @property
    def about(self) -> About:
        """What the number means."""
        ...

    def score(self, answers: Sequence[str], prompts: Sequence[Text] | None = None) -> NDArray[np.float64]:
        """Return one score an answer, (N,). Scorers that read the prompt refuse to do without."""
        ...


def pair_accuracy(scorer: Scorer, comparisons: Sequence[Comparison], objective: str | None = None) -> float:
    """Return how often a scorer prefers the preferred answer; equal scores count half.

    Args:
        scorer: any scorer.
        comparisons: pairs it was not fitted on; ties and unjudged rows are passed over.
        objective: which label; default: the scorer's own objective.

    Raises:
        DataError: no comparison has a label for the objective.
    """
    wanted = objective or scorer.about.objective
    prompts, chosen, rejected = oriented(comparisons, wanted)
    if not chosen:
        raise DataError(f"No comparison has a label for {wanted!r}.")
    margin = scorer.score(chosen, prompts) - scorer.score(rejected, prompts)
    return float(np.mean((margin > 0) + 0.5 * (margin == 0)))


def oriented(comparisons: Sequence[Comparison], objective: str) -> tuple[list[Text], list[str], list[str]]:
    """Return prompts, preferred answers and others of the pairs that have a label for the objective."""
    rows = [(c.prompt, pair) for c in comparisons if (pair := c.oriented(objective)) is not None]
    return [p for p, _ in rows], [response_text(a) for _, (a, _) in rows], [response_text(b) for _, (_, b) in rows]


def bootstrap_interval(values: Sequence[float] | NDArray[np.float64], *, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile-bootstrap interval of the mean of ``values`` (10,000 resamples)."""
    sample = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(0, len(sample), size=(10_000, len(sample)))
    low, high = np.percentile(sample[draws].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)
