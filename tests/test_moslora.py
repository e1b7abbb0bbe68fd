"""MoSLoRA: its arithmetic by hand, its start as a plain LoRA, objectives by description."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, PeftType, get_peft_model

import tiny
from conditioned import DESCRIPTIONS, adapted, config_of
from trimtab.errors import ConfigError
from trimtab.rewards.conditioned import conditioning, preference
from trimtab.rewards.conditioned.registry import register
from trimtab.rewards.moslora import (
    MoSLoRAConfig,
    MoSLoRAModel,
    embed_descriptions,
    merged_delta,
    mixed_vector,
    modulated_delta,
    modulation,
)

TOKENIZER = tiny.make_tokenizer()
LLAMA = tiny.make_llama()
IDS = torch.arange(3, 15).reshape(2, 6)


def logits(model, alpha):
    with torch.no_grad(), preference(model, alpha):
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


def test_the_equation_by_hand():
    """Two objectives, R = 2, D_IN = 2, D_OUT = 1; two rows of one token each, x = (1, 2).

    A x = (1·1 + 0·2, 1·1 + 1·2) = (1, 3);  o = ((1, 0), (0, 2))
    row 0, α = (1, 0): p = (1, 0), γ = 1 + G p = 1 + (3, 0) = (4, 1), δ = D p = (0, 1)
        s·B(γ ⊙ Ax + δ) = 0.5·(1, 10)·(4·1 + 0, 1·3 + 1) = 0.5·(4 + 40) = 22
    row 1, α = (½, ½): p = (½, 1), γ = 1 + (1½, -1) = (2½, 0), δ = (0, ½) + (2, 0) = (2, ½)
        0.5·(1, 10)·(2½ + 2, 0 + ½) = 0.5·(4½ + 5) = 4.75
    """
    objectives = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    A, B = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[1.0, 10.0]])
    G, D = torch.tensor([[3.0, 0.0], [0.0, -1.0]]), torch.tensor([[0.0, 2.0], [1.0, 0.0]])
    vector = mixed_vector(torch.tensor([[1.0, 0.0], [0.5, 0.5]]), objectives)
    assert vector.tolist() == [[1, 0], [0.5, 1]]
    gamma, delta = modulation(vector, G, D)
    assert gamma is not None and gamma.tolist() == [[4, 1], [2.5, 0]]
    assert delta is not None and delta.tolist() == [[0, 1], [2, 0.5]]
    x = torch.tensor([[[1.0, 2.0]], [[1.0, 2.0]]])
    assert modulated_delta(x, A, B, gamma, delta, 0.5).tolist() == [[[22.0]], [[4.75]]]
    # The slice of row 1 alone, without the middle axis, with one choice left out each time:
    assert modulated_delta(x[1:, 0], A, B, gamma[1:], None, 0.5).tolist() == [[0.5 * 2.5]]
    assert modulated_delta(x[1:, 0], A, B, None, delta[1], 0.5).tolist() == [[0.5 * (1 + 2 + 10 * (3 + 0.5))]]
    weight, bias = merged_delta(A, B, gamma[0], delta[0], 0.5)
    assert weight.tolist() == [[0.5 * (1 * 4 + 10 * 1), 0.5 * 10]]
    assert bias is not None and bias.tolist() == [5.0]
    assert (weight @ torch.tensor([1.0, 2.0]) + bias).tolist() == [22.0]


def test_training_starts_as_a_plain_lora():
    lora = get_peft_model(
        copy.deepcopy(LLAMA),
        LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"),
    ).eval()
    model = get_peft_model(copy.deepcopy(LLAMA), config_of("moslora-text", TOKENIZER)).eval()
    generator = torch.Generator().manual_seed(0)
    names = dict(lora.named_parameters())
    for name, parameter in model.named_parameters():
        if "moslora_A" in name or "moslora_B" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
            names[name.replace("moslora_", "lora_") + ".weight"].data = parameter.data.clone()
    with torch.no_grad():
        expected = lora(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    torch.testing.assert_close(logits(model, torch.tensor([0.2, 0.5, 0.3])), expected)


def test_one_hot_is_that_objective_alone():
    """α = e_i mixes nothing: the guide answers as one whose only objective is i."""
    model = adapted(LLAMA, config_of("moslora-text", TOKENIZER))
    alone = adapted(LLAMA, config_of("moslora-text", TOKENIZER, k=1))
    encoder = model.base_model.moslora_encoder["default"]
    for i in range(3):
        alone.base_model.moslora_encoder["default"].objectives.copy_(encoder.objectives[i : i + 1])
        torch.testing.assert_close(logits(model, torch.eye(3)[i]), logits(alone, torch.ones(1)))


def test_descriptions_become_layer_normed_means():
    embedding = torch.tensor([[0.0, 0.0], [1.0, 5.0], [3.0, 1.0]])
    # mean of rows 1 and 2 is (2, 3): mean 2.5, deviation 0.5, so (-1, 1); row 2 alone is (1, -1)
    found = embed_descriptions([[1, 2], [2]], embedding)
    torch.testing.assert_close(found, torch.tensor([[-1.0, 1.0], [1.0, -1.0]]), atol=1e-4, rtol=0)


def test_embeddings_lie_once_in_the_checkpoint_and_win_over_the_base(tmp_path):
    model = adapted(LLAMA, config_of("moslora-text", TOKENIZER))
    model.base_model.moslora_encoder["default"].objectives.add_(0.5)
    expected = logits(model, torch.tensor([0.5, 0.2, 0.3]))
    model.save_pretrained(tmp_path)
    from safetensors.torch import load_file

    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert [tuple(v.shape) for n, v in tensors.items() if "encoder" in n] == [(3, 32)]
    loaded = PeftModel.from_pretrained(copy.deepcopy(LLAMA), str(tmp_path)).eval()
    assert torch.equal(logits(loaded, torch.tensor([0.5, 0.2, 0.3])), expected)
    assert loaded.peft_config["default"].descriptions == list(DESCRIPTIONS.values())


def test_an_objective_is_added_by_its_description(tmp_path):
    model = adapted(LLAMA, config_of("moslora-text", TOKENIZER, k=2))
    before = logits(model, torch.tensor([0.4, 0.6]))
    model.base_model.add_objective("concise", DESCRIPTIONS["concise"], TOKENIZER)
    assert torch.equal(logits(model, torch.tensor([0.4, 0.6, 0.0])), before)
    # it is the same as if it had been there from the start
    whole = adapted(LLAMA, config_of("moslora-text", TOKENIZER, k=3))
    alpha = torch.tensor([0.1, 0.2, 0.7])
    assert torch.equal(logits(model, alpha), logits(whole, alpha))
    model.save_pretrained(tmp_path)
    assert torch.equal(
        logits(PeftModel.from_pretrained(copy.deepcopy(LLAMA), str(tmp_path)).eval(), alpha), logits(model, alpha)
    )
    with pytest.raises(ConfigError, match="'concise' already"):
        model.base_model.add_objective("concise", "Short.", TOKENIZER)
    with pytest.raises(ConfigError, match="description is empty"):
        model.base_model.add_objective("new", " ", TOKENIZER)
    learned = adapted(LLAMA, config_of("moslora-learned", TOKENIZER))
    with pytest.raises(ConfigError, match="condition='text' to add"):
        learned.base_model.add_objective("new", "Something new.", TOKENIZER)


def test_the_scale_of_the_condition():
    one = adapted(LLAMA, config_of("moslora-text", TOKENIZER))
    half = adapted(LLAMA, config_of("moslora-text", TOKENIZER, condition_scale=0.5))
    alpha = torch.tensor([0.2, 0.5, 0.3])
    for layer, (gamma, delta) in conditioning(one, alpha).items():
        halved = conditioning(half, alpha)[layer]
        torch.testing.assert_close(halved[0] - 1, (gamma - 1) / 2)
        torch.testing.assert_close(halved[1], delta / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"condition": "words"}, "'condition' is 'words': use 'text', 'alpha', 'learned'"),
        ({"modulation": "none"}, "'modulation'"),
        ({"generator": "both"}, "'generator'"),
        ({"r": 0}, "'r' is 0"),
        ({"trunk_dim": True}, "'trunk_dim'"),
        ({"lora_dropout": 1.0}, "'lora_dropout'"),
        ({"objectives": []}, "'objectives'"),
        ({"objectives": ["a", "a"], "condition": "alpha"}, "'objectives'"),
        ({}, "MoSLoRAConfig.described"),
    ],
)
def test_options_that_cannot_work(options, message):
    with pytest.raises(ConfigError, match=message):
        MoSLoRAConfig(**{"objectives": ["a", "b"], **options})


def test_modules_that_cannot_be_adapted():
    with pytest.raises(ConfigError, match=r"input_layernorm' is a LlamaRMSNorm.*linear layers"):
        get_peft_model(copy.deepcopy(LLAMA), config_of("moslora-alpha", TOKENIZER, target_modules=["input_layernorm"]))


def test_registration_is_once():
    register("moslora", MoSLoRAConfig, MoSLoRAModel, "moslora_")
    member = PeftType("MOSLORA")
    assert copy.deepcopy(member) is member
    assert member in list(PeftType)
    assert member == "MOSLORA"


def test_all_linear_and_excluded_modules():
    config = config_of("moslora-text", TOKENIZER, target_modules="all-linear", exclude_modules=["o_proj"])
    model = adapted(LLAMA, config)
    names = {name.rsplit(".", 1)[-1] for name in conditioning(model, torch.tensor([1.0, 0.0, 0.0]))}
    assert names == {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"}


matrices = st.integers(0, 2**31).map(lambda seed: torch.Generator().manual_seed(seed))


@given(generator=matrices, parts=st.sampled_from([(True, True), (True, False), (False, True)]), rows=st.integers(1, 3))
def test_the_merged_weight_and_bias_are_the_rows_delta(generator, parts, rows):
    """For each row's α: s·B(γ ⊙ (A x) + δ) = (s·B diag(γ) A) x + s·B δ."""

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    A, B, x, vector = draw(3, 5), draw(4, 3), draw(rows, 2, 5), draw(rows, 6)
    gamma, delta = modulation(vector, *(draw(3, 6) if part else None for part in parts))
    found = modulated_delta(x, A, B, gamma, delta, 0.7)
    for row in range(rows):
        own = [None if part is None else part[row] for part in (gamma, delta)]
        weight, bias = merged_delta(A, B, *own, 0.7)
        torch.testing.assert_close(found[row], x[row] @ weight.T + (0 if bias is None else bias))
