"""One setting against another, and what all comparisons of a setting come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trimtab.evaluation.comparing import count_wins, holm, length_controlled, sign_flip_p
from trimtab.evaluation.fronts import Interval
from trimtab.evaluation.sweeps.statistics import Array, interval

BETTER = "better than base and controls"
NO_BETTER = "no better than a control"
WORSE = "worse than the base"
UNCLEAR = "not told apart from the base"
NO_CONTROL = "better than the base, no control"
SELF = "judges itself"


def against(
    scores: tuple[Array, Array], tokens: tuple[Array, Array], weights: Array, *, seed: int = 0
) -> dict[str, Any]:
    """Compare two settings on the same prompts; several answers to one prompt are averaged first.

    Args:
        scores: (P, S) of each.
        tokens: (P, S) of each.
        weights: (R, P), bootstrap samples.
        seed: of tests and win rates.

    Returns:
        The mean difference and its p; shares of prompts won, tied and lost; and the win rate at equal length, with its
        interval (:func:`~trimtab.evaluation.comparing.length_controlled`).
    """
    own, theirs = (value.mean(1) for value in scores)
    wins = count_wins(own, theirs, seed=seed)
    outcome = 0.5 + 0.5 * np.sign(own - theirs)
    controlled = length_controlled(outcome, tokens[0].mean(1) - tokens[1].mean(1), seed=seed)
    count = len(own)
    return {
        "difference": interval(own - theirs, weights),
        "p_value": sign_flip_p(own, theirs, seed=seed),
        "win": wins.wins / count,
        "tie": wins.ties / count,
        "lose": wins.losses / count,
        "win_rate": _mean(wins.rate),
        "length_controlled": {**_mean(controlled.rate), "length_effect": controlled.length_effect},
    }


def adjust_p(rows: Sequence[dict[str, Any]]) -> None:
    """Add ``p_adjusted``: p after Holm, over all settings that are compared in one role on one scorer."""
    families: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if "p_value" in row:
            families.setdefault((row["role"], row["scorer"]), []).append(row)
    for family in families.values():
        adjusted = holm({row["setting"]: row["p_value"] for row in family})
        for row in family:
            row["p_adjusted"] = adjusted[row["setting"]]


def _mean(value: Interval) -> dict[str, float]:
    return {"mean": value.value, "low": value.low, "high": value.high}


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
    far = "" if rows.get("equal_kl", {}).get("reached", True) else "; no control goes as far as its KL"
    return BETTER, f"{shown(least[1]['difference'])} against {words[least[0]]}, {shown(to_base)} against the base{far}"


def shown(value: Mapping[str, float]) -> str:
    """Return a difference with its interval."""
    return f"{value['mean']:+.3g} [{value['low']:+.3g}, {value['high']:+.3g}]"
