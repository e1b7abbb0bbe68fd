"""The scorer that judges guided answers: fitted by Bradley–Terry on words, checked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trimtab.errors import DataError
from trimtab.evaluation.scorers import BagOfWordsScorer, bootstrap_interval
from trimtab.preferences.records import Comparison, Label


def _pair(good: str, bad: str, label: Label = Label.A) -> Comparison:
    return Comparison("q", good, bad, {"polite": label})


PAIRS = [_pair(f"please take {w}", f"just take {w}") for w in ("tea", "milk", "soup", "bread")]


def test_it_learns_the_word_that_separates_and_nothing_else():
    scorer = BagOfWordsScorer.fit(PAIRS, "polite")
    weights = dict(zip(scorer.vectoriser.get_feature_names_out(), scorer.weights, strict=True))
    assert weights["please"] == pytest.approx(-weights["just"], abs=1e-6)
    assert weights["please"] > 0
    assert weights["take"] == pytest.approx(0, abs=1e-6)
    # "please" and "please take" always come together, so they share one weight w; stationarity of
    # 4·log σ(4w) − ½·4·w² gives 4·σ(−4w) = w  (λ = 1; four pairs; margin 4w).
    w = weights["please"]
    assert 4 / (1 + math.exp(4 * w)) == pytest.approx(w, rel=1e-3)


def test_flipped_labels_flip_the_score():
    flipped = [_pair(str(c.response_b), str(c.response_a), Label.B) for c in PAIRS]
    a, b = BagOfWordsScorer.fit(PAIRS, "polite"), BagOfWordsScorer.fit(flipped, "polite")
    assert np.allclose(a.score(["please", "just"]), b.score(["please", "just"]))
    assert a.accuracy(flipped) == 1.0


def test_equal_scores_count_half_and_unknown_words_score_nothing():
    scorer = BagOfWordsScorer.fit(PAIRS, "polite")
    assert scorer.accuracy([_pair("zebra", "yak")]) == 0.5
    assert scorer.score(["zebra"])[0] == 0.0


def test_no_label_is_an_error():
    with pytest.raises(DataError, match="'kind'"):
        BagOfWordsScorer.fit(PAIRS, "kind")


def test_bootstrap_interval_of_a_constant_is_the_constant():
    assert bootstrap_interval([2.0] * 5) == (2.0, 2.0)
    low, high = bootstrap_interval([0.0, 1.0] * 50)
    # standard error of the mean is 0.5/√100 = 0.05, so the interval is near 0.5 ± 0.098
    assert low == pytest.approx(0.402, abs=0.02)
    assert high == pytest.approx(0.598, abs=0.02)
