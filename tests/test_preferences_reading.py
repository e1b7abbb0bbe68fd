"""Files: every kind, every way to be damaged, bad rows counted and named."""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
import types

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trimtab.errors import ConfigError, DataError
from trimtab.preferences import data_sha256, read_comparisons

GOOD = {"prompt": "p", "chosen": "x", "rejected": "y"}
LINE = json.dumps(GOOD).encode() + b"\n"


def put(tmp_path, content: bytes, name="data.jsonl"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"prompt": "p", "chosen": "x"}', "'rejected' is missing"),
        (b'{"prompt": "p", "chosen": 3, "rejected": "y"}', "'chosen' is a number, not text"),
        (b'{"prompt": "p", "chosen": "x", "rejected": NaN}', "not JSON: NaN is no JSON number"),
        (b"nonsense", "not JSON: Expecting value at column 1"),
        (b'{"prompt": "p\xff"}', "invalid UTF-8 at byte 13"),
        (b'{"prompt": "\\ud800", "chosen": "x", "rejected": "y"}', "half of a pair"),
        (b"[1, 2]", "a row must be a JSON object, this is list"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"prompt": "' + b"p" * 300_000 + b'"}', "the line is longer than 250,000 bytes"),
    ],
)
def test_a_bad_row_is_named_and_the_others_are_kept(tmp_path, line, reason):
    path = put(tmp_path, LINE * 2 + line + b"\n\n" + LINE)
    result = read_comparisons(path, max_bad_fraction=0.25, max_line_bytes=250_000)
    assert [c.source for c in result.comparisons] == ["data.jsonl:1", "data.jsonl:2", "data.jsonl:5"]
    (bad,) = result.bad_rows
    assert (bad.source, bad.line) == (str(path), 3)
    assert reason in bad.reason
    assert result.bad_fraction == 0.25


def test_over_the_threshold_the_first_bad_rows_are_quoted(tmp_path):
    path = put(tmp_path, LINE * 93 + b"bad\n" * 7)
    with pytest.raises(
        DataError, match=r"7 of 100 rows .* \(7.0%, accepted 6.9%\): line 94: .*; line 98: .*; and 2 more"
    ):
        read_comparisons(path, max_bad_fraction=0.069)
    assert len(read_comparisons(path, max_bad_fraction=0.07).comparisons) == 93


def test_one_in_a_hundred_is_accepted_by_default(tmp_path):
    assert len(read_comparisons(put(tmp_path, LINE * 99 + b"bad\n")).comparisons) == 99
    with pytest.raises(DataError, match="1 of 99 rows"):
        read_comparisons(put(tmp_path, LINE * 98 + b"bad\n"))


def test_limit_takes_the_first_good_rows(tmp_path):
    rows = b"".join(json.dumps(GOOD | {"prompt": str(i)}).encode() + b"\n" for i in range(500))
    path = put(tmp_path, b"bad\n" + rows)
    # One bad row in the first eleven is over 1 %, so the rest of the file decides: 1 of 501 is under it.
    result = read_comparisons(path, limit=10)
    assert [c.prompt for c in result.comparisons] == [str(i) for i in range(10)]
    assert len(result.bad_rows) == 1
    with pytest.raises(DataError, match="cannot be used"):
        read_comparisons(put(tmp_path, b"bad\n" * 20 + rows), limit=10)


