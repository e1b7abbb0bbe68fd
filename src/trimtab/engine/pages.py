"""Which page of the KV cache belongs to whom: counting, sharing equal beginnings, and giving pages back."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from trimtab.engine.spans import PAGE, SCRATCH

PageKey = bytes
"""Names what a full page holds: the stream it was read by, and every token from the start to its end."""


def first_key(stream: object) -> PageKey:
    """Return the key that chains of one stream begin with; ``stream`` says what else shapes keys and values."""
    return hashlib.blake2b(repr(stream).encode(), digest_size=16).digest()


def next_key(previous: PageKey, tokens: Sequence[int]) -> PageKey:
    """Return the key of the page of ``tokens`` that follows ``previous``."""
    return hashlib.blake2b(previous + np.asarray(tokens, dtype=np.int64).tobytes(), digest_size=16).digest()


class PagePool:
    """The pages of one backbone.

    A page is in use by one sequence or more, or free; free pages that hold the keys and values of a known beginning
    keep them until they are needed, the longest unused first.

    Attributes:
        pages: how many there are, the scratch page not counted.
    """

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self._empty = list(range(pages, SCRATCH, -1))
        self._users = [0] * (pages + 1)
        self._page_of: dict[PageKey, int] = {}
        self._key_of: dict[int, PageKey] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # free, but their content is known

    @property
    def free(self) -> int:
        """How many pages can be taken."""
        return len(self._empty) + len(self._idle)

    def take(self) -> int:
        """Return a page for one user.

        Raises:
            IndexError: none is free.
        """
        if self._empty:
            page = self._empty.pop()
        elif self._idle:
            page, _ = self._idle.popitem(last=False)
            del self._page_of[self._key_of.pop(page)]
        else:
            raise IndexError("no page of the KV cache is free")
        self._users[page] = 1
        return page

    def find(self, keys: Sequence[PageKey]) -> list[int]:
        """Return the pages that hold the longest known beginning of a chain, without taking them."""
        found: list[int] = []
        for key in keys:
            page = self._page_of.get(key)
            if page is None:
                break
            found.append(page)
        return found

    def share(self, page: int) -> None:
        """Add a user to a page that was found."""
        if self._users[page] == 0:
            del self._idle[page]
        self._users[page] += 1

    def is_idle(self, page: int) -> bool:
        """Return whether a page has no user."""
        return self._users[page] == 0

    def publish(self, page: int, key: PageKey) -> None:
        """Say what a page holds now that it is full, so that others can share it."""
        if key not in self._page_of and page not in self._key_of:
            self._page_of[key] = page
            self._key_of[page] = key

    def give_back(self, pages: Sequence[int]) -> None:
        """Take a user off each page. The end of a sequence is forgotten before its beginning, which others share."""
        for page in reversed(pages):
            self._users[page] -= 1
            if self._users[page] == 0:
                if page in self._key_of:
                    self._idle[page] = None
                else:
                    self._empty.append(page)


def pages_for(tokens: int) -> int:
    """Return how many pages hold so many tokens."""
    return -(-tokens // PAGE)
