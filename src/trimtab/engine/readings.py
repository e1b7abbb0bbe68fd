"""Readings: given answers, read through base and guides to see what each thinks of every token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from trimtab.decoding.rules import combine, ensure_usable
from trimtab.engine.core import Core
from trimtab.engine.guidance import Pull
from trimtab.engine.noting import Heard, Part, less, note, voices
from trimtab.engine.places import Scores, lines, log_probabilities, taken
from trimtab.engine.requests import BASE, Request, Row
from trimtab.engine.results import TokenScores, Watch
from trimtab.errors import NumericalError

PIECE = 64  # tokens of an answer whose logits are held at a time


class Reading(Request):
    """One given answer being read.

    Attributes:
        answer: its tokens.
        base: log-probabilities log π_b of the tokens read so far, nats.
        guides: for each guide its scores, at the pull that is asked for: log π_r, of a policy log π − log π_ref.
        alone: for each guide and each of its objectives alone, where that was asked for.
        combined: log-probabilities of the guided distribution.
        watch: what is noted of each token beside; ``None``: nothing.
        noted: what was noted and nobody has taken yet.
        observer: called with the base's logits and z', both (T, V), of each piece that is scored; ``None``: nobody.
    """

    def __init__(
        self,
        core: Core,
        prompts: Mapping[int, list[int]],
        answer: Sequence[int],
        pulls: Sequence[Pull],
        alone: Mapping[int, Sequence[Pull]],
        *,
        watch: Watch | None = None,
        salt: str | None = None,
    ) -> None:
        """Begin a reading.

        Args:
            core: what is loaded.
            prompts: stream → prompt ids, for the base, every guide that reads, and their references.
            answer: T ≥ 1 token ids of the base.
            pulls: what is asked of each guide.
            alone: stream → further pulls that the guide also reads at.
            watch: what is noted of each token.
            salt: requests of different salts share nothing that was read.

        Raises:
            GuidanceError: a guide does not know a token of the answer.
        """
        self._own = {stream: [core.own_id(stream, token) for token in answer] for stream in prompts}
        asked = {stream: core.pull(stream, pulls) if stream else None for stream in sorted(prompts)}
        self._main = {s: core.row(s, list(prompts[s]), pull, salt) for s, pull in asked.items()}
        rows = {(row.stream, row.mark): row for row in self._main.values()}

        def one(stream: int, pull: Pull) -> Row:
            key = (stream, core.mark(stream, pull))
            return rows.setdefault(key, core.row(stream, list(prompts[stream]), pull, salt))

        self._alone = {stream: [one(stream, pull) for pull in extra] for stream, extra in alone.items()}
        wanted = voices(core.guides, pulls) if watch is not None and watch.objectives else []
        self._heard = [
            Heard(voice, one(voice.stream, voice.pull), self._reference(core, voice.stream))
            for voice in wanted
            if voice.stream in prompts
        ]
        super().__init__(list(rows.values()))
        self.base: list[float] = []
        self.guides: list[list[float]] = [[] for _ in pulls]
        self.alone: list[list[list[float]]] = [[[] for _ in alone.get(j + 1, ())] for j in range(len(pulls))]
        self.combined: list[float] = []
        self.watch = watch
        self.noted: list[TokenScores] = []
        self.observer: Callable[[Tensor, Tensor], None] | None = None
        self.answer = list(answer)
        self._core, self._pulls = core, pulls
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
        answer = self.answer[self._at : self._at + 1 + self.ahead]
        try:
            logits = {stream: self._logits(row, scores) for stream, row in self._main.items()}
            device = logits[BASE].device
            guides = [stream for stream in logits if stream]
            core, size = self._core, (len(answer),)
            weights = [torch.full(size, core.pull(s, self._pulls).weight, device=device) for s in guides]
            own = torch.full(size, core.base_weight(self._pulls), device=device) if core.shares_reference else None
            z = combine(logits[BASE], [logits[stream] for stream in guides], weights, base_weight=own)
            ensure_usable(z)
        except NumericalError as error:
            self.error = error
            return
        if self.observer is not None:
            self.observer(logits[BASE], z)
        found = {stream: taken(log_probabilities(own), answer) for stream, own in logits.items()}
        self.base += found[BASE]
        self.combined += taken(log_probabilities(z), answer)
        for stream in guides:
            if stream <= len(core.guides):
                self.guides[stream - 1] += self._score(stream, found[stream], found)
        for stream, rows in self._alone.items():
            for k, row in enumerate(rows):
                alone = taken(log_probabilities(self._logits(row, scores)), answer)
                self.alone[stream - 1][k] += self._score(stream, alone, found)
        if self.watch is not None:
            (notes,) = note(core, [Part(self.watch, answer, self._main[BASE], self._heard)], z, scores)
            self.noted += notes
        self._at += len(answer)
        self.ahead = 0
        for row in self.rows:
            row.tokens.append(self._own[row.stream][self._at - 1])

    def _logits(self, row: Row, scores: Scores) -> Tensor:
        return self._core.gather(row.stream, lines(scores[row]).to(self._core.base.device))

    def _reference(self, core: Core, stream: int) -> Row | None:
        """Return the row whose log-probabilities are subtracted from a policy's; ``None`` for another guide's."""
        reference = core.reference_of(stream)
        return None if reference is None else self._main[reference]

    def _score(self, stream: int, values: list[float], found: Mapping[int, list[float]]) -> list[float]:
        """Return a guide's scores of tokens whose log-probabilities it has given."""
        reference = self._core.reference_of(stream)
        return values if reference is None else less(values, found[reference])
