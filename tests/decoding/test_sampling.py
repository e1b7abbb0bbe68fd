"""Sampling: each filter by hand, the draw exact, and the config strict."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trimtab.decoding.adjusting import Adjustments, adjusted, penalise_repetition
from trimtab.decoding.config import Sampling, make_sampling
from trimtab.decoding.sampling import (
    choose,
    distribution,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
)
from trimtab.errors import ConfigError

INF = math.inf
P = torch.tensor([[0.5, 0.3, 0.15, 0.05]])
Z = P.log()


def _kept(z):
    return torch.isfinite(z[0]).tolist()


def test_filters_by_hand():
    assert _kept(keep_top_k(Z, 2)) == [True, True, False, False]
    assert _kept(keep_top_k(Z, 0)) == [True] * 4
    # 0.5 < 0.7 needs the second: 0.8 ≥ 0.7
    assert _kept(keep_top_p(Z, 0.7)) == [True, True, False, False]
    assert _kept(keep_top_p(Z, 0.01)) == [True, False, False, False]
    # 0.2 · 0.5 = 0.1 keeps 0.15, drops 0.05
    assert _kept(keep_min_p(Z, 0.2)) == [True, True, True, False]


def test_rule_of_one_temperature_divides_the_combined_logits():
    # τ = 0.5 squares: 0.25, 0.09, 0.0225, 0.0025 of their sum 0.365
    got = distribution(Z, Sampling(temperature=0.5))[0]
    assert torch.allclose(got, torch.tensor([0.25, 0.09, 0.0225, 0.0025]) / 0.365, atol=1e-6)


def test_filters_come_after_temperature():
    # squared probabilities 0.685, 0.247, 0.062, 0.007: 0.9 needs two; unsquared it would need three
    got = distribution(Z, Sampling(temperature=0.5, top_p=0.9))[0]
    assert (got > 0).tolist() == [True, True, False, False]


def test_a_tiny_temperature_is_greedy_and_finite():
    for temperature in (1e-30, 1e-300, 5e-324):  # the last two are 0 in float32
        assert distribution(Z, Sampling(temperature=temperature))[0].tolist() == [1, 0, 0, 0]


def test_repetition_penalty_by_hand():
    z = torch.tensor([[2.0, -2.0, 3.0]])
    seen = torch.tensor([[True, True, False]])
    assert penalise_repetition(z, seen, 2.0).tolist() == [[1.0, -4.0, 3.0]]
    penalised = Adjustments(Sampling(repetition_penalty=4.0), 3, prompt=[2])
    assert choose(adjusted(z, [(penalised, [])]), Sampling(temperature=0)).tolist() == [0]


def test_draw_inverts_the_cumulative_distribution():
    p = torch.tensor([[0.25, 0.0, 0.75]]).expand(5, 3)
    u = torch.tensor([0.0, 0.2499, 0.25, 0.9, 1 - 2**-53], dtype=torch.float64)
    assert draw(p, u).tolist() == [0, 0, 2, 2, 2]


@given(st.lists(st.sampled_from([0.0, 1e-30, 0.1, 0.7]), min_size=2, max_size=9).filter(any), st.floats(0, 1 - 2**-53))
def test_a_token_of_probability_zero_is_never_drawn(p, u):
    token = int(draw(torch.tensor([p]), torch.tensor([u], dtype=torch.float64))[0])
    assert p[token] > 0


def test_options_are_checked():
    assert make_sampling(None, temperature=0).is_greedy
    assert make_sampling({"stop": "x"}, n=2) == Sampling(stop=("x",), n=2)
    assert make_sampling(Sampling(top_k=3), top_p=0.5) == Sampling(top_k=3, top_p=0.5)
    with pytest.raises(ConfigError, match=r"'temprature'.*Did you mean 'temperature'"):
        make_sampling(temprature=1)
    for bad in ({"temperature": math.nan}, {"temperature": -1}, {"top_p": 0}, {"stop": [""]}, {"max_tokens": 0}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            make_sampling(bad)


def test_top_p_keeps_what_a_full_sort_keeps():
    generator = torch.Generator().manual_seed(0)
    for scale in (0.0, 1.0, 4.0):
        z = (torch.randn(6, 500, generator=generator, dtype=torch.float64) * scale).round(decimals=1)  # ties
        z[0, :400] = -INF
        for p in (0.01, 0.5, 0.9, 0.999):
            probabilities = z.softmax(-1)
            order = torch.argsort(-probabilities, stable=True, dim=-1)
            ordered = probabilities.gather(-1, order)
            kept = torch.zeros(z.shape, dtype=torch.bool).scatter(-1, order, ordered.cumsum(-1) - ordered < p)
            assert torch.equal(torch.isfinite(keep_top_p(z, p)), kept)


def test_top_p_of_a_row_does_not_depend_on_its_neighbours():
    z = torch.randn(5, 300, generator=torch.Generator().manual_seed(1)) * 3
    assert torch.equal(keep_top_p(z, 0.9)[2:3], keep_top_p(z[2:3], 0.9))
