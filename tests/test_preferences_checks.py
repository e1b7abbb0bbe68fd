"""The analysis behind ``trimtab data check``, on data small enough to count by hand."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.preferences import BadRow, Comparison, Label
from trimtab.preferences.checks import (
    check_comparisons,
    token_measure,
    wilson_interval,
    word_measure,
)

A, B, TIE = Label.A, Label.B, Label.TIE


def compare(prompt, a, b, source="", **labels):
    return Comparison(prompt, a, b, labels, source=source)


DATA = [
    compare("one two", "x", "x y z", "f:1", brief=A, kind=B),  # shorter better / longer better
    compare("one two", "x y", "z", "f:2", brief=A, kind=TIE),  # longer better / tie
    compare("one", "x", "y y", "f:3", brief=A),  # shorter better / missing
    compare("one", "x w", "y v", "f:4", brief=B, kind=A),  # equally long, so out of the accuracies
]


def test_labels_and_length_alone():
    brief, kind = check_comparisons(DATA).objectives
    assert (brief.name, brief.prefers_a, brief.prefers_b, brief.ties, brief.missing) == ("brief", 3, 1, 0, 0)
    assert (brief.unequal, brief.equal) == (3, 1)
    assert brief.shorter_wins == pytest.approx(2 / 3)
    assert brief.longer_wins == pytest.approx(1 / 3)
    assert brief.shorter_interval == wilson_interval(2, 3)
    assert (kind.prefers_a, kind.prefers_b, kind.ties, kind.missing) == (1, 1, 1, 1)
    assert (kind.unequal, kind.equal, kind.shorter_wins) == (1, 1, 0.0)


def test_no_decided_pair_gives_no_share():
    (item,) = check_comparisons([compare("p", "x", "y", kind=A)]).objectives
    assert (item.unequal, item.shorter_wins, item.shorter_interval) == (0, None, None)


def test_lengths_are_nearest_rank_percentiles():
    data = [compare(" ".join("p" * n), "x", "y y", kind=A) for n in range(1, 101)]
    prompt, answer = check_comparisons(data).lengths
    # Nearest rank of the numbers 1 … 100: the p-th percentile is p itself.
    assert (prompt.minimum, prompt.mean, prompt.maximum) == (1, 50.5, 100)
    assert prompt.percentiles == {50: 50, 90: 90, 95: 95, 99: 99}
    assert (answer.count, answer.minimum, answer.mean, answer.maximum) == (200, 1, 1.5, 2)
    assert answer.percentiles == {50: 1, 90: 2, 95: 2, 99: 2}


def test_duplicates_swaps_and_contradictions():
    data = [
        compare("p", "x", "y", "f:1", kind=A, brief=A),
        compare("p", "x", "y", "f:2", kind=A),  # repeats
        compare("p", "y", "x", "f:3", kind=B),  # the same judgement, swapped
        compare("p", "y", "x", "f:4", kind=A),  # swapped, and the other answer preferred
        compare("p", "x", "y", "f:5", kind=TIE, brief=B),  # contradicts on brief only
        compare("q", "x", "y", "f:6", kind=B),  # another prompt
    ]
    found = check_comparisons(data).duplicates
    assert (found.repeated, found.swapped, found.contradicting) == (4, 2, 2)
    assert found.examples == (
        "f:4 contradicts f:1",
        "f:5 contradicts f:1",
        "f:2 repeats f:1",
        "f:3 repeats f:1",
    )


def test_overlap():
    def chat(*contents):
        roles = ("user", "assistant") * 2
        return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]

    x, y = [{"role": "assistant", "content": "x"}], [{"role": "assistant", "content": "y"}]
    here = [compare(chat("hi"), x, y), compare(chat("hi"), y, x), compare(chat("ho", "a", "b"), x, y)]
    there = [compare(chat("hi"), x, y), compare(chat("ho", "a", "c"), x, y)]
    overlap = check_comparisons(here, against=there, against_name="val").overlap
    assert overlap is not None
    # "hi" is in both (two rows here); the conversation after "ho" goes on differently.
    assert (overlap.against, overlap.prompts, overlap.rows, overlap.first_messages) == ("val", 1, 2, 2)
    assert check_comparisons(here).overlap is None


def test_truncation():
    data = [
        compare("p p p", "a b c", "a b d", kind=A),  # 3 + 3 words
        compare("p", "a b c", "a b d e", kind=A),  # 1 + 4 words
    ]

    def cut(*limits):
        found = check_comparisons(data, max_length=limits[0], max_prompt_length=limits[1]).truncation
        assert found is not None
        return found.prompts_cut, found.pairs_cut, found.pairs_equal

    assert cut(6, None) == (0, 0, 0)
    assert cut(5, None) == (0, 1, 1)  # row 1: 2 words of room, "a b" = "a b"; row 2: 4 words of room
    assert cut(5, 2) == (1, 0, 0)  # the first prompt loses a word, so 3 words fit again
    assert cut(4, None) == (0, 2, 1)  # row 2: "a b c" against "a b d" still differ
    assert cut(2, None) == (1, 2, 2)  # no room at all in row 1, one word ("a") in row 2
    assert check_comparisons(data).truncation is None


def test_tokens_are_counted_as_training_encodes_them(tokenizer):
    chat = [{"role": "user", "content": "q"}]
    answer = [{"role": "assistant", "content": "#"}]
    measure = token_measure(tokenizer)
    # One byte and the token that ends a turn; the prompt carries the whole template.
    assert list(measure.answer(chat, answer)) == [*tokenizer("#")["input_ids"], tokenizer.eos_token_id]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert list(measure.prompt(chat)) == tokenizer(rendered, add_special_tokens=False)["input_ids"]
    report = check_comparisons([compare(chat, answer, [{"role": "assistant", "content": "##"}], h=A)], measure=measure)
    assert (report.unit, report.lengths[1].minimum, report.lengths[1].maximum) == ("tokens", 2, 3)


def test_words():
    measure = word_measure()
    assert measure.prompt([{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}]) == [
        "a",
        "b",
        "c",
    ]
    assert measure.answer("", " a  b\n") == ["a", "b"]


def test_wilson_interval_by_hand():
    # p = 0.9, n = 10, z = 1.96: centre (0.9 + 0.19207)/1.38415 = 0.78898,
    # spread √(0.009 + 0.0096036)·1.95996/1.38415 = 0.19314; 0.596 to 0.982.
    low, high = wilson_interval(9, 10)
    assert (round(low, 3), round(high, 3)) == (0.596, 0.982)
    assert wilson_interval(0, 5)[0] == 0.0 and wilson_interval(5, 5)[1] == 1.0
    for bad in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="is no share"):
            wilson_interval(*bad)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_share_and_mirrors(case):
    k, n = case
    low, high = wilson_interval(k, n)
    assert 0.0 <= low <= k / n + 1e-12 and k / n - 1e-12 <= high <= 1.0
    mirrored = wilson_interval(n - k, n)
    assert (1 - mirrored[1], 1 - mirrored[0]) == (pytest.approx(low, abs=1e-12), pytest.approx(high, abs=1e-12))


def test_report_is_json(tokenizer):
    report = check_comparisons(DATA, bad_rows=[BadRow("f", 9, "why")], max_length=9, against=DATA, against_name="f")
    value = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert value["bad_rows"] == [{"source": "f", "line": 9, "reason": "why"}]
    assert value["objectives"][0]["shorter_interval"] == list(wilson_interval(2, 3))
    assert (value["comparisons"], value["prompts"], value["conversational"]) == (4, 2, 0)
    assert check_comparisons([]).lengths == ()
