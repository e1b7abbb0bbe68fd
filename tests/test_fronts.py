"""Hypervolume, MIP and friends: worked by hand, against Monte Carlo, and by their invariances."""

from __future__ import annotations

from itertools import combinations

import moocore
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trimtab.errors import ConfigError, NumericalError
from trimtab.evaluation.fronts import (
    default_reference,
    hypervolume,
    kendall_tau,
    mean_inner_product,
    monotonicity,
    pareto_mask,
    rescaled,
    spread,
    summarise_fronts,
)

GRID = np.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]])


def fronts(k: int):
    cells = st.integers(-3, 6).map(float)  # few distinct values, so that ties and duplicates are common
    return st.integers(1, 7).flatmap(lambda n: arrays(np.float64, (n, k), elements=cells))


any_front = st.sampled_from([2, 3]).flatmap(fronts)


def by_inclusion_exclusion(points: np.ndarray, reference: np.ndarray) -> float:
    """Union of boxes as the alternating sum over all subsets of the box of their axis-wise least corner."""
    sides = np.maximum(points - reference, 0)
    return sum(
        (-1) ** (size + 1) * sides[list(chosen)].min(axis=0).prod()
        for size in range(1, len(sides) + 1)
        for chosen in combinations(range(len(sides)), size)
    )


def test_three_rectangles_by_hand():
    # Staircase (1,3), (2,2), (3,1) above (0,0): columns of width 1 and heights 3, 2, 1.
    assert hypervolume([[1, 3], [2, 2], [3, 1]], [0, 0]) == 6.0
    assert hypervolume([[3, 1], [1, 1], [2, 2], [1, 3]], [0, 0]) == 6.0  # (1,1) is dominated; order does not matter
    assert hypervolume([[1, 3], [2, 2], [3, 1]], [1, 0]) == 3.0  # left column gone: heights 2 and 1


def test_two_boxes_by_hand():
    # 2·2·1 + 1·1·3 overlap in 1·1·1: 4 + 3 − 1.
    assert hypervolume([[2, 2, 1], [1, 1, 3]], [0, 0, 0]) == 6.0


def test_points_at_or_below_the_reference_add_nothing():
    assert hypervolume([[1, 1], [0, 9], [9, -1]], [0, 0]) == 1.0
    assert hypervolume([[0, 9]], [0, 0]) == 0.0


@given(any_front)
def test_it_is_the_union_of_boxes(points: np.ndarray):
    reference = np.zeros(points.shape[1])
    assert hypervolume(points, reference) == pytest.approx(by_inclusion_exclusion(points, reference))


@given(any_front, st.integers(0, 2**32 - 1))
def test_a_library_of_the_field_agrees(points: np.ndarray, seed: int):
    """moocore: the hypervolume (it minimises, so signs are turned) and which points no other dominates."""
    reference = np.random.default_rng(seed).uniform(-5, 3, points.shape[1])
    shifted = points + np.random.default_rng(seed).normal(0, 1e-3, points.shape)
    for front in (points, shifted):
        assert hypervolume(front, reference) == pytest.approx(moocore.hypervolume(-front, ref=-reference), abs=1e-9)
        kept = moocore.is_nondominated(front, maximise=True, keep_weakly=True)
        assert pareto_mask(front).tolist() == kept.tolist()


@given(any_front, st.integers(0, 6), st.integers(0, 3))
def test_a_dominated_point_changes_nothing(points: np.ndarray, which: int, less: int):
    reference = np.full(points.shape[1], -4.0)
    worse = points[which % len(points)] - less
    assert hypervolume([*points, worse], reference) == pytest.approx(hypervolume(points, reference))


@given(any_front, st.integers(-5, 5))
def test_moving_everything_changes_nothing(points: np.ndarray, by: int):
    reference = np.arange(points.shape[1]) - 2.0
    assert hypervolume(points + by, reference + by) == pytest.approx(hypervolume(points, reference))


