"""Fitting a preference vector to a handful of comparisons: the mathematics, on margins that are known already.

A choice between two answers is modelled as (Bradley–Terry)

    P(chosen beats rejected) = σ( s·m(α) ),    m(α) = the pair's reward margin at α

where α on the simplex says what counts, and s > 0 how decisively. For a set of ARMs m(α) = Σ_i α_i·m_i; for a
conditioned guide it is a smooth function of α, here the polynomial through its values on a lattice. Both are fitted in
v = s·α, with the margins scaled to a root mean square of one:

    maximise  J(v) = Σ_n log σ( s·m_n(α) ) + a·Σ_i log v_i − b·Σ_i v_i,    v > 0

The last two terms say, before any pair is seen, that α ~ Dirichlet(1 + a) whatever s is, and that s is about K·a/b. For
ARMs J is strictly concave, so there is one optimum. It is finite even where a mixture ranks every pair right, and
without pairs it is the uniform vector. (A ridge on v, as Drift's in arXiv 2502.14289, would hold α the tighter to equal
weights the more decisive the choices are.)
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

REGULARISATION = 0.5
"""a. It and the numbers below were chosen in simulations (studies/fitted_preferences): 5 to 80 pairs, careless to
decisive choices, objectives with independent and with like margins."""

_SCALE = 3.0  # K·a/b, s where no pair is seen: a typical pair is decided in σ(3) = 95 % of cases
_UNSURE = 0.5  # the intervals' Dirichlet, flat to the edges, because users there are no exception
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
        opposed: whether the choices go against the fitted mixture on the whole, so that α explains nothing.
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

    Intervals are percentiles of refits to pairs drawn again with replacement, whole groups at a time, each with every
    objective's a replaced by a draw of Gamma(½). Without pairs these are draws of Dirichlet(½), which is anything, and
    with many pairs they are the bootstrap's; so few pairs give wide intervals.

    Args:
        surface: margins chosen − rejected, in log-odds (β_r·nats).
        groups: what each pair belongs to; pairs of one group (one prompt) are held out and drawn together.
        regularisation: a > 0, how strongly equal weights are assumed.
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
    rate = surface.k * regularisation / _SCALE
    assumed = torch.full((1, surface.k), regularisation, dtype=torch.float64)
    v = maximise(unit, torch.ones(1, len(surface), dtype=torch.float64), assumed=assumed, rate=rate)
    alpha, scale = _split(v)

    counts = torch.from_numpy(rng.multinomial(len(member), [1 / len(member)] * len(member), size=resamples))
    drawn = torch.from_numpy(rng.gamma(_UNSURE, size=(resamples, surface.k)))
    again = maximise(unit, counts.double() @ member, assumed=drawn, rate=rate)
    low, high = torch.quantile(_split(again)[0], torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)

    used = min(folds, len(member)) if len(member) > 1 else 0
    held_out, held_out_fit = _cross_validate(unit, member, used, assumed, rate, rng) if used else (None, None)
    return FittedPreference(
        alpha=alpha[0],
        low=torch.minimum(low, alpha[0]),
        high=torch.maximum(high, alpha[0]),
        scale=float(scale) / size,
        log_likelihood=float(logsigmoid(_logits(unit, v)).mean()),
        held_out=None if held_out is None else size * held_out,
        held_out_log_likelihood=held_out_fit,
        folds=used,
        opposed=float(unit.at(alpha).sum()) < 0,
    )


def maximise(surface: MarginSurface, weights: Tensor, *, assumed: Tensor, rate: float, steps: int = 200) -> Tensor:
    """Return the v > 0 that maximise Σ_n weight_n·log σ(s·m_n(α)) + Σ_i a_i·log v_i − b·Σ_i v_i, with v = s·α.

    Newton steps with Gauss–Newton's curvature (exact for ARMs) and backtracking, all problems at once.

    Args:
        surface: the pairs' margins.
        weights: (R, N), how often each pair counts in each of R problems.
        assumed: a, (R, K), positive.
        rate: b > 0.
        steps: at most so many.

    Returns:
        (R, K) float64.
    """
    per = max(1, _CHUNK // max(1, len(surface) * surface.k))
    if weights.shape[0] > per:
        parts = zip(weights.split(per), assumed.split(per), strict=True)
        return torch.cat([maximise(surface, w, assumed=a, rate=rate, steps=steps) for w, a in parts])

    def value(v: Tensor) -> Tensor:
        return (weights * logsigmoid(_logits(surface, v))).sum(1) + (assumed * v.log() - rate * v).sum(1)

    v = _start(surface, value, weights.shape[0])
    best = value(v)
    for _ in range(steps):
        gradient, curvature = _derivatives(surface, v, weights)
        gradient = gradient + assumed / v - rate
        direction = torch.linalg.solve(curvature + torch.diag_embed(assumed / v.square()), gradient)
        direction = direction * _room(v, direction)
        finished = (gradient * direction).sum(1) <= 1e-12 * (1 + best.abs())
        gain = torch.zeros_like(best)
        for halving in range(40):
            tried = v + 0.5**halving * direction
            found = value(tried)
            better = (gain == 0) & (found > best)
            gain = torch.where(better, found - best, gain)
            v = torch.where(better[:, None], tried, v)
            best = torch.where(better, found, best)
            if bool((finished | (gain > 0)).all()):
                break
        if bool((finished | (gain == 0)).all()):
            break
    return v


def _room(v: Tensor, direction: Tensor) -> Tensor:
    """Return the largest share of each step, at most 1, that leaves a twentieth of every v_i, (R, 1)."""
    shrinks = torch.where(direction < 0, -0.95 * v / direction, torch.inf)
    return shrinks.amin(1, keepdim=True).clamp_max(1.0)


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
    starts = 0.9 * _SCALE * points + 0.1 * _SCALE * uniform  # inside the simplex
    if len(starts) == 1:
        return starts.repeat(rows, 1)
    values = torch.stack([value(start.expand(rows, -1)) for start in starts])
    return starts[values.argmax(0)].clone()


def _split(v: Tensor) -> tuple[Tensor, Tensor]:
    """Return α and s of v = s·α, (R, K) → (R, K), (R,)."""
    return v / v.sum(1, keepdim=True), v.sum(1)


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
    surface: MarginSurface, member: Tensor, folds: int, assumed: Tensor, rate: float, rng: np.random.Generator
) -> tuple[Tensor, float]:
    """Return each pair's margin, (N,), at the α fitted without its fold, and the mean log-likelihood there."""
    fold = torch.empty(len(member), dtype=torch.long)
    fold[torch.from_numpy(rng.permutation(len(member)))] = torch.arange(len(member)) % folds
    held = (fold == torch.arange(folds)[:, None]).double() @ member  # (folds, N)
    v = maximise(surface, 1 - held, assumed=assumed.expand(folds, -1), rate=rate)
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
