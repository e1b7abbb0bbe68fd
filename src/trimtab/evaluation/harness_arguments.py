"""Model arguments as lm-eval hands them over: parsed a little, or not at all, or already as lists and mappings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from trimtab.errors import ConfigError

SEPARATOR = ";"
"""Between several values of one argument: commas and colons have a meaning to lm-eval and in paths."""


def as_list(value: Any, name: str) -> list[str]:
    """Return ``a;b``, ``[a,b]`` or a list as a list of texts.

    Raises:
        ConfigError: it is none of these.
    """
    if value is None or value == "":
        return []
    if isinstance(value, (list, tuple)):
        return [str(item) for item in cast("Sequence[Any]", value)]
    if isinstance(value, Mapping):
        raise ConfigError(f"{name}={value!r}: give one or several folders, a{SEPARATOR}b.")
    text = str(value).strip()
    if text.startswith("[") and text.endswith("]"):
        return [item.strip(" \"'") for item in text[1:-1].split(",") if item.strip()]
    return [item.strip() for item in text.split(SEPARATOR) if item.strip()]


def as_weights(value: Any, name: str, *, text: bool = False) -> dict[str, Any]:
    """Return ``x=1;y=2`` or a mapping as name → number, or name → text.

    Raises:
        ConfigError: an entry is not NAME=VALUE, or comes twice.
    """
    if value is None or value == "":
        return {}
    if isinstance(value, Mapping):
        pairs = [(str(key), item) for key, item in cast("Mapping[Any, Any]", value).items()]
    else:
        pairs = [_pair(entry, name) for entry in str(value).split(SEPARATOR) if entry.strip()]
    if len({key for key, _ in pairs}) < len(pairs):
        raise ConfigError(f"{name}={value!r} names something twice.")
    return {key: str(item) if text else as_number(item, f"{name} of {key}") for key, item in pairs}


def as_number(value: Any, name: str) -> float:
    """Return a number.

    Raises:
        ConfigError: it is none.
    """
    try:
        if isinstance(value, bool):
            raise TypeError("a truth value")
        return float(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} is {value!r}: give a number.") from error


def _pair(entry: str, name: str) -> tuple[str, str]:
    key, equals, value = (part.strip() for part in entry.rpartition("="))
    if not equals or not key or not value:
        raise ConfigError(f"{name} has {entry.strip()!r}: write NAME=VALUE{SEPARATOR}NAME=VALUE.")
    return key, value
