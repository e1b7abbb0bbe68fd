"""int8 and int4 weights: the format by hand, torchao's numbers, and models and guides on top of them."""

from __future__ import annotations

import copy
import dataclasses
import sys

import pytest
import torch
from torch import nn

import guides
import tiny
import tiny_guides
from trimtab.engine import load
from trimtab.errors import ConfigError, GuideError, ModelError
from trimtab.models import encode_prompt, encode_response, load_base
from trimtab.models.quantized import QuantizedLinear, QuantizedWeight, pack
from trimtab.models.quantizing import quantize, quantize_weight

CHAT = [{"role": "user", "content": "hello"}]


def by_hand() -> tuple[torch.Tensor, torch.Tensor]:
    """A 2×32 matrix of 4-bit numbers, and W = s·q + m with (s, m) = (½, −3) and (¼, 0): exact in any float."""
    q = torch.stack([torch.arange(32) % 16, (5 * torch.arange(32) + 3) % 16])
    return q, torch.stack([0.5 * q[0] - 3, 0.25 * q[1]])


def test_four_bit_codes_lie_as_documented():
    q, _ = by_hand()
    packed = pack(q)
    assert packed.dtype == torch.uint8
    assert packed.shape == (2, 16)
    # Row 0 counts 0…15, 0…15: byte j holds input j (low) and input j + 16 (high), which are both j here.
    assert packed[0].tolist() == [j | j << 4 for j in range(16)]
    # Row 1: input 0 is 3, input 16 is (5·16 + 3) mod 16 = 3; input 1 is 8, input 17 is 8.
    assert packed[1, :2].tolist() == [3 | 3 << 4, 8 | 8 << 4]
    wide = torch.arange(64).remainder(16).unsqueeze(0)
    weight = QuantizedWeight(4, pack(wide), torch.ones(1, 2), None, 32)
    assert torch.equal(weight.integers(), wide.to(torch.int8))
    assert (weight.d_out, weight.d_in) == (1, 64)


def test_a_high_half_is_not_a_low_half():
    q = torch.zeros(1, 32, dtype=torch.long)
    q[0, 16] = 9
    assert pack(q)[0].tolist() == [9 << 4, *[0] * 15]


def test_int4_of_a_matrix_by_hand_is_exact():
    q, values = by_hand()
    weight = quantize_weight(values, bits=4)
    assert torch.equal(weight.integers().long(), q)
    assert weight.scales.tolist() == [[0.5], [0.25]]
    assert weight.minima is not None
    assert weight.minima.tolist() == [[-3.0], [0.0]]
    assert torch.equal(weight.dequantize(), values)
    assert weight.nbytes == 2 * 16 + 2 * 4 + 2 * 4


def test_int8_of_a_matrix_by_hand_is_exact():
    q = torch.stack([torch.arange(32) - 15, 4 * torch.arange(32) - 60])
    q[0, 0], q[1, 31] = -127, 127
    # torchao's scale is max|W| / 127.5, so a row whose scale is to be ½ reaches 63.75; its code 127.5 rounds to 127.
    values = torch.stack([0.5 * q[0], 0.25 * q[1]])
    values[0, 0], values[1, 31] = -63.75, 31.875
    weight = quantize_weight(values, bits=8)
    assert weight.scales.tolist() == [[0.5], [0.25]]
    assert weight.minima is None
    assert weight.group == 32
    found = weight.integers().long()
    assert found[0, 0] == -128  # −127.5 rounds to the even −128
    assert found[1, 31] == 127  # 127.5 rounds to 128, which does not fit
    assert torch.equal(found[0, 1:], q[0, 1:])
    assert torch.equal(found[1, :31], q[1, :31])


