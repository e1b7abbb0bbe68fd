"""``trimtab evaluate`` end to end on tiny models: what it writes, what it writes again, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock

import tiny
import tiny_guides
from engine.blends import save_conditioned
from evaluation.sweep_runs import evaluate, exit_code, read_lines, write_prompts
from trimtab.engine import load
from trimtab.evaluation.sweeps import generation
from trimtab.evaluation.sweeps.controls import corrected_ladder, matching_temperature
from trimtab.evaluation.sweeps.measuring import LADDER, kl_divergence, tempered_kl
from trimtab.models import encode_prompt, load_base


@pytest.fixture(scope="module")
def guide(llama_folder, tmp_path_factory):
    return tiny_guides.save_lora_guide(tmp_path_factory.mktemp("guides") / "manners", llama_folder, scale=0.4)


@pytest.fixture(scope="module")
def options(llama_folder, guide, tmp_path_factory):
    prompts = write_prompts(tmp_path_factory.mktemp("prompts"))
    return [
        "--base", llama_folder, "--guide", guide, "--dtype", "float32", "--prompts", prompts, "--max-tokens", 6,
        "--scorers", "length,distinct-1", "--kernels", "torch",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(options, tmp_path_factory):
    """One run with strengths 0, 1 and 2, two samples a prompt: everything that follows reads it or a copy of it."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    assert exit_code(*options, "--strengths", "0,1,2", "--n", 2, "--output-dir", folder) == 0
    return folder


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def written(monkeypatch):
    """Count the answers that are written, not read from the folder."""
    counts = []
    original = generation.write_answers

    def counting(*arguments, **keywords):
        counts.append(original(*arguments, **keywords))
        return counts[-1]

    monkeypatch.setattr("trimtab.evaluation.sweeps.run.write_answers", counting)
    return counts


def test_the_folder_holds_everything(finished):
    names = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    assert {"samples.jsonl", "tokens.jsonl", "metrics.json", "report.html", "config.yaml"} <= names
    assert {"plots/kl-length.png", "plots/kl-length.svg", "plots/length-distinct-1.svg"} <= names
    metrics = json.loads((finished / "metrics.json").read_text())
    kinds = [setting["kind"] for setting in metrics["settings"]]
    assert kinds[:3] == ["base", "guided", "guided"]
    assert set(kinds[3:]) == {"control"}
    samples = read_lines(finished / "samples.jsonl")
    assert len(samples) == len(metrics["settings"]) * 3 * 2
    assert set(samples[0]) >= {
        "key", "id", "prompt", "setting", "sample", "response", "token_ids", "finish_reason", "tokens", "seed",
        "scores", "diagnostics",
    }  # fmt: skip
    roles = {(role["kind"], role["of"]) for setting in metrics["settings"] for role in setting["roles"]}
    assert roles == {(kind, f"strength {s}") for kind in ("untrained", "temperature") for s in (1, 2)}
    assert (finished / "plots/kl-length.png").read_bytes().startswith(b"\x89PNG")


