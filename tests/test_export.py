"""Conditioned guides on disk: saved and loaded with every check, and exported as a plain LoRA."""

from __future__ import annotations

import copy
import json
import re
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel, PeftWarning
from safetensors.torch import load_file, save_file

import guides
import tiny
import trimtab
from conditioned import DESCRIPTIONS, METHODS, adapted, config_of
from trimtab.cli.main import main
from trimtab.errors import ConfigError, GuidanceError, GuideError
from trimtab.models import load_base
from trimtab.rewards import Objective, load_adapter_config, load_guide_model, read_manifest, save_guide
from trimtab.rewards.conditioned import conditioning, preference
from trimtab.rewards.conditioned.tensors import load_tensors
from trimtab.rewards.conditioned.tuner import ConditionedLayer
from trimtab.rewards.export import export_lora

IDS = torch.arange(3, 27).reshape(4, 6)
ALPHA = torch.tensor([[1.0, 0.0, 0.0], [0.2, 0.5, 0.3], [0.0, 0.0, 1.0], [0.4, 0.4, 0.2]])
MIX = "helpful=0.2,harmless=0.5,concise=0.3"
OBJECTIVES = tuple(Objective(name=name, description=text) for name, text in DESCRIPTIONS.items())


def logits(model, alpha=None):
    with torch.no_grad():
        if alpha is None:
            return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
        with preference(model, alpha):
            return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


@pytest.fixture(params=["llama", "gpt2"])
def base_folder(request, llama_folder, gpt2_folder):
    return {"llama": llama_folder, "gpt2": gpt2_folder}[request.param]


def saved(base_folder: Path, folder: Path, method: str, **options):
    """Save a conditioned guide; returns the base, the folder and the model that was saved."""
    base = load_base(str(base_folder), dtype="float32")
    model = adapted(base.model, config_of(method, base.tokenizer, **options))
    manifest = guides.manifest(base, adapter=method.partition("-")[0], objectives=OBJECTIVES)
    save_guide(folder, model, manifest)
    return base, folder, model


@pytest.mark.parametrize("method", METHODS)
def test_a_guide_is_saved_and_loaded(base_folder, tmp_path, method):
    base, folder, model = saved(base_folder, tmp_path / "g", method)
    expected = logits(model, ALPHA)
    loaded = load_guide_model(folder, base)
    assert torch.equal(logits(loaded, ALPHA), expected)
    assert not any(p.requires_grad for p in loaded.parameters())
    with loaded.disable_adapter():
        assert torch.equal(logits(loaded), logits(load_base(str(base_folder), dtype="float32").model))
    assert load_base(str(base_folder), dtype="float32").fingerprint == read_manifest(folder).base.fingerprint
    again = load_guide_model(folder, load_base(str(base_folder), dtype="float32"), trainable=True)
    save_guide(tmp_path / "again", again, read_manifest(folder))
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    stock = PeftModel.from_pretrained(load_base(str(base_folder), dtype="float32").model, str(folder)).eval()
    assert torch.equal(logits(stock, ALPHA), expected)
    assert "with torch.no_grad(), preference(model, alpha):" in (folder / "README.md").read_text()


@pytest.mark.parametrize("method", METHODS)
def test_the_tensors_alone_do_what_the_model_does(llama_folder, tmp_path, method):
    """What an engine needs: α's part once a request, then a delta on a slice of rows in each forward."""
    _, folder, model = saved(llama_folder, tmp_path / "g", method)
    tensors = load_tensors(folder)
    assert tensors.objectives == tuple(DESCRIPTIONS)
    conditions = tensors.conditioning(ALPHA)
    expected = conditioning(model, ALPHA)
    layers = {m.name: m for m in model.modules() if isinstance(m, ConditionedLayer)}
    assert set(conditions) == set(expected) == set(layers)
    for name, layer in layers.items():
        for found, wanted in zip(conditions[name], expected[name], strict=True):
            assert (found is None) == (wanted is None)
            if found is not None:
                torch.testing.assert_close(found, wanted)
        x = torch.randn(4, 3, layer.in_features)
        with torch.no_grad(), preference(model, ALPHA):
            whole = layer(x) - layer.base_layer(x)
            rows = tuple(None if c is None else c[1:3] for c in conditions[name])
            torch.testing.assert_close(tensors.row_delta(name, x[1:3], rows), whole[1:3], atol=1e-5, rtol=1e-4)
    half = tensors.to("cpu", torch.bfloat16)
    assert half.row_delta(name, x.bfloat16(), conditions[name]).dtype == torch.bfloat16
    assert all(c is None or c.dtype == torch.float32 for c in half.conditioning(ALPHA)[name])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("alpha", ALPHA[:2], ids=["one-hot", "mixed"])
