"""Preference vectors: read by name, ordered as the guide stores them, on the simplex or refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import GuidanceError
from trimtab.preferences.vectors import dirichlet, lattice, parse_preference, preference_matrix, preference_vector

NAMES = ("helpful", "harmless", "concise")


def test_the_guides_order_counts_not_the_users():
    expected = torch.tensor([0.7, 0.3, 0.0])
    for preference in (
        "harmless=0.3, helpful=0.7",
        {"harmless": 0.3, "helpful": 0.7},
        [0.7, 0.3, 0.0],
        torch.tensor([0.7, 0.3, 0.0]),
    ):
        assert torch.equal(preference_vector(preference, NAMES), expected)
    assert torch.equal(preference_vector({"concise": 1}, NAMES), torch.tensor([0.0, 0.0, 1.0]))


@pytest.mark.parametrize(
    ("preference", "message"),
    [
        ("helpfull=1", "no objective 'helpfull'. Did you mean 'helpful'?"),
        ({"helpful": -0.5, "concise": 1.5}, "'helpful' the weight -0.5"),
        ({"helpful": math.nan}, "'helpful' the weight nan"),
        ({"helpful": math.inf}, "'helpful' the weight inf"),
        ("helpful=0.7,harmless=0.2", "sums to 0.9, not to 1: .*normalise=True"),
        ([0.5, 0.5], "2 weights, the guide 3 objectives: helpful, harmless, concise"),
        ([0.0, 0.0, 0.0], "zero everywhere"),
    ],
)
def test_what_is_refused(preference, message):
    with pytest.raises(GuidanceError, match=message) as caught:
        preference_vector(preference, NAMES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "helpful", "helpful=", "=1", "helpful=x", "helpful=0.5,", "a=1;b=2"])
def test_text_that_is_no_preference(text):
    with pytest.raises(GuidanceError, match=r"cannot be read.*helpful=0\.7,harmless=0\.3"):
        parse_preference(text)


def test_a_name_twice():
    with pytest.raises(GuidanceError, match="'a' twice"):
        parse_preference("a=0.5,a=0.5")


def test_normalised_only_when_asked():
    assert preference_vector("helpful=3,harmless=1", NAMES, normalise=True).tolist() == [0.75, 0.25, 0.0]
    for wrong in ("helpful=-1,harmless=2", "helpful=nan", [0, 0, 0]):
        with pytest.raises(GuidanceError):
            preference_vector(wrong, NAMES, normalise=True)


@given(st.lists(st.floats(0.0, 1e6), min_size=3, max_size=3).filter(lambda v: sum(v) > 1e-3))
def test_a_normalised_preference_passes_unnormalised(weights):
    alpha = preference_vector(weights, NAMES, normalise=True)
    assert torch.equal(preference_vector(alpha, NAMES), alpha)
    ratio = [w / math.fsum(weights) for w in weights]
    assert alpha.tolist() == pytest.approx(ratio, abs=1e-6)


def test_a_row_each():
    rows = preference_matrix(["helpful=1", {"concise": 0.5, "harmless": 0.5}], NAMES)
    assert rows.tolist() == [[1, 0, 0], [0, 0.5, 0.5]]
    with pytest.raises(GuidanceError, match=r"Preference 1: .*sums to 2"):
        preference_matrix(["helpful=1", "helpful=2"], NAMES)
    assert preference_matrix([], NAMES).shape == (0, 3)


def test_lattice_by_hand():
    assert lattice(1, 4).tolist() == [[1.0]]
    assert lattice(2, 2).tolist() == [[0, 1], [0.5, 0.5], [1, 0]]
    assert (lattice(3, 2) * 2).tolist() == [[0, 0, 2], [0, 1, 1], [0, 2, 0], [1, 0, 1], [1, 1, 0], [2, 0, 0]]
    for k, m in ((0, 1), (1, 0)):
        with pytest.raises(GuidanceError):
            lattice(k, m)


@given(k=st.integers(1, 5), m=st.integers(1, 8))
def test_lattice_is_every_point_once(k, m):
    points = lattice(k, m)
    assert len(points) == math.comb(m + k - 1, k - 1)
    steps = [tuple(round(v * m) for v in row) for row in points.tolist()]
    assert steps == sorted(set(steps))
    assert all(sum(row) == m and min(row) >= 0 for row in steps)
    for row in points:
        preference_vector(row, [str(i) for i in range(k)])


def test_draws_are_the_generators():
    for make in (lambda: torch.Generator().manual_seed(3), lambda: np.random.default_rng(3)):
        first, again = dirichlet(0.5, 4, k=3, generator=make()), dirichlet(0.5, 4, k=3, generator=make())
        assert torch.equal(first, again)
        one = make()
        assert not torch.equal(dirichlet(0.5, 4, k=3, generator=one), dirichlet(0.5, 4, k=3, generator=one))
    state = torch.random.get_rng_state()
    dirichlet(0.5, 4, k=3, generator=torch.Generator().manual_seed(3))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_draws_have_the_right_moments():
    """Dirichlet(a): mean a_i/Σa, variance mean·(1-mean)/(Σa+1). Here a = (2, 1, 1): mean 1/2, variance 1/20."""
    draws = dirichlet([2, 1, 1], 20_000, generator=torch.Generator().manual_seed(0))
    assert draws.sum(1).sub(1).abs().max() < 1e-6
    assert draws.mean(0).tolist() == pytest.approx([0.5, 0.25, 0.25], abs=0.01)
    assert draws[:, 0].var().item() == pytest.approx(0.05, abs=0.003)


@pytest.mark.parametrize(
    ("concentration", "k"), [(0.5, None), (0.0, 2), (-1.0, 2), (math.nan, 2), ([1, 1], 3), ([], None), ([1, 0], None)]
)
def test_draws_that_make_no_sense(concentration, k):
    with pytest.raises(GuidanceError):
        dirichlet(concentration, 2, k=k, generator=np.random.default_rng(0))
