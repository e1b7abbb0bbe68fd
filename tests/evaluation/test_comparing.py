"""Paired comparisons: every number by hand, against scipy or scikit-learn, or by its symmetry."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.linear_model import LogisticRegression

from trimtab.errors import ConfigError, NumericalError
from trimtab.evaluation.comparing import (
    compare_methods,
    count_wins,
    holm,
    length_controlled,
    paired_difference,
    reward_at_equal_kl,
    sign_flip_p,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_paired_difference_has_the_width_of_its_standard_error(rng):
    shared = rng.normal(0, 10, 400)  # hard and easy prompts: far more spread than the difference
    found = paired_difference(shared + 1 + rng.normal(0, 1, 400), shared)
    assert found.value == pytest.approx(1.0, abs=0.2)
    assert found.high - found.low == pytest.approx(2 * 1.96 / 20, rel=0.15)  # ±1.96·σ/√P, and not the 10 of the prompts


def test_sign_flips_by_hand():
    # differences 1, 2, 3: of 8 sign assignments only +++ and −−− have |sum| ≥ 6
    assert sign_flip_p([1, 2, 3], [0, 0, 0]) == 2 / 8
    # 1, 1, −1: |sum| is 1 for six assignments and 3 for two; all are at least the observed 1
    assert sign_flip_p([1, 1, 0], [0, 0, 1]) == 1.0
    assert sign_flip_p([5.0], [5.0]) == 1.0


def test_many_prompts_agree_with_scipy(rng):
    a, b = rng.normal(0.35, 1, 40), np.zeros(40)
    reference = stats.permutation_test(
        (a, b),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        n_resamples=20_000,
        vectorized=True,
        rng=np.random.default_rng(1),
    )
    assert sign_flip_p(a, b) == pytest.approx(reference.pvalue, abs=0.01)


def test_exact_and_drawn_tests_meet(rng, monkeypatch):
    a, b = rng.normal(0.5, 1, 12), np.zeros(12)
    exact = sign_flip_p(a, b)
    monkeypatch.setattr("trimtab.evaluation.comparing._EXACT_PROMPTS", 0)
    assert sign_flip_p(a, b) == pytest.approx(exact, abs=0.01)


def test_alike_methods_are_found_different_in_five_per_cent(rng):
    rate = np.mean([sign_flip_p(rng.normal(size=10), rng.normal(size=10)) <= 0.05 for _ in range(400)])
    assert rate == pytest.approx(0.05, abs=0.035)  # ±3 standard errors of 400 trials


def test_holm_by_hand():
    # rising: 0.01·3, 0.02·2 → 0.04, 0.04·1 → 0.04 (never below the one before)
    assert holm({"a": 0.04, "b": 0.01, "c": 0.02}) == {"a": 0.04, "b": 0.03, "c": 0.04}
    assert holm({"a": 0.6, "b": 0.9}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_wins_by_hand():
    found = count_wins([3, 2, 1, 0], [1, 1.9, 1, 2], tie_margin=0.5)
    assert (found.wins, found.ties, found.losses) == (1, 2, 1)
    assert found.rate.value == 0.5
    assert count_wins([3, 2, 1, 0], [1, 1.9, 1, 2]).wins == 2
    assert count_wins([1, 1], [0, 0]).rate == type(found.rate)(1.0, 1.0, 1.0)


def test_length_control_by_hand():
    """Two lengths only: a parameter for each cell, so without a penalty the model gives each cell its own share."""
    # +10 words: 3 of 4 win; −10 words: 1 of 4. tanh(±1); σ(θ ± φ·tanh 1) = ¾, ¼, so θ = 0 and φ = log 3 / tanh 1.
    outcome, length = [1, 1, 1, 0, 1, 0, 0, 0], [10] * 4 + [-10] * 4
    found = length_controlled(outcome, length, penalty=0.0)
    assert found.raw.value == 0.5
    assert found.rate.value == pytest.approx(0.5)
    assert found.length_effect == pytest.approx(math.log(3) / math.tanh(1))
    # all wins come with length: at equal length nothing is left of a raw rate of ¾
    longer = length_controlled([1, 1, 1, 0] * 2 + [1, 0, 0, 0], [10] * 8 + [-10] * 4, penalty=0.0)
    assert longer.raw.value == pytest.approx(7 / 12)
    assert longer.rate.value == pytest.approx(0.5)


def test_length_control_is_the_penalised_regression(rng):
    """θ and φ against scikit-learn, with ties as half a win and half a loss."""
    lengths = rng.normal(20, 40, 120)
    outcome = rng.choice([0, 0.5, 1], 120)
    feature = np.tanh(lengths / np.sqrt(np.mean(lengths**2)))[:, None]
    model = LogisticRegression(C=1.0, tol=1e-10, max_iter=1000)  # C = 1/penalty; the intercept is not penalised
    model.fit(np.tile(feature, (2, 1)), np.repeat([1, 0], 120), sample_weight=np.concatenate([outcome, 1 - outcome]))
    found = length_controlled(outcome, lengths)
    assert found.length_effect == pytest.approx(model.coef_[0, 0], abs=1e-4)
    assert found.rate.value == pytest.approx(1 / (1 + math.exp(-model.intercept_[0])), abs=1e-4)


def test_length_control_recovers_a_rate_that_length_hides(rng):
    """A judge that likes length by the model itself: the planted σ(θ) is in the interval, the raw rate far above."""
    lengths = rng.normal(60, 30, 3000)
    z = np.tanh(lengths / np.sqrt(np.mean(lengths**2)))
    outcome = (rng.random(3000) < 1 / (1 + np.exp(-(-0.5 + 2.0 * z)))).astype(float)
    found = length_controlled(outcome, lengths, resamples=300)
    assert found.rate.low < 1 / (1 + math.exp(0.5)) < found.rate.high
    assert found.raw.value > 0.6


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(-30, 30)), min_size=2, max_size=30))
@settings(max_examples=40, deadline=None)
def test_swapping_the_methods_mirrors_the_rate(rows):
    outcome, lengths = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    one = length_controlled(outcome, lengths, resamples=1)
    other = length_controlled(1 - outcome, -lengths, resamples=1)
    assert one.rate.value == pytest.approx(1 - other.rate.value, abs=1e-6)
    assert one.length_effect == pytest.approx(other.length_effect, abs=1e-5)


def test_equal_lengths_and_one_sided_wins_change_nothing():
    assert length_controlled([1, 0, 0, 0], [0] * 4).rate.value == pytest.approx(0.25)
    assert length_controlled([1, 1, 1], [5, -3, 8]).rate.value == pytest.approx(1.0, abs=1e-5)
    assert length_controlled([0.5] * 4, [5, -3, 8, 1]).rate.value == pytest.approx(0.5)


def test_compare_methods_puts_it_together(rng):
    base = rng.normal(size=30)
    scores = {"base": base, "same": base.copy(), "better": base + 1, "worse": base - np.abs(rng.normal(1, 0.1, 30))}
    lengths = {name: rng.integers(5, 50, 30).astype(float) for name in scores}
    found = compare_methods(scores, "base", lengths=lengths)
    assert set(found) == {"same", "better", "worse"}
    assert found["same"].difference.value == 0
    assert found["same"].p_adjusted == 1.0
    assert found["same"].wins.ties == 30
    assert found["better"].difference.value == pytest.approx(1.0)
    assert found["better"].p_adjusted == pytest.approx(3 * found["better"].p)
    assert found["better"].wins.wins == 30
    assert found["worse"].wins.losses == 30
    controlled = found["better"].length_controlled
    assert controlled is not None
    assert controlled.rate.value > 0.95
    assert compare_methods(scores, "base")["better"].length_controlled is None


def test_equal_kl_by_hand():
    """One prompt: (0, 0), (2, 4) and (4, 5) against (0, 0), (1, 1), (2, 1.5)."""
    curves = {
        "steep": ([[0], [2], [4]], [[0], [4], [5]]),
        "flat": ([[1], [0], [2]], [[1], [0], [1.5]]),  # strengths in any order
    }
    found = reward_at_equal_kl(curves, levels=[0.5, 1.5, 3.0], baseline="flat")
    values = {name: [i.value if i else None for i in row] for name, row in found.rewards.items()}
    assert values == {"steep": [1.0, 3.0, 4.5], "flat": [0.5, 1.25, None]}
    assert [i.value if i else None for i in found.gains["steep"]] == [0.5, 1.75, None]
    default = reward_at_equal_kl(curves)
    assert default.levels == pytest.approx((0.4, 0.8, 1.2, 1.6, 2.0))  # from 0 to 2, which both reach
    assert default.gains == {}


def test_equal_kl_pairs_the_prompts(rng):
    """Prompts differ far more than methods: the gain's interval is narrow although each reward's is wide."""
    ease = rng.normal(0, 5, 60)
    kl = np.array([np.zeros(60), np.full(60, 1.0), np.full(60, 2.0)])
    curves = {
        "a": (kl, ease + np.array([[0.0], [1.0], [2.0]])),
        "b": (kl, ease + np.array([[0.0], [0.5], [1.0]]) + rng.normal(0, 0.05, 60)),
    }
    found = reward_at_equal_kl(curves, levels=[1.0], baseline="b")
    (own,), (gain,) = found.rewards["a"], found.gains["a"]
    assert own is not None
    assert gain is not None
    assert own.high - own.low > 1.5
    assert gain.high - gain.low < 0.1
    assert gain.value == pytest.approx(0.5, abs=0.05)


def test_the_order_of_prompts_does_not_matter_to_the_value(rng):
    a, b = rng.normal(size=8), rng.normal(size=8)
    values = {
        round(sign_flip_p(a[list(o)], b[list(o)]), 12) for o in itertools.islice(itertools.permutations(range(8)), 5)
    }
    assert len(values) == 1


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: paired_difference([1], [1, 2]), ConfigError, "one length"),
        (lambda: paired_difference([], []), ConfigError, "one length"),
        (lambda: sign_flip_p([math.nan], [0]), NumericalError, "NaN"),
        (lambda: count_wins([1], [0], tie_margin=-1), ConfigError, "tie margin"),
        (lambda: length_controlled([2], [0]), ConfigError, "win"),
        (lambda: compare_methods({"a": [1]}, "b"), ConfigError, "'b'"),
        (lambda: reward_at_equal_kl({}), ConfigError, "needs KL"),
        (lambda: reward_at_equal_kl({"a": ([1], [1])}), ConfigError, "strengths by prompts"),
        (lambda: reward_at_equal_kl({"a": ([[0], [1]], [[0], [1]]), "b": ([[2], [3]], [[0], [1]])}), ConfigError,
         "no KL that all"),
        (lambda: reward_at_equal_kl({"a": ([[0], [1]], [[0], [1]])}, baseline="c"), ConfigError, "'c'"),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong(call, error, says):
    with pytest.raises(error, match=says):
        call()
