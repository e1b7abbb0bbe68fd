"""Fitting a preference to a user's own comparisons, with guides on disk: what ``trimtab fit`` does.

The likelihood weighs rewards, r_i = β_i·log π_i (see :mod:`trimtab.preferences.fitting`), while decoding weighs
log-probabilities. So the weights to decode with are w_i ∝ α_i·β_i, scaled to sum to one: the mixture that decoding adds
is then the fitted reward. They are α itself where the guides have one β, as a conditioned guide has. How strongly to
pull is not in the comparisons: a choice says which answer is better, never how far to leave the base for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from trimtab.errors import ConfigError, DataError
from trimtab.models import Base
from trimtab.preferences.fitting import REGULARISATION, FittedPreference, MarginSurface, fit_margins, shares
from trimtab.preferences.reading import read_comparisons
from trimtab.preferences.records import Comparison, Label
from trimtab.preferences.splitting import prompt_key
from trimtab.preferences.vectors import lattice
from trimtab.rewards.encoding import choose_objective
from trimtab.rewards.fit_report import FitRow, PreferenceFit
from trimtab.rewards.margins import Guides, base_of, read_guides, score_pairs
from trimtab.rewards.ranking import Accuracy

__all__ = ["fit"]

_MOST_POINTS = 64
_FINEST = 4

Comparisons = str | Path | Sequence[Comparison]


def fit(
    comparisons: Comparisons,
    guides: str | Path | Sequence[str | Path],
    *,
    objective: str | None = None,
    eval_data: Comparisons | None = None,
    base: Base | str | None = None,
    regularisation: float = REGULARISATION,
    folds: int = 10,
    resamples: int = 500,
    resolution: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
    notify: Callable[[str], None] | None = None,
) -> PreferenceFit:
    """Fit a preference over the guides' objectives to a user's comparisons.

    Args:
        comparisons: the user's pairs, or a file or hub data set of them.
        guides: the folder of one conditioned guide, or of plain guides with one objective each.
        objective: which of the comparisons' labels is the user's; may be left out if there is only one.
        eval_data: other pairs of the same user, to report accuracies on.
        base: the guides' base, or another name for it; default: the one their manifests name.
        regularisation: how strongly equal weights are assumed before any pair is seen.
        folds: most folds of the cross-validation; 0 leaves it out.
        resamples: number of refits for the intervals.
        resolution: a conditioned guide is scored at all preferences whose weights are multiples of 1/resolution;
            default: 4 or less, so that they are no more than 64.
        seed: of folds and intervals.
        batch_size: pairs in one forward.
        notify: called with lines that say what is done.

    Raises:
        DataError: there is no pair to fit to.
        ConfigError: options or guides that do not fit together.
        GuideError: a guide is damaged or for another base.
    """
    known = read_guides([guides] if isinstance(guides, str | Path) else guides)
    told = notify or _say_nothing
    degree = _degree(known, resolution)
    sets = [_oriented(comparisons, objective, "the comparisons")]
    if eval_data is not None:
        sets.append(_oriented(eval_data, objective, "the evaluation data"))
    if len({(manifest.base.id, manifest.base.revision) for manifest in known.manifests}) == 1:
        base = base_of(known.manifests[0], base)
    told(f"Scoring {' and '.join(str(len(own.pairs)) for own in sets)} pairs.")
    table = [_score(known, own, degree, base, batch_size) for own in sets]
    own = table[0]
    groups = [prompt_key(pair) for pair in own.pairs]
    found = fit_margins(own.surface, groups, regularisation=regularisation, folds=folds, resamples=resamples, seed=seed)
    error = 0.0
    if known.conditioned:
        told("Checking the fitted preference.")
        exact = score_pairs(known, own.pairs, found.alpha[None].float(), base=base, batch_size=batch_size)
        error = _surface_error(own.surface, found.alpha, known.betas[0] * exact.guided[0])
    return _result(known, found, table, len(set(groups)), error)


@dataclass(frozen=True)
class _Oriented:
    """The pairs that the user decided, chosen answer first, and how many rows are left out and why."""

    pairs: list[Comparison]
    left_out: dict[str, int]
    source: str


@dataclass(frozen=True)
class _Scores:
    """What one set of N pairs scores; pairs of equal answers are left out.

    Attributes:
        pairs: chosen answer first.
        left_out: why other rows were not used → how many.
        surface: their margins under every preference, log-odds.
        untrained: (1, N) or (K, N), without the guides' training, nats.
        shorter: (N,), rejected − chosen tokens.
    """

    pairs: list[Comparison]
    left_out: dict[str, int]
    surface: MarginSurface
    untrained: Tensor
    shorter: Tensor

    def at(self, alpha: Tensor) -> Tensor:
        return self.surface.at(alpha[None])[0]


def _score(guides: Guides, own: _Oriented, degree: int, base: Base | str | None, batch_size: int) -> _Scores:
    nodes = lattice(len(guides.objectives), degree) if guides.conditioned else None
    margins = score_pairs(guides, own.pairs, nodes, base=base, batch_size=batch_size)
    keep = [n for n, equal in enumerate(margins.equal) if not equal]
    left_out = {**own.left_out, "equal answers": len(own.pairs) - len(keep)}
    if not keep:
        raise DataError(f"No pair of {own.source} is left: {_reasons(left_out)}.")
    guided = margins.guided[:, keep]
    if guides.conditioned:
        surface = MarginSurface(len(guides.objectives), degree, guides.betas[0] * guided)
    else:
        surface = MarginSurface.linear((_betas(guides)[:, None] * guided).T)
    lengths = torch.tensor(margins.lengths, dtype=torch.float64)[keep]
    shorter = lengths[:, 1] - lengths[:, 0]
    return _Scores([own.pairs[n] for n in keep], left_out, surface, margins.untrained[:, keep], shorter)


def _say_nothing(_line: str) -> None:
    pass


def _betas(guides: Guides) -> Tensor:
    return torch.tensor(guides.betas, dtype=torch.float64)


def _degree(guides: Guides, resolution: int | None) -> int:
    """Return the lattice's steps: 1 for ARMs, whose margins are linear in α."""
    if not guides.conditioned:
        if resolution is not None:
            raise ConfigError("A resolution is for a conditioned guide; margins of plain guides are linear in α.")
        return 1
    k = len(guides.objectives)
    if resolution is not None:
        if not 1 <= resolution <= 8:
            raise ConfigError(f"The resolution is {resolution}: give a whole number from 1 to 8.")
        return resolution
    return max(m for m in range(1, _FINEST + 1) if m == 1 or math.comb(m + k - 1, k - 1) <= _MOST_POINTS)


