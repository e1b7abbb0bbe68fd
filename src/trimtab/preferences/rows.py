"""What lies between a file and a :class:`~trimtab.preferences.records.Comparison`: raw rows and bad rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["BadRow", "RawRow", "RowProblem"]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that could not be used, and why.

    Attributes:
        source: the file or data set.
        line: line number from 1 (JSON lines, CSV), or row number from 1 (JSON, Parquet, hub).
        reason: what is wrong, in one line.
    """

    source: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.source}:{self.line}: {self.reason}"


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as the file holds it: its columns, or the problem that kept it from being read at all."""

    line: int
    value: dict[str, Any] | None
    problem: str = ""


class RowProblem(Exception):  # noqa: N818 - it is not an error of the program, but a finding about one row
    """Why one row cannot be used; becomes a :class:`BadRow`, never reaches the user as an exception."""
