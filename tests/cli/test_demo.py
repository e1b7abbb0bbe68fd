"""``trimtab demo``, on a tiny base: what it runs and what it prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.cli.demo import load_sample
from trimtab.cli.main import main


def test_the_sample_has_no_prompt_in_both_parts():
    train, held_out = load_sample()
    assert (len(train), len(held_out)) == (814, 117)
    assert not {str(c.prompt) for c in train} & {str(c.prompt) for c in held_out}


def test_it_trains_ranks_answers_and_says_what_to_do_next(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["demo", "--base", str(llama_folder), "--pairs", "8", "--prompts", "2"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for part in ("untrained model", "Plain and guided answers", "gain over plain", "trimtab train --method genarm"):
        assert part in shown
    assert (tmp_path / "trimtab-demo" / "guide" / "guide.json").is_file()
    with pytest.raises(SystemExit) as again:
        main(["demo"])
    assert again.value.code == 1
    assert "exists already" in capsys.readouterr().err
