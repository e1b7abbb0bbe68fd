"""``trimtab score``: what each objective adds to or takes from every token of a given text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field
from rich.progress import Progress

from trimtab.cli.console import note, print_json, progress_console
from trimtab.cli.options import command_from, config_file, flag, resolve_config
from trimtab.cli.output import check_writable, write_whole
from trimtab.cli.prompts import PromptRow, as_prompt, read_answered
from trimtab.cli.steering import SteeringOptions, describe, guidance_of, load_engine
from trimtab.errors import ConfigError

if TYPE_CHECKING:
    from trimtab.evaluation.attribution import Attribution


class ScoreOptions(SteeringOptions):
    """Options of ``trimtab score``; the file for --config has the same keys."""

    response: str | None = Field(None, description="The text to score.")
    prompt: str | None = Field(
        None, description="What it answers; a user turn unless --raw. None: the text's beginning."
    )
    input: Path | None = Field(None, description="Texts as .jsonl or .jsonl.gz: 'prompt', 'response', 'id'.")
    output: Path | None = Field(None, description="Write the scores here as JSON lines (.gz: compressed).")
    raw: bool = Field(False, description="Take text prompts as plain text that goes on, not as a user turn.")
    top: int = Field(0, ge=0, description="Name the K likeliest tokens at each place, before and after guidance.")
    include_eos: bool = Field(True, description="Score the token that ends an answer too.")
    numbers: bool = Field(False, description="Show each token's numbers, also where colours can be shown.")
    batch_size: int = Field(16, ge=1, description="Most texts read at a time.")


_EXTRA = [flag("as_json", "Print one JSON object for each text.", "--json"), config_file()]


def run(given: dict[str, Any], as_json: bool, config: Path | None) -> None:
    """Show what each objective thinks of every token of a text.

    For one text (--response, with the --prompt that it answers) or a file of them (--input, such as 'trimtab generate
    --output' writes): log-ratio = log π_guide − log π_base of each token (of a policy, − log π of the model that it was
    trained from), in nats, objective by objective. Above 0 the objective likes the token better. The playground shows
    the same numbers.
    """
    options = resolve_config(ScoreOptions, given, config)
    texts = _texts(options)
    guidance = guidance_of(options)
    if options.output is not None:
        check_writable(options.output)
    engine = load_engine(options)
    if engine.guides:
        note(f"Steering: {describe(engine, guidance)}.")
    from trimtab.evaluation.attribution import attribute

    quiet = len(texts) == 1 or not progress_console.is_terminal
    with Progress(console=progress_console, transient=True, disable=quiet) as bar:
        task = bar.add_task("Reading", total=len(texts))
        found = attribute(
            engine,
            [(row.prompt, response) for row, response in texts],
            guidance=guidance,
            top=options.top,
            include_eos=options.include_eos,
            max_batch_size=options.batch_size,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    results = [_result(row, one, options) for (row, _), one in zip(texts, found, strict=True)]
    if options.output is not None:
        lines = [json.dumps(result, ensure_ascii=False, allow_nan=False) + "\n" for result in results]
        write_whole(options.output, "".join(lines))
        note(f"Wrote the scores of {len(lines)} texts to {options.output}.")
    if as_json:
        for result in results:
            print_json(result)
    elif options.output is None:
        _show(texts, found, options)


command = command_from(ScoreOptions, run, extra=_EXTRA)


def _texts(options: ScoreOptions) -> list[tuple[PromptRow, str]]:
    if (options.response is None) == (options.input is None):
        what = "neither" if options.response is None else "both"
        raise ConfigError(f"Give one of --response TEXT and --input FILE; got {what}.")
    if options.input is not None:
        if options.prompt is not None:
            raise ConfigError("--prompt goes with --response: the texts of --input have their own.")
        return read_answered(options.input, raw=options.raw, system=options.system)
    if not options.response:
        raise ConfigError("--response is empty: there is nothing to score.")
    prompt = "" if options.prompt is None else as_prompt(options.prompt, raw=options.raw, system=options.system)
    return [(PromptRow(0, prompt), options.response)]


def _result(row: PromptRow, found: Attribution, options: ScoreOptions) -> dict[str, Any]:
    return {"id": row.id, "base": options.base, "strength": options.strength, **found.to_dict()}


def _show(texts: list[tuple[PromptRow, str]], found: list[Attribution], options: ScoreOptions) -> None:
    from trimtab.cli.colours import show_attribution

    for (row, _), one in zip(texts, found, strict=True):
        show_attribution(one, title=str(row.id) if len(texts) > 1 else None, numbers=options.numbers)