@pytest.mark.parametrize("rows", [3, 40_000])
def test_int8_is_what_torchao_makes(rows):
    """Also in pieces: 40,000 rows of 64 are quantised in three."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    torch.manual_seed(0)
    layer = nn.Linear(64, rows, bias=False).requires_grad_(False)
    theirs = copy.deepcopy(layer)
    quantize_(theirs, Int8WeightOnlyConfig())
    assert torch.equal(quantize_weight(layer.weight, bits=8).dequantize(), theirs.weight.dequantize())


def test_int4_is_what_torchao_makes():
    from torchao.quantization import quant_primitives as ao

    torch.manual_seed(0)
    values = 0.05 * torch.randn(48, 96)
    weight = quantize_weight(values, bits=4)
    assert weight.minima is not None
    assert weight.scales.shape == weight.minima.shape == (48, 3)
    zeros = weight.minima + 8 * weight.scales
    theirs = ao._dequantize_affine_tinygemm(
        weight.integers().to(torch.int32), (1, 32), weight.scales, zeros, torch.int32, 0, 15, output_dtype=torch.float32
    )
    # They add z to s·(q − 8), we add m to s·q: the same to the last bit but one of the largest term.
    assert torch.allclose(weight.dequantize(), theirs, rtol=0, atol=2**-24)
    # The scale is torchao's rounded to 16 bits, the minimum the group's own.
    scales, _ = ao._choose_qparams_affine_tinygemm(
        values, ao.MappingType.ASYMMETRIC, (1, 32), torch.int32, 0, 15, scale_dtype=torch.bfloat16
    )
    assert torch.equal(weight.scales, scales.float().view(48, 3))
    least = values.unflatten(1, (3, 32)).amin(-1)
    assert torch.allclose(weight.minima, least, rtol=2**-8)
    # No value is further off than half a step, a rounded scale and a rounded minimum.
    step = weight.scales.repeat_interleave(32, dim=1)
    assert ((weight.dequantize() - values).abs() <= 0.6 * step).all()


def test_scales_and_minima_of_int4_need_16_bits_only():
    weight = quantize_weight(torch.randn(8, 64), bits=4)
    assert weight.minima is not None
    assert torch.equal(weight.scales.bfloat16().float(), weight.scales)
    assert torch.equal(weight.minima.bfloat16().float(), weight.minima)


@pytest.mark.parametrize("bits", [4, 8])
def test_zeros_stay_zeros(bits):
    assert not quantize_weight(torch.zeros(2, 32), bits=bits).dequantize().any()


def test_a_layer_multiplies_by_the_dequantised_weight():
    torch.manual_seed(0)
    layer = nn.Linear(32, 5)
    quantized = QuantizedLinear(quantize_weight(layer.weight.detach(), bits=4), layer.bias, dtype=torch.float32)
    x = torch.randn(2, 3, 32)
    expected = x @ quantized.quantized.dequantize().T + layer.bias
    assert torch.allclose(quantized(x), expected, atol=1e-6)
    assert "in_features=32, out_features=5, bits=4, bias=True" in repr(quantized)


@pytest.mark.parametrize(("name", "bits"), [("int8", 8), ("int4", 4)])
@pytest.mark.parametrize("tied", [True, False])
def test_a_model_quantised_says_nearly_the_same(name, bits, tied):
    model = tiny.make_llama(tied=tied).requires_grad_(False)
    ids = torch.arange(20).unsqueeze(0)
    before = model(input_ids=ids).logits.log_softmax(-1)
    embedding = model.get_input_embeddings().weight.clone()
    quantize(model, name)
    assert not any(type(module) is nn.Linear for module in model.modules())
    assert {m.quantized.bits for path, m in model.named_modules() if path.endswith("q_proj")} == {bits}
    assert model.lm_head.quantized.bits == 8
    assert torch.equal(model.get_input_embeddings().weight, embedding)
    after = model(input_ids=ids).logits.log_softmax(-1)
    divergence = (before.exp() * (before - after)).sum(-1)
    assert 0 < divergence.mean() < (1e-3 if bits == 8 else 0.1)
    assert (before.argmax(-1) == after.argmax(-1)).float().mean() >= (0.9 if bits == 8 else 0.5)


def test_a_layer_of_uneven_width_is_int8_under_int4():
    model = tiny.make_llama(hidden=24)
    quantize(model, "int4")
    bits = {
        path.rpartition(".")[2]: m.quantized.bits for path, m in model.named_modules() if isinstance(m, QuantizedLinear)
    }
    assert bits["q_proj"] == bits["gate_proj"] == 8  # 24 inputs
    assert bits["down_proj"] == 8  # 48 inputs


def test_a_quantised_model_can_be_copied_and_generates():
    model = tiny.make_llama().requires_grad_(False)
    quantize(model, "int8")
    ids = torch.arange(5).unsqueeze(0)
    other = copy.deepcopy(model)
    assert torch.equal(model(input_ids=ids).logits, other(input_ids=ids).logits)
    assert model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0).shape[1] <= 8


def test_a_base_keeps_the_fingerprint_of_its_weights_on_disk(llama_folder):
    plain = load_base(str(llama_folder), dtype="float32")
    quantized = load_base(str(llama_folder), dtype="float32", quantization="int4")
    assert (plain.quantization, quantized.quantization) == (None, "int4")
    assert quantized.fingerprint == plain.fingerprint
    assert quantized.vocabulary_size == plain.vocabulary_size
    assert quantized.model.dtype == torch.float32


@pytest.mark.parametrize("kind", ["lora", "moslora-text", "pblora"])
def test_a_guide_rides_on_quantised_layers(llama_folder, tmp_path, kind):
    """Guided answers on a quantised base are those of the base whose weights are the dequantised ones."""
    folder = _guide(llama_folder, tmp_path, kind)
    quantized = load_base(str(llama_folder), dtype="float32", quantization="int8")
    plain = load_base(str(llama_folder), dtype="float32")
    plain.model.lm_head.weight = nn.Parameter(plain.model.lm_head.weight.clone(), requires_grad=False)
    for path, module in quantized.model.named_modules():
        if isinstance(module, QuantizedLinear):
            plain.model.get_submodule(path).weight.copy_(module.quantized.dequantize())
    plain = dataclasses.replace(plain, loaded_fingerprint=quantized.fingerprint)
    found, expected = (
        load(base, [folder]).score(CHAT, "thank you", guidance=1.5).combined for base in (quantized, plain)
    )
    assert found == pytest.approx(expected, abs=1e-4)


def _guide(llama_folder, tmp_path, kind):
    import conditioned
    from trimtab.rewards.artifact import Objective, save_guide

    base = load_base(str(llama_folder), dtype="float32")
    if kind == "lora":
        return tiny_guides.save_lora_guide(tmp_path / "guide", base)
    config = conditioned.config_of(kind, base.tokenizer)
    made = tiny_guides.manifest_for(base, adapter=kind.partition("-")[0]).model_copy(
        update={"objectives": tuple(Objective(name=name) for name in conditioned.DESCRIPTIONS)}
    )
    save_guide(tmp_path / "guide", conditioned.adapted(base.model, config), made)
    return tmp_path / "guide"


def test_deltas_are_in_the_compute_dtype(llama_folder, tmp_path):
    folder = _guide(llama_folder, tmp_path, "lora")
    base = load_base(str(llama_folder), dtype="bfloat16", quantization="int4")
    engine = load(base, [folder])
    delta = engine._core.backbones[0].adapters.delta("model.layers.0.mlp.down_proj", 0)
    assert delta is not None
    assert delta.a_t.dtype == delta.b_t.dtype == torch.bfloat16
    (answer,) = engine.generate([CHAT], temperature=0, max_tokens=4)
    assert answer.token_ids


def test_the_engine_loads_base_and_whole_guides_quantised(llama_folder, tmp_path):
    _, folder = guides.saved(llama_folder, tmp_path / "full", adapter="full")
    engine = load(llama_folder, [folder], quantization="int8")
    assert [_count(backbone.model) for backbone in engine._core.backbones] == [15, 15]
    assert _count(load(load_base(str(llama_folder)), quantization="int8").base.model) == 0  # used as it was loaded
    (answer,) = engine.generate([CHAT], temperature=0, max_tokens=3)
    assert answer.token_ids


def _count(model):
    return sum(isinstance(module, QuantizedLinear) for module in model.modules())


def test_a_guide_that_needs_peft_says_so(llama_folder, tmp_path):
    folder = tiny_guides.save_lora_guide(tmp_path / "dora", llama_folder, use_dora=True)
    base = load_base(str(llama_folder), dtype="float32", quantization="int8")
    with pytest.raises(GuideError, match="loaded in int8: load it without a quantization"):
        load(base, [folder])


def test_a_factor_of_the_wrong_width_is_refused(llama_folder, tmp_path):
    folder = _guide(llama_folder, tmp_path, "moslora-text")
    wide = tiny.save_base(tmp_path / "wide", tiny.make_llama(vocab_size=320, hidden=64), tiny.make_tokenizer())
    base = load_base(str(wide), dtype="float32", quantization="int8")
    base = dataclasses.replace(base, loaded_fingerprint=load_base(str(llama_folder)).fingerprint)
    with pytest.raises(GuideError, match=r"but that module of the base .* is \[64, 128\]"):
        load(base, [folder])


def test_an_unknown_name_is_refused_before_anything_is_loaded():
    with pytest.raises(ConfigError, match=r"no quantization 'int9'.*Did you mean 'int"):
        load_base("/there/is/no/such/folder", quantization="int9")


def test_without_torchao_the_message_says_what_to_install(monkeypatch, llama_folder):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ConfigError, match=r'pip install "trimtab\[quant\]"'):
        load_base(str(llama_folder), quantization="int8")


def test_a_weight_with_nan_is_refused():
    model = tiny.make_llama().requires_grad_(False)
    model.model.layers[1].mlp.up_proj.weight[3, 4] = torch.nan
    with pytest.raises(ModelError, match=r"'model\.layers\.1\.mlp\.up_proj' holds NaN"):
        quantize(model, "int4")


@pytest.mark.real
@pytest.mark.xdist_group("real")
@pytest.mark.parametrize("name", ["int8", "int4"])
def test_the_packaged_base_still_knows_something(name):
    base = load_base("smollm2", quantization=name)
    ids = encode_prompt(base.tokenizer, [{"role": "user", "content": "What is the capital of France?"}])
    ids += encode_response(base.tokenizer, "The capital of France is")
    with torch.inference_mode():
        best = int(base.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
    assert base.tokenizer.decode([best]).strip() == "Paris"
