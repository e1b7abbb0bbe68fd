"""What a caller may give as prompts: one or many; text, chat turns, or the base's token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from trimtab.decoding.config import Sampling
from trimtab.errors import ConfigError
from trimtab.models import Base, Prompt, is_ids

Prompts = Prompt | Sequence[Prompt]
"""One prompt (text, chat turns or token ids), or a list of prompts."""


def as_prompts(prompts: Prompts) -> list[Prompt]:
    """Return one prompt or many as a list of prompts: a list of integers is one prompt of token ids.

    Raises:
        ConfigError: an item is neither text nor a list of chat turns nor one of token ids.
    """
    if isinstance(prompts, str) or is_ids(prompts) or _are_turns(prompts):
        return [cast("Prompt", prompts)]
    for item in prompts:
        if not (isinstance(item, str) or is_ids(item) or item == [] or _are_turns(item)):
            raise ConfigError(
                "A prompt is a text, a list of chat turns such as {'role': 'user', 'content': 'Hi'}, or a list of the "
                f"base's token ids, not {str(item)[:80]!r}."
            )
    return [item if isinstance(item, str) else list(cast("Any", item)) for item in cast("Sequence[Prompt]", prompts)]


def one_each(value: Any, count: int, name: str) -> list[Any]:
    """Return what is given once for all prompts, or once for each of them, as a list with one for each.

    Raises:
        ConfigError: there are more or fewer than prompts.
    """
    if not isinstance(value, (list, tuple)):
        return [value] * count
    values = list(cast("Sequence[Any]", value))
    if len(values) != count:
        raise ConfigError(f"There are {count} prompts but {len(values)} entries in {name}: give one, or one each.")
    return values


def check_options(sampling: Sampling, base: Base) -> None:
    """Refuse options that name tokens which a base does not have.

    Raises:
        ConfigError: names the option and the token.
    """
    for name, ids in (("logit_bias", sampling.logit_bias), ("stop_token_ids", sampling.stop_token_ids)):
        for token in ids:
            if token >= base.vocabulary_size:
                raise ConfigError(
                    f"{name} names token {token}, but the vocabulary of {base.id!r} has ids from 0 to "
                    f"{base.vocabulary_size - 1}."
                )


def _are_turns(item: Any) -> bool:
    if isinstance(item, str) or not isinstance(item, Sequence) or not item:
        return False
    return all(_is_message(turn) for turn in cast("Sequence[Any]", item))


def _is_message(turn: Any) -> bool:
    return isinstance(turn, Mapping) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
