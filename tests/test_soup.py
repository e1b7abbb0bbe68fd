"""Rewarded soups: one guide that is, at any preference, the model of the mixed weights."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_guides
import trimtab
from trimtab.cli.main import main
from trimtab.decoding.oracle import OracleGuide, greedy
from trimtab.errors import ConfigError
from trimtab.models import Base, load_base
from trimtab.preferences import Comparison, Label
from trimtab.rewards import load_guide_model, read_manifest
from trimtab.rewards.artifact import DataRef
from trimtab.rewards.conditioned import preference
from trimtab.rewards.export import export_lora
from trimtab.rewards.held_out import rank_guide
from trimtab.rewards.mixed_ranking import rank_preferences
from trimtab.rewards.soup import soup

IDS = torch.arange(3, 27).reshape(4, 6)
ALPHAS = [(1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.25, 0.5, 0.25), (1 / 3, 1 / 3, 1 / 3), (0.1, 0.7, 0.2)]
NAMES = ("helpful", "harmless", "concise")
# Of different ranks, scalings and layers, so that what is stacked is not alike by chance.
LORAS: list[dict[str, Any]] = [
    {"r": 4, "lora_alpha": 8},
    {"r": 2, "lora_alpha": 3, "use_rslora": True},
    {"r": 3, "lora_alpha": 5},
]


@dataclass
class Kitchen:
    """Three guides on one base, their soup, and the float64 models of the parts."""

    base: Base
    folders: list[Path]
    models: list[Any]
    plain: Any
    soup: Path

    def mixed(self, alpha: tuple[float, ...]) -> Any:
        """The base with Σ_i α_i θ_i as its weights, float64."""
        merged = [copy.deepcopy(model).merge_and_unload().state_dict() for model in self.models]
        model = copy.deepcopy(self.plain)
        own = model.state_dict()
        mixed = {k: sum(a * m[k] for a, m in zip(alpha, merged, strict=True)) for k in own}
        model.load_state_dict(mixed)
        return model


def cook(root: Path, folder: Path, *, kind: str = "policy", loras: list[dict[str, Any]] = LORAS) -> Kitchen:
    base = load_base(str(folder), dtype="float32")
    wide = "c_fc" if base.tokenizer.chat_template is None else "up_proj"
    loras = [*loras[:2], *({**one, "rank_pattern": {wide: 5}, "alpha_pattern": {wide: 2}} for one in loras[2:])]
    models, folders = [], []
    for seed, (name, options) in enumerate(zip(NAMES, loras, strict=False), start=1):
        lora = tiny_guides.random_lora(base.model, seed=seed, **options)
        data = DataRef(sha256=str(seed) * 8, files=(f"{name}.jsonl",), comparisons=10 * seed, labelled_by="people")
        training = {"method": "dpo", "seed": seed, "max_length": 100 + seed, "learning_rate": 0.1}
        made = tiny_guides.manifest_for(base, name, kind=kind, data=data, training=training)
        tiny_guides.save_guide(root / name, lora, made)
        models.append(lora.double())
        folders.append(root / name)
    soup(folders, root / "soup")
    return Kitchen(base, folders, models, load_base(str(folder), dtype="float32").model.double(), root / "soup")


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def kitchen(request, llama_folder, gpt2_folder, tmp_path_factory) -> Kitchen:
    folder = {"llama": llama_folder, "gpt2": gpt2_folder}[request.param]
    return cook(tmp_path_factory.mktemp(request.param), folder)


def run(*arguments: str) -> Any:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return end.value.code


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


@pytest.mark.parametrize("alpha", ALPHAS)
def test_at_any_preference_it_is_the_model_of_the_mixed_weights(kitchen, alpha):
    model = load_guide_model(kitchen.soup, load_base(str(kitchen.base.folder), dtype="float32")).double()
    with preference(model, torch.tensor(alpha, dtype=torch.float64)):
        found = logits(model)
    expected = logits(kitchen.mixed(alpha))
    assert (expected - logits(kitchen.plain)).abs().max() > 0.5
    assert torch.allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("i", range(3))
def test_at_one_objective_alone_it_is_that_guide(kitchen, i):
    model = load_guide_model(kitchen.soup, load_base(str(kitchen.base.folder), dtype="float32")).double()
    with preference(model, torch.eye(3, dtype=torch.float64)[i]):
        found = logits(model)
    assert torch.allclose(found, logits(kitchen.models[i]), atol=2e-5)


def test_rows_of_one_batch_are_soups_of_their_own(kitchen):
    weights = [dict(zip(NAMES, alpha, strict=True)) for alpha in ALPHAS]
    prompt = "I would be happy to"
    ids = kitchen.base.tokenizer(prompt)["input_ids"]
    with trimtab.load(kitchen.base, [kitchen.soup], config={"kv_cache_memory_gib": 0.1}) as engine:
        answers = engine.generate([prompt] * len(weights), guidance=weights, temperature=0, max_tokens=8)
    for alpha, answer in zip(ALPHAS, answers, strict=True):
        souped = kitchen.mixed(alpha)
        assert answer.token_ids == greedy(souped, ids, max_tokens=8, stop_ids=frozenset({2}))


def test_realigning_a_soup_follows_the_rule_of_policies(kitchen):
    weights = {"helpful": 0.3, "concise": 0.2}  # a pull of 0.5 at α = (0.6, 0, 0.4)
    ids = kitchen.base.tokenizer("the lazy dog")["input_ids"]
    with trimtab.load(kitchen.base, [kitchen.soup], config={"kv_cache_memory_gib": 0.1}) as engine:
        (answer,) = engine.generate("the lazy dog", guidance=weights, temperature=0, max_tokens=8)
    guide = OracleGuide(kitchen.mixed((0.6, 0.0, 0.4)), ids, 0.5, is_policy=True)
    assert answer.token_ids == greedy(kitchen.plain, ids, [guide], max_tokens=8, stop_ids=frozenset({2}))


def test_it_is_exported_at_one_preference_as_a_plain_lora(kitchen, tmp_path):
    made = export_lora(kitchen.soup, "helpful=0.1,harmless=0.7,concise=0.2", tmp_path / "fixed", consumer="vllm")
    model = load_guide_model(tmp_path / "fixed", load_base(str(kitchen.base.folder), dtype="float32")).double()
    assert torch.allclose(logits(model), logits(kitchen.mixed((0.1, 0.7, 0.2))), atol=2e-5)
    assert (made.kind, made.adapter, made.weight) == ("policy", "lora", 1.0)


def test_guide_json_says_what_it_is_made_of(kitchen):
    made, first = read_manifest(kitchen.soup), read_manifest(kitchen.folders[0])
    assert made.objective_names == NAMES
    assert (made.kind, made.adapter, made.weight, made.beta) == ("policy", "moslora", 1.0, first.beta)
    assert made.data is not None
    assert made.data.comparisons == 60
    assert made.data.files == ("helpful.jsonl", "harmless.jsonl", "concise.jsonl")
    assert made.data.labelled_by == "people"
    assert made.training["method"] == "soup"
    assert made.training["max_length"] == 103
    assert made.training["learning_rate"] == 0.1
    assert "seed" not in made.training
    assert made.training["rank"] == 4 + 2 + 5
    assert made.training["parts_data_sha256"] == "11111111, 22222222, 33333333"
    assert str(first.weights_sha256["adapter_model.safetensors"]) in made.training["parts_sha256"]


def test_the_card_of_a_soup_runs(llama_folder, tmp_path, monkeypatch, capsys):
    kitchen = cook(tmp_path, llama_folder)
    monkeypatch.chdir(kitchen.soup)
    blocks = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), flags=re.DOTALL)
    exec(blocks[1], {})
    assert float(capsys.readouterr().out) != 0


def test_a_soup_of_arms_is_an_arm(llama_folder, tmp_path):
    kitchen = cook(tmp_path, llama_folder, kind="arm", loras=LORAS[:2])
    assert read_manifest(kitchen.soup).kind == "arm"


def test_a_layer_that_one_part_leaves_alone_is_the_bases_there(llama_folder, tmp_path):
    loras = [{"target_modules": ["q_proj"]}, {"target_modules": ["down_proj"], "layers_to_transform": [1]}]
    kitchen = cook(tmp_path, llama_folder, loras=loras)
    model = load_guide_model(kitchen.soup, load_base(str(llama_folder), dtype="float32")).double()
    for alpha in [(0.5, 0.5), (1.0, 0.0)]:
        with preference(model, torch.tensor(alpha, dtype=torch.float64)):
            assert torch.allclose(logits(model), logits(kitchen.mixed(alpha)), atol=2e-5)


def test_the_command_writes_the_folder(kitchen, tmp_path, capsys):
    folders = [str(folder) for folder in kitchen.folders[:2]]
    assert run("soup", *folders, "--output-dir", str(tmp_path / "out")) == 0
    assert "--weights helpful=0.5,harmless=0.5" in capsys.readouterr().err
    trimtab.soup(kitchen.folders[:2], tmp_path / "again")
    for name in ("adapter_model.safetensors", "adapter_config.json", "guide.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert run("info", str(tmp_path / "out")) == 0
    assert run("soup", folders[0], "--output-dir", str(tmp_path / "one")) == 1
    assert "two guides or more" in capsys.readouterr().err


def test_each_objective_is_ranked_as_its_own_guide_ranks_it(llama_folder, tmp_path):
    kitchen = cook(tmp_path, llama_folder)
    rows = [Comparison(f"q {i}", f" yes {i * 7}", f" no, never {i}", dict.fromkeys(NAMES, Label.A)) for i in range(6)]
    souped = rank_preferences([kitchen.soup], rows, base=load_base(str(llama_folder), dtype="float32"))
    for folder, ranking in zip(kitchen.folders, souped, strict=True):
        alone, _ = rank_guide(folder, rows, base=load_base(str(llama_folder), dtype="float32"))
        found = ranking.report.to_dict()
        for key, value in alone.to_dict().items():
            assert found[key] == (pytest.approx(value, rel=1e-3) if isinstance(value, float) else value), key
    margins = [ranking.report.mean_margin for ranking in souped]
    assert len(set(margins)) == 3
    assert 0 not in margins


def _full(base: Base, folder: Path) -> Path:
    made = tiny_guides.manifest_for(base, "other", kind="policy", adapter="full")
    tiny_guides.save_guide(folder, copy.deepcopy(base.model), made, tokenizer=base.tokenizer)
    return folder


@pytest.mark.filterwarnings("ignore")  # PEFT warns of such options too
@pytest.mark.parametrize(
    ("options", "changes", "says"),
    [
        ({}, {"kind": "arm"}, "mix guides of one kind"),
        ({}, {"chat_template": "{{ messages }}"}, "different chat templates"),
        ({}, {"eos_token_id": 3}, "different tokens that end answers"),
        ({}, {"objective": "helpful"}, "'helpful'"),
        ({"use_dora": True}, {}, "sets 'use_dora'"),
        ({"lora_bias": True, "target_modules": ["q_proj"]}, {}, "sets 'lora_bias'"),
        ({"modules_to_save": ["lm_head"]}, {}, "sets 'modules_to_save'"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, {}, "lora_embedding"),
    ],
)
def test_what_cannot_be_mixed_is_refused(llama_folder, tmp_path, options, changes, says):
    base = load_base(str(llama_folder), dtype="float32")
    objective = changes.pop("objective", "other")
    first = tiny_guides.save_lora_guide(tmp_path / "a", base, objective="helpful", manifest={"kind": "policy"})
    made = tiny_guides.manifest_for(base, objective, kind="policy").model_copy(update=changes)
    tiny_guides.save_guide(tmp_path / "b", tiny_guides.random_lora(base.model, **options), made)
    with pytest.raises(ConfigError, match=says):
        soup([first, tmp_path / "b"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_guides_of_other_forms_are_refused(kitchen, gpt2_folder, llama_folder, tmp_path):
    one = kitchen.folders[0]
    if "gpt2" in str(kitchen.base.folder):
        other = tiny_guides.save_lora_guide(tmp_path / "l", llama_folder, manifest={"kind": "policy"})
        with pytest.raises(ConfigError, match="different bases"):
            soup([one, other], tmp_path / "out")
    with pytest.raises(ConfigError, match="two guides or more, and there is 1"):
        soup([one], tmp_path / "out")
    with pytest.raises(ConfigError, match="follows a preference already"):
        soup([one, kitchen.soup], tmp_path / "out")
    with pytest.raises(ConfigError, match="fully fine-tuned"):
        soup([one, _full(kitchen.base, tmp_path / "full")], tmp_path / "out")
    with pytest.raises(ConfigError, match="into the folder of one"):
        soup(kitchen.folders, one)
