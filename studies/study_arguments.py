"""What the studies' command lines share: a run at a size that says nothing, and a command that a reader can repeat."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Mapping
from typing import Any

ELSEWHERE = ("--data-dir", "--work-dir", "--output-dir", "--small", "--large")
"""Options that say where something lies, and no more."""


def parsed(
    arguments: list[str], description: str | None, add: Callable[[argparse.ArgumentParser], None], smoke: Mapping[str, Any]
) -> Any:  # fmt: skip
    """Return a study's options; with ``--smoke`` at the sizes of ``smoke``, in folders of their own.

    Args:
        arguments: of the command line.
        description: of the study.
        add: adds its options; ``--smoke``, ``--work-dir`` and ``--output-dir`` are among them.
        smoke: option → value.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add(parser)
    options = parser.parse_args(arguments)
    if options.smoke:
        vars(options).update(smoke)
        options.work_dir = options.work_dir / "smoke"
        options.output_dir = options.work_dir / "report"
    return options


def command_of(script: str, arguments: list[str]) -> str:
    """Return the command that makes a result again: without folders of this machine, and without ``--report``."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ELSEWHERE:
        parser.add_argument(option)
    parser.add_argument("--report", action="store_true")
    return shlex.join(["python", f"studies/{script}", *parser.parse_known_args(arguments)[1]])
