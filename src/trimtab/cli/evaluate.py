"""``trimtab evaluate``: settings compared on the same prompts, with controls, and a report."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trimtab.cli.console import note, print_json, progress_console
from trimtab.cli.evaluate_plan import list_known, show_plan
from trimtab.cli.judge import api_key, confirm, rubric_in
from trimtab.cli.options import command_from, config_file, flag, resolve_config
from trimtab.cli.prompts import read_prompts
from trimtab.cli.steering import SteeringOptions, load_engine, parse_weights
from trimtab.errors import ConfigError, TrimtabError
from trimtab.evaluation.sweeps.config import SweepConfig
from trimtab.evaluation.sweeps.judge_options import JudgeFlags, judge_of

if TYPE_CHECKING:
    from trimtab.evaluation.judges import Estimate
    from trimtab.evaluation.suites import Question, Suite
    from trimtab.evaluation.sweeps.generation import Prompt
    from trimtab.evaluation.sweeps.judge_options import SweepJudge
    from trimtab.evaluation.sweeps.judging import Judging
    from trimtab.evaluation.sweeps.run import Result, Run
    from trimtab.evaluation.sweeps.settings import Setting
    from trimtab.evaluation.sweeps.store import RunFolder


class EvaluateOptions(SweepConfig, SteeringOptions, JudgeFlags):
    """Options of ``trimtab evaluate``; the file for --config has the same keys."""

    prompts: Path | None = Field(
        None, description="Prompts as .jsonl ('prompt': text or turns, 'id'), .json or .txt; also with .gz."
    )
    suite: str | None = Field(
        None,
        description="alpaca_eval or mt_bench: --prompts is that suite's file of questions, and each setting's answers "
        "are written in suites/ as its own tool reads them, every turn answered.",
    )
    limit: int | None = Field(None, ge=1, description="Use only the first N prompts.")
    raw: bool = Field(False, description="Take text prompts as plain text to continue, not as a user turn.")
    output_dir: Path | None = Field(
        None, description="Folder of the run. Answers that are in it are used again, so a run that was cut off goes on."
    )
    judge_rubric_file: Path | None = Field(
        None,
        description="Text file with the rubric, instead of --judge-rubric.",
        json_schema_extra={"panel": "Judge"},
    )


_EXTRA = [
    config_file("YAML file of options and methods; flags win."),
    flag("as_json", "Print metrics.json to stdout.", "--json"),
    flag("dry_run", "Print the plan, how many answers are missing and how long they take; write nothing.", "--dry-run"),
    flag("yes", "Ask the judge without asking whether to.", "--yes", "-y"),
    flag("list_scorers", "List the scorers.", "--list-scorers"),
]


def run(
    given: dict[str, Any], config: Path | None, as_json: bool, dry_run: bool, yes: bool, list_scorers: bool
) -> None:
    """Compare settings on the same prompts: base, guidance at several strengths or preferences, other methods.

    Writes a folder with every answer, every number, plots and one report.html. Controls stand beside every gain: the
    untrained guide, the base at the temperature of equal KL, answers of like length. With --judge-url and --judge-model
    a language model compares the settings too; what that will cost is said first. A run that was cut off goes on where
    it was; other scorers or settings only add what is missing.
    """
    if list_scorers:
        list_known(as_json)
        return
    options = resolve_config(EvaluateOptions, given, config)
    if options.prompts is None or (options.output_dir is None and not dry_run):
        missing = "--prompts FILE" if options.prompts is None else "--output-dir FOLDER"
        raise ConfigError(f"Give {missing}, or the same key in --config.")
    # Everything that can be wrong is looked at before a model is loaded.
    asked = _asked(options, options.prompts)
    if options.raw and options.system is not None:
        raise ConfigError("--system needs a chat, but --raw makes the prompts plain text: leave one of them out.")
    _check_output(options)
    judge = judge_of(options, **rubric_in(options.judge_rubric_file))
    key = api_key(judge.api_key_env) if judge else None
    settings = _settings(options)
    prepared = _prepare(options, asked, settings)
    with prepared.engine:
        judging = _judging(prepared, options, judge, key)
        costs = _costs(prepared, options, judging)
        if dry_run:
            show_plan(prepared, options, asked.questions, costs, as_json=as_json)
            return
        if costs is not None and costs.requests and not yes:
            confirm()
        result = _carry_out(prepared, options, asked, judging)
    if as_json:
        print_json(result.metrics)
    else:
        from trimtab.cli.evaluate_table import show

        show(result.metrics, options.output_dir or Path())


command = command_from(EvaluateOptions, run, extra=_EXTRA)


def _check_output(options: EvaluateOptions) -> None:
    if options.output_dir is None:
        return
    from trimtab.evaluation.sweeps.store import check_folder

    check_folder(options.output_dir)


def _settings(options: EvaluateOptions) -> list[Setting]:
    """Return the settings, from what the guides' folders say; nothing is loaded yet."""
    from trimtab.evaluation.sweeps.settings import expand
    from trimtab.evaluation.sweeps.stand_in import stand_ins

    return expand(
        options,
        stand_ins(options.guide),
        weights=parse_weights(options.weights),
        strength=options.strength,
        system=options.system,
    )


