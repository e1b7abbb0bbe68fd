"""From a file (or a hub data set) to raw rows, each with its line number. Nothing here knows what a row means."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from trimtab.errors import DataError
from trimtab.preferences.rows import RawRow

__all__ = ["MAX_LINE_BYTES", "data_sha256", "is_hub_name", "read_rows", "suffix_of"]

MAX_LINE_BYTES = 16 * 1024 * 1024
"""A longer line is no preference row but a damaged file; it is reported and skipped without being held in memory."""

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(:[\w.\[\]%+-]+)?")
_SURROGATE_ESCAPE = re.compile(rb"\\[uU][dD][89a-fA-F]")


def suffix_of(path: Path) -> str:
    """Return the suffix that says what a file holds, without ``.gz``."""
    name = path.name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


def is_hub_name(source: str) -> bool:
    """Return whether ``source`` can only be the name of a hub data set (``owner/name`` or ``owner/name:split``)."""
    return not Path(source).expanduser().exists() and not suffix_of(Path(source)) and bool(_HUB_NAME.fullmatch(source))


def data_sha256(paths: str | Path | Iterable[str | Path]) -> str:
    """Return a SHA-256 (hex) of what the files hold, whether gzipped or not.

    For one file it is the hash of its content (``zcat FILE | sha256sum``); for several, the hash of their
    hashes, one a line, in the given order.

    Raises:
        DataError: a file cannot be read.
    """
    one = isinstance(paths, (str, Path))
    digests = [_file_sha256(Path(p).expanduser()) for p in ([paths] if one else paths)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def read_rows(path: Path, *, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[RawRow]:
    """Yield the rows of a local file.

    Raises:
        DataError: no such file, a folder, an empty or binary file, an unknown suffix, a damaged archive.
    """
    from trimtab.preferences import tables

    suffix = suffix_of(path)
    with _open(path) as file:
        if suffix == ".parquet":
            yield from tables.read_parquet(file, str(path))
            return
        _refuse_binary(file, path)
        if suffix in (".csv", ".tsv"):
            yield from tables.read_csv(
                file, str(path), delimiter="\t" if suffix == ".tsv" else ",", limit=max_line_bytes
            )
        elif suffix == ".json" and _first_character(file) == b"[":
            yield from _read_json(file, path)
        elif suffix:
            yield from _read_lines(file, max_line_bytes)
        else:
            raise DataError(f"{path} has no suffix trimtab knows: use one of {', '.join(SUFFIXES)} (or one with .gz).")


def _open(path: Path) -> _Checked:
    if not path.exists():
        raise DataError(f"There is no file {path}: check the path{_nearby(path)}.")
    if path.is_dir():
        raise DataError(f"{path} is a folder, not a data file: name the file in it{_files_in(path)}.")
    try:
        raw = path.open("rb")
        start = raw.read(2)
        raw.seek(0)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not start:
        raw.close()
        raise DataError(f"{path} is empty: it holds no rows.")
    # The content decides, not the name: a download that was unpacked on the way keeps its .gz.
    return _Checked(gzip.GzipFile(fileobj=raw) if start == b"\x1f\x8b" else raw, raw, path)


class _Checked:
    """An open file whose every failure to read is a :class:`DataError` that names it."""

    def __init__(self, file: Any, raw: BinaryIO, path: Path) -> None:
        self._file, self._raw, self._path = file, raw, path

    def __enter__(self) -> _Checked:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._raw.close()

    def read(self, size: int = -1) -> bytes:
        try:
            return cast("bytes", self._file.read(size))
        except (OSError, EOFError, zlib.error) as error:
            raise self.damaged(error) from error

    def readline(self, size: int = -1) -> bytes:
        try:
            return cast("bytes", self._file.readline(size))
        except (OSError, EOFError, zlib.error) as error:
            raise self.damaged(error) from error

    def rewind(self) -> None:
        self._file.seek(0)

    def text(self, **options: Any) -> io.TextIOWrapper:
        return io.TextIOWrapper(self._file, **options)

    def damaged(self, error: Exception) -> DataError:
        what = "the gzip archive is damaged or cut short" if self._file is not self._raw else "the file cannot be read"
        return DataError(f"{self._path}: {what} ({' '.join(str(error).split())}): fetch or write it again.")


def _refuse_binary(file: _Checked, path: Path) -> None:
    start = file.read(4096)
    file.rewind()
    if not start.strip():
        raise DataError(f"{path} is empty: it holds no rows.")
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path} is UTF-16 text: save it as UTF-8.")
    if b"\0" in start:
        raise DataError(f"{path} is a binary file, not text: trimtab reads {', '.join(SUFFIXES)}, each also as .gz.")


def _first_character(file: _Checked) -> bytes:
    start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    file.rewind()
    return start


def _read_lines(file: _Checked, limit: int) -> Iterator[RawRow]:
    number = 0
    while line := file.readline(limit + 1):
        number += 1
        if len(line) > limit and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = file.readline(limit)
            yield RawRow(number, None, f"the line is longer than {limit:,} bytes")
        elif number == 1 and line.startswith(b"\xef\xbb\xbf"):
            yield _parse_line(number, line[3:])
        elif line.strip():
            yield _parse_line(number, line)


def _parse_line(number: int, line: bytes) -> RawRow:
    try:
        value = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
        if _SURROGATE_ESCAPE.search(line):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        return RawRow(number, None, _json_problem(error))
    if not isinstance(value, dict):
        return RawRow(number, None, f"a row must be a JSON object, this is {type(value).__name__}")
    return RawRow(number, cast("dict[str, Any]", value))


def _json_problem(error: Exception) -> str:
    match error:
        case UnicodeDecodeError():
            return f"invalid UTF-8 at byte {error.start}"
        case UnicodeEncodeError():
            return "a \\u escape is half of a pair, which is no character"
        case json.JSONDecodeError():
            return f"not JSON: {error.msg} at column {error.colno}"
        case RecursionError():
            return "not JSON that can be read: nested too deeply"
        case _:
            return f"not JSON: {error}"


def _read_json(file: _Checked, path: Path) -> Iterator[RawRow]:
    raw = file.read()
    try:
        value = json.loads(raw.decode("utf-8-sig"), parse_constant=_refuse_constant)
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON that can be read: {' '.join(str(error).split())[:200]}.") from error
    for number, row in enumerate(cast("list[Any]", value), start=1):
        ok = isinstance(row, dict)
        yield RawRow(
            number, row if ok else None, "" if ok else f"a row must be an object, this is {type(row).__name__}"
        )


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with _open(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _nearby(path: Path) -> str:
    import difflib

    parent = path.parent
    names = [p.name for p in parent.iterdir()] if parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _files_in(path: Path) -> str:
    names = sorted(p.name for p in path.iterdir() if suffix_of(p))[:3]
    return f" (it has {', '.join(names)})" if names else ""
