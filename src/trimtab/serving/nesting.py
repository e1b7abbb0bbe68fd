"""How deeply JSON is nested, found out without parsing it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_QUOTE, _BACKSLASH = 0x22, 0x5C
_PIECE = 1 << 14


class Nesting:
    """The depth of JSON that comes piece by piece: in linear time, and in memory that does not grow with it.

    Parsers call themselves for each level, so that the depth has to be known before they begin. Brackets inside of
    texts do not count. Of something that is not JSON the depth means nothing, and the parser refuses it.

    Attributes:
        deepest: the deepest level so far; 1 for an array or object in no other.
    """

    def __init__(self) -> None:
        self.deepest = 0
        self._depth = 0
        self._inside = False  # a text
        self._escaped = False  # the next character

    def feed(self, data: bytes) -> None:
        """Look at the next piece."""
        for at in range(0, len(data), _PIECE):
            self._feed(np.frombuffer(data, dtype=np.uint8, count=min(_PIECE, len(data) - at), offset=at))

    def _feed(self, signs: NDArray[np.uint8]) -> None:
        quotes = (signs == _QUOTE) & ~self._escapes(signs)
        inside = (np.cumsum(quotes) + self._inside) % 2 == 1
        # Setting bit 5 turns [ into { and ] into }, and nothing else that JSON has outside of texts into either.
        folded = signs | 0x20
        steps = ((folded == ord("{")).astype(np.int64) - (folded == ord("}"))) * ~inside
        depths = self._depth + np.cumsum(steps)
        self.deepest = max(self.deepest, int(depths.max()))
        self._depth = int(depths[-1])
        self._inside = bool(inside[-1])

    def _escapes(self, signs: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Return which characters follow an odd number of backslashes, and are therefore escaped."""
        places = np.arange(1, len(signs) + 1)
        # For each place, how many backslashes in a row end there; an escape from the last piece is one more before it.
        others = np.maximum.accumulate(np.where(signs == _BACKSLASH, 0, places))
        run = places - others + ((others == 0) & self._escaped)
        odd = run % 2 == 1
        escaped = np.concatenate(([self._escaped], odd[:-1]))
        self._escaped = bool(odd[-1])
        return escaped
