"""What ``trimtab evaluate`` prints at its end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from trimtab.cli.console import note, out


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
    for line in metrics["notes"]:
        note(f"Mind: {line}")
    out.print(f"Report: {folder / 'report.html'}  Numbers: {folder / 'metrics.json'}", markup=False)


def _cell(setting: Mapping[str, Any], scorer: str, gains: Mapping[tuple[str, str], Mapping[str, float]]) -> str:
    mean = f"{setting['scores'][scorer]['mean']:.3g}"
    gain = gains.get((setting["name"], scorer))
    if gain is None:
        return mean
    star = "*" if gain["low"] > 0 or gain["high"] < 0 else ""
    return f"{mean}\n{gain['mean']:+.2g}{star}"
