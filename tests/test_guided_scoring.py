"""Both answers' decoded reward: shared trunks and adapters switched off, against two plain forwards for each answer."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, get_peft_model

import tiny
from conditioned import adapted, config_of
from trimtab.errors import ConfigError, GuidanceError
from trimtab.rewards.conditioned import preference
from trimtab.rewards.encoding import EncodedPair
from trimtab.rewards.scoring import PairScorer, sequence_logprobs
from trimtab.training.losses import preference_loss

TOKENIZER = tiny.make_tokenizer()
PULLS = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
ALPHA = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


def _pairs(seed: int = 1, count: int = 4, *, equal: bool = False) -> list[EncodedPair]:
    generator = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> list[int]:
        n = int(torch.randint(low, high + 1, (1,), generator=generator))
        return torch.randint(3, 300, (n,), generator=generator).tolist()

    head = ids(3, 3)
    pairs: list[EncodedPair] = []
    for i in range(count):
        common, own = ids(0, 3), ids(0, 6)
        other = ids(len(own), len(own)) if equal else ids(0, 9)
        pairs.append(EncodedPair(head + ids(1, 6), [*common, 1, *own], [*common, 2, *other], id=str(i)))
    return pairs


def _lora(model, **options):
    options = {"target_modules": "all-linear", "lora_dropout": 0.3, **options}
    made = get_peft_model(copy.deepcopy(model), LoraConfig(r=3, task_type="CAUSAL_LM", **options)).double().eval()
    generator = torch.Generator().manual_seed(2)
    for name, parameter in made.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return made


def _conditioned(method):
    base = tiny.make_llama()
    return adapted(base, config_of(method, TOKENIZER)).double(), base.double()


def _make(name):
    """The trained model, the base it guides, and what PairScorer is told of the base."""
    if name == "llama-lora":
        base = tiny.make_llama()
        return _lora(base), base.double(), None
    if name == "gpt2-lora":
        base = tiny.make_gpt2()
        return _lora(base, fan_in_fan_out=True, target_modules=["c_attn", "c_fc"]), base.double(), None
    if name in ("moslora-text", "pblora"):
        return *_conditioned(name), None
    whole = tiny.make_llama(seed=1, tied=name == "whole-tied").double().requires_grad_(True)
    base = tiny.make_llama(seed=0, tied=name == "whole-tied").double().requires_grad_(False)
    return whole, base, base


MODELS = ["llama-lora", "gpt2-lora", "moslora-text", "pblora", "whole", "whole-tied"]


def _oracle(model, base, pairs, pulls):
    """Two forwards an answer, no batch, no padding, and the definition of h, token by token."""
    sums = [[], []]
    for pair, w in zip(pairs, pulls, strict=True):
        for k, answer in enumerate((pair.a_ids, pair.b_ids)):
            ids = torch.tensor([pair.prompt_ids + answer])
            arm = torch.log_softmax(model(ids).logits[0], -1)
            with torch.no_grad():
                plain = torch.log_softmax(base(ids).logits[0], -1)
            start = len(pair.prompt_ids) - 1
            log_z = (plain + w * arm).logsumexp(-1)
            sums[k].append(sum(arm[start + i, t] - log_z[start + i] / w for i, t in enumerate(answer)))
    return torch.stack(sums[0]), torch.stack(sums[1])


def _gradients(value, model):
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.autograd.grad(value, trained)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("share", [True, False])
def test_values_and_gradients_equal_separate_forwards(name, share):
    model, base, told = _make(name)
    pairs = _pairs()
    with preference(model, ALPHA) if name in ("moslora-text", "pblora") else nullcontext():
        scorer = PairScorer(model, max_length=64, share_prompt=share, base=told)
        assert (scorer.branched, scorer.plain_head) == (share, True)
        expected = torch.stack(_oracle(model, base, pairs, PULLS))
        got = torch.stack(scorer(model, scorer.layout(pairs), guided_by=PULLS))
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(got, torch.stack(scorer(model, scorer.layout(pairs))), atol=0.1)
    weights = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).reshape(expected.shape)
    wanted = _gradients((expected * weights).sum(), model)
    for a, b in zip(_gradients((got * weights).sum(), model), wanted, strict=True):
        # Llama's norms and rotations round to float32 even in a float64 model: 24 bits, not 53.
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def _ratios(model, base, pairs):
    """Two forwards an answer: Σ_t log π − log π_ref."""
    sums = []
    for pair in pairs:
        for answer in (pair.a_ids, pair.b_ids):
            ids = torch.tensor([pair.prompt_ids + answer])
            with torch.no_grad():
                plain = torch.log_softmax(base(ids).logits[0], -1)
            own = torch.log_softmax(model(ids).logits[0], -1) - plain
            start = len(pair.prompt_ids) - 1
            sums.append(own[start : start + len(answer)].gather(1, torch.tensor(answer)[:, None]).sum())
    return torch.stack(sums[0::2]), torch.stack(sums[1::2])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("share", [True, False])
def test_ratios_to_the_base_equal_separate_forwards(name, share):
    model, base, told = _make(name)
    pairs = _pairs()
    with preference(model, ALPHA) if name in ("moslora-text", "pblora") else nullcontext():
        scorer = PairScorer(model, max_length=64, share_prompt=share, base=told)
        expected = torch.stack(_ratios(model, base, pairs))
        got = torch.stack(scorer(model, scorer.layout(pairs), against_base=True))
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
        listed = torch.stack(sequence_logprobs(model, pairs, scorer=scorer, batch_size=3, against_base=True))
        torch.testing.assert_close(listed.double(), expected.detach(), rtol=1e-4, atol=1e-4)
    weights = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).reshape(expected.shape)
    wanted = _gradients((expected * weights).sum(), model)
    for a, b in zip(_gradients((got * weights).sum(), model), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_ratios_need_the_base():
    scorer = PairScorer(tiny.make_llama(), max_length=64)
    with pytest.raises(ConfigError, match="need the base beside the guide"):
        scorer(tiny.make_llama(), scorer.layout(_pairs()), against_base=True)


def test_an_unusual_head_takes_the_generic_path():
    class Doubled(torch.nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    base = tiny.make_llama(tied=False).double()
    base.lm_head = Doubled(32, 300, bias=False, dtype=torch.float64)
    model = _lora(base, target_modules=["q_proj", "down_proj"])
    scorer = PairScorer(model, max_length=64)
    assert not scorer.plain_head
    pairs = _pairs()
    expected = torch.stack(_oracle(model, base, pairs, PULLS))
    got = torch.stack(scorer(model, scorer.layout(pairs), guided_by=PULLS))
    torch.testing.assert_close(got, expected)
    for a, b in zip(_gradients(got.square().sum(), model), _gradients(expected.square().sum(), model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_where_z_is_constant_it_is_genarms_loss(beta):
    """A uniform base at w = 1: Z = 1/V at every prefix, so h is log π_r + (tokens)·ln V, and with answers of equal
    length the margins, the loss and its gradients are GenARM's; with unequal ones the margins differ by a constant."""
    model = tiny.make_llama(seed=1, tied=False).double().requires_grad_(True)
    uniform = copy.deepcopy(model).requires_grad_(False)
    uniform.lm_head.weight.zero_()
    scorer = PairScorer(model, max_length=64, base=uniform)
    for equal in (True, False):
        pairs = _pairs(3, equal=equal)
        batch = scorer.layout(pairs)
        a, b = scorer(model, batch)
        guided_a, guided_b = scorer(model, batch, guided_by=torch.ones(4, dtype=torch.float64))
        longer = torch.tensor([len(p.a_ids) - len(p.b_ids) for p in pairs], dtype=torch.float64)
        torch.testing.assert_close(guided_a - guided_b, a - b + longer * math.log(300), rtol=0, atol=1e-6)
        assert bool(longer.any()) is not equal
        if equal:
            plain = preference_loss(a, b, beta=beta).sum()
            guided = preference_loss(guided_a, guided_b, beta=beta).sum()
            torch.testing.assert_close(guided, plain, rtol=0, atol=1e-6)
            for x, y in zip(_gradients(guided, model), _gradients(plain, model), strict=True):
                torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)


