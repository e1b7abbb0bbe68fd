"""Fitting a preference vector to a handful of comparisons: the mathematics, on margins that are known already.

A choice between two answers is modelled as (Bradley–Terry)

    P(chosen beats rejected) = σ( s·m(α) ),    m(α) = the pair's reward margin at α

where α on the simplex says what counts, and s ≥ 0 how decisively. For a set of ARMs m(α) = Σ_i α_i·m_i; for a
conditioned guide it is a smooth function of α, here the polynomial through its values on a lattice. Both are fitted in
v = s·α, the nonnegative orthant, with the margins scaled to a root mean square of one:

    maximise  J(v) = Σ_n log σ( s·m_n(α) ) − (λ/2)·‖v − u‖²,    v ≥ 0,    u = (2/K, …, 2/K)

u is the equal-weights vector at the decisiveness of choices that are right on a typical pair in σ(2) = 88 % of cases;
λ = 2 weighs as much as eight pairs of typical margins. For ARMs J is strictly concave, so there is one optimum. It is
finite even where a mixture ranks every pair right, and without pairs it is the uniform vector. Drift (arXiv 2502.14289)
fits prompt attributes by the same likelihood, with signs and centred on zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from trimtab.errors import ConfigError, DataError, NumericalError
from trimtab.preferences.vectors import lattice

__all__ = ["REGULARISATION", "FittedPreference", "MarginSurface", "fit_margins", "maximise", "shares"]

REGULARISATION = 2.0
"""λ, which with the centre's scale was chosen in a simulation: 10 to 30 pairs, decisive and careless choices."""

_CENTRE = 2.0
_FLOOR = 1e-9  # v's lower bound: α stays defined, and is uniform, where every objective is driven to zero
_CHUNK = 2**21  # numbers in one temporary (R, N, K)


class MarginSurface:
    """The margins of N pairs as polynomials in α, exact on the lattice of their degree.

    Attributes:
        k: number of objectives.
        degree: of the polynomials; 1 is a set of ARMs.
        nodes: (P, K), the lattice.
        values: (P, N), each pair's margin log-odds at each node.
    """

    def __init__(self, k: int, degree: int, values: Tensor) -> None:
        """Interpolate.

        Args:
            k: number of objectives, at least 1.
            degree: at least 1.
            values: (P, N) margins at the rows of ``lattice(k, degree)``.

        Raises:
            NumericalError: a margin is NaN or infinite.
        """
        self.k, self.degree = k, degree
        self.nodes = lattice(k, degree).double()
        self.values = values.double()
        if not bool(self.values.isfinite().all()):
            raise NumericalError("A log-probability is NaN or infinite: the model or a guide is damaged.")
        # On the simplex the monomials of degree exactly d span all polynomials up to degree d.
        powers = [[row.count(i) for i in range(k)] for row in combinations_with_replacement(range(k), degree)]
        self._powers = torch.tensor(powers, dtype=torch.float64)
        self._weights = torch.linalg.solve(self._monomials(self.nodes), self.values)

    @classmethod
    def linear(cls, margins: Tensor) -> MarginSurface:
        """Return the surface of a set of ARMs from each objective's margins, (N, K)."""
        k = margins.shape[1]
        return cls(k, 1, margins.T.flip(0))  # the lattice ascends: (0, …, 1) comes first

    def __len__(self) -> int:
        return self.values.shape[1]

    def at(self, alpha: Tensor) -> Tensor:
        """Return the margins at α, (R, K) → (R, N)."""
        return self._monomials(alpha) @ self._weights

    def slopes(self, alpha: Tensor) -> Tensor:
        """Return ∂m_n/∂α_i, α's entries taken as independent, (R, K) → (R, N, K)."""
        lowered = (self._powers[:, None] - torch.eye(self.k, dtype=torch.float64)).clamp_min(0)  # (P, K, K)
        parts = (alpha[:, None, None] ** lowered).prod(-1) * self._powers
        return torch.einsum("rpk,pn->rnk", parts, self._weights)

    def scaled(self, factor: float) -> MarginSurface:
        """Return the surface with every margin multiplied."""
        return MarginSurface(self.k, self.degree, factor * self.values)

    def _monomials(self, alpha: Tensor) -> Tensor:
        return (alpha[:, None] ** self._powers).prod(-1)


