"""``trimtab judge``: which of two systems' answers a language model prefers, asked in both orders."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import Field
from rich.progress import Progress

from trimtab.cli.console import escape, note, out, print_json, progress_console
from trimtab.cli.options import command_from, config_file, flag, parameter, resolve_config
from trimtab.cli.output import check_writable, write_whole
from trimtab.errors import ConfigError, DataError
from trimtab.evaluation.judges.config import JudgeConfig
from trimtab.validation import validated

if TYPE_CHECKING:
    from trimtab.evaluation.judges import JudgedPair, JudgeReport


class JudgeOptions(JudgeConfig):
    """Options of ``trimtab judge``; the file for --config has the same keys."""

    rubric_file: Path | None = Field(None, description="Text file with the rubric, instead of --rubric.")
    limit: int | None = Field(None, ge=1, description="Judge only the first N pairs.")
    cache: Path | None = Field(
        None, description="File of replies by what was asked (default: judgements.jsonl in the cache folder)."
    )
    use_cache: bool = Field(True, description="Ask nothing twice, also after a run that was cut short.")
    output: Path | None = Field(None, description="Write each pair's verdicts here as JSON lines.")


_FILE = "Answers from 'trimtab generate --output' (.jsonl), or in AlpacaEval's form (.json)."
_EXTRA = [
    parameter("a", Annotated[Path, typer.Argument(metavar="A", help=f"The first system's answers. {_FILE}")]),
    parameter("b", Annotated[Path, typer.Argument(metavar="B", help="The second system's, to the same prompts.")]),
    flag("dry_run", "Say what it will take, and ask nothing.", "--dry-run"),
    flag("yes", "Begin without asking whether to.", "--yes", "-y"),
    flag("as_json", "Print the result as one JSON document.", "--json"),
    config_file(),
]


def run(
    given: dict[str, Any], *, a: Path, b: Path, dry_run: bool, yes: bool, as_json: bool, config: Path | None
) -> None:
    """Let a language model compare two systems' answers to the same prompts.

    The model is asked about every pair twice, with either answer first. Two verdicts for the same answer are a win for
    its system; all else is a tie, also two verdicts that disagree. Wins, ties and losses are those of A. Position
    bias, consistency and the win rate at equal length say what the verdicts are worth. What it will cost is said first.
    """
    from trimtab.evaluation.judges import estimate, judge_pairs, pair_up, read_answers

    options = resolve_config(JudgeOptions, given, config)
    settings = _settings(options)
    key = api_key(options.api_key_env)
    pairs = pair_up(read_answers(a), read_answers(b), limit=options.limit)
    if options.output is not None:
        check_writable(options.output)
    cache = _cache(options)
    expected = estimate(pairs, settings, cache=cache)
    note(f"{len(pairs)} pairs for the judge {options.judge_model!r}: {expected}.")
    if dry_run:
        return
    if expected.requests and not yes:
        confirm()
    with Progress(console=progress_console, transient=True, disable=not progress_console.is_terminal) as bar:
        task = bar.add_task("Judging", total=len(pairs))
        report, judged = judge_pairs(
            pairs,
            settings,
            api_key=key,
            cache=cache,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if options.output is not None:
        lines = [json.dumps(pair.to_dict(), ensure_ascii=False, allow_nan=False) + "\n" for pair in judged]
        write_whole(options.output, "".join(lines))
        note(f"Wrote {len(lines)} verdicts to {options.output}.")
    if as_json:
        print_json({"a": str(a), "b": str(b), "verdict": options.verdict, **report.to_dict()})
    else:
        show_report(report, judged)
        if report.unjudged and options.verdict == "text":
            note("A judge that does not keep to the asked form may do with --verdict logprobs, which reads one letter.")


command = command_from(JudgeOptions, run, extra=_EXTRA)


def show_report(report: JudgeReport, judged: list[JudgedPair]) -> None:
    """Print the report as a table."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=f"A against B, judged by {escape(report.judge)} in both orders", title_justify="left", box=box.SIMPLE_HEAD
    )
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("wins / ties / losses of A", f"{report.wins} / {report.ties} / {report.losses}")
    table.add_row("win rate of A, ties half (95 % bootstrap)", _rate(report.win_rate, report.win_rate_interval))
    table.add_row("win rate of A at equal length", _rate(report.length_controlled, report.length_controlled_interval))
    table.add_row("p, that neither is preferred", "-" if report.p_value is None else f"{report.p_value:.3g}")
    table.add_row("mean preference for A", _rate(report.preference, None))
    table.add_row("orders that agree", _rate(report.consistency, None))
    table.add_row("verdicts for what is shown first", _rate(report.shown_first, report.shown_first_interval))
    table.add_row("words an answer, A / B", f"{report.words[0]:.1f} / {report.words[1]:.1f}")
    out.print(table)
    if report.equal:
        out.print(f"{report.equal} of the ties are equal answers, which nobody was asked about.", markup=False)
    if report.unjudged:
        problem = next(pair.problem for pair in judged if pair.outcome is None)
        out.print(f"{report.unjudged} pairs are in no rate: {problem}.", markup=False)


def _rate(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _settings(options: JudgeOptions) -> JudgeConfig:
    values: dict[str, Any] = {name: getattr(options, name) for name in JudgeConfig.model_fields}
    return validated(JudgeConfig, values | rubric_in(options.rubric_file))


def rubric_in(file: Path | None) -> dict[str, str]:
    """Return the rubric that a file holds, as a change of a judge's config; nothing without a file.

    Raises:
        DataError: the file cannot be read.
    """
    if file is None:
        return {}
    try:
        return {"rubric": file.read_text(encoding="utf-8")}
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The rubric {file} cannot be read ({error}).") from error


def api_key(variable: str | None) -> str | None:
    """Return the API key in an environment variable.

    Raises:
        ConfigError: there is none.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"There is no API key in the environment variable {variable!r}: set it.")
    return key


def _cache(options: JudgeOptions) -> Path | None:
    if not options.use_cache:
        return None
    if options.cache is not None:
        return options.cache
    from trimtab.models.packaged import cache_folder

    return cache_folder() / "judgements.jsonl"


def confirm() -> None:
    """Ask whether to begin with what costs money.

    Raises:
        ConfigError: nobody is there to answer.
        Exit: the answer is no.
    """
    if not sys.stdin.isatty():
        raise ConfigError(
            "Nobody is there to say whether to begin: give --yes, or --dry-run to see only what it takes."
        )
    if not typer.confirm("Begin?", err=True):
        note("Nothing was asked.")
        raise typer.Exit(1)
