"""A suite inside ``trimtab evaluate``: every setting's answers, later turns too, in the files of the suite's tool."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import yaml

import tiny_guides
from evaluation.sweep_runs import evaluate, read_lines
from trimtab.engine import load
from trimtab.evaluation.sweeps.suites import file_names

ALPACA = [
    {"dataset": "helpful_base", "instruction": "Name a fruit.", "output": "Plum.", "generator": "reference"},
    {"dataset": "koala", "instruction": " Say hi twice ", "output": "hi hi", "generator": "reference"},
]
MT = [
    {"question_id": 82, "category": "math", "turns": ["1+1?", "And times 3?"]},
    {"question_id": 81, "category": "writing", "turns": ["Write a line.", "Shorter.", "z " * 500]},
    {"question_id": 90, "category": "other", "turns": ["One turn."]},
]


@pytest.fixture(scope="module")
def guide(llama_folder, tmp_path_factory):
    return tiny_guides.save_lora_guide(tmp_path_factory.mktemp("guides") / "manners", llama_folder, scale=0.4)


@pytest.fixture
def options(llama_folder, guide, tmp_path):
    (tmp_path / "alpaca_eval.json").write_text(json.dumps(ALPACA))
    (tmp_path / "question.jsonl").write_text("".join(json.dumps(row) + "\n" for row in MT))
    return [
        "--base", llama_folder, "--guide", guide, "--dtype", "float32", "--kernels", "torch", "--max-tokens", 5,
        "--scorers", "length", "--output-dir", tmp_path / "run",
    ]  # fmt: skip


def test_alpaca_eval_reads_every_settings_file(capsys, options, tmp_path):
    asked = [*options, "--suite", "alpaca-eval", "--prompts", tmp_path / "alpaca_eval.json"]
    code, out, err = evaluate(capsys, *asked, "--strengths", "1,2", "--json")
    assert code == 0, err
    metrics = json.loads(out)
    samples = read_lines(tmp_path / "run" / "samples.jsonl")
    files = metrics["suite"]["files"]
    assert files["strength 1"] == "suites/alpaca_eval/strength-1.json"
    assert list(files) == [setting["name"] for setting in metrics["settings"]]
    for name, file in files.items():
        outputs = pd.read_json(tmp_path / "run" / file)
        assert list(outputs["generator"].unique()) == [name]
        assert list(outputs["instruction"]) == [row["instruction"] for row in ALPACA]
        own = [s["response"].strip() for s in samples if s["setting"] == name]
        assert list(outputs["output"]) == own
    assert metrics["suite"]["turns"] == metrics["suite"]["questions"] == 2
    # A setting that is gone leaves no file behind that a tool would read.
    code, out, err = evaluate(capsys, *asked, "--strengths", "2", "--no-controls")
    assert {path.name for path in (tmp_path / "run/suites/alpaca_eval").iterdir()} == {"base.json", "strength-2.json"}
    assert "For alpaca_eval's own tool, a file a setting:" in out


def test_the_second_turn_follows_the_settings_own_answer(capsys, options, llama_folder, guide, tmp_path):
    (tmp_path / "c.yaml").write_text(
        yaml.safe_dump({"methods": [{"name": "Best, of 2", "best_of": 2, "scorer": "length", "system": "Be kind."}]})
    )
    asked = [
        *options, "--suite", "mt_bench", "--prompts", tmp_path / "question.jsonl", "--n", 2, "--strengths", 2,
        "--config", tmp_path / "c.yaml",
    ]  # fmt: skip
    code, out, err = evaluate(capsys, *asked, "--dry-run", "--json")
    assert json.loads(out)["answers_of_later_turns"] > 0
    code, out, err = evaluate(capsys, *asked, "--json")
    assert code == 0, err
    metrics = json.loads(out)
    samples = read_lines(tmp_path / "run" / "samples.jsonl")
    assert len(samples) == len(metrics["settings"]) * 3 * 2
    assert any("not at the suite's temperatures" in note for note in metrics["notes"])
    assert any("Scores and judgements are of the answers to first turns" in note for note in metrics["notes"])
    later = read_lines(tmp_path / "run" / "cache" / "samples.jsonl")
    for name in ("strength 2", "base", "Best, of 2"):
        rows = {row["question_id"]: row for row in read_lines(tmp_path / "run" / metrics["suite"]["files"][name])}
        assert sorted(rows) == [81, 82, 90]
        assert {row["model_id"] for row in rows.values()} == {name}
        assert [len(choice["turns"]) for choice in rows[82]["choices"]] == [2, 2]
        assert [choice["turns"][2] for choice in rows[81]["choices"]] == ["", ""]  # fills the context
        assert [len(choice["turns"]) for choice in rows[90]["choices"]] == [1, 1]
        for sample, choice in enumerate(rows[82]["choices"]):
            (first,) = [s for s in samples if (s["setting"], s["id"], s["sample"]) == (name, 82, sample)]
            assert choice["turns"][0] == first["response"].strip()
            chat = [*first["prompt"], {"role": "assistant", "content": choice["turns"][0]}]
            chat.append({"role": "user", "content": "And times 3?"})
            found = [s["response"].strip() for s in later if s["prompt"] == chat and s["setting"] == name]
            assert choice["turns"][1] in found
            if name == "Best, of 2":
                assert len(found) == 2
                assert len(choice["turns"][1].split()) == max(len(text.split()) for text in found)
    assert metrics["suite"]["no_room"] == 2 * len(metrics["settings"])

    # The engine itself gives the same second answer to the same conversation.
    record = next(s for s in later if s["setting"] == "strength 2" and len(s["prompt"]) == 3)
    with load(llama_folder, [guide], dtype="float32", config={"kernels": "torch"}) as engine:
        again = engine.generate(record["prompt"], guidance={"polite": 2.0}, max_tokens=5, seed=record["seed"])
    assert again[0].token_ids == record["token_ids"]

    # Nothing is written twice, later turns included.
    code, out, err = evaluate(capsys, *asked, "--json")
    again = json.loads(out)
    assert again["written"] == 0
    assert again["settings"] == metrics["settings"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "alpaca", "--prompts", "alpaca_eval.json"], "Did you mean 'alpaca_eval'"),
        (["--suite", "alpaca_eval", "--prompts", "alpaca_eval.json", "--n", 2], "leave --n out"),
        (["--suite", "mt_bench", "--prompts", "question.jsonl", "--raw"], "leave --raw out"),
        (["--suite", "mt_bench", "--prompts", "alpaca_eval.json"], "not an object"),
        (["--suite", "mt_bench"], "Give --prompts FILE"),
    ],
)
def test_what_goes_wrong_is_one_line(capsys, monkeypatch, options, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = evaluate(capsys, *options, *arguments)
    assert (code, out, err.count("\n")) == (1, "", 1), err
    assert message in err
    assert not (tmp_path / "run").exists()


def test_file_names_are_names_of_files():
    names = ["base", "Base", "helpful 0.5, harmless 0.5", "../../x", "…", "a/b", "a b"]
    found = file_names(names)
    assert list(found) == names
    assert [found[name] for name in names] == [
        "base", "Base-2", "helpful-0.5-harmless-0.5", "x", "setting", "a-b", "a-b-2",
    ]  # fmt: skip
