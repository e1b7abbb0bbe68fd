"""How well guides for several objectives rank held-out pairs at given preferences.

At a preference α a pair's truth is its mixed label sgn(Σ_i α_i·Δ_i) (see :mod:`trimtab.rewards.mixed`), and a guide's
answer is its margin at α: of a conditioned guide log π(a|x, α) − log π(b|x, α), of plain guides Σ_i α_i·(log π_i(a|x) −
log π_i(b|x)), which is what decoding with the weights α adds to the base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trimtab.errors import ConfigError, DataError
from trimtab.models import Base
from trimtab.preferences.reading import objectives_of
from trimtab.preferences.records import Comparison, Label
from trimtab.preferences.vectors import Preference, lattice, preference_matrix
from trimtab.rewards.margins import Guides, PairMargins, read_guides, score_pairs
from trimtab.rewards.mixed import mixed_label, mixed_name
from trimtab.rewards.ranking import RankReport, report_from_margins

__all__ = ["MixedRanking", "mixed_report", "rank_preferences"]


@dataclass(frozen=True)
class MixedRanking:
    """The ranking of held-out pairs at one preference.

    Attributes:
        preference: objective → α_i.
        rows: comparisons that came in.
        missing: rows where an objective with a weight was not judged.
        ties: rows whose weighted labels cancel.
        equal: decided rows whose answers are equal, by themselves or after truncation.
        report: the ranking of the rest, under the mixture's name; ``None`` where none is left.
    """

    preference: Mapping[str, float]
    rows: int
    missing: int
    ties: int
    equal: int
    report: RankReport | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        counts = {"rows": self.rows, "missing": self.missing, "ties": self.ties, "equal": self.equal}
        report = self.report.to_dict() if self.report else None
        return {"preference": dict(self.preference), **counts, "report": report}


def rank_preferences(
    guides: Sequence[str | Path],
    comparisons: Sequence[Comparison],
    preferences: Sequence[Preference] | None = None,
    *,
    grid: int | None = None,
    base: Base | str | None = None,
    source: str = "the data",
    batch_size: int = 16,
) -> list[MixedRanking]:
    """Rank pairs at each preference, beside the untrained model and length alone.

    Args:
        guides: the folder of one conditioned guide, or of plain guides with one objective each.
        comparisons: held-out pairs, with a label for each objective.
        preferences: over the guides' objectives, each summing to one; default: each objective alone that the data has.
        grid: add every preference whose weights are multiples of 1/grid.
        base: the guides' base, or another name for it; default: the one their manifests name.
        source: what to call the comparisons in messages.
        batch_size: pairs in one forward.

    Returns:
        One ranking a preference, in the order given, then the grid's.

    Raises:
        DataError: at none of the preferences there is a pair to rank.
        ConfigError, GuidanceError, GuideError: the guides or preferences do not fit together.
    """
    known = read_guides(guides)
    alphas = _alphas(known, comparisons, preferences, grid, source)
    named = [dict(zip(known.objectives, map(_clean, row), strict=True)) for row in alphas.tolist()]
    judged = [row for row in comparisons if any(mixed_label(row.labels, alpha) for alpha in named)]
    if not judged:
        found = ", ".join(objectives_of(comparisons)) or "none"
        raise DataError(
            f"No row of {source} is decided at {_listed(named)}: every objective with a weight needs a label in the "
            f"row, and the weighted labels must not cancel. The data has labels for: {found}."
        )
    margins = score_pairs(known, judged, alphas if known.conditioned else None, base=base, batch_size=batch_size)
    rankings = [mixed_report(judged, alpha, *_at(known, margins, alphas, i), margins) for i, alpha in enumerate(named)]
    return [_count_all(ranking, comparisons) for ranking in rankings]


def mixed_report(
    comparisons: Sequence[Comparison],
    alpha: Mapping[str, float],
    guided: Tensor,
    untrained: Tensor,
    beta: float,
    margins: PairMargins,
) -> MixedRanking:
    """Return the ranking at one preference of pairs whose margins are known.

    Args:
        comparisons: N pairs.
        alpha: objective → weight.
        guided: (N,), the guides' margins a − b at α, nats.
        untrained: (N,), the same without training.
        beta: β_r, turns margins into rewards.
        margins: for lengths, truncation and equal answers.
    """
    labels = [mixed_label(row.labels, alpha) for row in comparisons]
    decided = [(n, int(label)) for n, label in enumerate(labels) if label]
    kept = [(n, sign) for n, sign in decided if not margins.equal[n]]
    report = None
    if kept:
        report = report_from_margins(
            mixed_name(alpha),
            [sign * float(guided[n]) for n, sign in kept],
            [sign * float(untrained[n]) for n, sign in kept],
            [_turned(margins.lengths[n], sign) for n, sign in kept],
            beta=beta,
            truncated=sum(margins.truncated[n] for n, _ in kept),
        )
    missing, ties = labels.count(None), labels.count(Label.TIE)
    return MixedRanking(alpha, len(labels), missing, ties, len(decided) - len(kept), report)


def _alphas(
    guides: Guides,
    comparisons: Sequence[Comparison],
    preferences: Sequence[Preference] | None,
    grid: int | None,
    source: str,
) -> Tensor:
    k = len(guides.objectives)
    parts: list[Tensor] = []
    if preferences:
        parts.append(preference_matrix(preferences, guides.objectives))
    elif grid is None:
        found = objectives_of(comparisons)
        rows = [i for i, name in enumerate(guides.objectives) if name in found]
        if not rows:
            raise DataError(
                f"{source} has labels for {', '.join(found) or 'nothing'}; the guides' objectives are "
                f"{', '.join(guides.objectives)}."
            )
        parts.append(torch.eye(k)[rows])
    if grid is not None:
        if grid < 1:
            raise ConfigError(f"A grid of {grid} steps has no points: give at least 1.")
        parts.append(lattice(k, grid))
    return torch.cat(parts)


def _at(guides: Guides, margins: PairMargins, alphas: Tensor, i: int) -> tuple[Tensor, Tensor, float]:
    """Return guided and untrained margins, (N,) each, and β_r at the i-th preference."""
    alpha = alphas[i].double()
    beta = float(alpha @ torch.tensor(guides.betas, dtype=torch.float64))
    if guides.conditioned:
        return margins.guided[i], margins.untrained[0], beta
    return alpha @ margins.guided, alpha @ margins.untrained, beta


def _count_all(ranking: MixedRanking, comparisons: Sequence[Comparison]) -> MixedRanking:
    """Return the ranking with the counts of all rows, also of those that no preference decides and nobody scored."""
    labels = [mixed_label(row.labels, ranking.preference) for row in comparisons]
    return replace(ranking, rows=len(labels), missing=labels.count(None), ties=labels.count(Label.TIE))


def _turned(lengths: tuple[int, int], sign: int) -> tuple[int, int]:
    return lengths if sign > 0 else (lengths[1], lengths[0])


def _clean(weight: float) -> float:
    return round(weight, 7)  # float32 holds 0.7 as 0.699999988


def _listed(named: Sequence[Mapping[str, float]]) -> str:
    return " or ".join(repr(mixed_name(alpha)) for alpha in named[:3]) + (" or …" if len(named) > 3 else "")
