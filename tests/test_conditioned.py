"""What holds for every preference-conditioned adapter, MoSLoRA in each of its forms and PBLoRA."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model

import tiny
from conditioned import METHODS, adapted, config_of, randomise
from trimtab.errors import ConfigError, GuidanceError
from trimtab.rewards.conditioned import conditioning, preference, set_preference
from trimtab.rewards.conditioned.tuner import ConditionedLayer

TOKENIZER = tiny.make_tokenizer()
LLAMA = tiny.make_llama()
GPT2 = tiny.make_gpt2()
IDS = torch.arange(3, 27).reshape(4, 6)
ALPHA = torch.tensor([[1.0, 0.0, 0.0], [0.2, 0.5, 0.3], [0.0, 0.0, 1.0], [0.4, 0.4, 0.2]])

simplex = st.lists(st.floats(0.01, 1.0), min_size=3, max_size=3).map(
    lambda v: torch.tensor(v) / torch.tensor(v).sum()
)  # fmt: skip


def logits(model, alpha, ids=IDS, **options):
    with torch.no_grad(), preference(model, alpha, **options):
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def plain(model, ids=IDS):
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


@pytest.fixture(params=[LLAMA, GPT2], ids=["llama", "gpt2"])
def base(request):
    return request.param


@pytest.fixture(params=METHODS)
def method(request):
    return request.param


def test_it_starts_as_the_base(base, method):
    config = config_of(method, TOKENIZER)
    model = adapted(base, config)
    same = config_of(method, TOKENIZER, target_modules=sorted(config.target_modules))
    fresh = get_peft_model(copy.deepcopy(base), same).eval()
    assert torch.equal(logits(fresh, ALPHA), plain(base))
    assert not torch.allclose(logits(model, ALPHA), plain(base), atol=0.1)


def test_each_row_equals_its_own_single_row_run(base, method):
    model = adapted(base, config_of(method, TOKENIZER))
    together = logits(model, ALPHA)
    for i in range(4):
        alone = logits(model, ALPHA[i], IDS[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together[i : i + 1], logits(model, ALPHA[i : i + 1], IDS[i : i + 1]))
    assert not torch.allclose(logits(model, ALPHA[0]), logits(model, ALPHA[2]), atol=0.05)


def test_a_row_does_not_see_its_neighbours_preference(method):
    model = adapted(LLAMA, config_of(method, TOKENIZER))
    other = ALPHA.clone()
    other[1:] = ALPHA[[3, 1, 2]]
    before, after = logits(model, ALPHA), logits(model, other)
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1:], after[1:], atol=1e-3)


def test_decoding_with_a_preference_in_each_row(base, method):
    model = adapted(base, config_of(method, TOKENIZER))
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with preference(model, ALPHA, precompute=True):
        together = model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), **options)
    for i in range(4):
        with preference(model, ALPHA[i]):
            row = IDS[i : i + 1]
            alone = model.generate(input_ids=row, attention_mask=torch.ones_like(row), **options)
        assert torch.equal(together[i], alone[0])


def test_precomputed_conditions_are_the_same(method):
    model = adapted(LLAMA, config_of(method, TOKENIZER))
    expected = logits(model, ALPHA)
    assert torch.equal(logits(model, ALPHA, precompute=True), expected)
    with preference(model, ALPHA, precompute=True):
        randomise(model, seed=2, scale=0.0)
    assert torch.equal(logits(model, ALPHA), plain(LLAMA))


@pytest.mark.parametrize("method", ["moslora-text", "moslora-learned-shared", "moslora-alpha", "pblora"])
@settings(max_examples=10, deadline=None)
@given(alpha=simplex, order=st.permutations(range(3)))
def test_permuting_objectives_together_with_alpha_changes_nothing(method, alpha, order):
    model = adapted(LLAMA, config_of(method, TOKENIZER))
    expected = logits(model, alpha)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if "encoder.default.objectives" in name or "pblora_C" in name:
            tensor.data.copy_(tensor.data[order].clone())
        elif method == "moslora-alpha" and ("moslora_G" in name or "moslora_D" in name):
            tensor.data.copy_(tensor.data[:, order].clone())
    torch.testing.assert_close(logits(model, alpha[list(order)]), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["moslora-text", "moslora-learned", "moslora-alpha", "pblora"])
@settings(max_examples=10, deadline=None)
@given(left=simplex, right=simplex, t=st.floats(0, 1))
def test_conditions_are_linear_in_alpha(method, left, right, t):
    """γ, δ and M are affine in α, and α's sum is one: a mixed α gives the mixed conditions."""
    model = adapted(LLAMA, config_of(method, TOKENIZER))
    mixed = conditioning(model, t * left + (1 - t) * right)
    ends = conditioning(model, left), conditioning(model, right)
    for layer, found in mixed.items():
        for part, a, b in zip(found, ends[0][layer], ends[1][layer], strict=True):
            torch.testing.assert_close(part, t * a + (1 - t) * b, atol=1e-5, rtol=1e-5)


