"""Answering a suite's questions: one turn of all conversations at a time, each with its own conversation so far."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trimtab.decoding.config import Sampling, make_sampling
from trimtab.errors import ConfigError, PromptTooLongError
from trimtab.evaluation.suites.common import Conversation, Question

if TYPE_CHECKING:
    from trimtab.engine import Engine, Generation
    from trimtab.engine.guidance import GuidanceLike
    from trimtab.models import Message

NO_ROOM = "no room"


@dataclass
class _Chat:
    """A conversation going on."""

    question: Question
    messages: list[Message]
    seed: int
    turns: list[str] = field(default_factory=list[str])
    reasons: list[str] = field(default_factory=list[str])


def answer_suite(
    engine: Engine,
    questions: Sequence[Question],
    *,
    guidance: GuidanceLike = None,
    sampling: Sampling | None = None,
    suite_temperatures: bool = True,
    system: str | None = None,
    max_batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[Conversation]]:
    """Answer every turn of every question.

    Args:
        engine: what writes.
        questions: Q questions.
        guidance: as in :meth:`Engine.generate`.
        sampling: how answers are drawn; n conversations a question.
        suite_temperatures: whether a question's own temperature, where it has one, comes before the sampling's.
        system: a system message at the head of every conversation.
        max_batch_size: most answers written at a time.
        progress: called with (answers done, answers in all).

    Returns:
        Q lists of n conversations. Answer t of conversation k to question i is drawn with seed
        ``seed + t·Q·n + i·n + k``, so that it depends on nothing else that is written.
    """
    chosen = make_sampling(sampling)
    if not questions:
        raise ConfigError("There are no questions to answer.")
    seed = secrets.randbits(62) if chosen.seed is None else chosen.seed
    head: list[Message] = [{"role": "system", "content": system}] if system else []
    chats = [
        _Chat(question, list(head), seed + i * chosen.n + k)
        for i, question in enumerate(questions)
        for k in range(chosen.n)
    ]
    total, done = sum(len(chat.question.turns) for chat in chats), 0

    def report(finished: int, _: int) -> None:
        if progress:
            progress(done + finished, total)

    for turn in range(max(len(question.turns) for question in questions)):
        going = [chat for chat in chats if turn < len(chat.question.turns)]
        for chat in going:
            chat.messages.append({"role": "user", "content": chat.question.turns[turn]})
        fitting = [chat for chat in going if _fits(engine, chat, guidance)]
        samplings = [
            _sampling(chat, chosen, turn * len(chats) - place, suite_temperatures) for place, chat in enumerate(fitting)
        ]
        options: dict[str, Any] = {"max_batch_size": max_batch_size, "progress": report}
        prompts = [chat.messages for chat in fitting]
        answers = engine.generate(prompts, guidance=guidance, sampling=samplings, **options) if fitting else []
        _say(going, fitting, answers)
        done += len(going)
    made = [Conversation(tuple(chat.turns), tuple(chat.reasons)) for chat in chats]
    return [made[i : i + chosen.n] for i in range(0, len(made), chosen.n)]


def _say(going: Sequence[_Chat], fitting: Sequence[_Chat], answers: Sequence[Generation]) -> None:
    """Add the answers of one turn to their conversations."""
    written = {id(chat): answer for chat, answer in zip(fitting, answers, strict=True)}
    for chat in going:
        answer = written.get(id(chat))
        chat.turns.append(answer.text.strip() if answer else "")
        chat.reasons.append(answer.finish_reason if answer else NO_ROOM)
        chat.messages.append({"role": "assistant", "content": chat.turns[-1]})


def _fits(engine: Engine, chat: _Chat, guidance: GuidanceLike) -> bool:
    if not chat.turns:
        return True  # a question that is too long by itself ends the run, and says why
    return has_room(engine, chat.messages, guidance)


def has_room(engine: Engine, messages: list[Message], guidance: GuidanceLike) -> bool:
    """Return whether a conversation leaves room for another answer: one that does not must not end all others."""
    try:
        engine.answers(messages, guidance=guidance)
    except PromptTooLongError:
        return False
    return True


def _sampling(chat: _Chat, chosen: Sampling, offset: int, suite_temperatures: bool) -> Sampling:
    # The offset takes away the number that the engine adds for the prompt's place in its call, which depends on what
    # else still goes on.
    changes: dict[str, Any] = {"n": 1, "seed": (chat.seed + offset) % 2**63}
    if suite_temperatures and chat.question.temperature is not None:
        changes["temperature"] = chat.question.temperature
    return make_sampling(chosen, **changes)
