"""Writing and reading back: nothing is lost, nothing is left half-written."""

from __future__ import annotations

import gzip
import json
import string
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trimtab.errors import ConfigError, DataError, OutputError
from trimtab.preferences import Comparison, Label, read_comparisons, write_comparisons
from trimtab.preferences.writing import to_rows

A, B, TIE = Label.A, Label.B, Label.TIE
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".csv.gz", ".tsv", ".parquet")

# Every character a text can hold (a lone surrogate is none), and texts that look like the forms they are packed in.
anything = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
tricky = st.sampled_from(
    ['[{"role": "user", "content": "x"}]', '"quoted"', "null", "3", "a,b\r\nc", "\ttab", "{'a': 1}"]
)
texts = (anything | tricky).filter(lambda t: t.strip() != "")
turns = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": texts}, optional={"name": texts}
)
objectives = st.sampled_from(["helpful", "harmless", "brief, mostly", "ünïcode", " spaced "])
numbers = st.floats(0, 1e6) | st.integers(0, 9).map(float)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts | st.just(""),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(anything, inner, max_size=3),
    max_leaves=5,
)
# Names of further columns, also those that the written forms use themselves.
_FORM_COLUMNS = ("prompt", "chosen", "rejected", "response_a", "response_0", "better_response_id", "labels", "scores")
_OUR_COLUMNS = ("instruction", "completions", "trimtab_json", "trimtab_extra", "trimtab_side", " spaced")
names = anything | st.sampled_from([*_FORM_COLUMNS, *_OUR_COLUMNS])


@st.composite
def comparisons(draw):
    chat = draw(st.booleans())
    prompt = draw(st.lists(turns, min_size=1, max_size=3) if chat else texts)
    a, b = draw(st.lists(texts, min_size=2, max_size=2, unique=True))
    if chat:
        a, b = ([{"role": "assistant", "content": text}] for text in (a, b))
    return Comparison(
        prompt,
        a,
        b,
        labels=draw(st.dictionaries(objectives, st.sampled_from(Label))),
        strengths=draw(st.dictionaries(objectives, numbers)),
        id=draw(st.just("") | texts),
        extra=draw(st.dictionaries(names.filter(lambda n: n != "id"), json_values, max_size=3)),
    )


def without_source(items):
    return [replace(c, source="") for c in items]


@pytest.mark.parametrize("format", ["canonical", "labels"])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.lists(comparisons(), min_size=1, max_size=4), pick=st.integers(0, 9))
def test_round_trip_loses_nothing(tmp_path, format, suffix, data, pick):
    """Several objectives, ties, missing labels, strengths, further columns, plain text and chats in one file."""
    judged = sorted({name for c in data for name in c.labels})
    objective = judged[pick % len(judged)] if judged and pick else None
    path = tmp_path / f"data{suffix}"
    write_comparisons(path, data, format=format, objective=objective)
    assert without_source(read_comparisons(path, format=format, max_bad_fraction=0.0).comparisons) == data


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.lists(comparisons(), min_size=1, max_size=4))
def test_trl_keeps_the_decided_rows_of_one_objective(tmp_path, data):
    kept = [c for c in data if c.labels.get("helpful") in (A, B)]
    path = tmp_path / "data.jsonl"
    if not kept:
        with pytest.raises((DataError, ConfigError)):
            write_comparisons(path, data, format="trl", objective="helpful")
        return
    result = write_comparisons(path, data, format="trl", objective="helpful")
    ties = sum(c.labels.get("helpful") is TIE for c in data)
    assert (result.written, result.ties, result.missing) == (len(kept), ties, len(data) - len(kept) - ties)
    for line, c in zip(path.read_text(encoding="utf-8").split("\n"), kept, strict=False):
        row = json.loads(line)
        assert (row["chosen"], row["rejected"]) == c.oriented("helpful")
    back = read_comparisons(path, format="trl", objective="helpful", max_bad_fraction=0.0).comparisons
    expected = [replace(c, labels={"helpful": c.labels["helpful"]}, strengths={}) for c in kept]
    assert without_source(back) == expected


def test_trl_rows_survive_our_form(tmp_path):
    rows = [
        {"id": "r1", "prompt": "p", "chosen": "x", "rejected": "y", "score_chosen": 3.5},
        {"id": "r2", "prompt": "p", "chosen": "z", "rejected": "y", "score_chosen": 1.0},
    ]
    source = tmp_path / "trl.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_comparisons(tmp_path / "ours.parquet", read_comparisons(source).comparisons)
    back = read_comparisons(tmp_path / "ours.parquet")
    assert back.format == "canonical"
    write_comparisons(tmp_path / "back.jsonl", back.comparisons, format="trl")
    assert (tmp_path / "back.jsonl").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("format", ["canonical", "labels", "trl"])