def test_merged_is_unmerged(base, method):
    model = adapted(base, config_of(method, TOKENIZER))
    expected, before = logits(model, ALPHA[1]), plain(base)
    set_preference(model, ALPHA[1])
    model.merge_adapter(safe_merge=True)
    set_preference(model, ALPHA[2])  # a merged model has the preference it was merged with, and takes that out again
    torch.testing.assert_close(plain(model), expected, atol=1e-4, rtol=1e-4)
    model.unmerge_adapter()
    with model.disable_adapter():
        torch.testing.assert_close(plain(model), before, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(model, ALPHA[1]), expected, atol=1e-4, rtol=1e-4)
    layers = [m for m in model.modules() if isinstance(m, ConditionedLayer)]
    assert [m.get_base_layer().bias is None for m in layers] == [base is LLAMA] * 4


def test_disabling_a_merged_adapter_gives_the_base(method):
    model = adapted(LLAMA, config_of(method, TOKENIZER))
    set_preference(model, ALPHA[1])
    model.merge_adapter()
    with model.disable_adapter():
        torch.testing.assert_close(plain(model), plain(LLAMA), atol=1e-4, rtol=1e-4)
    assert not any(m.base_layer.bias is not None for m in model.modules() if isinstance(m, ConditionedLayer))


def test_merging_several_preferences_is_refused(method):
    model = adapted(LLAMA, config_of(method, TOKENIZER))
    with preference(model, ALPHA), pytest.raises(GuidanceError, match="several preferences"):
        model.merge_adapter()
    with pytest.raises(GuidanceError, match="No preference vector is set"):
        model.merge_adapter()
    with preference(model, ALPHA[1].repeat(4, 1)):
        model.merge_adapter()
    torch.testing.assert_close(plain(model), logits(model, ALPHA[1]))


def test_merge_and_unload_is_a_plain_model_or_an_error(base, method):
    model = adapted(base, config_of(method, TOKENIZER))
    expected = logits(model, ALPHA[1])
    set_preference(model, ALPHA[1])
    if base is LLAMA and method != "pblora" and "scale" not in method:
        with pytest.raises(ConfigError, match=r"q_proj' has no bias.*trimtab export"):
            model.merge_and_unload()
        assert not any(m.merged for m in model.modules() if isinstance(m, ConditionedLayer))
        return
    merged = model.merge_and_unload()
    assert type(merged) is type(base)
    torch.testing.assert_close(plain(merged), expected, atol=1e-4, rtol=1e-4)


def test_saved_is_loaded_by_stock_peft(base, method, tmp_path):
    model = adapted(base, config_of(method, TOKENIZER))
    expected = logits(model, ALPHA)
    model.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    for options in ({}, {"low_cpu_mem_usage": True}):
        loaded = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path), **options).eval()
        assert torch.equal(logits(loaded, ALPHA), expected)
        assert not any(p.requires_grad for p in loaded.parameters())
    trainable = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path), is_trainable=True)
    names = {n for n, p in trainable.named_parameters() if p.requires_grad}
    assert names == {n for n, _ in trainable.named_parameters() if "moslora_" in n or "pblora_" in n}


