"""One setting against another, and what all comparisons of a setting come to."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
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
LENGTH = "no better at equal length"
UNJUDGED = "too few verdicts"
PARTLY = "better than what it was judged against"
LEAST_JUDGED = 0.9
"""Share of pairs that need a judge's verdict, since those without are hardly left out by chance."""
_OTHERS = {
    "base": "the base",
    "untrained": "the untrained guide",
    "temperature": "the base at equal KL",
    "equal_kl": "the base at equal KL",
}


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
    for role, row in controls.items():
        if row["difference"]["low"] <= 0:
            return NO_BETTER, f"{shown(row['difference'])} against {_OTHERS[role]}"
    least = min(controls.items(), key=lambda item: item[1]["difference"]["mean"])
    far = "" if rows.get("equal_kl", {}).get("reached", True) else "; no control goes as far as its KL"
    return (
        BETTER,
        f"{shown(least[1]['difference'])} against {_OTHERS[least[0]]}, {shown(to_base)} against the base{far}",
    )


def judge_verdict(rows: Mapping[str, Mapping[str, Any]], roles: Collection[str], *, dependent: bool) -> tuple[str, str]:
    """Return what a judge's comparisons of one setting come to, by the rule of scorers and three things more.

    A setting is better only if its win rate, ties half, is above ½ with its whole interval, against the base and every
    control; at equal length too, because judges like length; and with a verdict on 90 % of the pairs. Where the base
    or a control of the setting was not judged, the verdict says so.

    Args:
        rows: role of the other setting → comparison, of :func:`~trimtab.evaluation.sweeps.judging.judge_answers`.
        roles: controls that the setting has.
        dependent: whether the judge may not judge this setting.
    """
    if dependent:
        return SELF, "this judge is not independent of the guides"
    for row in rows.values():
        if row["win_rate"] is None or row["pairs"] - row["unjudged"] < LEAST_JUDGED * row["pairs"]:
            return UNJUDGED, f"{row['unjudged']} of {row['pairs']} pairs have no verdict: {row['problem']}"
    above = {role: {"difference": {k: v - 0.5 for k, v in row["win_rate"].items()}} for role, row in rows.items()}
    if "base" in above:
        word, why = verdict(above, dependent=False)
    else:
        role, row = min(above.items(), key=lambda item: item[1]["difference"]["low"])
        word = BETTER if row["difference"]["low"] > 0 else NO_BETTER
        why = f"{shown(row['difference'])} against {_OTHERS[role]}"
    why = f"win rate less ½: {why}"
    if word not in (BETTER, NO_CONTROL):
        return word, why
    for role, row in rows.items():
        controlled = row["length_controlled"]
        if controlled is not None and controlled["low"] <= 0.5:
            bounds = f"{controlled['mean']:.0%} [{controlled['low']:.0%}, {controlled['high']:.0%}]"
            return LENGTH, f"at equal length it wins {bounds} against {_OTHERS[role]}"
    missing = [name for role, name in _OTHERS.items() if role in {"base", *roles} and role not in rows]
    return (PARTLY, f"{why}; not judged against {' and '.join(missing)}") if missing else (word, why)


def shown(value: Mapping[str, float]) -> str:
    """Return a difference with its interval."""
    return f"{value['mean']:+.3g} [{value['low']:+.3g}, {value['high']:+.3g}]"
