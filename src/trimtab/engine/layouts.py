"""Spans as tensors: what is the same from step to step (the layout), and the numbers that change."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trimtab.engine.conditioned import RowConditions
from trimtab.engine.spans import PAGE, SCRATCH, Span

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Group:
    """Spans of one length that attend together: R rows of T tokens, each with P pages.

    Attributes:
        fresh: no row has earlier tokens, so that a query's place in its row is its position.
    """

    rows: int
    length: int
    pages: int
    fresh: bool


@dataclass(frozen=True)
class Piece:
    """Tokens ``start`` to ``stop`` belong to one adapter; as ``rows`` rows, where each row has its conditions."""

    slot: int
    start: int
    stop: int
    rows: int


@dataclass(frozen=True)
class Layout:
    """The sizes of a forward's inputs, which are known without looking at a number.

    Attributes:
        tokens: N, of all spans.
        kept: for how many of them logits are wanted.
        groups: a single one holds the tokens as they lie; of several, each says which tokens are its own.
        pieces: in the order of the tokens.
    """

    tokens: int
    kept: int
    groups: tuple[Group, ...]
    pieces: tuple[Piece, ...]

    @property
    def sizes(self) -> list[int]:
        """Lengths of the parts of the numbers: ids, positions, pages, kept, and each group's tokens and page table."""
        sizes = [self.tokens] * 3 + [self.kept]
        for group in self.groups:
            sizes += [group.rows * group.length, group.rows * group.pages]
        return sizes


@dataclass
class Batch:
    """What one forward computes on.

    Attributes:
        layout: the sizes.
        numbers: everything else that is an integer, (Σ sizes,), in one tensor so that it travels at once.
        conditions: for each piece those of its rows, or ``None``.
    """

    layout: Layout
    numbers: Tensor
    conditions: Sequence[Any]


class ConditionStacks:
    """Conditions of rows, stacked; the last few stacks are kept, for rows stay the same over many steps."""

    def __init__(self, size: int = 32) -> None:
        self._size = size
        # A stack is kept with its rows, so that none of their ids can pass to another tensor.
        self._known: dict[tuple[int, ...], tuple[RowConditions, Any]] = {}

    def __call__(self, rows: Sequence[Tensor | None], make: Callable[[RowConditions], Any] | None = None) -> Any:
        """Return what ``make`` makes of the rows' conditions, or ``None`` for rows that have none."""
        if rows[0] is None:
            return None
        key = tuple(map(id, rows))
        found = self._known.pop(key, None)
        if found is None:
            stacked = RowConditions([row for row in rows if row is not None])
            found = stacked, stacked if make is None else make(stacked)
        self._known[key] = found
        if len(self._known) > self._size:
            del self._known[next(iter(self._known))]
        return found[1]


@dataclass(frozen=True)
class Plan:
    """Spans in the order in which they are computed, and what is host-side about them.

    Attributes:
        layout: the sizes.
        numbers: see :class:`Batch`.
        rows: for each piece the conditions of its rows.
        fresh_pages: pages that begin with these tokens.
    """

    layout: Layout
    numbers: Numbers
    rows: Sequence[Sequence[Tensor | None]]
    fresh_pages: Numbers


def plan(spans: Sequence[Span]) -> Plan:
    """Lay spans out. Those of one slot are put in the order of their length; logits stay in the order of the spans."""
    order = sorted(range(len(spans)), key=lambda i: (_slot(spans[i]), len(spans[i].tokens)))
    ordered = [spans[i] for i in order]
    lengths = np.array([len(span.tokens) for span in ordered])
    ends = lengths.cumsum()
    firsts = ends - lengths
    end_of = np.empty_like(ends)
    end_of[order] = ends
    ids = np.fromiter(itertools.chain.from_iterable(s.tokens for s in ordered), np.int64, int(ends[-1]))
    positions = _runs(np.array([span.start for span in ordered]), lengths)
    keeps = np.array([span.keep for span in spans])
    kept = _runs(end_of - keeps, keeps)
    groups: list[Group] = []
    parts: list[Numbers] = []
    for length in sorted(set(lengths.tolist())):
        members = np.flatnonzero(lengths == length)
        own = [ordered[i] for i in members]
        tables = page_tables(own)
        groups.append(Group(len(own), length, tables.shape[1], fresh=all(span.start == 0 for span in own)))
        parts += [_runs(firsts[members], lengths[members]), tables.reshape(-1)]
    pieces, rows = _pieces(ordered, ends.tolist())
    layout = Layout(int(ends[-1]), len(kept), tuple(groups), tuple(pieces))
    numbers = np.concatenate([ids, positions, _token_pages(ordered), kept, *parts])
    return Plan(layout, numbers, rows, fresh_pages(spans))


def _slot(span: Span) -> int:
    return -1 if span.slot is None else span.slot


def _runs(firsts: Numbers, lengths: Numbers) -> Numbers:
    """Return the numbers first, first + 1, … of each run, one run after the other."""
    ends = lengths.cumsum()
    return np.arange(ends[-1]) + np.repeat(firsts - (ends - lengths), lengths)