@given(any_front)
def test_the_pareto_front_has_the_whole_hypervolume(points: np.ndarray):
    mask = pareto_mask(points)
    assert mask.any()
    reference = np.full(points.shape[1], -4.0)
    assert hypervolume(points[mask], reference) == pytest.approx(hypervolume(points, reference))


@pytest.mark.parametrize("k", [2, 3])
def test_monte_carlo_agrees(k: int):
    generator = np.random.default_rng(0)
    points = generator.random((6, k))
    darts = generator.random((200_000, k))
    inside = (points[:, None] >= darts[None]).all(axis=2).any(axis=0).mean()
    assert hypervolume(points, np.zeros(k)) == pytest.approx(inside, abs=0.005)


def test_pareto_by_hand():
    assert pareto_mask([[1, 3], [2, 2], [1, 2], [3, 1], [2, 2]]).tolist() == [True, True, False, True, True]


def test_reference_is_the_minimum_minus_one():
    assert default_reference([[[1, 5], [2, 3]], [[0, 9]]]).tolist() == [-1.0, 2.0]


def test_mip_by_hand():
    # (0·1 + 1·4 + ½·2 + ½·2 + 1·5 + 0·0) / 3 = (4 + 2 + 5) / 3
    assert mean_inner_product(GRID, [[1, 4], [2, 2], [5, 0]]) == pytest.approx(11 / 3)


def test_rescaling_is_over_all_methods_and_a_constant_objective_is_zero():
    out = rescaled({"a": np.array([[0.0, 7.0], [2.0, 7.0]]), "b": np.array([[4.0, 7.0]])})
    assert out["a"].tolist() == [[0, 0], [0.5, 0]]
    assert out["b"].tolist() == [[1, 0]]


def test_kendall_by_hand():
    # Of the six pairs of (1,2,3,4) and (1,3,2,4) only one is turned: (5 − 1)/6.
    assert kendall_tau([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(4 / 6)
    # y ties one pair: 2 concordant, 0 discordant, √(3·2).
    assert kendall_tau([1, 2, 3], [1, 1, 2]) == pytest.approx(2 / np.sqrt(6))
    assert np.isnan(kendall_tau([1, 2], [3, 3]))


def test_monotonicity_and_spread_by_hand():
    rho = [[1, 4], [2, 5], [5, 0]]
    # First objective rises with its weight. Second: weights 1, ½, 0 against 4, 5, 0: two pairs agree, one is turned.
    assert monotonicity(GRID, rho) == pytest.approx([1.0, 1 / 3])
    assert spread(rho).tolist() == [4.0, 5.0]


def test_summary_of_fronts_without_noise():
    # Every prompt scores the same, so the intervals shrink to the value and the gain is exact.
    a = np.repeat(np.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]])[:, None], 4, axis=1)
    out = summarise_fronts(GRID, {"a": a, "b": a + 1}, baseline="a", resamples=20)
    assert out["a"].reference.tolist() == [-1.0, -1.0]
    # a above (−1,−1): widths 1, ½, ½ with heights 2, 1½, 1 → 2 + ¾ + ½.
    assert out["a"].hypervolume.value == pytest.approx(3.25)
    assert (out["a"].hypervolume.low, out["a"].hypervolume.high) == pytest.approx((3.25, 3.25))
    assert out["a"].mip.value == pytest.approx((1 + 0.5 + 1) / 3)
    assert out["b"].mip_rescaled.value == pytest.approx((1 + 0.75 + 1) / 3)  # both objectives span 0 to 2
    assert out["b"].mip_gain is not None
    assert out["b"].mip_gain.low == pytest.approx(0.5)
    assert out["a"].hypervolume_gain is not None
    assert out["a"].hypervolume_gain.value == 0.0


def test_bootstrap_width_is_the_standard_error():
    scores = np.zeros((3, 400, 2))
    scores[:, ::2] = 1.0  # every front point moves with one share of ones: mean ½, sd ½
    mip = summarise_fronts(GRID, {"a": scores}, resamples=2000)["a"].mip
    assert mip.high - mip.low == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(400), rel=0.1)


