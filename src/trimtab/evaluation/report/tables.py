"""The report's tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.evaluation.report.markup import Cell, interval_cell, number, percent, table

Metrics = Mapping[str, Any]
_ROLES = {
    "base": "the base",
    "untrained": "untrained guide",
    "temperature": "base at equal KL (run)",
    "equal_kl": "base at equal KL (between runs)",
}
_UNFINISHED = "not finished"
_MARKS = {
    "better than base and controls": "good",
    "worse than the base": "bad",
    "no better than a control": "doubt",
    "judges itself": "doubt",
    "no better at equal length": "doubt",
    "too few verdicts": "doubt",
}


def verdict_table(metrics: Metrics) -> str:
    """Return setting × scorer: the gain over the base, and the verdict in words; a judge has the last column."""
    scorers, judge = metrics["scorers"], metrics["judge"]
    gains = {(c["setting"], c["scorer"]): c["difference"] for c in metrics["comparisons"] if c["role"] == "base"}
    verdicts = {(v["setting"], v["scorer"]): v for v in metrics["verdicts"]}
    rows: list[list[Cell]] = []
    for setting in metrics["settings"]:
        if setting["kind"] not in ("guided", "method"):
            continue
        row = [setting_cell(setting)]
        for scorer in scorers:
            key = (setting["name"], scorer["spec"])
            gain, said = gains[key], verdicts[key]
            bounds = f"[{number(gain['low'], signed=True)}, {number(gain['high'], signed=True)}]"
            detail = f"{bounds}\n{said['verdict']}{_beyond(said)}"
            row.append(Cell(number(gain["mean"], signed=True), detail, gain["mean"], _MARKS.get(said["verdict"], "")))
        if judge:
            row.append(_judged_cell(judge, setting["name"]))
        rows.append(row)
    head = ["Setting", *map(_title, scorers), *([judge_title(judge)] if judge else [])]
    return table("Gain over the base, and verdict", head, rows, name="verdict-table")


def judge_title(judge: Mapping[str, Any]) -> str:
    """Return the judge's name, with a mark if it was forced."""
    return f"judge {judge['model']}{' (NOT INDEPENDENT)' if judge['dependent'] else ''}"


def _judged_cell(judge: Mapping[str, Any], setting: str) -> Cell:
    """Return the win rate against the base, or the first other that was judged, and the verdict."""
    said = next((v for v in judge["verdicts"] if v["setting"] == setting), None)
    own = sorted((c for c in judge["comparisons"] if c["setting"] == setting), key=lambda c: c["role"] != "base")
    row = own[0] if own else None
    if said is None or row is None:
        return Cell("–", "not judged" if judge["finished"] else _UNFINISHED)
    rate = _rate(row["win_rate"])
    against = "" if row["role"] == "base" else f" against the {_ROLES[row['role']].removeprefix('the ')}"
    detail = f"win rate{against} {rate.detail}"
    return Cell(rate.text, f"{detail}\n{said['verdict']}", rate.sort, _MARKS.get(said["verdict"], ""))


def judge_table(metrics: Metrics) -> str:
    """Return what a judge says of every setting beside the base and its controls."""
    rows: list[list[Cell]] = []
    for item in metrics["judge"]["comparisons"]:
        unjudged = f", {item['unjudged']} without a verdict" if item["unjudged"] else ""
        equal = f", {item['equal']} equal answers" if item["equal"] else ""
        words = f"{number(item['words'][0])} words, other {number(item['words'][1])}"
        rows.append(
            [
                Cell(item["setting"]),
                Cell(_ROLES[item["role"]], item["against"] if item["role"] != "base" else ""),
                _rate(item["win_rate"]),
                _rate(item["length_controlled"], words),
                Cell(
                    f"{item['wins']} / {item['ties']} / {item['losses']}",
                    f"{item['pairs']} pairs{unjudged}{equal}",
                    float(item["wins"] - item["losses"]),
                ),
                _p_cell(item),
                Cell(percent(item["consistency"]), sort=item["consistency"]),
                _rate(item["shown_first"]),
            ]
        )
    head = [
        "Setting", "Against", "Win rate", "At equal length", "Win, tie, lose", "p", "Orders agree", "First shown",
    ]  # fmt: skip
    return table("Preferred by the judge, paired by prompt", head, rows, name="judge-table")


def _rate(value: Mapping[str, float] | None, detail: str = "") -> Cell:
    """Return a rate with its interval, or why there is none."""
    if value is None:
        return Cell("–", detail)
    bounds = f"[{percent(value['low'])}, {percent(value['high'])}]"
    return Cell(percent(value["mean"]), f"{bounds}\n{detail}" if detail else bounds, value["mean"])


def _beyond(said: Mapping[str, Any]) -> str:
    return " (no control reaches its KL)" if "no control goes as far" in said["why"] else ""


def setting_cell(setting: Mapping[str, Any]) -> Cell:
    """Return a setting's name, and below it what it is the control of."""
    return Cell(setting["name"], str(setting["label"])[len(setting["name"]) :].removeprefix(" = "))


def reward_table(metrics: Metrics) -> str:
    """Return every setting's mean scores, and what they cost."""
    rows: list[list[Cell]] = []
    marks: list[str] = []
    for setting in metrics["settings"]:
        rows.append(
            [
                setting_cell(setting),
                *(interval_cell(setting["scores"][scorer["spec"]]) for scorer in metrics["scorers"]),
                interval_cell(setting["kl"]),
                Cell(percent(setting["top_changed"]["mean"]), sort=setting["top_changed"]["mean"]),
                interval_cell(setting["fluency"]),
                interval_cell(setting["tokens"]),
                Cell(percent(setting["stopped"]), sort=setting["stopped"]),
            ]
        )
        marks.append(setting["kind"])
    head = [
        "Setting",
        *map(_title, metrics["scorers"]),
        "KL, nats a token",
        "Top token changed",
        "Fluency",
        "Tokens",
        "Ended itself",
    ]
    return table("Mean scores of every setting, with 95 % intervals", head, rows, marks=marks, name="reward-table")