def test_the_preference_is_never_saved(method):
    model = adapted(LLAMA, config_of(method, TOKENIZER))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    set_preference(model, ALPHA)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_two_adapters_keep_their_own_preferences(method, tmp_path):
    one = adapted(LLAMA, config_of(method, TOKENIZER))
    two = adapted(LLAMA, config_of(method, TOKENIZER, k=2), seed=5)
    expected = logits(one, ALPHA), logits(two, ALPHA[:, :2])
    two.save_pretrained(tmp_path)
    one.load_adapter(str(tmp_path), "second")
    assert torch.equal(logits(one, ALPHA), expected[0])
    one.set_adapter("second")
    assert torch.equal(logits(one, ALPHA[:, :2]), expected[1])
    with preference(one, ALPHA, adapter="default"), preference(one, ALPHA[:, :2], adapter="second"):
        assert torch.equal(plain(one), expected[1])
        one.set_adapter("default")
        assert torch.equal(plain(one), expected[0])
    one.delete_adapter("second")
    assert not any("second" in name for name in one.state_dict())
    assert torch.equal(logits(one, ALPHA), expected[0])


def _gradients(model, alpha, *, leave: bool):
    model.zero_grad()
    set_preference(model, alpha)
    loss = model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits.square().mean()
    if leave:  # as in Trainer: the loss is returned first, and backward runs later, when another preference is set
        set_preference(model, alpha.flip(0))
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("leave", [False, True])
def test_gradient_checkpointing_sees_the_preference_of_its_own_forward(base, method, reentrant, leave):
    model = adapted(base, config_of(method, TOKENIZER)).train()
    expected = _gradients(model, ALPHA, leave=False)
    assert any("B" in name for name in expected)
    model.enable_input_require_grads()
    # transformers renames it in its fifth version and warns about the older name
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": reentrant})
    found = _gradients(model, ALPHA, leave=leave)
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4)


def test_gradients_in_float64(method):
    """Finite differences through a whole layer: to the input, the preference, and every factor."""
    model = adapted(LLAMA, config_of(method, TOKENIZER, init_weights=False)).double()
    layer = next(m for m in model.modules() if isinstance(m, ConditionedLayer))
    names = [n for n, p in layer.named_parameters() if p.requires_grad]
    x = torch.randn(3, 2, layer.in_features, dtype=torch.float64, requires_grad=True)
    alpha = ALPHA[:3].double().requires_grad_()
    vector = layer.live.encode("default", alpha)
    assert vector.dtype == torch.float64

    def run(x, alpha, *factors):
        with preference(model, alpha):
            return torch.func.functional_call(layer, dict(zip(names, factors, strict=True)), (x,))

    factors = [dict(layer.named_parameters())[n].detach().clone().requires_grad_() for n in names]
    assert torch.autograd.gradcheck(run, (x, alpha, *factors), fast_mode=True)


def test_a_preference_can_be_fitted_by_gradient(method):
    model = adapted(LLAMA, config_of(method, TOKENIZER))
    alpha = ALPHA[1].clone().requires_grad_()
    with preference(model, alpha):
        model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits.square().mean().backward()
    assert alpha.grad is not None and bool((alpha.grad != 0).all())


def test_every_tensor_of_the_adapter_is_trained(base, method):
    config = config_of(method, TOKENIZER, lora_dropout=0.1)
    model = adapted(base, config).train()
    gradients = _gradients(model, ALPHA, leave=False)
    assert set(gradients) == {n for n, p in model.named_parameters() if "moslora_" in n or "pblora_" in n}
    assert all(bool(g.abs().sum() > 0) for g in gradients.values())


