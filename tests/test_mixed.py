"""The label of a mixture of objectives, worked by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import DataError, GuidanceError
from trimtab.preferences import Comparison, Label
from trimtab.rewards.encoding import PairEncoder, prepare_pairs
from trimtab.rewards.mixed import mixed_label, mixed_name, prepare_mixed

A, TIE, B = Label.A, Label.TIE, Label.B


@pytest.mark.parametrize(
    ("labels", "alpha", "expected"),
    [
        ({"x": A, "y": B}, {"x": 0.7, "y": 0.3}, A),  # 0.7 − 0.3 = 0.4
        ({"x": A, "y": B}, {"x": 0.3, "y": 0.7}, B),  # 0.3 − 0.7 = −0.4
        ({"x": A, "y": B}, {"x": 0.5, "y": 0.5}, TIE),
        ({"x": A, "y": A, "z": B}, {"x": 0.1, "y": 0.2, "z": 0.3}, TIE),  # not 5.6e-17
        ({"x": TIE, "y": B}, {"x": 0.9, "y": 0.1}, B),  # a tied objective says nothing
        ({"x": TIE, "y": TIE}, {"x": 0.9, "y": 0.1}, TIE),
        ({"x": A}, {"x": 0.9, "y": 0.1}, None),  # y was not judged
        ({"x": A}, {"x": 1.0, "y": 0.0}, A),  # and is not asked for
        ({"x": A, "y": B}, {"x": 7, "y": 3}, A),  # ratios only
    ],
)
def test_by_hand(labels, alpha, expected):
    assert mixed_label(labels, alpha) is expected


@given(st.lists(st.sampled_from(list(Label)), min_size=3, max_size=3), st.lists(st.integers(0, 9), min_size=3))
def test_turning_the_pair_round_turns_the_label_round(labels, weights):
    alpha = dict(zip("xyz", weights, strict=False))
    if any(alpha.values()):
        got = mixed_label(dict(zip("xyz", labels, strict=True)), alpha)
        turned = mixed_label({name: Label(-label) for name, label in zip("xyz", labels, strict=True)}, alpha)
        assert got is not None
        assert turned == -got


def test_names():
    assert mixed_name({"x": 0.0, "y": 1.0}) == "y"
    assert mixed_name({"x": 0.7000000001, "y": 0.3}) == "x=0.7,y=0.3"


ROWS = [
    Comparison("p", " a", " b", {"x": A, "y": B}),
    Comparison("p", " c", " d", {"x": B, "y": B}),
    Comparison("p", " e", " f", {"x": TIE, "y": TIE}),
    Comparison("p", " g", " h", {"x": A}),
    Comparison("p", " i", " i", {"x": A, "y": A}),
]


def test_pairs_are_oriented_by_the_mixture(tokenizer):
    """At (0.7, 0.3): row 1 chooses a, row 2 d; row 3 is tied, row 4 not judged on y, row 5 has equal answers."""
    encoder = PairEncoder(tokenizer, max_length=32, max_prompt_length=16)
    prepared = prepare_mixed(ROWS, {"x": 0.7, "y": 0.3}, encoder)
    assert [tokenizer.decode(pair.a_ids[:-1]) for pair in prepared.pairs] == [" a", " d"]
    assert (prepared.rows, prepared.ties, prepared.missing, prepared.equal) == (5, 1, 1, 1)
    assert prepared.summary == ("2 of 5 pairs for 'x=0.7,y=0.3' (left out: 1 not judged, 1 tied, 1 with equal answers)")
    other = prepare_mixed(ROWS, {"x": 0.3, "y": 0.7}, encoder)
    assert [tokenizer.decode(pair.a_ids[:-1]) for pair in other.pairs] == [" b", " d"]
    for name in ("x", "y"):
        assert prepare_mixed(ROWS, {name: 1.0}, encoder) == prepare_pairs(ROWS, name, encoder)


@pytest.mark.parametrize(
    ("alpha", "error", "message"),
    [
        ({"x": -0.1, "y": 1.1}, GuidanceError, "'x' the weight -0.1"),
        ({"x": float("nan")}, GuidanceError, "nan"),
        ({"x": 0.0, "y": 0.0}, GuidanceError, "zero everywhere"),
        ({"x": 0.5, "why": 0.5}, DataError, "no labels for 'why'. (Did|Known)"),
    ],
)
def test_what_is_refused(alpha, error, message, tokenizer):
    with pytest.raises(error, match=message):
        prepare_mixed(ROWS, alpha, PairEncoder(tokenizer, max_length=32, max_prompt_length=16))
