"""Between the event loop and the engine: admits requests, carries what the engine writes, ends what takes too long."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from trimtab.decoding.config import Sampling
from trimtab.engine import Engine
from trimtab.engine.answers import Answer
from trimtab.engine.guidance import Guidance, Pull, resolve
from trimtab.engine.readings import Reading
from trimtab.engine.results import TokenScores, Watch
from trimtab.engine.worker import News, Worker
from trimtab.errors import (
    BusyError,
    ClosingError,
    ConfigError,
    DeadlineError,
    GuidanceError,
)
from trimtab.models import Prompt
from trimtab.serving.config import ServerConfig
from trimtab.serving.metrics import Metrics
from trimtab.serving.room import check_length, limit_answer
from trimtab.serving.tickets import Pending, Ticket, Update

__all__ = ["Gateway", "Ticket", "Update"]

T = TypeVar("T")
_log = logging.getLogger(__name__)
_TOKENISERS = 2  # threads that render and tokenise
_PULSE = 0.5  # seconds between two looks at whether the engine's thread lives


class Gateway:
    """One engine, as a server uses it. All methods are called in the event loop's thread.

    Attributes:
        engine: what writes.
        config: limits.
        metrics: where everything is counted.
        ready: whether new requests are taken.
        tickets: the requests that are being written, by their ids.
    """

    def __init__(self, engine: Engine, config: ServerConfig, metrics: Metrics | None = None) -> None:
        self.engine = engine
        self.config = config
        self.metrics = metrics or Metrics()
        self.ready = False
        self.tickets: dict[str, Ticket] = {}
        self._owners: dict[Answer, Ticket] = {}
        self._readings: dict[Reading, Pending] = {}
        self._preparing = 0  # answers and readings that are being tokenised
        self._pool = ThreadPoolExecutor(_TOKENISERS, thread_name_prefix="trimtab-tokenise")
        self._worker = Worker(engine, self._carry)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._ended = False

    async def start(self) -> None:
        """Begin to take requests."""
        self._loop = asyncio.get_running_loop()
        self._worker.start()
        self._watcher = asyncio.create_task(self._watch())
        self.ready = True

    async def drain(self, seconds: float) -> bool:
        """Take no more requests and wait for those that run; return whether they all ended in time."""
        self.ready = False
        until = time.monotonic() + seconds
        while self.load or self.tickets:
            if time.monotonic() >= until:
                return False
            await asyncio.sleep(0.02)
        return True

    async def stop(self) -> None:
        """End; answers that still run fail with :class:`ClosingError`."""
        self.ready = False
        self._ended = True
        if self._watcher is not None:
            self._watcher.cancel()
        self._fail_all(
            ClosingError("The server is shutting down and gave this answer up: ask again elsewhere or later.")
        )
        await asyncio.to_thread(self._worker.stop)
        self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs."""
        return self._worker.alive

    @property
    def load(self) -> int:
        """Answers and readings that have been admitted and have not ended."""
        return self._preparing + sum(len(ticket.open) for ticket in self.tickets.values()) + len(self._readings)

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
    def most(self) -> int:
        """Most answers and readings that are admitted at a time: those that run and those that may wait."""
        return self.engine.parts[1].scheduler.config.max_num_seqs + self.config.max_queued_requests

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
        *prompts: Prompt,
        guidance: Guidance,
        sampling: Sampling,
        owner: str = "",
        prefix: str = "cmpl-",
        preset: str | None = None,
        watch: Watch | None = None,
        limited: bool = True,
    ) -> Ticket:
        """Begin the n answers to each prompt.

        Args:
            *prompts: each text, chat turns or the base's token ids.
            guidance: what to apply.
            sampling: how to draw; answer k of prompt i is drawn as by :meth:`Engine.generate` of all prompts.
            owner: digest of the key it was asked with.
            prefix: what the ticket's id begins with.
            preset: name of the preset that the guidance is, for the record.
            watch: what is noted of each token.
            limited: whether ``max_tokens`` is what the caller asked for, and an error where there is no room for it;
                else it is cut to the room there is.

        Raises:
            BusyError: too many wait.
            ClosingError: the server is about to end, or not ready.
            TrimtabError: the request cannot be served as it is.
        """
        arrived = time.monotonic()
        deadline = asyncio.get_running_loop().time() + self.config.request_timeout
        self.check(guidance)

        options: Any = {"guidance": guidance, "sampling": sampling, "watch": watch, "salt": owner or None}

        def prepare() -> list[Answer]:
            answers: list[Answer] = []
            for index, prompt in enumerate(prompts):
                answers += self.engine.answers(prompt, index=index, **options)
            for answer in answers:
                limit_answer(self.engine, answer, self.max_model_len, limited=limited)
            return answers

        answers = await self._prepared(prepare, len(prompts) * sampling.n)
        ticket = Ticket(
            id=prefix + secrets.token_hex(16),
            owner=owner,
            answers=answers,
            guidance=guidance,
            arrived=arrived,
            deadline=deadline,
            gateway=self,
            preset=preset,
        )
        ticket.timer = asyncio.get_running_loop().call_at(deadline, self._expire, ticket)
        self.tickets[ticket.id] = ticket
        self._owners |= dict.fromkeys(answers, ticket)
        self.metrics.arrived(ticket)
        self._worker.submit(answers)
        return ticket

    async def read(
        self,
        *pairs: tuple[Prompt, Sequence[int]],
        guidance: Guidance,
        watch: Watch,
        owner: str = "",
    ) -> list[list[TokenScores]]:
        """Score given tokens behind prompts; return what was noted of each pair's tokens.

        Args:
            *pairs: each a prompt and the T ≥ 1 tokens behind it.
            guidance: what to apply.
            watch: what is noted of each token.
            owner: digest of the key it was asked with.

        Raises:
            BusyError: too many wait.
            ClosingError: the server is about to end, or not ready.
            DeadlineError: it took too long.
            TrimtabError: the request cannot be served as it is.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.config.request_timeout
        self.check(guidance)

        def prepare() -> list[Reading]:
            options: Any = {"guidance": guidance, "watch": watch, "salt": owner or None}
            readings = [self.engine.reading(prompt, tokens, **options) for prompt, tokens in pairs]
            for reading in readings:
                check_length(self.engine, reading, self.max_model_len)
            return readings

        readings = await self._prepared(prepare, len(pairs))
        pending = {reading: Pending(loop.create_future()) for reading in readings}
        self._readings |= pending
        self._worker.submit(readings)
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.gather(*(each.future for each in pending.values()))
        except TimeoutError:
            raise DeadlineError("The text was not read within its time and was given up: send less of it.") from None
        finally:
            for reading in readings:
                del self._readings[reading]
            self._worker.cancel([reading for reading in readings if not reading.finished])

    async def change(self, ticket: Ticket, guidance: Guidance) -> int:
        """Let the answers of a ticket go on with other guidance; return how many tokens the first had by then.

        Raises:
            GuidanceError: what it says cannot be applied; nothing changes.
            PromptTooLongError: a guide that joins has no room; nothing changes.
            DeadlineError: the answer was given up meanwhile.
        """
        self.check(guidance)
        first, *others = ticket.answers
        going = [first, *(answer for answer in others if not answer.finished)]
        change = asyncio.wrap_future(self._worker.change(going, guidance))
        try:
            async with asyncio.timeout_at(ticket.deadline):
                written = await change
        except TimeoutError:
            raise DeadlineError("The answer was given up before its guidance could be changed.") from None
        ticket.guidance, ticket.preset = guidance, None
        return written

    def abort(self, ticket: Ticket) -> None:
        """Let the answers of a ticket end as they are; their reader still gets that, with the reason ``abort``."""
        self._worker.cancel([answer for answer in ticket.answers if not answer.finished])

    def end(self, ticket: Ticket) -> None:
        """Forget a ticket; answers that are not finished are given up."""
        if self.tickets.pop(ticket.id, None) is None:
            return
        if ticket.timer is not None:
            ticket.timer.cancel()
        unfinished = [answer for answer in ticket.answers if not answer.finished]
        for answer in ticket.answers:
            self._owners.pop(answer, None)
        ticket.open.clear()
        self.metrics.ended(ticket, aborted=bool(unfinished))
        if unfinished:
            self._worker.cancel(unfinished)

    def check(self, guidance: Guidance) -> tuple[Pull, ...]:
        """Return what guidance means for each guide.

        Raises:
            GuidanceError: it cannot be applied, or is more than the server allows.
        """
        pulls = resolve(guidance, list(self.engine.guides.values()))
        total = sum(abs(pull.weight) for pull in pulls)
        if total > self.config.max_guidance:
            raise GuidanceError(
                f"The weights come to {total:g}, strength included, and the server allows {self.config.max_guidance:g}."
            )
        return pulls

    async def _prepared(self, work: Callable[[], T], cost: int) -> T:
        """Do admitted work in the pool. It is counted until its thread is through, also when its caller has gone."""
        self._admit(cost)
        self._preparing += cost

        def done(_: Future[T]) -> None:
            with suppress(RuntimeError):  # the loop has closed, and nobody counts any more
                loop.call_soon_threadsafe(self._uncount, cost)

        loop = asyncio.get_running_loop()
        future = self._pool.submit(work)
        try:
            result = await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if self._ended and future.cancelled():  # by the pool's end, not by the caller
                raise ClosingError("The server is shutting down: ask again elsewhere or later.") from None
            raise
        finally:
            # Without a pause in between it moves from this count to the ticket's, so that drain() cannot miss it.
            if future.done() and not future.cancelled():
                self._uncount(cost)
            else:
                future.add_done_callback(done)
        if self._ended:
            raise ClosingError("The server is shutting down: ask again elsewhere or later.")
        return result

    def _uncount(self, cost: int) -> None:
        self._preparing -= cost

    def _admit(self, cost: int) -> None:
        if not self.ready:
            raise ClosingError("The server is shutting down or not ready yet: ask again elsewhere or later.")
        if cost > self.most:
            raise ConfigError(f"{cost} answers are asked for at once, and the server takes {self.most}: ask for fewer.")
        if self.load + cost > self.most:
            self.metrics.rejected("queue_full")
            raise BusyError(
                f"{self.load} answers are written or wait, and {self.most} may: come again later.", retry_after=1
            )

    def _expire(self, ticket: Ticket) -> None:
        limit = self.config.request_timeout
        ticket.fail(
            DeadlineError(f"The answer was not finished within {limit:g} seconds and was given up: ask for less.")
        )
        self.end(ticket)  # here, because its reader may be stuck on a client that does not read

    def _fail_all(self, error: Exception) -> None:
        for ticket in self.tickets.values():
            ticket.fail(error)
        for pending in self._readings.values():
            if not pending.future.done():
                pending.future.set_exception(error)

    async def _watch(self) -> None:
        """End what waits for an engine whose thread has died, which nobody else would tell."""
        while self._worker.alive:
            await asyncio.sleep(_PULSE)
        self.ready = False
        _log.critical("The engine's thread has ended: nothing is taken any more until the server is started again.")
        self._fail_all(ClosingError("The engine has ended, and this answer with it: ask again elsewhere or later."))

    def _carry(self, news: Sequence[News]) -> None:
        """Hand news from the engine's thread to the event loop."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop has closed, and nobody waits
                self._loop.call_soon_threadsafe(self._route, news)

    def _route(self, news: Sequence[News]) -> None:
        for item in news:
            if isinstance(item.request, Reading):
                if item.request in self._readings:
                    self._readings[item.request].tell(item)
                continue
            ticket = self._owners.get(item.request)
            if ticket is not None:
                self.metrics.wrote(ticket, item)
                ticket.tell(item)
