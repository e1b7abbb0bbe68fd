"""``trimtab score``: log-ratios of each token and objective, the same as the engine's, with colours and without."""

from __future__ import annotations

import io
import json
import math
import re

import pytest
from rich.console import Console

import tiny_guides
import trimtab.cli.colours as colours
from engine.blends import save_conditioned
from trimtab.cli.main import main
from trimtab.engine import load
from trimtab.engine.results import TokenScores
from trimtab.errors import DataError
from trimtab.evaluation.attribution import Attribution, attribute
from trimtab.models import load_base
from trimtab.rewards.artifact import Objective, save_guide


@pytest.fixture(scope="module")
def guides(llama_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("guides")
    base = load_base(str(llama_folder), dtype="float32")
    tiny_guides.save_lora_guide(root / "manners", base)
    save_conditioned(base, root / "values", "moslora-text", k=2)
    both = {"objectives": (Objective(name="kind"), Objective(name="terse"))}
    manifest = tiny_guides.manifest_for(base).model_copy(update=both)
    save_guide(root / "mixture", tiny_guides.random_lora(base.model, seed=4), manifest)
    return [root / "manners", root / "values", root / "mixture"]


@pytest.fixture(scope="module")
def engine(llama_folder, guides):
    return load(llama_folder, guides, dtype="float32")


CHAT = [{"role": "user", "content": "hi"}]
WEIGHTS = {"polite": 1.0, "helpful": 0.5, "harmless": 0.25}


def _run(capsys, *arguments):
    code = 0
    try:
        main(["score", *map(str, arguments)])
    except SystemExit as leave:
        code = leave.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def _flags(llama_folder, guides):
    return ["--base", llama_folder, "--dtype", "float32", *(f for g in guides for f in ("--guide", g))]


def test_log_ratios_are_the_engines_scores(engine):
    (found,) = attribute(engine, [(CHAT, "Well,\nthank you ☃")], guidance=WEIGHTS, top=3)
    score = engine.score(CHAT, "Well,\nthank you ☃", guidance=WEIGHTS, by_objective=True)
    assert [one.token_id for one in found.scores] == score.token_ids
    whole = [(ours, text) for ours, text in zip(found.tokens, score.tokens, strict=True) if "\ufffd" not in text]
    assert [ours for ours, _ in whole] == [text for _, text in whole]
    assert "bytes:\\xe2" in "".join(found.tokens)  # one of the three bytes of the snowman
    assert [one.base_log_prob for one in found.scores] == pytest.approx(score.base, abs=1e-5)
    assert [one.log_prob for one in found.scores] == pytest.approx(score.combined, abs=1e-5)
    expected = {
        "polite": score.objectives["manners"]["polite"],
        "helpful": score.objectives["values"]["helpful"],
        "harmless": score.objectives["values"]["harmless"],
        "mixture": score.guides["mixture"],  # no objective of its alone
    }
    assert set(found.rows) == set(expected)
    for name, values in expected.items():
        ratios = [value - base for value, base in zip(values, score.base, strict=True)]
        assert found.rows[name] == pytest.approx(ratios, abs=1e-5), name
        assert found.totals[name] == pytest.approx(sum(ratios), abs=1e-4)
    top = found.to_dict()["tokens"][0]["top"]
    assert [len(top), top[0]["logprob"] >= top[1]["logprob"]] == [3, True]


def test_several_texts_at_a_time_are_each_alone(engine):
    texts = [(CHAT, "yes"), ("plain", [5, 6, 7]), (CHAT, "no, " * 90)]
    seen = []
    together = attribute(engine, texts, max_batch_size=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    for text, found in zip(texts, together, strict=True):
        (alone,) = attribute(engine, [text])
        assert [one.log_prob for one in alone.scores] == pytest.approx([one.log_prob for one in found.scores], abs=1e-5)
    assert together[1].response is None
    assert len(together[1].scores) == 3
    with pytest.raises(DataError, match="nothing to score"):
        attribute(engine, [(CHAT, "")], include_eos=False)


def test_json_has_the_servers_fields(capsys, llama_folder, guides, engine):
    weights = ",".join(f"{name}={weight}" for name, weight in WEIGHTS.items())
    code, out, err = _run(
        capsys, *_flags(llama_folder, guides), "--prompt", "hi", "--response", "Thanks", "--weights", weights,
        "--strength", 2, "--top", 2, "--json",
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(out)
    (expected,) = attribute(engine, [(CHAT, "Thanks")], guidance={n: 2 * w for n, w in WEIGHTS.items()}, top=2)
    assert found["weights"] == {"manners": 2.0, "values": 1.5, "mixture": 0.0}
    assert found["preferences"]["values"] == pytest.approx({"helpful": 2 / 3, "harmless": 1 / 3})
    token = found["tokens"][0]
    assert set(token) == {
        "token", "token_id", "logprob", "base_logprob", "kl", "guides", "objectives", "top", "base_top",
    }  # fmt: skip
    assert set(token["objectives"]) == {"polite", "helpful", "harmless"}
    for name, value in token["objectives"].items():
        assert value["log_ratio"] == pytest.approx(value["logprob"] - token["base_logprob"])
        assert value["log_ratio"] == pytest.approx(expected.rows[name][0], abs=1e-5)
    assert len(token["top"]) == len(token["base_top"]) == 2
    assert found["totals"]["log_ratio"] == pytest.approx(expected.totals, abs=1e-4)
    assert found["totals"]["kl"] > 0


def test_a_file_of_texts(capsys, llama_folder, guides, tmp_path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"id": "x", "prompt": "hi", "response": "yo"}\n\n{"prompt": "ho", "response": "no"}\n')
    code, out, err = _run(capsys, *_flags(llama_folder, guides[:1]), "--input", source, "--output", target)
    assert (code, out, "scores of 2 texts" in err) == (0, "", True)
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [(row["id"], row["response"]) for row in rows] == [("x", "yo"), (3, "no")]
    code, out, _ = _run(capsys, *_flags(llama_folder, guides[:1]), "--input", source)
    assert (code, "--- x" in out, "--- 3" in out) == (0, True, True)


def test_without_colours_there_are_numbers(capsys, llama_folder, guides):
    arguments = [*_flags(llama_folder, guides[:1]), "--response", "hi\tyou\n", "--raw", "--prompt", "So"]
    code, out, _ = _run(capsys, *arguments, "--no-include-eos")
    assert code == 0
    assert "\x1b" not in out
    assert "⇥" in out
    assert "log-ratio, polite" in out
    lines = [line.split() for line in out.splitlines() if re.match(r"\s+\d+ ", line)]
    assert all(re.fullmatch(r"[+-]\d+\.\d{3}", line[-1]) for line in lines)
    assert len(lines) >= 4
    code, out, _ = _run(capsys, *arguments, "--top", 2)
    assert "before" in out


def test_a_plain_base_has_log_probabilities_alone(capsys, llama_folder):
    code, out, err = _run(capsys, "--base", llama_folder, "--response", "hi")
    assert (code, "plain base" in err, "log-ratio, " in out) == (0, True, False)
    assert "log-probability, base" in out


def _found(**changes):
    scores = [
        TokenScores(1, -1.0, base_log_prob=-2.0, kl=0.1, objectives={"polite": -1.0, "terse": -2.5}),
        TokenScores(2, -1.0, base_log_prob=-2.0, kl=0.3, objectives={"polite": -3.0}),
    ]
    given = {"prompt": "", "response": "ab", "tokens": ["a", "b"], "scores": scores, "names": {}, "weights": {}}
    return Attribution(**{**given, "preferences": {}, **changes})


def test_by_hand():
    found = _found()
    assert found.rows["polite"] == [1.0, -1.0]
    assert found.rows["terse"][0] == -0.5
    assert math.isnan(found.rows["terse"][1])  # the guide does not know the second token
    assert found.to_dict()["totals"] == {
        "logprob": -2.0, "base_logprob": -4.0, "kl": pytest.approx(0.4), "log_ratio": {"polite": 0.0, "terse": None},
    }  # fmt: skip


def test_colours(monkeypatch):
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system="truecolor", width=100, highlight=False)
    monkeypatch.setattr(colours, "out", console)
    colours.show_attribution(_found(), title="one")
    text = file.getvalue()
    assert "--- one" in text
    assert "48;2;8;81;156ma" in text  # full blue: one nat above the base is the greatest here
    assert "48;2;179;88;6mb" in text  # full orange
    assert "log-ratio in nats" in text
    assert "Log-probabilities" not in text  # the table of numbers is for where there are no colours
    file.truncate(0)
    monkeypatch.setattr(colours, "out", Console(file=file, force_terminal=True, no_color=True, width=100))
    colours.show_attribution(_found())
    assert "48;2" not in file.getvalue()
    assert "Log-probabilities" in file.getvalue()


def test_the_scale_is_diverging_and_told_apart_in_grey():
    assert colours.scale_of([]) == 1.0
    assert colours.scale_of([0.01, math.nan]) == 0.1
    assert colours.scale_of([float(i) for i in range(1, 101)]) == 95.0
    assert colours.colour_of(0.01, 1.0).bgcolor is None
    assert colours.colour_of(math.nan, 1.0).bgcolor is None
    assert colours.colour_of(5.0, 1.0) == colours.colour_of(1.0, 1.0)
    assert colours.colour_of(0.3, 1.0).color.name == "#000000"
    assert colours.colour_of(1.0, 1.0).color.name == "#ffffff"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of --response TEXT and --input FILE; got neither"),
        (["--response", "x", "--input", "bad.jsonl"], "got both"),
        (["--input", "bad.jsonl", "--prompt", "x"], "--prompt goes with --response"),
        (["--input", "bad.jsonl"], "bad.jsonl:1 has no 'response'"),
        (["--input", "empty.jsonl"], "holds no answers"),
        (["--response", ""], "nothing to score"),
        (["--response", "x", "--top", "-1"], "top"),
        (["--response", "x", "--weights", "polite=1"], "no guide is loaded"),
        (["--response", "x" * 2000], "do not fit"),
    ],
)
def test_what_goes_wrong_is_one_line(capsys, monkeypatch, llama_folder, tmp_path, arguments, message):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "x"}\n')
    (tmp_path / "empty.jsonl").write_text("\n")
    monkeypatch.chdir(tmp_path)
    code, out, err = _run(capsys, "--base", llama_folder, *arguments)
    lines = [line for line in err.splitlines() if "plain base" not in line]
    assert (code, out, len(lines)) == (1, "", 1), err
    assert message in lines[0]
