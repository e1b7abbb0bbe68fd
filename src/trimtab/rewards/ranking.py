"""How well a guide ranks held-out pairs, always beside what costs nothing: the untrained model, and length alone.

A sum of log-probabilities prefers short answers, so an untrained model already ranks some data sets well; a guide's
accuracy says nothing without those two numbers and the subset of pairs whose lengths do not differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from trimtab.errors import DataError, NumericalError
from trimtab.preferences.checks import wilson_interval
from trimtab.rewards.encoding import EncodedPair
from trimtab.rewards.scoring import PairScorer, sequence_logprobs

LENGTH_TOLERANCE = 0.1
"""Pairs are length-matched if the shorter answer has at least 90 % of the longer one's tokens."""


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers with its 95 % interval (Wilson). Equal scores count one half."""

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, right: float, n: int) -> Accuracy | None:
        """Return the accuracy of ``right`` out of ``n``, or ``None`` for no pairs."""
        if n == 0:
            return None
        low, high = wilson_interval(right, n)
        return cls(right / n, low, high, n)

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class RankReport:
    """Held-out ranking of one guide on one objective.

    Attributes:
        objective: which labels were used.
        n: pairs ranked.
        guide: accuracy of the guide.
        untrained: accuracy of the same model without the guide's training.
        length: accuracy of length alone, in the direction that is right more often on these pairs.
        length_rule: that direction: ``"shorter"`` or ``"longer"`` answer wins.
        shorter_wins: accuracy of "the shorter answer wins".
        matched_guide: accuracy of the guide on pairs of like length (within 10 %), ``None`` if there are none.
        matched_untrained: accuracy of the untrained model on those.
        only_guide_right: pairs that the guide ranks right and the untrained model wrong.
        only_untrained_right: pairs that the untrained model ranks right and the guide wrong.
        p_value: exact two-sided McNemar test of guide against untrained.
        mean_margin: mean of β_r·(log π_r(chosen) − log π_r(rejected)), in reward units.
        untrained_margin: the same for the untrained model.
        truncated: pairs that lost a part of prompt or answer.
    """

    objective: str
    n: int
    guide: Accuracy
    untrained: Accuracy
    length: Accuracy
    length_rule: str
    shorter_wins: Accuracy
    matched_guide: Accuracy | None
    matched_untrained: Accuracy | None
    only_guide_right: int
    only_untrained_right: int
    p_value: float
    mean_margin: float
    untrained_margin: float
    truncated: int = 0

    @property
    def gain(self) -> float:
        """Accuracy of the guide minus that of the untrained model."""
        return self.guide.value - self.untrained.value

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "gain": self.gain}


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p-value that two rankers of the same pairs are equally good.

    Of the pairs on which exactly one is right, each side's share is binomial with ½ under that hypothesis:
    p = min(1, 2·P[X ≤ min(first, second)]).
    """
    total = only_first + only_second
    tail = sum(math.comb(total, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**total)


def report_from_margins(
    objective: str,
    guide: Sequence[float],
    untrained: Sequence[float],
    lengths: Sequence[tuple[int, int]],
    *,
    beta: float,
    truncated: int = 0,
) -> RankReport:
    """Return the report of margins log π(chosen) − log π(rejected) and answer lengths; pure arithmetic.

    Args:
        objective: name of the labels.
        guide: one margin a pair, nats.
        untrained: the same pairs' margins without training, nats.
        lengths: (tokens of chosen, tokens of rejected) of each pair.
        beta: β_r, turns margins into rewards.
        truncated: pairs that were cut.

    Raises:
        DataError: no pairs.
        NumericalError: a margin is NaN or infinite.
    """
    n = len(guide)
    if n == 0:
        raise DataError(f"There is no pair to rank for {objective!r}.")
    if not all(math.isfinite(m) for m in (*guide, *untrained)):
        raise NumericalError("A log-probability is NaN or infinite: the model or the guide is damaged.")
    shorter = [float(rejected - chosen) for chosen, rejected in lengths]
    right_by_length = _right(shorter)
    rule = "shorter" if right_by_length >= n / 2 else "longer"
    matched = [i for i, (a, b) in enumerate(lengths) if abs(a - b) <= LENGTH_TOLERANCE * max(a, b)]
    only_guide = sum(g > 0 >= u for g, u in zip(guide, untrained, strict=True))
    only_untrained = sum(u > 0 >= g for g, u in zip(guide, untrained, strict=True))
    return RankReport(
        objective=objective,
        n=n,
        guide=_accuracy(guide),
        untrained=_accuracy(untrained),
        length=_accuracy(shorter if rule == "shorter" else [-s for s in shorter]),
        length_rule=rule,
        shorter_wins=_accuracy(shorter),
        matched_guide=Accuracy.of(_right([guide[i] for i in matched]), len(matched)),
        matched_untrained=Accuracy.of(_right([untrained[i] for i in matched]), len(matched)),
        only_guide_right=only_guide,
        only_untrained_right=only_untrained,
        p_value=mcnemar_p(only_guide, only_untrained),
        mean_margin=beta * sum(guide) / n,
        untrained_margin=beta * sum(untrained) / n,
        truncated=truncated,
    )


def rank(
    model: Any,
    pairs: Sequence[EncodedPair],
    *,
    objective: str,
    beta: float,
    max_length: int,
    untrained: Any | None = None,
    untrained_margins: Sequence[float] | None = None,
    batch_size: int = 16,
    guided_by: float | None = None,
    against_base: bool = False,
    base: Any | None = None,
) -> RankReport:
    """Rank pairs (chosen answer first) with a guide and without its training.

    Args:
        model: the guide's model: a PEFT model, or a fully trained one.
        pairs: encoded with the chosen answer as ``a``.
        objective: name of the labels, for the report.
        beta: the guide's β_r.
        max_length: the longest sequence, tokens.
        untrained: the untrained model, for a fully trained guide; a PEFT model's adapter is switched off instead.
        untrained_margins: the untrained model's margins where they are known already (as after training).
        batch_size: pairs in one forward.
        guided_by: w, to rank by the reward that decoding with this weight acts on (for guides trained on that).
        against_base: rank by log π − log π_ref, π_ref the base (for policies). Beside it stands what the base's own
            log π_ref ranks, because an untrained policy has the same reward, 0, for every answer.
        base: the base of a fully trained guide, which ``guided_by`` and ``against_base`` need.
    """
    if not pairs:
        raise DataError(f"There is no pair to rank for {objective!r}.")
    options: Any = {"max_length": max_length, "batch_size": batch_size, "guided_by": guided_by}
    guided = score_margins(model, pairs, **options, base=base, against_base=against_base)
    if untrained_margins is None:
        other = model if untrained is None else untrained
        off: Callable[[], AbstractContextManager[Any]] = getattr(other, "disable_adapter", nullcontext)
        with off():
            untrained_margins = score_margins(other, pairs, **options, base=base)
    lengths = [(len(p.a_ids), len(p.b_ids)) for p in pairs]
    truncated = sum(p.truncated for p in pairs)
    return report_from_margins(objective, guided, untrained_margins, lengths, beta=beta, truncated=truncated)


def score_margins(
    model: Any,
    pairs: Sequence[EncodedPair],
    *,
    max_length: int,
    batch_size: int = 16,
    guided_by: float | None = None,
    against_base: bool = False,
    base: Any | None = None,
) -> list[float]:
    """Return log π(a|x) − log π(b|x) of each pair, nats.

    With ``guided_by`` = w it is the reward that decoding acts on in place of log π, with ``against_base`` log π − log
    π_ref; ``base`` is then needed for a fully trained model (see :class:`PairScorer`).
    """
    scorer = PairScorer(model, max_length=max_length, base=base)
    options: Any = {"batch_size": batch_size, "guided_by": guided_by, "against_base": against_base}
    a, b = sequence_logprobs(model, pairs, scorer=scorer, **options)
    return [float(m) for m in a - b]


def _right(margins: Sequence[float]) -> float:
    return sum(1.0 if m > 0 else 0.5 if m == 0 else 0.0 for m in margins)


def _accuracy(margins: Sequence[float]) -> Accuracy:
    n = len(margins)
    right = _right(margins)
    return Accuracy(right / n, *wilson_interval(right, n), n)
