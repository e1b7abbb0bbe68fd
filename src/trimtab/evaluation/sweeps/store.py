"""The run folder: answers kept as they come, found again by what they depend on, and never half a file.

::

    run/
      samples.jsonl     one object a setting, prompt and sample; grows while answers are written, sorted at the end
      tokens.jsonl      what base, guidance and objectives think of every token, of the answers that the report colours
      metrics.json      every number of the report (docs/evaluation.md describes it)
      report.html       the report, one file
      judgements.jsonl  a judge's replies by a digest of what was asked; no prompts
      verdicts.jsonl    a judge's verdict on every pair
      suites/           answers in the files of a suite's own tool, one a setting
      config.yaml       the options; 'trimtab evaluate --config' repeats the run
      plots/            reward against KL, Pareto front, length; PNG and SVG
      cache/            answers of earlier settings, and those that a best-of-n method picked from
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from trimtab.errors import OutputError
from trimtab.files import write_whole

SAMPLES, TOKENS, METRICS, REPORT, CONFIG = "samples.jsonl", "tokens.jsonl", "metrics.json", "report.html", "config.yaml"
JUDGEMENTS, VERDICTS = "judgements.jsonl", "verdicts.jsonl"
_CACHE, _CACHED_TOKENS = "cache/samples.jsonl", "cache/tokens.jsonl"
_LOCK = ".lock"
_MARK = ".trimtab-evaluate"

Record = dict[str, Any]


def content_key(content: Mapping[str, Any]) -> str:
    """Return a hash of JSON values, equal for equal values in any order of keys."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def check_folder(path: Path) -> None:
    """Refuse a folder that a run may not write to, before any work.

    Raises:
        OutputError: it is a file, or holds what is not a run's.
    """
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is a file: name a folder as --output-dir.")
    if path.is_dir() and any(path.iterdir()) and not (path / _MARK).exists():
        raise OutputError(f"{path} holds files that are not of 'trimtab evaluate': name a new folder as --output-dir.")


def known_answers(path: Path | None) -> dict[str, Record]:
    """Return key → record of the answers that a folder has, without changing it; nothing where there is no folder."""
    if path is None:
        return {}
    folder = RunFolder(path)
    records = [r for name in (_CACHE, SAMPLES) if (path / name).exists() for r in folder.records_of(path / name)]
    return {record["key"]: record for record in records}


