"""Methods that answered the same prompts, compared prompt by prompt: differences, tests, wins, and rewards at equal KL.

Everything is paired over prompts: a prompt that is easy is easy for both methods, and only what is left speaks for one
of them. Where a prompt has several answers, average them first; answers to one prompt are not independent. Pure NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike

from trimtab.errors import ConfigError
from trimtab.evaluation.equal_kl import AtEqualKL, reward_at_equal_kl
from trimtab.evaluation.fronts import Interval
from trimtab.evaluation.resampling import Array, finite, interval, prompt_weights

__all__ = [
    "AtEqualKL",
    "Comparison",
    "LengthControlled",
    "Wins",
    "compare_methods",
    "count_wins",
    "holm",
    "length_controlled",
    "paired_difference",
    "reward_at_equal_kl",
    "sign_flip_p",
]

_EXACT_PROMPTS = 16
_DRAWS = 20_000
_RESAMPLES = 2_000
_NEWTON_STEPS = 40
_LARGEST_LOGIT = 15.0


def paired_difference(a: ArrayLike, b: ArrayLike, *, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Return the mean of a − b over prompts with its 95 % percentile-bootstrap interval.

    Args:
        a: (P,) one method's scores.
        b: (P,) the other's, prompts in the same order.
        resamples: bootstrap samples of prompts.
        seed: of the bootstrap.

    Raises:
        ConfigError: shapes that differ, or no prompts.
        NumericalError: NaN or infinity.
    """
    difference = _differences(a, b)
    return interval(float(difference.mean()), prompt_weights(len(difference), resamples, seed) @ difference)


def sign_flip_p(a: ArrayLike, b: ArrayLike, *, draws: int = _DRAWS, seed: int = 0) -> float:
    """Return the two-sided p-value that a and b are alike, by flipping the signs of the differences.

    If the methods are alike, each prompt's a − b could as well have the other sign. p is the share of all sign
    assignments whose |mean| is at least that observed: over all 2^P of them up to 16 prompts (an exact test), else over
    random ones and the observed one, p = (1 + k) / (1 + draws).

    Args:
        a: (P,) one method's scores.
        b: (P,) the other's.
        draws: random sign assignments, where there are more than 16 prompts.
        seed: of the draws.

    Raises:
        ConfigError: shapes that differ, or no prompts.
        NumericalError: NaN or infinity.
    """
    difference = _differences(a, b)
    n = len(difference)
    observed = abs(float(difference.sum()))
    slack = 1e-12 * float(np.abs(difference).sum())  # sums in another order may differ in the last bits
    if n <= _EXACT_PROMPTS:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float(np.mean(np.abs(signs @ difference) >= observed - slack))
    rng = np.random.default_rng(seed)
    extreme = 0
    for start in range(0, draws, 1000):
        signs = rng.choice(np.array([-1.0, 1.0]), size=(min(1000, draws - start), n))
        extreme += int(np.sum(np.abs(signs @ difference) >= observed - slack))
    return (1 + extreme) / (1 + draws)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p-values corrected for how many there are (Holm, 1979).

    In rising order, the i-th of m is multiplied by m − i + 1, is at least the one before it, and at most 1. What is
    below 0.05 then holds together with an error rate of 5 % over all of them.
    """
    adjusted: dict[str, float] = {}
    least = 0.0
    for i, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        least = max(least, min(1.0, (len(p_values) - i) * p))
        adjusted[name] = least
    return {name: adjusted[name] for name in p_values}


@dataclass(frozen=True)
class Wins:
    """How often one method beats another on the same prompts.

    Attributes:
        wins: prompts on which it is better by more than the margin.
        ties: prompts on which neither is.
        losses: prompts on which it is worse.
        rate: (wins + ½·ties) / prompts.
    """

    wins: int
    ties: int
    losses: int
    rate: Interval


def count_wins(
    a: ArrayLike, b: ArrayLike, *, tie_margin: float = 0.0, resamples: int = _RESAMPLES, seed: int = 0
) -> Wins:  # fmt: skip
    """Return how often a beats b; differences up to ``tie_margin`` are ties.

    Args:
        a: (P,) one method's scores.
        b: (P,) the other's.
        tie_margin: in the score's unit, from 0.
        resamples: bootstrap samples of prompts.
        seed: of the bootstrap.

    Raises:
        ConfigError: shapes that differ, no prompts, or a negative margin.
        NumericalError: NaN or infinity.
    """
    outcome = _outcomes(_differences(a, b), tie_margin)
    wins, losses = int((outcome == 1).sum()), int((outcome == 0).sum())
    drawn = prompt_weights(len(outcome), resamples, seed) @ outcome
    return Wins(wins, len(outcome) - wins - losses, losses, interval(float(outcome.mean()), drawn))


@dataclass(frozen=True)
class LengthControlled:
    """A win rate as it would be at equal length.

    Attributes:
        rate: σ(θ), see :func:`length_controlled`.
        raw: the win rate as it is.
        length_effect: φ: what a large difference in length adds to the logit of winning; positive where the longer
            answer tends to win.
    """

    rate: Interval
    raw: Interval
    length_effect: float


def length_controlled(
    outcome: ArrayLike,
    length_difference: ArrayLike,
    *,
    penalty: float = 1.0,
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> LengthControlled:
    r"""Return the win rate that a logistic regression predicts for answers of equal length.

    After Length-Controlled AlpacaEval (arXiv 2404.04475), for one pair of methods:

    .. math:: P(\text{win}) = \sigma\big(\theta + \varphi \tanh(\Delta / \mathrm{sd}(\Delta))\big)

    with Δ the answer's length minus the other's, and sd taken about 0, so that swapping the methods turns the rate into
    one minus itself. The rate is σ(θ). Differences from the paper: there is no term for how hard a prompt is, which
    the paper fits over the whole leaderboard; φ has a ridge penalty ``penalty``/2·φ², so that a few prompts cannot
    blame everything on length; ties are wins by half; sd is not about the mean. The number says what length explains
    linearly on this scale: it does not turn a bad judge into a good one.

    Args:
        outcome: (P,) 1 for a win, ½ for a tie, 0 for a loss; a judge's probabilities will do.
        length_difference: (P,) in words or tokens.
        penalty: ridge on φ.
        resamples: bootstrap samples of prompts, each fitted anew.
        seed: of the bootstrap.

    Raises:
        ConfigError: shapes that differ, no prompts, or outcomes outside 0 to 1.
        NumericalError: NaN or infinity.
    """
    wins, lengths = _alike(outcome, length_difference)
    if wins.min() < 0 or wins.max() > 1:
        raise ConfigError("Outcomes are 1 for a win, 0 for a loss and ½ for a tie, or a probability between.")
    width = float(np.sqrt(np.mean(lengths**2)))
    feature = np.tanh(lengths / width) if width else np.zeros_like(lengths)
    n = len(wins)
    shares = np.concatenate([np.full((1, n), 1 / n), prompt_weights(n, resamples, seed)])
    theta, phi = _fit(feature, wins, shares * n, penalty)
    rates = 1 / (1 + np.exp(-theta))
    raw = shares @ wins
    return LengthControlled(interval(float(rates[0]), rates[1:]), interval(float(raw[0]), raw[1:]), float(phi[0]))


def _fit(feature: Array, wins: Array, weights: Array, penalty: float) -> tuple[Array, Array]:
    """Fit θ and φ for each row of weights (R, P) by Newton's method; wins without a loss stop at a large logit."""
    theta, phi = np.zeros(len(weights)), np.zeros(len(weights))
    for _ in range(_NEWTON_STEPS):
        p = 1 / (1 + np.exp(-(theta[:, None] + phi[:, None] * feature)))
        error, curve = weights * (wins - p), weights * p * (1 - p) + 1e-9
        slope_theta, slope_phi = error.sum(1), error @ feature - penalty * phi
        tt, tp, pp = curve.sum(1), curve @ feature, curve @ feature**2 + penalty
        det = tt * pp - tp**2
        step_theta, step_phi = (pp * slope_theta - tp * slope_phi) / det, (tt * slope_phi - tp * slope_theta) / det
        scale = np.minimum(1.0, 2.0 / np.maximum(1e-12, np.maximum(np.abs(step_theta), np.abs(step_phi))))
        theta = np.clip(theta + scale * step_theta, -_LARGEST_LOGIT, _LARGEST_LOGIT)
        phi = phi + scale * step_phi
    return theta, phi


