"""The score form (HelpSteer): one answer a row, and the rows that answer one prompt are compared with each other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trimtab.preferences.formats import Options, make_comparison, pair_scores, read_score
from trimtab.preferences.records import Comparison, Text
from trimtab.preferences.rows import RawRow, RowProblem
from trimtab.preferences.texts import assistant, read_text, user

__all__ = ["Pair", "Scored", "pair_rows"]


@dataclass(frozen=True, slots=True)
class Scored:
    """One answer with its scores, as one row gives it."""

    line: int
    prompt: Text
    response: Text
    scores: dict[str, float | None]
    row: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Pair:
    """What became of two rows, or of one (``first`` 0) that could not be used or has no partner."""

    first: int
    line: int
    outcome: Comparison | RowProblem | None


def pair_rows(rows: Iterator[RawRow], options: Options) -> Iterator[Pair]:
    """Pair every two rows with equal prompts, prompts in order of first appearance, rows in the file's order.

    The earlier row is answer ``a``. Columns in which both rows agree stay as they are in ``extra``; those in which
    they differ get ``_a`` and ``_b``; the scores are kept as ``scores_a`` and ``scores_b``. A row without a partner
    comes out with ``outcome`` ``None``.
    """
    groups: dict[str, list[Scored]] = {}
    for raw in rows:
        try:
            scored = _read(raw, options)
        except RowProblem as problem:
            yield Pair(0, raw.line, problem)
            continue
        groups.setdefault(json.dumps(scored.prompt, sort_keys=True), []).append(scored)
    for group in groups.values():
        if len(group) == 1:
            yield Pair(0, group[0].line, None)
        for i, first in enumerate(group):
            for second in group[i + 1 :]:
                yield Pair(first.line, second.line, _compare(first, second, options))


def _read(raw: RawRow, options: Options) -> Scored:
    if raw.value is None:
        raise RowProblem(raw.problem)
    prompt, response = (read_text(raw.value.get(name), name) for name in ("prompt", "response"))
    scores = {name: read_score(raw.value.get(name), name) for name in options.attributes or ()}
    prompt = user(prompt) if isinstance(prompt, str) else prompt
    return Scored(raw.line, prompt, assistant(response) if isinstance(response, str) else response, scores, raw.value)


def _compare(a: Scored, b: Scored, options: Options) -> Comparison | RowProblem:
    labels, strengths = pair_scores(a.scores, b.scores, options.margin)
    used = {"prompt", "response", *a.scores}
    extra: dict[str, Any] = {}
    for name in dict.fromkeys([*a.row, *b.row]):
        if name not in used and a.row.get(name) == b.row.get(name):
            extra[name] = a.row.get(name)
        elif name not in used:
            extra.update({f"{name}_{side}": s.row[name] for side, s in (("a", a), ("b", b)) if name in s.row})
    extra |= {"scores_a": a.scores, "scores_b": b.scores}
    try:
        return make_comparison(a.prompt, a.response, b.response, labels=labels, strengths=strengths, row=extra, used=())
    except RowProblem as problem:
        return RowProblem(f"paired with row {a.line}: {problem}")
