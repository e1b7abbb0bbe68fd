"""Guides that are told how strongly they pull: one more input, log w, in every form of the adapters, and on disk."""

from __future__ import annotations

import copy
import json
import math
import re

import pytest
import torch
from peft import PeftModel, get_peft_model

import guides
import tiny
from conditioned import DESCRIPTIONS, METHODS, adapted, config_of
from trimtab.cli.main import main
from trimtab.errors import ConfigError, GuidanceError, GuideError
from trimtab.models import load_base
from trimtab.rewards import Objective, load_guide_model, read_manifest, save_guide
from trimtab.rewards.conditioned import condition_input, conditioning, preference
from trimtab.rewards.conditioned.tensors import load_tensors
from trimtab.rewards.export import export_lora
from trimtab.rewards.moslora import MoSLoRAConfig
from trimtab.rewards.pblora import PBLoRAConfig

TOKENIZER = tiny.make_tokenizer()
LLAMA = tiny.make_llama()
IDS = torch.arange(3, 27).reshape(4, 6)
ALPHA = torch.tensor([[1.0, 0.0, 0.0], [0.2, 0.5, 0.3], [0.0, 0.0, 1.0], [0.4, 0.4, 0.2]])
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 5.0])
OBJECTIVES = tuple(Objective(name=name, description=text) for name, text in DESCRIPTIONS.items())
MIX = "helpful=0.2,harmless=0.5,concise=0.3"


def told(method, *, k=3, tokenizer=TOKENIZER, **options):
    return config_of(method, tokenizer, k=k, conditions_on_strength=True, **options)


def logits(model, alpha, ids=IDS):
    with torch.no_grad(), preference(model, alpha):
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def at(model, alpha, weight):
    return condition_input(model.peft_config["default"], alpha, weight)


@pytest.fixture(params=METHODS)
def method(request):
    return request.param


def test_the_input_by_hand():
    """α = (¼, ¾): at w = 1 one more 0; at w = 2 one more ln 2. A guide that is not told w gets α as it is."""
    config = PBLoRAConfig(objectives=["a", "b"], conditions_on_strength=True)
    alpha = torch.tensor([0.25, 0.75])
    assert condition_input(config, alpha, 1.0).tolist() == [0.25, 0.75, 0.0]
    assert condition_input(config, alpha, 2).tolist() == pytest.approx([0.25, 0.75, math.log(2)])
    rows = condition_input(config, alpha.expand(3, 2), torch.tensor([1.0, 2.0, 0.5]))
    assert rows[:, 2].tolist() == pytest.approx([0, math.log(2), -math.log(2)])
    # one α at several w, and several α at one w
    assert torch.equal(condition_input(config, alpha, torch.tensor([1.0, 2.0, 0.5])), rows)
    assert condition_input(config, torch.eye(2), 2.0).shape == (2, 3)
    plain = PBLoRAConfig(objectives=["a", "b"])
    assert condition_input(plain, alpha) is condition_input(plain, alpha, 2.0) is alpha


def test_gradients_reach_both():
    config = PBLoRAConfig(objectives=["a", "b"], conditions_on_strength=True)
    alpha, weight = torch.tensor([0.25, 0.75], requires_grad=True), torch.tensor(2.0, requires_grad=True)
    condition_input(config, alpha, weight).sum().backward()
    assert alpha.grad is not None and alpha.grad.tolist() == [1, 1]
    assert weight.grad is not None and weight.grad.item() == 0.5


@pytest.mark.parametrize(
    ("alpha", "weight", "message"),
    [
        ([0.5, 0.5, 0.0], 1.0, r"shape \[3\] does not fit a guide with 2 objectives: .* order, a, b"),
        ([0.5, 0.5], None, "told how strongly it pulls .*: give its weight w"),
        ([0.5, 0.5], 0.0, r"The weight 0 of .* above 0, for log w .*: leave the guide out"),
        ([0.5, 0.5], float("nan"), "above 0"),
        ([[0.5, 0.5]] * 3, torch.ones(2), r"shape \[2\] do not fit preferences of shape \[3, 2\]"),
    ],
)
def test_inputs_that_cannot_be_made(alpha, weight, message):
    config = PBLoRAConfig(objectives=["a", "b"], conditions_on_strength=True)
    with pytest.raises(GuidanceError, match=message):
        condition_input(config, torch.tensor(alpha), weight)


