"""``read_comparisons``: any source, any known format, every bad row counted and named."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from trimtab.errors import ConfigError, DataError
from trimtab.preferences import formats, sources
from trimtab.preferences.formats import Options
from trimtab.preferences.pairing import pair_rows
from trimtab.preferences.records import Comparison
from trimtab.preferences.rows import BadRow, RawRow, RowProblem

__all__ = ["ReadResult", "objectives_of", "read_comparisons"]

_LOOKAHEAD = 100
_QUOTED = 5


@dataclass(frozen=True, slots=True)
class ReadResult:
    """What was read.

    Attributes:
        comparisons: the good rows, in the source's order.
        bad_rows: the rows that could not be used, each with its line and the reason.
        format: name of the format they were in (see :mod:`trimtab.preferences.formats`).
        sha256: of the file's content, unpacked; for a hub data set, of the comparisons read.
        source: the file or data set.
        unpaired: sound rows of the score form that no other row shares a prompt with.
    """

    comparisons: list[Comparison]
    bad_rows: list[BadRow]
    format: str
    sha256: str
    source: str
    unpaired: list[BadRow]

    @property
    def bad_fraction(self) -> float:
        """Bad rows as a share of all comparisons that there would be without them."""
        total = len(self.comparisons) + len(self.bad_rows)
        return len(self.bad_rows) / total if total else 0.0

    @property
    def objectives(self) -> list[str]:
        """The names of the judged objectives, in order of first appearance."""
        return objectives_of(self.comparisons)


def objectives_of(comparisons: Iterable[Comparison]) -> list[str]:
    """Return the names of the judged objectives, in order of first appearance."""
    return list(dict.fromkeys(name for comparison in comparisons for name in comparison.labels))


def read_comparisons(
    source: str | Path,
    *,
    format: str = "auto",
    objective: str | None = None,
    limit: int | None = None,
    max_bad_fraction: float = 0.01,
    split: str | None = None,
    margin: float = 0.0,
    attributes: Sequence[str] | None = None,
    max_line_bytes: int = sources.MAX_LINE_BYTES,
) -> ReadResult:
    """Read preference data.

    Args:
        source: a ``.jsonl``, ``.json``, ``.csv``, ``.tsv`` or ``.parquet`` file, each also with ``.gz``, or the name
            of a hub data set (``owner/name``, ``owner/name:split``).
        format: a name from :data:`~trimtab.preferences.formats.FORMATS`, or ``"auto"`` to tell it from the columns.
        objective: what the one unnamed judgement of TRL and HH-RLHF rows is called (default ``"preferred"``).
        limit: keep the first so many good comparisons. Reading stops there, unless the bad rows met so far
            are over the threshold: then the rest of the file decides.
        max_bad_fraction: the largest share of bad rows, from 0 to 1, that is accepted.
        split: split of a hub data set (default ``"train"``).
        margin: two scores that differ by at most this are a tie (score forms only).
        attributes: the attributes to read scores for (score forms only; default all).
        max_line_bytes: a longer line is a bad row.

    Raises:
        DataError: nothing there to read, an unknown format, or more bad rows than accepted; the first are quoted.
        ConfigError: an option that cannot work.
    """
    _check_options(limit, max_bad_fraction, margin)
    name, rows = _open(source, split, max_line_bytes)
    first = list(itertools.islice(rows, _LOOKAHEAD))
    shown = [row.value for row in first if row.value is not None]
    everything = itertools.chain(first, rows)
    if not first:
        raise DataError(f"{name} is empty: it holds no rows.")
    if not shown:
        bad = [BadRow(name, row.line, row.problem) for row in everything if row.value is None]
        raise DataError(_too_many(bad, len(bad), name, max_bad_fraction))
    if format == "auto":
        format = formats.detect_format(shown, name)
    formats.check_columns(format, shown, name)
    options = _options(format, shown, objective, margin, attributes, name)
    comparisons, bad, unpaired = _collect(_outcomes(everything, format, options, name), limit, max_bad_fraction)
    result = ReadResult(comparisons, bad, format, "", name, unpaired)
    if result.bad_fraction > max_bad_fraction:
        raise DataError(_too_many(bad, len(bad) + len(comparisons), name, max_bad_fraction))
    if unpaired and not comparisons and not bad:
        raise DataError(f"{name} gives no comparison: no two of its {len(unpaired)} rows have the same prompt.")
    return replace(result, sha256=_digest(source, name, comparisons))


Outcome = Comparison | BadRow | None


def _outcomes(rows: Iterable[RawRow], format: str, options: Options, name: str) -> Iterator[tuple[int, Outcome]]:
    """Yield ``(line, comparison | bad row | None for a row without a partner)``."""
    convert = formats.FORMATS[format].convert
    place = Path(name).name
    if convert is None:
        for pair in pair_rows(iter(rows), options):
            where = f"{place}:{pair.first}+{pair.line}"
            yield pair.line, _located(pair.outcome, name, pair.line, where) if pair.outcome is not None else None
        return
    for row in rows:
        if row.value is None:
            yield row.line, BadRow(name, row.line, row.problem)
            continue
        try:
            for outcome in convert(row.value, options):
                yield row.line, _located(outcome, name, row.line, f"{place}:{row.line}")
        except RowProblem as problem:
            yield row.line, _located(problem, name, row.line, "")


def _located(outcome: Comparison | RowProblem, name: str, line: int, where: str) -> Comparison | BadRow:
    if isinstance(outcome, RowProblem):
        return BadRow(name, line, str(outcome))
    return replace(outcome, source=where)


def _collect(
    outcomes: Iterator[tuple[int, Outcome]], limit: int | None, max_bad_fraction: float
) -> tuple[list[Comparison], list[BadRow], list[BadRow]]:
    """Sort the outcomes, up to ``limit`` comparisons; see :func:`read_comparisons` on when reading stops."""
    comparisons: list[Comparison] = []
    bad: list[BadRow] = []
    unpaired: list[BadRow] = []
    beyond = 0
    for line, outcome in outcomes:
        full = limit is not None and len(comparisons) >= limit
        if full and len(bad) <= max_bad_fraction * (len(comparisons) + beyond + len(bad)):
            return comparisons, bad, unpaired
        if isinstance(outcome, BadRow):
            bad.append(outcome)
        elif outcome is None:
            unpaired.append(BadRow("", line, "no other row has this prompt"))
        elif full:
            beyond += 1
        else:
            comparisons.append(outcome)
    return comparisons, bad, unpaired


def _open(source: str | Path, split: str | None, max_line_bytes: int) -> tuple[str, Iterator[RawRow]]:
    text = str(source)
    if isinstance(source, str) and sources.is_hub_name(source):
        from trimtab.preferences import hub

        return text, hub.read_hub(source, split)
    if split is not None:
        raise ConfigError(f"A split ({split!r}) belongs to a hub data set, but {text} is a file: leave it out.")
    return text, sources.read_rows(Path(source).expanduser(), max_line_bytes=max_line_bytes)


def _options(
    format: str,
    rows: list[dict[str, Any]],
    objective: str | None,
    margin: float,
    attributes: Sequence[str] | None,
    source: str,
) -> Options:
    chosen = tuple(attributes) if attributes is not None else None
    if format == "scores":
        found = formats.score_columns(rows)
        chosen = chosen if chosen is not None else tuple(found)
        unknown = [name for name in chosen if not any(name in row for row in rows)]
        if unknown or not chosen:
            what = f"no column {unknown[0]!r}" if unknown else "no column of numbers"
            raise DataError(f"{source} has {what} to compare answers by: its number columns are {', '.join(found)}.")
    return Options(objective or "preferred", margin, chosen)


def _check_options(limit: int | None, max_bad_fraction: float, margin: float) -> None:
    if limit is not None and limit < 1:
        raise ConfigError(f"The limit is {limit}: keep at least 1 row, or leave it out to keep all.")
    if not 0.0 <= max_bad_fraction <= 1.0:
        raise ConfigError(f"The accepted share of bad rows is {max_bad_fraction}: give a number from 0 to 1.")
    if not 0.0 <= margin < float("inf"):
        raise ConfigError(f"The margin is {margin}: give a finite number of at least 0.")


def _too_many(bad: list[BadRow], total: int, source: str, accepted: float) -> str:
    quoted = "; ".join(f"line {row.line}: {row.reason}" for row in bad[:_QUOTED])
    more = f"; and {len(bad) - _QUOTED} more" if len(bad) > _QUOTED else ""
    return (
        f"{len(bad)} of {total} rows of {source} cannot be used ({len(bad) / total:.1%}, accepted {accepted:.1%}): "
        f"{quoted}{more}. Mend them, or accept more with max_bad_fraction."
    )


def _digest(source: str | Path, name: str, comparisons: list[Comparison]) -> str:
    path = Path(source).expanduser()
    if path.is_file():
        return sources.data_sha256(path)
    digest = hashlib.sha256(name.encode())
    for c in comparisons:
        record = [c.prompt, c.response_a, c.response_b, cast("Any", dict(c.labels))]
        digest.update(json.dumps(record, sort_keys=True).encode())
    return digest.hexdigest()
