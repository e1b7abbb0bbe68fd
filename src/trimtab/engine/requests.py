"""What the scheduler works on: requests, each with one row for every stream that reads along."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from trimtab.engine.pages import PageKey, PagePool, first_key, next_key, pages_for
from trimtab.engine.spans import PAGE, PageTable, Span

BASE = 0  # the base's stream; guide j is stream j + 1
DRAFT = -1  # the stream of a model that only drafts


@dataclass(eq=False)
class Row:
    """One sequence as one stream reads it.

    Attributes:
        stream: 0 for the base, j + 1 for guide j, -1 for a model that only drafts.
        backbone: number of the weights it runs through.
        tokens: prompt and answer so far, in the stream's own ids.
        slot: adapter, ``None`` for the bare weights.
        conditions: what a conditioned adapter's layers need of the preference, else ``None``.
        mark: what shapes its keys and values beside its tokens: rows of one mark can share pages.
        salt: rows of different salts never do.
        watches: whether it only reads along, and the next token does not depend on it.
        read: how many tokens are in the cache.
        pages: the pages they are in.
        published: how many of the pages others may share.
    """

    stream: int
    backbone: int
    tokens: list[int]
    slot: int | None = None
    conditions: Tensor | None = None
    mark: object = None
    salt: str | None = None
    watches: bool = False
    read: int = 0
    pages: list[int] = field(default_factory=list[int])
    published: int = 0
    _table: PageTable = field(default_factory=lambda: np.zeros(16, dtype=np.int32))
    _keys: list[PageKey] = field(default_factory=list[PageKey])

    @property
    def pending(self) -> int:
        """Tokens that are not in the cache yet."""
        return len(self.tokens) - self.read

    def span(self, count: int, keep: int) -> Span:
        """Return the next ``count`` tokens as a forward reads them."""
        tokens = self.tokens[self.read : self.read + count]
        return Span(tokens, self.read, self._table, self.slot, self.conditions, keep)

    def keys(self) -> list[PageKey]:
        """Return the keys of the pages that the tokens fill."""
        full = len(self.tokens) // PAGE
        while len(self._keys) < full:
            at = len(self._keys) * PAGE
            before = self._keys[-1] if self._keys else first_key((self.stream, self.slot, self.mark, self.salt))
            self._keys.append(next_key(before, self.tokens[at : at + PAGE]))
        return self._keys[:full]

    def shareable(self) -> list[PageKey]:
        """Return the keys of pages whose content may be taken from others: the last token is always read anew."""
        return self.keys()[: (len(self.tokens) - 1) // PAGE]

    def adopt(self, pool: PagePool, found: Sequence[int]) -> None:
        """Begin with pages that were read before."""
        for page in found:
            pool.share(page)
        self._extend(found)
        self.read = len(found) * PAGE
        self.published = len(found)

    def reserve(self, pool: PagePool, tokens: int) -> bool:
        """Take the pages for so many tokens; return whether there were enough."""
        missing = pages_for(tokens) - len(self.pages)
        if missing > pool.free:
            return False
        self._extend([pool.take() for _ in range(missing)])
        return True

    def publish(self, pool: PagePool, tokens: int) -> list[PageKey]:
        """Let others share the pages that the first ``tokens`` tokens fill; return the keys of the new ones."""
        full = min(tokens, self.read) // PAGE
        keys = self.keys()[self.published : full] if full > self.published else []
        for page, key in zip(self.pages[self.published : full], keys, strict=True):
            pool.publish(page, key)
        self.published = max(full, self.published)
        return keys

    def rewind(self, tokens: int) -> None:
        """Forget all but the first ``tokens`` tokens."""
        del self.tokens[tokens:]
        del self._keys[tokens // PAGE :]
        self.read = min(self.read, tokens)

    def release(self, pool: PagePool) -> None:
        """Give all pages back; the tokens stay and can be read again."""
        pool.give_back(self.pages)
        self.pages = []
        self.read = self.published = 0

    def _extend(self, pages: Sequence[int]) -> None:
        before = len(self.pages)
        self.pages.extend(pages)
        if len(self.pages) > len(self._table):
            self._table = np.resize(self._table, 2 * len(self.pages))
        self._table[before : len(self.pages)] = pages


_numbers = itertools.count()


class Request(ABC):
    """Something that rows are read for, step by step.

    Attributes:
        rows: its rows, the base's first.
        ahead: how many of the rows' last tokens are not certain, or not scored yet: a forward gives logits for them
            and for the token before them.
        wanted: whether it is to go on now; a stream whose reader pauses is not.
        cancelled: whether it is to be forgotten at the next step.
        error: what ended it before its time.
        number: requests in the order in which they were made.
        left: rows that do not read along any longer, whose pages are still theirs.
    """

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self.ahead = 0
        self.wanted = True
        self.cancelled = False
        self.error: Exception | None = None
        self.number = next(_numbers)
        self.left: list[Row] = []

    @property
    def deciding(self) -> list[Row]:
        """The rows that the next token depends on."""
        return [row for row in self.rows if row.stream != DRAFT and not row.watches]

    @property
    def scoring(self) -> list[Row]:
        """The rows whose logits a step gives: those that decide, and those that watch."""
        return [row for row in self.rows if row.stream != DRAFT]

    def drop_ahead(self) -> None:
        """Take back the tokens that are not certain, or not scored yet."""
        for row in self.rows:
            row.rewind(len(row.tokens) - self.ahead)
        self.ahead = 0

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether nothing is left to do."""

    def look_ahead(self, budget: int) -> None:
        """Add up to ``budget`` tokens to every row, which are read in the same forward as its last one, and count them
        in ``ahead``. Most requests know no token in advance.
        """  # noqa: D205
        del budget
