"""What all scorers share: how they describe themselves, and how often they agree with held-out labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import ConfigError, DataError
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
        name: what the registry makes the scorer from, such as ``"reward:FOLDER"``; ``""`` if it was made by hand.
        fitted_on: SHA-256 of the pairs it was fitted on, as ``guide.json`` has it of a guide's; empty where nothing
            was fitted, or where that is not known.
        fitted_on_pairs: :func:`~trimtab.evaluation.scorers.independence.pair_hashes` of those pairs, where known.
        labelled_by: who or what labelled those pairs; ``None`` where nothing was fitted, or it is not known.
        guide: :func:`~trimtab.evaluation.scorers.independence.fingerprint` of the guide that the scorer is, if it is
            one.
        accuracy: how often it agrees with labels that it was not fitted on, from 0 to 1; ``None`` if not measured.
        accuracy_on: what that accuracy was measured on, with its interval.
    """

    objective: str
    measures: str
    low: float = -math.inf
    high: float = math.inf
    unit: str = "nats"
    licence: str = "Apache-2.0"
    direction: str = "higher is better"
    name: str = ""
    fitted_on: tuple[str, ...] = ()
    fitted_on_pairs: frozenset[str] = field(default=frozenset(), repr=False)
    labelled_by: str | None = None
    guide: str | None = None
    accuracy: float | None = None
    accuracy_on: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values: infinite ends of the range become ``None``, hashes of pairs are left out."""
        values = {name: value for name, value in vars(self).items() if name != "fitted_on_pairs"}
        low, high = (x if math.isfinite(x) else None for x in (self.low, self.high))
        return {**values, "low": low, "high": high, "fitted_on": list(self.fitted_on)}


class Scorer(Protocol):
    """Gives each answer to a prompt a number; higher is better.

    A scorer that had to cut texts says so in ``notices`` (see :func:`notices_of`).
    """

    @property
    def about(self) -> About:
        """What the number means."""
        ...

    def score(self, answers: Sequence[str], prompts: Sequence[Text] | None = None) -> NDArray[np.float64]:
        """Return one score an answer, (N,). Scorers that read the prompt refuse to do without."""
        ...


def scoring_dtype(device: str) -> str:
    """Return the dtype for models that judge: float32 on a CPU, so that a score does not depend on its neighbours."""
    from trimtab.models.loading import resolve_device

    return "float32" if resolve_device(device).type == "cpu" else "auto"


def notices_of(scorer: Scorer) -> tuple[str, ...]:
    """Return what a reader of its scores must know of the answers scored so far, such as how many were cut."""
    return tuple(getattr(scorer, "notices", ()))


def prompts_for(answers: Sequence[str], prompts: Sequence[Text] | None) -> Sequence[Text]:
    """Return the prompts of a scorer that reads them.

    Raises:
        ConfigError: they are missing or are not as many as the answers.
    """
    if prompts is None or len(prompts) != len(answers):
        raise ConfigError(f"This scorer reads prompts: give one with each of the {len(answers)} answers.")
    return prompts


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
