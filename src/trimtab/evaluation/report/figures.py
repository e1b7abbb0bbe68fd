"""What is drawn, as points: the page's charts and the plot files show the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.evaluation.report.charts import Point, Series

Metrics = Mapping[str, Any]
TEMPERATURES = "base at other temperatures"


def short_name(setting: Mapping[str, Any]) -> str:
    """Return a few letters that tell a setting from its neighbours in a chart."""
    if setting["kind"] == "base":
        return "base"
    if setting["kind"] == "control":
        return f"T {setting['temperature']:.2g}" if not setting["weights"] else "untrained"
    if setting["alpha"]:
        return f"{next(iter(setting['alpha'].values())):.2g}"
    if setting["kind"] == "method":
        return str(setting["name"])[:18]
    return f"{setting['strength']:g}"


def reward_against(metrics: Metrics, scorer: str, across: str) -> list[Series]:
    """Return the settings' mean reward by one scorer against ``"kl"`` or ``"tokens"``.

    The base begins the line of its temperatures and of guidance, which both leave it.
    """
    settings: Sequence[Mapping[str, Any]] = metrics["settings"]
    base = settings[0]
    families: dict[str, list[Mapping[str, Any]]] = {}
    for setting in settings[1:]:
        plain = setting["kind"] == "control" and not setting["weights"]
        families.setdefault(TEMPERATURES if plain else setting["family"], []).append(setting)
    series: list[Series] = []
    for colour, (name, members) in enumerate(sorted(families.items(), key=lambda item: item[0] != TEMPERATURES)):
        curve = not any(member["alpha"] for member in members) and len({m["system"] for m in members}) == 1
        joined = (
            across == "kl" and curve and (name == TEMPERATURES or len(members) > 1 or members[0]["kind"] == "guided")
        )
        points = [_reward_point(m, scorer, across) for m in members]
        if joined and members[0]["system"] == base["system"]:
            points.append(_reward_point(base, scorer, across, named=False))
        points.sort(key=lambda p: p.x)
        series.append(Series(name, points, joined, colour))
    series.append(Series("base", [_reward_point(base, scorer, across)], False, 5))
    return series


def _reward_point(setting: Mapping[str, Any], scorer: str, across: str, *, named: bool = True) -> Point:
    reward, x = setting["scores"][scorer], setting[across]["mean"]
    kind, short = setting["kind"], short_name(setting)
    return Point(
        x,
        reward["mean"],
        setting["label"],
        short if named else "",
        kind if named else "joint",
        reward["low"],
        reward["high"],
    )


def front(metrics: Metrics) -> tuple[list[Series], list[str], tuple[float, float]] | None:
    """Return every family's points in the plane of the first two objectives, the axes, and the reference point."""
    fronts = metrics["fronts"]
    if not fronts:
        return None
    objectives: list[str] = fronts["objectives"]
    by_name = {setting["name"]: setting for setting in metrics["settings"]}
    specs = [fronts["measured_by"][name] for name in objectives]
    series: list[Series] = []
    for colour, (name, family) in enumerate(fronts["families"].items()):
        points = [
            Point(point[0], point[1], by_name[setting]["label"], short_name(by_name[setting]), by_name[setting]["kind"])
            for setting, point in zip(family["settings"], family["points"], strict=True)
        ]
        series.append(Series(name, points, len(objectives) == 2, colour + 1))
    others = [s for s in metrics["settings"] if s["alpha"] is None]
    for kind, name, colour in (("control", TEMPERATURES, 0), ("method", "other methods", 4), ("base", "base", 5)):
        found = [s for s in others if s["kind"] == kind]
        if found:
            series.append(Series(name, [_plane(s, specs) for s in found], False, colour))
    axes = [f"{name} ({spec})" for name, spec in zip(objectives, specs, strict=True)]
    reference = fronts["reference"]
    return series, axes[:2], (reference[objectives[0]], reference[objectives[1]])


def _plane(setting: Mapping[str, Any], specs: Sequence[str]) -> Point:
    x, y = (setting["scores"][spec]["mean"] for spec in specs[:2])
    return Point(x, y, setting["label"], short_name(setting), setting["kind"])
