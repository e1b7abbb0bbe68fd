"""An answer that is written as its pieces are asked for."""

from __future__ import annotations

from collections.abc import Iterator

from trimtab.engine.answers import Answer
from trimtab.engine.core import Core
from trimtab.engine.driver import Driver
from trimtab.engine.guidance import GuidanceLike, resolve
from trimtab.engine.results import Generation


class Stream(Iterator[str]):
    """An answer being written: iterate for its pieces of text.

    Attributes:
        result: the whole answer, once it is finished; before that ``None``.
    """

    def __init__(self, core: Core, driver: Driver, answer: Answer) -> None:
        self._core = core
        self._driver = driver
        self._answer = answer
        self.result: Generation | None = None

    def __next__(self) -> str:
        answer = self._answer
        if answer.cancelled:
            raise StopIteration
        while not answer.pieces and not answer.finished:
            answer.wanted = True
            try:
                self._driver.step([answer])
            finally:
                answer.wanted = False
        if answer.error is not None:
            raise answer.error
        if answer.finish_reason is not None:
            self.result = answer.result()
        if answer.pieces:
            return answer.pieces.popleft()
        raise StopIteration

    @property
    def token_ids(self) -> list[int]:
        """The tokens chosen so far."""
        return list(self._answer.tokens)

    def close(self) -> None:
        """Stop writing; what has been written stays readable."""
        self._answer.cancelled = not self._answer.finished

    def __del__(self) -> None:
        self.close()

    def set_guidance(self, guidance: GuidanceLike) -> None:
        """Change weights, preferences and strength from the next token on, without reloading anything.

        A guide that had no row so far (its weight was 0) reads prompt and answer once, and so does one whose
        preference changes: what it has cached was read at the old one. The other rows go on as they are.

        Raises:
            GuidanceError: as in :meth:`Engine.generate`; the old guidance then stays.
            PromptTooLongError: a guide that joins has no room for the answer so far; likewise.
        """
        pulls = resolve(guidance, self._core.guides)
        self._driver.change([self._answer], pulls)
