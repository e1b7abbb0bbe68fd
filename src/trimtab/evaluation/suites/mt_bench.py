"""MT-bench: two turns a question; a JSON line a question with the answers, as FastChat's ``llm_judge`` reads them."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from trimtab.errors import DataError
from trimtab.evaluation.suites.common import Conversation, Question, parse, read_text, text_of

# At which temperature the benchmark draws answers: facts of its protocol, without which numbers are not comparable.
_TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
_OTHER = 0.7


class MtBench:
    """Reads ``question.jsonl`` and writes what belongs into ``model_answer/MODEL.jsonl``."""

    name = "mt_bench"
    suffix = ".jsonl"
    most_samples = None

    def read(self, path: Path) -> list[Question]:
        """Return the questions of a file with ``question_id``, ``category`` and ``turns`` on each line.

        Raises:
            DataError: it cannot be read, a row lacks one of them, or two rows have one id.
        """
        lines = [(n, line) for n, line in enumerate(read_text(path).split("\n"), 1) if line.strip()]
        questions = [_question(parse(line, f"{path}:{n}"), f"{path}:{n}") for n, line in lines]
        if not questions:
            raise DataError(f"{path} holds no questions: give MT-bench's question.jsonl.")
        if len({question.id for question in questions}) < len(questions):
            raise DataError(f"{path} has two questions of one 'question_id'.")
        return questions

    def write(self, questions: Sequence[Question], answers: Sequence[Sequence[Conversation]], model: str) -> str:
        """Return JSON lines with ``question_id``, ``answer_id``, ``model_id``, ``choices`` and ``tstamp``, by id.

        The answer's id is a digest of the rest, so that the same answers have the same ids.
        """
        lines: list[str] = []
        for question, conversations in sorted(zip(questions, answers, strict=True), key=lambda pair: pair[0].id):
            choices = [{"index": i, "turns": list(chat.turns)} for i, chat in enumerate(conversations)]
            content = json.dumps([question.id, model, choices])
            row: dict[str, Any] = {
                "question_id": question.id,
                "answer_id": hashlib.sha256(content.encode()).hexdigest()[:22],
                "model_id": model,
                "choices": choices,
                "tstamp": time.time(),
            }
            lines.append(json.dumps(row, allow_nan=False) + "\n")
        return "".join(lines)


def _question(row: Any, place: str) -> Question:
    category = text_of(row, "category", place)
    content = cast("dict[str, Any]", row)
    number, turns = content.get("question_id"), content.get("turns")
    if not isinstance(number, int):
        raise DataError(f"{place} has no 'question_id', a whole number.")
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) for turn in cast("list[Any]", turns)):
        raise DataError(f"{place} has no 'turns', a list of texts.")
    asked = content.get("required_temperature")
    temperature = float(asked) if isinstance(asked, (int, float)) else _TEMPERATURES.get(category, _OTHER)
    return Question(number, tuple(cast("list[str]", turns)), temperature, content)
