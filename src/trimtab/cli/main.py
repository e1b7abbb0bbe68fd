"""The program ``trimtab``: collects the verbs and turns errors into one line."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from trimtab._version import __version__
from trimtab.cli import chat, data, evaluate, export, fit, generate, harness, judge, rank, score, serve, soup, train
from trimtab.cli.console import note
from trimtab.cli.demo import demo
from trimtab.cli.info import info
from trimtab.cli.quiet import quiet_imports
from trimtab.errors import TrimtabError

app = typer.Typer(
    name="trimtab",
    help="Steer a frozen language model, token by token, with a small autoregressive reward model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo)
app.add_typer(data.app, name="data")
app.command("train")(train.train_command)
app.command("rank")(rank.rank_command)
app.command("evaluate")(evaluate.command)
app.command("fit")(fit.fit_command)
app.command("generate")(generate.command)
app.command("chat")(chat.command)
app.command("serve")(serve.command)
app.command("score")(score.command)
app.command("judge")(judge.command)
app.command(harness.VERB, context_settings=harness.CONTEXT)(harness.command)
app.command("export")(export.export_command)
app.command("soup")(soup.soup_command)
app.command("info")(info)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"trimtab {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole trace when something fails.")] = False,
) -> None:
    """Options before the verb."""
    if debug:
        os.environ["TRIMTAB_DEBUG"] = "1"
    quiet_imports()


def normalise_flags(arguments: list[str]) -> list[str]:
    """Accept ``--learning_rate`` wherever ``--learning-rate`` is meant (Trainer's spelling and vLLM's)."""
    result: list[str] = []
    for i, argument in enumerate(arguments):
        other_program = argument == harness.VERB and all(before.startswith("-") for before in result)
        if argument == "--" or other_program:
            return [*result, *arguments[i:]]
        name, equals, value = argument.partition("=")
        is_flag = name.startswith("--") and "_" in name and " " not in name
        result.append(name.replace("_", "-") + equals + value if is_flag else argument)
    return result


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exits 0 on success, 1 on a trimtab error, 2 on wrong usage, 130 on Ctrl-C."""
    try:
        app(args=normalise_flags(sys.argv[1:] if arguments is None else arguments))
    except TrimtabError as error:
        if os.environ.get("TRIMTAB_DEBUG"):
            raise
        note(f"Error: {error}")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        note("Interrupted.")
        raise SystemExit(130) from None
