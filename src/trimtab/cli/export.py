"""``trimtab export``: a conditioned guide at one preference, as a plain LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from trimtab.cli.console import note
from trimtab.errors import ConfigError

CONSUMERS = ("peft", "vllm")


def export_command(
    guide: Annotated[Path, typer.Option(help="Folder of a guide trained on several objectives (MoSLoRA or PBLoRA).")],
    preference: Annotated[
        str, typer.Option(help="Weight of each objective, such as helpful=0.7,harmless=0.3; one left out has 0.")
    ],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    consumer: Annotated[
        str, typer.Option(help="Who shall load it: 'peft', or 'vllm', whose LoRA can hold no bias.")
    ] = "peft",
    normalise: Annotated[bool, typer.Option("--normalise", help="Divide the weights by their sum.")] = False,
    strength: Annotated[
        float | None, typer.Option(help="The pull w it is made for; only for a guide that is told its pull.")
    ] = None,
) -> None:
    """Write a guide at one fixed preference as a plain LoRA, which stock PEFT and vLLM load."""
    if consumer not in CONSUMERS:
        raise ConfigError(f"--consumer is {consumer!r}: use {' or '.join(map(repr, CONSUMERS))}.")
    from trimtab.cli.quiet import quiet_libraries

    with quiet_libraries():
        from trimtab.rewards.export import export_lora

        chosen: Any = consumer
        made = export_lora(guide, preference, output, consumer=chosen, normalise=normalise, strength=strength)
    pull = "" if strength is None else f", to be decoded with w = {strength:g}"
    note(f"Wrote {output}: a plain LoRA guide for '{made.objective_names[0]}'{pull}.")
