"""The guide's folder: what is written, that stock PEFT reads it, and that a failed save changes nothing."""

from __future__ import annotations

import copy
import json
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import ValidationError

import guides
import tiny
from trimtab.errors import ConfigError, GuideError, NumericalError, OutputError
from trimtab.models import load_base
from trimtab.rewards import (
    BaseRef,
    DataRef,
    GuideManifest,
    Objective,
    check_lora_config,
    load_adapter_config,
    load_guide_model,
    read_manifest,
    save_guide,
)

IDS = torch.arange(3, 40)[None]
SCHEMA = Path(__file__).parent / "data" / "guide.schema.json"


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
        {"use_dora": True},
        {"target_modules": "all-linear", "exclude_modules": ["k_proj"]},
        {"modules_to_save": ["norm"]},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_stock_peft_and_trimtab_load_the_same_model(llama_folder, tmp_path, options):
    base = load_base(str(llama_folder), dtype="float32")
    model = guides.lora_on(base, **options)
    save_guide(tmp_path, model, guides.manifest(base))
    stock = PeftModel.from_pretrained(load_base(str(llama_folder), dtype="float32").model, str(tmp_path)).eval()
    ours = load_guide_model(tmp_path, base)
    assert torch.equal(logits(stock), logits(model))
    assert torch.equal(logits(ours), logits(model))
    assert not any(p.requires_grad for p in ours.parameters())
    with ours.disable_adapter():
        assert torch.equal(logits(ours), logits(load_base(str(llama_folder), dtype="float32").model))
    assert not torch.allclose(logits(ours), logits(load_base(str(llama_folder), dtype="float32").model))


