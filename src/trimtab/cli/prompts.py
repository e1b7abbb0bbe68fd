"""Prompts for a command: one from a flag, or many from a file, checked before a model is loaded."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from trimtab.errors import ConfigError, DataError


@dataclass(frozen=True)
class PromptRow:
    """One prompt: its id in the output, and plain text or chat turns."""

    id: Any
    prompt: Any


def read_prompts(path: Path, *, raw: bool = False, system: str | None = None) -> list[PromptRow]:
    """Read the prompts of a file.

    ``.jsonl``: one object a line with ``prompt`` (text or turns) and maybe ``id``. ``.json``: a list of such objects or
    of texts. ``.txt``: one prompt a line. Each also with ``.gz``.

    Args:
        path: the file.
        raw: leave a text prompt as plain text instead of making it a user turn.
        system: a system message for every chat that has none.

    Raises:
        DataError: the file is missing, empty or damaged, or a row is not a prompt; the line is named.
    """
    rows = [_row(path, number, value, raw, system) for number, value in _values(path)]
    if not rows:
        raise DataError(f"{path} holds no prompts: give one JSON object a line, with a 'prompt'.")
    return rows


def read_answered(path: Path, *, raw: bool = False, system: str | None = None) -> list[tuple[PromptRow, str]]:
    """Read prompts with an answer to each: as :func:`read_prompts`, with a ``response`` in every row.

    Raises:
        DataError: as there, or a row has no ``response`` text.
    """
    found: list[tuple[PromptRow, str]] = []
    for number, value in _values(path):
        prompt = _row(path, number, value, raw, system)
        response = value.get("response")
        if not isinstance(response, str) or not response:
            raise DataError(f"{path}:{number} has no 'response', the text to score.")
        found.append((prompt, response))
    if not found:
        raise DataError(f"{path} holds no answers: give one JSON object a line, with 'prompt' and 'response'.")
    return found


def as_prompt(text: str, *, raw: bool, system: str | None) -> Any:
    """Return text as a user turn, after the system message if there is one; or, if ``raw``, as it is.

    Raises:
        ConfigError: a system message for plain text.
    """
    if raw and system is not None:
        raise ConfigError("--system needs a chat, but --raw makes the prompt plain text: leave one of them out.")
    return text if raw else _with_system([{"role": "user", "content": text}], system)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        if path.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DataError(
            f"{path} cannot be read ({reason}): give a .jsonl, .json or .txt file, or one of these with .gz."
        ) from error


def _values(path: Path) -> Iterator[tuple[int, Any]]:
    """Return (line or place, row) of a file in any of its forms."""
    kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if kind == ".txt":
        yield from ((number, {"prompt": line.strip()}) for number, line in _lines(path))
        return
    if kind != ".json":
        yield from ((number, _json(line, f"{path}:{number}")) for number, line in _lines(path))
        return
    rows = _json("".join(line for _, line in _lines(path)) or "[]", str(path))
    if not isinstance(rows, list):
        raise DataError(f"{path} is not a list of prompts: give [...] or one JSON object a line in a .jsonl file.")
    for number, row in enumerate(cast("list[Any]", rows), 1):
        yield number, {"prompt": row} if isinstance(row, str) else row


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{where} is not JSON ({error}).") from error


def _row(path: Path, number: int, row: Any, raw: bool, system: str | None) -> PromptRow:
    if not isinstance(row, dict) or "prompt" not in row:
        raise DataError(f"{path}:{number} is not an object with a 'prompt'.")
    content = cast("dict[str, Any]", row)
    prompt = content["prompt"]
    if isinstance(prompt, str):
        prompt = as_prompt(prompt, raw=raw, system=system)
    elif _is_chat(prompt):
        prompt = _with_system(prompt, system)
    else:
        raise DataError(f"{path}:{number}: 'prompt' must be a text or a list of turns with 'role' and 'content'.")
    return PromptRow(content.get("id", number), prompt)


def _is_chat(prompt: Any) -> bool:
    if not isinstance(prompt, list) or not prompt:
        return False
    return all(
        isinstance(turn, dict) and all(isinstance(turn.get(key), str) for key in ("role", "content"))
        for turn in cast("list[Any]", prompt)
    )


def _with_system(turns: list[dict[str, str]], system: str | None) -> list[dict[str, str]]:
    if system is None or turns[0]["role"] == "system":
        return turns
    return [{"role": "system", "content": system}, *turns]
