"""From tokens to text while it grows: whole characters only, and never a piece of a stop string."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

_BROKEN = "\ufffd"  # what a tokenizer writes for bytes that are not (yet) a character


class IncrementalDecoder:
    """Turns token ids into text piece by piece; the pieces join to the tokenizer's own decoding of all ids.

    A character may be spread over several byte tokens, and some tokenizers write a token differently at the start of
    a text. So each step decodes a short window of recent tokens and gives out what it adds, once it is whole.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._given = 0  # tokens of the window whose text is out already

    def push(self, token: int) -> str:
        """Add a token; return the text that is now certain, possibly none."""
        self._window.append(token)
        before, now = self._texts()
        if len(now) <= len(before) or now.endswith(_BROKEN):
            return ""
        self._window = self._window[self._given :]
        self._given = len(self._window)
        return now[len(before) :]

    def finish(self) -> str:
        """Return what is still held back (an unfinished character shows as U+FFFD)."""
        before, now = self._texts()
        self._given = len(self._window)
        return now[len(before) :]

    def _texts(self) -> tuple[str, str]:
        return self._decode(self._window[: self._given]), self._decode(self._window)

    def _decode(self, ids: Sequence[int]) -> str:
        if not ids:
            return ""
        text = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return cast("str", text)


class StopScanner:
    """Cuts a growing text before the first stop string that is completed, however the text is split into pieces.

    Of several stop strings the one whose last character comes first counts (of two that end together, the longer).

    Attributes:
        found: the stop string that ended the text, or ``None``.
    """

    def __init__(self, stops: Iterable[str] = ()) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    def push(self, piece: str, *, looking: bool = True) -> str:
        """Add text; return what is certainly before any stop string.

        Args:
            piece: the text.
            looking: whether a stop string that this completes ends the text; one that it only begins still can.
        """
        if self.found is not None:
            return ""
        if not self._stops:
            return piece
        self._held += piece
        hits = [(at + len(stop), at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if hits and looking:
            _, at, self.found = min(hits)
            text, self._held = self._held[:at], ""
            return text
        keep = self._length_of_a_beginning()
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def finish(self) -> str:
        """Return the text that was held back because a stop string might have followed."""
        text, self._held = self._held, ""
        return text

    def _length_of_a_beginning(self) -> int:
        """Return the length of the longest end of the held text with which a stop string begins."""
        longest = max(len(stop) for stop in self._stops) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            end = self._held[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0


class TextAssembler:
    """The text of one answer as its tokens arrive.

    Attributes:
        text: everything given out so far; after :meth:`finish`, the whole answer.
    """

    def __init__(self, tokenizer: Any, stops: Iterable[str] = ()) -> None:
        self._decoder = IncrementalDecoder(tokenizer)
        self._scanner = StopScanner(stops)
        self.text = ""

    @property
    def stopped_by(self) -> str | None:
        """The stop string that ended the text, or ``None``."""
        return self._scanner.found

    def push(self, token: int, *, looking: bool = True) -> str:
        """Add a token; return the new text that may be shown.

        Args:
            token: the token.
            looking: whether a stop string that it completes ends the text.
        """
        return self._out(self._scanner.push(self._decoder.push(token), looking=looking))

    def finish(self, *, looking: bool = True) -> str:
        """End the answer; return the last text that may be shown."""
        last = self._scanner.push(self._decoder.finish(), looking=looking)
        return self._out(last + self._scanner.finish())

    def _out(self, piece: str) -> str:
        self.text += piece
        return piece
