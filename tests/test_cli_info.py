"""``trimtab info`` as a user meets it."""

from __future__ import annotations

import json

import pytest

import guides
from trimtab.cli.main import main


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    """Run the command line; returns exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as done:
        main(["info", *arguments])
    captured = capsys.readouterr()
    return int(done.value.code or 0), captured.out, captured.err


def test_a_sound_guide(llama_folder, tmp_path, capsys):
    _, folder = guides.saved(llama_folder, tmp_path / "g", training={"seed": 3}, metrics={"loss": 0.5})
    code, out, _ = run(capsys, str(folder), "--base", str(llama_folder))
    assert code == 0
    for word in ("polite (maximize)", "Says please.", "q_proj", "training.seed", "metrics.loss", "0.1 / 1"):
        assert word in out
    assert out.count("ok ") == 4
    assert "FAILED" not in out


def test_json(llama_folder, tmp_path, capsys):
    _, folder = guides.saved(llama_folder, tmp_path / "g")
    code, out, _ = run(capsys, str(folder), "--json")
    found = json.loads(out)
    assert code == 0
    assert found["manifest"]["objectives"][0]["name"] == "polite"
    # rank 4; q and v: in 32, out 32 and 16; down: in 64, out 32; two layers
    assert found["weights"]["parameters"] == 2 * 4 * ((32 + 32) + (32 + 16) + (64 + 32))
    assert (found["weights"]["rank"], found["weights"]["alpha"]) == (4, 8)
    assert [check["ok"] for check in found["checks"]] == [True, True, True]


def test_a_full_fine_tune(llama_folder, tmp_path, capsys):
    base, folder = guides.saved(llama_folder, tmp_path / "g", adapter="full")
    code, out, _ = run(capsys, str(folder), "--json")
    assert code == 0
    assert json.loads(out)["weights"]["parameters"] == sum(p.numel() for p in base.model.parameters())


def test_a_damaged_guide_is_shown_with_what_is_wrong(llama_folder, tmp_path, capsys):
    _, folder = guides.saved(llama_folder, tmp_path / "g")
    (folder / "adapter_model.safetensors").write_bytes(b"short")
    code, out, _ = run(capsys, str(folder))
    assert code == 1
    assert "polite" in out and "FAILED" in out and "cut off or damaged" in " ".join(out.split())


def test_another_base(llama_folder, gpt2_folder, tmp_path, capsys):
    _, folder = guides.saved(llama_folder, tmp_path / "g")
    code, out, _ = run(capsys, str(folder), "--base", str(gpt2_folder), "--json")
    assert code == 1
    assert "other weights" in json.loads(out)["checks"][-1]["detail"]


@pytest.mark.parametrize("name", ["nowhere", ""])
def test_no_guide_there_is_one_line(tmp_path, capsys, name):
    code, out, err = run(capsys, str(tmp_path / name))
    assert (code, out) == (1, "")
    assert err.startswith("Error: ") and err.count("\n") == 1


def test_control_codes_from_a_folder_do_not_reach_the_terminal(llama_folder, tmp_path, capsys):
    _, folder = guides.saved(llama_folder, tmp_path / "g", metrics={"\x1b[2J": "[red]x[/red]\x07"})
    _, out, _ = run(capsys, str(folder))
    assert "\x1b" not in out and "\x07" not in out
    assert "[red]x[/red]" in out


def test_environment(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    code, out, _ = run(capsys)
    assert code == 0
    for word in ("trimtab", "python", "torch", "transformers", "peft", "device", "cpu bfloat16", "smollm2 ready"):
        assert word in out
    code, out, _ = run(capsys, "--json")
    found = json.loads(out)
    assert (found["smollm2_ready"], found["cache_folder"]) == (False, str(tmp_path))
