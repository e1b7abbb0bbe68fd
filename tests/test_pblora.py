"""PBLoRA: its arithmetic by hand, and its relation to a plain LoRA."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

import tiny
from conditioned import adapted, config_of
from trimtab.errors import ConfigError
from trimtab.rewards.conditioned import preference
from trimtab.rewards.pblora import PBLoRAConfig, bilinear_delta, merged_delta, mixture

LLAMA = tiny.make_llama()
IDS = torch.arange(3, 15).reshape(2, 6)


def test_the_equation_by_hand():
    """R1 = 1, R2 = 2, D_IN = 2, D_OUT = 1; x = (1, 2), A1 x = 1, A2 x = (2, 3).

    C = ([[1, 0], [0, 1]], [[0, 2], [0, 0]]), W1 = 5, B = (1 | 1, 10), s = 0.5
    row 0, α = (1, 0): M = C_1, so 0.5·(5·1 + 1·2 + 10·3) = 18.5
    row 1, α = (½, ½): M = [[½, 1], [0, ½]], M A2 x = (1 + 3, 1½), so 0.5·(5 + 4 + 15) = 12
    """
    C = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 2.0], [0.0, 0.0]]])
    A, B, W1 = (
        torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]),
        torch.tensor([[1.0, 1.0, 10.0]]),
        torch.tensor([[5.0]]),
    )
    M = mixture(torch.tensor([[1.0, 0.0], [0.5, 0.5]]), C)
    assert M.tolist() == [[[1, 0], [0, 1]], [[0.5, 1], [0, 0.5]]]
    x = torch.tensor([1.0, 2.0])
    assert bilinear_delta(x.expand(2, 3, 2), A, B, W1, M, 0.5).tolist() == [[[18.5]] * 3, [[12.0]] * 3]
    assert bilinear_delta(x.expand(2, 2), A, B, W1, M, 0.5).tolist() == [[18.5], [12.0]]
    assert bilinear_delta(x.expand(2, 3, 4, 2), A, B, W1, M, 0.5)[1].flatten().tolist() == [12.0] * 12
    folded = torch.cat([W1 @ A[:1], A[1:]])
    assert bilinear_delta(x.expand(4, 2), folded, B, None, M[1], 0.5).tolist() == [[12.0]] * 4
    assert (merged_delta(A, B, W1, M[1], 0.5) @ x).tolist() == [12.0]


def test_identities_in_the_middle_make_a_plain_lora():
    """With W1 = I and C_i = I, and Σα = 1, the middle vanishes: a LoRA of rank R1 + R2 with scaling lora_alpha/R2."""
    config = config_of("pblora", None)
    model = adapted(LLAMA, config)
    rank = config.r1 + config.r2
    lora = get_peft_model(
        copy.deepcopy(LLAMA),
        LoraConfig(r=rank, lora_alpha=rank, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"),
    ).eval()
    names = dict(lora.named_parameters())
    for name, parameter in model.named_parameters():
        if "pblora_W1" in name or "pblora_C" in name:
            parameter.data.copy_(torch.eye(parameter.shape[-1]).expand_as(parameter))
        elif "pblora_" in name:
            scale = config.scaling if "pblora_B" in name else 1.0
            names[name.replace("pblora_", "lora_") + ".weight"].data = scale * parameter.data
    with torch.no_grad(), preference(model, torch.tensor([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]])):
        found = model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
        expected = lora(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    torch.testing.assert_close(found, expected)


def test_one_hot_uses_one_matrix_only():
    model = adapted(LLAMA, config_of("pblora", None))

    def logits():
        with torch.no_grad(), preference(model, torch.tensor([0.0, 1.0, 0.0])):
            return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits

    expected = logits()
    for name, parameter in model.named_parameters():
        if "pblora_C" in name:
            parameter.data[[0, 2]] = 100.0
    assert torch.equal(logits(), expected)


def test_the_start():
    model = get_peft_model(copy.deepcopy(LLAMA), config_of("pblora", None))
    for name, parameter in model.named_parameters():
        if "pblora_B" in name:
            assert not parameter.any()
        elif "pblora_" in name:  # Kaiming with a = √5 is uniform within 1/√fan_in
            bound = parameter.shape[-1] ** -0.5
            assert 0 < parameter.abs().max() <= bound
            assert parameter.abs().max() > bound / 4


@pytest.mark.parametrize("options", [{"r1": 0}, {"r2": -1}, {"r2": 1.5}, {"objectives": []}])
def test_options_that_cannot_work(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        PBLoRAConfig(**{"objectives": ["a", "b"], **options})


def test_defaults_are_the_papers():
    config = PBLoRAConfig(objectives=["a", "b"])
    assert (config.r1, config.r2, config.lora_alpha, config.scaling) == (4, 4, 8, 2.0)


@given(seed=st.integers(0, 2**31), rows=st.integers(1, 3))
def test_the_merged_weight_is_the_rows_delta(seed, rows):
    """For each row's α the thin products equal the dense s·(B1 W1 A1 + B2 M A2), built here from its blocks."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    A, B, W1, C, x = draw(5, 6), draw(4, 5), draw(2, 2), draw(3, 3, 3), draw(rows, 2, 6)
    alpha = draw(rows, 3).softmax(-1)
    found = bilinear_delta(x, A, B, W1, mixture(alpha, C), 0.7)
    for row in range(rows):
        M = sum(a * c for a, c in zip(alpha[row], C, strict=True))
        dense = 0.7 * (B[:, :2] @ W1 @ A[:2] + B[:, 2:] @ M @ A[2:])
        torch.testing.assert_close(found[row], x[row] @ dense.T)
        torch.testing.assert_close(merged_delta(A, B, W1, M, 0.7), dense)
