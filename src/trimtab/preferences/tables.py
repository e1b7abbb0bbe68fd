"""CSV and Parquet: tables of cells, where chat turns and labels must be packed into a cell and got out again.

What trimtab writes says in the column ``trimtab_json`` which cells of a row hold JSON, so that reading it back
guesses nothing. In other people's tables a cell is unpacked only if its column is one that holds structure and
the cell looks like it; a table that pandas wrote holds Python's own notation, which is understood too.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import math
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

from trimtab.errors import DataError
from trimtab.preferences.rows import RawRow

__all__ = ["JSON_COLUMN", "read_csv", "read_parquet", "write_csv", "write_parquet"]

JSON_COLUMN = "trimtab_json"
_TEXTS = frozenset({"prompt", "chosen", "rejected", "response_a", "response_b"})
_STRUCTURES = frozenset({"labels", "strengths", "completions", "scores"})


def read_csv(file: Any, source: str, *, delimiter: str = ",", limit: int) -> Iterator[RawRow]:
    """Yield the rows of a CSV file with a header; an empty cell is an absent column.

    Raises:
        DataError: the header is missing or names a column twice.
    """
    # Bytes that are not UTF-8 become lone surrogates, which the row check finds, so that one bad row stays one.
    text = file.text(encoding="utf-8-sig", errors="surrogateescape", newline="")
    csv.field_size_limit(max(csv.field_size_limit(), limit))
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    header = _read_header(reader, source)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield RawRow(line, None, f"not CSV: {error}")
            continue
        except (OSError, EOFError, zlib.error) as error:
            raise file.damaged(error) from error
        if cells:
            yield _csv_row(line, header, cells)


def read_parquet(file: Any, source: str) -> Iterator[RawRow]:
    """Yield the rows of a Parquet file; a null is an absent column.

    Raises:
        DataError: it is not a Parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        batches = cast("Any", pq).ParquetFile(io.BytesIO(file.read())).iter_batches(batch_size=1024)
        for batch in batches:
            for row in batch.to_pylist(maps_as_pydicts="lossy"):
                number += 1
                yield _checked_row(number, {k: v for k, v in row.items() if not _is_absent(v)})
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{source} is not a Parquet file that can be read: {' '.join(str(error).split())}") from error
    if number == 0:
        raise DataError(f"{source} is empty: it holds no rows.")


def write_csv(file: Any, rows: Sequence[dict[str, Any]], *, delimiter: str = ",") -> None:
    """Write rows as CSV: text as it is, everything else as JSON, named row by row in ``trimtab_json``."""
    columns = _columns(rows)
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    writer.writerow([*columns, JSON_COLUMN])
    for row in rows:
        packed = {name for name, value in row.items() if not _is_plain_cell(value)}
        cells = [_dump(row[c]) if c in packed else row.get(c, "") for c in columns]
        writer.writerow([*cells, _dump(sorted(packed))])
    text.flush()
    text.detach()


def write_parquet(file: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as Parquet: columns of one kind natively, the others as JSON, named in ``trimtab_json``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table: dict[str, Any] = {}
    packed: list[str] = []
    for column in _columns(rows):
        values = [row[column] for row in rows if column in row]
        array = _native(pa, [row.get(column) for row in rows], values)
        if array is None:
            packed.append(column)
            array = pa.array([_dump(row[column]) if column in row else None for row in rows], pa.string())
        table[column] = array
    if packed:
        table[JSON_COLUMN] = pa.array([_dump(packed)] * len(rows), pa.string())
    cast("Any", pq).write_table(pa.table(table), file)


def _native(pa: Any, cells: list[Any], values: list[Any]) -> Any:
    """Return an Arrow array that gives exactly ``cells`` back, or ``None`` where the column needs JSON."""
    kinds = {type(value) for value in values}
    if len(kinds) != 1 or kinds & {type(None), tuple} or any(value in ({}, []) for value in values):
        return None
    try:
        array = pa.array(cells)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        return None
    return array if array.to_pylist() == cells else None


def _is_plain_cell(value: Any) -> bool:
    """Return whether a CSV cell can hold ``value`` as it is: text, but not empty (that is absence), without NUL."""
    return isinstance(value, str) and value != "" and "\0" not in value


def _columns(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)


def _read_header(reader: Any, source: str) -> list[str]:
    try:
        header = [name.strip() for name in next(reader)]
    except (StopIteration, csv.Error) as error:
        raise DataError(f"{source} has no CSV header: its first line must name the columns.") from error
    twice = sorted({name for name in header if header.count(name) > 1 and name})
    if twice:
        raise DataError(f"{source} names the column {twice[0]!r} twice in its header: rename one.")
    return header


def _csv_row(line: int, header: list[str], cells: list[str]) -> RawRow:
    if len(cells) != len(header):
        return RawRow(line, None, f"{len(cells)} cells, but the header names {len(header)} columns")
    return _checked_row(line, {name: cell for name, cell in zip(header, cells, strict=True) if name and cell != ""})


def _checked_row(line: int, row: dict[str, Any]) -> RawRow:
    try:
        for value in row.values():
            if isinstance(value, str):
                value.encode("utf-8")
        return RawRow(line, _unpack(row))
    except UnicodeEncodeError:
        return RawRow(line, None, "invalid UTF-8")
    except (ValueError, RecursionError) as error:
        return RawRow(line, None, f"a cell that should hold JSON does not: {' '.join(str(error).split())[:100]}")


def _unpack(row: dict[str, Any]) -> dict[str, Any]:
    if JSON_COLUMN in row:
        packed = set(json.loads(row.pop(JSON_COLUMN)))
        return {name: json.loads(value) if name in packed else value for name, value in row.items()}
    return {name: _guess(name, value) for name, value in row.items()}


def _guess(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    start = value.lstrip()[:1]
    if not (name in _STRUCTURES and start in ("{", "[")) and not (name in _TEXTS and start == "["):
        return value
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if name in _STRUCTURES or _is_turns(found):
            return found
    return value


def _is_turns(value: Any) -> bool:
    turns = cast("list[Any]", value) if isinstance(value, list) else []
    return bool(turns) and all(isinstance(turn, dict) and "role" in turn for turn in turns)


def _is_absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
