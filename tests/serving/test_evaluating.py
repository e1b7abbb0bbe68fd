"""Our own server as a judge's endpoint, and the same token scores over HTTP as on the command line."""

from __future__ import annotations

import json

import pytest

import tiny
from evaluation.sweep_runs import evaluate, write_prompts
from serving.conftest import serving
from trimtab.cli.main import main
from trimtab.engine import load
from trimtab.evaluation.attribution import attribute
from trimtab.evaluation.judges import AnswerPair, JudgeConfig, judge_pairs

PAIRS = [AnswerPair("one", "Say hi.", "Hi there.", "No."), AnswerPair("two", "And now?", "Well", "Bye, dear")]


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """A server whose model reads enough to be asked about two answers."""
    folder = tiny.save_base(tmp_path_factory.mktemp("base"), tiny.make_llama(context=2048), tiny.make_tokenizer())
    with load(folder, dtype="float32") as engine, serving(engine, presets={}) as live:
        yield live


def test_our_own_server_is_a_judge(judge, tmp_path):
    """A tiny random model is no judge of anything, but by the probabilities of A and B it has a verdict."""
    config = JudgeConfig(judge_url=f"{judge.url}/v1", judge_model=judge.model, verdict="logprobs", concurrency=2)
    report, judged = judge_pairs(PAIRS, config, cache=tmp_path / "cache.jsonl")
    assert report.wins + report.ties + report.losses + report.unjudged == 2
    for pair in judged:
        assert pair.problem or all(0 <= value <= 1 for value in pair.preferences)
    again, _ = judge_pairs(PAIRS, config, cache=tmp_path / "cache.jsonl")
    assert again == report
    replies = [json.loads(line)["reply"] for line in (tmp_path / "cache.jsonl").read_text().splitlines()]
    assert len(replies) == 4
    assert all(len(reply["logprobs"]["content"][0]["top_logprobs"]) == 20 for reply in replies)
    assert judge.idle()


def test_a_judge_in_words(judge, capsys, tmp_path):
    for name, answers in (("a", [pair.a for pair in PAIRS]), ("b", [pair.b for pair in PAIRS])):
        rows = [{"id": p.id, "prompt": p.prompt, "response": text} for p, text in zip(PAIRS, answers, strict=True)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [
        "judge", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), "--judge-url", f"{judge.url}/v1",
        "--judge-model", judge.model, "--max-reply-tokens", "4", "--no-use-cache", "--yes", "--json",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as leave:
        main(arguments)
    assert leave.value.code == 0
    assert json.loads(capsys.readouterr().out)["judge"] == judge.model
    assert judge.idle()


def test_our_own_server_judges_a_run(judge, capsys, llama_folder, guide_folders, tmp_path):
    """The settings of ``trimtab evaluate`` compared by a model that ``trimtab serve`` serves."""
    prompts = write_prompts(tmp_path)
    code, out, err = evaluate(
        capsys, "--base", llama_folder, "--guide", guide_folders[0], "--dtype", "float32", "--prompts", prompts,
        "--max-tokens", 4, "--limit", 2, "--scorers", "length", "--strengths", 1, "--output-dir", tmp_path / "run",
        "--judge-url", f"{judge.url}/v1", "--judge-model", judge.model, "--judge-verdict", "logprobs", "--yes",
        "--json",
    )  # fmt: skip
    assert code == 0, err
    rows = json.loads(out)["judge"]["comparisons"]
    assert [row["role"] for row in rows] == ["base", "untrained"]
    assert all(row["wins"] + row["ties"] + row["losses"] + row["unjudged"] == row["pairs"] == 2 for row in rows)
    assert judge.idle()


def test_the_playgrounds_numbers_are_those_of_score(client, server):
    chat = [{"role": "user", "content": "hi"}]
    weights = {"polite": 1.2, "helpful": 0.5, "harmless": 0.25}
    body = {
        "model": server.model,
        "messages": chat,
        "temperature": 0,
        "max_tokens": 6,
        "guidance": {"weights": weights, "rewards": True, "top": 2},
    }
    answer = client.post("/v1/chat/completions", json=body).json()
    told = answer["choices"][0]["guidance"]["tokens"]
    ids = [token["token_id"] for token in told]
    (found,) = attribute(server.engine, [(chat, ids)], guidance=weights, top=2)
    own = found.to_dict()["tokens"]
    assert [set(token) for token in own] == [set(token) for token in told]
    for ours, theirs in zip(own, told, strict=True):
        assert {name: ours[name] for name in ("token", "token_id")} == {n: theirs[n] for n in ("token", "token_id")}
        for name in ("logprob", "base_logprob", "kl"):
            assert ours[name] == pytest.approx(theirs[name], abs=1e-4)
        assert set(ours["objectives"]) == set(theirs["objectives"]) == {"polite", "helpful", "harmless"}
        for name, values in ours["objectives"].items():
            assert values == pytest.approx(theirs["objectives"][name], abs=1e-4)
        for name in ("top", "base_top"):
            assert [item["token_id"] for item in ours[name]] == [item["token_id"] for item in theirs[name]]
            assert set(ours[name][0]) == set(theirs[name][0])
