"""What a judge found: wins, ties and losses, and how far its verdicts can be believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from trimtab.evaluation.comparing import length_controlled, sign_flip_p
from trimtab.evaluation.scorers.common import bootstrap_interval

FEWEST = 20
"""Judged pairs below which nothing is said of what length explains."""
Outcome = Literal["win", "tie", "lose"]


@dataclass(frozen=True)
class JudgedPair:
    """One pair, judged in both orders.

    Attributes:
        id: of the pair.
        preferences: how much the judge prefers the first system's answer, 0 to 1: where that answer was shown first,
            and where it was shown second. ``None`` where the reply has no verdict. A tie is 0.5.
        words: number of words of both answers.
        replies: what the judge wrote.
        problem: why there is no verdict, if there is none.
        group: of the pairs of one prompt, which count as one; ``""`` for a pair that is alone.
        equal: whether both answers are the same, a tie that nobody was asked about.
    """

    id: str
    preferences: tuple[float | None, float | None]
    words: tuple[int, int]
    replies: tuple[str, str] = ("", "")
    problem: str = ""
    group: str = ""
    equal: bool = False

    @property
    def outcome(self) -> Outcome | None:
        """What it is for the first system. Orders that disagree are a tie; ``None`` if an order has no verdict."""
        first, second = self.preferences
        if first is None or second is None:
            return None
        if first > 0.5 and second > 0.5:
            return "win"
        return "lose" if first < 0.5 and second < 0.5 else "tie"

    @property
    def consistent(self) -> bool:
        """Whether both orders gave the same verdict."""
        first, second = self.preferences
        return first is not None and second is not None and _side(first) == _side(second)

    @property
    def points(self) -> float | None:
        """What it counts for the first system: 1 a win, ½ a tie, 0 a loss; ``None`` if an order has no verdict."""
        return None if self.outcome is None else {"win": 1.0, "tie": 0.5, "lose": 0.0}[self.outcome]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {**asdict(self), "outcome": self.outcome}


@dataclass(frozen=True)
class JudgeReport:
    """All pairs.

    Pairs of one prompt are averaged first: answers to one prompt are not independent. Rates, intervals and the test are
    over prompts.

    Attributes:
        judge: model that judged.
        wins: pairs that the first system wins in both orders.
        ties: pairs with two ties, or whose orders disagree, or with equal answers.
        losses: pairs that it loses in both.
        unjudged: pairs without a verdict in one of the orders; they are in no rate.
        equal: pairs with the same answer twice: ties that nobody was asked about.
        prompts: prompts with a pair that has a verdict.
        win_rate: mean over prompts of 1 for a win, ½ for a tie and 0 for a loss, with its 95 % bootstrap interval.
        p_value: two-sided, that neither system is preferred, by flipping the signs of the prompts' win rates less ½
            (exact up to 16 prompts).
        length_controlled: the win rate at equal length, by a logistic fit on the difference in words; ``None`` below
            20 judged prompts.
        length_controlled_interval: its 95 % bootstrap interval.
        preference: mean preference for the first system over both orders, 0 to 1.
        consistency: share of asked pairs whose orders gave the same verdict.
        shown_first: share of decided verdicts for the answer that was shown first (0.5 is no bias), with its interval.
        words: mean number of words of both systems' answers.
    """

    judge: str
    wins: int
    ties: int
    losses: int
    unjudged: int
    equal: int
    prompts: int
    win_rate: float | None
    win_rate_interval: tuple[float, float] | None
    p_value: float | None
    length_controlled: float | None
    length_controlled_interval: tuple[float, float] | None
    preference: float | None
    consistency: float | None
    shown_first: float | None
    shown_first_interval: tuple[float, float] | None
    words: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return asdict(self)

    @classmethod
    def of(cls, judge: str, pairs: Sequence[JudgedPair]) -> JudgeReport:
        """Sum up.

        Args:
            judge: name of the judge.
            pairs: judged pairs, and those with the same answer twice.
        """
        outcomes = [pair.outcome for pair in pairs]
        points, differences = _by_prompt(pairs)
        both = [(one, two) for one, two in (pair.preferences for pair in pairs) if one is not None and two is not None]
        # Shown first is the first system's answer in the first order, and the second one's in the other.
        first = [float(p > 0.5) for one, two in both for p in (one, 1 - two) if p != 0.5]
        certain = [pair for pair in pairs if pair.outcome is not None and not pair.equal]
        count = len(pairs) or 1
        controlled = length_controlled(points, differences).rate if len(points) >= FEWEST else None
        return cls(
            judge=judge,
            wins=outcomes.count("win"),
            ties=outcomes.count("tie"),
            losses=outcomes.count("lose"),
            unjudged=outcomes.count(None),
            equal=sum(pair.equal for pair in pairs),
            prompts=len(points),
            win_rate=_mean(points),
            win_rate_interval=bootstrap_interval(points) if points else None,
            p_value=sign_flip_p(points, [0.5] * len(points)) if points else None,
            length_controlled=controlled.value if controlled else None,
            length_controlled_interval=(controlled.low, controlled.high) if controlled else None,
            preference=_mean([(one + two) / 2 for one, two in both]),
            consistency=_mean([float(pair.consistent) for pair in certain]),
            shown_first=_mean(first),
            shown_first_interval=bootstrap_interval(first) if first else None,
            words=(sum(pair.words[0] for pair in pairs) / count, sum(pair.words[1] for pair in pairs) / count),
        )


def _by_prompt(pairs: Sequence[JudgedPair]) -> tuple[list[float], list[float]]:
    """Return the mean points and the mean difference in words of every prompt that has a verdict."""
    groups: dict[Any, list[tuple[float, int]]] = {}
    for place, pair in enumerate(pairs):
        if pair.points is not None:
            groups.setdefault(pair.group or place, []).append((pair.points, pair.words[0] - pair.words[1]))
    return (
        [sum(points for points, _ in group) / len(group) for group in groups.values()],
        [sum(words for _, words in group) / len(group) for group in groups.values()],
    )


def _side(preference: float) -> int:
    return (preference > 0.5) - (preference < 0.5)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