def test_the_numbers_follow_from_the_samples(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    samples = read_lines(finished / "samples.jsonl")
    for setting in metrics["settings"]:
        own = [s for s in samples if s["setting"] == setting["name"]]
        words = [len(s["response"].split()) for s in own]
        assert setting["scores"]["length"]["mean"] == pytest.approx(np.mean(words))
        kl = sum(s["diagnostics"]["kl"] * s["tokens"] for s in own) / sum(s["tokens"] for s in own)
        assert setting["kl"]["mean"] == pytest.approx(kl)
        assert setting["tokens"]["mean"] == pytest.approx(np.mean([len(s["token_ids"]) for s in own]))
        fluency = sum(s["diagnostics"]["base_logprob"] for s in own) / sum(s["tokens"] for s in own)
        assert setting["fluency"]["mean"] == pytest.approx(fluency)

    def by_prompt(name):
        scores = [[s["scores"]["distinct-1"] for s in samples if (s["setting"], s["id"]) == (name, i)] for i in "abc"]
        return np.mean(scores, axis=1)

    (row,) = [
        c for c in metrics["comparisons"]
        if (c["setting"], c["scorer"], c["role"]) == ("strength 2", "distinct-1", "untrained")
    ]  # fmt: skip
    difference = by_prompt("strength 2") - by_prompt(row["against"])
    assert row["difference"]["mean"] == pytest.approx(difference.mean())
    assert (row["win"], row["tie"], row["lose"]) == pytest.approx(
        tuple(float(np.mean(x)) for x in (difference > 0, difference == 0, difference < 0))
    )


def test_diagnostics_are_those_of_the_models(finished, llama_folder, guide):
    """KL over the whole vocabulary, computed here from bare transformers forwards."""
    samples = read_lines(finished / "samples.jsonl")
    base = load_base(str(llama_folder), dtype="float32")
    for setting, temperature, weight in (("strength 2", 1.0, 2.0), ("base at temperature 0.5", 0.5, 0.0)):
        sample = next(s for s in samples if s["setting"] == setting and s["id"] == "b")
        ids = encode_prompt(base.tokenizer, sample["prompt"])
        with load(llama_folder, [guide], dtype="float32") as engine:
            score = engine.score(sample["prompt"], sample["token_ids"], guidance={"polite": weight})
        assert sample["diagnostics"]["base_logprob"] == pytest.approx(sum(score.base), abs=1e-4)
        assert sample["diagnostics"]["guided_logprob"] == pytest.approx(sum(score.combined), abs=1e-4)
        if weight:
            continue
        with torch.no_grad():
            logits = base.model(torch.tensor([[*ids, *sample["token_ids"]]])).logits[0, len(ids) - 1 : -1]
        p, q = (logits / temperature).log_softmax(-1), logits.log_softmax(-1)
        kl = (p.exp() * (p - q)).sum(-1).mean()
        assert sample["diagnostics"]["kl"] == pytest.approx(float(kl), abs=1e-4)
        assert sample["diagnostics"]["top_changed"] == 0


def test_the_sharpened_base_is_the_untrained_guide(llama_folder, tmp_path):
    """At weight w an untrained guide gives softmax((1 + w) z); the control at τ/(1 + w) writes the very same text."""
    zero = tiny_guides.save_lora_guide(tmp_path / "zero", llama_folder, scale=0.0)
    with load(llama_folder, [zero], dtype="float32", config={"kernels": "torch"}) as engine:
        for seed in range(8):
            guided = engine.generate("hi", guidance={"zero": 1.0}, temperature=1.0, max_tokens=6, seed=seed)
            sharp = engine.generate("hi", guidance={"zero": 0.0}, temperature=0.5, max_tokens=6, seed=seed)
            assert guided[0].token_ids == sharp[0].token_ids


def test_an_untrained_guide_on_a_smaller_model_is_that_model(capsys, llama_folder, guide, tmp_path):
    """Its control draws from softmax(z_big + w·z_small), the small model bare; computed here by transformers alone."""
    large = tiny.save_base(
        tmp_path / "large", tiny.make_llama(vocab_size=320, hidden=48, seed=3), tiny.make_tokenizer()
    )
    code, _, err = evaluate(
        capsys, "--base", large, "--guide", guide, "--dtype", "float32", "--kernels", "torch", "--max-tokens", 6,
        "--prompts", write_prompts(tmp_path), "--scorers", "length", "--weights", "polite=2",
        "--output-dir", tmp_path / "run",
    )  # fmt: skip
    assert code == 0, err
    samples = read_lines(tmp_path / "run" / "samples.jsonl")
    control = next(s for s in samples if s["setting"].startswith("untrained"))
    logits = []
    for folder in (large, llama_folder):
        base = load_base(str(folder), dtype="float32")
        ids = encode_prompt(base.tokenizer, control["prompt"])
        with torch.no_grad():
            found = base.model(torch.tensor([[*ids, *control["token_ids"]]])).logits[0, len(ids) - 1 : -1]
        logits.append(found.log_softmax(-1))
    z = (logits[0] + 2 * logits[1]).log_softmax(-1)
    index = torch.tensor(control["token_ids"]).unsqueeze(-1)
    assert control["diagnostics"]["guided_logprob"] == pytest.approx(float(z.gather(-1, index).sum()), abs=1e-3)
    kl = (z.exp() * (z - logits[0])).sum(-1).mean()
    assert control["diagnostics"]["kl"] == pytest.approx(float(kl), abs=1e-3)


def test_the_untrained_control_of_a_policy_is_the_base_itself(capsys, llama_folder, guide, tmp_path):
    """It scores 0 everywhere; beside an ARM only the ARM's untrained form is left of both."""
    aligned = tiny_guides.save_lora_guide(
        tmp_path / "aligned", llama_folder, objective="brief", seed=3, manifest={"kind": "policy"}
    )
    code, _, err = evaluate(
        capsys, "--base", llama_folder, "--guide", guide, "--guide", aligned, "--dtype", "float32",
        "--kernels", "torch", "--max-tokens", 5, "--prompts", write_prompts(tmp_path), "--scorers", "length",
        "--alphas", "brief=1;brief=0.5,polite=0.5", "--output-dir", tmp_path / "run",
    )  # fmt: skip
    assert code == 0, err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    untrained = {role["of"]: s for s in metrics["settings"] for role in s["roles"] if role["kind"] == "untrained"}
    guided = [s["name"] for s in metrics["settings"] if s["kind"] == "guided"]
    assert len(guided) == 2
    (other,) = untrained
    assert "polite" in other
    assert untrained[other]["temperature"] == pytest.approx(1 / 1.5)
    assert any("untrained policy" in note for note in metrics["notes"])
    roles = {(c["setting"], c["role"]) for c in metrics["comparisons"]}
    assert {(name, "base") for name in guided} <= roles
    assert (guided[0], "untrained") not in roles
    assert (guided[1], "untrained") in roles


def test_a_killed_run_goes_on(capsys, options, run, written):
    """Without the end of its file, and with half a line at it, only what is missing is written."""
    before = (run / "samples.jsonl").read_text()
    metrics = json.loads((run / "metrics.json").read_text())
    lines = before.splitlines(keepends=True)
    (run / "samples.jsonl").write_text("".join(lines[:-5]) + lines[-5][:40])
    (run / "report.html").unlink()
    code, _, err = evaluate(capsys, *options, "--strengths", "0,1,2", "--n", 2, "--output-dir", run)
    assert code == 0
    assert sum(written) == 5
    assert (run / "samples.jsonl").read_text() == before
    assert (run / "report.html").exists()
    again = json.loads((run / "metrics.json").read_text())
    assert "1 damaged lines" in err
    for name in ("settings", "comparisons", "verdicts"):
        assert again[name] == metrics[name]


def test_other_scorers_write_no_answers_and_another_setting_only_its_own(capsys, options, run, written):
    others = ["repetition" if before == "--scorers" else a for before, a in zip(["", *options], options)]  # noqa: B905
    code, out, _ = evaluate(capsys, *others, "--strengths", "1,2", "--n", 2, "--output-dir", run, "--json")
    assert (code, sum(written)) == (0, 0)
    metrics = json.loads(out)
    assert [scorer["spec"] for scorer in metrics["scorers"]] == ["repetition"]
    written.clear()
    code, out, _ = evaluate(
        capsys, *options, "--strengths", "1,3", "--n", 2, "--no-controls", "--output-dir", run, "--json"
    )
    assert (code, sum(written)) == (0, 6)
    assert any("NO CONTROLS" in note for note in json.loads(out)["notes"])
    kept = read_lines(run / "cache" / "samples.jsonl")
    assert "strength 2" in {record["setting"] for record in kept}
    written.clear()
    evaluate(capsys, *options, "--strengths", "1,2", "--n", 2, "--output-dir", run)
    assert sum(written) == 0


def test_a_scorer_that_is_the_guide_is_refused_unless_forced(capsys, options, guide, tmp_path):
    arguments = [*options, "--limit", 1, "--no-controls", "--output-dir", tmp_path / "run"]
    arguments[arguments.index("--scorers") + 1] = f"length,implicit:{guide}"
    code, out, err = evaluate(capsys, *arguments)
    assert (code, out) == (1, "")
    assert "is the guide 'manners' itself" in err
    assert "run with --scorers length; " in err
    assert "--force" in err
    assert not (tmp_path / "run").exists()
    code, out, _ = evaluate(capsys, *arguments, "--force", "--json")
    metrics = json.loads(out)
    assert code == 0
    assert "is the guide 'manners' itself" in metrics["scorers"][1]["dependent"]
    assert {v["verdict"] for v in metrics["verdicts"] if v["scorer"].startswith("implicit")} == {"judges itself"}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "FORCED" in page
    assert "NOT INDEPENDENT" in page


def test_methods_and_a_grid_from_a_file(capsys, llama_folder, tmp_path):
    save_conditioned(load_base(str(llama_folder), dtype="float32"), tmp_path / "uni", "moslora-text")
    config = {
        "base": str(llama_folder), "guide": [str(tmp_path / "uni")], "dtype": "float32", "max_tokens": 4,
        "prompts": str(write_prompts(tmp_path)), "output_dir": str(tmp_path / "run"),
        "scorers": "length,concise,distinct-1", "alphas": "helpful=1;harmless=1;helpful=0.5,harmless=0.5",
        "front": {"helpful": "length", "harmless": "distinct-1"},
        "methods": [
            {"name": "asked", "system": "Be polite."},
            {"name": "best of 3", "best_of": 3, "scorer": "length"},
            {"name": "pull", "weights": {"helpful": 1.5}, "temperature": 0.7},
        ],
    }  # fmt: skip
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    code, out, err = evaluate(capsys, "--config", tmp_path / "c.yaml", "--json")
    assert code == 0, err
    metrics = json.loads(out)
    names = [setting["name"] for setting in metrics["settings"] if setting["kind"] != "control"]
    assert names == [
        "base", "helpful 1, harmless 0, concise 0", "helpful 0, harmless 1, concise 0",
        "helpful 0.5, harmless 0.5, concise 0", "asked", "best of 3", "pull",
    ]  # fmt: skip
    by_name = {setting["name"]: setting for setting in metrics["settings"]}
    samples = read_lines(tmp_path / "run" / "samples.jsonl")
    assert next(s for s in samples if s["setting"] == "asked")["prompt"][0] == {
        "role": "system",
        "content": "Be polite.",
    }
    base, best = ([s for s in samples if s["setting"] == name] for name in ("base", "best of 3"))
    assert all(b["scores"]["length"] >= a["scores"]["length"] for a, b in zip(base, best, strict=True))
    assert by_name["best of 3"]["kl_estimator"] == "upper bound for best of n"
    bound = np.log(3) - 2 / 3
    assert best[0]["diagnostics"]["kl"] == pytest.approx(bound / best[0]["tokens"])
    verdicts = {(v["setting"], v["scorer"]): v["verdict"] for v in metrics["verdicts"]}
    assert verdicts["best of 3", "length"] == "judges itself"
    assert any("concise" not in note and "No hypervolume" in note for note in metrics["notes"]) is False
    front = metrics["fronts"]
    assert front["measured_by"] == {"helpful": "length", "harmless": "distinct-1", "concise": "concise"}
    assert front["families"]["guided"]["hypervolume"]["value"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strengths", "0"], "only the base to evaluate"),
        (["--strengths", "1,x"], "strengths"),
        (["--scorers", "lenght"], "Did you mean 'length'"),
        (["--alphas", "grid:11"], "grid between two objectives"),
        (["--alphas", "grd"], "cannot be read"),
        (["--weights", "polit=1"], "Did you mean 'polite'"),
        (["--front", "kind=length"], "no objective 'kind'"),
        (["--front", "polite=sentiment"], "not among the scorers"),
        (["--limit", "0"], "limit"),
        (["--output-dir", "FOREIGN"], "holds files that are not of"),
    ],
)
def test_what_goes_wrong_is_one_line_and_writes_nothing(capsys, options, tmp_path, arguments, message):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "x").touch()
    arguments = [tmp_path / "foreign" if a == "FOREIGN" else a for a in arguments]
    code, out, err = evaluate(capsys, *options, "--output-dir", tmp_path / "run", *arguments)
    assert (code, out) == (1, "")
    assert message in err
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("strenghts: [1]", "Unknown option 'strenghts' in .*Did you mean 'strengths'"),
        ("methods: [{name: a, best_off: 2}]", "unknown key 'best_off' in a method. Did you mean 'best_of'"),
        ("methods: [{name: a, best_of: 2}]", "best_of and scorer belong together"),
        ("methods: [{name: base, system: x}]", "the name 'base' is taken"),
        ("methods: [x]", "a method is a mapping"),
    ],
)
def test_a_bad_config_is_one_line(capsys, options, tmp_path, content, message):
    (tmp_path / "c.yaml").write_text(content)
    code, _, err = evaluate(capsys, *options, "--output-dir", tmp_path / "run", "--config", tmp_path / "c.yaml")
    assert code == 1
    assert re.search(message, err), err


