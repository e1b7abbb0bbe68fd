"""Answers written in step: rows of one request, so that a caller gets the logits of all of them at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trimtab.engine.core import Core
from trimtab.engine.guidance import Pull
from trimtab.engine.places import Scores
from trimtab.engine.requests import BASE, Request, Row
from trimtab.engine.sampler import combined, unusable


@dataclass(frozen=True, eq=False)
class Line:
    """One answer of a batch.

    Attributes:
        prompt: ids of the base.
        pulls: what is asked of each guide.
        rows: its rows, the base's first.
        ahead: how many drafted tokens it is ahead: none.
    """

    prompt: Sequence[int]
    pulls: tuple[Pull, ...]
    rows: Sequence[Row] = field(repr=False)
    ahead: int = 0

    @property
    def deciding(self) -> Sequence[Row]:
        """The rows that the next token depends on: all of them."""
        return self.rows


class Batch(Request):
    """Answers whose tokens somebody else chooses, all at the same time.

    Attributes:
        lines: the answers that are still being written, by their number in the batch.
        logits: z', (A, V) float32, for the next token of each of these A answers; ``None`` until it is read.
    """

    def __init__(self, core: Core, prompts: Sequence[Sequence[int]], pulls: Sequence[tuple[Pull, ...]]) -> None:
        """Begin a batch.

        Args:
            core: what is loaded.
            prompts: B prompts, each at least one id of the base, without padding.
            pulls: what each of the B answers asks of each guide.

        Raises:
            GuidanceError: a guide does not know a token of a prompt.
        """
        self.lines = {i: _line(core, p, asked) for i, (p, asked) in enumerate(zip(prompts, pulls, strict=True))}
        super().__init__(self.rows_going_on())
        self.wanted = False
        self.logits: Tensor | None = None
        self._core = core

    @property
    def finished(self) -> bool:
        """Whether it cannot go on; otherwise it goes on until it is cancelled."""
        return self.error is not None

    @property
    def room(self) -> int:
        """How many tokens fit behind the longest prompt.

        Raises:
            PromptTooLongError: a prompt fills a context.
        """
        return self._core.room([(row.stream, len(line.prompt)) for line in self.lines.values() for row in line.rows])

    def take(self, scores: Scores) -> None:
        """Keep the combined logits, and pause until tokens have been chosen."""
        lines = list(self.lines.values())
        z = combined(self._core, lines, scores)
        usable = torch.isfinite(z.amax(dim=-1)).tolist()  # the best value is NaN where any is
        if not all(usable):
            bad = usable.index(False)
            self.error = unusable(self._core, z[bad], lines[bad], scores)
        self.logits, self.wanted = z, False

    def resume(self) -> None:
        """Let the next steps read what is unread, until there are logits again."""
        self.logits, self.wanted = None, True

    def add(self, tokens: Sequence[int], going: Sequence[bool]) -> bool:
        """Add the token that was chosen for each answer of the batch; return whether some leave, being finished.

        The rows of those that leave are to be replaced by :meth:`rows_going_on`.

        Args:
            tokens: B ids of the base; those of answers that have left do not count.
            going: for each of the B answers whether it goes on.

        Raises:
            GuidanceError: a guide does not know a token, which can only be one that was forced.
        """
        left = [i for i in self.lines if not going[i]]
        for i in left:
            del self.lines[i]
        for i, line in self.lines.items():
            for row in line.rows:
                row.tokens.append(self._core.own_id(row.stream, tokens[i]))
        return bool(left)

    def rows_going_on(self) -> list[Row]:
        """Return the rows of the answers that are still being written."""
        return [row for line in self.lines.values() for row in line.rows]


def _line(core: Core, prompt: Sequence[int], pulls: tuple[Pull, ...]) -> Line:
    rows = [core.row(BASE, list(prompt))]
    for stream in core.deciding(pulls)[1:]:
        ids = [core.own_id(stream, token) for token in prompt]
        rows.append(core.row(stream, ids, core.pull(stream, pulls)))
    return Line(prompt, pulls, rows)