def test_gpt2_with_fused_and_transposed_layers(gpt2_folder, tmp_path):
    base = load_base(str(gpt2_folder), dtype="float32")
    model = guides.lora_on(base, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    save_guide(tmp_path, model, guides.manifest(base))
    assert torch.equal(logits(load_guide_model(tmp_path, base)), logits(model))


def test_a_loaded_guide_can_be_trained_on_and_saved_again(llama_folder, tmp_path):
    base, folder = guides.saved(llama_folder, tmp_path / "a")
    model = load_guide_model(folder, base, trainable=True)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trainable and all("lora_" in name for name in trainable)
    save_guide(tmp_path / "b", model, read_manifest(folder))
    assert files(tmp_path / "b") == files(folder)


def test_the_folder_is_peft_plus_manifest_plus_card_and_nothing_of_this_machine(llama_folder, tmp_path):
    _, folder = guides.saved(llama_folder, tmp_path / "g", id="smollm2", revision="v1")
    assert sorted(files(folder)) == ["README.md", "adapter_config.json", "adapter_model.safetensors", "guide.json"]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("smollm2", "v1")
    assert config["target_modules"] == sorted(config["target_modules"])
    private = str(llama_folder).encode()
    assert not any(private in content for content in files(folder).values())


def test_full_fine_tune(llama_folder, tmp_path):
    base = load_base(str(llama_folder), dtype="float32")
    tuned = tiny.make_llama(vocab_size=320, seed=7)
    with pytest.raises(ConfigError, match="tokenizer"):
        save_guide(tmp_path / "g", tuned, guides.manifest(base, adapter="full"))
    save_guide(tmp_path / "g", tuned, guides.manifest(base, adapter="full"), tokenizer=base.tokenizer)
    assert {"model.safetensors", "config.json", "tokenizer.json", "guide.json"} <= set(files(tmp_path / "g"))
    assert torch.equal(logits(load_guide_model(tmp_path / "g", base)), logits(tuned))
    assert load_base(str(tmp_path / "g")).vocabulary_size == 320


def test_model_and_manifest_must_agree(llama_folder, tmp_path):
    base = load_base(str(llama_folder), dtype="float32")
    with pytest.raises(ConfigError, match="'lora' needs a PeftModel"):
        save_guide(tmp_path / "g", base.model, guides.manifest(base))
    assert not (tmp_path / "g").exists()


def test_other_files_survive_and_no_staging_is_left(llama_folder, tmp_path):
    (tmp_path / "g" / "checkpoint-5").mkdir(parents=True)
    (tmp_path / "g" / "checkpoint-5" / "optimizer.pt").write_bytes(b"state")
    (tmp_path / "g" / "metrics.jsonl").write_text("{}\n")
    base, folder = guides.saved(llama_folder, tmp_path / "g")
    assert (folder / "checkpoint-5" / "optimizer.pt").read_bytes() == b"state"
    assert (folder / "metrics.jsonl").read_text() == "{}\n"
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []
    load_guide_model(folder, base)


def test_a_diverged_guide_is_not_saved(llama_folder, tmp_path):
    _, folder = guides.saved(llama_folder, tmp_path / "g")
    before = files(folder)
    base = load_base(str(llama_folder), dtype="float32")
    model = guides.lora_on(base, seed=5)
    next(p for n, p in model.named_parameters() if "lora_A" in n).data[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="NaN or infinity"):
        save_guide(folder, model, guides.manifest(base))
    assert files(folder) == before


def test_an_unwritable_place_is_one_clear_line(llama_folder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written") as caught:
        guides.saved(llama_folder, tmp_path / "file" / "g")
    assert "\n" not in str(caught.value)
    with pytest.raises(OutputError, match="cannot be written"):
        guides.saved(llama_folder, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "in the way"


@contextmanager
def no_file_larger_than(size: int):
    """Writing past ``size`` bytes fails with a real OSError, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize("exists", [True, False])
def test_a_full_disk_changes_nothing(llama_folder, tmp_path, exists, adapter):
    folder = tmp_path / "g"
    _, other = guides.saved(llama_folder, tmp_path / "other", adapter=adapter)
    largest = max(p.stat().st_size for p in other.glob("*.safetensors"))
    if exists:
        guides.saved(llama_folder, folder, adapter=adapter)
    before = files(tmp_path)
    with no_file_larger_than(largest - 1), pytest.raises(OutputError, match="cannot be written") as caught:
        guides.saved(llama_folder, folder, seed=9, adapter=adapter)
    assert "\n" not in str(caught.value)
    assert files(tmp_path) == before
    assert folder.exists() == exists


def test_schema_is_the_published_one():
    """A change of the file format is deliberate: it changes this snapshot (and usually SCHEMA_VERSION)."""
    schema = GuideManifest.model_json_schema()
    schema["properties"]["library_version"].pop("default")
    assert schema == json.loads(SCHEMA.read_text()), "write tests/data/guide.schema.json anew if this is intended"


def test_manifest_round_trip(tmp_path, llama_folder):
    base = load_base(str(llama_folder), dtype="float32")
    manifest = guides.manifest(
        base,
        objectives=(Objective(name="ü helpful"), Objective(name="cost", direction="minimize", description="money")),
        weight=-0.5,
        data=DataRef(sha256="00", files=("/home/someone/pairs.jsonl", "org/set"), comparisons=3),
        metrics={"ranking": {"accuracy": 0.75, "margin": float("nan")}, "loss": [1.0, float("inf")]},
    )
    (tmp_path / "guide.json").write_text(manifest.to_json(), encoding="utf-8")
    back = read_manifest(tmp_path)
    assert back.objective_names == ("ü helpful", "cost")
    assert back.data is not None and back.data.files == ("pairs.jsonl", "org/set")
    assert back.metrics == {"ranking": {"accuracy": 0.75, "margin": None}, "loss": [1.0, None]}
    assert back == manifest.model_copy(update={"metrics": back.metrics})


@pytest.mark.parametrize(
    "wrong",
    [
        {"beta": 0.0},
        {"beta": float("nan")},
        {"weight": float("inf")},
        {"objectives": ()},
        {"kind": "unknown"},
        {"objectives": (Objective(name="a"), Objective(name="a"))},
    ],
)
def test_values_that_make_no_sense(llama_folder, wrong):
    base = load_base(str(llama_folder), dtype="float32")
    with pytest.raises(ValidationError):
        guides.manifest(base, **wrong)


@pytest.mark.parametrize("name", ["", " a", "a=b", "a,b", "a\x1b[31m"])
def test_objective_names_that_cannot_be_typed(name):
    with pytest.raises(ValidationError):
        Objective(name=name)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"bias": "all"}, "'bias'"),
        ({"init_lora_weights": "pissa"}, "changes the base's weights"),
        ({"layer_replication": [(0, 1)]}, "layer_replication"),
        ({"r": 10**9}, "1 to 65536"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern"),
    ],
)
def test_lora_options_that_would_change_the_base(options, match):
    with pytest.raises(ConfigError, match=match):
        check_lora_config(LoraConfig(**options))


def test_a_regular_expression_in_the_config_becomes_names(llama_folder, tmp_path):
    """``(x+)+y`` style expressions can run for ever; the tensors say which modules are meant."""
    base = load_base(str(llama_folder), dtype="float32")
    model = guides.lora_on(base, target_modules=r".*\.(q|v)_proj")
    save_guide(tmp_path, model, guides.manifest(base))
    assert load_adapter_config(tmp_path).target_modules == {
        f"model.layers.{layer}.self_attn.{name}_proj" for layer in (0, 1) for name in "qv"
    }
    assert torch.equal(logits(load_guide_model(tmp_path, base)), logits(model))


def test_base_reference_of_an_adapted_base_is_the_base(llama_folder):
    base = load_base(str(llama_folder), dtype="float32")
    plain = BaseRef.of(base)
    fresh = load_base(str(llama_folder), dtype="float32")
    get_peft_model(fresh.model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert BaseRef.of(fresh) == plain
    assert plain.architecture == "LlamaForCausalLM"


def test_loading_refused_leaves_the_base_as_it_was(llama_folder, tmp_path):
    base, folder = guides.saved(llama_folder, tmp_path / "g")
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_modules"] = [*config["target_modules"], "k_proj"]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    names = [name for name, _ in base.model.named_modules()]
    expected = copy.deepcopy(base.model.state_dict())
    with pytest.raises(GuideError, match=r"k_proj.* is missing"):
        load_guide_model(folder, base)
    assert [name for name, _ in base.model.named_modules()] == names
    assert all(torch.equal(value, expected[key]) for key, value in base.model.state_dict().items())