def test_written_files_are_recognised(tmp_path, suffix, format):
    data = [
        Comparison("p", "x", "y", {"h": A, "k": TIE}, {"h": 2.0}, "1", {"note": "n", "response_0": "r", "chosen": "c"}),
        Comparison("q", "x", "y", {"h": B}, {}, "2", {"note": None, "response_1": "r"}),
    ]
    path = tmp_path / f"data{suffix}"
    write_comparisons(path, data, format=format, objective="h")
    result = read_comparisons(path, objective="h", max_bad_fraction=0.0)
    assert result.format == format
    if format != "trl":
        assert without_source(result.comparisons) == data


def test_rows_are_uniform_and_turned_ones_say_so():
    first = Comparison("p", "x", "y", {"h": A, "k": B}, {"h": 2.0})
    second = Comparison("q", "x", "y", {"h": B})
    rows, ties, missing = to_rows([first, second], format="labels", objective="h")
    assert rows == [
        {"prompt": "p", "chosen": "x", "rejected": "y", "labels": {"h": 1, "k": -1}, "strengths": {"h": 2.0}}
        | {"trimtab_side": "a"},
        {"prompt": "q", "chosen": "y", "rejected": "x", "labels": {"h": 1, "k": None}, "strengths": {"h": None}}
        | {"trimtab_side": "b"},
    ]
    assert (ties, missing) == (0, 0)
    assert to_rows([first], format="canonical", objective="k")[0][0]["response_a"] == "x"  # never turned


def test_parquet_has_native_columns(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    turns = [{"role": "user", "content": "q"}]
    a, b = [{"role": "assistant", "content": "x"}], [{"role": "assistant", "content": "y"}]
    write_comparisons(tmp_path / "d.parquet", [Comparison(turns, a, b, {"h": A})], format="labels")
    table = pq.read_table(tmp_path / "d.parquet")
    assert table.column_names == ["prompt", "chosen", "rejected", "labels"]
    assert table.to_pylist() == [{"prompt": turns, "chosen": a, "rejected": b, "labels": {"h": 1}}]


def test_equal_data_gives_equal_bytes(tmp_path):
    data = [Comparison("p", "x", "y", {"h": A})]
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write_comparisons(tmp_path / name, data)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()).startswith(b'{"prompt": "p"')


def test_a_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "data.jsonl"
    path.write_text("old")
    data = [Comparison("p", "x", "y", {"h": A})]
    with pytest.raises(DataError, match="holds a value this kind of file cannot carry"):
        write_comparisons(path, [*data, replace(data[0], extra={"x": float("nan")})])

    def full(self: Path, target: Path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match="No space left on device"):
        write_comparisons(path, data)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["data.jsonl"]


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("d.txt", {}, ConfigError, "has no suffix"),
        ("d.jsonl", {"format": "labelz"}, ConfigError, r"Unknown format to write 'labelz'. Did you mean 'labels'"),
        ("d.jsonl", {"format": "trl"}, ConfigError, "holds one objective, and this data has the objectives h, k"),
        (
            "d.jsonl",
            {"format": "labels", "objective": "hh"},
            ConfigError,
            r"No row is judged on 'hh'. Did you mean 'h'",
        ),
        ("d.jsonl", {"format": "trl", "objective": "k"}, DataError, "1 comparisons, 1 tied and 0 not judged"),
        ("no/d.jsonl", {}, OutputError, "there is no folder"),
        (".jsonl/", {}, OutputError, "is a folder"),
    ],
)
def test_what_cannot_be_written(tmp_path, name, options, error, message):
    (tmp_path / ".jsonl").mkdir()
    with pytest.raises(error, match=message):
        write_comparisons(tmp_path / name, [Comparison("p", "x", "y", {"h": A, "k": TIE})], **options)
    assert [p.name for p in tmp_path.iterdir()] == [".jsonl"]


def test_swapped_twice_is_the_same():
    c = Comparison("p", "x", "y", {name: label for name, label in zip(string.ascii_letters, Label, strict=False)})
    assert c.swapped().labels == {"a": A, "b": TIE, "c": B}
    assert c.swapped().response_a == "y"
    assert c.swapped().swapped() == c
