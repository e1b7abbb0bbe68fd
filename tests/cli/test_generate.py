"""``trimtab generate`` as a user runs it: what is written where, and one line for each way to get it wrong."""

from __future__ import annotations

import gzip
import json
import re

import pytest

import tiny_guides
from engine.blends import save_conditioned
from trimtab.cli.main import main
from trimtab.cli.steering import parse_weights
from trimtab.engine import load
from trimtab.errors import GuidanceError
from trimtab.models import load_base


@pytest.fixture(scope="module")
def guide(llama_folder, tmp_path_factory):
    return tiny_guides.save_lora_guide(tmp_path_factory.mktemp("guides") / "manners", llama_folder)


def _run(capsys, *arguments):
    code = 0
    try:
        main(["generate", *map(str, arguments)])
    except SystemExit as leave:
        code = leave.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_one_prompt_prints_its_answer_alone(capsys, llama_folder, guide):
    options = ["--base", llama_folder, "--guide", guide, "--dtype", "float32", "--max-tokens", 5, "--temperature", 0]
    code, out, _ = _run(
        capsys, *options, "--prompt", "hi", "--weights", "polite=2", "--strength", "0.5", "--system", "be"
    )
    engine = load(llama_folder, [guide], dtype="float32")
    chat = [{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}]
    expected = engine.generate(chat, guidance={"manners": 1.0}, temperature=0, max_tokens=5)
    assert (code, out) == (0, expected[0].text + "\n")
    _, out, _ = _run(capsys, *options, "--prompt", "hi", "--raw", "--json")
    assert json.loads(out)["response"] == engine.generate("hi", temperature=0, max_tokens=5)[0].text


@pytest.mark.parametrize("method", ["moslora-text", "pblora"])
def test_one_guide_for_several_objectives(capsys, llama_folder, tmp_path, method):
    save_conditioned(load_base(str(llama_folder), dtype="float32"), tmp_path / "uni", method)
    options = ["--base", llama_folder, "--guide", tmp_path / "uni", "--dtype", "float32", "--max-tokens", 5, "--raw"]
    asked = ["--temperature", 0, "--prompt", "hi", "--weights", "helpful=1.4,harmless=0.6", "--strength", 0.5]
    code, out, err = _run(capsys, *options, *asked, "--json")
    answer = json.loads(out)
    expected = load(llama_folder, [tmp_path / "uni"], dtype="float32").generate(
        "hi", guidance={"helpful": 0.7, "harmless": 0.3}, temperature=0, max_tokens=5
    )[0]
    assert (code, answer["response"], answer["weights"]) == (0, expected.text, {"uni": 1.0})
    assert answer["preferences"]["uni"] == pytest.approx({"helpful": 0.7, "harmless": 0.3, "concise": 0.0})
    assert "Steering: uni=1 (helpful 0.7, harmless 0.3)." in err
    code, out, err = _run(capsys, *options, "--prompt", "hi", "--weights", "helpful=1,harmless=-1")
    assert (code, out) == (1, "")
    assert re.search(r"Error: The weight of 'harmless' is -1, but .*\n$", err)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_file_of_prompts(capsys, llama_folder, guide, tmp_path, suffix):
    rows = [{"id": "a-1", "prompt": "hi"}, {"prompt": [{"role": "user", "content": "yo"}], "other": 1}]
    text = "".join(json.dumps(row) + "\n\n" for row in rows)
    source, target = tmp_path / f"in.jsonl{suffix}", tmp_path / f"out.jsonl{suffix}"
    source.write_bytes(gzip.compress(text.encode()) if suffix else text.encode())
    code, out, err = _run(
        capsys, "--base", llama_folder, "--guide", guide, "--input", source, "--output", target, "--n", 2, "--seed", 7,
        "--max-tokens", 4, "--stop", "zz", "--strength", 2,
    )  # fmt: skip
    assert (code, out) == (0, "")
    assert "Wrote 4 answers" in err
    content = target.read_bytes()
    answers = [json.loads(line) for line in (gzip.decompress(content) if suffix else content).decode().splitlines()]
    assert [(a["id"], a["sample"], a["sampling"]["seed"]) for a in answers] == [
        ("a-1", 0, 7), ("a-1", 1, 8), (3, 0, 9), (3, 1, 10),
    ]  # fmt: skip
    assert answers[0]["prompt"] == [{"role": "user", "content": "hi"}]
    assert answers[0]["weights"] == {"manners": 2.0}
    assert answers[0]["strength"] == 2.0
    assert answers[0]["sampling"]["stop"] == ["zz"]
    assert list(tmp_path.glob(".*")) == []


