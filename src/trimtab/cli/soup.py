"""``trimtab soup``: several guides of one base as one whose weights are mixed by a preference."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trimtab.cli.console import note


def soup_command(
    guides: Annotated[
        list[Path], typer.Argument(help="Folders of two or more LoRA guides of one base, each with one objective.")
    ],
    output_dir: Annotated[Path, typer.Option(help="Folder to write.")],
) -> None:
    """Write several guides as one that mixes their weights by the preference of each request (Rewarded Soups)."""
    from trimtab.cli.quiet import quiet_libraries

    with quiet_libraries():
        from trimtab.rewards.soup import soup

        made = soup(guides, output_dir)
    names = made.objective_names
    even = ",".join(f"{name}={1 / len(names):.2g}" for name in names)
    note(f"Wrote {output_dir}: one guide for {', '.join(names)}, mixed in each request, such as --weights {even}.")
