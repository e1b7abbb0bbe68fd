"""From a judge's reply to its verdict."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

Verdict = Literal["A", "B", "tie"]

_WORD = r"(?:answer\s+|response\s+|option\s+)?(?P<word>(?:an?\s+)?(?:tie|tied|draw|equal)|neither|both|A|B)"
_NAMED = re.compile(
    rf"\bverdict\b\s*(?:is)?\s*[:=-]?\s*(?:is\s+)?[\[(\"'<]*\s*{_WORD}\b(?P<rest>[^\n]*)", re.IGNORECASE
)
_BRACKETED = re.compile(r"\[\[\s*(?P<word>A|B|C|tie)\s*\]\](?P<rest>)", re.IGNORECASE)
_ALONE = re.compile(rf"^[\[(\"'<]*\s*{_WORD}\s*[\])\"'>]*[.!]?(?P<rest>)$", re.IGNORECASE)
_UNDECIDED = re.compile(r"^\s*(?:/|\||,|or\b|and\b)\s*(?:answer\s+)?(?:A|B|tie)\b", re.IGNORECASE)
_THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.IGNORECASE | re.DOTALL)
_MARKS = str.maketrans("", "", "*_`#")


def read_verdict(reply: str) -> Verdict | None:
    """Return the verdict that a reply ends with; ``None`` if it has none, or does not decide.

    Read are, in this order: the last ``Verdict: X``, the last ``[[X]]``, and a reply, or last line, that is the
    verdict alone. What stands between ``<think>`` tags, and Markdown's marks, do not count.
    """
    text = _THOUGHT.sub("", reply).translate(_MARKS).strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    for pattern in (_NAMED, _BRACKETED):
        found = list(pattern.finditer(text))
        if found:
            return _verdict(found[-1])
    alone = _ALONE.match(lines[-1])
    return _verdict(alone) if alone else None


def read_probabilities(alternatives: Sequence[Mapping[str, Any]]) -> float | None:
    """Return P(A) / (P(A) + P(B)) from the alternatives to a reply's first token; ``None`` if neither is among them.

    Args:
        alternatives: objects with ``token`` and ``logprob``, as the chat API lists them in ``top_logprobs``.
    """
    share = {"A": 0.0, "B": 0.0}
    for item in alternatives:
        token, value = item.get("token"), item.get("logprob")
        letter = str(token).strip(" \t\n*_`\"'([Ġ▁").upper()
        if letter in share and isinstance(value, (int, float)) and math.isfinite(value):
            share[letter] += math.exp(value)
    total = sum(share.values())
    return share["A"] / total if total else None


def first_alternatives(choice: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return the alternatives to the first token of a choice that says anything; none if the endpoint gave none."""
    content = cast("Any", (choice.get("logprobs") or {}).get("content")) or []
    for token in content:
        if str(token.get("token", "")).strip():
            return token.get("top_logprobs") or [token]
    return []


def _verdict(found: re.Match[str]) -> Verdict | None:
    if _UNDECIDED.match(found["rest"] or ""):
        return None
    word = found["word"].upper()
    return cast("Verdict", word) if word in ("A", "B") else "tie"
