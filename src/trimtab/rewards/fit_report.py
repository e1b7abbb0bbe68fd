"""What fitting a preference found: the weights, how sure they are, and how well they rank beside what costs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from trimtab.rewards.ranking import Accuracy

__all__ = ["FitRow", "PreferenceFit"]


@dataclass(frozen=True)
class FitRow:
    """How often one way of ranking is right.

    Attributes:
        name: ``"fitted"``, ``"equal weights"``, ``"only NAME"``, ``"untrained model"`` or ``"length alone"``.
        pairs: on the pairs that the preference was fitted to.
        held_out: on the same pairs, each by a preference fitted without its prompt; for ways that are not fitted the
            same as ``pairs``; ``None`` where there is one prompt only.
        eval: on other pairs, where they were given.
    """

    name: str
    pairs: Accuracy
    held_out: Accuracy | None
    eval: Accuracy | None


@dataclass(frozen=True)
class PreferenceFit:
    """A preference fitted to comparisons.

    Attributes:
        alpha: objective → α_i, what counts, over rewards; sums to one.
        weights: objective → the weight to decode with; sums to one, rounded to thousandths.
        intervals: objective → 95 % interval of α_i.
        determined: whether the pairs tell the preference from equal weights.
        opposed: whether the choices go against the objectives on the whole.
        pairs: number of pairs fitted to.
        prompts: number of different prompts among them.
        left_out: why other rows were not used → how many.
        scale: s, log-odds of a choice for each unit of reward.
        log_likelihood: mean log-probability of the choices, nats; a coin has −0.693.
        held_out_log_likelihood: the same, each pair by a preference fitted without its prompt.
        folds: of that cross-validation.
        rows: accuracies, the fitted preference first.
        points: at how many preferences a conditioned guide was scored, else 0.
        surface_error: of the margins between those points, checked at α, as a share of their size.
    """

    alpha: Mapping[str, float]
    weights: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    determined: bool
    opposed: bool
    pairs: int
    prompts: int
    left_out: Mapping[str, int]
    scale: float
    log_likelihood: float
    held_out_log_likelihood: float | None
    folds: int
    rows: tuple[FitRow, ...]
    points: int = 0
    surface_error: float = 0.0

    @property
    def paste(self) -> str:
        """The weights as ``--weights`` and ``--preference`` take them."""
        return ",".join(f"{name}={weight:g}" for name, weight in self.weights.items())

    @property
    def verdict(self) -> str:
        """What the pairs say, in plain words."""
        many = f"{self.pairs} pair{'s' if self.pairs != 1 else ''}"
        equal = 1 / len(self.alpha)
        if equal == 1:
            return "There is one objective only, so there is nothing to weigh."
        if self.opposed:
            return (
                f"The choices in {many} go against the objectives on the whole, so no mixture explains them: look at "
                "the labels' direction, or use other guides."
            )
        if not self.determined:
            return (
                f"{many} cannot tell this preference from equal weights ({equal:.2f} is in every interval): more "
                "pairs in which the objectives disagree would."
            )
        sure = [
            f"{name} counts {'more' if low > equal else 'less'} than an equal share"
            for name, (low, high) in self.intervals.items()
            if low > equal or high < equal
        ]
        return f"From {many}: {', '.join(sure)}."

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "paste": self.paste, "verdict": self.verdict}