def _copy_of_what_both_have(source, target):
    """Copy the adapter of a guide that is told w into one that is not: without log w's row, column or matrix."""
    wanted = {**dict(target.named_parameters()), **dict(target.named_buffers())}
    for name, tensor in [*source.named_parameters(), *source.named_buffers()]:
        if name in wanted:
            wanted[name].data.copy_(tensor.data[tuple(slice(n) for n in wanted[name].shape)])


def test_at_weight_one_it_is_a_guide_that_is_told_nothing(method):
    """log 1 = 0: whatever log w multiplies has no say, and the guide is the plain one with its other tensors."""
    model = adapted(LLAMA, told(method))
    plain = adapted(LLAMA, config_of(method, TOKENIZER))
    _copy_of_what_both_have(model, plain)
    torch.testing.assert_close(logits(model, at(model, ALPHA, 1.0)), logits(plain, ALPHA))
    assert not torch.allclose(logits(model, at(model, ALPHA, 4.0)), logits(plain, ALPHA), atol=0.05)


def test_training_starts_without_a_say_for_the_weight(method):
    """With any A and B, but the rest as it is made: the same output at every w."""
    model = get_peft_model(copy.deepcopy(LLAMA), told(method)).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    torch.testing.assert_close(logits(model, at(model, ALPHA, 1.0)), logits(model, at(model, ALPHA, 8.0)))


def test_each_row_has_its_own_weight(method):
    model = adapted(LLAMA, told(method))
    together = logits(model, at(model, ALPHA, WEIGHTS))
    for i in range(4):
        alone = logits(model, at(model, ALPHA[i], WEIGHTS[i]), IDS[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", ["moslora-text", "moslora-learned", "moslora-alpha", "pblora"])
def test_conditions_are_affine_in_log_w(form):
    """p = Σ α_i o_i + log w·o_w, M = Σ α_i C_i + log w·C_w: from w = 1 to 2 they change as from 2 to 4."""
    model = adapted(LLAMA, told(form))
    one, two, four = (conditioning(model, at(model, ALPHA[1], w)) for w in (1.0, 2.0, 4.0))
    for layer, found in two.items():
        for a, b, c in zip(one[layer], found, four[layer], strict=True):
            torch.testing.assert_close(b - a, c - b, atol=1e-5, rtol=1e-4)
            assert not torch.allclose(a, b, atol=1e-3)


def test_every_tensor_of_the_adapter_is_trained(method):
    model = adapted(LLAMA, told(method)).train()
    with preference(model, at(model, ALPHA, WEIGHTS)):
        model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits.square().mean().backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert set(grads) == {n for n, _ in model.named_parameters() if "moslora_" in n or "pblora_" in n}
    for name, grad in grads.items():
        if "pblora_C" in name:
            assert bool(grad[-1].abs().sum() > 0)


def test_an_input_of_the_wrong_width_is_refused(method):
    model = adapted(LLAMA, told(method))
    with pytest.raises(GuidanceError, match=r"3 objectives that is told its pull: pass condition_input\(.*\(4,\)"):
        logits(model, ALPHA)
    plain = adapted(LLAMA, config_of(method, TOKENIZER))
    with pytest.raises(GuidanceError, match=r"shape \[4, 4\] does not fit a guide with 3 objectives: pass \(3,\)"):
        logits(plain, at(model, ALPHA, 1.0))


def test_two_adapters_of_which_one_is_told(method, tmp_path):
    model, other = adapted(LLAMA, told(method)), adapted(LLAMA, config_of(method, TOKENIZER), seed=5)
    expected = logits(model, at(model, ALPHA, 2.0)), logits(other, ALPHA)
    other.save_pretrained(tmp_path)
    model.load_adapter(str(tmp_path), "second")
    assert torch.equal(logits(model, at(model, ALPHA, 2.0)), expected[0])
    model.set_adapter("second")
    assert torch.equal(logits(model, ALPHA), expected[1])
    model.delete_adapter("default")
    assert model.base_model.live.told_strength == set()


def test_an_objective_is_added_before_the_weight(tmp_path):
    model = adapted(LLAMA, told("moslora-text", k=2))
    before = logits(model, at(model, ALPHA[:, :2], WEIGHTS))
    model.base_model.add_objective("concise", DESCRIPTIONS["concise"], TOKENIZER)
    padded = torch.cat([ALPHA[:, :2], torch.zeros(4, 1)], 1)
    torch.testing.assert_close(logits(model, at(model, padded, WEIGHTS)), before)
    # it is the same as if it had been there from the start
    whole = adapted(LLAMA, told("moslora-text"))
    found = at(model, ALPHA, WEIGHTS)
    assert torch.equal(logits(model, found), logits(whole, found))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(LLAMA), str(tmp_path)).eval()
    assert torch.equal(logits(loaded, found), logits(whole, found))


def test_the_sentence_for_the_weight():
    config = told("moslora-text")
    assert config.strength_description.startswith("How strongly")
    assert config.embedded_token_ids == [*config.description_token_ids, config.strength_token_ids]
    assert TOKENIZER.decode(config.strength_token_ids) == config.strength_description
    own = told("moslora-text", strength_description="More of it.")
    assert TOKENIZER.decode(own.strength_token_ids) == "More of it."
    model = adapted(LLAMA, own)
    assert model.base_model.moslora_encoder["default"].objectives.shape == (4, 32)
    assert config_of("moslora-text", TOKENIZER).embedded_token_ids == config.description_token_ids
    with pytest.raises(ConfigError, match="description is empty"):
        told("moslora-text", strength_description=" ")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (PBLoRAConfig, {"conditions_on_strength": "yes"}, "'conditions_on_strength' is 'yes': use true or false"),
        (MoSLoRAConfig, {"conditions_on_strength": 1, "condition": "alpha"}, "use true or false"),
        (
            MoSLoRAConfig,
            {"conditions_on_strength": True, "description_token_ids": [[1], [2]]},
            r"a sentence for log w: .*conditions_on_strength=True\)",
        ),
    ],
)
def test_options_that_cannot_work(kind, options, message):
    with pytest.raises(ConfigError, match=message):
        kind(objectives=["a", "b"], **options)


