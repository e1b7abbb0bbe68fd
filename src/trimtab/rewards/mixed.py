"""Which answer a preference over several objectives prefers, from one label an objective.

A row's objectives may disagree. At a preference α the row's *mixed label* is sgn(Σ_i α_i·Δ_i), with Δ_i = +1 where
objective i prefers answer ``a``, −1 where it prefers ``b``, and 0 where it is tied. (UniARM, arXiv 2602.09538, has
the same sign in its global loss.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from trimtab.errors import DataError, GuidanceError, did_you_mean
from trimtab.preferences.reading import objectives_of
from trimtab.preferences.records import Comparison, Label
from trimtab.rewards.encoding import PairEncoder, PreparedPairs, prepare_pairs

__all__ = ["mixed_comparison", "mixed_label", "mixed_name", "prepare_mixed"]

_ZERO = 1e-6  # what is left of 0.1 + 0.2 - 0.3 is rounding (of float32 too), not a preference


def mixed_label(labels: Mapping[str, Label], alpha: Mapping[str, float]) -> Label | None:
    """Return sgn(Σ_i α_i·Δ_i), or ``None`` where an objective with a weight was not judged.

    Args:
        labels: objective → Δ_i, which answer it prefers.
        alpha: objective → α_i; those with weight 0 need no label. Only the ratios matter.
    """
    wanted = {name: weight for name, weight in alpha.items() if weight}
    if not all(name in labels for name in wanted):
        return None
    total = math.fsum(weight * labels[name] for name, weight in wanted.items())
    if abs(total) <= _ZERO * math.fsum(wanted.values()):
        return Label.TIE
    return Label.A if total > 0 else Label.B


def mixed_name(alpha: Mapping[str, float]) -> str:
    """Return the name of a mixture: the objective where there is only one, else ``helpful=0.7,harmless=0.3``."""
    wanted = {name: weight for name, weight in alpha.items() if weight}
    if len(wanted) == 1:
        return next(iter(wanted))
    return ",".join(f"{name}={round(weight, 6):g}" for name, weight in wanted.items())


def mixed_comparison(comparison: Comparison, alpha: Mapping[str, float]) -> Comparison:
    """Return the comparison with one label, the mixed one under :func:`mixed_name`; none where it is not judged."""
    label = mixed_label(comparison.labels, alpha)
    return replace(comparison, labels={} if label is None else {mixed_name(alpha): label}, strengths={})


def prepare_mixed(
    comparisons: Iterable[Comparison], alpha: Mapping[str, float], encoder: PairEncoder
) -> PreparedPairs:  # fmt: skip
    """Return the pairs that a preference decides, chosen answer first, with a count of everything left out.

    With all weight on one objective this is :func:`~trimtab.rewards.encoding.prepare_pairs`.

    Args:
        comparisons: rows with a label an objective.
        alpha: objective → weight ≥ 0; only the ratios matter.
        encoder: the guide's.

    Returns:
        Pairs under :func:`mixed_name`. ``ties`` counts the rows whose weighted labels cancel, ``missing`` those where
        an objective with a weight was not judged.

    Raises:
        GuidanceError: a weight that is negative, NaN or infinite, or none that is positive.
        DataError: no row has a label for an objective with a weight.
    """
    rows = list(comparisons)
    _check(alpha, rows)
    return prepare_pairs((mixed_comparison(row, alpha) for row in rows), mixed_name(alpha), encoder)


def _check(alpha: Mapping[str, float], comparisons: Sequence[Comparison]) -> None:
    for name, weight in alpha.items():
        if not math.isfinite(weight) or weight < 0:
            raise GuidanceError(f"The preference gives {name!r} the weight {weight}: weights are numbers from 0 to 1.")
    if not any(alpha.values()):
        raise GuidanceError("The preference is zero everywhere: give at least one objective a weight.")
    known = objectives_of(comparisons)
    for name in (name for name, weight in alpha.items() if weight and name not in known):
        raise DataError(f"The data has no labels for {name!r}.{did_you_mean(name, known)}")
