"""What GenARM's paper says, what came out here, and whether that confirms it: by stated rules, from the numbers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from single.plan import DPO, GENARM
from single.results import best_test_time

MATCH = 0.1
"""Two methods match if the interval of their difference lies within this share of what DPO at strength 1 gains."""
YES, NO, UNSURE = "confirmed", "not confirmed", "not told apart"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Finding:
    """What one judge's numbers say of a claim.

    Attributes:
        word: confirmed, not confirmed, not told apart; or what is mixed.
        text: the numbers.
    """

    word: str
    text: str

    def __str__(self) -> str:
        return f"**{self.word}**: {self.text}"


def shown(value: Row | None, digits: int = 2) -> str:
    """Return a signed number with its interval."""
    if value is None:
        return "–"
    return f"{value['value']:+z.{digits}f} [{value['low']:+z.{digits}f}, {value['high']:+z.{digits}f}]"


def against_training(numbers: Row) -> Finding:
    """Return what one judge says of "matches the performance of training-time methods", at equal KL.

    GenARM's reward minus DPO's, at levels of KL that both reach. Better at a level and worse at none is confirmed, worse
    at one and better at none is not; no difference counts as a match only if every interval is narrow.
    """
    levels = numbers["levels"]
    gaps = [level["GenARM − DPO"] for level in levels if level["GenARM − DPO"]]
    gain = abs(numbers["settings"][usual(numbers["settings"], DPO)]["gain"]["value"])
    text = "; ".join(f"{shown(level['GenARM − DPO'])} at {level['kl']:.1f} nats" for level in levels)
    narrow = all(max(abs(g["low"]), abs(g["high"])) <= MATCH * gain for g in gaps)
    return Finding(YES if narrow else _word_of_curve(gaps), text)


def as_usually_run(numbers: Row) -> Finding:
    """Return GenARM minus DPO at strength 1 each, whatever their KL."""
    found = numbers["direct"][DPO]
    text = f"{shown(found['difference'])}; wins {shown_plain(found['wins']['rate'])}"
    return Finding(_word([found["difference"]]), text)


def at_test_time_equal(numbers: Row) -> Finding:
    """Return what one judge says of "outperforms test-time baselines" at their own KL: GenARM's curve there minus them."""
    settings = numbers["settings"]
    found = {name: settings[name]["genarm_minus_this"] for name in best_test_time(settings)}
    return Finding(_word([v for v in found.values() if v]), "; ".join(f"{n} {shown(v)}" for n, v in found.items()))


def at_test_time_usual(numbers: Row) -> Finding:
    """Return the same of GenARM at strength 1, whatever its KL."""
    found = {name: numbers["direct"][name]["difference"] for name in best_test_time(numbers["settings"])}
    return Finding(_word(list(found.values())), "; ".join(f"{n} {shown(v)}" for n, v in found.items()))


def over_sharpening(numbers: Row) -> Finding:
    """Return GenARM minus the sharper base at equal KL: no claim of the paper, but what a claim rests on."""
    settings = numbers["settings"]
    rows = [row for row in settings.values() if row["method"] == GENARM]
    known = [row for row in rows if row["over_sharper"]]
    parts = [f"w = {row['strength']:g}: {shown(row['over_sharper'])}" for row in known]
    beyond = len(rows) - len(known)
    parts += [f"strengths that lie further from the base than any temperature that was run: {beyond}"] if beyond else []
    return Finding(_word_of_curve([row["over_sharper"] for row in known]), "; ".join(parts))


def _word_of_curve(values: Sequence[Row]) -> str:
    """Return confirmed if one point of a curve lies above 0 and none below."""
    better, worse = any(v["low"] > 0 for v in values), any(v["high"] < 0 for v in values)
    if better and worse:
        return "better at some KL, worse at other"
    return NO if worse else YES if better else UNSURE


def _word(values: Sequence[Row]) -> str:
    """Return confirmed if GenARM is above every method, not confirmed if it is below one."""
    if values and all(v["low"] > 0 for v in values):
        return YES
    return NO if any(v["high"] < 0 for v in values) else UNSURE


def shown_plain(value: Row) -> str:
    """Return a share with its interval."""
    return f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def cost(result: Row) -> Finding:
    """Return what an answer costs, and whether GenARM's costs less than every Best-of-N's."""
    seconds = result["runtime"]
    times = {name: value / seconds["base"] for name, value in seconds.items() if name != "base"}
    text = ", ".join(f"{name} {factor:.1f}" for name, factor in times.items()) + " times the base's processor time"
    picked = [name for name in times if name.startswith("Best-of-")]
    return Finding(YES if all(times[GENARM] < times[name] for name in picked) else NO, text)


def usual(settings: Row, method: str) -> str:
    """Return a method's setting of strength 1."""
    return next(name for name, row in settings.items() if row["method"] == method and row["strength"] == 1.0)


CLAIMS = (
    ("“matches the performance of training-time methods”: GenARM − DPO at equal KL", against_training),
    ("the same, both at strength 1, whatever their KL", as_usually_run),
    (
        "“significantly outperforms prior test-time alignment baselines”: GenARM at equal KL minus Best-of-N and a system "
        "prompt (the paper's ARGS and Transfer-Q were not run here)",
        at_test_time_equal,
    ),
    ("the same, GenARM at strength 1, whatever its KL", at_test_time_usual),
    ("under these, and no claim of theirs: GenARM − sharper base at equal KL", over_sharpening),
)


def claims(result: Row) -> list[list[str]]:
    """Return one row a claim that a data set can speak to: the claim, and what each judge says of it."""
    judged = result["judged"].values()
    rows = [[claim, *(str(finding(numbers)) for numbers in judged)] for claim, finding in CLAIMS]
    costs = ["“efficient”: less work an answer than Best-of-N, which writes N answers", str(cost(result))]
    return [*rows, costs + ["the same"] * (len(judged) - 1)]


ELSEWHERE = (
    ("weak-to-strong guidance", "another study: [weak to strong](../weak_to_strong/README.md)"),
    ("several objectives without retraining", "another study: [two objectives](../two_objectives/README.md)"),
    (
        "an ARM can express any distribution that a trajectory-level reward can",
        "another study: [theory](../../docs/theory.md)",
    ),
    ("models of 7 billion parameters, people's preferences, a language model as the judge", "not testable here"),
)
