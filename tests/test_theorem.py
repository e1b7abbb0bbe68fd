"""GenARM's theory on worlds small enough to enumerate; docs/theory.md has the statements and larger numbers."""

from __future__ import annotations

import math

import pytest
import torch

import theorem
import toy
from trimtab.decoding.rules import combine

SEEDS = range(3)
BETAS = (1.0, 0.5)


def worlds(seed: int):
    return (
        theorem.random_world(seed, vocabulary=3),
        theorem.random_world(seed, vocabulary=3, eos=True),
        theorem.random_world(seed, vocabulary=5, length=2),
    )


def test_the_enumeration_by_hand():
    """Tokens {end, a}, at most 2 steps: end; a, end; a, a. Prefixes: (), (a). π = (¼, ¾) at (), (⅓, ⅔) at (a)."""
    tree = toy.make_tree(2, 2, eos=0)
    assert tree.responses == [(0,), (1, 0), (1, 1)]
    assert tree.prefixes == ((), (1,))
    table = torch.tensor([[1 / 4, 3 / 4], [1 / 3, 2 / 3]], dtype=torch.float64).log()
    sequences = toy.sequence_logprobs(tree, table)
    assert torch.allclose(sequences.exp(), torch.tensor([1 / 4, 1 / 4, 1 / 2], dtype=torch.float64))
    assert torch.allclose(toy.next_token_logprobs(tree, sequences), table)


def test_the_optimum_by_hand():
    """π_b = (½, ½), r = (0, ln 3), β = 1: π* = (½, 3/2)/2 = (¼, ¾). With β = ½: (½, 9/2)/5 = (1/10, 9/10)."""
    base = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    reward = torch.tensor([0.0, math.log(3)], dtype=torch.float64)
    assert toy.optimum(base, reward, 1.0).exp().tolist() == pytest.approx([0.25, 0.75])
    assert toy.optimum(base, reward, 0.5).exp().tolist() == pytest.approx([0.1, 0.9])


