"""Suites: questions read, every turn answered in its conversation, files as the suites' own tools read them."""

from __future__ import annotations

import json

import pandas as pd
import pytest

import tiny_guides
from trimtab.cli.main import main
from trimtab.decoding.config import make_sampling
from trimtab.engine import load
from trimtab.errors import ConfigError, DataError
from trimtab.evaluation.suites import SUITES, Conversation, answer_suite, get_suite

ALPACA = [
    {"dataset": "helpful_base", "instruction": "Name a fruit.", "output": "Plum.", "generator": "reference"},
    {"dataset": "koala", "instruction": " Say “hi”\u2028 twice ", "output": "hi hi", "generator": "reference"},
]
MT = [
    {"question_id": 82, "category": "math", "turns": ["1+1?", "And times 3?"], "reference": ["2", "6"]},
    {"question_id": 81, "category": "writing", "turns": ["Write a line.", "Shorter."]},
    {"question_id": 90, "category": "other", "turns": ["One turn."], "required_temperature": 0.3},
]


@pytest.fixture(scope="module")
def guide(llama_folder, tmp_path_factory):
    return tiny_guides.save_lora_guide(tmp_path_factory.mktemp("guides") / "manners", llama_folder)


@pytest.fixture(scope="module")
def engine(llama_folder, guide):
    return load(llama_folder, [guide], dtype="float32")


@pytest.fixture
def files(tmp_path):
    (tmp_path / "alpaca_eval.json").write_text(json.dumps(ALPACA))
    (tmp_path / "question.jsonl").write_text("".join(json.dumps(row) + "\n" for row in MT))
    return tmp_path


def _run(capsys, *arguments):
    code = 0
    try:
        main(["generate", *map(str, arguments)])
    except SystemExit as leave:
        code = leave.code or 0
    return code, capsys.readouterr().err


def test_questions_are_read(files):
    alpaca = get_suite("alpaca-eval").read(files / "alpaca_eval.json")
    assert [question.turns for question in alpaca] == [("Name a fruit.",), (" Say “hi”\u2028 twice ",)]
    bench = get_suite("mt_bench").read(files / "question.jsonl")
    assert [(q.id, q.temperature, len(q.turns)) for q in bench] == [(82, 0.0, 2), (81, 0.7, 2), (90, 0.3, 1)]


def test_the_second_turn_is_asked_with_the_conversation_so_far(engine, files):
    questions = SUITES["mt_bench"].read(files / "question.jsonl")
    made = answer_suite(engine, questions, guidance=1.5, sampling=make_sampling(max_tokens=6), system="be brief")
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "1+1?"}]
    first = engine.generate(chat, guidance=1.5, temperature=0, max_tokens=6)[0].text.strip()
    chat += [{"role": "assistant", "content": first}, {"role": "user", "content": "And times 3?"}]
    second = engine.generate(chat, guidance=1.5, temperature=0, max_tokens=6)[0].text.strip()
    assert made[0] == [Conversation((first, second), made[0][0].finish_reasons)]
    assert [len(chats[0].turns) for chats in made] == [2, 2, 1]


def test_an_answer_does_not_depend_on_the_other_questions(engine, files):
    questions = SUITES["mt_bench"].read(files / "question.jsonl")
    sampling = make_sampling(max_tokens=6, seed=3, n=2)
    together = answer_suite(engine, questions, sampling=sampling, suite_temperatures=False)
    assert together == answer_suite(engine, questions, sampling=sampling, suite_temperatures=False, max_batch_size=1)
    assert together[1][0].turns != together[1][1].turns
    # Question 0 alone: its first turns have the same seeds, 3 and 4.
    alone = answer_suite(engine, questions[:1], sampling=sampling, suite_temperatures=False)
    assert [chat.turns[0] for chat in alone[0]] == [chat.turns[0] for chat in together[0]]


def test_a_turn_without_room_is_empty_and_ends_nothing(engine, files):
    questions = SUITES["mt_bench"].read(files / "question.jsonl")
    long = questions[0].__class__(1, ("hi", "x " * 400))
    made = answer_suite(engine, [long, questions[1]], sampling=make_sampling(max_tokens=4))
    assert made[0][0].turns[1] == ""
    assert made[0][0].finish_reasons[1] == "no room"
    assert made[1][0].finish_reasons[1] in ("stop", "length")


