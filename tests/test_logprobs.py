"""Chunked log-probabilities against log_softmax, values and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.rewards.logprobs import token_logprobs

DTYPE = torch.float64


def _inputs(seed: int = 0, n: int = 5, d: int = 3, v: int = 7, bias: bool = True):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, d, dtype=DTYPE, generator=generator, requires_grad=True)
    weight = torch.randn(v, d, dtype=DTYPE, generator=generator, requires_grad=True)
    b = torch.randn(v, dtype=DTYPE, generator=generator, requires_grad=True) if bias else None
    return hidden, weight, b, torch.randint(v, (n,), generator=generator)


def _naive(hidden, weight, bias, targets, scale=1.0, softcap=None):
    logits = hidden @ weight.T * scale if bias is None else (hidden @ weight.T + bias) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return torch.log_softmax(logits, -1).gather(1, targets[:, None]).squeeze(1)


def test_by_hand():
    """h = 1, w = (ln 1, ln 2, ln 5): logits are ln of (1, 2, 5), so p = (1/8, 2/8, 5/8)."""
    weight = torch.tensor([[0.0], [math.log(2)], [math.log(5)]])
    got = token_logprobs(torch.ones(3, 1), weight, torch.tensor([0, 1, 2]))
    assert got.tolist() == pytest.approx([math.log(1 / 8), math.log(2 / 8), math.log(5 / 8)], abs=1e-6)


def test_gradient_by_hand():
    """d log p_y / dh = w_y − Σ p_v w_v; with w = (0, 1), h = 0: p = (½, ½), so 1 − ½ = ½ for y = 1 and −½ for y = 0."""
    hidden = torch.zeros(2, 1, requires_grad=True)
    token_logprobs(hidden, torch.tensor([[0.0], [1.0]]), torch.tensor([1, 0])).sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.flatten().tolist() == pytest.approx([0.5, -0.5])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.5, None), (1.0, 2.0), (1.5, 3.0)])
def test_gradcheck(bias, scale, softcap):
    hidden, weight, b, targets = _inputs(bias=bias)

    def run(*tensors):
        return token_logprobs(
            tensors[0],
            tensors[1],
            targets,
            bias=tensors[2] if bias else None,
            scale=scale,
            softcap=softcap,
            chunk=2,
        )

    assert torch.autograd.gradcheck(run, (hidden, weight, b) if bias else (hidden, weight))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 9), chunk=st.integers(1, 12))
def test_any_chunk_is_log_softmax(seed, n, chunk):
    hidden, weight, bias, targets = _inputs(seed, n=n)
    expected = _naive(hidden, weight, bias, targets)
    got = token_logprobs(hidden, weight, targets, bias=bias, chunk=chunk)
    torch.testing.assert_close(got, expected)
    weights = torch.arange(1.0, n + 1, dtype=DTYPE)
    expected_grads = torch.autograd.grad((expected * weights).sum(), [hidden, weight, bias])
    got_grads = torch.autograd.grad((got * weights).sum(), [hidden, weight, bias])
    for a, b in zip(got_grads, expected_grads, strict=True):
        torch.testing.assert_close(a, b)


def test_frozen_head_keeps_only_d_numbers_a_token():
    hidden, weight, bias, targets = _inputs()
    result = token_logprobs(hidden, weight.detach(), targets, bias=bias.detach())
    saved = [t for t in result.grad_fn.saved_tensors if t is not None]
    assert max(t.numel() for t in saved) <= max(hidden.numel(), weight.numel())
    assert weight.shape[0] * hidden.shape[0] not in [t.numel() for t in saved]


def test_bfloat16_products_stay_close_to_float64():
    """bfloat16 keeps 8 bits: logits of size ≤ 4 are off by ≤ 4·2⁻⁸, twice (input and product) and once more in the
    normaliser: 0.05 nats a token bounds it."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(64, 32, generator=generator, dtype=DTYPE)
    weight = torch.randn(500, 32, generator=generator, dtype=DTYPE) * 0.2
    targets = torch.randint(500, (64,), generator=generator)
    exact = _naive(hidden, weight, None, targets)
    half = token_logprobs(hidden.bfloat16(), weight.bfloat16(), targets)
    assert half.dtype is torch.float32
    assert (half.double() - exact).abs().max() < 0.05


def test_no_gradient_inside_no_grad():
    hidden, weight, bias, targets = _inputs()
    with torch.no_grad():
        result = token_logprobs(hidden, weight, targets, bias=bias)
    assert not result.requires_grad
