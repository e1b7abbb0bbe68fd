"""Answers of two systems to the same prompts, read from files and put beside each other."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from trimtab.errors import DataError

_Key = tuple[str, int]


@dataclass(frozen=True)
class AnswerPair:
    """Two answers to one prompt.

    Attributes:
        id: of the prompt, and of the sample where there are several.
        prompt: plain text or chat turns.
        a: the first system's answer.
        b: the second one's.
        group: what several pairs of one prompt have in common; ``""`` for a pair that is alone.
    """

    id: str
    prompt: Any
    a: str
    b: str
    group: str = ""

    @property
    def prompt_text(self) -> str:
        """The prompt as one text, chat turns with the role before each."""
        if isinstance(self.prompt, str):
            return self.prompt
        turns = cast("list[dict[str, str]]", self.prompt)
        if len(turns) == 1:
            return turns[0]["content"]
        return "\n\n".join(f"[{turn['role']}]\n{turn['content']}" for turn in turns)


def read_answers(path: Path) -> dict[_Key, tuple[Any, str]]:
    """Return (prompt's id, sample) → (prompt, answer).

    Args:
        path: JSON lines of ``trimtab generate --output`` (``.jsonl``, ``.jsonl.gz``: ``id``, ``prompt``, ``response``,
            maybe ``sample``), or a JSON list with ``instruction`` and ``output`` as AlpacaEval has them (``.json``).

    Raises:
        DataError: it cannot be read, holds something else, or has two answers of one id and sample.
    """
    found: dict[_Key, tuple[Any, str]] = {}
    for place, row in _rows(path):
        content = cast("dict[str, Any]", row) if isinstance(row, dict) else {}
        if "instruction" in content and "prompt" not in content:
            content = {**content, "prompt": content["instruction"], "response": content.get("output")}
        prompt, answer = content.get("prompt"), content.get("response")
        if not isinstance(answer, str) or not (isinstance(prompt, str) or _is_chat(prompt)):
            raise DataError(f"{path}:{place} has no 'prompt' (text or turns) and 'response' (text).")
        key = (str(content.get("id", place)), int(content.get("sample") or 0))
        if key in found:
            raise DataError(f"{path}:{place}: there is another answer of id {key[0]!r}, sample {key[1]}.")
        found[key] = (prompt, answer)
    if not found:
        raise DataError(f"{path} holds no answers.")
    return found


def pair_up(
    a: Mapping[_Key, tuple[Any, str]], b: Mapping[_Key, tuple[Any, str]], *, limit: int | None = None
) -> list[AnswerPair]:
    """Return the pairs of answers to the same prompts, in the order of ``a``.

    Raises:
        DataError: an answer has no counterpart, or the prompts of one id differ.
    """
    for one, other, where in ((a, b, "first"), (b, a, "second")):
        alone = [key for key in one if key not in other]
        if alone:
            raise DataError(
                f"{len(alone)} answers of the {where} file have no counterpart in the other (id {alone[0][0]!r}, "
                f"sample {alone[0][1]}): answer the same prompts with both."
            )
    pairs: list[AnswerPair] = []
    for key, (prompt, answer) in a.items():
        if b[key][0] != prompt:
            raise DataError(f"The prompts of id {key[0]!r} differ: answer the same prompts with both.")
        several = any(sample for _, sample in a)
        name = f"{key[0]}#{key[1]}" if several else key[0]
        pairs.append(AnswerPair(name, prompt, answer, b[key][1], group=key[0] if several else ""))
    return pairs[:limit]


def _rows(path: Path) -> list[tuple[int, Any]]:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DataError(f"{path} cannot be read ({reason}): give what 'trimtab generate --output' wrote.") from error
    try:
        if path.suffix == ".json":
            return list(enumerate(json.loads(text)))
        return [(n, json.loads(line)) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is not JSON ({error}).") from error


def _is_chat(prompt: Any) -> bool:
    if not isinstance(prompt, Sequence) or not prompt:
        return False
    return all(
        isinstance(turn, dict) and all(isinstance(turn.get(key), str) for key in ("role", "content"))
        for turn in cast("list[Any]", prompt)
    )