def test_alpaca_eval_reads_what_is_written(capsys, llama_folder, guide, files):
    """``alpaca_eval`` reads the file with pandas, takes the one generator's name, and joins by instruction."""
    target = files / "mine.json"
    code, err = _run(
        capsys, "--suite", "alpaca_eval", "--input", files / "alpaca_eval.json", "--output", target,
        "--base", llama_folder, "--guide", guide, "--max-tokens", 5, "--temperature", 0,
    )  # fmt: skip
    assert (code, "Wrote 2 answers to 2 questions" in err) == (0, True), err
    outputs = pd.read_json(target)
    assert list(outputs.columns) == ["dataset", "instruction", "output", "generator"]
    assert list(outputs["generator"].unique()) == ["mine"]
    joined = outputs.merge(pd.DataFrame.from_records(ALPACA), on=["instruction"], suffixes=("_1", "_2"))
    assert len(joined) == 2
    assert outputs["output"].map(lambda text: isinstance(text, str) and text == text.strip()).all()


def test_fastchat_reads_what_is_written(capsys, llama_folder, guide, files):
    """FastChat reads JSON lines, keys them by question, and asks choices[0]["turns"][0 and 1]."""
    target = files / "guided.jsonl"
    arguments = ["--suite", "mt-bench", "--input", files / "question.jsonl", "--base", llama_folder, "--guide", guide]
    code, err = _run(
        capsys, *arguments, "--output", target, "--max-tokens", 5, "--n", 2, "--seed", 1, "--model-name", "guided-1.0"
    )
    assert (code, "those of the suite" in err) == (0, True), err
    rows = [json.loads(line) for line in target.read_text(encoding="ascii").splitlines()]
    assert [row["question_id"] for row in rows] == [81, 82, 90]
    assert len({row["answer_id"] for row in rows}) == 3
    for row in rows:
        assert set(row) == {"question_id", "answer_id", "model_id", "choices", "tstamp"}
        assert row["model_id"] == "guided-1.0"
        assert [choice["index"] for choice in row["choices"]] == [0, 1]
        count = 1 if row["question_id"] == 90 else 2
        assert all(len(choice["turns"]) == count for choice in row["choices"])
    assert rows[1]["choices"][0]["turns"] == rows[1]["choices"][1]["turns"]  # math is answered at temperature 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "alpaca"], "no suite 'alpaca'. Did you mean 'alpaca_eval'"),
        (["--suite", "mt_bench", "--prompt", "x"], "as --input, and no --prompt"),
        (["--suite", "mt_bench", "--input", "question.jsonl"], "name it with --output"),
        (["--suite", "mt_bench", "--input", "question.jsonl", "--output", "a.json"], ".jsonl files: name a.json"),
        (["--suite", "alpaca_eval", "--input", "alpaca_eval.json", "--output", "a.jsonl"], "from .json files"),
        (["--suite", "alpaca_eval", "--input", "alpaca_eval.json", "--output", "a.json", "--n", 2], "leave --n out"),
        (["--suite", "mt_bench", "--input", "question.jsonl", "--output", "a.jsonl", "--raw"], "leave --raw out"),
        (["--suite", "mt_bench", "--input", "alpaca_eval.json", "--output", "a.jsonl"], "not an object"),
        (["--suite", "mt_bench", "--input", "nowhere", "--output", "a.jsonl"], "No such file"),
        (["--prompt", "x", "--model-name", "m"], "needs --suite"),
    ],
)
def test_what_goes_wrong_is_one_line(capsys, monkeypatch, llama_folder, files, arguments, message):
    monkeypatch.chdir(files)
    code, err = _run(capsys, "--base", llama_folder, *arguments)
    assert (code, err.count("\n")) == (1, 1), err
    assert message in err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("alpaca_eval", "{}"),
        ("alpaca_eval", '[{"prompt": "x"}]'),
        ("alpaca_eval", "[1"),
        ("mt_bench", "\n"),
        ("mt_bench", '{"question_id": 1, "category": "math", "turns": []}'),
        ("mt_bench", '{"question_id": "1", "category": "math", "turns": ["x"]}'),
        ("mt_bench", '{"question_id": 1, "category": "math", "turns": ["x"]}\n' * 2),
    ],
)
def test_bad_files_are_refused(tmp_path, name, content):
    (tmp_path / "bad").write_text(content)
    with pytest.raises(DataError):
        SUITES[name].read(tmp_path / "bad")


def test_no_questions_and_no_suite():
    with pytest.raises(ConfigError, match="no questions"):
        answer_suite(None, [])
    with pytest.raises(ConfigError, match="Known"):
        get_suite("zzz")
