"""Ranking statistics by hand, and a guide ranked beside its untrained base."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import DataError, NumericalError
from trimtab.rewards.ranking import Accuracy, mcnemar_p, report_from_margins


def test_wilson_by_hand():
    """8 of 10: p = .8, z²= 3.8415; centre (.8 + .19207)/1.38415 = .71674; half-width
    1.96·√(.016 + .0096036)/1.38415 = 1.96·.160011/1.38415 = .22658, so [.4902, .9433]."""
    accuracy = Accuracy.of(8, 10)
    assert accuracy is not None
    assert (accuracy.low, accuracy.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert Accuracy.of(0, 0) is None


def test_mcnemar_by_hand():
    """6 against 1: P[X ≤ 1] of 7 fair coins is (1 + 7)/128, twice that is 0.125."""
    assert mcnemar_p(6, 1) == pytest.approx(0.125)
    assert mcnemar_p(0, 0) == 1.0
    assert mcnemar_p(3, 3) == 1.0


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_symmetric_and_a_probability(a, b):
    assert mcnemar_p(a, b) == mcnemar_p(b, a)
    assert 0 < mcnemar_p(a, b) <= 1


def test_report_by_hand():
    """Guide: right, right, wrong, tie (½) = 2.5/4. Untrained: wrong, right, wrong, right = 2/4.

    Lengths (chosen, rejected): 5<10 shorter wins; 20>19 and 10>9 longer wins (19/20 and 9/10 are within 10 %);
    7=7 a tie. Shorter: 1 + 0 + 0 + ½ = 1.5/4, so "longer" is the better rule with 2.5/4. Matched: rows 2 to 4, on which
    the guide has 1 + 0 + ½ of 3 and the untrained model 1 + 0 + 1 of 3. Margins: (2 + 1 − 1 + 0)/4 = 0.5 nats, and with
    β = 0.1 a mean reward margin of 0.05.
    """
    report = report_from_margins(
        "good", [2, 1, -1, 0], [-1, 1, -1, 1], [(5, 10), (20, 19), (10, 9), (7, 7)], beta=0.1, truncated=1
    )
    assert report.guide.value == 2.5 / 4
    assert report.untrained.value == 0.5
    assert report.gain == 0.125
    assert (report.length_rule, report.length.value, report.shorter_wins.value) == ("longer", 2.5 / 4, 1.5 / 4)
    assert report.matched_guide is not None
    assert report.matched_untrained is not None
    assert (report.matched_guide.n, report.matched_guide.value) == (3, 0.5)
    assert report.matched_untrained.value == pytest.approx(2 / 3)
    assert (report.only_guide_right, report.only_untrained_right) == (1, 1)
    assert report.mean_margin == pytest.approx(0.05)
    assert report.to_dict()["guide"]["n"] == 4


def test_bad_input():
    with pytest.raises(DataError, match="no pair"):
        report_from_margins("good", [], [], [], beta=1)
    with pytest.raises(NumericalError, match="NaN"):
        report_from_margins("good", [float("nan")], [0], [(1, 2)], beta=1)
