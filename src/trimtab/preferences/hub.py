"""Data sets of the hub, through the ``datasets`` library."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trimtab.errors import DataError
from trimtab.preferences.rows import RawRow

__all__ = ["read_hub"]


def read_hub(source: str, split: str | None) -> Iterator[RawRow]:
    """Yield the rows of a hub data set, ``owner/name`` or ``owner/name:split`` (default split ``train``).

    Raises:
        DataError: there is no such data set or split, or it cannot be fetched.
    """
    name, _, suffix = source.partition(":")
    wanted = split or suffix or "train"
    try:
        from datasets import load_dataset

        data: Any = load_dataset(name, split=wanted)
    except Exception as error:  # network, permission, unknown name, unknown split: each of its own class
        raise DataError(
            f"There is no file {source!r} here, and the hub gives no data set {name!r} with a split {wanted!r}: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error
    for number, row in enumerate(data, start=1):
        yield RawRow(number, {key: value for key, value in row.items() if value is not None})
