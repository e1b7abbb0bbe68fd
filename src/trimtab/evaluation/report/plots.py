"""Plots as files, PNG and SVG, for papers and slides."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trimtab.errors import ConfigError
from trimtab.evaluation.report.charts import Series
from trimtab.evaluation.report.figures import front, reward_against

# Okabe and Ito's colours, which most colour-blind readers can tell apart.
_COLOURS = ("#7a7a7a", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000")
_MARKERS = {"base": "D", "guided": "o", "method": "^", "control": "s", "joint": ""}


def write_plots(metrics: Mapping[str, Any], write: Callable[[str, bytes], Any]) -> list[str]:
    """Draw reward against KL and against length for every scorer, and the Pareto front where there is one.

    Args:
        metrics: the content of ``metrics.json``.
        write: called with a file's name and content.

    Returns:
        The names.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError('Plots need matplotlib: pip install "trimtab[eval]".') from error
    names: list[str] = []
    # The same numbers give the same bytes: no dates and no random ids in the files.
    with mpl.rc_context(
        {"svg.hashsalt": "trimtab", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    ):
        for name, series, x_title, y_title, reference in _wanted(metrics):
            figure: Any = Figure(figsize=(5.6, 3.6), layout="constrained")
            _draw(figure.subplots(), series, x_title, y_title, reference)
            for kind in ("png", "svg"):
                buffer = io.BytesIO()
                metadata = {"Date": None} if kind == "svg" else {"Software": None}
                figure.savefig(buffer, format=kind, dpi=160, metadata=metadata)
                names.append(f"plots/{name}.{kind}")
                write(names[-1], buffer.getvalue())
    return names


_Plot = tuple[str, Sequence[Series], str, str, tuple[float, float] | None]


def _wanted(metrics: Mapping[str, Any]) -> list[_Plot]:
    plots: list[_Plot] = []
    for scorer in (item["spec"] for item in metrics["scorers"]):
        name = re.sub(r"[^\w.-]+", "-", scorer)[-60:].strip("-.")
        plots.append(
            (f"kl-{name}", reward_against(metrics, scorer, "kl"), "KL to the base, nats a token", scorer, None)
        )
        plots.append((f"length-{name}", reward_against(metrics, scorer, "tokens"), "tokens an answer", scorer, None))
    found = front(metrics)
    if found:
        series, axes, reference = found
        plots.append(("front", series, axes[0], axes[1], reference))
    return plots


def _draw(
    axes: Any, series: Sequence[Series], x_title: str, y_title: str, reference: tuple[float, float] | None
) -> None:
    for one in series:
        colour = _COLOURS[one.colour % len(_COLOURS)]
        x, y = [p.x for p in one.points], [p.y for p in one.points]
        if one.joined:
            axes.plot(x, y, color=colour, linewidth=1.2)
            if all(p.low is not None for p in one.points):
                axes.fill_between(
                    x, [p.low for p in one.points], [p.high for p in one.points], color=colour, alpha=0.13
                )
        drawn = [p for p in one.points if p.kind != "joint"]
        for i, point in enumerate(drawn):
            hollow = {"facecolors": "none"} if point.kind == "control" else {}
            axes.scatter(
                [point.x], [point.y], marker=_MARKERS[point.kind], edgecolors=colour, s=28, zorder=3,
                label=one.name if i == 0 else None, **(hollow or {"color": colour}),
            )  # fmt: skip
            axes.annotate(
                _plain(point.short), (point.x, point.y), xytext=(5, 5), textcoords="offset points", fontsize=7
            )
    if reference:
        axes.scatter(*[[v] for v in reference], marker="x", color="black", s=24, label="reference point")
    axes.set_xlabel(_plain(x_title))
    axes.set_ylabel(_plain(y_title))
    axes.legend(frameon=False, fontsize=7)


def _plain(text: str) -> str:
    """Return text that matplotlib does not read as mathematics."""
    return text.replace("$", r"\$")
