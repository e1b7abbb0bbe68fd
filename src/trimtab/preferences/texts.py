"""The shapes a prompt and its two answers come in: plain text, chat turns, transcripts, with or without a prompt."""

from __future__ import annotations

import re
import unicodedata
from typing import Any, cast

from trimtab.preferences.records import Message, Text, response_text
from trimtab.preferences.rows import RowProblem

__all__ = ["assistant", "check_pair", "extract_prompt", "parse_transcript", "read_text", "split_pair", "user"]

_FIRST_UNSPACED_SCRIPT = 0x2E80  # from here on (CJK) words are not set apart by spaces, so any place may divide two
_MARKER = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def user(text: str) -> list[Message]:
    """Return ``text`` as a chat of one user turn."""
    return [{"role": "user", "content": text}]


def assistant(text: str) -> list[Message]:
    """Return ``text`` as an answer of one assistant turn."""
    return [{"role": "assistant", "content": text}]


def read_text(value: Any, column: str) -> Text:
    """Return a cell as plain text or as chat turns.

    Raises:
        RowProblem: it is missing, or of another shape.
    """
    if value is None:
        raise RowProblem(f"{column!r} is missing")
    if isinstance(value, str):
        return value
    turns = [value] if isinstance(value, dict) and "role" in value else value
    if not isinstance(turns, list):
        raise RowProblem(f"{column!r} is {_kind(value)}, not text or a list of messages")
    return [_read_turn(turn, i, column) for i, turn in enumerate(cast("list[Any]", turns), start=1)]


def split_pair(prompt: Text | None, a: Text, b: Text) -> tuple[Text, Text, Text]:
    """Return ``(prompt, a, b)`` all plain text or all chat turns, with no prompt left in the answers.

    The cases, as TRL tells them apart: no prompt (it is contained in both answers and taken out of them); a plain
    prompt beside whole conversations (taken out of the conversations; the plain one only repeats it). Two more are
    read as what they can only mean: a plain prompt beside assistant turns, and a chat beside plain answers.

    Raises:
        RowProblem: the two answers are of different shapes, or share no prompt.
    """
    if isinstance(a, str) != isinstance(b, str):
        raise RowProblem("one answer is plain text and the other is chat turns")
    if prompt is None:
        return extract_prompt(a, b)
    if isinstance(a, str) or isinstance(b, str):
        if isinstance(prompt, str):
            return prompt, a, b
        return prompt, assistant(response_text(a)), assistant(response_text(b))
    if isinstance(prompt, str):
        only_answers = all(turn["role"] == "assistant" for turn in [*a, *b])
        return (user(prompt), a, b) if only_answers else extract_prompt(a, b)
    n = len(prompt)
    if n and a[:n] == prompt and b[:n] == prompt:
        return prompt, a[n:], b[n:]
    return prompt, a, b


def extract_prompt(a: Text, b: Text) -> tuple[Text, Text, Text]:
    """Take the prompt that both answers begin with out of them (TRL's "implicit prompt").

    Chat turns: the longest run of equal leading turns. Plain text: the longest common prefix, cut back so that it
    ends where a word ends, that neither answer is left empty, and that a single space before the answer belongs to
    the answer, as in TRL. Answers that begin with the same words lose them to the prompt, so an explicit prompt
    is always better.

    Raises:
        RowProblem: nothing is shared, or nothing is left of an answer.
    """
    if isinstance(a, str) and isinstance(b, str):
        cut = _text_cut(a, b)
        return a[:cut], a[cut:], b[cut:]
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    if n == min(len(a), len(b)) and len(a) != len(b):
        raise RowProblem("one conversation is only the beginning of the other")
    if n == len(a):
        raise RowProblem("the two answers are identical")
    if n == 0:
        raise RowProblem("there is no 'prompt', and the two conversations share no first turn")
    return a[:n], a[n:], b[n:]


def parse_transcript(text: Any, column: str) -> tuple[list[Message], list[Message]]:
    r"""Return ``(prompt turns, answer turn)`` of an HH-RLHF transcript ``"\n\nHuman: …\n\nAssistant: …"``.

    White space around each turn is dropped.

    Raises:
        RowProblem: it is not such a transcript, or its last turn is not the assistant's.
    """
    if not isinstance(text, str):
        raise RowProblem(f"{column!r} is {_kind(text)}, not a transcript")
    before, *parts = _MARKER.split("\n\n" + text.lstrip("\n"))
    if before.strip() or not parts:
        raise RowProblem(f"the transcript in {column!r} does not begin with 'Human:'")
    turns: list[Message] = [
        {"role": _ROLES[name], "content": content.strip()}
        for name, content in zip(parts[::2], parts[1::2], strict=True)
    ]
    if turns[-1]["role"] != "assistant":
        raise RowProblem(f"the transcript in {column!r} does not end with an 'Assistant:' turn")
    return turns[:-1], turns[-1:]


def check_pair(prompt: Text, a: Text, b: Text) -> None:
    """Refuse what no model can learn from.

    Raises:
        RowProblem: empty prompt, empty answer, identical answers, or a user's turn inside an answer.
    """
    if not prompt or not response_text(prompt).strip():
        raise RowProblem("the prompt is empty")
    for answer, name in ((a, "first"), (b, "second")):
        if not isinstance(answer, str):
            others = sorted({turn["role"] for turn in answer} - {"assistant"})
            if others:
                raise RowProblem(
                    f"the {name} answer holds a {others[0]!r} turn, where only 'assistant' turns can stand"
                )
        if not response_text(answer).strip():
            raise RowProblem(f"the {name} answer is empty")
    if response_text(a) == response_text(b):
        raise RowProblem("the two answers are identical")


def _read_turn(turn: Any, i: int, column: str) -> Message:
    if not isinstance(turn, dict) or "role" not in turn or "content" not in turn:
        raise RowProblem(f"message {i} of {column!r} has no 'role' and 'content'")
    for key in ("role", "content"):
        if not isinstance(turn[key], str):
            raise RowProblem(f"{key!r} of message {i} of {column!r} is {_kind(turn[key])}, not text")
    # Tables fill the keys that a turn lacks with null; a chat template must see them as absent.
    return cast("Message", {key: value for key, value in cast("dict[str, Any]", turn).items() if value is not None})


def _text_cut(a: str, b: str) -> int:
    """Return the length of the prompt that the texts ``a`` and ``b`` share."""
    if a == b:
        raise RowProblem("the two answers are identical")
    shortest = min(len(a), len(b))
    cut = next((i for i in range(shortest) if a[i] != b[i]), shortest)
    while cut > 0 and not (_divides(a, cut) and _divides(b, cut) and a[cut:].strip() and b[cut:].strip()):
        cut -= 1
    if cut > 1 and a[cut - 1] == " ":
        cut -= 1
    if not a[:cut].strip():
        raise RowProblem("there is no 'prompt', and the two answers share no beginning")
    return cut


def _divides(text: str, i: int) -> bool:
    """Return whether a word may end before ``text[i]``."""
    if i >= len(text):
        return True
    before, after = text[i - 1], text[i]
    if before == "\u200d" or after == "\u200d" or unicodedata.category(after).startswith("M"):
        return False
    return not (_in_word(before) and _in_word(after))


def _in_word(character: str) -> bool:
    return (character.isalnum() or character in "'’_") and ord(character) < _FIRST_UNSPACED_SCRIPT


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", int: "a number", float: "a number", bool: "true or false"}
    return "null" if value is None else names.get(cast("type[Any]", type(value)), type(value).__name__)
