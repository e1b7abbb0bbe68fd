"""What a judge found: wins, ties and losses, and how far its verdicts can be believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from trimtab.evaluation.comparing import length_controlled
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
    """

    id: str
    preferences: tuple[float | None, float | None]
    words: tuple[int, int]
    replies: tuple[str, str] = ("", "")
    problem: str = ""

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

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {**asdict(self), "outcome": self.outcome}


@dataclass(frozen=True)
class JudgeReport:
    """All pairs.

    Attributes:
        judge: model that judged.
        wins: pairs that the first system wins in both orders.
        ties: pairs with two ties, or whose orders disagree, or with equal answers.
        losses: pairs that it loses in both.
        unjudged: pairs without a verdict in one of the orders; they are in no rate.
        equal: pairs with the same answer twice: ties that nobody was asked about.
        win_rate: (wins + ties / 2) / judged pairs, with its 95 % bootstrap interval over pairs.
        length_controlled: the win rate at equal length, by a logistic fit on the difference in words; ``None`` below
            20 judged pairs.
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
    win_rate: float | None
    win_rate_interval: tuple[float, float] | None
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
    def of(cls, judge: str, asked: Sequence[JudgedPair], equal: Sequence[JudgedPair] = ()) -> JudgeReport:
        """Sum up.

        Args:
            judge: name of the judge.
            asked: pairs that it was asked about.
            equal: pairs with the same answer twice.
        """
        every = [*asked, *equal]
        judged = [pair for pair in every if pair.outcome is not None]
        points = [{"win": 1.0, "tie": 0.5, "lose": 0.0}[pair.outcome] for pair in judged if pair.outcome is not None]
        both = [(one, two) for one, two in (pair.preferences for pair in judged) if one is not None and two is not None]
        # Shown first is the first system's answer in the first order, and the second one's in the other.
        first = [float(p > 0.5) for one, two in both for p in (one, 1 - two) if p != 0.5]
        certain = [pair for pair in asked if pair.outcome is not None]
        count = len(every) or 1
        differences = [pair.words[0] - pair.words[1] for pair in judged]
        controlled = length_controlled(points, differences).rate if len(points) >= FEWEST else None
        return cls(
            judge=judge,
            wins=sum(pair.outcome == "win" for pair in every),
            ties=sum(pair.outcome == "tie" for pair in every),
            losses=sum(pair.outcome == "lose" for pair in every),
            unjudged=len(every) - len(judged),
            equal=len(equal),
            win_rate=_mean(points),
            win_rate_interval=bootstrap_interval(points) if points else None,
            length_controlled=controlled.value if controlled else None,
            length_controlled_interval=(controlled.low, controlled.high) if controlled else None,
            preference=_mean([(one + two) / 2 for one, two in both]),
            consistency=_mean([float(pair.consistent) for pair in certain]),
            shown_first=_mean(first),
            shown_first_interval=bootstrap_interval(first) if first else None,
            words=(sum(pair.words[0] for pair in every) / count, sum(pair.words[1] for pair in every) / count),
        )


def _side(preference: float) -> int:
    return (preference > 0.5) - (preference < 0.5)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
