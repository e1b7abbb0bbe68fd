"""The preference loss, with the arithmetic done by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trimtab.training import preference_loss

LOGP_W = torch.tensor([-10.0])
LOGP_L = torch.tensor([-30.0])


def _loss(**options):
    return float(preference_loss(LOGP_W, LOGP_L, beta=0.05, **options))


def test_sigmoid():
    """m = 0.05·(−10 + 30) = 1; −log σ(1) = log(1 + e⁻¹) = 0.31326."""
    assert _loss() == pytest.approx(0.31326, abs=1e-5)


def test_margin():
    """m = 1 − 0.5 = 0.5; log(1 + e^−0.5) = 0.47408."""
    assert _loss(margin=0.5) == pytest.approx(0.47408, abs=1e-5)


def test_label_smoothing():
    """0.9·0.31326 + 0.1·log(1 + e¹) = 0.28193 + 0.13133 = 0.41326."""
    assert _loss(label_smoothing=0.1) == pytest.approx(0.41326, abs=1e-5)


def test_hinge():
    """max(0, 1 − m): m = 1 gives 0; with γ = 0.25, m = 0.75 gives 0.25."""
    assert _loss(loss_type="hinge") == 0.0
    assert _loss(loss_type="hinge", margin=0.25) == pytest.approx(0.25, abs=1e-6)


def test_gradient():
    """dL/d log π_w = −β·σ(−m) = −0.05·σ(−1) = −0.05·0.26894 = −0.013447, and the opposite for the rejected."""
    w, r = LOGP_W.clone().requires_grad_(), LOGP_L.clone().requires_grad_()
    preference_loss(w, r, beta=0.05).sum().backward()
    assert w.grad is not None
    assert r.grad is not None
    assert w.grad.item() == pytest.approx(-0.013447, abs=1e-6)
    assert r.grad.item() == pytest.approx(0.013447, abs=1e-6)


@given(st.floats(-200, 0), st.floats(-200, 0), st.floats(0.001, 2))
def test_exchanging_the_answers_changes_the_loss_by_the_scaled_margin(w, r, beta):
    """log σ(m) − log σ(−m) = m, so L(l, w) − L(w, l) = m."""
    tensors = torch.tensor([w], dtype=torch.float64), torch.tensor([r], dtype=torch.float64)
    difference = preference_loss(tensors[1], tensors[0], beta=beta) - preference_loss(*tensors, beta=beta)
    assert float(difference) == pytest.approx(beta * (w - r), abs=1e-9)


def test_extreme_margins_stay_finite():
    big = torch.tensor([1e6])
    assert float(preference_loss(big, -big, beta=1.0)) == 0.0
    assert math.isfinite(float(preference_loss(-big, big, beta=1.0)))
