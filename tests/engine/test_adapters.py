"""Row-sliced LoRA deltas equal PEFT's own forward, for everything a LoRA config can say; the rest is refused."""

from __future__ import annotations

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

import tiny
import tiny_guides
from trimtab.engine import load
from trimtab.engine.adapters import NotSliceableError, RowAdapters, RowSlice, read_deltas
from trimtab.engine.backbone import Backbone
from trimtab.models import load_base
from trimtab.rewards.artifact import load_adapter_config, load_adapter_tensors

IDS = torch.tensor([[5, 17, 9, 40, 33], [8, 8, 250, 3, 1], [100, 7, 6, 5, 4]])

LLAMA_OPTIONS = [
    {},
    {"r": 2, "lora_alpha": 32},
    {"use_rslora": True},
    {"lora_bias": True},
    {"target_modules": ["q_proj", "v_proj"]},
    {"target_modules": r".*layers\.1\..*(up|down)_proj"},
    {"layers_to_transform": [1], "target_modules": ["q_proj", "o_proj"]},
    {
        "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 6},
        "alpha_pattern": {"q_proj": 1, "layers.0.mlp.gate_proj": 99},
    },
    {"rank_pattern": {"v_proj": 3}, "use_rslora": True, "alpha_pattern": {"v_proj": 5}},
    {"init_lora_weights": "gaussian", "exclude_modules": ["k_proj"]},
]
GPT2_OPTIONS = [
    {},
    {"target_modules": ["c_attn"]},
    {"lora_bias": True, "use_rslora": True},
    {"alpha_pattern": {"c_fc": 1}},
]


def _fresh(kind):
    return tiny.make_llama(vocab_size=320) if kind == "llama" else tiny.make_gpt2()


def _logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.filterwarnings("ignore:.*`rank_pattern` or `alpha_pattern` at the same time:UserWarning")
# PEFT 0.21 takes the bias of a lora_B, a vector by nature, for an ungathered shard.
@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed but the targeted layer")
@pytest.mark.filterwarnings("ignore:.*LoRA tensor.s. have invalid shape")
@pytest.mark.parametrize(
    ("kind", "options"), [("llama", o) for o in LLAMA_OPTIONS] + [("gpt2", o) for o in GPT2_OPTIONS], ids=str
)
def test_rows_equal_peft_and_base_rows_equal_the_base(kind, options, llama_folder, gpt2_folder, tmp_path):
    base = load_base(str(llama_folder if kind == "llama" else gpt2_folder), dtype="float32")
    plain = _logits(base.model, IDS)
    peft_model = tiny_guides.random_lora(base.model, **options)
    expected = _logits(peft_model, IDS)
    tiny_guides.save_guide(tmp_path / "g", peft_model, tiny_guides.manifest_for(base))
    adapters = RowAdapters(base.model)
    slot = adapters.add(
        read_deltas(load_adapter_config(tmp_path / "g"), load_adapter_tensors(tmp_path / "g"), base.model)
    )
    adapters.use([RowSlice(slot, 1, 3)])
    got = _logits(base.model, IDS)
    assert torch.allclose(got[:1], plain[:1], atol=1e-5)
    assert torch.allclose(got[1:], expected[1:], atol=1e-4)
    assert not torch.allclose(got[1:], plain[1:], atol=0.05)
    adapters.use([])
    assert torch.equal(_logits(base.model, IDS), plain)
    adapters.use([RowSlice(slot, 0, 3)])
    adapters.remove()
    assert torch.equal(_logits(base.model, IDS), plain)


def test_two_adapters_on_neighbouring_slices(llama_folder, tmp_path):
    base = load_base(str(llama_folder), dtype="float32")
    models = [
        tiny_guides.random_lora(base.model, seed=s, target_modules=t) for s, t in ((1, ["q_proj"]), (2, "all-linear"))
    ]
    adapters = RowAdapters(base.model)
    for i, model in enumerate(models):
        tiny_guides.save_guide(tmp_path / str(i), model, tiny_guides.manifest_for(base))
        config, tensors = load_adapter_config(tmp_path / str(i)), load_adapter_tensors(tmp_path / str(i))
        assert adapters.add(read_deltas(config, tensors, base.model)) == i
    adapters.use([RowSlice(0, 1, 2), RowSlice(1, 2, 3)])
    got = _logits(base.model, IDS)
    for row, model in ((1, models[0]), (2, models[1])):
        assert torch.allclose(got[row], _logits(model, IDS)[row], atol=1e-4)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"use_dora": True}, "lora_magnitude_vector|use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings=True:UserWarning")
def test_what_is_no_row_delta_gets_a_backbone_of_its_own_and_is_right(options, why, tmp_path, caplog):
    base_folder = tiny.save_base(tmp_path / "base", tiny.make_llama(vocab_size=320, tied=False), tiny.make_tokenizer())
    base = load_base(str(base_folder), dtype="float32")
    peft_model = tiny_guides.random_lora(base.model, **options)
    tiny_guides.save_guide(tmp_path / "g", peft_model, tiny_guides.manifest_for(base))
    plain = _logits(base.model, IDS)
    engine = load(base, [tmp_path / "g"])
    assert engine.guides["g"].backbone == 1
    assert "backbone of its own" in caplog.text or "copy of its base" in caplog.text
    assert torch.allclose(_logits(engine._core.backbones[1].model, IDS), _logits(peft_model, IDS), atol=1e-4)
    assert torch.equal(_logits(base.model, IDS), plain)
    with pytest.raises(NotSliceableError, match=why):
        read_deltas(load_adapter_config(tmp_path / "g"), load_adapter_tensors(tmp_path / "g"), base.model)


def test_layers_that_mix_rows_are_refused():
    """Experts see gathered tokens, not rows, so a slice of their input is nobody's row."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1, max_position_embeddings=32,
    )  # fmt: skip
    model = MixtralForCausalLM(config).eval()
    linear = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    backbone = Backbone(model)
    flat = torch.nn.Linear(16, 16)
    model.model.layers[0].self_attn.register_forward_hook(lambda m, i, o: (flat(o[0].flatten(0, 1)), o)[1])
    model.flat = flat
    assert "flat" not in linear
    with pytest.raises(NotSliceableError, match=r"'flat'.*row by row"):
        backbone.adapters.add({"flat": None})


def test_a_shape_that_does_not_fit_is_refused(llama_folder, tmp_path):
    base = load_base(str(llama_folder), dtype="float32")
    tiny_guides.save_lora_guide(tmp_path / "g", base)
    config, tensors = load_adapter_config(tmp_path / "g"), load_adapter_tensors(tmp_path / "g")
    name = next(n for n in tensors if "lora_A" in n)
    with pytest.raises(NotSliceableError, match="has factors"):
        read_deltas(config, {**tensors, name: tensors[name][:, :-1]}, base.model)
    with pytest.raises(NotSliceableError, match="no layer 'nowhere'"):
        read_deltas(
            config, {n.replace("model.layers.0.mlp.up_proj", "nowhere"): t for n, t in tensors.items()}, base.model
        )
