"""A judge inside ``trimtab evaluate``: whom it is asked about, what comes of it, what is refused, what remains."""

from __future__ import annotations

import json
import shutil

import pytest

import tiny_guides
import trimtab.evaluation.judges.endpoint as endpoint_module
from evaluation.sweep_runs import evaluate, exit_code, read_lines, write_prompts
from evaluation_stub import Stub, shown
from trimtab.errors import ConfigError
from trimtab.evaluation.judges import AnswerPair, JudgeConfig, JudgedPair, JudgeReport, ask_about, judge_dependence
from trimtab.evaluation.sweeps.judge_options import JudgeFlags, judge_of
from trimtab.evaluation.sweeps.verdicts import judge_verdict

KEY = "sk-secret-0123456789"


def longest(body):
    a, b = shown(body)
    return f"Because.\nVerdict: {'A' if len(a) > len(b) else 'B' if len(b) > len(a) else 'tie'}"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(endpoint_module, "_LONGEST_PAUSE", 0.02)


@pytest.fixture(scope="module")
def guide(llama_folder, tmp_path_factory):
    return tiny_guides.save_lora_guide(tmp_path_factory.mktemp("guides") / "manners", llama_folder, scale=0.4)


@pytest.fixture(scope="module")
def options(llama_folder, guide, tmp_path_factory):
    prompts = write_prompts(tmp_path_factory.mktemp("prompts"))
    return [
        "--base", llama_folder, "--guide", guide, "--dtype", "float32", "--prompts", prompts, "--max-tokens", 6,
        "--scorers", "length", "--kernels", "torch", "--strengths", "1,2", "--n", 2, "--judge-model", "org/Judge",
        "--judge-retries", 0, "--judge-samples", 2, "--yes",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def answered(options, tmp_path_factory):
    """The same run without a judge, so that the tests below find its answers."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    assert exit_code(*options[:-7], "--output-dir", folder) == 0
    return folder


@pytest.fixture
def run(answered, tmp_path):
    return shutil.copytree(answered, tmp_path / "run")


def _words(text):
    return len(text.split())


def test_every_setting_against_base_and_untrained_guide(capsys, monkeypatch, options, run):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with Stub(longest) as stub:
        asked = ["--judge-url", stub.url, "--judge-api-key-env", "JUDGE_KEY", "--output-dir", run]
        code, out, err = evaluate(capsys, *options, *asked, "--json")
        assert code == 0, err
        metrics = json.loads(out)
        samples = read_lines(run / "samples.jsonl")
        assert {head["authorization"] for head in stub.headers} == {f"Bearer {KEY}"}
        bodies = len(stub.bodies)
        texts = {json.dumps(body) for body in stub.bodies}
        assert bodies == len(texts)  # nothing twice, though settings share answers
    judge = metrics["judge"]
    rows = {(row["setting"], row["role"]): row for row in judge["comparisons"]}
    assert set(rows) == {(f"strength {s}", role) for s in (1, 2) for role in ("base", "untrained")}
    assert rows["strength 1", "untrained"]["against"] == "base at temperature 0.5"
    assert (judge["model"], judge["finished"], judge["dependent"], judge["prompts"]) == ("org/Judge", True, None, 3)
    assert judge["endpoint"] == stub.url

    # Each rate by hand, from the answers themselves.
    def answers(name):
        return [s["response"] for s in samples if s["setting"] == name]

    for row in judge["comparisons"]:
        own, other = answers(row["setting"]), answers(row["against"])
        points = [0.5 + ((len(a) > len(b)) - (len(a) < len(b))) / 2 for a, b in zip(own, other, strict=True)]
        assert row["win_rate"]["mean"] == pytest.approx(sum(points) / 6)
        assert (row["wins"], row["losses"]) == (points.count(1.0), points.count(0.0))
        assert row["win_rate"]["low"] <= row["win_rate"]["mean"] <= row["win_rate"]["high"]
        assert (row["pairs"], row["prompts"], row["unjudged"]) == (6, 3, 0)
        assert row["p_adjusted"] >= row["p_value"]
        assert row["words"] == pytest.approx([sum(map(_words, own)) / 6, sum(map(_words, other)) / 6])
        assert row["length_controlled"] is None  # three prompts say nothing of length
    verdicts = read_lines(run / "verdicts.jsonl")
    assert len(verdicts) == 4 * 6
    first = verdicts[0]
    assert (first["setting"], first["role"], first["id"], first["sample"]) == ("strength 1", "base", "a", 0)
    assert [v["verdict"] for v in judge["verdicts"]] != []
    page = (run / "report.html").read_text()
    assert 'id="judge-table"' in page
    assert "none: no language model judged" not in page
    for name in ("judgements.jsonl", "verdicts.jsonl", "metrics.json", "report.html", "config.yaml"):
        assert KEY not in (run / name).read_text()
    assert "quick brown fox" not in (run / "judgements.jsonl").read_text()

    # What was judged is not asked again, and nobody has to agree to nothing; without a judge its file goes.
    again = [*options[:-1], "--judge-url", stub.url, "--output-dir", run]  # where nobody listens any more
    code, out, err = evaluate(capsys, *again, "--json")
    assert code == 0, err
    assert json.loads(out)["judge"]["comparisons"] == judge["comparisons"]
    code, out, err = evaluate(capsys, *again)
    assert "Preferred by org/Judge in both orders, on 3 prompts" in out
    assert "strength 2, judge org/Judge: " in out
    code, out, _ = evaluate(capsys, *options[:-7], "--output-dir", run, "--json")
    assert json.loads(out)["judge"] is None
    assert not (run / "verdicts.jsonl").exists()
    assert (run / "judgements.jsonl").exists()


def test_what_it_costs_is_said_before_anything_is_asked(capsys, options, run, tmp_path):
    with Stub(longest) as stub:
        asked = [*options[:-1], "--judge-url", stub.url, "--judge-input-price", 1, "--judge-output-price", 2]
        code, out, err = evaluate(capsys, *asked, "--dry-run", "--json", "--output-dir", tmp_path / "new")
        unwritten = json.loads(out)["judge"]
        assert (code, unwritten["requests"], unwritten["output_tokens"]) == (0, 48, 48 * 512)
        assert unwritten["cost"] == pytest.approx((unwritten["input_tokens"] + 2 * 48 * 512) / 1e6)
        assert not (tmp_path / "new").exists()
        before = sorted(run.rglob("*"))
        code, out, err = evaluate(capsys, *asked, "--dry-run", "--json", "--output-dir", run)
        known = json.loads(out)["judge"]
        assert known["requests"] <= 48
        assert known["input_tokens"] < unwritten["input_tokens"]
        assert sorted(run.rglob("*")) == before
        code, out, err = evaluate(capsys, *asked, "--output-dir", run)
        assert (code, out, stub.bodies) == (1, "", [])
        assert "org/Judge' will be asked, at most:" in err
        assert "give --yes" in err
        # With everything against which it may be asked, and one setting alone.
        code, out, err = evaluate(
            capsys, *asked, "--judge-against", "base,temperature", "--judge-settings", "strength 2", "--judge-limit", 2,
            "--dry-run", "--json", "--output-dir", tmp_path / "new",
        )  # fmt: skip
        assert json.loads(out)["judge"]["requests"] == 2 * 2 * 2 * 2
        code, out, err = evaluate(
            capsys, *asked, "--judge-against", "temperature", "--judge-settings", "strength 2", "--judge-limit", 2,
            "--output-dir", run, "--yes", "--json",
        )  # fmt: skip
        (row,) = json.loads(out)["judge"]["comparisons"]
        assert (row["role"], row["pairs"], row["prompts"]) == ("temperature", 4, 2)


def test_an_endpoint_that_goes_down_half_way(capsys, options, run):
    """What was judged stays, the report is there without the judge, and the same command goes on."""
    down = False

    def reply(body):
        nonlocal down
        down = down or len(stub.bodies) > 9
        return (503, {}, b"gone") if down else longest(body)

    with Stub(reply) as stub:
        asked = [*options, "--judge-url", stub.url, "--judge-concurrency", 1, "--output-dir", run]
        code, out, err = evaluate(capsys, *asked)
        assert (code, out) == (1, "")
        assert "does not answer" in err
        assert "run the same command again" in err
        assert "the same command goes on from there" in err
        metrics = json.loads((run / "metrics.json").read_text())
        assert (metrics["judge"]["finished"], metrics["judge"]["comparisons"]) == (False, [])
        assert "had not finished" in (run / "report.html").read_text()
        assert len(metrics["comparisons"]) > 0
        kept = len(read_lines(run / "judgements.jsonl"))
        assert kept == 9
        answered = {json.dumps(body) for body in stub.bodies[:9]}
        down, stub.reply = False, longest
        before = len(stub.bodies)
        code, out, err = evaluate(capsys, *asked)
        assert code == 0, err
        assert not answered & {json.dumps(body) for body in stub.bodies[before:]}
        assert "(9 more are in the cache)" in err
        assert json.loads((run / "metrics.json").read_text())["judge"]["finished"] is True


def _labelled(guide, folder, name):
    shutil.copytree(guide, folder)
    record = json.loads((folder / "guide.json").read_text())
    record["data"] = {"sha256": "0" * 64, "files": ["p.jsonl"], "comparisons": 3, "labelled_by": name}
    (folder / "guide.json").write_text(json.dumps(record))
    return folder


def test_a_judge_that_may_not_judge(capsys, options, guide, llama_folder, tmp_path):
    labelled = _labelled(guide, tmp_path / "labelled", "Judge-2025-01-31")
    arguments = [labelled if a == guide else a for a in options]
    with Stub(longest) as stub:
        asked = ["--judge-url", stub.url, "--limit", 1, "--no-controls", "--output-dir", tmp_path / "run"]
        code, out, err = evaluate(capsys, *arguments, *asked)
        assert (code, out, stub.bodies) == (1, "", [])
        assert "labelled the pairs that the guide 'labelled' was trained on" in err
        assert "add --force" in err
        assert not (tmp_path / "run").exists()
        code, out, _ = evaluate(capsys, *arguments, *asked, "--force", "--json")
        judge = json.loads(out)["judge"]
        assert code == 0
        assert "labelled the pairs" in judge["dependent"]
        assert {verdict["verdict"] for verdict in judge["verdicts"]} == {"judges itself"}
        page = (tmp_path / "run" / "report.html").read_text()
        assert "FORCED: The judge" in page
        assert "judge org/Judge (NOT INDEPENDENT)" in page
        code, out, _ = evaluate(capsys, *arguments, *asked, "--force")
        assert "FORCED" in out
    assert "is the guide 'manners'" in judge_dependence("Manners", [guide])
    assert "is the base" in judge_dependence("org/base-x:latest", [guide], ["models/Base-X/"])
    assert judge_dependence("other-judge", [labelled], [str(llama_folder)]) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--judge-samples", 3], "there are 2 answers a prompt"),
        (["--judge-settings", "strength 3"], "no setting 'strength 3' to judge. Did you mean 'strength"),
        (["--judge-against", "bass"], "judge_against"),
        (["--judge-rubric", " "], "rubric is empty"),
        (["--judge-rubric-file", "nowhere"], "nowhere cannot be read"),
        (["--judge-api-key-env", "NO_SUCH_VAR"], "environment variable 'NO_SUCH_VAR'"),
        (["--judge-url", "host/v1"], "give an address such as"),
        (["--judge-url", "http://me:pass@host/v1"], "holds a password"),
        (["--judge-concurrency", 0], "judge_concurrency"),
    ],
)
def test_what_goes_wrong_is_one_line(capsys, options, tmp_path, arguments, message):
    code, out, err = evaluate(
        capsys, *options, "--judge-url", "http://127.0.0.1:9/v1", *arguments, "--output-dir", tmp_path / "run"
    )
    assert (code, out, err.count("\n")) == (1, "", 1), err
    assert message in err
    assert not (tmp_path / "run").exists()


def test_half_a_judge():
    assert judge_of(JudgeFlags()) is None
    with pytest.raises(ConfigError, match=r"judge_samples belongs to a judge.*--judge-url"):
        judge_of(JudgeFlags(judge_samples=2))
    with pytest.raises(ConfigError, match=r"no judge_model: give --judge-model"):
        judge_of(JudgeFlags(judge_url="http://h"))
    judge = judge_of(JudgeFlags(judge_url="http://h", judge_model="m", judge_against="base", judge_settings="a, b"))
    assert (judge.against, judge.settings, judge.concurrency) == (("base",), ("a, b",), 4)


def _row(rate, controlled=None, *, unjudged=0):
    def interval(value):
        return None if value is None else dict(zip(("mean", "low", "high"), value, strict=True))

    return {
        "win_rate": interval(rate), "length_controlled": interval(controlled), "pairs": 20, "unjudged": unjudged,
        "problem": "no verdict in the reply",
    }  # fmt: skip


GOOD, EVEN, BAD = (0.8, 0.7, 0.9), (0.55, 0.45, 0.65), (0.3, 0.2, 0.4)


@pytest.mark.parametrize(
    ("rows", "roles", "word", "why"),
    [
        ({"base": _row(GOOD), "untrained": _row(GOOD)}, {"untrained"}, "better than base and controls", "+0.3 [+0.2"),
        ({"base": _row(GOOD), "untrained": _row(EVEN)}, {"untrained"}, "no better than a control", "untrained guide"),
        ({"base": _row(EVEN)}, {"untrained"}, "not told apart from the base", "+0.05"),
        ({"base": _row(BAD)}, set(), "worse than the base", "-0.2"),
        ({"base": _row(GOOD)}, set(), "better than the base, no control", ""),
        (
            {"base": _row(GOOD), "untrained": _row(GOOD)},
            {"untrained", "temperature"},
            "better than what it was judged against",
            "not judged against the base at equal KL",
        ),
        ({"untrained": _row(GOOD)}, {"untrained"}, "better than what it was judged against", "against the base"),
        ({"untrained": _row(EVEN)}, {"untrained"}, "no better than a control", ""),
        ({"base": _row(GOOD, EVEN)}, set(), "no better at equal length", "55% [45%, 65%] against the base"),
        ({"base": _row(GOOD, unjudged=3)}, set(), "too few verdicts", "3 of 20 pairs have no verdict"),
        ({"base": _row(None, unjudged=20)}, set(), "too few verdicts", "20 of 20"),
    ],
)
def test_verdicts_by_hand(rows, roles, word, why):
    found, reason = judge_verdict(rows, roles, dependent=False)
    assert (found, why in reason) == (word, True), reason
    assert judge_verdict(rows, roles, dependent=True)[0] == "judges itself"


def test_answers_to_one_prompt_count_once():
    """Two prompts: one won in all of its three answers, one lost in its only one that has a verdict."""
    pairs = [JudgedPair(f"a#{i}", (1.0, 1.0), (3, 1), group="a") for i in range(3)]
    pairs += [JudgedPair("b#0", (0.0, 0.0), (1, 1), group="b"), JudgedPair("b#1", (None, 1.0), (1, 1), group="b")]
    report = JudgeReport.of("j", pairs)
    assert (report.wins, report.losses, report.unjudged, report.prompts) == (3, 1, 1, 2)
    assert report.win_rate == 0.5
    assert report.p_value == 1.0
    won = JudgeReport.of("j", [JudgedPair(str(i), (1.0, 1.0), (1, 1)) for i in range(5)])
    assert won.p_value == pytest.approx(2 / 2**5)


def test_the_same_question_is_asked_once_at_a_time():
    """A pair, its copy and its mirror image ask the same two things, all at once."""
    pairs = [
        AnswerPair("1", "Q", "one", "three"),
        AnswerPair("2", "Q", "one", "three"),
        AnswerPair("3", "Q", "three", "one"),
    ]
    with Stub(longest) as stub:
        config = JudgeConfig(judge_url=stub.url, judge_model="j", concurrency=3)
        judged = ask_about(pairs, config)
        assert [pair.outcome for pair in judged] == ["lose", "lose", "win"]
        assert len(stub.bodies) == 2
