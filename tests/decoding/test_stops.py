"""Text while it grows: no token split changes it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from trimtab.decoding.stops import IncrementalDecoder, StopScanner, TextAssembler

TOKENIZER = tiny.make_tokenizer()


def _pieces(text: str, cuts: list[int]) -> list[str]:
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in itertools.pairwise(edges)]


def _scan(pieces, stops):
    scanner = StopScanner(stops)
    text = "".join(scanner.push(piece) for piece in pieces)
    return text + scanner.finish(), scanner.found


@given(
    st.text("abc", max_size=20),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 20), max_size=8),
)
def test_any_split_gives_the_same_text(text, stops, cuts):
    by_character = _scan(list(text), stops)
    assert _scan(_pieces(text, cuts), stops) == by_character
    assert _scan([text], stops) == by_character
    out, found = by_character
    if found is None:
        assert out == text
        assert not any(stop in text for stop in stops)
    else:
        assert text.startswith(out + found)


def test_text_is_held_back_only_while_a_stop_may_follow():
    scanner = StopScanner(["\n\nUser"])
    assert scanner.push("fine\n") == "fine"
    assert scanner.push("x") == "\nx"
    assert scanner.push("\n\nUs") == ""
    assert scanner.push("er: hi") == ""
    assert scanner.found == "\n\nUser"


def test_the_stop_that_ends_first_counts():
    assert _scan(["xaby"], ["xaby", "ab"]) == ("x", "ab")
    assert _scan(["xab"], ["xab", "ab"]) == ("", "xab")


@given(st.lists(st.integers(0, 299), max_size=40))
def test_pieces_join_to_the_tokenizers_own_text_for_any_tokens(ids):
    decoder = IncrementalDecoder(TOKENIZER)
    text = "".join(decoder.push(token) for token in ids) + decoder.finish()
    assert text == TOKENIZER.decode(ids, skip_special_tokens=True)


@given(st.text(max_size=12))
def test_no_piece_ends_inside_a_character(text):
    decoder = IncrementalDecoder(TOKENIZER)
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    pieces = [decoder.push(token) for token in ids]
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)
        assert "".join(pieces) == text


@pytest.mark.parametrize("word", ["grüße", "日本", "👩‍🚀"])
def test_stop_strings_of_several_bytes(word):
    ids = TOKENIZER(f"one {word} two", add_special_tokens=False)["input_ids"]
    assembler = TextAssembler(TOKENIZER, [word])
    pieces = []
    for token in ids:
        pieces.append(assembler.push(token))
        if assembler.stopped_by:
            break
    assert "".join(pieces) == assembler.text == "one "
    assert assembler.stopped_by == word


def test_a_stop_string_that_is_completed_too_early_does_not_count():
    scanner = StopScanner(["stop"])
    assert scanner.push("a stop, a st", looking=False) == "a stop, a "
    assert scanner.push("op here", looking=True) == ""
    assert scanner.found == "stop"
    scanner = StopScanner(["stop"])
    assert scanner.push("sto", looking=False) + scanner.push("p", looking=False) == "stop"
    assert scanner.push("!") + scanner.finish() == "!"
    assert scanner.found is None
