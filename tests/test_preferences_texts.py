"""The shapes of prompts and answers: what is taken out of what, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.preferences.rows import RowProblem
from trimtab.preferences.texts import check_pair, extract_prompt, parse_steerlm, parse_transcript, read_text, split_pair

U = {"role": "user", "content": "What colour is the sky?"}
BLUE = {"role": "assistant", "content": "It is blue."}
GREEN = {"role": "assistant", "content": "It is green."}


@pytest.mark.parametrize(
    ("a", "b", "prompt"),
    [
        # The common prefix is "Q: 1+1?\nA: It is " — cut to the word's beginning, its single space goes to the answers.
        ("Q: 1+1?\nA: It is two", "Q: 1+1?\nA: It is three", "Q: 1+1?\nA: It is"),
        # "The sky is bl" is common, but the prompt may not end within a word.
        ("The sky is blue", "The sky is black", "The sky is"),
        # One answer continues the other: the last common word goes back to both.
        ("Say it: yes", "Say it: yes please", "Say it:"),
        # A line break stays with the prompt, as in TRL; only a single space moves.
        ("Question?\n\nYes", "Question?\n\nNo", "Question?\n\n"),
        # Chinese sets no spaces: any place divides two words.
        ("天空是蓝色", "天空是绿色", "天空是"),
        # A combining accent never parts from its letter.
        ("x e\u0301", "x e\u0300", "x"),
        ("Assistant:Yes", "Assistant:No", "Assistant:"),
    ],
)
def test_implicit_prompt_of_plain_text(a, b, prompt):
    got, left, right = extract_prompt(a, b)
    assert got == prompt
    assert (got + left, got + right) == (a, b)


@given(st.text(min_size=1), st.text(), st.text())
def test_implicit_prompt_loses_no_character(prefix, a, b):
    a, b = prefix + a, prefix + b
    try:
        prompt, left, right = extract_prompt(a, b)
    except RowProblem:
        return
    assert prompt + left == a
    assert prompt + right == b
    assert prompt.strip() and left.strip() and right.strip()


def test_implicit_prompt_of_chats_is_the_common_turns():
    assert extract_prompt([U, BLUE], [U, GREEN]) == ([U], [BLUE], [GREEN])
    more = {"role": "user", "content": "Sure?"}
    assert extract_prompt([U, BLUE, more, BLUE], [U, BLUE, more, GREEN]) == ([U, BLUE, more], [BLUE], [GREEN])


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        ("same", "same", "identical"),
        ("abc", "xyz", "share no beginning"),
        ([U, BLUE], [U, BLUE], "identical"),
        ([U], [U, BLUE], "only the beginning"),
        ([BLUE], [GREEN], "share no first turn"),
    ],
)
def test_no_implicit_prompt(a, b, reason):
    with pytest.raises(RowProblem, match=reason):
        extract_prompt(a, b)


def test_split_pair_tells_the_cases_apart():
    text = "What colour is the sky?"
    assert split_pair(text, "blue", "green") == (text, "blue", "green")
    assert split_pair([U], "It is blue.", "It is green.") == ([U], [BLUE], [GREEN])
    assert split_pair(text, [BLUE], [GREEN]) == ([U], [BLUE], [GREEN])
    assert split_pair(text, [U, BLUE], [U, GREEN]) == ([U], [BLUE], [GREEN])  # TRL: the plain prompt only repeats
    assert split_pair([U], [U, BLUE], [U, GREEN]) == ([U], [BLUE], [GREEN])
    assert split_pair(None, [U, BLUE], [U, GREEN]) == ([U], [BLUE], [GREEN])
    with pytest.raises(RowProblem, match="plain text and the other"):
        split_pair([U], "blue", [GREEN])


def test_trl_extracts_the_same_turns():
    trl = pytest.importorskip("trl.data_utils")
    row = {"chosen": [U, BLUE], "rejected": [U, GREEN]}
    theirs = trl.maybe_extract_prompt(row)
    assert (theirs["prompt"], theirs["chosen"], theirs["rejected"]) == extract_prompt(row["chosen"], row["rejected"])
    row = {"chosen": "The sky is blue.", "rejected": "The sky is green."}
    theirs = trl.maybe_extract_prompt(row)
    assert (theirs["prompt"], theirs["chosen"], theirs["rejected"]) == extract_prompt(row["chosen"], row["rejected"])


def test_transcript():
    text = "\n\nHuman: Hi\n\nsecond paragraph\n\nAssistant: Hello. \n\nHuman: Bye\n\nAssistant: Human: is a word"
    prompt, answer = parse_transcript(text, "chosen")
    assert prompt == [
        {"role": "user", "content": "Hi\n\nsecond paragraph"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Bye"},
    ]
    assert answer == [{"role": "assistant", "content": "Human: is a word"}]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Hello\n\nHuman: x\n\nAssistant: y", "begin with 'Human:'"),
        ("no markers", "begin with 'Human:'"),
        ("\n\nHuman: x\n\nAssistant: y\n\nHuman: z", "end with an 'Assistant:'"),
        (7, "a number, not a transcript"),
    ],
)
def test_not_a_transcript(text, reason):
    with pytest.raises(RowProblem, match=reason):
        parse_transcript(text, "chosen")


def test_steerlm_turns():
    assert parse_steerlm("just a question") == [{"role": "user", "content": "just a question"}]
    turns = parse_steerlm("q1\n<extra_id_1>Assistant\na1\nmore\n<extra_id_1>User\nq2")
    assert [(t["role"], t["content"]) for t in turns] == [("user", "q1"), ("assistant", "a1\nmore"), ("user", "q2")]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "'x' is missing"),
        (5, "a number"),
        ({"a": 1}, "an object"),
        (["hi"], "message 1 of 'x' has no 'role'"),
        ([{"role": "user", "content": None}], "'content' of message 1 of 'x' is null"),
        ([U, {"role": 1, "content": "y"}], "'role' of message 2"),
    ],
)
def test_read_text_refuses_other_shapes(value, reason):
    with pytest.raises(RowProblem, match=reason):
        read_text(value, "x")


def test_read_text_drops_the_nulls_that_tables_fill_in():
    assert read_text([{"role": "user", "content": "hi", "name": None}], "x") == [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("prompt", "a", "b", "reason"),
    [
        ("", "a", "b", "prompt is empty"),
        ([], [BLUE], [GREEN], "prompt is empty"),
        ("p", " \n", "b", "first answer is empty"),
        ("p", "a", "", "second answer is empty"),
        ("p", "a", "a", "identical"),
        ([U], [BLUE], [GREEN, U], "second answer holds a 'user' turn"),
    ],
)
def test_check_pair(prompt, a, b, reason):
    with pytest.raises(RowProblem, match=reason):
        check_pair(prompt, a, b)
