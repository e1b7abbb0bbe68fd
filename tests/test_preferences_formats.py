"""Every source format, read into the one record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trimtab.errors import ConfigError, DataError
from trimtab.preferences import Label, read_comparisons
from trimtab.preferences.formats import derive_label, read_score
from trimtab.preferences.rows import RowProblem

A, B, TIE = Label.A, Label.B, Label.TIE


def chat(text, role="user"):
    return [{"role": role, "content": text}]


def answer(text):
    return chat(text, "assistant")


@pytest.fixture
def write(tmp_path: Path):
    def write(*rows, name="data.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


def read(path, **options):
    return read_comparisons(path, **{"max_bad_fraction": 0.0, **options})


def test_trl_explicit_plain(write):
    result = read(write({"prompt": "Hi", "chosen": " good", "rejected": " bad", "id": 7, "score": 3}))
    (c,) = result.comparisons
    assert result.format == "trl"
    assert (c.prompt, c.response_a, c.response_b) == ("Hi", " good", " bad")
    assert c.labels == {"preferred": A}
    assert (c.id, c.extra, c.source) == ("7", {"score": 3}, "data.jsonl:1")


def test_trl_implicit_chat_with_objective_name(write):
    row = {"chosen": chat("q") + answer("yes"), "rejected": chat("q") + answer("no")}
    (c,) = read(write(row), objective="polite").comparisons
    assert (c.prompt, c.response_a, c.response_b) == (chat("q"), answer("yes"), answer("no"))
    assert c.labels == {"polite": A}


def test_hh_transcripts(write):
    head = "\n\nHuman: q1\n\nAssistant: a1\n\nHuman: q2\n\nAssistant: "
    result = read(write({"chosen": head + "good", "rejected": head + "bad"}))
    (c,) = result.comparisons
    assert result.format == "hh"
    assert c.prompt == chat("q1") + answer("a1") + chat("q2")
    assert (c.response_a, c.response_b, c.labels) == (answer("good"), answer("bad"), {"preferred": A})


def test_hh_dialogues_that_part_earlier_are_bad(write):
    row = {
        "chosen": "\n\nHuman: q\n\nAssistant: a\n\nHuman: x\n\nAssistant: c",
        "rejected": "\n\nHuman: q\n\nAssistant: b\n\nHuman: x\n\nAssistant: d",
    }
    with pytest.raises(DataError, match="line 1: the two dialogues differ before their last answer"):
        read(write(row))


def test_pku_two_labels(write):
    rows = [
        {"prompt": "q", "response_0": "zero", "response_1": "one", "better_response_id": 0, "safer_response_id": 1}
        | {"is_response_0_safe": False},
        {"prompt": "q", "response_0": "zero", "response_1": "two", "better_response_id": None, "safer_response_id": 0},
    ]
    result = read(write(*rows))
    assert result.format == "pku"
    first, second = result.comparisons
    assert (first.prompt, first.response_a, first.response_b) == (chat("q"), answer("zero"), answer("one"))
    assert first.labels == {"helpful": A, "harmless": B}
    assert first.extra == {"is_response_0_safe": False}
    assert second.labels == {"harmless": A}
    with pytest.raises(DataError, match="'safer_response_id' is 2, where 0 or 1"):
        read(write(rows[0] | {"safer_response_id": 2}))


def test_ultrafeedback_pairs_every_two_completions(write):
    def completion(text, helpful, honest):
        annotations = {"helpfulness": {"Rating": helpful, "Rationale": "…"}, "honesty": {"Rating": honest}}
        return {"response": text, "model": text.upper(), "annotations": annotations}

    row = {
        "instruction": "q",
        "source": "s",
        "completions": [completion("x", "5", "1"), completion("y", "3", "N/A"), completion("z", "4", "2")],
    }
    result = read(write(row), margin=1.0)
    assert result.format == "ultrafeedback"
    xy, xz, yz = result.comparisons
    assert (xy.prompt, xy.response_a, xy.response_b) == (chat("q"), answer("x"), answer("y"))
    # helpfulness: 5-3=2 > 1 → a; 5-4=1 ≤ 1 → tie; 3-4=-1 → tie. honesty: y's is missing; 1-2=-1 → tie.
    assert (xy.labels, xy.strengths) == ({"helpfulness": A}, {"helpfulness": 2.0})
    assert (xz.labels, xz.strengths) == ({"helpfulness": TIE, "honesty": TIE}, {"helpfulness": 1.0, "honesty": 1.0})
    assert yz.labels == {"helpfulness": TIE}
    assert xz.extra["model_a"] == "X" and xz.extra["model_b"] == "Z" and xz.extra["source"] == "s"
    assert read(write(row), attributes=["honesty"]).objectives == ["honesty"]


def test_ultrafeedback_names_the_pair_that_is_bad(write):
    completions = [{"response": t, "annotations": {"h": {"Rating": "1"}}} for t in ("same", "same", "other")]
    result = read(write({"instruction": "q", "completions": completions}), max_bad_fraction=0.5)
    assert len(result.comparisons) == 2
    assert [str(row) for row in result.bad_rows] == [
        f"{result.source}:1: completions 1 and 2: the two answers are identical"
    ]


def test_helpsteer_pairs_rows_with_equal_prompts(write):
    def row(prompt, response, helpfulness, verbosity, **more):
        return {"prompt": prompt, "response": response, "helpfulness": helpfulness, "verbosity": verbosity, **more}

    rows = [
        row("q", "x", 4, 1, worker="u", lang="en"),
        row("other", "alone", 0, 0),
        row("q", "y", 2, None, worker="v", lang="en"),
        row("q", "z", 4, 3),
    ]
    result = read(write(*rows))
    assert result.format == "scores"
    assert [c.source for c in result.comparisons] == ["data.jsonl:1+3", "data.jsonl:1+4", "data.jsonl:3+4"]
    xy, xz, yz = result.comparisons
    assert (xy.labels, xy.strengths) == ({"helpfulness": A}, {"helpfulness": 2.0})  # verbosity of y is missing
    assert (xz.labels, xz.strengths) == ({"helpfulness": TIE, "verbosity": B}, {"helpfulness": 0.0, "verbosity": 2.0})
    assert yz.labels == {"helpfulness": B}
    assert xy.extra["worker_a"] == "u" and xy.extra["worker_b"] == "v" and xy.extra["lang"] == "en"
    assert [row.line for row in result.unpaired] == [2]


def test_scores_without_a_pair(write):
    with pytest.raises(DataError, match="no two of its 2 rows have the same prompt"):
        read(write({"prompt": "p", "response": "x", "h": 1}, {"prompt": "q", "response": "y", "h": 2}))


def test_labels_form(write):
    row = {"prompt": chat("q"), "chosen": answer("x"), "rejected": answer("y")}
    result = read(write(row | {"labels": {"helpful": -1, "harmless": 1, "polite": 0, "brief": None}}))
    (c,) = result.comparisons
    assert result.format == "labels"
    assert c.labels == {"helpful": B, "harmless": A, "polite": TIE}
    assert result.objectives == ["helpful", "harmless", "polite"]
    assert c.oriented("helpful") == (answer("y"), answer("x"))
    assert c.oriented("polite") is None and c.oriented("brief") is None


def test_canonical_form(write):
    row = {"prompt": "p", "response_a": "x", "response_b": "y", "labels": {"h": -1, "k": None}, "strengths": {"h": 2}}
    (c,) = read(write(row)).comparisons
    assert (c.labels, c.strengths) == ({"h": B}, {"h": 2.0})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"labels": {"h": 2}}, "the label of 'h' is 2, where 1, 0, -1 or null"),
        ({"labels": {"h": True}}, "the label of 'h' is True"),
        ({"labels": {"h": 0.5}}, "the label of 'h' is 0.5"),
        ({"labels": {"h": "1"}}, "the label of 'h' is '1'"),
        ({"labels": {"h": [1]}}, r"the label of 'h' is \[1\]"),
        ({"labels": [1]}, "'labels' is not an object"),
        ({"strengths": {"h": -1}}, "the strength of 'h' is -1, but"),
        ({"strengths": {"h": "x"}}, "the score of 'h' is 'x', not a finite number"),
        ({"strengths": 3}, "'strengths' is not an object"),
        ({"response_b": None}, "'response_b' is missing"),
        ({"response_b": "x"}, "identical"),
    ],
)
def test_bad_canonical_rows(write, change, reason):
    good = {"prompt": "p", "response_a": "x", "response_b": "y", "labels": {"h": 1}}
    result = read_comparisons(write(good, good | change), max_bad_fraction=0.5)
    assert len(result.comparisons) == 1
    (bad,) = result.bad_rows
    assert bad.line == 2
    with pytest.raises(RowProblem, match=reason):
        raise RowProblem(bad.reason)


def test_scores_and_labels():
    assert derive_label(3.0, 1.0, 0.0) == (A, 2.0)
    assert derive_label(1.0, 3.0, 1.9) == (B, 2.0)
    assert derive_label(1.0, 3.0, 2.0) == (TIE, 2.0)
    assert [read_score(v, "h") for v in (None, "", "N/A", "4", 2)] == [None, None, None, 4.0, 2.0]
    for value in (float("nan"), float("inf"), "nan", "four", True, [1]):
        with pytest.raises(RowProblem, match="the score of 'h' is"):
            read_score(value, "h")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "completion": "c", "label": True}, "completion, label, prompt: these rows are unpaired"),
        ({"a\nb": "p", "x" * 99: 1}, r"has the columns 'a\\nb', 'xxx.*\.\.\., which is no preference format"),
        ({"prompt": "p"}, "there are no two answers to compare"),
        ({"question": "p", "good": "x", "bad": "y"}, "bad, good, question, which is no preference format .*trl"),
    ],
)
def test_unknown_columns_are_named(write, row, message):
    with pytest.raises(DataError, match=message):
        read(write(row))


def test_format_override(write):
    path = write({"chosen": "\n\nHuman: q\n\nAssistant: x", "rejected": "\n\nHuman: q\n\nAssistant: y"})
    assert isinstance(read(path, format="trl").comparisons[0].prompt, str)
    with pytest.raises(DataError, match="needs the columns 'labels' too: it has chosen, rejected"):
        read(path, format="labels")
    with pytest.raises(ConfigError, match=r"Unknown data format 'trll'. Did you mean 'trl'"):
        read(path, format="trll")
