"""Configuration values checked the same way wherever they come from: a file, flags, or keyword arguments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from trimtab.errors import ConfigError, did_you_mean

M = TypeVar("M", bound=BaseModel)


def validated(model: type[M], values: Mapping[str, Any], *, source: str = "") -> M:
    """Return the config that ``values`` describe.

    Args:
        model: the config's pydantic model.
        values: option name → value.
        source: where the values were read, for messages.

    Raises:
        ConfigError: unknown key (the nearest known one is named), or a value that cannot work.
    """
    refuse_unknown(values, model.model_fields, source=source)
    try:
        return model(**values)
    except ValidationError as error:
        raise ConfigError(validation_line(error)) from error


def refuse_unknown(keys: Iterable[str], known: Iterable[str], *, what: str = "option", source: str = "") -> None:
    """Refuse keys that nobody reads.

    Raises:
        ConfigError: names the first unknown key and the nearest known one.
    """
    names = set(known)
    for key in keys:
        if key not in names:
            raise ConfigError(f"Unknown {what} {key!r}{f' in {source}' if source else ''}.{did_you_mean(key, names)}")


def validation_line(error: ValidationError) -> str:
    """Return pydantic's findings as one line: ``option: what is wrong (got value)``."""
    parts: list[str] = []
    for item in error.errors():
        where = ".".join(str(p) for p in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "missing":
            parts.append(f"{where} is required: give --{where.replace('_', '-')}, or {where!r} in the config")
            continue
        got = "" if item["type"] == "value_error" else f" (got {item['input']!r})"
        parts.append(f"{where}: {message}{got}" if where else message)
    return "; ".join(parts)
