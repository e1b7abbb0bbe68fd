"""Pairs judged on several objectives: both answers encoded once, one signed strength an objective."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from trimtab.errors import DataError, did_you_mean
from trimtab.preferences.records import Comparison, Label
from trimtab.rewards.encoding import EncodedPair, PairEncoder

Ties = Literal["drop", "half"]
"""What a tie is: as if not judged, or half a label for each answer."""


class LabelledPair(NamedTuple):
    """One pair with what each of K objectives says of it.

    Attributes:
        pair: its token ids, the answers in the file's order.
        strengths: K numbers Δ_i: positive where objective i prefers the first answer, negative where the second, 0 for
            a tie, NaN where it was not judged. ±1 where the data gives no strengths.
        number: its place in the data set.
        alpha: the preference vector it is evaluated at; ``None`` in training, where one is drawn.
    """

    pair: EncodedPair
    strengths: tuple[float, ...]
    number: int
    alpha: tuple[float, ...] | None = None


@dataclass(frozen=True)
class LabelledPairs:
    """The pairs that at least one objective decides, and what was left out.

    Attributes:
        objectives: K names; the order of every ``strengths``.
        pairs: what is left.
        rows: how many comparisons came in.
        undecided: rows that no objective decides.
        equal: rows whose answers are equal, by themselves or after truncation.
        truncated: kept pairs that lost a part of prompt or answer.
        judged: pairs decided by each objective.
        ties: kept pairs tied on each objective.
        conflicting: pairs on which two objectives prefer different answers.
    """

    objectives: tuple[str, ...]
    pairs: list[LabelledPair]
    rows: int
    undecided: int
    equal: int
    truncated: int
    judged: tuple[int, ...]
    ties: tuple[int, ...]
    conflicting: int

    @property
    def summary(self) -> str:
        """One line: what is used and what is not, and why."""
        decided = ", ".join(
            f"{name} {count}" + (f" (+{tied} tied)" if tied else "")
            for name, count, tied in zip(self.objectives, self.judged, self.ties, strict=True)
        )
        left_out = ", ".join(
            f"{count} {why}"
            for count, why in ((self.undecided, "decided by none"), (self.equal, "with equal answers"))
            if count
        )
        line = f"{len(self.pairs)} of {self.rows} pairs; decided by objective: {decided}; "
        line += f"objectives disagree in {self.conflicting}"
        line += f" (left out: {left_out})" if left_out else ""
        return line + (f"; {self.truncated} truncated" if self.truncated else "")


def prepare_labelled(
    comparisons: Sequence[Comparison], objectives: Sequence[str], encoder: PairEncoder, *, ties: Ties = "drop"
) -> LabelledPairs:
    """Return the pairs that decide anything for ``objectives``, with a count of everything left out.

    Args:
        comparisons: judged on any of the objectives.
        objectives: K names, in the guide's order.
        encoder: makes token ids.
        ties: ``"drop"`` keeps no pair that all objectives find tied or did not judge; ``"half"`` keeps ties.

    Raises:
        DataError: an objective decides no pair at all.
    """
    units = _units(comparisons, objectives)
    pairs: list[LabelledPair] = []
    undecided = equal = 0
    for comparison in comparisons:
        strengths = tuple(_strength(comparison, name, units[name]) for name in objectives)
        if not any(_counts(value, ties) for value in strengths):
            undecided += 1
            continue
        name = comparison.id or comparison.source
        pair = encoder.encode(comparison.prompt, comparison.response_a, comparison.response_b, id=name)
        if pair.equal:
            equal += 1
        else:
            pairs.append(LabelledPair(pair, strengths, len(pairs)))
    made = _summed(tuple(objectives), pairs, len(comparisons), undecided, equal)
    for name, judged in zip(objectives, made.judged, strict=True):
        if not judged:
            raise DataError(f"No pair is decided by {name!r}, so nothing of it can be learned: {made.summary}.")
    return made


def choose_objectives(comparisons: Iterable[Comparison], asked: Sequence[str], *, source: str) -> tuple[str, ...]:
    """Return the objectives to learn: those asked for, in that order, or all that the data has, in its order.

    Raises:
        DataError: the data does not have one of them, or has fewer than two.
    """
    known: dict[str, None] = {}
    for comparison in comparisons:
        known |= dict.fromkeys(comparison.labels)
    for name in asked:
        if name not in known:
            raise DataError(
                f"{source} has no labels for {name!r}: it has {', '.join(known)}.{did_you_mean(name, known)}"
            )
    chosen = tuple(dict.fromkeys(asked or known))
    if len(chosen) < 2:
        raise DataError(
            f"A guide for several objectives needs at least two, but {source} has {', '.join(known) or 'none'}: name "
            "more --data, or train one objective with --method genarm."
        )
    return chosen


def _units(comparisons: Sequence[Comparison], objectives: Sequence[str]) -> Mapping[str, float]:
    """Return each objective's mean strength, so that units do not decide; 0 where a row gives none."""
    units: dict[str, float] = {}
    for name in objectives:
        decided = [c for c in comparisons if c.labels.get(name, Label.TIE) is not Label.TIE]
        values = [c.strengths[name] for c in decided if c.strengths.get(name, 0) > 0]
        complete = bool(values) and len(values) == len(decided)
        units[name] = math.fsum(values) / len(values) if complete else 0.0
    return units


def _strength(comparison: Comparison, objective: str, unit: float) -> float:
    label = comparison.labels.get(objective)
    if label is None:
        return math.nan
    return float(label) * (comparison.strengths[objective] / unit if unit and label else 1.0)


def _counts(strength: float, ties: Ties) -> bool:
    return not math.isnan(strength) and (strength != 0 or ties == "half")


def _summed(
    objectives: tuple[str, ...], pairs: list[LabelledPair], rows: int, undecided: int, equal: int
) -> LabelledPairs:  # fmt: skip
    columns = [[pair.strengths[i] for pair in pairs] for i in range(len(objectives))]
    return LabelledPairs(
        objectives=objectives,
        pairs=pairs,
        rows=rows,
        undecided=undecided,
        equal=equal,
        truncated=sum(item.pair.truncated for item in pairs),
        judged=tuple(sum(_counts(value, "drop") for value in column) for column in columns),
        ties=tuple(sum(value == 0 for value in column) for column in columns),
        conflicting=sum(any(s > 0 for s in p.strengths) and any(s < 0 for s in p.strengths) for p in pairs),
    )