def test_with_a_base_that_is_not_uniform_it_is_another_loss():
    model, base, _ = _make("whole")
    scorer = PairScorer(model, max_length=64, base=base)
    batch = scorer.layout(_pairs(3, equal=True))
    a, b = scorer(model, batch)
    guided_a, guided_b = scorer(model, batch, guided_by=torch.ones(4, dtype=torch.float64))
    assert ((guided_a - guided_b) - (a - b)).abs().max() > 0.5


def test_common_beginning_can_be_left_out_of_the_gradient():
    model, _, _ = _make("llama-lora")
    scorer = PairScorer(model, max_length=64)
    batch = scorer.layout(_pairs(5))
    assert batch["common_source"].numel()
    grads, values = [], []
    for whole in (True, False):
        a, b = scorer(model, batch, common_gradient=whole, guided_by=PULLS)
        values.append(torch.stack([a, b]).detach())
        grads.append(_gradients(torch.sigmoid(a - b).sum(), model))
    assert torch.equal(*values)
    for x, y in zip(*grads, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


def test_each_pair_has_its_own_pull():
    model, _, _ = _make("llama-lora")
    pairs = _pairs()
    scorer = PairScorer(model, max_length=64)
    a, b = scorer(model, scorer.layout(pairs), guided_by=PULLS)
    for i, pair in enumerate(pairs):
        alone = scorer(model, scorer.layout([pair]), guided_by=PULLS[i : i + 1])
        torch.testing.assert_close(torch.cat(alone), torch.stack([a[i], b[i]]), rtol=1e-5, atol=1e-5)


def test_the_base_is_not_touched_by_training_mode_and_touches_nothing():
    """The base's own dropout is off, no random number is drawn for it, and every mode and flag is as it was."""
    base = tiny.make_gpt2()
    base.config.attn_pdrop = base.config.resid_pdrop = 0.5
    for module in base.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    model = _lora(base, fan_in_fan_out=True, target_modules=["c_attn"], lora_dropout=0.0).train()
    model.base_model.model.transformer.h[0].eval()
    frozen = next(p for n, p in model.named_parameters() if "lora_A" in n)
    frozen.requires_grad_(False)
    scorer = PairScorer(model, max_length=64)
    batch = scorer.layout(_pairs())

    def state():
        return [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]

    before = state()
    torch.manual_seed(0)
    plain = torch.stack(scorer(model, batch))
    end = torch.get_rng_state()
    torch.manual_seed(0)
    found = torch.stack(scorer(model, batch, guided_by=PULLS))
    assert torch.equal(torch.get_rng_state(), end)
    assert state() == before
    torch.manual_seed(0)
    torch.testing.assert_close(torch.stack(scorer(model, batch, guided_by=PULLS)), found)
    assert not torch.allclose(found, plain)
    forwards = []
    model.base_model.model.transformer.register_forward_hook(lambda m, a, o: forwards.append(o[0].requires_grad))
    scorer(model, batch, guided_by=PULLS)
    assert forwards == [False, True]  # one forward for the base, without gradients, and one for the guide


def test_gradient_checkpointing_changes_nothing():
    model, _, _ = _make("llama-lora")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    scorer = PairScorer(model, max_length=64)
    batch = scorer.layout(_pairs())
    expected = _gradients(torch.stack(scorer(model, batch, guided_by=PULLS)).square().sum(), model)
    model.train()
    model.enable_input_require_grads()
    # transformers renames it in its fifth version and warns about the older name
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": False})
    found = _gradients(torch.stack(scorer(model, batch, guided_by=PULLS)).square().sum(), model)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", ["plain", "generic"])
def test_only_d_numbers_a_token_are_kept_for_the_head(head):
    """Of everything kept for the backward pass, nothing with a plain head has a vocabulary row for each token."""
    model, _, _ = _make("llama-lora")
    scorer = PairScorer(model, max_length=64)
    scorer.plain_head = head == "plain"
    pairs = _pairs(count=8)
    batch = scorer.layout(pairs)
    sizes = []

    def pack(tensor):
        sizes.append((tensor.numel(), tensor.shape[-1] if tensor.ndim else 0))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        torch.stack(scorer(model, batch, guided_by=torch.ones(8))).sum()
    rows = [n for n, last in sizes if last == 300 and n > 300 * 32]
    assert bool(rows) is (head == "generic")


def test_many_pairs_without_gradients():
    model, base, _ = _make("llama-lora")
    pairs = _pairs(7, count=9)
    found = torch.stack(sequence_logprobs(model, pairs, batch_size=2, guided_by=2.0))
    with torch.no_grad():
        expected = torch.stack(_oracle(model, base, pairs, [2.0] * 9)).float()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "pulls", [torch.ones(3), torch.ones(4, 1), torch.zeros(4), -torch.ones(4), torch.full((4,), float("nan"))]
)
def test_pulls_that_cannot_be_decoded_with(pulls):
    model, _, _ = _make("llama-lora")
    scorer = PairScorer(model, max_length=64)
    with pytest.raises(GuidanceError, match="one pull w for each of 4 pairs, all numbers above 0"):
        scorer(model, scorer.layout(_pairs()), guided_by=pulls)


def test_a_base_that_is_missing_or_another_model():
    model = tiny.make_llama()
    scorer = PairScorer(model, max_length=64)
    with pytest.raises(ConfigError, match=r"no adapters to switch off: pass PairScorer\(\.\.\., base=copy\)"):
        scorer(model, scorer.layout(_pairs()), guided_by=PULLS)
    with pytest.raises(ConfigError, match="a GPT2LMHeadModel and the trained model a LlamaForCausalLM"):
        PairScorer(model, max_length=64, base=tiny.make_gpt2())
    with pytest.raises(ConfigError, match="has 320 tokens and the trained model 300"):
        PairScorer(model, max_length=64, base=tiny.make_llama(320))
    eager = tiny.make_llama()
    eager.set_attn_implementation("eager")
    both = PairScorer(model, max_length=64, base=eager)
    same = PairScorer(model, max_length=64, base=tiny.make_llama())
    batch = same.layout(_pairs())
    torch.testing.assert_close(both(model, batch, guided_by=PULLS.float()), same(model, batch, guided_by=PULLS.float()))
