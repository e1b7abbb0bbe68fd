"""A thread of its own that does an engine's steps, for programs in which nobody waits for one answer."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trimtab.engine.answers import Answer
from trimtab.engine.guidance import GuidanceLike, resolve
from trimtab.engine.readings import Reading
from trimtab.engine.results import TokenScores
from trimtab.errors import EngineFailure, TrimtabError

if TYPE_CHECKING:
    from trimtab.engine.engine import Engine

_log = logging.getLogger(__name__)
_Job = Answer | Reading
_PAUSE = 0.002


@dataclass(slots=True)
class News:
    """What one step did for one request.

    Attributes:
        request: the answer or reading.
        text: text that may be shown now, possibly none.
        token_ids: tokens that were written.
        noted: what was noted of them, where that is watched.
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
        self._actions: list[Callable[[], None]] = []
        self._open: dict[_Job, int] = {}  # request → tokens that were delivered
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="trimtab-engine", daemon=True)
        self.failures = 0

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the present step and give up what is not finished; return when the thread has ended."""
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
        """Queue requests. One that cannot be taken ends at once with an error, which its news tells."""
        with self._condition:
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
            GuidanceError: as in :meth:`Engine.generate`, from the future; nothing changes then.
            PromptTooLongError: a guide that joins has no room for the answer so far; likewise.
        """
        future: Future[int] = Future()

        def act() -> None:
            try:
                pulls = resolve(guidance, self._core.guides)
                for answer in answers:
                    self._driver.change(answer, pulls)
                future.set_result(len(answers[0].tokens))
            except Exception as error:  # the one who asked gets it
                future.set_exception(error)

        with self._condition:
            self._actions.append(act)
            self._condition.notify()
        return future

    def _run(self) -> None:
        while True:
            with self._condition:
                while not (self._inbox or self._actions or self._open or self._stopping):
                    self._condition.wait()
                if self._stopping:
                    break
                arrived, self._inbox = self._inbox, []
                actions, self._actions = self._actions, []
            for act in actions:
                act()
            for request in arrived:
                self._take(request)
            try:
                busy = self._driver.turn()
            except Exception as error:
                self._fail(error)
                busy = True
            self._tell()
            if not busy and self._open:  # other threads hold what these need
                time.sleep(_PAUSE)
        self._driver.forget(self._open)

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
                known = isinstance(error, TrimtabError)
                request.error = error if known else EngineFailure("The engine failed while it wrote this answer.")

    def _tell(self) -> None:
        news: list[News] = []
        for request, told in self._open.items():
            item = News(request, finished=request.finished or request.cancelled)
            if isinstance(request, Answer):
                item.token_ids = request.tokens[told:]
                self._open[request] = len(request.tokens)
                item.text = "".join(request.pieces)
                request.pieces.clear()
            item.noted = list(request.noted)
            request.noted.clear()
            if item.finished or item.token_ids or item.text or item.noted:
                news.append(item)
        for item in news:
            if item.finished:
                del self._open[item.request]
                self._driver.forget([item.request])  # one that was given up since the step still has its pages
        if news:
            self._deliver(news)
