"""What all suites share: questions of one or more turns, and the answers to them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from trimtab.errors import ConfigError, DataError


@dataclass(frozen=True)
class Question:
    """One question of a suite.

    Attributes:
        id: as the suite's file has it.
        turns: what the user says, turn by turn; each after the answer to the one before.
        temperature: at which the suite draws its answers; ``None`` where it does not say.
        row: the whole row of the suite's file.
    """

    id: Any
    turns: tuple[str, ...]
    temperature: float | None = None
    row: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Conversation:
    """One sequence of answers to the turns of a question.

    Attributes:
        turns: the answers, without the space around them, as the suites' own programs write them.
        finish_reasons: why each ended; ``"no room"`` for one that could not begin, as the conversation so far fills
            the context: its text is empty.
    """

    turns: tuple[str, ...]
    finish_reasons: tuple[str, ...] = ()


class Suite(Protocol):
    """A prompt set, and the file format of the tool that judges answers to it."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def suffix(self) -> str:
        """How the name of its answer file ends, without which its tool does not read it."""
        ...

    @property
    def most_samples(self) -> int | None:
        """Most answers a question that its format holds; ``None`` for any number."""
        ...

    def read(self, path: Path) -> list[Question]:
        """Return the questions of the suite's own file.

        Raises:
            DataError: it cannot be read, or holds something else.
        """
        ...

    def write(self, questions: Sequence[Question], answers: Sequence[Sequence[Conversation]], model: str) -> str:
        """Return the text of the answer file.

        Args:
            questions: Q questions.
            answers: Q lists of conversations.
            model: what the model is called in the file.
        """
        ...


def check_samples(suite: Suite, samples: int) -> None:
    """Refuse more answers a question than the suite's format holds.

    Raises:
        ConfigError: there are more.
    """
    if suite.most_samples is not None and samples > suite.most_samples:
        raise ConfigError(f"The format of {suite.name} has {suite.most_samples} answer a question: leave --n out.")


def check_output(suite: Suite, path: Path) -> None:
    """Refuse an answer file that the suite's tool would not read.

    Raises:
        ConfigError: its name ends differently.
    """
    if path.suffix != suite.suffix:
        raise ConfigError(f"The suite {suite.name} reads answers from {suite.suffix} files: name {path} like that.")


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DataError(f"{path} cannot be read ({reason}): give the suite's file of questions.") from error


def parse(text: str, place: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        DataError: it is none.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{place} is not JSON ({error}).") from error


def text_of(row: Any, key: str, place: str) -> str:
    """Return a row's text under a key.

    Raises:
        DataError: the row is no object, or there is no such text.
    """
    value = cast("dict[str, Any]", row).get(key) if isinstance(row, dict) else None
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{place} is not an object with a text {key!r}.")
    return value
