"""PARM's and UniARM's loss, with the arithmetic done by hand and the identities that its parts must have."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trimtab.training.losses import mixed_preference_loss, preference_loss

NAN = math.nan
A, B = torch.tensor([-10.0]), torch.tensor([-30.0])


def _loss(strengths, alpha, *, beta=0.05, **options) -> float:
    betas = torch.tensor(beta if isinstance(beta, list) else [beta] * len(alpha))
    loss = mixed_preference_loss(A, B, torch.tensor([strengths]), torch.tensor([alpha]), beta=betas, **options)
    assert loss.shape == (1,)
    return float(loss)


def test_two_objectives_that_disagree():
    """m = 0.05·20 = 1: 0.7·log(1 + e⁻¹) + 0.3·log(1 + e¹) = 0.7·0.31326 + 0.3·1.31326 = 0.61326."""
    assert _loss([1.0, -1.0], [0.7, 0.3]) == pytest.approx(0.61326, abs=1e-5)


def test_beta_per_objective():
    """m = (1, 4): 0.5·log(1 + e⁻¹) + 0.5·log(1 + e⁴) = 0.5·0.31326 + 0.5·4.01815 = 2.16571."""
    assert _loss([1.0, -1.0], [0.5, 0.5], beta=[0.05, 0.2]) == pytest.approx(2.16571, abs=1e-5)


def test_objective_that_did_not_judge_has_no_term():
    """0.7·0.31326 = 0.21928."""
    assert _loss([1.0, NAN], [0.7, 0.3]) == pytest.approx(0.21928, abs=1e-5)


def test_tie_is_dropped_or_half_a_label_for_each():
    """Dropped: 0.7·0.31326. Half: + 0.3·(0.31326 + 1.31326)/2 = 0.21928 + 0.24398 = 0.46326."""
    assert _loss([1.0, 0.0], [0.7, 0.3]) == pytest.approx(0.21928, abs=1e-5)
    assert _loss([1.0, 0.0], [0.7, 0.3], ties="half") == pytest.approx(0.46326, abs=1e-5)
    assert _loss([1.0, NAN], [0.7, 0.3], ties="half") == pytest.approx(0.21928, abs=1e-5)


@pytest.mark.parametrize(
    ("strengths", "alpha", "extra"),
    [
        ([1.0, -1.0], [0.7, 0.3], 0.31326),  # Σ α Δ = 0.4: the first answer
        ([1.0, -1.0], [0.3, 0.7], 1.31326),  # Σ α Δ = −0.4: the second
        ([1.0, -4.0], [0.7, 0.3], 1.31326),  # Σ α Δ = 0.7 − 1.2: strengths count
        ([1.0, -1.0], [0.5, 0.5], math.log(2)),  # undecided: a constant
    ],
)
def test_global_term(strengths, alpha, extra):
    """λ = 0.1 adds a tenth of −log σ(sgn(Σ α Δ)·m) with m = 1."""
    without = _loss(strengths, alpha)
    assert _loss(strengths, alpha, global_weight=0.1) == pytest.approx(without + 0.1 * extra, abs=1e-5)


def _draws(seed: int, n: int = 5, k: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logp = -100 * torch.rand(2, n, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 2, (n, k), generator=generator).double() * 2 - 1
    alpha = torch.rand(n, k, generator=generator, dtype=torch.float64)
    return logp[0], logp[1], labels, alpha / alpha.sum(1, keepdim=True)


@given(st.integers(0, 2**31), st.floats(0.001, 1))
def test_equal_beta_is_cross_entropy_of_the_soft_label(seed, beta):
    """Σ_i α_i L_i = BCE(q, σ(m)) with q = Σ_i α_i·[i prefers a]."""
    a, b, labels, alpha = _draws(seed)
    q = (alpha * (labels > 0)).sum(1)
    expected = F.binary_cross_entropy_with_logits(beta * (a - b), q, reduction="none")
    betas = torch.full((3,), beta, dtype=torch.float64)
    torch.testing.assert_close(mixed_preference_loss(a, b, labels, alpha, beta=betas), expected)


@given(st.integers(0, 2**31))
def test_without_the_global_term_it_is_parms_loss(seed):
    """λ = 0: PARM's Σ_i α_i BT_i, written with an explicit loop and each objective's own chosen answer."""
    a, b, labels, alpha = _draws(seed)
    beta = torch.tensor([0.01, 0.1, 0.5], dtype=torch.float64)
    expected = torch.zeros_like(a)
    for row in range(len(a)):
        for i in range(3):
            chosen, rejected = (a[row], b[row]) if labels[row, i] > 0 else (b[row], a[row])
            expected[row] -= alpha[row, i] * torch.log(torch.sigmoid(beta[i] * (chosen - rejected)).clamp_min(1e-300))
    found = mixed_preference_loss(a, b, labels, alpha, beta=beta, global_weight=0.0)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@given(st.integers(0, 2**31))
def test_permuting_objectives_with_alpha_changes_nothing(seed):
    a, b, labels, alpha = _draws(seed)
    beta = torch.tensor([0.01, 0.1, 0.5], dtype=torch.float64)
    order = torch.tensor([2, 0, 1])
    first = mixed_preference_loss(a, b, labels, alpha, beta=beta, global_weight=0.3)
    second = mixed_preference_loss(a, b, labels[:, order], alpha[:, order], beta=beta[order], global_weight=0.3)
    torch.testing.assert_close(first, second)


@given(st.integers(0, 2**31))
def test_exchanging_the_answers_and_all_labels_changes_nothing(seed):
    a, b, labels, alpha = _draws(seed)
    beta = torch.full((3,), 0.05, dtype=torch.float64)
    first = mixed_preference_loss(a, b, labels, alpha, beta=beta, global_weight=0.3)
    torch.testing.assert_close(mixed_preference_loss(b, a, -labels, alpha, beta=beta, global_weight=0.3), first)


@pytest.mark.parametrize("options", [{}, {"margin": 0.3}, {"label_smoothing": 0.1}, {"loss_type": "hinge"}])
def test_one_objective_is_genarms_loss(options):
    a, b, _, _ = _draws(1)
    one = torch.ones(5, 1, dtype=torch.float64)
    found = mixed_preference_loss(a, b, one, one, beta=torch.tensor([0.05], dtype=torch.float64), **options)
    torch.testing.assert_close(found, preference_loss(a, b, beta=0.05, **options))


def test_missing_labels_give_finite_gradients():
    a = A.clone().requires_grad_()
    strengths = torch.tensor([[1.0, NAN]])
    loss = mixed_preference_loss(
        a, B, strengths, torch.tensor([[0.5, 0.5]]), beta=torch.tensor([0.05, 0.05]), global_weight=1.0, ties="half"
    )
    loss.sum().backward()
    assert a.grad is not None
    assert bool(torch.isfinite(a.grad).all())