@dataclass(frozen=True)
class FittedPreference:
    """A fitted preference vector, and how far the pairs determine it.

    Attributes:
        alpha: (K,), on the simplex.
        low: (K,), lower ends of the 95 % intervals.
        high: (K,), upper ends.
        scale: s in the margins' own units: log-odds of a choice for each unit of reward margin.
        log_likelihood: mean log σ(s·m(α)) of the pairs, nats; a coin has −0.693.
        held_out: (N,), each pair's margin at the α fitted without its group; ``None`` where there is one group only.
        held_out_log_likelihood: its mean log-likelihood, or ``None``.
        folds: number of folds that ``held_out`` is from.
        opposed: whether the choices go against every objective, so that α is uniform for want of any other.
    """

    alpha: Tensor
    low: Tensor
    high: Tensor
    scale: float
    log_likelihood: float
    held_out: Tensor | None
    held_out_log_likelihood: float | None
    folds: int
    opposed: bool

    @property
    def determined(self) -> bool:
        """Whether the pairs tell α from equal weights: some objective's interval leaves 1/K out."""
        equal = 1 / len(self.alpha)
        return not self.opposed and bool(((self.low > equal) | (self.high < equal)).any())


def fit_margins(
    surface: MarginSurface,
    groups: Sequence[Hashable],
    *,
    regularisation: float = REGULARISATION,
    folds: int = 10,
    resamples: int = 500,
    seed: int = 0,
) -> FittedPreference:
    """Fit α to pairs whose margins are known, with intervals and with every pair held out once.

    Intervals are percentiles of refits to pairs drawn again with replacement, whole groups at a time, each with u moved
    by a draw of N(0, I/λ): so that few pairs give the wide interval of what was assumed, and many that of the data.

    Args:
        surface: margins chosen − rejected, in log-odds (β_r·nats).
        groups: what each pair belongs to; pairs of one group (one prompt) are held out and drawn together.
        regularisation: λ, the weight of the equal-weights vector.
        folds: most folds of the cross-validation; 0 leaves it out.
        resamples: number of refits for the intervals.
        seed: of folds and resamples.

    Raises:
        DataError: there is no pair.
        ConfigError: a number that cannot work.
    """
    if len(surface) == 0:
        raise DataError("There is no pair to fit a preference to.")
    _check(regularisation, folds, resamples)
    size = _size(surface)
    unit = surface.scaled(1 / size)
    member = _members(groups)
    rng = np.random.default_rng(seed)
    centre = torch.full((1, surface.k), _CENTRE / surface.k, dtype=torch.float64)
    everything = torch.ones(1, len(surface), dtype=torch.float64)
    v = maximise(unit, everything, centre=centre, regularisation=regularisation)
    alpha, scale = _split(v)

    counts = torch.from_numpy(rng.multinomial(len(member), [1 / len(member)] * len(member), size=resamples))
    moved = torch.from_numpy(rng.standard_normal((resamples, surface.k))) / math.sqrt(regularisation)
    again = maximise(unit, counts.double() @ member, centre=centre + moved, regularisation=regularisation)
    low, high = torch.quantile(_split(again)[0], torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)

    used = min(folds, len(member)) if len(member) > 1 else 0
    held_out, held_out_fit = _cross_validate(unit, member, used, centre, regularisation, rng) if used else (None, None)
    return FittedPreference(
        alpha=alpha[0],
        low=torch.minimum(low, alpha[0]),
        high=torch.maximum(high, alpha[0]),
        scale=float(scale) / size,
        log_likelihood=float(logsigmoid(_logits(unit, v)).mean()),
        held_out=None if held_out is None else size * held_out,
        held_out_log_likelihood=held_out_fit,
        folds=used,
        opposed=bool((v <= 2 * _FLOOR).all()),
    )


