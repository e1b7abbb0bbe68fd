"""What single tokens are: a text, and the bytes it is made of, which need not be whole characters."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, cast

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "▁"  # how tokenizers of the SentencePiece family write a space


class TokenTexts:
    """The texts of a tokenizer's tokens, each looked up once."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._kinds = _decoder_kinds(tokenizer)
        self._bytes = {sign: byte for byte, sign in enumerate(_byte_signs())}
        self._special: dict[int, str] = {
            int(token): str(content) for content, token in tokenizer.get_added_vocab().items()
        }
        self._known: dict[int, tuple[str, bytes | None]] = {}  # no larger than the vocabulary

    def text(self, token: int) -> str:
        r"""Return a token's text; of one that is not whole characters its bytes, as ``bytes:\xe2\x82``."""
        return self._look(token)[0]

    def bytes(self, token: int) -> list[int] | None:
        """Return a token's bytes; ``None`` where the tokenizer does not tell."""
        found = self._look(token)[1]
        return None if found is None else list(found)

    def offsets(self, start: int = 0, *, special: bool = True) -> Offsets:
        """Return what places tokens in a text that grows.

        Args:
            start: characters before the first token.
            special: whether special tokens are part of the text.
        """
        hidden = frozenset(int(token) for token in self._tokenizer.all_special_ids) if not special else frozenset[int]()
        return Offsets(self, start, hidden)

    def raw(self, token: int) -> bytes:
        """Return a token's bytes, or those of its text where the tokenizer does not tell."""
        text, found = self._look(token)
        return text.encode() if found is None else found

    def _look(self, token: int) -> tuple[str, bytes | None]:
        found = self._known.get(token)
        if found is None:
            found = self._known[token] = self._find(token)
        return found

    def _find(self, token: int) -> tuple[str, bytes | None]:
        if token in self._special:
            return self._special[token], self._special[token].encode()
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if not isinstance(piece, str):  # the model's vocabulary is larger than the tokenizer's
            return f"token_id:{token}", None
        raw = self._bytes_of(piece)
        if raw is None:
            text = cast("str", self._tokenizer.decode([token], clean_up_tokenization_spaces=False))
            return text, None if "\ufffd" in text else text.encode()
        try:
            return raw.decode(), raw
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw), raw

    def _bytes_of(self, piece: str) -> bytes | None:
        if "ByteLevel" in self._kinds and all(sign in self._bytes for sign in piece):
            return bytes(self._bytes[sign] for sign in piece)
        if "ByteFallback" in self._kinds:
            byte = _BYTE.fullmatch(piece)
            return bytes([int(byte[1], 16)]) if byte else piece.replace(_SPACE, " ").encode()
        return None


class Offsets:
    """Where tokens begin in a text, in characters; one that begins inside a character begins where that does."""

    def __init__(self, texts: TokenTexts, start: int, hidden: frozenset[int]) -> None:
        self._texts, self._at, self._hidden = texts, start, hidden
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def next(self, tokens: Sequence[int]) -> list[int]:
        """Return where the next tokens begin."""
        return list(self._places(tokens))

    def _places(self, tokens: Sequence[int]) -> Iterator[int]:
        for token in tokens:
            yield self._at
            if token not in self._hidden:
                self._at += len(self._decoder.decode(self._texts.raw(token)))


def _byte_signs() -> list[str]:
    """Return the sign that byte-level tokenizers write for each byte: printable ones as they are, the rest from 256."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    kept = set(printable)
    return [chr(byte if byte in kept else next(others)) for byte in range(256)]


def _decoder_kinds(tokenizer: Any) -> frozenset[str]:
    """Return the names of the parts of a fast tokenizer's decoder; none for others."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None:
        return frozenset()
    state = json.loads(decoder.__getstate__())
    return frozenset(str(part.get("type")) for part in [state, *state.get("decoders", [])])
