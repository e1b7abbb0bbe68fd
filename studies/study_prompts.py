"""Which prompts the studies answer: the same ones for every method, whatever else a study does."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

PROMPTS = Path(__file__).parent / "data" / "eval_prompts.jsonl.gz"
MOST_CHARACTERS = 300


def choose_prompts(sources: Container[str], others: Iterable[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Return prompts in an order that depends on their text only; where some are unsafe, half are.

    Args:
        sources: which of the committed prompts may be taken.
        others: more that may; equal texts count once.
        count: how many at most.
    """
    with gzip.open(PROMPTS, "rt", encoding="utf-8") as file:
        rows = [row for row in map(json.loads, file) if row["source"] in sources]
    last = {row["prompt"][-1]["content"]: row for row in [*rows, *others]}
    unique = {text: row for text, row in last.items() if len(text) <= MOST_CHARACTERS}
    ordered = [unique[text] for text in sorted(unique, key=lambda text: hashlib.sha256(text.encode()).hexdigest())]
    groups = [[r for r in ordered if r.get("prompt_is_safe", True) is safe] for safe in (True, False)]
    groups = [group for group in groups if group]
    share = -(-count // len(groups))
    return [row for group in groups for row in group[:share]][:count]
