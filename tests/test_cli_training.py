"""``trimtab train`` and ``trimtab rank`` as a user meets them."""

from __future__ import annotations

import json

import pytest

from trimtab.cli.main import main


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    paths = []
    for name, start, count in (("train", 0, 12), ("val", 50, 6)):
        path = folder / f"{name}.jsonl"
        rows = [
            {"prompt": f"question {i}", "chosen": f" please {i % 3}", "rejected": f" go away {i % 5}"}
            for i in range(start, start + count)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        paths.append(str(path))
    return paths


@pytest.fixture
def flags(files, llama_folder, tmp_path):
    return [
        "train",
        *("--data", files[0], "--eval-data", files[1], "--base", str(llama_folder)),
        *("--output-dir", str(tmp_path / "out"), "--learning-rate", "0.01", "--num-train-epochs", "4"),
        *("--max-length", "64", "--max-prompt-length", "32", "--no-bf16", "--objective", "polite"),
    ]


def test_train_ends_with_the_ranking_and_the_next_commands(flags, files, tmp_path, capsys):
    main_ok(flags)
    shown = capsys.readouterr()
    assert "Held-out ranking accuracy on 'polite'" in shown.out
    assert "untrained model" in shown.out
    assert "length alone" in shown.out
    assert f"trimtab rank --guide {tmp_path / 'out'} --data {files[1]}" in shown.out
    assert f"--guide {tmp_path / 'out'} --prompt" in shown.out
    assert "Training on 12 of 12 pairs for 'polite'." in shown.err
    assert "Held out: 6 of 6 pairs" in shown.err
    main_ok(["rank", "--guide", str(tmp_path / "out"), "--data", files[1], "--json"])
    ranked = json.loads(capsys.readouterr().out)
    assert ranked["guide"]["value"] == 1.0
    assert ranked["objective"] == "polite"
    assert ranked["n"] == 6


def test_train_prints_one_json_document(flags, capsys):
    main_ok([*flags, "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["pairs"] == 12
    assert result["held_out"]["polite"]["n"] == 6


def test_config_file_gives_way_to_flags(flags, tmp_path, capsys):
    config = tmp_path / "c.yaml"
    config.write_text("learning_rate: 0.5\nmax-steps: 2\n")
    main_ok([*flags, "--config", str(config), "--json"])
    assert json.loads(capsys.readouterr().out)["metrics"]["train_loss"] < 1.5
    saved = (tmp_path / "out" / "config.yaml").read_text()
    assert "learning_rate: 0.01" in saved
    assert "max_steps: 2" in saved


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--data", "missing.jsonl"], "missing.jsonl"),
        (["--base", "no-such-folder"], "no-such-folder"),
        (["--lora", "use_rslor=true"], "Did you mean 'use_rslora'"),
        (["--learning-rate", "nan"], "learning_rate"),
    ],
)
def test_bad_input_is_one_line(flags, change, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*flags, *change])
    assert caught.value.code == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("Error: ")
    assert message in error
    assert not (tmp_path / "out" / "guide.json").exists()


def main_ok(arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0


def test_a_scalar_reward_model_is_shown_as_a_judge(flags, tmp_path, capsys):
    main_ok([*flags, "--method", "scalar", "--labelled-by", "people"])
    shown = capsys.readouterr()
    assert "The reward model for 'polite' is in" in shown.out
    assert "Of 6 held-out pairs it ranks" in shown.out
    assert "length alone" in shown.out
    assert f"--scorers reward:{tmp_path / 'out'}" in shown.out.replace("\n", "")
    assert "generate" not in shown.out