@pytest.mark.parametrize("seed", SEEDS)
def test_every_tree_holds_all_responses_once(seed):
    for world in worlds(seed):
        assert float(world.base_sequences.exp().sum()) == pytest.approx(1.0, abs=1e-12)
        assert len(set(world.tree.responses)) == len(world.reward)
        again = toy.next_token_logprobs(world.tree, world.base_sequences)
        assert torch.allclose(again, world.base, atol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("beta", [1.0, 0.5, 0.1])
def test_expressiveness_is_exact_token_by_token(seed, beta):
    """(i) π_r(v|s) ∝ (π*(v|s)/π_b(v|s))^β with w = 1/β gives π*(v|s) itself: the normaliser of π_r cancels."""
    for world in worlds(seed):
        assert theorem.expressiveness(world, beta) < 1e-12


@pytest.mark.parametrize("beta", BETAS)
def test_expressiveness_holds_for_the_rule_that_decoding_uses(beta):
    """The same through trimtab's own rule, which works in float32."""
    world = theorem.random_world(0, vocabulary=3)
    target = toy.next_token_logprobs(world.tree, toy.optimum(world.base_sequences, world.reward, beta))
    arm = (beta * (target - world.base)).log_softmax(-1)
    weight = torch.full((len(arm),), 1 / beta)
    guided = combine(world.base, [arm], [weight]).log_softmax(-1)
    assert (guided.exp() - target.exp()).abs().max() < 1e-6


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("beta_r", [1.0, 0.25])
def test_training_finds_the_reward_and_whole_sequences_reach_the_optimum(seed, beta_r):
    """(ii) β_r·log π_r = r + constant, and π_b·π_r^w normalised over whole responses is π*; (iii) the gap is real."""
    for world in worlds(seed):
        arm = theorem.train(world, beta_r)
        logp = toy.sequence_logprobs(world.tree, arm)
        expected = world.reward - beta_r * (world.reward / beta_r).logsumexp(0)
        assert torch.allclose(beta_r * logp, expected, atol=1e-4)
        for beta in BETAS:
            outcome = theorem.compare(world, arm, beta, beta_r)
            assert outcome.reward_error < 1e-4
            assert abs(outcome.sequence_kl) < 1e-6
            assert outcome.gap > 1e-3
            assert outcome.reverse_gap > 1e-3
            # J(π*) − J(π) = β·KL(π‖π*) for every π: what the gap costs, in units of the objective
            assert outcome.objective_lost == pytest.approx(beta * outcome.gap, abs=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_gap_closes_where_the_future_does_not_depend_on_the_next_token(seed):
    """(iii) A sum of per-position rewards and a base that sees only the position: every Z factorises."""
    world = theorem.additive_world(seed, base_sees_prefix=False, vocabulary=3)
    arm = theorem.train(world, 1.0)
    for beta in BETAS:
        assert abs(theorem.compare(world, arm, beta, 1.0).gap) < 1e-9
    sees_prefix = theorem.additive_world(seed, base_sees_prefix=True, vocabulary=3)
    assert theorem.compare(sees_prefix, arm, 1.0, 1.0).gap > 1e-3  # same reward, so the same reward model


def test_the_gap_closes_for_a_uniform_base_at_weight_one_only():
    """(iii) At w = 1 the reward model's own normaliser is the future's under a uniform base; at w = 2 it is not."""
    world = theorem.uniform_world(0, vocabulary=3)
    arm = theorem.train(world, 1.0)
    assert abs(theorem.compare(world, arm, 1.0, 1.0).gap) < 1e-9
    assert theorem.compare(world, arm, 0.5, 1.0).gap > 1e-3


@pytest.mark.parametrize("seed", SEEDS[:2])
@pytest.mark.parametrize(("beta", "beta_r"), theorem.SETTINGS)
def test_decode_aware_training_reaches_the_optimum_token_by_token(seed, beta, beta_r):
    """(iv) The loss of the policy that is sampled: its guide, decoded at w = β_r/β, is π*.

    GenARM's is not, on these same worlds: the test of (ii) and (iii) has its gap.
    """
    w = beta_r / beta
    for world in worlds(seed):
        guide = toy.at_pull(theorem.train_decode_aware(world, beta_r, [w]), w, theorem.constant)
        outcome = theorem.compare(world, guide, beta, beta_r)
        assert abs(outcome.gap) < 1e-8
        assert abs(outcome.reverse_gap) < 1e-8
        assert outcome.reward_decoded == pytest.approx(outcome.reward_optimum, abs=1e-4)


def test_which_optimum_it_is_depends_on_both_scales():
    """(iv) β_r·h = r + constant and w·h = log π_dec − log π_b, so decoding at w is the optimum at β = β_r/w.

    With β_r = β = ½ and w = 1/β = 2 it is therefore the optimum at ¼, not at ½.
    """
    world = theorem.random_world(0, vocabulary=3)
    guide = toy.at_pull(theorem.train_decode_aware(world, 0.5, [2.0]), 2.0, theorem.constant)
    decoded = toy.sequence_logprobs(world.tree, toy.decode(world.base, guide, 2.0))
    best = {beta: toy.optimum(world.base_sequences, world.reward, beta) for beta in (0.25, 0.5)}
    assert toy.kl(decoded, best[0.25]) < 1e-8
    assert toy.kl(decoded, best[0.5]) > 1e-2


def test_one_guide_at_several_pulls():
    """(iv) Not told w, a guide can only compromise; told it, it reaches the optimum at each."""
    world = theorem.random_world(0, vocabulary=3, length=3)

    def gaps(pulls, basis):
        tables = theorem.train_decode_aware(world, 1.0, pulls, basis)
        guides = [toy.at_pull(tables, w, basis) for w in theorem.PULLS]
        found = zip(guides, theorem.PULLS, strict=True)
        return torch.tensor([theorem.compare(world, guide, 1 / w, 1.0).gap for guide, w in found])

    untold, told = gaps(theorem.PULLS, theorem.constant), gaps(theorem.PULLS, theorem.piecewise)
    alone = gaps([1.0], theorem.constant)
    assert told.abs().max() < 1e-8
    assert untold.min() > 1e-4
    assert alone[1] < 1e-8 and alone[2:].min() > 1e-3
    assert untold[2:].max() < alone[2:].max()  # the compromise helps where the one pull is far away
    assert (gaps(theorem.PULLS, theorem.affine) < untold).all()


def test_a_guide_told_its_pull_adds_its_tables():
    """At w = √2, halfway between 1 and 2 in log w: half of each table; at w = 2, affine: T_0 + ln 2·T_1."""
    assert theorem.piecewise(2**0.5) == pytest.approx([0, 0.5, 0.5, 0])
    assert theorem.piecewise(4.0) == pytest.approx([0, 0, 0, 1])
    tables = torch.tensor([[[0.0, 1.0]], [[0.0, 3.0]]], dtype=torch.float64)
    expected = torch.tensor([[0.0, 1 + 3 * math.log(2)]], dtype=torch.float64).log_softmax(-1)
    torch.testing.assert_close(toy.at_pull(tables, 2.0, theorem.affine), expected)


def test_drawn_comparisons_converge_to_the_exact_ones():
    """(ii) The error of an estimate falls as 1/√n, so this KL falls as 1/n: 100 times the data, far below a tenth."""
    few, many = (theorem.sampled(count).sequence_kl for count in (1_000, 100_000))
    assert many < 0.1 * few
    assert many < 1e-3
