"""A thread of its own that does an engine's steps, for programs in which nobody waits for one answer."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trimtab.engine.answers import Answer
from trimtab.engine.core import Core
from trimtab.engine.driver import Driver
from trimtab.engine.guidance import GuidanceLike, resolve
from trimtab.engine.readings import Reading
from trimtab.engine.results import TokenScores
from trimtab.errors import ClosingError, EngineFailure

if TYPE_CHECKING:
    from trimtab.engine.engine import Engine

_log = logging.getLogger(__name__)
_Job = Answer | Reading
_PAUSE = 0.002
_CLOSING = "The engine has been stopped and takes or finishes nothing more: ask again elsewhere or later."


@dataclass(slots=True)
class News:
    """What one step did for one request.

    Attributes:
        request: the answer or reading.
        text: text that may be shown now, possibly none.
        token_ids: tokens that were written; none for a reading.
        noted: what was noted of tokens that were written or read, where that is watched: of an answer one note a token.
        finished: whether this is the last news of the request; its ``error`` says whether it failed.
    """

    request: Answer | Reading
    text: str = ""
    token_ids: list[int] = field(default_factory=list[int])
    noted: list[TokenScores] = field(default_factory=list[TokenScores])
    finished: bool = False


class Worker:
    """Does the steps of an engine in a thread of its own as long as there is anything to write or to read.

    Requests come from any thread (:meth:`submit`), and after each step what it did for them is delivered, all of it
    in one call. An error in a step that is nobody's own ends the requests that were running, and the next goes on.

    Attributes:
        failures: steps that failed so.
        turns: how often it has looked for something to do.
    """

    def __init__(self, engine: Engine, deliver: Callable[[Sequence[News]], None]) -> None:
        """Prepare, without starting.

        Args:
            engine: what writes and reads.
            deliver: called in the worker's thread after a step, with the news of every request that has some.
        """
        self._core, self._driver = engine.parts
        self._deliver = deliver
        self._condition = threading.Condition()
        self._inbox: list[_Job] = []
        self._changes: list[_Change] = []
        self._open: dict[_Job, int] = {}  # request → tokens (of a reading: notes) that were delivered
        self._stopping = False
        self.turns = 0
        self._thread = threading.Thread(target=self._run, name="trimtab-engine", daemon=True)
        self.failures = 0

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the present step; return when the thread has ended.

        What is not finished ends with :class:`ClosingError`, which its last news tells, and so do changes under way.
        """
        with self._condition:
            self._stopping = True
            self._condition.notify()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def running(self) -> int:
        """Requests that hold pages."""
        return len(self._driver.scheduler.running)

    @property
    def waiting(self) -> int:
        """Requests that wait for some."""
        return len(self._driver.scheduler.waiting) + len(self._inbox)

    def submit(self, requests: Sequence[_Job]) -> None:
        """Queue requests. One that cannot be taken ends at once with an error, which its news tells.

        Raises:
            ClosingError: the worker has been stopped.
        """
        with self._condition:
            if self._stopping:
                raise ClosingError(_CLOSING)
            self._inbox.extend(requests)
            self._condition.notify()

    def cancel(self, requests: Sequence[_Job]) -> None:
        """Give requests up; their pages are free before the next step, and that is their last news."""
        for request in requests:
            request.cancelled = not request.finished
        with self._condition:
            self._condition.notify()

    def change(self, answers: Sequence[Answer], guidance: GuidanceLike) -> Future[int]:
        """Let answers go on with other guidance, between two steps.

        Returns:
            How many tokens the first of them had by then: those after them follow the new guidance.

        Raises:
            GuidanceError: as in :meth:`Engine.generate`, or all of them are finished; from the future, as are the
                others. Nothing changes then, for none of the answers.
            PromptTooLongError: a guide that joins has no room for the answer so far.
            ClosingError: the worker has been stopped.
        """
        change = _Change(answers, guidance)
        with self._condition:
            if self._stopping:
                change.future.set_exception(ClosingError(_CLOSING))
            else:
                self._changes.append(change)
                self._condition.notify()
        return change.future

    def _run(self) -> None:
        while True:
            with self._condition:
                while not (self._inbox or self._changes or self._open or self._stopping):
                    self._condition.wait()
                if self._stopping:
                    break
                arrived, self._inbox = self._inbox, []
                changes, self._changes = self._changes, []
            self.turns += 1
            for request in arrived:
                self._take(request)
            for change in changes:
                change.carry_out(self._core, self._driver)
            try:
                busy = self._driver.turn()
            except Exception as error:
                self._fail(error)
                busy = True
            self._tell()
            if not busy and self._open:  # other threads hold what these need
                with self._condition:
                    self._condition.wait(_PAUSE)
        self._close()

    def _take(self, request: _Job) -> None:
        self._open[request] = 0
        try:
            self._driver.add(request, tokens=self._tokens(request))
        except Exception as error:
            request.error = error

    def _tokens(self, request: _Job) -> int:
        return request.limit if isinstance(request, Answer) else len(request.answer)

    def _fail(self, error: Exception) -> None:
        """End every request: what the step left of them cannot be known."""
        self.failures += 1
        _log.error("A step of the engine failed: every running request ends.", exc_info=error)
        self._driver.forget(self._open)
        for request in self._open:
            if not request.finished:
                request.error = EngineFailure("The engine failed while it worked on this request: ask again.")
                request.error.__cause__ = error

    def _close(self) -> None:
        """End what is still there, so that nobody waits for it."""
        with self._condition:
            self._open |= dict.fromkeys(self._inbox, 0)
            changes, self._inbox, self._changes = self._changes, [], []
        self._driver.forget(self._open)
        for request in self._open:
            if not request.finished:
                request.error = ClosingError(_CLOSING)
        for change in changes:
            change.refuse()
        self._tell()

    def _tell(self) -> None:
        with self._driver.between_steps():
            news = [item for request in self._open if (item := self._news(request)) is not None]
        for item in news:
            if item.finished:
                del self._open[item.request]
        # One that was given up since the step still has its pages.
        self._driver.forget([item.request for item in news if item.finished])
        if news:
            try:
                self._deliver(news)
            except Exception:  # who does not take news must not end the engine for all others
                _log.exception("The news of a step could not be delivered.")

    def _news(self, request: _Job) -> News | None:
        item, told = News(request, finished=request.finished or request.cancelled), self._open[request]
        if isinstance(request, Answer):
            item.token_ids = request.tokens[told:]
            self._open[request] = len(request.tokens)
            item.text = "".join(request.pieces)
            request.pieces.clear()
            item.noted = list(request.noted)
            request.noted.clear()
        else:
            item.noted = request.noted[told:]
            self._open[request] = len(request.noted)
        return item if item.finished or item.token_ids or item.text or item.noted else None


@dataclass(frozen=True)
class _Change:
    """Other guidance for answers that are being written."""

    answers: Sequence[Answer]
    guidance: GuidanceLike
    future: Future[int] = field(default_factory=lambda: Future[int]())

    def carry_out(self, core: Core, driver: Driver) -> None:
        """Do it between two steps."""
        if not self.future.set_running_or_notify_cancel():
            return  # whoever asked does not wait any longer
        try:
            self.future.set_result(driver.change(self.answers, resolve(self.guidance, core.guides)))
        except Exception as error:  # the one who asked gets it
            self.future.set_exception(error)

    def refuse(self) -> None:
        """Say that nothing is changed any longer."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(ClosingError(_CLOSING))
