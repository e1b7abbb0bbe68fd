"""Fitting a preference vector: by hand, against a grid, on synthetic users whose true α is known, and at the edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from trimtab.errors import ConfigError, DataError, NumericalError
from trimtab.preferences.fitting import MarginSurface, fit_margins, maximise, shares
from trimtab.preferences.vectors import lattice


def user(alpha, n, *, scale=3.0, seed=0):
    """Margins chosen − rejected, (N, K), of a user who chooses by σ(scale·α·x)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, len(alpha), generator=generator, dtype=torch.float64)
    chance = torch.sigmoid(scale * x @ torch.tensor(alpha, dtype=torch.float64))
    return x * torch.where(torch.rand(n, generator=generator, dtype=torch.float64) < chance, 1.0, -1.0)[:, None]


def fit(margins, **options):
    margins = torch.as_tensor(margins, dtype=torch.float64)
    return fit_margins(MarginSurface.linear(margins), range(len(margins)), **{"resamples": 50, **options})


def test_two_pairs_by_hand():
    """Twice the margins (1, −1), root mean square 1; a = ½, and b = K·a/3 = 1/3.

    With g = σ(−(v1 − v2)), the chance of the other choice, the derivatives are 2g + ½/v1 − 1/3 and −2g + ½/v2 − 1/3. At
    g = 0.09047: v1 = 0.5/0.15239 = 3.2810, v2 = 0.5/0.51427 = 0.9722, and σ(−2.3088) = 0.09042. So s = 4.253 and
    α = (0.7714, 0.2286).
    """
    fitted = fit([[1, -1], [1, -1]])
    assert fitted.alpha.tolist() == pytest.approx([0.7714, 0.2286], abs=2e-4)
    assert fitted.scale == pytest.approx(4.253, abs=2e-3)
    assert fitted.log_likelihood == pytest.approx(math.log(1 - 0.09046), abs=1e-4)


@given(st.integers(0, 10**6), st.integers(1, 40), st.floats(0.1, 10), st.floats(0.05, 5))
@settings(max_examples=25, deadline=None)
def test_it_is_the_optimum_of_a_fine_grid(seed, n, scale, regularisation):
    margins = user([0.8, 0.2], n, scale=scale, seed=seed)
    surface = MarginSurface.linear(margins)
    assumed = torch.full((1, 2), regularisation, dtype=torch.float64)
    v = maximise(surface, torch.ones(1, n, dtype=torch.float64), assumed=assumed, rate=0.3)

    def value(v):
        return logsigmoid(v @ margins.T).sum(-1) + (regularisation * v.log() - 0.3 * v).sum(-1)

    low, high = torch.full((2,), 1e-6, dtype=torch.float64), torch.full((2,), 100.0, dtype=torch.float64)
    for _ in range(14):  # J is concave: the best point of a grid and its neighbours hold the optimum
        axes = [torch.linspace(float(a), float(b), 41, dtype=torch.float64) for a, b in zip(low, high, strict=True)]
        points = torch.cartesian_prod(*axes)
        best = points[value(points).argmax()]
        step = (high - low) / 40
        low, high = (best - 4 * step).clamp_min(1e-6), best + 4 * step
    assert torch.allclose(v[0], best, atol=1e-4)
    assert float(value(v)[0]) >= float(value(best)) - 1e-9


@pytest.mark.parametrize("alpha", [[0.7, 0.3], [0.1, 0.6, 0.3], [0.95, 0.05]])
def test_a_known_preference_is_found_within_its_interval(alpha):
    """400 choices; the users are fixed by their seed."""
    fitted = fit(user(alpha, 400, seed=3), resamples=300)
    truth = torch.tensor(alpha, dtype=torch.float64)
    assert bool(((fitted.low <= truth + 1e-9) & (truth <= fitted.high + 1e-9)).all())
    assert float((fitted.high - fitted.low).max()) < 0.3
    assert float((fitted.alpha - truth).abs().max()) < 0.12
    assert fitted.determined
    assert fitted.held_out is not None
    # the user's own consistency at s = 3 is the ceiling
    assert float((fitted.held_out > 0).double().mean()) > 0.75


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """60 users a size, α uniform on the simplex, objectives with independent margins."""
    for n in (5, 40):
        truths = np.random.default_rng(n).dirichlet([1, 1, 1], size=60)
        held = 0
        for i, truth in enumerate(truths):
            fitted = fit(user(list(truth), n, seed=100 * n + i), resamples=200, folds=0)
            held += int(((fitted.low.numpy() <= truth) & (truth <= fitted.high.numpy())).sum())
        assert held / 180 > 0.87


def test_few_pairs_say_that_they_do_not_determine_it():
    fitted = fit(user([0.9, 0.1], 3))
    assert not fitted.determined
    assert float((fitted.high - fitted.low).min()) > 0.6