class RunFolder:
    """A run's folder, held by one process at a time. A context manager.

    Attributes:
        path: the folder.
        damaged: lines that could not be read; their answers are written again.
    """

    def __init__(self, path: Path) -> None:
        """Name the folder, without touching it."""
        self.path = path
        self.damaged = 0
        self._known: dict[str, dict[str, Record]] = {}
        self._lock: Any = None
        self._files: dict[str, int] = {}

    def __enter__(self) -> Self:
        """Make, lock and read the folder.

        Raises:
            OutputError: it holds something else, another process writes to it, or it cannot be written.
        """
        from filelock import FileLock, Timeout

        try:
            self._make()
            self._lock = FileLock(str(self.path / _LOCK))
            self._lock.acquire(timeout=0)
            for name in (_CACHE, SAMPLES, _CACHED_TOKENS, TOKENS):
                self._known[name] = {}
                self._read(name)
            return self
        except Timeout:
            raise OutputError(
                f"Another process writes to {self.path}: wait for it, or name another --output-dir."
            ) from None
        except OSError as error:
            self.close()
            if isinstance(error, OutputError):
                raise
            raise self._cannot(error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let others have it."""
        self._close_files()
        if self._lock is not None:
            self._lock.release()

    def known(self) -> dict[str, Record]:
        """Return key → record of every answer that is here, of whatever setting."""
        return {**self._known[_CACHE], **self._known[SAMPLES]}

    def known_tokens(self) -> dict[str, Record]:
        """Return key → token notes."""
        return {**self._known[_CACHED_TOKENS], **self._known[TOKENS]}

    def append(self, record: Record) -> None:
        """Add an answer: one line, written in one call and forced to disk, so that a killed run has it.

        Raises:
            OutputError: it cannot be written.
        """
        self._append(SAMPLES, record)

    def append_tokens(self, record: Record) -> None:
        """Add an answer's token notes, likewise.

        Raises:
            OutputError: they cannot be written.
        """
        self._append(TOKENS, record)

    def finish(self, samples: Sequence[Record]) -> None:
        """Write the samples in their order, and move what is no part of them to the cache.

        Args:
            samples: all samples of the run, scored.

        Raises:
            OutputError: a file cannot be written; it is then as it was.
        """
        self._close_files()
        used = {record["key"] for record in samples}
        tokens = self.known_tokens()
        self._rest(_CACHE, (record for key, record in self.known().items() if key not in used))
        self._rest(_CACHED_TOKENS, (record for key, record in tokens.items() if key not in used))
        write_whole(self.path / SAMPLES, "".join(_line(record) for record in samples))
        write_whole(self.path / TOKENS, "".join(_line(record) for key, record in tokens.items() if key in used))

    def _rest(self, name: str, records: Iterable[Record]) -> None:
        """Write what other settings left, unless there never was any."""
        content = "".join(map(_line, records))
        if content or (self.path / name).exists():
            (self.path / name).parent.mkdir(exist_ok=True)
            write_whole(self.path / name, content)

    def write_lines(self, name: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Write a file of one object a line, whole or not at all; without records there is no such file.

        Raises:
            OutputError: it cannot be written.
        """
        if records:
            write_whole(self.path / name, "".join(_line(dict(record)) for record in records))
        else:
            (self.path / name).unlink(missing_ok=True)

    def clear(self, name: str, suffix: str) -> None:
        """Take away the files of one kind in a subfolder, which are written anew: those of settings that are gone.

        Raises:
            OutputError: they cannot be taken away.
        """
        try:
            for path in sorted((self.path / name).glob(f"*{suffix}")):
                path.unlink()
        except OSError as error:
            raise self._cannot(error) from error

    def write(self, name: str, content: str | bytes) -> Path:
        """Write one of the folder's files, whole or not at all.

        Raises:
            OutputError: it cannot be written.
        """
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
        return path

    def _append(self, name: str, record: Record) -> None:
        try:
            if name not in self._files:
                self._files[name] = os.open(self.path / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            content = _line(record).encode()
            if os.write(self._files[name], content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._files[name])
        except OSError as error:
            raise self._cannot(error) from error
        self._known[name][record["key"]] = record

    def _close_files(self) -> None:
        for file in self._files.values():
            os.close(file)
        self._files = {}

    def _make(self) -> None:
        check_folder(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / _MARK).touch()

    def _read(self, name: str) -> None:
        """Read a file's records; a last line without an end, which a killed process left, is cut off."""
        path = self.path / name
        if not path.exists():
            return
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            self.damaged += 1
            os.truncate(path, len(whole))
        for record in self._records(whole):
            drawn = _as_drawn(record)
            if drawn is not None:
                self._known[name][record["key"]] = drawn

    def records_of(self, path: Path) -> Iterator[Record]:
        """Return the records in a file; what is none is counted as damaged."""
        return self._records(path.read_bytes())

    def _records(self, content: bytes) -> Iterator[Record]:
        for line in content.splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if isinstance(record, dict) and isinstance(record.get("key"), str):
                yield record
            elif line.strip():
                self.damaged += 1

    def _cannot(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self.path} cannot be written ({error.strerror or error}): free space there, or name another "
            "--output-dir. What was written so far is used by the next run."
        )


def _as_drawn(record: Record) -> Record | None:
    """Return an answer as it was before a best-of-n method picked it, for others that may have the same answer."""
    if "picked_from" not in record:
        return record
    if "drawn" not in record:
        return None
    own = {name: value for name, value in record.items() if name not in ("picked_from", "drawn")}
    return {**own, "diagnostics": record["drawn"]}


def _line(record: Record) -> str:
    """Return one line of JSON; what some readers take for the end of a line is escaped."""
    text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    for character in "\u2028\u2029\x85":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text + "\n"
