"""From answers to numbers: means, rewards at equal KL and win rates, with intervals over seeds and prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.evaluation.comparing import length_controlled

Array = NDArray[np.float64]
RESAMPLES = 2000
SLACK = 1e-9


@dataclass(frozen=True)
class Cube:
    """One setting's answers: (S, P) each, seeds by prompts.

    Attributes:
        rewards: judge → reward.
        kl: to the base, nats an answer.
        tokens: of the answer.
        logprob: log π_base of the answer, nats.
        repeated: share of runs of four words that stood in the answer before.
    """

    rewards: Mapping[str, Array]
    kl: Array
    tokens: Array
    logprob: Array
    repeated: Array


def make_cube(runs: Sequence[Sequence[Mapping[str, Any]]], judges: Mapping[str, str]) -> Cube:
    """Return the cube of one setting.

    Args:
        runs: of each seed, the records of ``samples.jsonl`` by prompt.
        judges: what a judge is called here → its column in the records.
    """

    def table(read: Callable[[Mapping[str, Any]], float]) -> Array:
        return np.array([[read(record) for record in run] for run in runs], dtype=np.float64)

    return Cube(
        {name: table(lambda r, spec=spec: r["scores"][spec]) for name, spec in judges.items()},
        table(lambda r: r["diagnostics"]["kl"] * r["tokens"]),
        table(lambda r: r["tokens"]),
        table(lambda r: r["diagnostics"]["base_logprob"]),
        table(lambda r: -r["scores"]["repetition"]),
    )


class Draws:
    """A hierarchical bootstrap: seeds are drawn with replacement, then prompts, the same prompts for every seed and method.

    Seeds and prompts cross (every seed answers every prompt), so a resample is a weight for each seed times one for each
    prompt. Row 0 is the sample itself. With few seeds the spread over seeds is itself known badly.
    """

    def __init__(self, seeds: int, prompts: int, seed: int = 0) -> None:
        """Draw the weights: (1 + R, S) and (1 + R, P), each row adding up to 1."""
        rng = np.random.default_rng(seed)
        self.seeds = self._weights(rng, seeds)
        self.prompts = self._weights(rng, prompts)

    @staticmethod
    def _weights(rng: np.random.Generator, n: int) -> Array:
        drawn = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n
        return np.concatenate([np.full((1, n), 1 / n), drawn])

    def means(self, values: Array) -> Array:
        """Return the mean of (S, P) values on every resample, (1 + R,)."""
        return np.einsum("rs,sp,rp->r", self.seeds, values, self.prompts, optimize=True)


def interval(drawn: Array) -> dict[str, float] | None:
    """Return the value with its 95 % percentile interval; ``None`` where the sample itself has no value (NaN).

    Resamples without a value are left out, and ``share`` says how many have one.
    """
    if np.isnan(drawn[0]):
        return None
    rest = drawn[1:][~np.isnan(drawn[1:])]
    low, high = np.percentile(rest, [2.5, 97.5]) if rest.size else (np.nan, np.nan)
    return {"value": float(drawn[0]), "low": float(low), "high": float(high), "share": rest.size / (len(drawn) - 1)}


@dataclass(frozen=True)
class Curve:
    """A method at several strengths on every resample: KL and reward, (1 + R, G), the base among the points."""

    kl: Array
    reward: Array

    def at(self, levels: Array) -> Array:
        """Return the reward at (1 + R,) levels of KL, straight between neighbouring points; NaN beyond the last."""
        found = np.full(len(levels), np.nan)
        for i, (x, y, level) in enumerate(zip(self.kl, self.reward, levels, strict=True)):
            order = np.argsort(x, kind="stable")
            found[i] = np.interp(level, x[order], y[order], left=np.nan, right=np.nan)
            if np.isnan(found[i]) and abs(level - x[order][-1]) < SLACK:
                found[i] = y[order][-1]
        return found


def curve_of(draws: Draws, base: Cube, settings: Sequence[Cube], judge: str) -> Curve:
    """Return a method's curve from the base through its settings."""
    cubes = [base, *settings]
    return Curve(
        np.stack([draws.means(c.kl) for c in cubes], axis=1),
        np.stack([draws.means(c.rewards[judge]) for c in cubes], axis=1),
    )


def beside(cube: Cube, base: Cube, judge: str, draws: Draws) -> dict[str, Any]:
    """Return a setting's numbers: reward, gain, KL, fluency, length, wins over the base."""
    reward, tokens = cube.rewards[judge], draws.means(cube.tokens)
    return {
        "reward": interval(draws.means(reward)),
        "gain": interval(draws.means(reward - base.rewards[judge])),
        "kl": interval(draws.means(cube.kl)),
        "kl_token": interval(draws.means(cube.kl) / tokens),
        "fluency": interval(draws.means(cube.logprob) / tokens),
        "tokens": interval(tokens),
        "repeated": interval(draws.means(cube.repeated)),
        "wins": wins(cube, base, judge, draws),
        "by_seed": [float(x) for x in reward.mean(1)],
    }


def wins(cube: Cube, other: Cube, judge: str, draws: Draws) -> dict[str, Any]:
    """Return how often a setting wins, ties being half wins, and how often it would at equal length.

    The rate at equal length comes from each prompt's mean over seeds, and its interval resamples prompts only.
    """
    outcome = 0.5 + 0.5 * np.sign(cube.rewards[judge] - other.rewards[judge])
    controlled = length_controlled(outcome.mean(0), (cube.tokens - other.tokens).mean(0)).rate
    return {
        "rate": interval(draws.means(outcome)),
        "length_controlled": {"value": controlled.value, "low": controlled.low, "high": controlled.high},
    }


def at_own_kl(curve: Curve, cube: Cube, judge: str, draws: Draws) -> dict[str, float] | None:
    """Return a curve's reward at a setting's KL, minus the setting's reward."""
    return interval(curve.at(draws.means(cube.kl)) - draws.means(cube.rewards[judge]))


def gap(one: Curve, other: Curve, level: float) -> dict[str, float] | None:
    """Return how much more reward one curve has than another at a level of KL."""
    levels = np.full(len(one.kl), level)
    return interval(one.at(levels) - other.at(levels))


def common_levels(curves: Sequence[Curve], count: int = 4) -> list[float]:
    """Return levels of KL that all curves reach, evenly in the square root of KL, which strength goes with."""
    most = min(float(curve.kl[0].max()) for curve in curves)
    return [float(x) ** 2 for x in np.linspace(0, most**0.5, count + 1)[1:]]