def test_what_was_picked_is_an_answer_of_the_base_too(capsys, options, tmp_path):
    """A run that goes on finds the base's own KL of an answer that best-of-n picked as well, and not its bound."""
    (tmp_path / "c.yaml").write_text("methods: [{name: best, best_of: 2, scorer: length}]")
    asked = [*options, "--config", tmp_path / "c.yaml", "--output-dir", tmp_path / "run", "--json"]
    first, second = (json.loads(evaluate(capsys, *asked)[1]) for _ in range(2))
    assert first["settings"] == second["settings"]
    assert second["written"] == 0
    assert second["settings"][0]["kl"]["mean"] == 0.0


def test_one_process_at_a_time(capsys, options, run):
    with FileLock(str(run / ".lock")):
        code, _, err = evaluate(capsys, *options, "--output-dir", run)
    assert code == 1
    assert "Another process writes" in err


def test_dry_run_and_list(capsys, options, tmp_path):
    code, out, _ = evaluate(capsys, *options, "--strengths", "1", "--dry-run", "--json")
    plan = json.loads(out)
    assert (code, plan["answers"], plan["answers_of_equal_kl_controls"]) == (0, 9, 3)
    assert plan["seconds_at_most"] > 0
    code, out, _ = evaluate(capsys, "--list-scorers", "--json")
    assert code == 0
    assert "length" in {row["usage"].split("[")[0] for row in json.loads(out)}