def test_paired_gain_is_tighter_than_the_two_intervals():
    noise = np.random.default_rng(0).normal(size=(1, 100, 1))
    scores = np.zeros((3, 100, 2)) + noise
    out = summarise_fronts(GRID, {"a": scores, "b": scores + 0.1}, baseline="a")
    assert out["b"].mip_gain is not None
    assert out["b"].mip.high - out["b"].mip.low > 0.2
    assert out["b"].mip_gain.high - out["b"].mip_gain.low < 1e-9


def test_runs_are_measured_each_by_itself():
    # One run has only the first point, the other only the second: the mean of two areas of 2, not the area of the mean.
    point = np.array([[1.0, 0.0]] * 3), np.array([[0.0, 1.0]] * 3)
    runs = np.repeat(np.stack(point)[:, :, None], 4, axis=2)
    out = summarise_fronts(GRID, {"a": runs, "b": runs[:1]}, reference=[-1.0, -1.0], baseline="a", resamples=50)["a"]
    assert out.front.tolist() == [[0.5, 0.5]] * 3
    assert out.fronts.shape == (2, 3, 2)
    assert (out.hypervolume.value, out.hypervolumes.tolist()) == (2.0, [2.0, 2.0])
    assert out.mips_rescaled.tolist() == pytest.approx([0.5, 0.5])
    assert out.hypervolume_gain is not None
    assert (out.hypervolume_gain.low, out.hypervolume_gain.high) == (0.0, 0.0)


def test_intervals_hold_the_variation_of_runs():
    # No prompt differs from another, so all of the width is the runs': means of 8 draws from (0, 1).
    runs = np.zeros((8, 3, 5, 2))
    runs[::2] = 1.0
    several = summarise_fronts(GRID, {"a": runs}, resamples=2000)["a"].mip
    assert several.value == pytest.approx(0.5)
    assert several.high - several.low == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(8), rel=0.15)
    once = summarise_fronts(GRID, {"a": runs[:1], "b": runs}, resamples=50)["a"].mip
    assert once.high == once.low


def test_a_run_without_movement_says_nothing_of_monotonicity():
    still, rising = np.zeros((3, 4, 2)), np.repeat(GRID[:, None], 4, axis=1)
    out = summarise_fronts(GRID, {"a": np.stack([still, rising]), "b": still}, resamples=2)
    assert out["a"].monotonicity.tolist() == [1.0, 1.0]
    assert np.isnan(out["b"].monotonicity).all()
    assert out["a"].spread.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: hypervolume([[1, 2, 3, 4]], [0, 0, 0, 0]), ConfigError, "2 or 3 objectives"),
        (lambda: hypervolume([[1, 2]], [0, 0, 0]), ConfigError, "reference"),
        (lambda: hypervolume([[1, float("nan")]], [0, 0]), NumericalError, "NaN"),
        (lambda: pareto_mask([1, 2]), ConfigError, "one row a point"),
        (lambda: default_reference([]), ConfigError, "no front"),
        (lambda: mean_inner_product(GRID, [[1, 2]]), ConfigError, "one shape"),
        (lambda: kendall_tau([1, 2], [1]), ConfigError, "one length"),
        (lambda: summarise_fronts(GRID, {"a": np.zeros((2, 4, 2))}), ConfigError, "'a'"),
        (
            lambda: summarise_fronts(GRID, {"a": np.zeros((2, 3, 4, 2)), "b": np.zeros((3, 3, 4, 2))}),
            ConfigError,
            "one shape",
        ),
        (lambda: summarise_fronts(GRID, {}), ConfigError, "one shape"),
        (lambda: summarise_fronts(GRID, {"a": np.full((3, 4, 2), np.inf)}), NumericalError, "'a'"),
        (lambda: summarise_fronts(GRID, {"a": np.zeros((3, 4, 2))}, baseline="b"), ConfigError, "baseline"),
    ],
)
def test_errors_say_what_is_wrong(call, error, says):
    with pytest.raises(error, match=says):
        call()
