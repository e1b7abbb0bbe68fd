"""Whether a request has room: in the contexts of base and guides, in the cache, and by what the server allows."""

from __future__ import annotations

from trimtab.engine import Engine
from trimtab.engine.answers import Answer
from trimtab.engine.readings import Reading
from trimtab.engine.requests import BASE
from trimtab.errors import PromptTooLongError


class AnswerTooLongError(PromptTooLongError):
    """The prompt leaves room for an answer, but not for one as long as is asked for."""


def limit_answer(engine: Engine, answer: Answer, most: int, *, limited: bool) -> None:
    """Let an answer end where its room does.

    Args:
        engine: what is to write it.
        answer: the answer.
        most: most tokens of prompt and answer.
        limited: whether its ``max_tokens`` was asked for, and is an error where there is no room for it.

    Raises:
        PromptTooLongError: there is no room for any answer.
        AnswerTooLongError: there is none for this one.
    """
    prompt = len(answer.prompts[BASE])
    room = min(answer.limit, most - prompt, engine.parts[1].scheduler.room(answer))
    if room < 1:
        raise PromptTooLongError(f"The prompt has {prompt} tokens, which leaves no room for an answer: shorten it.")
    if limited and answer.sampling.max_tokens > room:
        raise AnswerTooLongError(
            f"The prompt has {prompt} tokens, which leaves room for {room}, and {answer.sampling.max_tokens} are "
            "asked for: ask for fewer, or shorten the prompt."
        )
    answer.limit = room


def check_length(engine: Engine, reading: Reading, most: int) -> None:
    """Refuse a text that is too long to be read.

    Raises:
        PromptTooLongError: base, guides or the server read less.
    """
    backbones = engine.parts[0].backbones
    for row in reading.rows:
        count = len(row.tokens) + len(reading.answer)
        length = backbones[row.backbone].context_length
        length = min(length, most) if row.stream == BASE else length
        if count > length:
            raise PromptTooLongError(f"The text has {count} tokens, and {length} are read at most: send less of it.")