def _oriented(data: Comparisons, objective: str | None, source: str) -> _Oriented:
    if isinstance(data, str | Path):
        source = str(data)
        rows: Sequence[Comparison] = read_comparisons(data, objective=objective).comparisons
    else:
        rows = data
    name = choose_objective(rows, objective, source=source)
    labels = [row.label(name) for row in rows]
    pairs = [row if label is Label.A else row.swapped() for row, label in zip(rows, labels, strict=True) if label]
    left_out = {"not judged": labels.count(None), "tied": labels.count(Label.TIE)}
    if not pairs:
        raise DataError(f"No pair of {source} is left: {_reasons(left_out)}.")
    return _Oriented(pairs, left_out, source)


def _surface_error(surface: MarginSurface, alpha: Tensor, exact: Tensor) -> float:
    """Return the root mean square error of the surface at α, as a share of the margins' size."""
    size = float(exact.square().mean().sqrt())
    return float((surface.at(alpha[None])[0] - exact).square().mean().sqrt()) / size if size else 0.0


def _result(
    guides: Guides,
    found: FittedPreference,
    table: Sequence[_Scores],
    prompts: int,
    error: float,
) -> PreferenceFit:
    names = guides.objectives
    alpha = cast("list[float]", found.alpha.tolist())
    mixed = found.alpha if guides.conditioned else found.alpha * _betas(guides)
    ends = zip(cast("list[float]", found.low.tolist()), cast("list[float]", found.high.tolist()), strict=True)
    return PreferenceFit(
        alpha=dict(zip(names, alpha, strict=True)),
        weights=dict(zip(names, shares(cast("list[float]", mixed.tolist())), strict=True)),
        intervals=dict(zip(names, ends, strict=True)),
        determined=found.determined,
        opposed=found.opposed,
        pairs=len(table[0].pairs),
        prompts=prompts,
        left_out={why: count for why, count in table[0].left_out.items() if count},
        scale=found.scale,
        log_likelihood=found.log_likelihood,
        held_out_log_likelihood=found.held_out_log_likelihood,
        folds=found.folds,
        rows=tuple(_rows(guides, found, table)),
        points=len(table[0].surface.nodes) if guides.conditioned else 0,
        surface_error=error,
    )


def _rows(guides: Guides, found: FittedPreference, table: Sequence[_Scores]) -> list[FitRow]:
    names = guides.objectives
    k = len(names)
    equal = torch.full((k,), 1 / k, dtype=torch.float64)
    ways: list[tuple[str, Callable[[_Scores], Tensor]]] = []
    if k > 1:
        ways.append(("equal weights", lambda scores: scores.at(equal)))
    for name, only in zip(names, torch.eye(k, dtype=torch.float64), strict=True):
        ways.append((f"only {name}", lambda scores, only=only: scores.at(only)))
    # Guides on different bases have different untrained models: these are mixed with the same weights.
    mixed = torch.ones(1, dtype=torch.float64) if guides.conditioned else found.alpha * _betas(guides)
    ways.append(("untrained model", lambda scores: mixed @ scores.untrained))
    # The direction that is right more often on the pairs themselves, so that nothing is chosen on the evaluation data.
    shorter = float(table[0].shorter.sign().sum()) >= 0
    side = f"length alone ({'shorter' if shorter else 'longer'} wins)"
    ways.append((side, lambda scores: scores.shorter * (1 if shorter else -1)))
    rows = [_row("fitted", [scores.at(found.alpha) for scores in table], found.held_out)]
    for name, way in ways:
        margins = [way(scores) for scores in table]
        rows.append(_row(name, margins, margins[0] if found.held_out is not None else None))
    return rows


def _row(name: str, margins: Sequence[Tensor], held_out: Tensor | None) -> FitRow:
    other = _accuracy(margins[1]) if len(margins) > 1 else None
    return FitRow(name, _accuracy(margins[0]), None if held_out is None else _accuracy(held_out), other)


def _accuracy(margins: Tensor) -> Accuracy:
    right = float((margins > 0).sum()) + 0.5 * float((margins == 0).sum())
    return cast("Accuracy", Accuracy.of(right, len(margins)))


def _reasons(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {why}" for why, count in left_out.items() if count) or "it has no rows"
