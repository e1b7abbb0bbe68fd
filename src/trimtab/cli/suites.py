"""``trimtab generate --suite``: the questions of AlpacaEval or MT-bench, answered in the format of their tools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import Progress

from trimtab.cli.console import note, progress_console
from trimtab.cli.output import check_writable, write_whole
from trimtab.cli.steering import describe, guidance_of, load_engine, sampling_of
from trimtab.errors import ConfigError
from trimtab.evaluation.suites.common import check_samples

if TYPE_CHECKING:
    from trimtab.cli.generate import GenerateOptions
    from trimtab.evaluation.suites import Suite


def run_suite(options: GenerateOptions, *, as_json: bool) -> None:
    """Answer a suite's questions and write the file.

    Raises:
        ConfigError: an option that does not go with a suite.
        DataError: the questions cannot be read.
    """
    from trimtab.evaluation.suites import answer_suite, get_suite
    from trimtab.evaluation.suites.answering import NO_ROOM
    from trimtab.evaluation.suites.common import check_output

    suite = get_suite(options.suite or "")
    source, target = _places(options, suite, as_json=as_json)
    check_output(suite, target)
    questions = suite.read(source)
    guidance = guidance_of(options)
    check_writable(target)
    engine = load_engine(options)
    if engine.guides:
        note(f"Steering: {describe(engine, guidance)}.")
    own = "temperature" not in options.model_fields_set and any(q.temperature is not None for q in questions)
    if own:
        note("Temperatures: those of the suite, by category; --temperature sets another for all.")
    with Progress(console=progress_console, transient=True, disable=not progress_console.is_terminal) as bar:
        task = bar.add_task("Answering", total=None)
        answers = answer_suite(
            engine,
            questions,
            guidance=guidance,
            sampling=sampling_of(options),
            suite_temperatures=own,
            system=options.system,
            max_batch_size=options.batch_size,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    write_whole(target, suite.write(questions, answers, options.model_name or target.stem))
    reasons = [reason for chats in answers for chat in chats for reason in chat.finish_reasons]
    note(f"Wrote {len(reasons)} answers to {len(questions)} questions to {target}.")
    if reasons.count("length"):
        note(f"{reasons.count('length')} of them ended at --max-tokens {options.max_tokens}.")
    if reasons.count(NO_ROOM):
        note(f"{reasons.count(NO_ROOM)} turns are empty: the conversation before them fills the context.")


def _places(options: GenerateOptions, suite: Suite, *, as_json: bool) -> tuple[Path, Path]:
    if options.input is None or options.prompt is not None:
        raise ConfigError(f"--suite {suite.name} reads its questions from a file: give it as --input, and no --prompt.")
    if options.output is None or as_json:
        raise ConfigError(
            f"--suite {suite.name} writes the file its tool reads: name it with --output, without --json."
        )
    if options.raw:
        raise ConfigError(f"--suite {suite.name} is a chat: leave --raw out.")
    check_samples(suite, options.n)
    return options.input, options.output
