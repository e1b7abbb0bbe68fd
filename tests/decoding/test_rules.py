"""The one combination, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trimtab.decoding.rules import base_coefficient, combine, ensure_usable
from trimtab.errors import NumericalError

INF = math.inf


def _t(*rows):
    return torch.tensor(rows, dtype=torch.float32)


def test_by_hand():
    # z' = (1, 2) + 2·(0.5, −1) − 0.5·(4, 2) = (1 + 1 − 2, 2 − 2 − 1) = (0, −1)
    z = combine(_t([1, 2]), [_t([0.5, -1]), _t([4, 2])], [torch.tensor([2.0]), torch.tensor([-0.5])])
    assert z.tolist() == [[0.0, -1.0]]


def test_only_named_rows_are_guided():
    # row 1 belongs to guide row 0: (3, 4) + 10·(1, 2) = (13, 24); row 0 has no guide
    z = combine(_t([1, 2], [3, 4]), [_t([1, 2])], [torch.tensor([10.0])], [torch.tensor([1])])
    assert z.tolist() == [[1, 2], [13, 24]]


def test_logits_or_log_probs_give_one_distribution():
    base, guide = _t([1.0, 2.0, 0.5]), _t([3.0, -1.0, 0.0])
    w = [torch.tensor([1.7])]
    raw = combine(base, [guide], w).softmax(-1)
    logs = combine(base.log_softmax(-1), [guide.log_softmax(-1)], w).softmax(-1)
    assert torch.allclose(raw, logs, atol=1e-6)


def test_weight_zero_is_the_base_bit_for_bit_also_where_the_guide_is_infinite():
    base = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    guide = torch.full((3, 7), -INF)
    assert torch.equal(combine(base, [guide], [torch.zeros(3)]), base)


@pytest.mark.parametrize("w", [2.0, -2.0])
def test_a_token_the_guide_does_not_know_is_impossible_for_any_sign(w):
    z = combine(_t([1, 2]), [_t([-INF, 1])], [torch.tensor([w])])
    assert z.tolist() == [[-INF, 2 + w]]


def test_result_is_float32_and_inputs_stay():
    base = torch.tensor([[1.0, 2.0]])
    out = combine(base, [torch.tensor([[1.0, 1.0]], dtype=torch.bfloat16)], [torch.tensor([1.0])])
    assert out.dtype == torch.float32
    assert base.tolist() == [[1.0, 2.0]]
    half = combine(torch.tensor([[256.0]], dtype=torch.bfloat16), [torch.tensor([[1.0]])], [torch.tensor([1.0])])
    assert half.item() == 257.0  # bfloat16 would round it to 256


@given(
    st.lists(st.floats(-5, 5), min_size=4, max_size=4),
    st.lists(st.floats(-5, 5), min_size=4, max_size=4),
    st.floats(-3, 3),
)
def test_two_copies_at_half_weight_are_one(base, guide, w):
    b, g, weight = _t(base), _t(guide), torch.tensor([w])
    once = combine(b, [g], [weight])
    twice = combine(b, [g, g], [weight / 2, weight / 2])
    assert torch.allclose(once, twice, atol=1e-5)


@pytest.mark.parametrize("bad", [[math.nan, 1.0], [INF, 1.0], [-INF, -INF]])
def test_unusable_rows_are_refused(bad):
    with pytest.raises(NumericalError, match="row 1"):
        ensure_usable(_t([0.0, 1.0], bad))
    ensure_usable(_t([0.0, -INF]))


def test_the_bases_own_weight_by_hand():
    # z' = (1 − 3)·(1, 2) + 3·(2, 0) = (−2 + 6, −4 + 0)
    z = combine(_t([1, 2]), [_t([2, 0])], [torch.tensor([3.0])], base_weight=torch.tensor([-2.0]))
    assert z.tolist() == [[4.0, -4.0]]


def test_a_base_of_weight_one_keeps_its_bits_beside_rows_of_other_weights():
    base, guide = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([0.3, 0.3, 0.3])
    plain = combine(base, [guide], [weights])
    mixed = combine(base, [guide], [weights], base_weight=torch.tensor([1.0, 0.7, 1.0]))
    assert torch.equal(mixed[[0, 2]], plain[[0, 2]])
    assert not torch.equal(mixed[1], plain[1])
    assert torch.equal(combine(base, [guide], [weights], base_weight=torch.ones(3)), plain)


def test_nothing_is_left_of_a_base_of_weight_zero_not_even_minus_infinity():
    base, policy = _t([-INF, 1.0], [-INF, 1.0], [-INF, 1.0]), _t([0.5, 2.0], [0.5, 2.0], [0.5, 2.0])
    z = combine(base, [policy], [torch.tensor([1.0, 0.5, 1.5])], base_weight=torch.tensor([0.0, 0.5, -0.5]))
    assert z.tolist() == [[0.5, 2.0], [-INF, 1.5], [-INF, 2.5]]
    assert base[0].tolist() == [-INF, 1.0]


@pytest.mark.parametrize(("weights", "left"), [([], 1.0), ([0.25], 0.75), ([3.0], -2.0), ([1.0], 0.0)])
def test_the_coefficient_is_what_policies_leave(weights, left):
    assert base_coefficient(weights) == left


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=8))
def test_weights_that_sum_to_one_up_to_rounding_leave_exactly_nothing(parts):
    assert base_coefficient([part / sum(parts) for part in parts]) == 0.0