def maximise(
    surface: MarginSurface, weights: Tensor, *, centre: Tensor, regularisation: float, steps: int = 100
) -> Tensor:
    """Return the v ≥ 0 that maximise Σ_n weight_n·log σ(s·m_n(α)) − (λ/2)·‖v − centre‖², with v = s·α.

    Projected Newton steps with Gauss–Newton's curvature (exact for ARMs) and backtracking, all problems at once.

    Args:
        surface: the pairs' margins.
        weights: (R, N), how often each pair counts in each of R problems.
        centre: (R, K).
        regularisation: λ > 0.
        steps: at most so many.

    Returns:
        (R, K) float64.
    """
    per = max(1, _CHUNK // max(1, len(surface) * surface.k))
    if weights.shape[0] > per:
        parts = zip(weights.split(per), centre.split(per), strict=True)
        return torch.cat([maximise(surface, w, centre=c, regularisation=regularisation, steps=steps) for w, c in parts])

    def value(v: Tensor) -> Tensor:
        return (weights * logsigmoid(_logits(surface, v))).sum(1) - regularisation / 2 * (v - centre).square().sum(1)

    v = _start(surface, value, weights.shape[0])
    best = value(v)
    for _ in range(steps):
        gradient, curvature = _derivatives(surface, v, weights)
        gradient = gradient - regularisation * (v - centre)
        held = (v <= _FLOOR) & (gradient <= 0)
        free = (~held).double()
        eye = torch.eye(surface.k, dtype=torch.float64)
        matrix = curvature * free[:, :, None] * free[:, None, :] + regularisation * eye
        direction = torch.linalg.solve(matrix, gradient * free) * free
        finished = (gradient * direction).sum(1) <= 1e-13 * (1 + best.abs())
        gain = torch.zeros_like(best)
        for halving in range(40):
            tried = (v + 0.5**halving * direction).clamp_min(_FLOOR)
            found = value(tried)
            better = (gain == 0) & (found > best)
            gain = torch.where(better, found - best, gain)
            v = torch.where(better[:, None], tried, v)
            best = torch.where(better, found, best)
            if bool((finished | (gain > 0)).all()):
                break
        if bool((gain <= 1e-13 * (1 + best.abs())).all()):
            break
    return v


def shares(values: Sequence[float]) -> list[float]:
    """Return weights rounded to thousandths so that they still sum to one (largest remainders are rounded up)."""
    exact = [1000 * value / math.fsum(values) for value in values]
    floors = [math.floor(value + 1e-9) for value in exact]
    first = sorted(range(len(exact)), key=lambda i: floors[i] - exact[i])
    for i in first[: 1000 - sum(floors)]:
        floors[i] += 1
    return [whole / 1000 for whole in floors]


def _check(regularisation: float, folds: int, resamples: int) -> None:
    if not 0 < regularisation < math.inf:
        raise ConfigError(
            f"The regularisation is {regularisation}: give a positive number; {REGULARISATION:g} is usual."
        )
    if folds < 0 or folds == 1:
        raise ConfigError(f"Cross-validation with {folds} folds holds nothing out: give at least 2, or 0 for none.")
    if resamples < 1:
        raise ConfigError(f"Intervals need resamples, got {resamples}: give at least 1; some hundreds are usual.")


def _start(surface: MarginSurface, value: Callable[[Tensor], Tensor], rows: int) -> Tensor:
    """Return for each problem the best of a few points: one for ARMs, where J is concave; else every node."""
    uniform = torch.full((1, surface.k), 1 / surface.k, dtype=torch.float64)
    points = uniform if surface.degree == 1 else torch.cat([uniform, surface.nodes])
    starts = (_CENTRE * points).clamp_min(_FLOOR)
    if len(starts) == 1:
        return starts.repeat(rows, 1)
    values = torch.stack([value(start.expand(rows, -1)) for start in starts])
    return starts[values.argmax(0)].clone()


def _split(v: Tensor) -> tuple[Tensor, Tensor]:
    """Return α and s of v = s·α, (R, K) → (R, K), (R,)."""
    kept = torch.where((v <= 2 * _FLOOR) & (v.amax(1, keepdim=True) > 2 * _FLOOR), 0.0, v)
    return kept / kept.sum(1, keepdim=True), kept.sum(1)


def _size(surface: MarginSurface) -> float:
    """Return the root mean square of the single objectives' margins."""
    alone = surface.values[(surface.nodes == 1).any(1)]
    return float(alone.square().mean().sqrt()) or 1.0


def _members(groups: Sequence[Hashable]) -> Tensor:
    """Return which pair belongs to which group, (G, N) of zeros and ones."""
    index = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    of = torch.tensor([index[group] for group in groups])
    return (of == torch.arange(len(index))[:, None]).double()


def _cross_validate(
    surface: MarginSurface, member: Tensor, folds: int, centre: Tensor, regularisation: float, rng: np.random.Generator
) -> tuple[Tensor, float]:
    """Return each pair's margin, (N,), at the α fitted without its fold, and the mean log-likelihood there."""
    fold = torch.empty(len(member), dtype=torch.long)
    fold[torch.from_numpy(rng.permutation(len(member)))] = torch.arange(len(member)) % folds
    held = (fold == torch.arange(folds)[:, None]).double() @ member  # (folds, N)
    v = maximise(surface, 1 - held, centre=centre.expand(folds, -1), regularisation=regularisation)
    fits = (held * logsigmoid(_logits(surface, v))).sum() / held.sum()
    return (held * surface.at(_split(v)[0])).sum(0), float(fits)


def _logits(surface: MarginSurface, v: Tensor) -> Tensor:
    scale = v.sum(1, keepdim=True)
    return scale * surface.at(v / scale)


def _derivatives(surface: MarginSurface, v: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient (R, K) and Gauss–Newton's curvature (R, K, K) of the log-likelihood in v."""
    alpha = v / v.sum(1, keepdim=True)
    margins, slopes = surface.at(alpha), surface.slopes(alpha)
    # s·m(v/s) is v's polynomial over s^(d−1); Euler's rule for its degree leaves this.
    jacobian = slopes + (1 - surface.degree) * margins[:, :, None]
    logits = v.sum(1, keepdim=True) * margins
    miss = torch.sigmoid(-logits)
    gradient = torch.einsum("rn,rnk->rk", weights * miss, jacobian)
    return gradient, torch.einsum("rn,rnk,rnj->rkj", weights * miss * (1 - miss), jacobian, jacobian)
