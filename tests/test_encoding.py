"""From comparisons to token ids: where prompts and answers are cut, and what is left out."""

from __future__ import annotations

import pytest

import tiny
from trimtab.errors import ConfigError, DataError
from trimtab.preferences import Comparison, Label
from trimtab.rewards.encoding import PairEncoder, choose_objective, encode_comparison, prepare_pairs

TOKENIZER = tiny.make_tokenizer()
EOS = TOKENIZER.convert_tokens_to_ids("<|im_end|>")


def _ids(text):
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def _plain(a="yes", b="no!", label=Label.A, prompt="abc", id="r"):
    return Comparison(prompt, a, b, {"good": label}, id=id)


def test_answers_end_with_the_end_of_response():
    pair = encode_comparison(_plain(), TOKENIZER, max_length=50, max_prompt_length=20)
    assert pair.prompt_ids[-3:] == _ids("abc")
    assert pair.a_ids == [*_ids("yes"), EOS]
    assert pair.b_ids == [*_ids("no!"), EOS]
    assert not pair.truncated


def test_chat_prompts_go_through_the_template():
    turns = [{"role": "user", "content": "hi"}]
    comparison = Comparison(turns, [{"role": "assistant", "content": "a"}], [{"role": "assistant", "content": "b"}], {})
    pair = encode_comparison(comparison, TOKENIZER, max_length=50, max_prompt_length=40)
    assert TOKENIZER.decode(pair.prompt_ids) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert pair.a_ids == [*_ids("a"), EOS]


def test_prompt_loses_its_beginning_and_answers_their_end():
    """Bytes are tokens here: prompt 'wxyz' cut to its last 3; 8 − 3 = 5 tokens are left for each answer."""
    comparison = Comparison("wxyz", "123456", "1234", {"good": Label.A})
    pair = encode_comparison(comparison, TOKENIZER, max_length=8, max_prompt_length=3)
    assert pair.prompt_ids == _ids("xyz")
    assert pair.prompt_truncated
    assert (pair.a_ids, pair.a_truncated) == (_ids("12345"), True)
    assert (pair.b_ids, pair.b_truncated) == ([*_ids("1234"), EOS], False)


def test_no_room_for_an_answer():
    with pytest.raises(ConfigError, match="less than max_length"):
        PairEncoder(TOKENIZER, max_length=8, max_prompt_length=8)


def test_prepare_orients_and_counts_everything_left_out():
    rows = [
        _plain(id="a"),
        _plain(label=Label.B, id="b"),
        _plain(label=Label.TIE),
        Comparison("q", "x", "y", {"other": Label.A}),
        _plain(a="same", b="same"),
        _plain(a="12345678x", b="12345678y"),
    ]
    encoder = PairEncoder(TOKENIZER, max_length=11, max_prompt_length=3)
    prepared = prepare_pairs(rows, "good", encoder)
    assert [p.id for p in prepared.pairs] == ["a", "b"]
    assert prepared.pairs[0].a_ids == [*_ids("yes"), EOS]
    assert prepared.pairs[1].a_ids == [*_ids("no!"), EOS]
    assert (prepared.rows, prepared.ties, prepared.missing, prepared.equal) == (6, 1, 1, 2)
    assert prepared.summary == "2 of 6 pairs for 'good' (left out: 1 not judged, 1 tied, 2 with equal answers)"


def test_choosing_the_objective():
    one, two = [_plain()], [_plain(), Comparison("q", "x", "y", {"other": Label.A})]
    assert choose_objective(one, None, source="f") == "good"
    assert choose_objective(two, "other", source="f") == "other"
    with pytest.raises(DataError, match="several objectives"):
        choose_objective(two, None, source="f")
    with pytest.raises(DataError, match="no labels for 'x'"):
        choose_objective(two, "x", source="f")
    with pytest.raises(DataError, match="no labelled pair"):
        choose_objective([], None, source="f")
