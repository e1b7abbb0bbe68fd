"""The study's figure: reward against KL, and how much of the gap each weak way recovers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weak_to_strong.judging import CEILINGS, PRIMARY

COLOURS = {
    "0.5B ARM": "#c1440e",
    "0.5B DPO, proxy": "#d9a400",
    "1.5B ARM": "#7a9cc6",
    "1.5B DPO": "#1f3b73",
    "0.5B untrained": "#8a8a8a",
    "base temperature": "#3f7d4e",
}
LABELS = {"0.5B untrained": "0.5B untrained (control)", "base temperature": "1.5B base, sharper (control)"}


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Write the figure."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure: Any
    axes: Any
    figure, axes = plt.subplots(1, 2, figsize=(11.5, 5), width_ratios=[1.25, 1])
    _curves(result["settings"], axes[0])
    _shares(result, axes[1])
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _curves(settings: Mapping[str, Any], axis: Any) -> None:
    base = settings["base"]["reward"][PRIMARY]
    for family, colour in COLOURS.items():
        rows = sorted((r for r in settings.values() if r["family"] == family), key=lambda r: r["kl"])
        if not rows:
            continue
        x, y = [0.0, *(r["kl"] for r in rows)], [base["mean"], *(r["reward"][PRIMARY]["mean"] for r in rows)]
        control = family in LABELS
        axis.plot(x, y, color=colour, lw=1.2, ls="--" if control else "-", zorder=2)
        low = [r["reward"][PRIMARY]["mean"] - r["reward"][PRIMARY]["low"] for r in rows]
        high = [r["reward"][PRIMARY]["high"] - r["reward"][PRIMARY]["mean"] for r in rows]
        axis.errorbar(
            x[1:], y[1:], yerr=[low, high], fmt="o", ms=5, lw=0.8, color=colour, label=LABELS.get(family, family)
        )
        if not control:
            for row, px, py in zip(rows, x[1:], y[1:], strict=True):
                axis.annotate(f"{row['strength']:g}", (px, py), xytext=(5, -10), textcoords="offset points", fontsize=7)
    axis.plot([0], [base["mean"]], "k*", ms=10, label="1.5B base", zorder=3)
    asked = settings["system prompt"]["reward"][PRIMARY]["mean"]
    axis.axhline(asked, color="#b0b0b0", lw=0.8, ls=":")
    axis.text(axis.get_xlim()[1], asked, "system prompt ", fontsize=7, va="bottom", ha="right", color="#707070")
    axis.set_xlabel("KL to the 1.5B base, nats a token")
    axis.set_ylabel(f"mean reward ({PRIMARY}, nats), 95 % over prompts")
    axis.set_title("Reward against distance; numbers are weights w", fontsize=10)
    axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(0, -0.14), ncols=4, frameon=False)


def _shares(result: Mapping[str, Any], axis: Any) -> None:
    found = result["gaps"][PRIMARY]
    ceilings = [c for c in CEILINGS if c in found]
    names = list(found[ceilings[0]]) if ceilings else []
    for k, ceiling in enumerate(ceilings):
        for i, name in enumerate(names):
            value, place = found[ceiling][name], i + (k - (len(ceilings) - 1) / 2) * 0.28
            error = [[max(0.0, value["mean"] - value["low"])], [max(0.0, value["high"] - value["mean"])]]
            label = f"of {ceiling}'s gain" if i == 0 else None
            axis.errorbar(
                [value["mean"]], [place], xerr=error, fmt="o", ms=5, lw=1, color=COLOURS[ceiling], label=label
            )
    left, right = axis.get_xlim()
    axis.set_xlim(max(left, -1.0), min(right, 3.0))  # a ceiling that hardly gains makes shares without bound
    axis.axvline(1, color="#707070", lw=0.8)
    axis.axvline(0, color="#707070", lw=0.8, ls=":")
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("share of the gap recovered (1: all of it), 95 %")
    axis.set_title("Share of the large model's own gain", fontsize=10)
    if ceilings:
        axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(0, -0.14), ncols=2, frameon=False)