@dataclasses.dataclass(frozen=True)
class _Asked:
    """What is asked: prompts, and where they are a suite's, its questions."""

    prompts: Sequence[Prompt]
    suite: Suite | None = None
    questions: Sequence[Question] = ()


def _asked(options: EvaluateOptions, path: Path) -> _Asked:
    from trimtab.evaluation.sweeps.generation import Prompt

    if options.suite is None:
        rows = read_prompts(path, raw=options.raw)[: options.limit]
        return _Asked([Prompt(row.id, row.prompt) for row in rows])
    from trimtab.evaluation.suites import get_suite
    from trimtab.evaluation.suites.common import check_samples
    from trimtab.evaluation.sweeps.suites import as_prompts

    suite = get_suite(options.suite)
    if options.raw:
        raise ConfigError(f"--suite {suite.name} is a chat: leave --raw out.")
    check_samples(suite, options.n)
    questions = suite.read(path)[: options.limit]
    return _Asked(as_prompts(questions), suite, questions)


def _prepare(options: EvaluateOptions, asked: _Asked, settings: Sequence[Setting]) -> Run:
    from trimtab.cli.quiet import quiet_libraries
    from trimtab.evaluation.sweeps.run import prepare
    from trimtab.evaluation.sweeps.suites import note_suite

    engine = load_engine(options)
    with quiet_libraries():
        run = prepare(engine, asked.prompts, settings, options, device=options.device)
    if asked.suite is not None:
        note_suite(run, asked.suite, asked.questions)
    return run


def _judging(prepared: Run, options: EvaluateOptions, judge: SweepJudge | None, key: str | None) -> Judging | None:
    if judge is None:
        return None
    from trimtab.evaluation.judges.endpoint import chat_url
    from trimtab.evaluation.sweeps.judging import prepare_judge

    chat_url(judge.judge_url)
    return prepare_judge(prepared, judge, bases=[options.base], force=options.force, api_key=key)


def _costs(prepared: Run, options: EvaluateOptions, judging: Judging | None) -> Estimate | None:
    """Say what the judge will be asked, before an answer is written; ``None`` without a judge."""
    if judging is None:
        return None
    from trimtab.evaluation.sweeps import store
    from trimtab.evaluation.sweeps.judging import expected

    known = store.known_answers(options.output_dir)
    cache = options.output_dir / store.JUDGEMENTS if options.output_dir else None
    found = expected(prepared, judging, known, cache)
    note(f"The judge {judging.config.judge_model!r} will be asked, at most: {found}.")
    return found


def _carry_out(prepared: Run, options: EvaluateOptions, asked: _Asked, judging: Judging | None) -> Result:
    from trimtab.cli.quiet import quiet_libraries
    from trimtab.evaluation.sweeps import store
    from trimtab.evaluation.sweeps.output import write_outputs
    from trimtab.evaluation.sweeps.run import carry_out
    from trimtab.evaluation.sweeps.suites import write_suite

    with quiet_libraries(), store.RunFolder(options.output_dir or Path()) as folder, _bar() as bar:
        try:
            result = carry_out(prepared, folder, command=_command(), progress=bar)
            folder.write(store.CONFIG, _to_yaml(options))
            if asked.suite is not None:
                result.metrics["suite"] = write_suite(
                    prepared, folder, asked.suite, asked.questions, result.samples, progress=bar
                )
                result.metrics["written"] = prepared.written
            if judging is None:
                write_outputs(folder, result, shown_prompts=options.shown_prompts)
                return result
            # The judge is somebody else's machine: what is done without it is kept before it is asked.
            result.metrics["judge"] = judging.to_dict()
            write_outputs(folder, result, shown_prompts=options.shown_prompts)
            return _judge(prepared, options, judging, result, folder, bar)
        except (KeyboardInterrupt, TrimtabError):
            note(f"What was written so far is in {folder.path}: the same command goes on from there.")
            raise


def _judge(
    prepared: Run, options: EvaluateOptions, judging: Judging, result: Result, folder: RunFolder, bar: Any
) -> Result:
    """Have the answers judged, and write report and numbers anew."""
    from trimtab.evaluation.sweeps import store
    from trimtab.evaluation.sweeps.judging import judge_answers
    from trimtab.evaluation.sweeps.output import write_report

    metrics, verdicts = judge_answers(
        prepared,
        judging,
        result.samples,
        folder.path / store.JUDGEMENTS,
        told=lambda found: note(f"Asking the judge {judging.config.judge_model!r}: {found}."),
        progress=bar,
    )
    judged = dataclasses.replace(result, metrics={**result.metrics, "judge": metrics}, judged=verdicts)
    write_report(folder, judged, shown_prompts=options.shown_prompts)
    return judged


def _command() -> str:
    return shlex.join(["trimtab", *sys.argv[1:]])


def _to_yaml(options: EvaluateOptions) -> str:
    import yaml

    return yaml.safe_dump(options.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


@contextmanager
def _bar() -> Generator[Any]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = not progress_console.is_terminal
    with Progress(*columns, console=progress_console, transient=True, disable=hidden) as bar:
        tasks: dict[tuple[str, int], Any] = {}

        def tell(what: str, done: int, total: int) -> None:
            if (what, total) not in tasks:
                tasks[what, total] = bar.add_task(what, total=total)
            bar.update(tasks[what, total], completed=done)

        yield tell
