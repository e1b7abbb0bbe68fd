"""Shared trunks, packed rows and chunked heads against one plain forward for each answer, values and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from trimtab.rewards.encoding import EncodedPair
from trimtab.rewards.layout import branch_mask, layout_pairs, pack
from trimtab.rewards.scoring import PairScorer, sequence_logprobs

MODELS = {
    "llama": tiny.make_llama,
    "llama-untied": lambda: tiny.make_llama(tied=False),
    "gpt2": tiny.make_gpt2,
}


def _pairs(seed: int, count: int = 4, system: int = 3) -> list[EncodedPair]:
    generator = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> list[int]:
        n = int(torch.randint(low, high + 1, (1,), generator=generator))
        return torch.randint(3, 300, (n,), generator=generator).tolist()

    head = ids(system, system)
    pairs: list[EncodedPair] = []
    for i in range(count):
        common = ids(0, 3)
        pairs.append(EncodedPair(head + ids(1, 6), [*common, 1, *ids(0, 6)], [*common, 2, *ids(0, 9)], id=str(i)))
    return pairs


def _oracle(model, pairs):
    """One forward an answer, no batch, no padding, plain log_softmax."""
    sums = [[], []]
    for pair in pairs:
        for k, answer in enumerate((pair.a_ids, pair.b_ids)):
            ids = torch.tensor([pair.prompt_ids + answer])
            logp = torch.log_softmax(model(ids).logits[0], -1)
            start = len(pair.prompt_ids)
            sums[k].append(sum(logp[start + i - 1, t] for i, t in enumerate(answer)))
    return torch.stack(sums[0]), torch.stack(sums[1])


def test_layout_by_hand():
    """Two pairs whose prompts share token 9: the root is [9]; pair 0: trunk [5], answers [1, 7, 2] and [1, 8, 8, 2].

    Their common beginning [1] joins the trunk, so its branches are [7, 2] and [8, 8, 2], of which the last tokens are
    never input: row = root 9 | trunk 5 1 | 7 | 8 8 | trunk 6 | branch a of pair 1 is [3], no input | b: 4.
    """
    batch = layout_pairs(
        [EncodedPair([9, 5], [1, 7, 2], [1, 8, 8, 2]), EncodedPair([9, 6], [3], [4, 2])], branched=True
    )
    assert batch["input_ids"].tolist() == [[9, 5, 1, 7, 8, 8, 6, 4]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 3, 4, 1, 2]]
    assert batch["source"].tolist() == [2, 3, 2, 4, 5, 6, 6, 7]
    assert batch["target"].tolist() == [7, 2, 8, 8, 2, 3, 4, 2]
    assert batch["owner"].tolist() == [0, 0, 1, 1, 1, 2, 3, 3]
    assert (batch["common_source"].tolist(), batch["common_target"].tolist()) == ([1], [1])
    assert batch["common_owner"].tolist() == [0]
    mask = branch_mask(batch["node"], batch["above"])[0, 0]
    seen = [[j for j in range(8) if mask[i, j]] for i in range(8)]
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 4], [0, 1, 2, 4, 5], [0, 6], [0, 6, 7]]


def test_one_prompt_is_the_root_itself():
    """With one pair (or equal prompts) nothing of the prompt is left below the root: its last token predicts."""
    batch = layout_pairs([EncodedPair([9, 5], [1, 2], [3, 2])], branched=True)
    assert batch["input_ids"].tolist() == [[9, 5, 1, 3]]
    assert batch["source"].tolist() == [1, 2, 1, 3]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=20), st.integers(0, 30))
def test_packing_places_each_tree_once(lengths, root):
    rows = pack(lengths, root)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(rows)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("share", [True, False])
def test_values_and_gradients_equal_separate_forwards(name, share):
    model = MODELS[name]().double().requires_grad_(True)
    pairs = _pairs(1)
    scorer = PairScorer(model, max_length=64, share_prompt=share)
    assert (scorer.branched, scorer.plain_head) == (share, True)
    expected = torch.stack(_oracle(model, pairs))
    got = torch.stack(scorer(model, scorer.layout(pairs)))
    torch.testing.assert_close(got, expected)
    weights = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).reshape(expected.shape)
    parameters = list(model.parameters())
    for a, b in zip(
        torch.autograd.grad((got * weights).sum(), parameters),
        torch.autograd.grad((expected * weights).sum(), parameters),
        strict=True,
    ):
        # Llama's norms and rotations round to float32 even in a float64 model: 24 bits, not 53.
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 6), system=st.integers(0, 4))
def test_any_batch_equals_separate_forwards(seed, count, system):
    model = tiny.make_llama(seed=3).double()
    pairs = _pairs(seed, count, system)
    scorer = PairScorer(model, max_length=64)
    with torch.no_grad():
        torch.testing.assert_close(
            torch.stack(scorer(model, scorer.layout(pairs))), torch.stack(_oracle(model, pairs))
        )  # fmt: skip


def test_common_beginning_can_be_left_out_of_the_gradient():
    """It adds the same to both sums, so gradients of functions of the difference do not change."""
    model = tiny.make_llama().double().requires_grad_(True)
    pairs = _pairs(5)
    scorer = PairScorer(model, max_length=64)
    grads = []
    for whole in (True, False):
        a, b = scorer(model, scorer.layout(pairs), common_gradient=whole)
        grads.append(torch.autograd.grad(torch.sigmoid(a - b).sum(), list(model.parameters())))
    for x, y in zip(*grads, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


def test_eager_attention_gets_an_additive_mask():
    model = tiny.make_gpt2()
    model.set_attn_implementation("eager")
    model = model.double()
    pairs = _pairs(2)
    scorer = PairScorer(model, max_length=64)
    assert scorer.branched
    torch.testing.assert_close(torch.stack(scorer(model, scorer.layout(pairs))), torch.stack(_oracle(model, pairs)))


def test_a_model_that_ignores_position_ids_is_found_out():
    model = tiny.make_gpt2().double()
    inner = model.transformer.forward
    model.transformer.forward = lambda *a, position_ids=None, **k: inner(*a, **k)
    scorer = PairScorer(model, max_length=64)
    assert not scorer.branched
    assert "other numbers" in scorer.why_not
    pairs = _pairs(2)
    torch.testing.assert_close(torch.stack(scorer(model, scorer.layout(pairs))), torch.stack(_oracle(model, pairs)))


def test_short_attention_windows_are_not_branched():
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    model = MistralForCausalLM(
        MistralConfig(
            vocab_size=300,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            sliding_window=24,
            initializer_range=0.2,
        )
    ).double()
    model.eval()
    scorer = PairScorer(model, max_length=64)
    assert not scorer.branched
    assert "window (24)" in scorer.why_not
    assert PairScorer(model, max_length=24).branched
    pairs = [EncodedPair(list(range(3, 30)), [40, 41, 42], [50, 51])]
    torch.testing.assert_close(torch.stack(scorer(model, scorer.layout(pairs))), torch.stack(_oracle(model, pairs)))


@pytest.mark.parametrize("config", [{"final_logit_softcapping": 3.0}, {"final_logit_softcapping": None}])
def test_softcapped_heads(config):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    model = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=300,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            sliding_window=512,
            initializer_range=0.2,
            attn_implementation="eager",
            **config,
        )
    ).double()
    model.eval()
    scorer = PairScorer(model, max_length=64)
    assert scorer.plain_head
    pairs = _pairs(4)
    torch.testing.assert_close(torch.stack(scorer(model, scorer.layout(pairs))), torch.stack(_oracle(model, pairs)))


def test_an_unusual_head_takes_the_generic_path():
    class Doubled(torch.nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    model = tiny.make_llama(tied=False).double()
    head = Doubled(32, 300, bias=False, dtype=torch.float64)
    model.lm_head = head
    scorer = PairScorer(model, max_length=64)
    assert not scorer.plain_head
    pairs = _pairs(6)
    torch.testing.assert_close(torch.stack(scorer(model, scorer.layout(pairs))), torch.stack(_oracle(model, pairs)))


def test_sequence_logprobs_keeps_the_order_of_pairs():
    model = tiny.make_llama()
    pairs = _pairs(7, count=9)
    a, b = sequence_logprobs(model, pairs, batch_size=2)
    with torch.no_grad():
        torch.testing.assert_close(torch.stack([a, b]), torch.stack(_oracle(model, pairs)), rtol=1e-4, atol=1e-4)
