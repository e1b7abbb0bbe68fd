"""``trimtab generate``: guided answers to one prompt or to a file of prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field
from rich.progress import Progress

from trimtab.cli.console import note, print_json, progress_console, write
from trimtab.cli.options import command_from, config_file, flag, resolve_config
from trimtab.cli.output import check_writable, write_whole
from trimtab.cli.prompts import PromptRow, as_prompt, read_prompts
from trimtab.cli.steering import SteeringOptions, describe, guidance_of, load_engine, sampling_of
from trimtab.decoding.config import Sampling
from trimtab.errors import ConfigError

if TYPE_CHECKING:
    from trimtab.engine import Engine, Generation, Guidance


class GenerateOptions(Sampling, SteeringOptions):
    """Options of ``trimtab generate``; the file for --config has the same keys."""

    prompt: str | None = Field(None, description="One prompt; a user turn unless --raw.")
    input: Path | None = Field(None, description="Prompts as .jsonl or .jsonl.gz: 'prompt' (text or turns), 'id'.")
    output: Path | None = Field(None, description="Write the answers here as JSON lines (.gz: compressed).")
    raw: bool = Field(False, description="Take text prompts as plain text to continue, not as a user turn.")
    batch_size: int = Field(16, ge=1, description="Most answers written at a time.")
    suite: str | None = Field(
        None,
        description="alpaca_eval or mt_bench: --input is that suite's file of questions, and --output gets the answers "
        "as its own tool reads them, every turn answered.",
    )
    model_name: str | None = Field(
        None, description="What the model is called in a suite's file (default: the name of --output)."
    )


_EXTRA = [flag("as_json", "Print one JSON object for each answer.", "--json"), config_file()]


def run(given: dict[str, Any], as_json: bool, config: Path | None) -> None:
    """Answer prompts with a base model steered by guides.

    One prompt (--prompt) or a file of them (--input). Answers go to stdout, or to --output as JSON lines with the
    prompt's id and the weights, preferences, seed and sampling that were applied. With --suite, the questions are those
    of AlpacaEval or MT-bench, and the answers are written as its tool reads them.
    """
    options = resolve_config(GenerateOptions, given, config)
    if options.suite is not None:
        from trimtab.cli.suites import run_suite

        run_suite(options, as_json=as_json)
        return
    if options.model_name is not None:
        raise ConfigError("--model-name names the model in a suite's file: it needs --suite.")
    # Everything that can be wrong is looked at before a model is loaded.
    rows = _rows(options)
    guidance = guidance_of(options)
    if options.output is not None:
        check_writable(options.output)
    engine = load_engine(options)
    if engine.guides:
        note(f"Steering: {describe(engine, guidance)}.")
    answers = _generate(engine, rows, guidance, options)
    results = [_result(rows[answer.prompt_index], answer, options) for answer in answers]
    if options.output is not None:
        lines = [json.dumps(result, ensure_ascii=False, allow_nan=False) + "\n" for result in results]
        write_whole(options.output, "".join(lines))
        note(f"Wrote {len(lines)} answers to {options.output}.")
    if as_json:
        for result in results:
            print_json(result)
    elif options.output is None:
        _print(rows, answers)


command = command_from(GenerateOptions, run, extra=_EXTRA)


def _rows(options: GenerateOptions) -> list[PromptRow]:
    if (options.prompt is None) == (options.input is None):
        what = "neither" if options.prompt is None else "both"
        raise ConfigError(f"Give one of --prompt TEXT and --input FILE; got {what}.")
    if options.input is not None:
        return read_prompts(options.input, raw=options.raw, system=options.system)
    return [PromptRow(0, as_prompt(options.prompt or "", raw=options.raw, system=options.system))]


def _generate(
    engine: Engine, rows: Sequence[PromptRow], guidance: Guidance, options: GenerateOptions
) -> list[Generation]:
    prompts = [row.prompt for row in rows]
    quiet = len(rows) * options.n == 1 or not progress_console.is_terminal
    with Progress(console=progress_console, transient=True, disable=quiet) as bar:
        task = bar.add_task("Answering", total=len(rows) * options.n)
        return engine.generate(
            prompts,
            guidance=guidance,
            sampling=sampling_of(options),
            max_batch_size=options.batch_size,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def _result(row: PromptRow, answer: Generation, options: GenerateOptions) -> dict[str, Any]:
    sampling = sampling_of(options).model_dump(mode="json")
    return {
        "id": row.id,
        "prompt": row.prompt,
        "response": answer.text,
        "sample": answer.sample_index,
        "finish_reason": answer.finish_reason,
        "tokens": len(answer.token_ids),
        "base": options.base,
        "weights": dict(answer.weights),
        "preferences": dict(answer.preferences),
        "strength": options.strength,
        "sampling": {**sampling, "seed": answer.seed},
    }


def _print(rows: Sequence[PromptRow], answers: Sequence[Generation]) -> None:
    for answer in answers:
        if len(answers) > 1:
            sample = f" sample {answer.sample_index}" if answer.sample_index else ""
            write(f"--- {rows[answer.prompt_index].id}{sample}\n")
        write(answer.text + "\n")