def saved(base_folder, folder, method, **fields):
    base = load_base(str(base_folder), dtype="float32")
    model = adapted(base.model, told(method, tokenizer=base.tokenizer))
    adapter = method.partition("-")[0]
    manifest = guides.manifest(base, adapter=adapter, objectives=OBJECTIVES, conditions_on_strength=True, **fields)
    save_guide(folder, model, manifest)
    return base, folder, model


def test_a_guide_is_saved_and_loaded(llama_folder, tmp_path, method):
    base, folder, model = saved(llama_folder, tmp_path / "g", method)
    found = at(model, ALPHA, WEIGHTS)
    expected = logits(model, found)
    loaded = load_guide_model(folder, base)
    assert torch.equal(logits(loaded, found), expected)
    assert read_manifest(folder).conditions_on_strength
    assert json.loads((folder / "adapter_config.json").read_text())["conditions_on_strength"] is True
    tensors = load_tensors(folder)
    assert torch.equal(tensors.inputs(ALPHA, WEIGHTS), found)
    for name, parts in conditioning(model, found).items():
        for wanted, part in zip(parts, tensors.conditioning(tensors.inputs(ALPHA, WEIGHTS))[name], strict=True):
            assert (wanted is None) == (part is None)
            if wanted is not None:
                torch.testing.assert_close(part, wanted)


@pytest.mark.parametrize("method", ["moslora-text", "pblora"])
def test_the_cards_quick_start_runs(llama_folder, tmp_path, monkeypatch, capsys, method):
    _, folder, model = saved(llama_folder, tmp_path / "g", method, weight=2.0)
    card = (folder / "README.md").read_text()
    code = next(block for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "peft" in block)
    assert "told = condition_input(model.active_peft_config, alpha, 2)" in code
    monkeypatch.chdir(folder)
    namespace = {}
    exec(code, namespace)  # the snippet is ours, from the card that was just written
    capsys.readouterr()
    found = namespace["model"], namespace["tokens"]
    with torch.no_grad(), preference(model, at(model, torch.full((3,), 1 / 3), 2.0)):
        expected = model(input_ids=found[1], attention_mask=torch.ones_like(found[1])).logits.log_softmax(-1)
    torch.testing.assert_close(namespace["log_probs"], expected)
    with pytest.raises(SystemExit):
        main(["info", str(folder)])
    assert "told its pull" in capsys.readouterr().out


