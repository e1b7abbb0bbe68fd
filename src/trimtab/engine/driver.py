"""One scheduler, any number of threads."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Sequence

from trimtab.engine.answers import Answer
from trimtab.engine.guidance import Pull
from trimtab.engine.requests import Request, Row
from trimtab.engine.scheduler import Scheduler
from trimtab.errors import ConfigError, GuidanceError


class Driver:
    """Lets callers in any thread wait for their requests: whoever waits does the steps, which carry all requests.

    Attributes:
        scheduler: the scheduler; between steps of its own, nobody but the driver calls it.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._lock = threading.Lock()
        self._closed = False

    def check_open(self) -> None:
        """Refuse to go on after :meth:`close`.

        Raises:
            ConfigError: it is closed.
        """
        if self._closed:
            raise ConfigError("This engine is closed: load another.")

    def close(self) -> None:
        """Do no more steps."""
        with self._lock:
            self._closed = True

    def add(self, request: Request, *, tokens: int) -> None:
        """Queue a request that adds up to ``tokens`` tokens to its rows.

        Raises:
            PromptTooLongError: it does not fit the KV cache.
        """
        with self._lock:
            self.scheduler.add(request, tokens=tokens)

    def drive(self, requests: Sequence[Request], until: Callable[[Iterable[bool]], bool] = all) -> None:
        """Step until ``all`` or ``any`` of the requests are finished, by these steps or by those of other threads.

        Raises:
            TrimtabError: what ended one of them before its time.
        """
        while not until(request.finished for request in requests):
            self.step(requests, until)
        for request in requests:
            if request.error is not None:
                raise request.error

    def step(self, requests: Sequence[Request], until: Callable[[Iterable[bool]], bool] = all) -> None:
        """Step once, unless the requests got there while this thread waited for its turn."""
        with self._lock:
            self.check_open()
            if not until(request.finished for request in requests):
                self.scheduler.step()

    def turn(self) -> bool:
        """Step once for whatever is there; return whether there was anything to do."""
        with self._lock:
            self.check_open()
            return self.scheduler.step()

    def forget(self, requests: Iterable[Request]) -> None:
        """Take requests out, wherever they are, and give their pages back."""
        with self._lock:
            for request in requests:
                self.scheduler.remove(request)

    def change(self, answers: Sequence[Answer], pulls: tuple[Pull, ...]) -> int:
        """Let answers go on with other guidance, between two steps; return how many tokens the first has by then.

        Raises:
            PromptTooLongError: a guide that joins has no room for an answer so far. Nothing changes.
            GuidanceError: it does not know a token of one, or all are finished. Nothing changes.
        """
        with self._lock:
            going = [answer for answer in answers if not answer.finished and not answer.cancelled]
            if not going:
                raise GuidanceError("The answer is finished, so its guidance cannot change: ask for another.")
            plans = [answer.plan(pulls, self.scheduler.room_for) for answer in going]
            for answer, plan in zip(going, plans, strict=True):
                self.scheduler.replace_rows(answer, answer.adopt(plan))
            return len(answers[0].tokens)

    def between_steps(self) -> contextlib.AbstractContextManager[object]:
        """Return what holds the steps of all threads back, for a look at requests while nothing changes them."""
        return self._lock

    def replace_rows(self, request: Request, rows: Callable[[], list[Row]]) -> None:
        """Let a request go on with the rows that ``rows`` returns, which is called between steps."""
        with self._lock:
            self.scheduler.replace_rows(request, rows())