def test_bfloat16(base, method):
    """The base in bfloat16, the adapter in float32 (PEFT's default) or all in bfloat16."""
    half = copy.deepcopy(base).to(torch.bfloat16)
    model = adapted(half, config_of(method, TOKENIZER))
    factor = next(p for n, p in model.named_parameters() if "lora_A" in n)
    assert factor.dtype == torch.float32
    expected = logits(adapted(base, config_of(method, TOKENIZER)), ALPHA)
    for found in (logits(model, ALPHA), logits(model.to(torch.bfloat16), ALPHA)):
        assert found.dtype == torch.bfloat16
        error = (found.float() - expected).norm() / expected.norm()
        assert 0 < error < 0.05


def test_bfloat16_does_not_round_small_modulations_away():
    """1 + 2⁻¹⁰ is 1 in bfloat16; γ is kept in float32 and changes the output in its own proportion."""
    model = adapted(LLAMA, config_of("moslora-alpha-scale-shared", TOKENIZER)).to(torch.bfloat16)
    layer = next(m for m in model.modules() if isinstance(m, ConditionedLayer))
    layer.moslora_G["default"].data.fill_(2.0**-10 / 16)
    with torch.autocast("cpu", torch.bfloat16):
        gamma, _ = layer.conditions("default", torch.ones(16))
    assert gamma.dtype == torch.float32
    torch.testing.assert_close(gamma, torch.full((4,), 1 + 2.0**-10), atol=0, rtol=0)


def test_autocast(method):
    model = adapted(LLAMA, config_of(method, TOKENIZER))
    expected = logits(model, ALPHA)
    with torch.autocast("cpu", torch.bfloat16):
        found = logits(model, ALPHA)
    assert ((found.float() - expected).norm() / expected.norm()) < 0.05


def test_mistakes_are_clear(method):
    model = adapted(LLAMA, config_of(method, TOKENIZER))
    with pytest.raises(GuidanceError, match=r"No preference vector is set.*with preference\(model, alpha\)"):
        plain(model)
    with pytest.raises(GuidanceError, match=r"shape \[2\] does not fit a guide with 3 objectives"):
        set_preference(model, ALPHA[0, :2])
    with pytest.raises(GuidanceError, match=r"3 rows, but the batch has 4 .*repeat_interleave"):
        logits(model, ALPHA[:3])
    with pytest.raises(GuidanceError, match="no adapter 'x'"):
        set_preference(model, ALPHA, adapter="x")
    with pytest.raises(GuidanceError, match="no layers that take a preference"):
        set_preference(LLAMA, ALPHA)


def test_the_preference_before_holds_again_after_an_error(method):
    model = adapted(LLAMA, config_of(method, TOKENIZER))
    set_preference(model, ALPHA[0])
    expected = plain(model)
    with pytest.raises(RuntimeError, match="stop"), preference(model, ALPHA[2], precompute=True):
        assert not torch.allclose(plain(model), expected, atol=1e-3)
        raise RuntimeError("stop")
    assert torch.equal(plain(model), expected)


def test_what_a_forward_needs_of_alpha_does_not_grow_with_the_objectives(method):
    sizes = []
    for k in (2, 3):
        found = conditioning(adapted(LLAMA, config_of(method, TOKENIZER, k=k)), ALPHA[:, :k] + 1)
        sizes.append({layer: [c if c is None else tuple(c.shape) for c in parts] for layer, parts in found.items()})
    assert sizes[0] == sizes[1]
    assert len(sizes[0]) == 4


def test_a_deep_copy_has_a_preference_of_its_own(method):
    model = adapted(LLAMA, config_of(method, TOKENIZER))
    twin = copy.deepcopy(model)
    set_preference(model, ALPHA[0])
    with pytest.raises(GuidanceError, match="No preference"):
        plain(twin)
    assert torch.equal(logits(twin, ALPHA), logits(model, ALPHA))
