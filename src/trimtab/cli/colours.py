"""Token colouring in a terminal: blue where an objective likes a token better than the base does, orange where less."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.style import Style
from rich.table import Table
from rich.text import Text

from trimtab.cli.console import out

if TYPE_CHECKING:
    from trimtab.evaluation.attribution import Attribution

# Blue and orange are told apart with any of the common colour-vision deficiencies; near 0 there is no colour at all,
# so that the scale reads the same on dark and on light terminals.
_ABOVE, _BELOW, _MIDDLE = (8, 81, 156), (179, 88, 6), (247, 247, 247)
_QUIET = 0.08
_LEGEND = (-1.0, -0.5, -0.2, 0.0, 0.2, 0.5, 1.0)


def show_attribution(found: Attribution, *, title: str | None = None, numbers: bool = False) -> None:
    """Print one text: a coloured line for each objective, their sums, and numbers where there are no colours.

    Args:
        found: what was found.
        title: a line before it.
        numbers: whether each token's numbers are shown also where colours are.
    """
    if title is not None:
        out.print(f"--- {title}", markup=False)
    rows = found.rows
    scale = scale_of([value for values in rows.values() for value in values])
    coloured = out.color_system is not None and not out.no_color
    if coloured and rows:
        for name, values in rows.items():
            out.print(Text(f"{name}  Σ {_number(sum(values))}", style="bold"))
            out.print(coloured_text(found.tokens, values, scale))
            out.print()
        out.print(_legend(scale))
    if numbers or not coloured or not rows or any(score.top for score in found.scores):
        out.print(_numbers(found, rows))
    out.print(_totals(found, rows))


def scale_of(values: Sequence[float]) -> float:
    """Return the size of a log-ratio that gets the full colour: the 95th percentile of their sizes, at least 0.1."""
    sizes = sorted(abs(value) for value in values if math.isfinite(value))
    return max(0.1, sizes[math.ceil(0.95 * len(sizes)) - 1]) if sizes else 1.0


def colour_of(value: float, scale: float) -> Style:
    """Return the style of a token whose log-ratio is ``value``; none near 0 and where there is no number."""
    share = max(-1.0, min(1.0, value / scale)) if math.isfinite(value) else 0.0
    if abs(share) < _QUIET:
        return Style()
    end = _ABOVE if share > 0 else _BELOW
    red, green, blue = (round(m + (e - m) * abs(share)) for m, e in zip(_MIDDLE, end, strict=True))
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 140
    return Style(bgcolor=f"#{red:02x}{green:02x}{blue:02x}", color="#ffffff" if dark else "#000000")


def coloured_text(tokens: Sequence[str], values: Sequence[float], scale: float) -> Text:
    """Return tokens with the colours of their log-ratios; line breaks are shown and kept."""
    text = Text()
    for token, value in zip(tokens, values, strict=True):
        text.append(_visible(token).replace("⏎", "⏎\n"), style=colour_of(value, scale))
    return text


def _legend(scale: float) -> Text:
    text = Text("log-ratio in nats: ")
    for share in _LEGEND:
        text.append(f" {share * scale:+.2g} ", style=colour_of(share * scale, scale))
    return text.append("  (orange: less than the base, blue: more)")


def _numbers(found: Attribution, rows: dict[str, list[float]]) -> Table:
    table = Table(title="Log-probabilities and log-ratios, nats", title_justify="left", box=box.SIMPLE_HEAD)
    for name, options in [("#", {"justify": "right"}), ("token", {}), ("base", {"justify": "right"})]:
        table.add_column(name, **_options(options))
    for name in ("guided", "kl", *rows):
        table.add_column(Text(name), justify="right", overflow="fold")
    top = any(score.top for score in found.scores)
    for name in ("top before", "top after") if top else ():
        table.add_column(name, overflow="fold")
    for i, (token, score) in enumerate(zip(found.tokens, found.scores, strict=True)):
        cells = [str(i), Text(_visible(token)), _number(score.base_log_prob), _number(score.log_prob)]
        cells += [_number(score.kl, sign=False), *(_number(values[i], sign=True) for values in rows.values())]
        cells += [_named(found, score.base_top), _named(found, score.top)] if top else []
        table.add_row(*cells)
    return table


def _totals(found: Attribution, rows: dict[str, list[float]]) -> Table:
    table = Table(title=f"The whole text, {len(found.tokens)} tokens", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    table.add_column("sum, nats", justify="right")
    table.add_column("a token", justify="right")
    count = max(1, len(found.tokens))
    lines: list[tuple[str, float]] = [
        ("log-probability, base", sum(score.base_log_prob or 0.0 for score in found.scores)),
        ("log-probability, guided", sum(score.log_prob for score in found.scores)),
        ("KL of guided from base", sum(score.kl or 0.0 for score in found.scores)),
        *((f"log-ratio, {name}", sum(values)) for name, values in rows.items()),
    ]
    for name, value in lines:
        table.add_row(Text(name), _number(value), _number(value / count))
    return table


def _options(options: dict[str, Any]) -> dict[str, Any]:
    return {"overflow": "fold", **options}


def _named(found: Attribution, top: Sequence[tuple[int, float]]) -> Text:
    return Text("  ".join(f"{_visible(found.names[token])} {math.exp(value):.2f}" for token, value in top))


def _number(value: float | None, *, sign: bool = False) -> str:
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:+.3f}" if sign else f"{value:.3f}"


def _visible(token: str) -> str:
    """Return a token with what a terminal would act on made visible."""
    token = token.removeprefix("bytes:") if token.startswith("bytes:\\x") else token
    shown = token.replace("\r", "␍").replace("\n", "⏎").replace("\t", "⇥")
    return "".join(char if char.isprintable() or char == "⏎" else "�" for char in shown)
