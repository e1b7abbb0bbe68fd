"""``trimtab data …`` as a user runs it: what it prints, and how it ends."""

from __future__ import annotations

import json

import pytest

from trimtab.cli.main import main
from trimtab.preferences import read_comparisons


def row(i, **change):
    return {"id": str(i), "prompt": f"p{i}", "chosen": "x y", "rejected": "z", "labels": {"h": 1, "k": -1}} | change


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(["data", *map(str, arguments)])
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    return run


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "data.jsonl"
    rows = [row(1), row(2, labels={"h": 0}), row(3, labels={"h": 1, "k": 1}), row(1)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_check_says_everything_in_80_columns(run, file, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps(row(2)) + "\n")
    code, out, err = run("check", "data.jsonl", "--against", "other.jsonl", "--max-length", 2)
    assert (code, err) == (0, "")
    assert max(len(line) for line in out.splitlines()) <= 80
    lines = " ".join(out.split())
    assert "4 comparisons of 3 prompts, format labels, plain text" in lines
    assert "h 3 0 1 0" in lines and "k 1 2 0 1" in lines
    assert "1 rows repeat an earlier pair (0 with the answers swapped, 0 contradict it)" in lines
    assert "data.jsonl:4 repeats data.jsonl:1" in lines
    assert "Shared with other.jsonl: 1 prompts (1 rows here), 1 first user messages" in lines
    assert "Cut at 2 words: 0 prompts, 4 pairs of answers; 0 pairs become equal" in lines
    # The longer answer wins in all three decided rows of h: Wilson's upper end for 0 of 3 is z²/(3 + z²) = 0.5615.
    assert "h 0.0% (0.0%–56.1%) 100.0% (43.9%–100.0%) 3" in lines
    assert "Bad rows: none" in lines


def test_check_prints_one_json_document(run, file, llama_folder):
    code, out, err = run("check", "data.jsonl", "--json", "--base", llama_folder)
    assert (code, err) == (0, "")
    value = json.loads(out)
    assert out.count("\n") == 1
    assert (value["format"], value["ok"], value["comparisons"], value["unit"]) == ("labels", True, 4, "tokens")
    assert value["sha256"] == read_comparisons(file).sha256


def test_bad_rows_over_the_threshold_end_with_1(run, file):
    with file.open("a") as f:
        f.write("nonsense\n" + json.dumps(row(9, chosen="[bold]z[/bold]", rejected=None)) + "\n")
    code, out, _ = run("check", "data.jsonl")
    assert code == 1
    assert "Bad rows: 2 (33.3%, over the accepted 1.0%)" in out
    assert "line 5: not JSON: Expecting value at column 1" in out and "line 6: 'rejected' is missing" in out
    code, out, _ = run("check", "data.jsonl", "--max-bad-fraction", 0.5)
    assert code == 0 and "within the accepted 50.0%" in out
    code, out, _ = run("check", "data.jsonl", "--json")
    assert code == 1
    value = json.loads(out)
    assert (value["ok"], [r["line"] for r in value["bad_rows"]]) == (False, [5, 6])


def test_convert_there_and_back(run, file, tmp_path):
    code, out, err = run("convert", "data.jsonl", "c.parquet", "--to", "canonical")
    assert (code, out, err) == (0, "4 comparisons written to c.parquet (canonical).\n", "")
    code, _, _ = run("convert", "c.parquet", "back.csv.gz", "--to", "labels", "--objective", "k")
    assert code == 0

    def bare(name):
        return [
            (c.prompt, c.response_a, c.response_b, dict(c.labels), c.id) for c in read_comparisons(name).comparisons
        ]

    assert bare("back.csv.gz") == bare("data.jsonl")


def test_convert_to_trl_reports_what_it_leaves_out(run, file, tmp_path):
    code, out, err = run("convert", "data.jsonl", "t.jsonl", "--to", "trl", "--objective", "k")
    assert (code, out) == (0, "3 comparisons written to t.jsonl (trl).\n")
    assert err == "Left out: 0 tied and 1 not judged. --to labels keeps them.\n"
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert [(r["chosen"], r["rejected"]) for r in rows] == [("z", "x y"), ("x y", "z"), ("z", "x y")]


def test_convert_names_the_bad_rows_it_accepts(run, file):
    with file.open("a") as f:
        f.write("nonsense\n" * 12)
    code, _, err = run("convert", "data.jsonl", "o.jsonl", "--to", "canonical", "--max-bad-fraction", 0.9)
    assert code == 0
    assert "Bad row left out: data.jsonl:5: not JSON" in err and "… and 2 more bad rows." in err


def test_split(run, tmp_path):
    rows = [row(i, prompt=f"p{i % 40}", chosen=f"x{i}") for i in range(80)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    code, out, err = run("split", "data.jsonl", "t.jsonl", "v.jsonl.gz", "--fraction", 0.25)
    assert (code, err) == (0, "")
    train, held_out = (read_comparisons(name).comparisons for name in ("t.jsonl", "v.jsonl.gz"))
    assert len(train) + len(held_out) == 80
    assert not {c.prompt for c in train} & {c.prompt for c in held_out}
    assert out.startswith(f"{len(train)} comparisons written to t.jsonl (labels).")
    for extra, message in ((["t.jsonl"], "Both parts would go to"), (["w.jsonl", "--limit", 1], "leaves a part empty")):
        code, _, err = run("split", "data.jsonl", "t.jsonl", *extra)
        assert code == 1 and message in err
    assert not (tmp_path / "w.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "none.jsonl"], "Error: There is no file none.jsonl"),
        (["check", "."], "Error: . is a folder"),
        (["check", "data.jsonl", "--format", "pku"], "Error: data.jsonl is not in the format 'pku'"),
        (["check", "data.jsonl", "--max-bad-fraction", "2"], "Error: The accepted share of bad rows is 2.0"),
        (["check", "data.jsonl", "--max-prompt-length", "5"], "Error: --max-prompt-length says nothing"),
        (["check", "data.jsonl", "--against", "none.jsonl"], "Error: There is no file none.jsonl"),
        (["convert", "data.jsonl", "o.jsonl", "--to", "trl"], "Error: TRL's form holds one objective"),
        (["convert", "data.jsonl", "o.jsonl", "--to", "csv"], "Error: Unknown format to write 'csv'"),
        (["convert", "data.jsonl", "no/o.jsonl", "--to", "labels"], "Error: no/o.jsonl cannot be written"),
    ],
)
def test_errors_are_one_line_and_write_nothing(run, file, tmp_path, arguments, message):
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith(message) and err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["data.jsonl"]


def test_markup_in_the_data_is_printed_as_it_is(run, tmp_path):
    rows = [row(1, labels={"[red]h": 1}), {"[bold]": 1}]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    _, out, _ = run("check", "m.jsonl")
    assert "[red]h" in out


def test_help_needs_no_torch():
    import subprocess
    import sys

    code = (
        "import sys; from trimtab.cli.main import app; import trimtab.preferences.checks; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
