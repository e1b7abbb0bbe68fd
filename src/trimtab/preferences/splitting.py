"""Splitting data by a hash of what the user says first: equal prompts never part, and a rerun changes nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from trimtab.errors import ConfigError
from trimtab.preferences.records import Comparison

__all__ = ["first_user_message", "prompt_key", "split_by_hash"]


def prompt_key(comparison: Comparison) -> str:
    """Return a string that is equal for equal prompts."""
    prompt = comparison.prompt
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True)


def first_user_message(comparison: Comparison) -> str:
    """Return what the user says first (plain text: the whole prompt), the unit that data is split by."""
    if isinstance(comparison.prompt, str):
        return comparison.prompt
    return next((turn["content"] for turn in comparison.prompt if turn["role"] == "user"), prompt_key(comparison))


def split_by_hash(
    comparisons: Iterable[Comparison], fraction: float, *, salt: str = ""
) -> tuple[list[Comparison], list[Comparison]]:
    """Return ``(rest, held out)``, where about ``fraction`` of the first user messages are held out.

    A message is held out if ``SHA-256(salt + message) / 2²⁵⁶ < fraction``: it does not depend on the other rows, so
    a file that grows keeps its split, and a larger fraction holds out all that a smaller one does.

    Args:
        comparisons: the data.
        fraction: share to hold out, between 0 and 1.
        salt: any text; another gives another split.

    Raises:
        ConfigError: the fraction is not between 0 and 1.
    """
    if not 0.0 < fraction < 1.0:
        raise ConfigError(f"The fraction to hold out is {fraction}: give a number between 0 and 1, such as 0.1.")
    threshold = int(fraction * 2**64)
    rest: list[Comparison] = []
    held_out: list[Comparison] = []
    for comparison in comparisons:
        digest = hashlib.sha256((salt + first_user_message(comparison)).encode()).digest()
        (held_out if int.from_bytes(digest[:8], "big") < threshold else rest).append(comparison)
    return rest, held_out