def test_the_exported_lora_is_loaded_by_stock_peft(base_folder, tmp_path, method, alpha):
    _, folder, model = saved(base_folder, tmp_path / "g", method)
    expected = logits(model, alpha)
    written = export_lora(folder, alpha, tmp_path / "lora")
    with warnings.catch_warnings():
        # a LoRA bias on a base layer without a bias cannot be merged, and PEFT says so
        warnings.filterwarnings("ignore", message="`lora_bias=True` was passed", category=PeftWarning)
        stock = PeftModel.from_pretrained(load_base(str(base_folder), dtype="float32").model, str(tmp_path / "lora"))
        ours = load_guide_model(tmp_path / "lora", load_base(str(base_folder), dtype="float32"))
    assert stock.peft_config["default"].peft_type == "LORA"
    assert (logits(stock.eval()) - expected).abs().max() < 1e-4
    assert (logits(ours) - expected).abs().max() < 1e-4
    assert (logits(stock) - logits(model, ALPHA[2])).abs().max() > 0.01
    assert read_manifest(tmp_path / "lora") == written


def test_the_exported_guide_says_where_it_comes_from(llama_folder, tmp_path):
    _, folder, _ = saved(llama_folder, tmp_path / "g", "moslora-text")
    source = read_manifest(folder)
    made = export_lora(folder, "harmless=0.25,helpful=0.75", tmp_path / "lora")
    assert (made.kind, made.adapter, made.metrics) == ("arm", "lora", {})
    assert made.objective_names == ("0.75*helpful+0.25*harmless",)
    assert made.objectives[0].description.startswith("0.75 of helpful (The answer does what was asked.); 0.25 of")
    assert made.training["exported_from"] == "moslora"
    assert made.training["preference"] == "helpful=0.75,harmless=0.25,concise=0"
    assert made.training["source_sha256"] == source.weights_sha256["adapter_model.safetensors"]
    assert (made.base, made.beta, made.weight) == (source.base, source.beta, source.weight)
    assert sorted(p.name for p in (tmp_path / "lora").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "guide.json",
    ]


def test_vllm_gets_no_bias(llama_folder, tmp_path):
    _, folder, _ = saved(llama_folder, tmp_path / "both", "moslora-text")
    with pytest.raises(ConfigError, match=r"δ ≠ 0 in 'model\.layers.*modulation='scale'"):
        export_lora(folder, MIX, tmp_path / "out", consumer="vllm")
    assert not (tmp_path / "out").exists()
    for method in ("moslora-text-scale", "pblora"):
        _, folder, _ = saved(llama_folder, tmp_path / method, method)
        export_lora(folder, MIX, tmp_path / f"{method}-lora", consumer="vllm")
        config = json.loads((tmp_path / f"{method}-lora" / "adapter_config.json").read_text())
        assert not config["lora_bias"]
        assert type(config["lora_alpha"]) is int and config["lora_alpha"] == config["r"]
        names = load_file(tmp_path / f"{method}-lora" / "adapter_model.safetensors")
        assert all(n.endswith((".lora_A.weight", ".lora_B.weight")) for n in names)


def test_a_shift_of_zero_needs_no_bias(llama_folder, tmp_path):
    base = load_base(str(llama_folder), dtype="float32")
    model = adapted(base.model, config_of("moslora-text", base.tokenizer))
    for name, parameter in model.named_parameters():
        if "moslora_D" in name:
            parameter.data.zero_()
    save_guide(tmp_path / "g", model, guides.manifest(base, adapter="moslora", objectives=OBJECTIVES))
    export_lora(tmp_path / "g", MIX, tmp_path / "lora", consumer="vllm")
    stock = PeftModel.from_pretrained(copy.deepcopy(base.model), str(tmp_path / "lora")).eval()
    assert (logits(stock) - logits(model, ALPHA[1])).abs().max() < 1e-4