def test_tensors_of_a_guide_that_is_not_told(llama_folder, tmp_path):
    base = load_base(str(llama_folder), dtype="float32")
    model = adapted(base.model, config_of("pblora", base.tokenizer))
    save_guide(tmp_path / "g", model, guides.manifest(base, adapter="pblora", objectives=OBJECTIVES))
    assert load_tensors(tmp_path / "g").inputs(ALPHA, WEIGHTS) is ALPHA


# a LoRA bias on a base layer without a bias cannot be merged, and PEFT says so
@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed:peft.PeftWarning")
@pytest.mark.parametrize("weight", [0.5, 3.0])
def test_the_exported_lora_is_for_one_weight(llama_folder, tmp_path, method, weight):
    _, folder, model = saved(llama_folder, tmp_path / "g", method, weight=1.5)
    made = export_lora(folder, MIX, tmp_path / "lora", strength=weight)
    assert (made.weight, made.conditions_on_strength) == (weight, False)
    assert made.training["strength"] == weight
    stock = load_guide_model(tmp_path / "lora", load_base(str(llama_folder), dtype="float32"))
    with torch.no_grad():
        found = stock(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    assert (found - logits(model, at(model, ALPHA[1], weight))).abs().max() < 1e-4
    assert (found - logits(model, at(model, ALPHA[1], 9.0))).abs().max() > 0.01


def test_the_strength_is_asked_for_and_only_where_it_means_something(llama_folder, tmp_path, capsys):
    _, folder, _ = saved(llama_folder, tmp_path / "g", "pblora")
    base = load_base(str(llama_folder), dtype="float32")
    plain = adapted(base.model, config_of("pblora", base.tokenizer))
    save_guide(tmp_path / "plain", plain, guides.manifest(base, adapter="pblora", objectives=OBJECTIVES))
    with pytest.raises(ConfigError, match=r"told how strongly it pulls.*say which pull \(--strength 1\)"):
        export_lora(folder, MIX, tmp_path / "lora")
    with pytest.raises(ConfigError, match=r"not told how strongly it pulls.*leave --strength out"):
        export_lora(tmp_path / "plain", MIX, tmp_path / "lora", strength=1.0)
    for wrong in (0.0, -1.0, float("inf")):
        with pytest.raises(GuidanceError, match="above 0"):
            export_lora(folder, MIX, tmp_path / "lora", strength=wrong)
    assert not (tmp_path / "lora").exists()
    flags = ["export", "--guide", str(folder), "--output", str(tmp_path / "lora"), "--preference", MIX]
    for extra, code in (([], 1), (["--strength", "2.5"], 0)):
        with pytest.raises(SystemExit) as caught:
            main([*flags, *extra])
        assert caught.value.code == code
    assert "w = 2.5" in capsys.readouterr().err
    assert read_manifest(tmp_path / "lora").weight == 2.5


@pytest.mark.parametrize("method", ["moslora-text", "moslora-alpha", "pblora"])
def test_a_folder_that_does_not_agree_with_itself_is_refused(llama_folder, tmp_path, method):
    base, folder, model = saved(llama_folder, tmp_path / "g", method)
    manifest = read_manifest(folder)
    with pytest.raises(ConfigError, match="conditions_on_strength=False; the model's adapter is another"):
        save_guide(tmp_path / "other", model, manifest.model_copy(update={"conditions_on_strength": False}))
    path = folder / "guide.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "conditions_on_strength": False}))
    with pytest.raises(GuideError, match="conditions_on_strength"):
        load_guide_model(folder, base)
    path.write_text(json.dumps({**json.loads(manifest.to_json()), "weight": 0.0}))
    with pytest.raises(GuideError, match="a pull above 0 is needed"):
        load_guide_model(folder, base)
    path.write_text(manifest.to_json())
    config = folder / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "conditions_on_strength": False}))
    with pytest.raises(GuideError, match=r"has shape \[4, |\[., 4\]"):
        load_tensors(folder)
