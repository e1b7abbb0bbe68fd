"""One setting against another, and what all comparisons of a setting come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trimtab.evaluation.sweeps.statistics import Array, interval

BETTER = "better than base and controls"
NO_BETTER = "no better than a control"
WORSE = "worse than the base"
UNCLEAR = "not told apart from the base"
NO_CONTROL = "better than the base, no control"
SELF = "judges itself"


def against(scores: tuple[Array, Array], tokens: tuple[Array, Array], weights: Array) -> dict[str, Any]:
    """Compare two settings on the same prompts.

    Args:
        scores: (P, S) of each.
        tokens: (P, S) of each.
        weights: (R, P), bootstrap samples.
    """
    own, theirs = (value.mean(1) for value in scores)
    difference = own - theirs
    return {
        "difference": interval(difference, weights),
        "p_value": sign_flip_p(difference),
        "win": float((difference > 0).mean()),
        "tie": float((difference == 0).mean()),
        "lose": float((difference < 0).mean()),
        "length_controlled": length_controlled(difference, tokens[0].mean(1) - tokens[1].mean(1), weights),
    }


def sign_flip_p(difference: Array, flips: int = 10_000) -> float:
    """Return the two-sided p of the mean of paired differences, (P,), under random signs; never 0.

    Exact where there are 13 prompts or fewer, else from ``flips`` random draws, its own included.
    """
    count = len(difference)
    if count <= 13:
        signs = 1 - 2.0 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
        extra = 0
    else:
        signs = 1 - 2.0 * np.random.default_rng(0).integers(0, 2, size=(flips, count))
        extra = 1
    size = abs(float(difference.sum()))
    reached = int((np.abs(signs @ difference) >= size - 1e-12 * max(1.0, size)).sum())
    return (reached + extra) / (len(signs) + extra)


def length_controlled(difference: Array, longer: Array, weights: Array) -> dict[str, float] | None:
    """Return difference and wins with what a difference in length explains taken out.

    A line d = a + b·Δ is fitted over prompts, Δ the tokens by which the answer is longer; a is the difference at equal
    length, and a prompt is won where d − b·Δ is above 0, half won where it is 0.

    Args:
        difference: (P,), of the scores.
        longer: (P,), tokens.
        weights: (R, P), bootstrap samples.

    Returns:
        ``None`` where every answer is as long as its other, or there are fewer than three prompts.
    """
    if len(difference) < 3 or not np.any(longer):
        return None

    def at_equal(shares: Array) -> Array:
        mean_d, mean_x = shares @ difference, shares @ longer
        spread = shares @ longer**2 - mean_x**2
        slope = np.where(
            spread > 1e-9, (shares @ (difference * longer) - mean_d * mean_x) / np.maximum(spread, 1e-9), 0.0
        )
        return np.stack([mean_d - slope * mean_x, slope])

    full = at_equal(np.full((1, len(difference)), 1 / len(difference)))[:, 0]
    low, high = np.percentile(at_equal(weights)[0], [2.5, 97.5])
    left = difference - full[1] * longer
    tie = np.abs(left) < 1e-12
    wins = float((left[~tie] > 0).sum() + 0.5 * tie.sum()) / len(left)
    return {"mean": float(full[0]), "low": float(low), "high": float(high), "win_rate": wins}


def at_equal_kl(kl: float, scores: Array, curve: Sequence[tuple[float, Array]], weights: Array) -> dict[str, Any]:
    """Compare a setting with the base at the temperature of equal KL, interpolated between those that were run.

    Args:
        kl: of the setting, nats a token.
        scores: (P, S) of the setting.
        curve: (KL, (P, S) scores) of the base at several temperatures, by KL.
        weights: (R, P), bootstrap samples.

    Returns:
        The difference with its interval; ``reached`` is false where the setting is further away than every point of
        the curve, whose last point then stands in.
    """
    places = np.array([point for point, _ in curve])
    values = np.stack([value.mean(1) for _, value in curve])
    right = int(np.clip(np.searchsorted(places, kl), 1, len(places) - 1))
    width = places[right] - places[right - 1]
    share = float(np.clip((kl - places[right - 1]) / width, 0, 1)) if width > 0 else 1.0
    base = (1 - share) * values[right - 1] + share * values[right]
    return {
        "difference": interval(scores.mean(1) - base, weights),
        "kl": kl,
        "reached": bool(kl <= places[-1] * 1.02 + 1e-9),
    }


def verdict(rows: Mapping[str, Mapping[str, Any]], *, dependent: bool) -> tuple[str, str]:
    """Return what the comparisons of one setting on one scorer come to, and why, as plain words.

    Args:
        rows: role of the other setting → comparison.
        dependent: whether the scorer may not judge this setting.
    """
    if dependent:
        return SELF, "this scorer guided the setting, or is not independent of its guide"
    to_base = rows["base"]["difference"]
    if to_base["high"] < 0:
        return WORSE, f"{shown(to_base)} against the base"
    if to_base["low"] <= 0:
        return UNCLEAR, f"{shown(to_base)} against the base"
    controls = {role: row for role, row in rows.items() if role != "base"}
    if not controls:
        return NO_CONTROL, f"{shown(to_base)} against the base"
    words = {
        "untrained": "the untrained guide",
        "temperature": "the base at equal KL",
        "equal_kl": "the base at equal KL",
    }
    for role, row in controls.items():
        if row["difference"]["low"] <= 0:
            return NO_BETTER, f"{shown(row['difference'])} against {words[role]}"
    least = min(controls.items(), key=lambda item: item[1]["difference"]["mean"])
    return BETTER, f"{shown(least[1]['difference'])} against {words[least[0]]}, {shown(to_base)} against the base"


def shown(value: Mapping[str, float]) -> str:
    """Return a difference with its interval."""
    return f"{value['mean']:+.3g} [{value['low']:+.3g}, {value['high']:+.3g}]"
