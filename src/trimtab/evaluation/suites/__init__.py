"""Prompt sets of other tools: their questions read, answered, and written as the files that those tools judge."""

from __future__ import annotations

from collections.abc import Mapping

from trimtab.errors import ConfigError, did_you_mean
from trimtab.evaluation.suites.alpaca_eval import AlpacaEval
from trimtab.evaluation.suites.answering import answer_suite
from trimtab.evaluation.suites.common import Conversation, Question, Suite
from trimtab.evaluation.suites.mt_bench import MtBench

__all__ = ["SUITES", "Conversation", "Question", "Suite", "answer_suite", "get_suite"]

SUITES: Mapping[str, Suite] = {suite.name: suite for suite in (AlpacaEval(), MtBench())}
"""Suites by name."""


def get_suite(name: str) -> Suite:
    """Return a suite by its name; ``-`` and ``_`` are the same.

    Raises:
        ConfigError: there is none of that name.
    """
    suite = SUITES.get(name.strip().lower().replace("-", "_"))
    if suite is None:
        raise ConfigError(f"There is no suite {name!r}.{did_you_mean(name, SUITES)}")
    return suite