def test_without_a_guide_it_says_so(capsys, llama_folder):
    code, _, err = _run(capsys, "--base", llama_folder, "--prompt", "x", "--max-tokens", 1)
    assert code == 0
    assert "plain base" in err


def test_a_config_file_gives_the_same_options(capsys, llama_folder, guide, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(f"base: {llama_folder}\nguide: [{guide}]\nmax_tokens: 3\nseed: 1\nprompt: x\nstop: [q]\n")
    _, out, _ = _run(capsys, "--config", config, "--json", "--seed", 5)
    answer = json.loads(out)
    assert (answer["sampling"]["seed"], answer["sampling"]["max_tokens"]) == (5, 3)


FILES = {
    "empty.jsonl": "\n",
    "bad.jsonl": '{"prompt": "x"}\n{"prompt": \n',
    "list.jsonl": "[1]\n",
    "noprompt.jsonl": '{"text": "x"}\n',
    "turns.jsonl": '{"prompt": [{"role": "user"}]}\n',
    "bad.jsonl.gz": "not gzip",
}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "empty.jsonl"], r"empty\.jsonl holds no prompts"),
        (["--input", "bad.jsonl"], r"bad\.jsonl:2 is not JSON"),
        (["--input", "list.jsonl"], r"list\.jsonl:1 is not an object"),
        (["--input", "noprompt.jsonl"], "with a 'prompt'"),
        (["--input", "turns.jsonl"], "list of turns"),
        (["--input", "bad.jsonl.gz"], "cannot be read"),
        (["--input", "missing.jsonl"], "No such file"),
        (["--input", "."], "it is a folder"),
        ([], "one of --prompt TEXT and --input FILE; got neither"),
        (["--prompt", "x", "--input", "empty.jsonl"], "got both"),
        (["--prompt", "x", "--raw", "--system", "y"], "--system needs a chat"),
        (["--prompt", "x", "--weights", "polite"], "NAME=NUMBER"),
        (["--prompt", "x", "--weights", "polite=nan"], "weight of 'polite' is nan"),
        (["--prompt", "x", "--strength", "inf"], "strength is inf"),
        (["--prompt", "x", "--temperature", "-1"], "temperature"),
        (["--prompt", "x", "--top-p", "2"], "top_p.*got 2"),
        (["--prompt", "x", "--output", "nowhere/out.jsonl"], "cannot be written"),
        (["--prompt", "x", "--output", "."], "it is a folder"),
        (["--prompt", "x", "--guide", "nowhere"], "no guide folder 'nowhere'"),
        (["--prompt", "x", "--guide", "GUIDE", "--weights", "polit=1"], "Did you mean 'polite'"),
        (["--prompt", "x", "--guide", "GUIDE", "--output", "out.jsonl", "--guide-base", "z=y"], "no guide 'z'"),
        (["--prompt", "x" * 600], "reads at most 512"),
    ],
)
def test_what_goes_wrong_is_one_line(capsys, monkeypatch, llama_folder, guide, tmp_path, arguments, message):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    arguments = [guide if a == "GUIDE" else a for a in arguments]
    code, out, err = _run(capsys, "--base", llama_folder, *arguments)
    lines = [line for line in err.splitlines() if "plain base" not in line]
    assert (code, out, len(lines)) == (1, "", 1), err
    assert re.search(message, lines[0]), lines[0]
    assert lines[0].startswith("Error: ")
    assert sorted(tmp_path.iterdir()) == before


def test_weights_are_parsed():
    assert parse_weights("a=1, b=-2.5,") == {"a": 1.0, "b": -2.5}
    assert parse_weights(None) == {}
    for bad in ("a", "=1", "a=b", "a=1,a=2"):
        with pytest.raises(GuidanceError):
            parse_weights(bad)
