"""What ``trimtab evaluate`` prints at its end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from trimtab.cli.console import escape, note, out


def show(metrics: Mapping[str, Any], folder: Path) -> None:
    """Print every setting's scores, the verdicts and where the report is."""
    scorers = metrics["scorers"]
    count = metrics["prompts"]["count"]
    table = Table(
        title=f"Mean over {count} prompts; below it the gain over the base (* its 95 % interval leaves 0 out)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("setting", overflow="fold", min_width=12, max_width=26)
    for scorer in scorers:
        table.add_column(
            scorer["spec"] + (" (FORCED)" if scorer["dependent"] else ""), overflow="fold", justify="right"
        )
    for name in ("KL", "changed", "tokens"):
        table.add_column(name, justify="right")
    gains = {(c["setting"], c["scorer"]): c["difference"] for c in metrics["comparisons"] if c["role"] == "base"}
    for setting in metrics["settings"]:
        cells = [_cell(setting, scorer["spec"], gains) for scorer in scorers]
        style = "dim" if setting["kind"] == "control" else None
        table.add_row(
            setting["name"],
            *cells,
            f"{setting['kl']['mean']:.3f}",
            f"{setting['top_changed']['mean']:.0%}",
            f"{setting['tokens']['mean']:.0f}",
            style=style,
        )
    out.print(table)
    out.print(
        "KL to the base in nats a token; changed: how often guidance makes another token the likeliest.", markup=False
    )
    for setting in metrics["settings"]:
        if setting["roles"]:
            out.print(setting["label"], markup=False, style="dim")
    for verdict in metrics["verdicts"]:
        out.print(f"{verdict['setting']}, {verdict['scorer']}: {verdict['verdict']} ({verdict['why']})", markup=False)
    if metrics["suite"]:
        suite = metrics["suite"]
        said = f"{suite['cut']} of {suite['answers']} answers cut at the limit, {suite['no_room']} without room"
        place = folder / "suites" / suite["name"]
        out.print(f"For {suite['name']}'s own tool, a file a setting: {place} ({said}).", markup=False)
    if metrics["judge"]:
        _show_judge(metrics["judge"])
    for line in metrics["notes"]:
        note(f"Mind: {line}")
    out.print(f"Report: {folder / 'report.html'}  Numbers: {folder / 'metrics.json'}", markup=False)


def _show_judge(judge: Mapping[str, Any]) -> None:
    """Print a judge's win rates and verdicts."""
    forced = " (FORCED: it is not independent)" if judge["dependent"] else ""
    table = Table(
        title=f"Preferred by {escape(judge['model'])}{forced} in both orders, on {judge['prompts']} prompts",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("setting", overflow="fold", min_width=12, max_width=26)
    table.add_column("against", overflow="fold", min_width=12, max_width=26)
    for name in ("win rate", "like length", "W/T/L", "p", "agree"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in judge["comparisons"]:
        table.add_row(
            escape(row["setting"]),
            escape(row["against"]),
            _rate(row["win_rate"]),
            _rate(row["length_controlled"]),
            f"{row['wins']}/{row['ties']}/{row['losses']}"
            + (f"\n{row['unjudged']} unjudged" if row["unjudged"] else ""),
            f"{row['p_value']:.3g}" if "p_value" in row else "-",
            "-" if row["consistency"] is None else f"{row['consistency']:.0%}",
        )
    out.print(table)
    out.print(
        "Win rate: ties half, 95 % interval below; like length: at equal length; agree: how often both orders do.",
        markup=False,
    )
    for verdict in judge["verdicts"]:
        said = f"{verdict['setting']}, judge {judge['model']}: {verdict['verdict']} ({verdict['why']})"
        out.print(said, markup=False)


def _rate(value: Mapping[str, float] | None) -> str:
    return "-" if value is None else f"{value['mean']:.0%}\n{value['low']:.0%}–{value['high']:.0%}"


def _cell(setting: Mapping[str, Any], scorer: str, gains: Mapping[tuple[str, str], Mapping[str, float]]) -> str:
    mean = f"{setting['scores'][scorer]['mean']:.3g}"
    gain = gains.get((setting["name"], scorer))
    if gain is None:
        return mean
    star = "*" if gain["low"] > 0 or gain["high"] < 0 else ""
    return f"{mean}\n{gain['mean']:+.2g}{star}"