def test_what_cannot_be_exported(llama_folder, tmp_path):
    _, folder, _ = saved(llama_folder, tmp_path / "g", "pblora")
    _, plain = guides.saved(llama_folder, tmp_path / "plain")
    with pytest.raises(ConfigError, match="kind 'lora' and takes no preference"):
        export_lora(plain, "polite=1", tmp_path / "out")
    with pytest.raises(GuideError, match="takes no preference vector"):
        load_tensors(plain)
    with pytest.raises(ConfigError, match="into its own folder"):
        export_lora(folder, MIX, folder)
    with pytest.raises(GuidanceError, match=r"'helpfull'\. Did you mean 'helpful'"):
        export_lora(folder, "helpfull=1", tmp_path / "out")
    with pytest.raises(GuidanceError, match="sums to 3"):
        export_lora(folder, "helpful=1,concise=2", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    made = export_lora(folder, "helpful=1,concise=3", tmp_path / "out", normalise=True)
    assert made.training["preference"] == "helpful=0.25,harmless=0,concise=0.75"


def test_the_command(llama_folder, tmp_path, capsys):
    _, folder, _ = saved(llama_folder, tmp_path / "g", "pblora")
    flags = ["export", "--guide", str(folder), "--output", str(tmp_path / "lora")]
    with pytest.raises(SystemExit) as caught:
        main([*flags, "--preference", "harmless=0.25,helpful=0.75"])
    assert caught.value.code == 0
    assert "0.75*helpful+0.25*harmless" in capsys.readouterr().err
    assert read_manifest(tmp_path / "lora").adapter == "lora"
    for wrong in (["--preference", "x=1"], ["--preference", MIX, "--consumer", "vllmm"]):
        with pytest.raises(SystemExit) as caught:
            main([*flags, *wrong])
        assert caught.value.code == 1
        error = capsys.readouterr().err
        assert error.startswith("Error: ") and error.count("\n") == 1


def edit(folder: Path, file: str, **changes) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(folder: Path, change) -> None:
    """Change the tensors, and the hash that guide.json has of them."""
    import hashlib

    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    edit(folder, "guide.json", weights_sha256={path.name: hashlib.sha256(path.read_bytes()).hexdigest()})


OBJECTIVES_KEY = "base_model.moslora_encoder.objectives"
G_KEY = "base_model.model.model.layers.0.self_attn.q_proj.moslora_G"


@pytest.mark.parametrize(
    ("method", "damage", "message"),
    [
        ("moslora-text", lambda f: edit(f, "guide.json", adapter="pblora"), "adapter='pblora', but .*'moslora'"),
        ("moslora-text", lambda f: edit(f, "guide.json", adapter="lora"), "adapter='lora', but .*'moslora'"),
        ("pblora", lambda f: edit(f, "adapter_config.json", objectives=["harmless", "helpful", "concise"]), "misread"),
        ("pblora", lambda f: edit(f, "adapter_config.json", r3=2), "'r3', which the installed PEFT does not know"),
        ("pblora", lambda f: edit(f, "adapter_config.json", r2=3), r"pblora_A' has shape \[5, 64\], not \[6, '\?'\]"),
        ("pblora", lambda f: edit(f, "adapter_config.json", r1="3"), "'r1' is '3'"),
        ("pblora", lambda f: edit(f, "adapter_config.json", lora_alpha="2"), "lora_alpha is '2', not a number"),
        ("pblora", lambda f: edit(f, "adapter_config.json", objectives="abc"), "'objectives' must name"),
        ("pblora", lambda f: edit(f, "adapter_config.json", layers_pattern="(x+)+y"), "not a module's name"),
        ("moslora-text", lambda f: edit(f, "adapter_config.json", modulation="scale"), "moslora_D', which is no part"),
        ("moslora-text", lambda f: edit(f, "adapter_config.json", condition="alpha"), r"shape \[4, 32\], not \[4, 3\]"),
        ("moslora-text", lambda f: edit(f, "adapter_config.json", description_token_ids=[[1], [2], [-3]]), "token ids"),
        ("moslora-text", lambda f: edit(f, "adapter_config.json", description_token_ids=[[1], [2], [10**6]]), "fit"),
        ("moslora-text", lambda f: edit(f, "adapter_config.json", condition_scale="x"), "'condition_scale' is 'x'"),
        ("moslora-text", lambda f: edit_tensors(f, lambda t: t.pop(OBJECTIVES_KEY)), "lacks .*encoder.objectives"),
        ("moslora-text", lambda f: edit_tensors(f, lambda t: t.pop(G_KEY)), "lacks .*q_proj.moslora_G"),
        (
            "moslora-text",
            lambda f: edit_tensors(f, lambda t: t.update({OBJECTIVES_KEY: torch.zeros(2, 32)})),
            r"has shape \[2, 32\], not \[3, '\?'\]",
        ),
        (
            "moslora-text",
            lambda f: edit_tensors(f, lambda t: t.update({"base_model.model.model.norm.weight": torch.zeros(32)})),
            "no part of an adapter",
        ),
        (
            "moslora-text",
            lambda f: edit_tensors(f, lambda t: t.update({G_KEY: torch.full((4, 32), float("nan"))})),
            "NaN or infinity",
        ),
        (
            "moslora-text",
            lambda f: edit_tensors(f, lambda t: t.update({G_KEY: torch.zeros(4, 31)})),
            "does not fit",
        ),
    ],
)
def test_a_damaged_guide_is_refused_and_the_base_stays_as_it_was(llama_folder, tmp_path, method, damage, message):
    base, folder, _ = saved(llama_folder, tmp_path / "g", method)
    damage(folder)
    names = [name for name, _ in base.model.named_modules()]
    expected = logits(base.model)
    with pytest.raises(GuideError, match=message) as caught:
        load_guide_model(folder, base)
    assert "\n" not in str(caught.value)
    assert [name for name, _ in base.model.named_modules()] == names
    assert torch.equal(logits(base.model), expected)


def test_names_from_a_regular_expression(llama_folder, tmp_path):
    base, folder, model = saved(llama_folder, tmp_path / "g", "pblora", target_modules=r".*\.(q|v)_proj")
    assert load_adapter_config(folder).target_modules == {
        f"model.layers.{layer}.self_attn.{name}_proj" for layer in (0, 1) for name in "qv"
    }
    assert torch.equal(logits(load_guide_model(folder, base), ALPHA), logits(model, ALPHA))


def test_what_is_saved_must_be_what_the_manifest_says(llama_folder, tmp_path):
    base = load_base(str(llama_folder), dtype="float32")
    model = adapted(base.model, config_of("pblora", None))
    for wrong in ({"adapter": "lora"}, {"adapter": "moslora"}, {"adapter": "pblora", "objectives": OBJECTIVES[::-1]}):
        fields = {"objectives": OBJECTIVES, **wrong}
        with pytest.raises(ConfigError, match="the model's adapter is another"):
            save_guide(tmp_path / "g", model, guides.manifest(base, **fields))
    with pytest.raises(ConfigError, match="'full' a plain transformers model"):
        save_guide(tmp_path / "g", tiny.make_llama(), guides.manifest(base, adapter="pblora"))


def test_info(llama_folder, tmp_path, capsys):
    _, folder, _ = saved(llama_folder, tmp_path / "g", "pblora")
    with pytest.raises(SystemExit) as caught:
        main(["info", str(folder), "--json"])
    assert caught.value.code == 0
    assert json.loads(capsys.readouterr().out)["weights"]["rank"] == 5


@pytest.mark.parametrize("method", ["moslora-text", "pblora"])
def test_the_cards_quick_start_runs(llama_folder, tmp_path, monkeypatch, capsys, method):
    _, folder, model = saved(llama_folder, tmp_path / "g", method)
    card = (folder / "README.md").read_text()
    code = next(block for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "peft" in block)
    assert "alpha = torch.tensor([1 / 3, 1 / 3, 1 / 3])  # helpful, harmless, concise" in code
    monkeypatch.chdir(folder)
    namespace = {}
    exec(code, namespace)  # the snippet is ours, from the card that was just written
    tokens = namespace["tokens"]
    with torch.no_grad(), preference(model, torch.full((3,), 1 / 3)):
        logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
    answer = tokens.shape[1] - namespace["answer"].shape[1]
    found = logits.log_softmax(-1)[0, answer - 1 : -1].gather(1, tokens[0, answer:, None]).sum().item()
    assert float(capsys.readouterr().out) == pytest.approx(found * read_manifest(folder).beta, rel=1e-4)


def test_decoding_takes_the_exported_guide(llama_folder, tmp_path):
    _, folder, _ = saved(llama_folder, tmp_path / "g", "pblora")
    export_lora(folder, MIX, tmp_path / "lora")
    with trimtab.load(str(llama_folder), guides=[str(tmp_path / "lora")], dtype="float32") as engine:
        plain, guided = (engine.generate("Hi", guidance=w, max_tokens=8, temperature=0)[0] for w in (0.0, 1.0))
    assert guided.token_ids != plain.token_ids
