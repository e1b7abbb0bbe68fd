"""The model card: metadata that the hub reads, numbers beside what costs nothing, and a quick start that runs."""

from __future__ import annotations

import re

import pytest
from huggingface_hub import ModelCard

import guides
import trimtab
from trimtab.models import load_base
from trimtab.rewards import BaseRef, DataRef, GuideManifest, Objective
from trimtab.rewards.card import hub_id, hub_metadata, render


def accuracy(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 80}


HELD_OUT = {
    "objective": "polite",
    "n": 80,
    "guide": accuracy(0.8),
    "untrained": accuracy(0.6),
    "length": accuracy(0.625),
    "length_rule": "longer",
    "matched_guide": None,
    "matched_untrained": None,
    "p_value": 0.00123,
}


def manifest(**fields) -> GuideManifest:
    values = {
        "objectives": (Objective(name="polite", description="Says please."),),
        "beta": 0.05,
        "base": BaseRef(id="org/model", revision="v1", fingerprint="f00", architecture="LlamaForCausalLM"),
        "tokenizer_hash": "beef",
        "eos_token_id": 2,
        "metrics": {"held_out": HELD_OUT, "train_loss": 0.41},
        "data": DataRef(sha256="ab" * 32, files=("org/pairs", "mine.jsonl"), comparisons=320),
    }
    return GuideManifest(**{**values, **fields})


def test_metadata_is_what_the_hub_reads():
    data = ModelCard(render(manifest(license="apache-2.0"))).data
    assert (data.library_name, data.base_model, data.license) == ("peft", "org/model", "apache-2.0")
    assert data.to_dict()["base_model_relation"] == "adapter"
    assert data.datasets == ["org/pairs"]
    assert {"trimtab", "genarm", "lora"} <= set(data.tags)
    [result] = data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("accuracy", 0.8, "held-out pairs, polite")


def test_what_is_not_known_is_left_out():
    bare = hub_metadata(manifest(metrics={}, data=None, base=manifest().base.model_copy(update={"id": "/models/mine"})))
    assert not {"base_model", "license", "datasets", "model-index"} & set(bare)
    full = hub_metadata(manifest(adapter="full"))
    assert (full["library_name"], full["base_model_relation"]) == ("transformers", "finetune")
    assert "lora" not in full["tags"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("org/model-1.5", "org/model-1.5"),
        ("model", None),
        ("./models/mine", None),
        ("/models/mine", None),
        ("data/pairs.jsonl.gz", None),
    ],
)
def test_hub_ids(name, expected):
    assert hub_id(name) == expected


def test_accuracy_stands_beside_untrained_and_length():
    text = render(manifest())
    assert "| this guide | 0.800 [0.700, 0.900], n = 80 |" in text
    assert "| the same model, untrained | 0.600 [0.500, 0.700], n = 80 |" in text
    assert "| length alone (longer answer wins) | 0.625 [0.525, 0.725], n = 80 |" in text
    assert "like length" not in text  # there were no such pairs
    assert "p = 0.0012" in text
    assert "| train_loss | 0.41 |" in text
    assert "320 comparisons from `org/pairs`, `mine.jsonl`" in text
    assert "2410.08193" in text
    assert "No held-out ranking was measured" in render(manifest(metrics={}))


def test_metrics_of_another_shape_are_shown_and_not_interpreted():
    text = render(manifest(metrics={"held_out": {"guide": 0.5, "accuracy": 0.75}, "x": {"y": 1}}))
    assert "| accuracy | 0.75 |" in text
    assert "model-index" not in text


def test_text_from_elsewhere_stays_in_its_place():
    hostile = manifest(
        objectives=(Objective(name="a|b", description="x\n---\n# y | <script>"),), training={"k\n": "`v`\n\n# big"}
    )
    text = render(hostile)
    assert "| a\\|b | maximize | x --- # y \\| &lt;script> |" in text
    assert "\n# y" not in text and "\n# big" not in text
    assert ModelCard(text).data.library_name == "peft"


def blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize("chat", [True, False])
def test_the_stock_quick_start_runs_and_prints_the_reward(llama_folder, tmp_path, monkeypatch, capsys, adapter, chat):
    template = load_base(str(llama_folder)).tokenizer.chat_template if chat else None
    _, folder = guides.saved(llama_folder, tmp_path / "g", adapter=adapter, chat_template=template)
    monkeypatch.chdir(folder)
    exec(blocks((folder / "README.md").read_text())[1], {})
    reward = float(capsys.readouterr().out)
    assert -200 < reward < 0


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_a_policys_card_says_what_it_is_and_its_quick_start_runs(llama_folder, tmp_path, monkeypatch, capsys, adapter):
    base, folder = guides.saved(llama_folder, tmp_path / "g", adapter=adapter, kind="policy", weight=0.8)
    text = (folder / "README.md").read_text()
    assert "log π_base + w · (log π − log π_ref)" in text and "recommended w = 0.8" in text
    assert "2305.18290" in text and "autoregressive reward model" not in text
    assert "dpo" in ModelCard(text).data.tags
    monkeypatch.chdir(folder)
    exec(blocks(text)[1], {})
    printed = float(capsys.readouterr().out)
    if adapter == "full":
        assert printed < 0
        return
    ids = [*base.tokenizer("Could you please help me?", add_special_tokens=False)["input_ids"], 2]
    with trimtab.load(load_base(str(llama_folder), dtype="float32"), [folder]) as engine:
        score = engine.score(base.tokenizer("How do I ask for help?")["input_ids"], ids)
    assert printed == pytest.approx(0.1 * score.rewards["g"], abs=1e-3)


def test_a_policys_ranking_stands_beside_its_bases_log_probability():
    text = render(manifest(kind="policy"))
    assert "| log-probability under its base | 0.600 [0.500, 0.700], n = 80 |" in text
    assert "untrained |" not in text


def test_every_block_is_python(llama_folder, tmp_path):
    _, folder = guides.saved(llama_folder, tmp_path / "g", id='odd"\\name', revision="v1")
    found = blocks((folder / "README.md").read_text())
    assert len(found) == 2
    for block in found:
        compile(block, "README.md", "exec")


def test_the_trimtab_quick_start_runs(llama_folder, tmp_path, monkeypatch, capsys):
    _, folder = guides.saved(llama_folder, tmp_path / "g")
    monkeypatch.chdir(folder)
    exec(blocks((folder / "README.md").read_text())[0], {})
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines() if line[:3] in ("0.0", "1.0", "2.0")] == [
        "0.0",
        "1.0",
        "2.0",
    ]
