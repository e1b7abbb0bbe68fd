"""``write_comparisons``: the canonical form, TRL's form with every label kept, or TRL's form for one objective."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from trimtab.errors import ConfigError, DataError, OutputError, did_you_mean
from trimtab.preferences import sources, tables
from trimtab.preferences.formats import EXTRA_COLUMN, SIDE_COLUMN
from trimtab.preferences.reading import objectives_of
from trimtab.preferences.records import Comparison, Label

__all__ = ["WRITABLE", "WriteResult", "to_rows", "write_comparisons"]

WriteFormat = Literal["canonical", "labels", "trl"]
WRITABLE = ("canonical", "labels", "trl")
"""The formats that can be written. ``canonical`` and ``labels`` keep everything; ``trl`` keeps one objective."""

_RESERVED = frozenset(
    {"id", "prompt", "chosen", "rejected", "response_a", "response_b", "labels", "strengths"}
    | {SIDE_COLUMN, EXTRA_COLUMN, tables.JSON_COLUMN}
)


@dataclass(frozen=True, slots=True)
class WriteResult:
    """What was written.

    Attributes:
        path: the file.
        written: rows in it.
        ties: comparisons left out because the objective is tied on them (``trl`` only).
        missing: comparisons left out because they are not judged on the objective (``trl`` only).
    """

    path: Path
    written: int
    ties: int = 0
    missing: int = 0


def write_comparisons(
    path: str | Path,
    comparisons: Iterable[Comparison],
    *,
    format: str = "canonical",
    objective: str | None = None,
) -> WriteResult:
    """Write comparisons to a ``.jsonl``, ``.json``, ``.csv``, ``.tsv`` or ``.parquet`` file, each also with ``.gz``.

    The file appears whole or not at all: it is written under a temporary name and then renamed.

    Args:
        path: where to; a file that is there is replaced.
        comparisons: what to write.
        format: ``"canonical"``; ``"labels"``, TRL's columns with a column ``labels`` that keeps every objective,
            ties and missing ones; or ``"trl"``, TRL's columns for one objective, without its ties and missing ones.
        objective: which objective turns ``chosen`` and ``rejected``; needed for ``"trl"`` where there are several.
            A row that is turned says so in the column ``trimtab_side``, so that it reads back as it was.

    Raises:
        ConfigError: an unknown format or objective, or a suffix that names no kind of file.
        DataError: nothing is left to write, or a column holds what the file cannot carry.
        OutputError: the file cannot be written.
    """
    target = Path(path).expanduser()
    everything = list(comparisons)
    suffix = sources.suffix_of(target)
    if not suffix:
        raise ConfigError(f"{target} has no suffix that names a kind of file: use {', '.join(sources.SUFFIXES)}.")
    rows, ties, missing = to_rows(everything, format=format, objective=objective)
    if not rows:
        raise DataError(
            f"Nothing to write to {target}: {len(everything)} comparisons, {ties} tied and {missing} not judged."
        )
    with _staged(target) as file:
        try:
            _WRITERS[suffix](file, rows)
        except (ValueError, TypeError) as error:
            raise DataError(f"{target}: a column holds a value this kind of file cannot carry ({error}).") from error
    return WriteResult(target, len(rows), ties, missing)


def to_rows(
    comparisons: Sequence[Comparison], *, format: str, objective: str | None = None
) -> tuple[list[dict[str, Any]], int, int]:
    """Return ``(rows, ties left out, missing left out)`` in a writable format (see :func:`write_comparisons`).

    Raises:
        ConfigError: an unknown format, an unknown objective, or ``"trl"`` without saying which of several.
    """
    if format not in WRITABLE:
        raise ConfigError(f"Unknown format to write {format!r}.{did_you_mean(format, WRITABLE)}")
    objectives = objectives_of(comparisons)
    objective = _chosen_objective(objectives, format, objective)
    ties = missing = 0
    kept: list[tuple[Comparison, bool]] = []
    for comparison in comparisons:
        label = comparison.labels.get(objective) if objective is not None else None
        if format == "trl" and (label is None or label is Label.TIE):
            ties, missing = ties + (label is not None), missing + (label is None)
            continue
        kept.append((comparison, format != "canonical" and label is Label.B))
    shape = _Shape(format, objectives, kept)
    return [shape.row(comparison, turned) for comparison, turned in kept], ties, missing


class _Shape:
    """The columns every row of one file has, so that all rows have the same."""

    def __init__(self, format: str, objectives: list[str], kept: list[tuple[Comparison, bool]]) -> None:
        self._format = format
        self._objectives = objectives
        self._ids = any(c.id for c, _ in kept)
        self._strengths = list(dict.fromkeys(name for c, _ in kept for name in c.strengths)) if format != "trl" else []
        self._sides = any(turned for _, turned in kept)

    def row(self, comparison: Comparison, turned: bool) -> dict[str, Any]:
        """Return one comparison as the columns of this file; ``turned`` puts answer b under ``chosen``."""
        shown = comparison.swapped() if turned else comparison
        names = ("response_a", "response_b") if self._format == "canonical" else ("chosen", "rejected")
        row: dict[str, Any] = {"id": comparison.id} if self._ids else {}
        row |= {"prompt": shown.prompt, names[0]: shown.response_a, names[1]: shown.response_b}
        if self._format != "trl":
            row["labels"] = {name: _number(shown.labels.get(name)) for name in self._objectives}
        if self._strengths:
            row["strengths"] = {name: shown.strengths.get(name) for name in self._strengths}
        if self._sides:
            row[SIDE_COLUMN] = "b" if turned else "a"
        colliding = {name: value for name, value in shown.extra.items() if name in _RESERVED or not _is_plain(name)}
        row |= {name: value for name, value in shown.extra.items() if name not in colliding}
        return row | ({EXTRA_COLUMN: colliding} if colliding else {})


def _chosen_objective(objectives: list[str], format: str, objective: str | None) -> str | None:
    if objective is not None and objective not in objectives:
        raise ConfigError(f"No row is judged on {objective!r}.{did_you_mean(objective, objectives)}")
    if objective is None and format == "trl":
        if len(objectives) != 1:
            found = f"the objectives {', '.join(objectives)}" if objectives else "no objective"
            raise ConfigError(f"TRL's form holds one objective, and this data has {found}: name one with 'objective'.")
        return objectives[0]
    return objective


def _number(label: Label | None) -> int | None:
    return None if label is None else int(label)


def _is_plain(name: str) -> bool:
    return name != "" and name == name.strip() and name.isprintable()


@contextmanager
def _staged(target: Path) -> Generator[BinaryIO]:
    """Open a temporary neighbour of ``target`` that takes its name only if all went well."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    if target.is_dir():
        raise OutputError(f"{target} is a folder: name a file in it.")
    try:
        with temporary.open("wb") as raw:
            if target.name.lower().endswith(".gz"):
                # No name and no time in the header, so that equal data gives equal bytes.
                with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as packed:
                    yield cast("BinaryIO", packed)
            else:
                yield raw
        temporary.replace(target)
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def _write_lines(file: BinaryIO, rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False, allow_nan=False, default=str).encode() + b"\n")


def _write_json(file: BinaryIO, rows: Sequence[dict[str, Any]]) -> None:
    file.write(json.dumps(rows, ensure_ascii=False, allow_nan=False, indent=1, default=str).encode() + b"\n")


def _write_tsv(file: BinaryIO, rows: Sequence[dict[str, Any]]) -> None:
    tables.write_csv(file, rows, delimiter="\t")


_WRITERS: dict[str, Callable[[BinaryIO, Sequence[dict[str, Any]]], None]] = {
    ".jsonl": _write_lines,
    ".ndjson": _write_lines,
    ".json": _write_json,
    ".csv": tables.write_csv,
    ".tsv": _write_tsv,
    ".parquet": tables.write_parquet,
}
