"""HTML from values. Every text goes through :func:`esc`: prompts and answers are not to be trusted."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


def esc(value: object) -> str:
    """Return text that is text in HTML, inside quoted attributes too."""
    return html.escape(str(value), quote=True)


def embedded(value: Any) -> str:
    """Return JSON that can stand inside ``<script type="application/json">``: no ``<``, so nothing can end it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def number(value: float | None, *, signed: bool = False) -> str:
    """Return a number with three digits or so that mean something, and a true minus sign."""
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.replace("-", "").replace("+", "")
    return text.replace("-", "−")


def percent(value: float | None) -> str:
    """Return a share as a percentage."""
    return "–" if value is None else f"{100 * value:.0f} %"


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: what stands in it.
        detail: smaller, below.
        sort: what a sorted column goes by; default: the text.
        mark: a CSS class.
    """

    text: str
    detail: str = ""
    sort: float | None = None
    mark: str = ""

    @property
    def html(self) -> str:
        """The cell, as a ``td``."""
        sort = f' data-sort="{self.sort!r}"' if self.sort is not None and math.isfinite(self.sort) else ""
        mark = f' class="{esc(self.mark)}"' if self.mark else ""
        detail = f"<small>{esc(self.detail)}</small>" if self.detail else ""
        return f"<td{sort}{mark}>{esc(self.text)}{detail}</td>"


def interval_cell(value: Mapping[str, float] | None, *, signed: bool = False, mark: str = "") -> Cell:
    """Return a mean with its interval below."""
    if value is None:
        return Cell("–")
    low, high = number(value["low"], signed=signed), number(value["high"], signed=signed)
    return Cell(number(value["mean"], signed=signed), f"[{low}, {high}]", value["mean"], mark)


def table(
    caption: str, head: Sequence[str], rows: Sequence[Sequence[Cell]], *, marks: Sequence[str] = (), name: str = ""
) -> str:
    """Return a table whose columns can be sorted; the first cell of a row is its heading.

    Args:
        caption: what it shows; also the name of the region that scrolls.
        head: column titles.
        rows: cells; as many as titles.
        marks: a CSS class for each row.
        name: id of the table.
    """
    titles = "".join(
        f'<th scope="col"><button type="button" class="sort">{esc(title)}<span aria-hidden="true"></span></button></th>'
        for title in head
    )
    lines: list[str] = []
    for i, row in enumerate(rows):
        mark = f' class="{esc(marks[i])}"' if i < len(marks) and marks[i] else ""
        first = row[0].html.replace("<td", '<th scope="row"', 1).replace("</td>", "</th>")
        lines.append(f"<tr{mark}>{first}{''.join(cell.html for cell in row[1:])}</tr>")
    ident = f' id="{esc(name)}"' if name else ""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{esc(caption)}"><table{ident}>'
        f"<caption>{esc(caption)}</caption><thead><tr>{titles}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def select(name: str, label: str, options: Sequence[str], chosen: int = 0) -> str:
    """Return a labelled picker; its values are the options' places."""
    items = "".join(
        f'<option value="{i}"{" selected" if i == chosen else ""}>{esc(option)}</option>'
        for i, option in enumerate(options)
    )
    return f'<label class="pick">{esc(label)} <select id="{esc(name)}">{items}</select></label>'
