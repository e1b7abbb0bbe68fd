"""The command line's frame: one vocabulary for file and flags, one-line errors, exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import typer
from pydantic import BaseModel, ConfigDict, Field
from typer.testing import CliRunner

from trimtab.cli.main import main, normalise_flags
from trimtab.cli.options import command_from, resolve_config
from trimtab.errors import ConfigError


class Toy(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: float = Field(5e-4, gt=0, description="Step size.", json_schema_extra={"panel": "Optimiser"})
    bf16: bool = Field(False, description="Use bfloat16.")
    kind: Literal["sigmoid", "hinge"] = Field("sigmoid", description="Loss.")
    data: list[str] = Field(default_factory=list, description="Files.")
    lora: dict[str, object] = Field(default_factory=dict, description="PEFT options.")
    limit: int | None = Field(None, description="First N rows.")


def _run(*arguments: str) -> dict[str, object]:
    seen: dict[str, object] = {}
    app = typer.Typer()
    app.command()(command_from(Toy, seen.update))
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return seen


def test_only_given_flags_are_passed_on():
    assert _run() == {}
    assert _run("--learning-rate", "0.1", "--bf16", "--data", "a", "--data", "b", "--limit", "3") == {
        "learning_rate": 0.1,
        "bf16": True,
        "data": ["a", "b"],
        "limit": 3,
    }


def test_no_flag_can_be_told_from_an_absent_one():
    assert _run("--no-bf16") == {"bf16": False}


def test_mappings_take_key_value_and_yaml_values():
    assert _run("--lora", "r=4", "--lora", "use_dora=true", "--lora", "target_modules=[q, k]") == {
        "lora": {"r": 4, "use_dora": True, "target_modules": ["q", "k"]}
    }
    with pytest.raises(ConfigError, match="--lora takes KEY=VALUE, got 'r'"):
        _run("--lora", "r")


def test_help_shows_defaults_and_descriptions():
    app = typer.Typer()
    app.command()(command_from(Toy, lambda given: None))
    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "120"}).output
    assert "Step size." in text
    assert "0.0005" in text
    assert "Optimiser" in text


def test_flags_beat_the_file(tmp_path: Path):
    file = tmp_path / "c.yaml"
    file.write_text("learning-rate: 0.2\nlimit: 7\n")
    config = resolve_config(Toy, {"limit": 3}, file)
    assert (config.learning_rate, config.limit) == (0.2, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rat: 1", "Unknown option 'learning_rat' in .*Did you mean 'learning_rate'"),
        ("learning_rate: -1", r"learning_rate: Input should be greater than 0 \(got -1\)"),
        ("kind: hing", "kind: Input should be 'sigmoid' or 'hinge'"),
        ("- a", "must be a mapping"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, content: str, message: str):
    file = tmp_path / "c.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        resolve_config(Toy, {}, file)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be read"):
        resolve_config(Toy, {}, tmp_path / "none.yaml")


def test_both_spellings_of_a_flag():
    assert normalise_flags(["train", "--learning_rate=1", "--x", "a_b", "--", "--c_d"]) == [
        "train",
        "--learning-rate=1",
        "--x",
        "a_b",
        "--",
        "--c_d",
    ]


def test_wrong_verb_exits_2(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main(["trainn"])
    assert caught.value.code == 2
    assert "trainn" in capsys.readouterr().err


def test_import_is_light():
    code = "import sys, trimtab, trimtab.cli.main; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