@given(st.permutations(range(3)), st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_permuting_the_objectives_permutes_alpha(order, seed):
    margins = user([0.5, 0.1, 0.4], 20, seed=seed)
    assert torch.allclose(fit(margins[:, order]).alpha, fit(margins).alpha[order], atol=1e-7)


def test_the_unit_of_rewards_changes_nothing_but_the_scale():
    margins = user([0.5, 0.1, 0.4], 20)
    one, thousand = fit(margins), fit(1000 * margins)
    assert torch.allclose(one.alpha, thousand.alpha)
    assert thousand.scale == pytest.approx(one.scale / 1000)
    assert one.held_out_log_likelihood == pytest.approx(thousand.held_out_log_likelihood)


def test_a_surface_of_degree_one_and_one_of_degree_four_agree_where_margins_are_linear():
    margins = user([0.2, 0.8], 30)
    straight = MarginSurface.linear(margins)
    curved = MarginSurface(2, 4, lattice(2, 4).double() @ margins.T)
    a, b = (fit_margins(s, range(30), resamples=20) for s in (straight, curved))
    assert torch.allclose(a.alpha, b.alpha, atol=1e-6)
    assert torch.allclose(a.low, b.low, atol=1e-4)


@pytest.mark.parametrize(("k", "degree"), [(1, 3), (2, 4), (3, 3)])
def test_a_surface_is_exact_for_its_degree(k, degree):
    """m(α) = (c·α)^degree − 1 is a polynomial of that degree; and its slopes are those of autograd."""
    c = torch.arange(1.0, k + 1, dtype=torch.float64)

    def margin(alpha):
        return ((alpha @ c) ** degree)[:, None] - alpha.sum(1, keepdim=True)

    surface = MarginSurface(k, degree, margin(lattice(k, degree).double()))
    alpha = torch.from_numpy(np.random.default_rng(0).dirichlet([1.0] * k, size=5)).requires_grad_()
    assert torch.allclose(surface.at(alpha), margin(alpha), atol=1e-9)
    (expected,) = torch.autograd.grad(surface.at(alpha).sum(), alpha)
    assert torch.allclose(surface.slopes(alpha.detach())[:, 0], expected)


def test_a_curved_surface_reaches_its_best_point():
    """One pair's margin peaks at α = (0.3, 0.7), others are zero: dense search over (α, s) finds nothing better."""
    nodes = lattice(2, 4).double()
    values = 4 * torch.exp(-20 * (nodes[:, :1] - 0.3) ** 2).repeat(1, 6)
    surface = MarginSurface(2, 4, values)
    assumed = torch.full((1, 2), 0.5, dtype=torch.float64)
    v = maximise(surface, torch.ones(1, 6, dtype=torch.float64), assumed=assumed, rate=0.5)

    def value(v):
        s = v.sum(1, keepdim=True)
        return logsigmoid(s * surface.at(v / s)).sum(1) + 0.5 * (v.log() - v).sum(1)

    axis = torch.linspace(0.01, 8, 401, dtype=torch.float64)
    assert float(value(v)[0]) >= float(value(torch.cartesian_prod(axis, axis)).max()) - 1e-6


def test_separable_data_are_finite():
    margins = torch.cat([torch.full((30, 1), 2.0), torch.full((30, 1), -2.0)], dim=1).double()
    fitted = fit(margins)
    assert 0.85 < fitted.alpha[0] < 1
    assert math.isfinite(fitted.scale)
    assert math.isfinite(fitted.log_likelihood)


def test_no_information_gives_the_uniform_vector():
    for margins in (torch.zeros(4, 3), torch.ones(1, 3)):
        fitted = fit(margins)
        assert fitted.alpha.tolist() == pytest.approx([1 / 3] * 3)
        assert not fitted.determined
    assert fit(torch.ones(1, 3)).held_out is None
    assert fit([[1.0], [-2.0]]).alpha.tolist() == [1.0]


def test_choices_against_every_objective_are_named():
    fitted = fit(-torch.ones(50, 2))
    assert fitted.opposed
    assert fitted.alpha.tolist() == pytest.approx([0.5, 0.5])
    assert not fitted.determined


def test_pairs_of_one_prompt_are_held_out_together():
    """Six pairs of three prompts: three folds, and a pair's held-out margin does not depend on its prompt's others."""
    margins = user([0.7, 0.3], 6)
    groups = ["a", "a", "b", "b", "c", "c"]
    fitted = fit_margins(MarginSurface.linear(margins), groups, resamples=20)
    assert fitted.folds == 3
    alone = maximise(
        MarginSurface.linear(margins / margins.square().mean().sqrt()),
        torch.tensor([[0, 0, 1, 1, 1, 1]]).double(),
        assumed=torch.full((1, 2), 0.5, dtype=torch.float64),
        rate=1 / 3,
    )
    assert torch.allclose(fitted.held_out[:2], margins[:2] @ (alone / alone.sum())[0])


def test_what_is_refused():
    with pytest.raises(DataError, match="no pair"):
        fit(torch.zeros(0, 2))
    with pytest.raises(NumericalError, match="NaN"):
        fit([[float("nan"), 1.0]])
    for options in ({"regularisation": 0.0}, {"regularisation": math.nan}, {"folds": 1}, {"resamples": 0}):
        with pytest.raises(ConfigError):
            fit([[1.0, 2.0]], **options)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1 / 3] * 3, [0.334, 0.333, 0.333]), ([0.66871, 0.33129], [0.669, 0.331]), ([1.0, 0.0], [1.0, 0.0])],
)
def test_shares_sum_to_one_as_they_are_printed(values, expected):
    assert shares(values) == expected
    assert sum(round(1000 * share) for share in shares(values)) == 1000
