"""AlpacaEval: one instruction, one answer; a JSON list of both, which ``alpaca_eval`` compares with a reference."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trimtab.errors import DataError
from trimtab.evaluation.suites.common import Conversation, Question, parse, read_text, text_of


class AlpacaEval:
    """Reads the evaluation set (``alpaca_eval.json``, or any model's outputs on it) and writes ``model_outputs``."""

    name = "alpaca_eval"
    suffix = ".json"
    most_samples = 1

    def read(self, path: Path) -> list[Question]:
        """Return the instructions of a JSON list of objects.

        Raises:
            DataError: it cannot be read, or a row has no ``instruction``.
        """
        rows = parse(read_text(path), str(path))
        if not isinstance(rows, list) or not rows:
            raise DataError(f"{path} is not a JSON list of objects with an 'instruction'.")
        return [
            Question(number, (text_of(row, "instruction", f"{path}: row {number}"),), row=row)
            for number, row in enumerate(rows)
        ]

    def write(self, questions: Sequence[Question], answers: Sequence[Sequence[Conversation]], model: str) -> str:
        """Return a JSON list with ``dataset`` (where the set has it), ``instruction``, ``output`` and ``generator``.

        ``alpaca_eval`` joins it with the reference's outputs by ``instruction``, so that is left as it was read.
        """
        rows: list[dict[str, Any]] = []
        for question, conversations in zip(questions, answers, strict=True):
            known = {"dataset": question.row["dataset"]} if "dataset" in question.row else {}
            (conversation,) = conversations
            rows.append(
                {
                    **known,
                    "instruction": question.turns[0],
                    "output": conversation.turns[0],
                    "generator": model,
                }
            )
        return json.dumps(rows, indent=2, allow_nan=False) + "\n"