def _token_pages(spans: Sequence[Span]) -> Numbers:
    """Return the page that each token of the spans is written to, (Σ T,)."""
    if all(len(span.tokens) == 1 for span in spans):
        return np.array([span.pages[span.start // PAGE] for span in spans], np.int64)
    places = [np.arange(span.start, span.start + len(span.tokens)) // PAGE for span in spans]
    return np.concatenate([span.pages[own] for span, own in zip(spans, places, strict=True)]).astype(np.int64)


def page_tables(spans: Sequence[Span], width: int | None = None) -> Numbers:
    """Return (R, P) page tables. A short one is filled up with its own first page, whose repeats are masked.

    A row thus never looks at another's numbers, not even at masked ones.
    """
    used = [-(-(span.start + len(span.tokens)) // PAGE) for span in spans]
    tables = np.empty((len(spans), width or max(used)), np.int64)
    tables[:] = np.array([span.pages[0] for span in spans])[:, None]
    for table, span, n in zip(tables, spans, used, strict=True):
        table[:n] = span.pages[:n]
    return tables


def fresh_pages(spans: Sequence[Span]) -> Numbers:
    """Return the pages whose first position the spans write."""
    begun = [(s.pages, -(-s.start // PAGE), -(-(s.start + len(s.tokens)) // PAGE)) for s in spans]
    some = [pages[first:end] for pages, first, end in begun if first < end]
    return np.concatenate(some).astype(np.int64) if some else np.empty(0, np.int64)


def _pieces(spans: Sequence[Span], ends: Sequence[int]) -> tuple[list[Piece], list[list[Tensor | None]]]:
    """Return the tokens of each adapter, and the conditions of their rows.

    The tokens of one adapter are one piece, but where rows have conditions a piece's rows are of one length.
    """
    pieces: list[Piece] = []
    rows: list[list[Tensor | None]] = []
    for span, end in zip(spans, ends, strict=True):
        if span.slot is None:
            continue
        length = len(span.tokens)
        last = pieces[-1] if pieces else None
        conditioned = span.conditions is not None
        if last is not None and last.slot == span.slot:
            if not conditioned:
                pieces[-1] = Piece(span.slot, last.start, end, 1)
                continue
            if (last.stop - last.start) == last.rows * length:
                pieces[-1] = Piece(span.slot, last.start, end, last.rows + 1)
                rows[-1].append(span.conditions)
                continue
        pieces.append(Piece(span.slot, end - length, end, 1))
        rows.append([span.conditions])
    return pieces, rows


def padded_plan(spans: Sequence[Span], segments: Sequence[tuple[int | None, int]], pages: int) -> tuple[Plan, Numbers]:
    """Lay spans of one length out in a fixed number of rows for each slot; return where their tokens lie, too.

    Args:
        spans: R' spans of T tokens each, in the order of their slots.
        segments: (slot, rows) in that order; slots of the spans, with at least as many rows as there are spans.
        pages: P, width of the page tables.

    Returns:
        The plan of Σ rows rows, whose padded ones read and write the scratch page and which keeps all tokens, and the
        places of the kept tokens of the spans.
    """
    length = len(spans[0].tokens)
    total = sum(rows for _, rows in segments)
    pieces: list[Piece] = []
    conditions: list[list[Tensor | None]] = []
    row_of: list[int] = []
    first, taken = 0, 0
    for slot, rows in segments:
        own = list(itertools.takewhile(lambda span, slot=slot: span.slot == slot, spans[taken:]))
        taken += len(own)
        row_of += range(first, first + len(own))
        if slot is not None:
            conditioned = own[0].conditions is not None
            pieces.append(Piece(slot, first * length, (first + rows) * length, rows if conditioned else 1))
            conditions.append([s.conditions for s in own] + [own[-1].conditions] * (rows - len(own)))
        first += rows
    at = np.array(row_of)
    ids, positions = np.zeros((total, length), np.int64), np.zeros((total, length), np.int64)
    token_pages = np.full((total, length), SCRATCH, np.int64)
    tables = np.full((total, pages), SCRATCH, np.int64)
    tables[at] = page_tables(spans, pages)
    ids[at] = [span.tokens for span in spans]
    positions[at] = np.array([span.start for span in spans])[:, None] + np.arange(length)
    token_pages[at] = _token_pages(spans).reshape(-1, length)
    keeps = np.array([span.keep for span in spans])
    layout = Layout(total * length, total * length, (Group(total, length, pages, fresh=False),), tuple(pieces))
    every = np.arange(total * length)
    parts = [ids.reshape(-1), positions.reshape(-1), token_pages.reshape(-1), every, every, tables.reshape(-1)]
    made = Plan(layout, np.concatenate(parts), conditions, fresh_pages(spans))
    return made, _runs((at + 1) * length - keeps, keeps)


def to_device(numbers: Numbers, device: torch.device) -> Tensor:
    """Return numbers as a tensor; a copy to a GPU does not wait for it."""
    tensor = torch.from_numpy(numbers)
    if device.type != "cuda":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
