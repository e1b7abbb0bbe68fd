"""Rewards at equal KL: strength is no common scale for methods, distance from the base is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike

from trimtab.errors import ConfigError
from trimtab.evaluation.fronts import Interval
from trimtab.evaluation.resampling import Array, finite, interval, prompt_weights


@dataclass(frozen=True)
class AtEqualKL:
    """What each method's answers earn when all are equally far from the base.

    Attributes:
        levels: (L,) KL to the base, nats.
        rewards: method → one interval a level; ``None`` where the method's curve does not reach it.
        gains: method → its reward minus the baseline's on the same resampled prompts; empty without a baseline.
    """

    levels: tuple[float, ...]
    rewards: Mapping[str, tuple[Interval | None, ...]]
    gains: Mapping[str, tuple[Interval | None, ...]]


def reward_at_equal_kl(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    levels: Sequence[float] | None = None,
    baseline: str | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> AtEqualKL:
    """Return each method's reward at common distances from the base, by going along its own curve.

    A method is run at several strengths; each gives one point (mean KL, mean reward). Between neighbouring points in
    order of KL the curve is straight; beyond the ends it is unknown, and nothing is said. Intervals resample prompts:
    both coordinates of every point move, and all methods see the same prompts.

    Args:
        curves: method → KL (G, P) and reward (G, P) of each answer; G strengths (each method its own, the unguided base
            of KL 0 among them if it is to count), P prompts in the same order everywhere.
        levels: KL values, nats; default: five evenly spaced over the range that all methods reach.
        baseline: the method that gains are over.
        resamples: bootstrap samples.
        seed: of the bootstrap.

    Raises:
        ConfigError: no method, shapes that do not fit, an unknown baseline, or no KL that all methods reach.
        NumericalError: NaN or infinity.
    """
    read = {name: (_rows(name, kl), _rows(name, reward)) for name, (kl, reward) in curves.items()}
    prompts = {array.shape[1] for pair in read.values() for array in pair}
    if len(prompts) != 1 or any(kl.shape != reward.shape for kl, reward in read.values()):
        raise ConfigError("Each method needs KL and reward of one shape (G, P), over the same P prompts for all.")
    if baseline is not None and baseline not in read:
        raise ConfigError(f"The baseline {baseline!r} is none of the methods: {', '.join(read)}.")
    n = prompts.pop()
    shares = np.concatenate([np.full((1, n), 1 / n), prompt_weights(n, resamples, seed)])
    at = tuple(levels) if levels is not None else _common_levels({name: kl.mean(1) for name, (kl, _) in read.items()})
    found = {name: _along(shares @ kl.T, shares @ reward.T, at) for name, (kl, reward) in read.items()}
    gains = {} if baseline is None else {name: value - found[baseline] for name, value in found.items()}
    return AtEqualKL(
        at,
        {name: tuple(_known(column) for column in value.T) for name, value in found.items()},
        {name: tuple(_known(column) for column in value.T) for name, value in gains.items() if name != baseline},
    )


def _along(kl: Array, reward: Array, levels: Sequence[float]) -> Array:
    """Return (R, L): the reward at each level on each resampled curve (R, G); NaN beyond its ends."""
    result = np.full((len(kl), len(levels)), np.nan)
    for row, (x, y) in enumerate(zip(kl, reward, strict=True)):
        order = np.argsort(x, kind="stable")
        result[row] = np.interp(levels, x[order], y[order], left=np.nan, right=np.nan)
    return result


def _known(column: Array) -> Interval | None:
    """Return the interval of (1 + R,) values, or ``None`` if the curve itself does not get there.

    Resampled curves that fall short of the level are left out.
    """
    if np.isnan(column[0]):
        return None
    rest = column[1:][~np.isnan(column[1:])]
    return interval(float(column[0]), rest)


def _common_levels(kl: Mapping[str, Array]) -> tuple[float, ...]:
    low = max(float(values.min()) for values in kl.values())
    high = min(float(values.max()) for values in kl.values())
    if not kl or high <= low:
        reach = ", ".join(f"{name} {values.min():.3g} to {values.max():.3g}" for name, values in kl.items())
        raise ConfigError(f"There is no KL that all methods reach ({reach}): run each at more strengths.")
    return tuple(float(x) for x in np.linspace(low, high, 6)[1:])


def _rows(name: str, value: ArrayLike) -> Array:
    rows = np.asarray(cast("Any", value), dtype=np.float64)
    if rows.ndim != 2 or not rows.size:
        raise ConfigError(f"KL and reward of {name!r} must be (G, P), strengths by prompts; got {rows.shape}.")
    return finite(rows)
