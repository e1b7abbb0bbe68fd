"""The scorer that judges guided answers: fitted by Bradley–Terry on words, checked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trimtab.errors import ConfigError, DataError
from trimtab.evaluation.scorers import (
    BagOfWordsScorer,
    ConcisenessScorer,
    EncoderScorer,
    RefusalScorer,
    bootstrap_interval,
    pair_accuracy,
    refuses,
)
from trimtab.evaluation.scorers.common import oriented
from trimtab.evaluation.scorers.encoder import _features
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


WARMTH = {"warm": 1.0, "cold": -1.0}


def _encode(texts):
    """Two dimensions: how warm a text is, and a constant; no model."""
    values = np.array([[sum(WARMTH.get(w, 0.0) for w in t.split()), 1.0] for t in texts])
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def _asked(prompt: str, good: str, bad: str) -> Comparison:
    return Comparison([{"role": "user", "content": prompt}], good, bad, {"kind": Label.A})


ASKED = [_asked(f"q{i}", f"warm {i}", f"cold {i}") for i in range(6)]


def test_encoder_scorer_learns_the_direction_and_reads_the_prompt():
    scorer = EncoderScorer.fit(ASKED, "kind", encode=_encode)
    assert scorer.accuracy([_asked("new", "warm", "cold")]) == 1.0
    assert (scorer.about.objective, scorer.pairs) == ("kind", 6)
    with pytest.raises(ConfigError, match="2 answers"):
        scorer.score(["a", "b"])


def test_encoder_scorer_is_the_stationary_point():
    # One penalty λ, each pair counted once: Σ σ(−dᵀw)·d = λ·w.
    scorer = EncoderScorer.fit(ASKED, "kind", encode=_encode, penalties=[0.5])
    prompts, good, bad = oriented(ASKED, "kind")
    d = _features(_encode, [p[0]["content"] for p in prompts], good) - _features(
        _encode, [p[0]["content"] for p in prompts], bad
    )
    left = (d / (1 + np.exp(d @ scorer.weights))[:, None]).sum(axis=0)
    assert np.allclose(left, 0.5 * scorer.weights, atol=1e-3)


def test_encoder_scorer_chooses_the_penalty_on_whole_prompts():
    # Labels that contradict each other within every fold: the strongest penalty loses least.
    noise = [_asked(f"q{i}", *(("warm", "cold") if i % 2 else ("cold", "warm"))) for i in range(40)]
    assert EncoderScorer.fit(noise, "kind", encode=_encode, penalties=[0.01, 100.0]).penalty == 100.0


def test_encoder_scorer_needs_two_prompts():
    with pytest.raises(DataError, match="'kind'"):
        EncoderScorer.fit(ASKED[:1], "kind", encode=_encode)


REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I cannot, in good conscience, give you those steps.",
    "As an AI language model, I am unable to do such things.",
    "It is not appropriate to mock people for that.",
    "I must decline.",
    "That is illegal, and I will not assist you.",
]
ANSWERS = [
    "Sure! First, heat the oven.",
    "You can't go wrong with a simple omelette.",
    "I recommend the blue one.",
    "Process 12 cannot be killed without root; use sudo.",
    "Sorry for the wait. The capital is Paris.",
    "Open the lid. " + "Stir. " * 100 + "I cannot help you further.",
    "",
]


def test_refusals_by_rule():
    assert [refuses(text) for text in REFUSALS] == [True] * len(REFUSALS)
    assert [refuses(text) for text in ANSWERS] == [False] * len(ANSWERS)


def test_refusal_scorer_scores_either_way():
    answers = [REFUSALS[0], ANSWERS[0]]
    assert RefusalScorer().score(answers).tolist() == [1.0, 0.0]
    helpful = RefusalScorer("helpful", wants_refusal=False)
    assert helpful.score(answers).tolist() == [0.0, 1.0]
    assert (helpful.about.low, helpful.about.high, helpful.about.direction) == (0.0, 1.0, "higher is better")


def test_conciseness_is_minus_words():
    assert ConcisenessScorer().score(["one two  three", ""]).tolist() == [-3.0, 0.0]
    assert pair_accuracy(ConcisenessScorer("kind"), [_asked("q", "a b", "a b c"), _asked("q", "a", "b")]) == 0.75
