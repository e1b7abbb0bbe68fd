"""Between the event loop and the engine: admits requests, carries what the engine writes, ends what takes too long."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from trimtab.decoding.config import Sampling
from trimtab.engine import Engine
from trimtab.engine.answers import Answer
from trimtab.engine.guidance import Guidance, resolve
from trimtab.engine.readings import Reading
from trimtab.engine.results import TokenScores, Watch
from trimtab.engine.worker import News, Worker
from trimtab.errors import BusyError, ClosingError, DeadlineError, GuidanceError, PromptTooLongError, TrimtabError
from trimtab.models import Text
from trimtab.serving.config import ServerConfig
from trimtab.serving.metrics import Metrics

T = TypeVar("T")
_TOKENISERS = 2  # threads that render and tokenise


@dataclass(slots=True)
class Update:
    """What is new of one answer of a ticket.

    Attributes:
        index: which of the n answers.
        text: text to add.
        token_ids: tokens that were written.
        noted: what was noted of them, where that is watched.
        finish_reason: ``stop`` or ``length`` once it has ended, else ``None``.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list[int])
    noted: list[TokenScores] = field(default_factory=list[TokenScores])
    finish_reason: str | None = None


@dataclass(eq=False)
class Ticket:
    """The answers to one prompt, while they are written.

    Attributes:
        id: its name, which nobody can guess.
        owner: digest of the key it was asked with; nobody else may change it.
        answers: the n answers.
        guidance: what is applied.
        deadline: event loop's time at which it is given up.
    """

    id: str
    owner: str
    answers: list[Answer]
    guidance: Guidance
    arrived: float
    deadline: float
    gateway: Gateway
    queue: asyncio.Queue[News] = field(default_factory=asyncio.Queue[News])
    open: set[int] = field(default_factory=set[int])
    error: TrimtabError | None = None

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.answers[0].prompts[0])

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that were found in the cache."""
        return self.answers[0].cached_tokens

    @property
    def completion_tokens(self) -> int:
        """Tokens written so far, of all answers."""
        return sum(len(answer.tokens) for answer in self.answers)

    async def updates(self) -> AsyncIterator[Update]:
        """Yield what is new until all answers have ended; when the reader stops early, they are given up.

        Raises:
            DeadlineError: it took too long.
            ClosingError: the server ends before the answers do.
            TrimtabError: what ended one of the answers.
        """
        try:
            while self.open:
                try:
                    async with asyncio.timeout_at(self.deadline):
                        news = await self.queue.get()
                except TimeoutError:
                    limit = self.gateway.config.request_timeout
                    raise DeadlineError(
                        f"The answer was not finished within {limit:g} seconds and was given up: ask for fewer tokens."
                    ) from None
                if self.error is not None:
                    raise self.error
                answer = news.request
                if isinstance(answer, Answer):
                    if answer.error is not None:
                        raise answer.error
                    yield self._update(answer, news)
        finally:
            self.gateway.end(self)

    def _update(self, answer: Answer, news: News) -> Update:
        index = answer.place[1]
        if news.finished:
            self.open.discard(index)
        reason = answer.finish_reason if news.finished else None
        return Update(index, news.text, news.token_ids, news.noted, reason)


class Gateway:
    """One engine, as a server uses it. All methods are called in the event loop's thread.

    Attributes:
        engine: what writes.
        config: limits.
        metrics: where everything is counted.
        ready: whether new requests are taken.
    """

    def __init__(self, engine: Engine, config: ServerConfig, metrics: Metrics | None = None) -> None:
        self.engine = engine
        self.config = config
        self.metrics = metrics or Metrics()
        self.ready = False
        self.tickets: dict[str, Ticket] = {}
        self._readings: dict[Reading, asyncio.Future[Reading]] = {}
        self._preparing = 0
        self._pool = ThreadPoolExecutor(_TOKENISERS, thread_name_prefix="trimtab-tokenise")
        self._worker = Worker(engine, self._carry)
        self._owners: dict[Answer, Ticket] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        """Begin to take requests."""
        self._loop = asyncio.get_running_loop()
        self._worker.start()
        self.ready = True

    async def drain(self, seconds: float) -> bool:
        """Take no more requests and wait for those that run; return whether they all ended in time."""
        self.ready = False
        until = time.monotonic() + seconds
        while self.tickets or self._readings or self._preparing:
            if time.monotonic() >= until:
                return False
            await asyncio.sleep(0.02)
        return True

    async def stop(self) -> None:
        """End; answers that still run fail with :class:`ClosingError`."""
        self.ready = False
        error = ClosingError("The server is shutting down and gave this answer up: ask again elsewhere or later.")
        for ticket in list(self.tickets.values()):
            ticket.error = error
            ticket.queue.put_nowait(News(ticket.answers[0], finished=True))
        for future in self._readings.values():
            if not future.done():
                future.set_exception(error)
        await asyncio.to_thread(self._worker.stop)
        self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs."""
        return self._worker.alive

    @property
    def failures(self) -> int:
        """Steps of the engine that failed."""
        return self._worker.failures

    @property
    def running(self) -> int:
        """Requests that are being written or read."""
        return self._worker.running

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return self._worker.waiting + self._preparing

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and answer."""
        context = self.engine.parts[0].backbones[0].context_length
        return min(context, self.config.max_model_len or context)

    async def aside(self, work: Callable[[], T]) -> T:
        """Do work that takes its time (rendering, tokenising) off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    async def write(
        self,
        prompt: Text,
        *,
        guidance: Guidance,
        sampling: Sampling,
        owner: str = "",
        prefix: str = "cmpl-",
        watch: Watch | None = None,
        limited: bool = True,
    ) -> Ticket:
        """Begin the n answers to a prompt.

        Args:
            prompt: text, chat turns or the base's token ids.
            guidance: what to apply.
            sampling: how to draw.
            owner: digest of the key it was asked with.
            prefix: what the ticket's id begins with.
            watch: what is noted of each token.
            limited: whether ``max_tokens`` is what the caller asked for, and an error where there is no room for it;
                else it is cut to the room there is.

        Raises:
            BusyError: too many wait.
            ClosingError: the server is about to end, or not ready.
            TrimtabError: the request cannot be served as it is.
        """
        arrived = time.monotonic()
        self._admit(sampling.n)
        self._check(guidance)
        self._preparing += sampling.n
        try:
            answers = await self.aside(
                lambda: self.engine.answers(prompt, guidance=guidance, sampling=sampling, watch=watch)
            )
            for answer in answers:
                self._limit(answer, limited)
        finally:
            self._preparing -= sampling.n
        ticket = Ticket(
            id=prefix + secrets.token_hex(16),
            owner=owner,
            answers=answers,
            guidance=guidance,
            arrived=arrived,
            deadline=asyncio.get_running_loop().time() + self.config.request_timeout,
            gateway=self,
            open=set(range(len(answers))),
        )
        self.tickets[ticket.id] = ticket
        self._owners |= dict.fromkeys(answers, ticket)
        self.metrics.arrived(ticket)
        self._worker.submit(answers)
        return ticket

    async def read(
        self, prompt: Text, response: Sequence[int], *, guidance: Guidance, watch: Watch | None = None
    ) -> Reading:
        """Score given tokens behind a prompt.

        Raises:
            BusyError: too many wait.
            ClosingError: the server is about to end, or not ready.
            DeadlineError: it took too long.
            TrimtabError: the request cannot be served as it is.
        """
        self._admit(1)
        self._check(guidance)
        self._preparing += 1
        try:
            reading = await self.aside(lambda: self.engine.reading(prompt, response, guidance=guidance, watch=watch))
        finally:
            self._preparing -= 1
        future: asyncio.Future[Reading] = asyncio.get_running_loop().create_future()
        self._readings[reading] = future
        self._worker.submit([reading])
        try:
            async with asyncio.timeout(self.config.request_timeout):
                return await future
        except TimeoutError:
            raise DeadlineError("The text was not read within its time and was given up: send less of it.") from None
        finally:
            del self._readings[reading]
            self._worker.cancel([reading])

    async def change(self, ticket: Ticket, guidance: Guidance) -> int:
        """Let the answers of a ticket go on with other guidance; return how many tokens the first had by then.

        Raises:
            GuidanceError: what it says cannot be applied; nothing changes.
            PromptTooLongError: a guide that joins has no room; nothing changes.
        """
        self._check(guidance)
        written = await asyncio.wrap_future(self._worker.change(ticket.answers, guidance))
        ticket.guidance = guidance
        return written

    def end(self, ticket: Ticket) -> None:
        """Forget a ticket; answers that are not finished are given up."""
        if self.tickets.pop(ticket.id, None) is None:
            return
        unfinished = [answer for answer in ticket.answers if not answer.finished]
        for answer in ticket.answers:
            self._owners.pop(answer, None)
        self.metrics.ended(ticket, aborted=bool(unfinished))
        if unfinished:
            self._worker.cancel(unfinished)

    def _admit(self, count: int) -> None:
        if not self.ready:
            raise ClosingError("The server is shutting down or not ready yet: ask again elsewhere or later.")
        # What does not have to wait is not counted: the running set has room for it.
        room = self.engine.parts[1].scheduler.config.max_num_seqs - self.running
        if self.waiting + count > max(0, room) + self.config.max_queued_requests:
            self.metrics.rejected("queue_full")
            raise BusyError(
                f"{self.waiting} answers wait, and {self.config.max_queued_requests} may: come again later.",
                retry_after=1,
            )

    def _check(self, guidance: Guidance) -> None:
        pulls = resolve(guidance, list(self.engine.guides.values()))
        total = sum(abs(pull.weight) for pull in pulls)
        if total > self.config.max_guidance:
            raise GuidanceError(
                f"The weights come to {total:g}, strength included, and the server allows {self.config.max_guidance:g}."
            )

    def _limit(self, answer: Answer, limited: bool) -> None:
        prompt = len(answer.prompts[0])
        scheduler = self.engine.parts[1].scheduler
        room = min(answer.limit, self.max_model_len - prompt, scheduler.room(answer))
        if room < 1 or (limited and answer.sampling.max_tokens > room):
            wanted = f" and {answer.sampling.max_tokens} are asked for" if limited else ""
            raise PromptTooLongError(
                f"The prompt has {prompt} tokens, which leaves room for {max(0, room)}{wanted}: "
                "shorten the prompt or ask for fewer tokens."
            )
        answer.limit = room

    def _carry(self, news: Sequence[News]) -> None:
        """Hand news from the engine's thread to the event loop."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._route, news)

    def _route(self, news: Sequence[News]) -> None:
        for item in news:
            if isinstance(item.request, Reading):
                future = self._readings.get(item.request)
                if future is None or future.done() or not item.finished:
                    continue
                if item.request.error is not None:
                    future.set_exception(item.request.error)
                else:
                    future.set_result(item.request)
                continue
            ticket = self._owners.get(item.request)
            if ticket is not None:
                self.metrics.wrote(ticket, item)
                ticket.queue.put_nowait(item)
