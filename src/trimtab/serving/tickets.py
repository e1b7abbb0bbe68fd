"""The answers of one request while they are written: what is new of them, and how they end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trimtab.engine.answers import Answer
from trimtab.engine.guidance import Guidance
from trimtab.engine.requests import BASE
from trimtab.engine.results import TokenScores
from trimtab.engine.worker import News

if TYPE_CHECKING:
    from trimtab.serving.gateway import Gateway


@dataclass(slots=True)
class Update:
    """What is new of one answer of a ticket.

    Attributes:
        index: which of the answers.
        text: text to add.
        token_ids: tokens that were written.
        noted: what was noted of them, where that is watched.
        finish_reason: ``stop``, ``length`` or ``abort`` (given up because someone asked for it) once it has ended,
            else ``None``.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list[int])
    noted: list[TokenScores] = field(default_factory=list[TokenScores])
    finish_reason: str | None = None


@dataclass(eq=False)
class Ticket:
    """The answers of one request, while they are written.

    Attributes:
        id: its name, which nobody can guess.
        owner: digest of the key it was asked with; nobody else may change it.
        answers: the answers: n to each prompt, prompt by prompt.
        guidance: what is applied.
        preset: name of the preset that is applied; ``None`` where none is, or where something else was asked for.
        arrived: when it came, in seconds of ``time.monotonic``.
        deadline: event loop's time at which it is given up.
        open: answers of which nobody knows the end yet.
        error: what ended it before its time.
    """

    id: str
    owner: str
    answers: list[Answer]
    guidance: Guidance
    arrived: float
    deadline: float
    gateway: Gateway
    preset: str | None = None
    open: set[int] = field(default_factory=set[int])
    error: Exception | None = None
    timer: asyncio.TimerHandle | None = None
    _queue: asyncio.Queue[Update | None] = field(default_factory=asyncio.Queue[Update | None])

    def __post_init__(self) -> None:
        self.open = set(range(len(self.answers)))
        self._indices = {answer: index for index, answer in enumerate(self.answers)}

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompts, each counted once."""
        return sum(len(answer.prompts[BASE]) for answer in self._firsts())

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompts that were found in the cache."""
        return sum(answer.cached_tokens or 0 for answer in self._firsts())

    @property
    def completion_tokens(self) -> int:
        """Tokens written so far, of all answers."""
        return sum(len(answer.tokens) for answer in self.answers)

    def tell(self, news: News) -> None:
        """Add what a step did for one of the answers."""
        answer = news.request
        if not isinstance(answer, Answer):
            return
        index = self._indices[answer]
        if answer.error is not None:
            self.fail(answer.error)
            return
        reason = None
        if news.finished:
            self.open.discard(index)
            reason = answer.finish_reason or "abort"
        self._queue.put_nowait(Update(index, news.text, news.token_ids, news.noted, reason))

    def fail(self, error: Exception) -> None:
        """End it with an error, which whoever reads it gets next; the first error counts."""
        if self.error is None:
            self.error = error
            self._queue.put_nowait(None)

    async def updates(self) -> AsyncGenerator[Update]:
        """Yield what is new until all answers have ended; when the reader stops early, they are given up.

        Raises:
            DeadlineError: it took too long.
            ClosingError: the server ends before the answers do.
            TrimtabError: what ended one of the answers.
        """
        left = len(self.answers)
        try:
            while left:
                update = await self._queue.get()
                if self.error is not None:
                    raise self.error
                if update is not None:
                    left -= update.finish_reason is not None
                    yield update
        finally:
            self.gateway.end(self)

    def _firsts(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.place[1] == 0]


@dataclass
class Pending:
    """A reading that somebody waits for, and what was noted so far."""

    future: asyncio.Future[list[TokenScores]]
    noted: list[TokenScores] = field(default_factory=list[TokenScores])

    def tell(self, news: News) -> None:
        """Add what a step did for it."""
        self.noted += news.noted
        if not news.finished or self.future.done():
            return
        if news.request.error is not None:
            self.future.set_exception(news.request.error)
        else:
            self.future.set_result(self.noted)
