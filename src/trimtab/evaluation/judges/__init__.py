"""A language model as a judge: which of two answers is better, asked in both orders, with what that is worth."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.evaluation.judges.asking import Estimate, ask_about, estimate, judge_pairs
    from trimtab.evaluation.judges.config import JudgeConfig
    from trimtab.evaluation.judges.independence import judge_dependence
    from trimtab.evaluation.judges.pairs import AnswerPair, pair_up, read_answers
    from trimtab.evaluation.judges.report import JudgedPair, JudgeReport
    from trimtab.evaluation.judges.verdicts import read_probabilities, read_verdict

__all__ = [
    "AnswerPair",
    "Estimate",
    "JudgeConfig",
    "JudgeReport",
    "JudgedPair",
    "ask_about",
    "estimate",
    "judge_dependence",
    "judge_pairs",
    "pair_up",
    "read_answers",
    "read_probabilities",
    "read_verdict",
]

# Imported when first used: the command line reads the config's options alone.
_HOMES = {
    "AnswerPair": "pairs",
    "Estimate": "asking",
    "JudgeConfig": "config",
    "JudgeReport": "report",
    "JudgedPair": "report",
    "ask_about": "asking",
    "estimate": "asking",
    "judge_dependence": "independence",
    "judge_pairs": "asking",
    "pair_up": "pairs",
    "read_answers": "pairs",
    "read_probabilities": "verdicts",
    "read_verdict": "verdicts",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
