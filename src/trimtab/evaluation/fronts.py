"""Fronts of several objectives: hypervolume, inner product with the preference, spread, monotonicity, with intervals.

A method answers the same prompts under G preferences α; its rewards are (G, P, K): preference, prompt, objective. Their
mean over prompts, ρ(α), (G, K), is the method's front; a method trained S times has S of them. Every objective is
maximised; a cost is negated beforehand. Pure NumPy, no model. Follows the metrics of PARM (arXiv 2505.06274) and
UniARM (arXiv 2602.09538).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trimtab.errors import ConfigError, NumericalError

__all__ = [
    "FrontSummary",
    "Interval",
    "default_reference",
    "hypervolume",
    "kendall_tau",
    "mean_inner_product",
    "monotonicity",
    "pareto_mask",
    "rescaled",
    "spread",
    "summarise_fronts",
]

Array = NDArray[np.float64]


def pareto_mask(points: ArrayLike) -> NDArray[np.bool_]:
    """Return which points no other point dominates: at least as good in every objective and better in one.

    Args:
        points: (N, K), rewards.

    Returns:
        (N,); equal points are kept or left out together.

    Raises:
        ConfigError: not a matrix.
        NumericalError: NaN or infinity.
    """
    values = _matrix(points)
    at_least = (values[:, None, :] >= values[None, :, :]).all(axis=2)
    better = (values[:, None, :] > values[None, :, :]).any(axis=2)
    return np.asarray(~(at_least & better).any(axis=0))


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    """Return the volume that the points dominate above a reference point, exactly, for two or three objectives.

    It is the volume of the union of the boxes from the reference to each point. A point that is not above the reference
    in every objective adds nothing.

    Args:
        points: (N, K), rewards; K is 2 or 3.
        reference: (K,); state it beside the number, which means nothing without it.

    Returns:
        The volume, in the product of the objectives' units.

    Raises:
        ConfigError: another number of objectives, or shapes that do not fit.
        NumericalError: NaN or infinity.
    """
    values, corner = _matrix(points), _matrix(np.atleast_2d(reference))[0]
    if values.shape[1] not in (2, 3) or corner.shape != values.shape[1:]:
        raise ConfigError(
            f"The hypervolume is exact for 2 or 3 objectives; got points {values.shape} and reference {corner.shape}."
        )
    sides = values - corner
    sides = sides[(sides > 0).all(axis=1)]
    return _area(sides) if values.shape[1] == 2 else _volume(sides)


def _area(sides: Array) -> float:
    """Return the area of the union of rectangles from the origin: from wide to narrow, each adds what stands out."""
    total, height = 0.0, 0.0
    for width, top in sides[np.argsort(-sides[:, 0], kind="stable")]:
        total += width * max(0.0, top - height)
        height = max(height, top)
    return float(total)


def _volume(sides: Array) -> float:
    """Return the volume of the union of boxes from the origin: slabs between neighbouring heights of the third axis."""
    ordered = sides[np.argsort(-sides[:, 2], kind="stable")]
    heights = np.append(ordered[:, 2], 0.0)
    slabs = [(heights[i] - heights[i + 1]) * _area(ordered[: i + 1, :2]) for i in range(len(ordered))]
    return float(sum(slabs))


def default_reference(fronts: Sequence[ArrayLike]) -> Array:
    """Return the axis-wise minimum over all compared fronts minus 1, (K,).

    Raises:
        ConfigError: no front.
    """
    return _stacked(fronts).min(axis=0) - 1.0


def rescaled(fronts: Mapping[str, Array]) -> dict[str, Array]:
    """Return the fronts with each objective's least and greatest value over all of them at 0 and 1.

    An objective that is the same everywhere becomes 0.

    Args:
        fronts: method → (G, K).

    Raises:
        ConfigError: no front.
    """
    low, width = _range(list(fronts.values()))
    return {name: (front - low) / width for name, front in fronts.items()}


def mean_inner_product(preferences: ArrayLike, rewards: ArrayLike) -> float:
    """Return MIP: the mean over the grid of αᵀρ(α).

    Args:
        preferences: (G, K), the grid.
        rewards: (G, K), ρ(α).

    Raises:
        ConfigError: shapes that differ.
    """
    alphas, rho = _alike(preferences, rewards)
    return float((alphas * rho).sum(axis=1).mean())


def spread(rewards: ArrayLike) -> Array:
    """Return how far each objective moves over the grid, (K,): greatest minus least ρ_i(α)."""
    return np.ptp(_matrix(rewards), axis=0)


def kendall_tau(x: ArrayLike, y: ArrayLike) -> float:
    """Return Kendall's τ_b: (concordant − discordant) / √((n₀ − n₁)(n₀ − n₂)), n₁ and n₂ the ties of x and of y.

    Returns:
        From −1 to 1; NaN where x or y is constant.

    Raises:
        ConfigError: different lengths.
    """
    first, second = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ConfigError(f"Kendall's τ compares two lists of one length, got {first.shape} and {second.shape}.")
    i, j = np.triu_indices(len(first), 1)
    a, b = np.sign(first[i] - first[j]), np.sign(second[i] - second[j])
    scale = np.sqrt(float((a != 0).sum()) * float((b != 0).sum()))
    return float((a * b).sum() / scale) if scale else float("nan")


def monotonicity(preferences: ArrayLike, rewards: ArrayLike) -> Array:
    """Return τ_b between α_i and ρ_i(α) over the grid for each objective, (K,): 1 if more weight always brings more.

    Args:
        preferences: (G, K), the grid.
        rewards: (G, K), ρ(α).

    Raises:
        ConfigError: shapes that differ.
    """
    alphas, rho = _alike(preferences, rewards)
    return np.array([kendall_tau(alphas[:, i], rho[:, i]) for i in range(alphas.shape[1])])


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % percentile-bootstrap interval over prompts, and over training runs if several."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class FrontSummary:
    """What a method's front is worth; of several training runs the mean, each measured by itself.

    Attributes:
        front: (G, K), ρ(α), the mean over runs.
        fronts: (S, G, K), ρ(α) of each run.
        hypervolume: above ``reference``.
        hypervolumes: (S,), of each run.
        mip: mean inner product, in the rewards' own units.
        mip_rescaled: the same after each objective is put on 0 to 1 over all compared methods and runs.
        mips_rescaled: (S,), of each run.
        hypervolume_gain: hypervolume minus the baseline's on the same resampled prompts; ``None`` without a baseline.
        mip_gain: ``mip_rescaled`` minus the baseline's, likewise.
        spread: (K,), how far each objective moves.
        monotonicity: (K,), Kendall's τ_b of α_i and ρ_i(α) over the runs in which ρ_i moves; NaN if in none.
        reference: (K,), the reference point.
    """

    front: Array
    fronts: Array
    hypervolume: Interval
    hypervolumes: Array
    mip: Interval
    mip_rescaled: Interval
    mips_rescaled: Array
    hypervolume_gain: Interval | None
    mip_gain: Interval | None
    spread: Array
    monotonicity: Array
    reference: Array


def summarise_fronts(
    preferences: ArrayLike,
    rewards: Mapping[str, ArrayLike],
    *,
    reference: ArrayLike | None = None,
    baseline: str | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, FrontSummary]:
    """Compare methods that answered the same prompts over the same grid, once or after each of several training runs.

    Intervals are percentiles over bootstrap samples: training runs are drawn, where there are several, and prompts.
    All methods see the same samples, so gains over the baseline are paired, by run too: let run s of two methods share
    what a seed decides. A method of one run is taken as it is, so its interval holds no variation of training.
    Reference and rescaling are those of the full data in every sample.

    Args:
        preferences: (G, K), the grid.
        rewards: method → (G, P, K), reward of each answer, or (S, G, P, K) of S runs, the same S for all or 1; prompts
            in the same order everywhere.
        reference: (K,); default: :func:`default_reference` of the compared fronts.
        baseline: the method that gains are over.
        resamples: bootstrap samples.
        seed: of the bootstrap.

    Returns:
        Method → summary.

    Raises:
        ConfigError: shapes that differ, no method, or an unknown baseline.
        NumericalError: NaN or infinity.
    """
    alphas = _matrix(preferences)
    scores = {name: _cube(name, value, alphas) for name, value in rewards.items()}
    alike = len({s.shape[1:] for s in scores.values()}) == 1 and len({len(s) for s in scores.values()} - {1}) <= 1
    if not alike or (baseline is not None and baseline not in scores):
        shapes = {name: s.shape for name, s in scores.items()}
        raise ConfigError(
            f"Methods need rewards of one shape (runs may be 1), and the baseline ({baseline}) be among them: {shapes}."
        )
    fronts = [front for score in scores.values() for front in score.mean(axis=2)]
    corner = default_reference(fronts) if reference is None else np.asarray(reference, dtype=np.float64)
    low, width = _range(fronts)
    measures: dict[str, Callable[[Array], float]] = {
        "hypervolume": lambda front: hypervolume(front, corner),
        "mip": lambda front: mean_inner_product(alphas, front),
        "mip_rescaled": lambda front: mean_inner_product(alphas, (front - low) / width),
    }
    generator = np.random.default_rng(seed)
    weights = _shares(next(iter(scores.values())).shape[2], resamples, generator)
    runs = _shares(max(len(s) for s in scores.values()), resamples, generator)
    measured = {name: _measured(measures, score, weights) for name, score in scores.items()}
    drawn = {name: {what: _over_runs(values, runs) for what, values in own.items()} for name, own in measured.items()}
    base = drawn[baseline] if baseline is not None else None
    return {
        name: _summary(alphas, score.mean(axis=2), corner, measured[name], drawn[name], base)
        for name, score in scores.items()
    }


def _summary(
    alphas: Array,
    fronts: Array,
    corner: Array,
    by_run: dict[str, Array],
    own: dict[str, Array],
    base: dict[str, Array] | None,
) -> FrontSummary:
    taus = np.array([monotonicity(alphas, front) for front in fronts])
    known = ~np.isnan(taus)
    return FrontSummary(
        front=fronts.mean(axis=0),
        fronts=fronts,
        hypervolume=_interval(own["hypervolume"]),
        hypervolumes=by_run["hypervolume"][:, 0],
        mip=_interval(own["mip"]),
        mip_rescaled=_interval(own["mip_rescaled"]),
        mips_rescaled=by_run["mip_rescaled"][:, 0],
        hypervolume_gain=_interval(own["hypervolume"] - base["hypervolume"]) if base else None,
        mip_gain=_interval(own["mip_rescaled"] - base["mip_rescaled"]) if base else None,
        spread=np.mean([spread(front) for front in fronts], axis=0),
        monotonicity=np.where(
            known.any(axis=0), np.where(known, taus, 0).sum(axis=0) / known.sum(axis=0).clip(1), np.nan
        ),
        reference=corner,
    )


def _shares(count: int, resamples: int, generator: np.random.Generator) -> Array:
    """Return (R, N): the share of each of ``count`` prompts or runs in each bootstrap sample."""
    return generator.multinomial(count, np.full(count, 1 / count), size=resamples) / count


def _measured(measures: Mapping[str, Callable[[Array], float]], scores: Array, weights: Array) -> dict[str, Array]:
    """Return measure → (S, 1 + R): of each run on the full sample of prompts, then on each bootstrap sample."""
    fronts = [[run.mean(axis=1), *np.einsum("rp,gpk->rgk", weights, run)] for run in scores]
    return {name: np.array([[measure(f) for f in run] for run in fronts]) for name, measure in measures.items()}


def _over_runs(values: Array, runs: Array) -> Array:
    """Return the mean over runs, (1 + R,): of all runs, then of those that each bootstrap sample drew."""
    drawn = values[0, 1:] if len(values) == 1 else (runs.T * values[:, 1:]).sum(axis=0)
    return np.append(values[:, 0].mean(), drawn)


def _interval(values: Array) -> Interval:
    low, high = np.percentile(values[1:], [2.5, 97.5]) if len(values) > 1 else (values[0], values[0])
    return Interval(float(values[0]), float(low), float(high))


def _range(fronts: Sequence[Array]) -> tuple[Array, Array]:
    everything = _stacked(fronts)
    low = everything.min(axis=0)
    width = everything.max(axis=0) - low
    return low, np.where(width > 0, width, 1.0)


def _cube(name: str, value: ArrayLike, alphas: Array) -> Array:
    """Return the rewards as (S, G, P, K)."""
    cube = np.asarray(value, dtype=np.float64)
    runs = cube[None] if cube.ndim == 3 else cube
    if runs.ndim != 4 or not runs.size or (runs.shape[1], runs.shape[3]) != alphas.shape:
        raise ConfigError(
            f"The rewards of {name!r} are {cube.shape}; for the grid {alphas.shape} they must be (G, P, K), one for "
            "each preference, prompt and objective, or (S, G, P, K) of S training runs."
        )
    if not np.isfinite(cube).all():
        raise NumericalError(f"The rewards of {name!r} hold NaN or infinity: a scorer failed on an answer.")
    return runs


def _alike(first: ArrayLike, second: ArrayLike) -> tuple[Array, Array]:
    a, b = _matrix(first), _matrix(second)
    if a.shape != b.shape:
        raise ConfigError(f"Preferences {a.shape} and rewards {b.shape} must have one shape, (G, K).")
    return a, b


def _stacked(fronts: Sequence[ArrayLike]) -> Array:
    if not fronts:
        raise ConfigError("There is no front to compare.")
    return np.concatenate([_matrix(f) for f in fronts])


def _matrix(value: ArrayLike) -> Array:
    matrix = np.asarray(cast("Any", value), dtype=np.float64)
    if matrix.ndim != 2 or not matrix.size:
        raise ConfigError(
            f"Rewards are a matrix, one row a point and one column an objective; got shape {matrix.shape}."
        )
    if not np.isfinite(matrix).all():
        raise NumericalError("A reward is NaN or infinite: a scorer failed on an answer.")
    return matrix