def test_limit_stops_reading_before_later_bad_rows(tmp_path):
    result = read_comparisons(put(tmp_path, LINE * 5 + b"bad\n" * 50), limit=5)
    assert len(result.comparisons) == 5 and result.bad_rows == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.jsonl", b"", "is empty: it holds no rows"),
        ("data.jsonl", b"\n \n", "is empty: it holds no rows"),
        ("data.csv", b"prompt,chosen,rejected\n", "is empty: it holds no rows"),
        ("data.json", b"[]", "is empty: it holds no rows"),
        ("data.jsonl", b"\x7fELF\x00\x01", "is a binary file"),
        ("data.jsonl", "{}".encode("utf-16"), "is UTF-16 text: save it as UTF-8"),
        ("data.txt", LINE, "has no suffix trimtab knows"),
        ("data.json", b"[{}, ", "is not JSON that can be read"),
        ("data.parquet", b"PAR1", "is not a Parquet file"),
        ("data.csv", b"a,b,a\n1,2,3\n", "names the column 'a' twice"),
        ("data.csv", LINE, "holds JSON lines, not CSV"),
        ("data.csv", b'"a" b,c\n', "is not CSV whose first line names the columns"),
        ("data.jsonl.gz", gzip.compress(LINE * 50, mtime=0)[:40], "gzip archive is damaged or cut short"),
        (
            "data.csv.gz",
            gzip.compress(b"prompt,chosen,rejected\n" + b"p,x,y\n" * 9999, mtime=0)[:-30],
            "damaged or cut short",
        ),
        ("data.jsonl", b"bad\n" * 3, "None of the 3 rows .* line 1: not JSON"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        read_comparisons(put(tmp_path, content, name))


def test_missing_file_and_folder(tmp_path):
    put(tmp_path, LINE, "train.jsonl")
    with pytest.raises(DataError, match=r"There is no file .*trian.jsonl \(did you mean 'train.jsonl'\?\)"):
        read_comparisons(tmp_path / "trian.jsonl")
    with pytest.raises(DataError, match=r"is a folder, not a data file: .*\(it has train.jsonl\)"):
        read_comparisons(tmp_path)


def test_the_content_decides_what_is_gzipped(tmp_path):
    for name, content in (("a.jsonl", gzip.compress(LINE)), ("b.jsonl.gz", LINE), ("c.jsonl.gz", gzip.compress(LINE))):
        assert len(read_comparisons(put(tmp_path, content, name)).comparisons) == 1


def test_byte_order_mark_and_line_separators_within_text(tmp_path):
    row = GOOD | {"chosen": "one\u2028two\x85three"}
    path = put(tmp_path, b"\xef\xbb\xbf" + json.dumps(row, ensure_ascii=False).encode() + b"\r\n" + LINE)
    first, second = read_comparisons(path).comparisons
    assert first.response_a == "one\u2028two\x85three"
    assert second.source == "data.jsonl:2"


def test_json_array_and_json_that_is_lines(tmp_path):
    path = put(tmp_path, json.dumps([GOOD, 3, GOOD], indent=1).encode(), "data.json")
    result = read_comparisons(path, max_bad_fraction=0.5)
    assert [c.source for c in result.comparisons] == ["data.json:1", "data.json:3"]
    assert result.bad_rows[0].line == 2
    assert len(read_comparisons(put(tmp_path, LINE * 2, "lines.json")).comparisons) == 2


def test_csv_of_other_people(tmp_path):
    content = (
        b"prompt,chosen,rejected,labels,note\n"
        b'"[{""role"": ""user"", ""content"": ""q""}]","good, ""very""","two\nlines","{""h"": 1}",\n'
        b"\"[{'role': 'user', 'content': 'q'}]\",x,y,\"{'h': -1}\",kept\n"  # as pandas writes a list of dicts
        b'"[1, 2] is a list?",yes,no,"{""h"": 0}",\n'
        b"too,few\n"
        b'p,\xff,y,"{""h"": 1}",\n'
        b'p,x,y,"{""h"": 1}",\n'
    )
    result = read_comparisons(put(tmp_path, content, "data.csv"), max_bad_fraction=0.5)
    first, second, third, fourth = result.comparisons
    assert first.prompt == second.prompt == [{"role": "user", "content": "q"}]
    assert first.response_a == [{"role": "assistant", "content": 'good, "very"'}]
    assert (int(first.labels["h"]), int(second.labels["h"]), int(third.labels["h"])) == (1, -1, 0)
    assert (first.extra, second.extra) == ({}, {"note": "kept"})
    assert third.prompt == "[1, 2] is a list?"
    # The first record spans two lines, so the next begins on line 4.
    assert [c.source.split(":")[1] for c in (first, second, third, fourth)] == ["2", "4", "5", "8"]
    assert [(row.line, row.reason) for row in result.bad_rows] == [
        (6, "2 cells, but the header names 5 columns"),
        (7, "invalid UTF-8"),
    ]


def test_csv_with_a_quote_left_open(tmp_path):
    content = b'prompt,chosen,rejected\np,x,y\np,"x,y\np,x,y\n'
    (bad,) = read_comparisons(put(tmp_path, content, "data.csv"), max_bad_fraction=0.5).bad_rows
    assert bad.line == 3 and "unexpected end of data" in bad.reason


def test_tab_separated(tmp_path):
    (c,) = read_comparisons(put(tmp_path, b"prompt\tchosen\trejected\np\tx,1\ty\n", "data.tsv")).comparisons
    assert c.response_a == "x,1"


def test_parquet_of_other_people(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    q = [{"role": "user", "content": "q"}]
    a, b = [{"role": "assistant", "content": "x"}], [{"role": "assistant", "content": "y"}]
    rows = [
        {"prompt": q, "chosen": a, "rejected": b, "labels": {"h": 1, "k": None}, "n": None},
        {"prompt": q, "chosen": a, "rejected": None, "labels": {"h": 1, "k": None}, "n": 2},
        {"prompt": q, "chosen": b, "rejected": a, "labels": {"h": 0, "k": -1}, "n": 3},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    result = read_comparisons(tmp_path / "data.parquet", max_bad_fraction=0.5)
    first, second = result.comparisons
    assert (first.prompt, first.labels, first.extra) == (q, {"h": 1}, {})
    assert (second.labels, second.extra, second.source) == ({"h": 0, "k": -1}, {"n": 3}, "data.parquet:3")
    assert [(row.line, row.reason) for row in result.bad_rows] == [(2, "'rejected' is missing")]


def test_sha256_is_of_the_content(tmp_path):
    plain, packed = put(tmp_path, LINE), put(tmp_path, gzip.compress(LINE), "data.jsonl.gz")
    expected = hashlib.sha256(LINE).hexdigest()
    assert data_sha256(plain) == data_sha256([packed]) == read_comparisons(plain).sha256 == expected
    both = hashlib.sha256(f"{expected}\n{expected}".encode()).hexdigest()
    assert data_sha256([plain, packed]) == both
    with pytest.raises(DataError, match="There is no file"):
        data_sha256([tmp_path / "none.jsonl"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "The limit is 0"),
        ({"max_bad_fraction": 1.5}, "share of bad rows is 1.5"),
        ({"max_bad_fraction": float("nan")}, "share of bad rows is nan"),
        ({"margin": -1.0}, "The margin is -1.0"),
        ({"margin": float("nan")}, "The margin is nan"),
        ({"split": "train"}, "belongs to a hub data set"),
    ],
)
def test_options_that_cannot_work(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        read_comparisons(put(tmp_path, LINE), **options)


def test_hub_data_set(monkeypatch):
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        if split == "nope":
            raise ValueError('Unknown split "nope".\nShould be one of [train].')
        return [GOOD | {"note": None}, GOOD | {"chosen": ""}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    result = read_comparisons("owner/name", max_bad_fraction=0.5)
    assert [c.source for c in result.comparisons] == ["name:1"]
    assert result.comparisons[0].extra == {}
    assert [(str(row)) for row in result.bad_rows] == ["owner/name:2: the first answer is empty"]
    assert result.sha256 == read_comparisons("owner/name", max_bad_fraction=0.5).sha256
    read_comparisons("owner/name:test", max_bad_fraction=0.5)
    read_comparisons("owner/name", split="val", max_bad_fraction=0.5)
    assert [split for _, split in asked] == ["train", "train", "test", "val"]
    with pytest.raises(DataError, match=r"no data set 'owner/name' with a split 'nope': Unknown split .nope.. Should"):
        read_comparisons("owner/name:nope")


def test_a_mistyped_path_is_not_looked_up_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("data/train", "train", "other/train.jsonl"):
        with pytest.raises(DataError, match="There is no file"):
            read_comparisons(name)


_PIECES = st.sampled_from(
    [b"[", b"]", b"{", b"}", b'"', b",", b"\n", b"\r", b":", b"prompt", b"chosen", b"rejected", b"\xff"]
)
_ROWS = st.dictionaries(
    st.sampled_from(["prompt", "chosen", "rejected", "response_a", "response_b", "labels", "strengths", "completions"])
    | st.sampled_from(["instruction", "response", "response_0", "response_1", "better_response_id", "h", "id"]),
    st.recursive(
        st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["", "x", "\n\nHuman: q\n\nAssistant: a"]),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(st.sampled_from(["role", "content", "response", "annotations", "h"]), inner, max_size=3)
        ),
        max_leaves=6,
    ),
)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary() | st.lists(_PIECES | st.binary(max_size=3)).map(b"".join))
def test_any_bytes_are_read_or_refused(tmp_path, suffix, content):
    path = put(tmp_path, content, f"data{suffix}")
    try:
        result = read_comparisons(path, max_bad_fraction=1.0)
    except DataError as error:
        assert "\n" not in str(error)
        return
    assert result.seen == len(result.comparisons) + len(result.bad_rows) > 0


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(_ROWS, min_size=1, max_size=3))
def test_any_rows_are_read_or_refused(tmp_path, rows):
    path = put(tmp_path, b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    try:
        result = read_comparisons(path, max_bad_fraction=1.0)
    except DataError as error:
        assert "\n" not in str(error)
        return
    if result.format not in ("ultrafeedback", "scores"):
        assert len(result.comparisons) + len(result.bad_rows) == len(rows)
    assert all(row.reason and "\n" not in row.reason for row in result.bad_rows)


def test_public_names_exist():
    import trimtab.preferences as preferences

    assert sorted(preferences.__all__) == sorted(set(preferences.__all__))
    for name in preferences.__all__:
        assert getattr(preferences, name) is not None
