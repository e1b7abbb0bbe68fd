"""``trimtab lm-eval``: lm-eval's own command line, with the model ``trimtab`` known to it."""

from __future__ import annotations

from typing import Annotated

import typer

from trimtab.cli.console import write

VERB = "lm-eval"
CONTEXT = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": ["--help"]}
"""Everything but ``--plugin`` and ``--help`` is lm-eval's."""


def command(
    context: typer.Context,
    plugin: Annotated[
        bool,
        typer.Option(
            "--plugin", help="Print the path of the task file that, among --tasks, does the same for 'lm_eval' itself."
        ),
    ] = False,
) -> None:
    """Run EleutherAI's lm-evaluation-harness on a guided model: what guidance costs on its tasks.

    All arguments are those of 'lm_eval' (see 'lm_eval run --help'), spelt as there; '--model trimtab' is the default:

    trimtab lm-eval --model_args base=smollm2,guide=runs/polite,strength=1 --tasks arc_easy --limit 100
    """
    from trimtab.evaluation import harness

    if plugin:
        write(f"{harness.plugin_file()}\n")
        return
    harness.main(context.args or ["--help"])
