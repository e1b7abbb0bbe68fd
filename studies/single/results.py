"""One data set's comparison: every setting beside the base, and every other method beside GenARM at equal KL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from single.answers import BASE, SHARPER, SYSTEM
from single.numbers import (
    Cube,
    Curve,
    Draws,
    at_own_kl,
    beside,
    common_levels,
    curve_of,
    gap,
    interval,
    make_cube,
    wins,
)
from single.plan import DPO, GENARM

CURVES = (GENARM, DPO, SHARPER)
"""Methods of several strengths; the others are points."""


def place_of(setting: str) -> tuple[str, float]:
    """Return the method and strength of a setting, as ``trimtab evaluate`` names it: strength 1 where none is said."""
    method, _, strength = setting.partition(": strength ")
    if method.startswith(SHARPER):
        return SHARPER, float(method.removeprefix(SHARPER))
    return method, float(strength or 1.0)


def compare(
    runs: Sequence[Mapping[str, Sequence[Mapping[str, Any]]]], judges: Mapping[str, str], asked: Sequence[bool]
) -> dict[str, Any]:
    """Return the numbers of every setting by every judge.

    Args:
        runs: of each seed, setting → records by prompt.
        judges: judge → its column in the records.
        asked: prompts by which the methods are judged; the others only show what it costs there.
    """
    chosen = np.flatnonzero(asked)
    names = list(runs[0])
    cubes = {name: make_cube([[run[name][i] for i in chosen] for run in runs], judges) for name in names}
    draws = Draws(len(runs), len(chosen))
    found = {judge: _judged(cubes, judge, draws) for judge in judges}
    if not all(asked):
        _add_others(found, runs, judges, np.flatnonzero(~np.array(asked)), names)
    return {"prompts": len(chosen), "others": len(asked) - len(chosen), "judged": found}


def _judged(cubes: Mapping[str, Cube], judge: str, draws: Draws) -> dict[str, Any]:
    base = cubes[BASE]
    curves = {
        method: curve_of(draws, base, [c for name, c in cubes.items() if place_of(name)[0] == method], judge)
        for method in CURVES
    }
    settings: dict[str, Any] = {}
    for name, cube in cubes.items():
        method, strength = place_of(name)
        row = {"method": method, "strength": strength, **beside(cube, base, judge, draws)}
        if method in (GENARM, DPO):
            less = at_own_kl(curves[SHARPER], cube, judge, draws)
            row["over_sharper"] = _turned(less)
        if method not in (GENARM, BASE):
            row["genarm_minus_this"] = at_own_kl(curves[GENARM], cube, judge, draws)
        settings[name] = row
    pair = [curves[GENARM], curves[DPO]]
    return {
        "settings": settings,
        "levels": [{"kl": kl, **_level(curves, kl)} for kl in common_levels(pair)],
        "direct": _direct(cubes, judge, draws),
    }


def _turned(value: Mapping[str, float] | None) -> dict[str, float] | None:
    """Return an interval of the opposite sign."""
    if value is None:
        return None
    return {**value, "value": -value["value"], "low": -value["high"], "high": -value["low"]}


def _level(curves: Mapping[str, Curve], kl: float) -> dict[str, Any]:
    at = {method: interval(curve.at(np.full(len(curve.kl), kl))) for method, curve in curves.items()}
    return {**at, "GenARM − DPO": gap(curves[GENARM], curves[DPO], kl)}


def _direct(cubes: Mapping[str, Cube], judge: str, draws: Draws) -> dict[str, Any]:
    """Return GenARM at strength 1 beside every other method as it is usually run, whatever its KL."""
    usual = {place_of(name): cube for name, cube in cubes.items()}
    one = usual[GENARM, 1.0]
    others = {method: cube for (method, strength), cube in usual.items() if strength == 1.0 and method != GENARM}
    return {
        method: {
            "difference": interval(draws.means(one.rewards[judge] - cube.rewards[judge])),
            "wins": wins(one, cube, judge, draws),
        }
        for method, cube in others.items()
    }


def _add_others(
    found: dict[str, Any], runs: Sequence[Any], judges: Mapping[str, str], places: np.ndarray, names: Sequence[str]
) -> None:
    """Add every setting's mean reward on the prompts of which the objective is not asked."""
    draws = Draws(len(runs), len(places))
    for judge, spec in judges.items():
        for name in names:
            values = np.array([[run[name][i]["scores"][spec] for i in places] for run in runs])
            found[judge]["settings"][name]["elsewhere"] = interval(draws.means(values))


def best_test_time(settings: Mapping[str, Any]) -> list[str]:
    """Return the settings of methods that leave the model as it is, GenARM and the controls apart."""
    return [name for name, row in settings.items() if row["method"].startswith("Best-of-") or row["method"] == SYSTEM]
