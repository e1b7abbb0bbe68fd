"""What every verb prints with: results to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape

__all__ = ["escape", "note", "out", "print_json", "progress_console", "write"]

out = Console(soft_wrap=True, highlight=False)
"""Results (stdout)."""

progress_console = Console(stderr=True, highlight=False)
"""Progress bars and messages (stderr)."""


def note(message: str) -> None:
    """Print one message line to stderr, without interpreting markup in it."""
    progress_console.print(escape(message), soft_wrap=True)


def print_json(value: Any) -> None:
    """Print one JSON document to stdout, NaN refused, Unicode kept, no styling."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


def write(text: str) -> None:
    """Write a piece of text to stdout at once, as it is."""
    sys.stdout.write(text)
    sys.stdout.flush()
