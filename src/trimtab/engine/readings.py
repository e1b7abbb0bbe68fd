"""Readings: given answers, read through base and guides to see what each thinks of every token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trimtab.decoding.rules import combine, ensure_usable
from trimtab.engine.answers import Core
from trimtab.engine.guidance import Pull
from trimtab.engine.requests import BASE, Request, Row
from trimtab.engine.results import TokenScores, Watch
from trimtab.engine.sampler import Scores
from trimtab.errors import NumericalError

PIECE = 64  # tokens of an answer whose logits are held at a time


class Reading(Request):
    """One given answer being read.

    Attributes:
        answer: its tokens.
        base: log-probabilities log π_b of the tokens read so far, nats.
        guides: for each guide its log-probabilities, at the pull that is asked for.
        alone: for each guide and each of its objectives alone, where that was asked for.
        combined: log-probabilities of the guided distribution.
        watch: what is noted of each token beside; ``None``: nothing.
        noted: what was noted.
        observer: called with the base's logits and z', both (T, V), of each piece that is scored; ``None``: nobody.
    """

    def __init__(
        self,
        core: Core,
        prompts: Sequence[list[int]],
        answer: Sequence[int],
        pulls: Sequence[Pull],
        alone: Sequence[Sequence[Pull]],
    ) -> None:
        """Begin a reading.

        Args:
            core: what is loaded.
            prompts: stream → prompt ids, for the base and every guide.
            answer: T ≥ 1 token ids of the base.
            pulls: what is asked of each guide.
            alone: for each guide, further pulls that it also reads at.

        Raises:
            GuidanceError: a guide does not know a token of the answer.
        """
        self._own = [[core.own_id(stream, token) for token in answer] for stream in range(len(prompts))]
        self._main = [core.row(s, list(ids), pulls[s - 1] if s else None) for s, ids in enumerate(prompts)]
        self._alone = [[core.row(j + 1, list(prompts[j + 1]), pull) for pull in extra] for j, extra in enumerate(alone)]
        super().__init__([*self._main, *(row for rows in self._alone for row in rows)])
        self.base: list[float] = []
        self.guides: list[list[float]] = [[] for _ in pulls]
        self.alone: list[list[list[float]]] = [[[] for _ in extra] for extra in alone]
        self.combined: list[float] = []
        self.watch: Watch | None = None
        self.noted: list[TokenScores] = []
        self.observer: Callable[[Tensor, Tensor], None] | None = None
        self.answer = list(answer)
        self._core, self._weights = core, [pull.weight for pull in pulls]
        self._at = 0  # tokens scored

    @property
    def finished(self) -> bool:
        """Whether every token has been scored."""
        return self._at >= len(self.answer) or self.error is not None

    def look_ahead(self, budget: int) -> None:
        """Add tokens of the answer, so that the forward scores them and the one after them."""
        self.ahead = min(PIECE - 1, budget, len(self.answer) - self._at - 1)
        for row in self.rows:
            row.tokens.extend(self._own[row.stream][self._at : self._at + self.ahead])

    def take(self, scores: Scores) -> None:
        """Keep the log-probabilities of the tokens whose logits a forward gave."""
        count = 1 + self.ahead
        answer = self.answer[self._at : self._at + count]
        try:
            logits = [self._logits(row, scores, count) for row in self._main]
            device = logits[BASE].device
            weights = [torch.full((len(answer),), weight, device=device) for weight in self._weights]
            z = combine(logits[BASE], logits[1:], weights)
            ensure_usable(z)
        except NumericalError as error:
            self.error = error
            return
        if self.observer is not None:
            self.observer(logits[BASE], z)
        self.base += _taken(logits[BASE], answer)
        self.combined += _taken(z, answer)
        for j, scored in enumerate(logits[1:]):
            self.guides[j] += _taken(scored, answer)
            for k, row in enumerate(self._alone[j]):
                self.alone[j][k] += _taken(self._logits(row, scores, count), answer)
        self._at += count
        self.ahead = 0
        for row in self.rows:
            row.tokens.append(self._own[row.stream][self._at - 1])

    def _logits(self, row: Row, scores: Scores, count: int) -> Tensor:
        tensor, line = scores[row][0]  # the lines of one row follow each other
        found = tensor[line : line + count].to(self._core.base.device)
        return self._core.guides[row.stream - 1].vocabulary.gather(found) if row.stream else found


def _taken(logits: Tensor, answer: Sequence[int]) -> list[float]:
    """Return the log-softmax, in float32, of the answer's tokens: (T, V) → T numbers in nats."""
    index = torch.tensor(answer, device=logits.device).unsqueeze(-1)
    values: list[float] = logits.to(torch.float32).log_softmax(-1).gather(-1, index).squeeze(-1).tolist()
    return values