@dataclass(frozen=True)
class Comparison:
    """A method beside a baseline, on the same prompts.

    Attributes:
        difference: mean of its scores minus the baseline's.
        p: sign-flip test of that difference.
        p_adjusted: after Holm, over all methods compared with this baseline.
        wins: prompt by prompt.
        length_controlled: the win rate at equal length; ``None`` without lengths.
    """

    difference: Interval
    p: float
    p_adjusted: float
    wins: Wins
    length_controlled: LengthControlled | None


def compare_methods(
    scores: Mapping[str, ArrayLike],
    baseline: str,
    *,
    lengths: Mapping[str, ArrayLike] | None = None,
    tie_margin: float = 0.0,
    seed: int = 0,
) -> dict[str, Comparison]:
    """Compare every method with one of them.

    Args:
        scores: method → (P,), prompts in the same order everywhere.
        baseline: which method the others are compared with.
        lengths: method → (P,) answer lengths, for win rates at equal length.
        tie_margin: differences up to it are ties.
        seed: of every bootstrap and test, so that all methods see the same resampled prompts.

    Returns:
        Method → comparison, without the baseline.

    Raises:
        ConfigError: an unknown baseline, or shapes that differ.
        NumericalError: NaN or infinity.
    """
    if baseline not in scores or (lengths is not None and set(lengths) != set(scores)):
        raise ConfigError(f"The baseline {baseline!r} and every length must be of a method compared: {sorted(scores)}.")
    base = scores[baseline]
    others = {name: values for name, values in scores.items() if name != baseline}
    p_values = {name: sign_flip_p(values, base, seed=seed) for name, values in others.items()}
    adjusted = holm(p_values)

    def at_equal_length(name: str) -> LengthControlled | None:
        if lengths is None:
            return None
        outcome = _outcomes(_differences(others[name], base), tie_margin)
        return length_controlled(outcome, _differences(lengths[name], lengths[baseline]), seed=seed)

    return {
        name: Comparison(
            paired_difference(values, base, seed=seed),
            p_values[name],
            adjusted[name],
            count_wins(values, base, tie_margin=tie_margin, seed=seed),
            at_equal_length(name),
        )
        for name, values in others.items()
    }


def _outcomes(difference: Array, tie_margin: float) -> Array:
    if not tie_margin >= 0:
        raise ConfigError(f"The tie margin is {tie_margin}: give a number from 0.")
    return np.where(difference > tie_margin, 1.0, np.where(difference < -tie_margin, 0.0, 0.5))


def _differences(a: ArrayLike, b: ArrayLike) -> Array:
    first, second = _alike(a, b)
    return first - second


def _alike(a: ArrayLike, b: ArrayLike) -> tuple[Array, Array]:
    first, second = np.asarray(cast("Any", a), dtype=np.float64), np.asarray(cast("Any", b), dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or not first.size:
        raise ConfigError(f"Paired values are two lists of one length, got {first.shape} and {second.shape}.")
    return finite(first), finite(second)
