"""The reward that decoding acts on: by hand, against the definition, chunked against dense, values and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.rewards.guided_logprobs import decoded_reward, guided_token_logprobs
from trimtab.rewards.logprobs import token_logprobs

DTYPE = torch.float64


def _draw(generator, *shape, grad=False):
    return torch.randn(*shape, generator=generator, dtype=DTYPE, requires_grad=grad)


def _inputs(seed: int = 0, n: int = 5, d: int = 3, v: int = 7, *, own_head: bool = False, bias: bool = True):
    generator = torch.Generator().manual_seed(seed)
    wide = d + 1 if own_head else d
    return {
        "hidden": _draw(generator, n, d, grad=True),
        "base_hidden": _draw(generator, n, wide),
        "weight": _draw(generator, v, d, grad=True),
        "targets": torch.randint(v, (n,), generator=generator),
        "w": 0.2 + 2 * torch.rand(n, generator=generator, dtype=DTYPE),
        "bias": _draw(generator, v, grad=True) if bias else None,
        "base_weight": _draw(generator, v, wide) if own_head else None,
        "base_bias": _draw(generator, v) if own_head and bias else None,
    }


def _logits(hidden, weight, bias, scale, softcap):
    logits = scale * (hidden @ weight.T if bias is None else hidden @ weight.T + bias)
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _naive(inputs, scale=1.0, softcap=None):
    """The definition: log π_r(y) − (1/w)·log Σ_v π_b(v)·π_r(v)^w, with every distribution written out."""
    weight, bias, w = inputs["weight"], inputs["bias"], inputs["w"]
    own = inputs["base_weight"] is not None
    head = (
        (inputs["base_weight"], inputs["base_bias"])
        if own
        else (weight.detach(), bias if bias is None else bias.detach())
    )
    base = torch.softmax(_logits(inputs["base_hidden"], *head, scale, softcap), -1)
    arm = torch.softmax(_logits(inputs["hidden"], weight, bias, scale, softcap), -1)
    z = (base * arm ** w[:, None]).sum(-1)
    return arm.gather(1, inputs["targets"][:, None]).squeeze(1).log() - z.log() / w


def test_by_hand():
    """π_b = (½, ½), z_r = (ln 1, ln 3), w = 2: π_r = (¼, ¾), Z = ½·(1/16 + 9/16) = 5/16, π_dec = (1/10, 9/10).

    h(y) = log π_r(y) − ½·log(5/16): for y = 1, ln ¾ − ½ ln(5/16) = ½ ln( (9/16)/(5/16) ) = ½ ln(9/5).
    """
    base, arm = torch.zeros(2, 2), torch.tensor([1.0, 3.0]).log().expand(2, 2)
    found = decoded_reward(base, arm, torch.tensor([0, 1]), torch.tensor([2.0, 2.0]))
    assert found.reward.tolist() == pytest.approx([0.5 * math.log(1 / 5), 0.5 * math.log(9 / 5)], abs=1e-6)
    assert found.policy.exp().flatten().tolist() == pytest.approx([0.1, 0.9, 0.1, 0.9])


def test_gradient_by_hand():
    """∂h/∂z = e_y − π_dec. One feature, 1, with weights (ln 1, ln 3), as above: (1 − 9/10)·ln 3 for y = 1."""
    hidden = torch.ones(1, 1, requires_grad=True)
    weight = torch.tensor([[0.0], [math.log(3)]])
    guided_token_logprobs(hidden, torch.zeros(1, 1), weight, torch.tensor([1]), torch.tensor([2.0])).sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.item() == pytest.approx(0.1 * math.log(3), abs=1e-6)


def test_the_three_forms_are_one():
    """h = log π_r − log Z / w = (log π_dec − log π_b) / w, and constants in the logits do not matter."""
    generator = torch.Generator().manual_seed(0)
    base, arm, w = _draw(generator, 4, 6), _draw(generator, 4, 6), torch.tensor([0.3, 1.0, 2.0, 9.0], dtype=DTYPE)
    y = torch.tensor([0, 5, 2, 2])
    found = decoded_reward(base + 3, arm - 7, y, w)
    log_base, log_arm = base.log_softmax(-1), arm.log_softmax(-1)
    policy = (log_base + w[:, None] * log_arm).log_softmax(-1)
    torch.testing.assert_close(found.policy, policy)
    torch.testing.assert_close(found.reward, ((policy - log_base) / w[:, None]).gather(1, y[:, None]).squeeze(1))
    normaliser = (log_base + w[:, None] * log_arm).logsumexp(-1)
    torch.testing.assert_close(found.reward, log_arm.gather(1, y[:, None]).squeeze(1) - normaliser / w)


def test_a_small_pull_loses_no_digits():
    """w → 0: h → z_r(y) − E_b[z_r], here to first order in w, though 1/w = 10⁴ would make rounding errors large."""
    generator = torch.Generator().manual_seed(0)
    base, arm = 4 * torch.randn(9, 50, generator=generator), 4 * torch.randn(9, 50, generator=generator)
    y, w = torch.arange(9), torch.full((9,), 1e-4)
    exact = decoded_reward(base.double(), arm.double(), y, w.double()).reward
    assert (decoded_reward(base, arm, y, w).reward.double() - exact).abs().max() < 2e-2
    mean = (base.double().softmax(-1) * arm).sum(-1)
    torch.testing.assert_close(exact, arm.double().gather(1, y[:, None]).squeeze(1) - mean, atol=1e-2, rtol=0)


@pytest.mark.parametrize("own_head", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.5, None), (1.0, 2.0), (1.5, 3.0)])
def test_gradcheck(own_head, bias, scale, softcap):
    inputs = _inputs(own_head=own_head, bias=bias)
    # Finite differences would move a shared head for the base too, whose share of the gradient is left out on purpose.
    if not own_head:
        inputs["base_weight"] = inputs["weight"].detach().clone()
        inputs["base_bias"] = inputs["bias"].detach().clone() if bias else None
    trained = ["hidden", "weight", *(["bias"] if bias else [])]

    def run(*tensors):
        return guided_token_logprobs(
            **{**inputs, **dict(zip(trained, tensors, strict=True))}, scale=scale, softcap=softcap, chunk=2
        )

    assert torch.autograd.gradcheck(run, [inputs[name] for name in trained])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(0, 9),
    chunk=st.integers(1, 12),
    own_head=st.booleans(),
    bias=st.booleans(),
    shape=st.sampled_from([(1.0, None), (0.7, 4.0)]),
)
def test_any_chunk_equals_the_definition(seed, n, chunk, own_head, bias, shape):
    inputs = _inputs(seed, n, d=4, v=11, own_head=own_head, bias=bias)
    scale, softcap = shape
    expected = _naive(inputs, scale, softcap)
    got = guided_token_logprobs(**inputs, scale=scale, softcap=softcap, chunk=chunk)
    torch.testing.assert_close(got, expected)
    weights = torch.arange(1.0, n + 1, dtype=DTYPE)
    trained = [inputs[name] for name in ("hidden", "weight", "bias") if inputs[name] is not None]
    for a, b in zip(
        torch.autograd.grad((got * weights).sum(), trained),
        torch.autograd.grad((expected * weights).sum(), trained),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_each_token_has_its_own_pull():
    inputs = _inputs()
    together = guided_token_logprobs(**inputs)
    for i in range(5):
        one = {k: v[i : i + 1] if k in ("hidden", "base_hidden", "targets", "w") else v for k, v in inputs.items()}
        torch.testing.assert_close(guided_token_logprobs(**one), together[i : i + 1])


def test_no_gradient_flows_to_the_base():
    inputs = _inputs(own_head=True)
    for name in ("base_hidden", "base_weight", "base_bias", "w"):
        inputs[name].requires_grad_()
    guided_token_logprobs(**inputs).sum().backward()
    assert all(inputs[name].grad is None for name in ("base_hidden", "base_weight", "base_bias", "w"))
    assert all(inputs[name].grad is not None for name in ("hidden", "weight", "bias"))


@pytest.mark.parametrize("seed", range(3))
def test_where_z_is_constant_it_is_the_log_probability(seed):
    """A uniform base and w = 1: Z = Σ_v π_r(v)/V = 1/V whatever the state, so h = log π_r + ln V."""
    inputs = _inputs(seed, bias=False)
    inputs["base_hidden"] = torch.zeros_like(inputs["base_hidden"])
    inputs["w"] = torch.ones(5, dtype=DTYPE)
    plain = token_logprobs(inputs["hidden"], inputs["weight"], inputs["targets"])
    got = guided_token_logprobs(**inputs)
    torch.testing.assert_close(got, plain + math.log(7))
    trained = [inputs["hidden"], inputs["weight"]]
    for a, b in zip(torch.autograd.grad(got.sum(), trained), torch.autograd.grad(plain.sum(), trained), strict=True):
        torch.testing.assert_close(a, b)


def _saved_for_backward(run):
    """The sizes of what autograd keeps while ``run`` runs."""
    sizes: list[int] = []

    def pack(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sizes


def test_a_frozen_head_keeps_only_d_numbers_a_token():
    inputs = {k: v.detach() if k in ("weight", "bias") else v for k, v in _inputs(n=40, v=50).items()}
    assert _saved_for_backward(lambda: guided_token_logprobs(**inputs, chunk=4)) == [40 * 3]
    assert 40 * 50 in _saved_for_backward(lambda: _naive(inputs))


def test_a_trained_head_keeps_no_logits_either():
    inputs = _inputs(n=40, v=50)
    sizes = _saved_for_backward(lambda: guided_token_logprobs(**inputs, chunk=4))
    assert 40 * 50 not in sizes
    assert max(sizes) == max(40 * 3, 50 * 3)


def test_bfloat16_products_stay_close_to_float64():
    """bfloat16 keeps 8 bits: logits of size ≤ 4 are off by ≤ 4·2⁻⁸; h differs by less than twice that a token, and
    the base's share as much again over w: 0.1 nats bounds it at w = 1."""
    generator = torch.Generator().manual_seed(1)
    hidden, base = _draw(generator, 64, 32), _draw(generator, 64, 32)
    weight, targets = 0.2 * _draw(generator, 500, 32), torch.randint(500, (64,), generator=generator)
    w = torch.ones(64)
    exact = guided_token_logprobs(hidden, base, weight, targets, w.double())
    half = guided_token_logprobs(hidden.bfloat16(), base.bfloat16(), weight.bfloat16(), targets, w)
    assert half.dtype is torch.float32
    assert (half.double() - exact).abs().max() < 0.1


def test_no_gradient_inside_no_grad():
    with torch.no_grad():
        assert not guided_token_logprobs(**_inputs()).requires_grad
