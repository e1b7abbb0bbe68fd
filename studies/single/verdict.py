"""What GenARM's paper says, what came out here, and whether that confirms it: by stated rules, from the numbers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from single.plan import DPO, GENARM
from single.results import best_test_time

MATCH = 0.1
"""Two methods match if the interval of their difference lies within this share of what DPO gains over the base."""
Row = Mapping[str, Any]


def shown(value: Row | None, digits: int = 2) -> str:
    """Return a signed number with its interval."""
    if value is None:
        return "–"
    return f"{value['value']:+.{digits}f} [{value['low']:+.{digits}f}, {value['high']:+.{digits}f}]"


def against_training(result: Row) -> tuple[str, str]:
    """Return what came out for "matches the performance of training-time methods", and the verdict.

    At every level of KL that both reach: GenARM's reward minus DPO's. Better at one level and worse at none is
    confirmed, worse at one is not, and no difference counts as a match only if the interval is narrow.
    """
    numbers = first_judge(result)
    levels = numbers["levels"]
    gaps = [level["GenARM − DPO"] for level in levels if level["GenARM − DPO"]]
    gain = abs(numbers["settings"][usual(numbers["settings"], DPO)]["gain"]["value"])
    text = "GenARM − DPO at equal KL: " + "; ".join(
        f"{shown(level['GenARM − DPO'])} at {level['kl']:.1f} nats" for level in levels
    )
    direct = numbers["direct"][DPO]
    text += f". As usually run (both at strength 1, whatever the KL): {shown(direct['difference'])}"
    if any(g["high"] < 0 for g in gaps):
        word = "not confirmed" if not any(g["low"] > 0 for g in gaps) else "mixed: better at some KL, worse at other"
    elif any(g["low"] > 0 for g in gaps) or all(max(abs(g["low"]), abs(g["high"])) <= MATCH * gain for g in gaps):
        word = "confirmed"
    else:
        word = "not told apart at this size"
    return text, word


def against_test_time(result: Row) -> tuple[str, str]:
    """Return what came out for "outperforms test-time baselines", and the verdict, over Best-of-N and a system prompt."""
    numbers = first_judge(result)
    settings = numbers["settings"]
    names = best_test_time(settings)
    equal = {name: settings[name]["genarm_minus_this"] for name in names}
    direct = {name: numbers["direct"][name]["difference"] for name in names}
    text = "GenARM at equal KL minus the method: " + "; ".join(f"{n} {shown(v)}" for n, v in equal.items())
    text += ". GenARM at strength 1 minus it, at whatever KL: " + "; ".join(
        f"{n} {shown(v)}" for n, v in direct.items()
    )
    known = [value for value in equal.values() if value]
    at_equal = _word(known)
    at_any = _word(list(direct.values()))
    return text, f"at equal KL {at_equal}; at strength 1 {at_any}"


def _word(values: Sequence[Row]) -> str:
    if values and all(v["low"] > 0 for v in values):
        return "confirmed"
    if any(v["high"] < 0 for v in values):
        return "not confirmed"
    return "not told apart"


def over_sharpening(result: Row) -> tuple[str, str]:
    """Return whether GenARM beats the base's own sharper self at equal KL: no claim of the paper, but what a claim rests on."""
    settings = first_judge(result)["settings"]
    rows = {name: row["over_sharper"] for name, row in settings.items() if row["method"] == GENARM}
    known = {name: value for name, value in rows.items() if value}
    text = "; ".join(f"strength {settings[name]['strength']:g}: {shown(value)}" for name, value in known.items())
    beyond = len(rows) - len(known)
    text += (
        f"; at {beyond} further strengths GenARM is further from the base than any temperature tried" if beyond else ""
    )
    return text, _word(list(known.values()))


def cost(result: Row) -> tuple[str, str]:
    """Return what came out for the cost of an answer, and the verdict."""
    seconds = result["runtime"]
    base = seconds["base"]
    times = {name: value / base for name, value in seconds.items() if name != "base"}
    text = ", ".join(f"{name} {factor:.1f}" for name, factor in times.items()) + " times the base's processor time"
    slowest = [name for name in times if name.startswith("Best-of-")]
    word = "confirmed" if all(times[GENARM] < times[name] for name in slowest) else "not confirmed"
    return text, word


def first_judge(result: Row) -> Row:
    """Return the numbers of the judge that the verdict rests on."""
    return next(iter(result["judged"].values()))


def usual(settings: Row, method: str) -> str:
    """Return a method's setting of strength 1."""
    return next(name for name, row in settings.items() if row["method"] == method and row["strength"] == 1.0)


def claims(result: Row) -> list[tuple[str, str, str]]:
    """Return one row a claim that this data set can speak to: claim, ours, verdict."""
    return [
        ("“matches the performance of training-time methods”", *against_training(result)),
        (
            "“significantly outperforms prior test-time alignment baselines” (theirs: ARGS and Transfer-Q, which were not "
            "run here; ours: Best-of-N and a system prompt)",
            *against_test_time(result),
        ),
        ("“efficient”: less work an answer than Best-of-N, which writes N answers", *cost(result)),
        (
            "no claim of theirs, but under it: more than sharpening, GenARM − sharper base at equal KL",
            *over_sharpening(result),
        ),
    ]


ELSEWHERE = [
    ("weak-to-strong guidance", "another study: [weak to strong](../weak_to_strong/README.md)"),
    ("several objectives without retraining", "another study: [two objectives](../two_objectives/README.md)"),
    (
        "an ARM can express any distribution that a trajectory-level reward can",
        "another study: [theory](../../docs/theory.md)",
    ),
    (
        "anything about 7-billion-parameter models, human preferences on HH-RLHF, or a judge such as GPT-4",
        "not testable here",
    ),
]