def test_kl_to_a_sharper_self_is_kl():
    """The two ways to the same number, with a token that is impossible."""
    z = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    z[:, 3] = -float("inf")
    for share in (0.1, 0.5, 1.0, 2.0):
        assert torch.allclose(tempered_kl(z, share), kl_divergence(z / share, z), atol=1e-5)
    assert torch.equal(kl_divergence(z, z), torch.zeros(5, dtype=torch.float64))
    by_hand = kl_divergence(torch.tensor([[0.0, 0.0]]), torch.tensor([[np.log(3.0), 0.0]]))
    assert float(by_hand[0]) == pytest.approx(0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25))


def test_the_temperature_of_a_kl_is_found():
    """With KL(T) = (1/T − 1)/10 on the ladder, KL 0.2 is at T = 1/3; beyond the ladder the last rung stands in."""
    ladder = [(1 / share - 1) / 10 for share in LADDER]
    temperature, reached = matching_temperature(0.2, ladder, 1.0)
    assert reached
    assert temperature == pytest.approx(1 / 3, rel=0.03)
    assert matching_temperature(99.0, ladder, 2.0) == (pytest.approx(2.0 * LADDER[0]), False)
    assert matching_temperature(0.0, ladder, 1.0)[0] == pytest.approx(1.0, rel=0.01)
    halved = corrected_ladder(ladder, {0.5: 0.05}, 1.0)
    assert np.interp(np.log(0.5), np.log(LADDER), halved) == pytest.approx(0.05, rel=0.15)
    assert halved[-1] == ladder[-1] == 0.0