def comparison_table(metrics: Metrics) -> str:
    """Return every comparison of a setting with the base or a control."""
    rows: list[list[Cell]] = []
    for item in metrics["comparisons"]:
        alike, controlled = item.get("like_length"), item.get("length_controlled")
        rows.append(
            [
                Cell(item["setting"]),
                Cell(item["scorer"]),
                Cell(_ROLES[item["role"]], item["against"] if item["role"] != "base" else ""),
                interval_cell(item["difference"], signed=True),
                _p_cell(item),
                Cell(_share(item), _outcome(item), item.get("win")),
                _controlled(controlled),
                Cell("–")
                if not alike
                else Cell(number(alike["difference"], signed=True), f"{alike['pairs']} pairs", alike["difference"]),
            ]
        )
    head = ["Setting", "Scorer", "Against", "Difference", "p", "Wins", "Wins, length-controlled", "At like length"]
    return table("Comparisons, paired by prompt", head, rows, name="comparison-table")


def front_table(metrics: Metrics) -> str:
    """Return hypervolume and friends of every family."""
    fronts = metrics["fronts"]
    names: Sequence[str] = fronts["objectives"]
    rows = [
        [
            Cell(name),
            _interval(family["hypervolume"]),
            _interval(family["mip"]),
            _interval(family["mip_rescaled"]),
            *(Cell(number(family["spread"][n]), sort=family["spread"][n]) for n in names),
            *(Cell(number(family["monotonicity"][n]), sort=family["monotonicity"][n]) for n in names),
            Cell(f"{sum(family['pareto'])} of {len(family['pareto'])}", sort=float(sum(family["pareto"]))),
        ]
        for name, family in fronts["families"].items()
    ]
    head = [
        "Method", "Hypervolume", "MIP", "MIP, rescaled", *(f"Spread, {n}" for n in names),
        *(f"Kendall τ, {n}" for n in names), "On its front",
    ]  # fmt: skip
    return table("Fronts", head, rows, name="front-table")


def length_table(metrics: Metrics) -> str:
    """Return how far every scorer follows the length."""
    rows: list[list[Cell]] = []
    for scorer in metrics["scorers"]:
        found = metrics["length"][scorer["spec"]]
        values = [abs(value) for value in found.values() if value is not None]
        said = "does not vary" if not values else "follows the length" if max(values) > 0.3 else "hardly"
        rows.append(
            [
                Cell(scorer["spec"]),
                Cell(number(found["spearman"], signed=True), sort=found["spearman"]),
                Cell(number(found["spearman_base"], signed=True), sort=found["spearman_base"]),
                Cell(said, mark="doubt" if said == "follows the length" else ""),
            ]
        )
    return table(
        "Scorers and length", ["Scorer", "All answers", "The base's answers", "In a word"], rows, name="length-table"
    )


def scorer_table(metrics: Metrics) -> str:
    """Return what every scorer is, and whether it may judge these guides."""
    rows: list[list[Cell]] = []
    for scorer in metrics["scorers"]:
        low, high = (number(scorer[end]) if scorer[end] is not None else "∞" for end in ("low", "high"))
        low = "−∞" if scorer["low"] is None else low
        accuracy = "not measured" if scorer["accuracy"] is None else percent(scorer["accuracy"])
        rows.append(
            [
                Cell(scorer["spec"], scorer["objective"]),
                Cell(scorer["measures"]),
                Cell(f"{low} to {high} {scorer['unit']}", scorer["direction"]),
                Cell(accuracy, scorer["accuracy_on"]),
                Cell(
                    "NO, forced" if scorer["dependent"] else "nothing speaks against it",
                    scorer["dependent"] or "",
                    mark="doubt" if scorer["dependent"] else "",
                ),
                Cell(scorer["licence"]),
            ]
        )
    head = ["Scorer", "Measures", "Range", "Agrees with labels", "Independent of the guides", "Licence"]
    return table("Scorers", head, rows, name="scorer-table")


def _title(scorer: Mapping[str, Any]) -> str:
    return f"{scorer['spec']} (NOT INDEPENDENT)" if scorer["dependent"] else str(scorer["spec"])


def _interval(value: Mapping[str, float]) -> Cell:
    return interval_cell({"mean": value["value"], "low": value["low"], "high": value["high"]})


def _controlled(found: Mapping[str, float] | None) -> Cell:
    if found is None:
        return Cell("–")
    return Cell(percent(found["mean"]), f"[{percent(found['low'])}, {percent(found['high'])}]", found["mean"])


def _share(item: Mapping[str, Any]) -> str:
    return percent(item.get("win"))


def _outcome(item: Mapping[str, Any]) -> str:
    if "win" not in item:
        return "" if item.get("reached", True) else "further away than any control"
    return f"{percent(item['tie'])} ties, {percent(item['lose'])} losses"


def _p_cell(item: Mapping[str, Any]) -> Cell:
    if "p_value" not in item:
        return Cell("–")
    return Cell(_p_value(item["p_value"]), f"{_p_value(item['p_adjusted'])} adjusted", item["p_value"])


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
