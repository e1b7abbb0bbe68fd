"""Charts as inline SVG, which follow the page's colours and can be read without a mouse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.evaluation.report.markup import esc, number

WIDTH, HEIGHT = 640, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 20, 16, 52


@dataclass(frozen=True)
class Point:
    """A setting in a chart.

    Attributes:
        x: horizontal value.
        y: vertical value.
        name: of the setting.
        short: written beside the point; ``""``: nothing.
        kind: base, guided, method or control; says its shape.
        low: end of the vertical interval.
        high: the other.
    """

    x: float
    y: float
    name: str
    short: str
    kind: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """Points of one family, joined by a line in the order given.

    Attributes:
        name: of the family.
        points: its points.
        joined: whether a line joins them, with a band between the ends of their intervals.
        colour: number of its colour.
    """

    name: str
    points: Sequence[Point]
    joined: bool
    colour: int


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        span = self.high - self.low
        step = 10 ** math.floor(math.log10(span / 4))
        step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= 6)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def chart(
    title: str,
    series: Sequence[Series],
    x_title: str,
    y_title: str,
    *,
    reference: tuple[float, float] | None = None,
    note: str = "",
) -> str:
    """Return an SVG element.

    Args:
        title: what it shows, for those who cannot see it.
        series: what is drawn; later ones above earlier ones.
        x_title: of the horizontal axis.
        y_title: of the vertical axis.
        reference: a point to mark, such as the hypervolume's.
        note: further words for those who cannot see it.
    """
    points = [point for one in series for point in one.points]
    x_values = [p.x for p in points] + ([reference[0]] if reference else [])
    y_values = [v for p in points for v in (p.y, p.low, p.high) if v is not None] + (
        [reference[1]] if reference else []
    )
    x = _Scale(*_span(x_values), _LEFT, WIDTH - _RIGHT)
    y = _Scale(*_span(y_values), HEIGHT - _BOTTOM, _TOP)
    parts = [_axes(x, y, x_title, y_title)]
    if reference:
        parts.append(_reference(x(reference[0]), y(reference[1])))
    parts += [_band(one, x, y) for one in series if one.joined]
    taken: list[tuple[float, float]] = []
    parts += [_marks(one, x, y, taken) for one in series]
    described = "; ".join(f"{p.name}: {number(p.x)}, {number(p.y)}" for p in points)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{esc(f"{title}. {note} {described}")}">'
        f"{''.join(parts)}</svg>"
    )


def legend(series: Sequence[Series]) -> str:
    """Return the families' names beside their colours."""
    items = "".join(f'<li><span class="key c{one.colour % 6}"></span>{esc(one.name)}</li>' for one in series)
    return f'<ul class="legend">{items}</ul>'


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or max(abs(high), 1.0) * 0.1
    return low - room, high + room


def _axes(x: _Scale, y: _Scale, x_title: str, y_title: str) -> str:
    parts: list[str] = []
    for tick in y.ticks():
        at = y(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{esc(number(tick))}</text>')
    for tick in x.ticks():
        at = x(tick)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>')
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - _BOTTOM + 18}" text-anchor="middle">{esc(number(tick))}</text>')
    parts.append(
        f'<text class="axis" x="{(WIDTH + _LEFT) / 2:.0f}" y="{HEIGHT - 10}" text-anchor="middle">{esc(x_title)}</text>'
    )
    parts.append(
        f'<text class="axis" transform="translate(14 {(HEIGHT - _BOTTOM + _TOP) / 2:.0f}) rotate(-90)" '
        f'text-anchor="middle">{esc(y_title)}</text>'
    )
    return "".join(parts)


def _band(one: Series, x: _Scale, y: _Scale) -> str:
    drawn = [p for p in one.points if p.low is not None and p.high is not None]
    line = " ".join(f"{x(p.x):.1f},{y(p.y):.1f}" for p in one.points)
    parts = [f'<polyline class="line c{one.colour % 6}" points="{line}"/>']
    if len(drawn) > 1:
        upper = [f"{x(p.x):.1f},{y(p.high or 0):.1f}" for p in drawn]
        lower = [f"{x(p.x):.1f},{y(p.low or 0):.1f}" for p in reversed(drawn)]
        parts.insert(0, f'<polygon class="band c{one.colour % 6}" points="{" ".join(upper + lower)}"/>')
    return "".join(parts)


def _marks(one: Series, x: _Scale, y: _Scale, taken: list[tuple[float, float]]) -> str:
    parts: list[str] = []
    for point in one.points:
        across, down = x(point.x), y(point.y)
        spoken = f"{point.name}: {number(point.x)}, {number(point.y)}"
        parts.append(f'<g class="mark c{one.colour % 6} {esc(point.kind)}"><title>{esc(spoken)}</title>')
        if point.low is not None and point.high is not None:
            parts.append(
                f'<line class="whisker" x1="{across:.1f}" x2="{across:.1f}" y1="{y(point.low):.1f}" '
                f'y2="{y(point.high):.1f}"/>'
            )
        parts.append(_shape(point.kind, across, down))
        if point.short:
            parts.append(_label(point.short, across, down, taken))
        parts.append("</g>")
    return "".join(parts)


def _label(text: str, across: float, down: float, taken: list[tuple[float, float]]) -> str:
    """Return a label right of its point, or left of it near the edge, moved down until it covers no other."""
    left = across > WIDTH - _RIGHT - 8 * len(text) - 12
    at_x, at_y = (across - 9 if left else across + 9), down - 7
    while any(abs(at_x - x) < 60 and abs(at_y - y) < 13 for x, y in taken) and at_y < HEIGHT - _BOTTOM:
        at_y += 13
    taken.append((at_x, at_y))
    anchor = ' text-anchor="end"' if left else ""
    return f'<text class="tag" x="{at_x:.1f}" y="{at_y:.1f}"{anchor}>{esc(text)}</text>'


def _shape(kind: str, x: float, y: float) -> str:
    if kind == "base":
        return f'<path d="M{x:.1f} {y - 7:.1f}L{x + 7:.1f} {y:.1f}L{x:.1f} {y + 7:.1f}L{x - 7:.1f} {y:.1f}Z"/>'
    if kind == "control":
        return f'<rect x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9"/>'
    if kind == "method":
        return f'<path d="M{x:.1f} {y - 6:.1f}L{x + 6:.1f} {y + 5:.1f}L{x - 6:.1f} {y + 5:.1f}Z"/>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5.5"/>'


def _reference(x: float, y: float) -> str:
    return (
        f'<g class="reference"><title>Reference point of the hypervolume</title>'
        f'<path d="M{x - 6:.1f} {y - 6:.1f}L{x + 6:.1f} {y + 6:.1f}M{x - 6:.1f} {y + 6:.1f}L{x + 6:.1f} {y - 6:.1f}"/>'
        f'<text class="tag" x="{x + 10:.1f}" y="{y + 4:.1f}">reference</text></g>'
    )
