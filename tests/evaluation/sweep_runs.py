"""Small comparisons on tiny models, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trimtab.cli.main import main

PROMPTS = [
    {"id": "a", "prompt": "hi"},
    {"id": "b", "prompt": [{"role": "user", "content": "the quick brown fox"}]},
    {"id": "c", "prompt": "<script>alert(1)</script>\u2028</script><img src=x onerror=alert(2)>"},
]


def write_prompts(folder: Path) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    return path


def evaluate(capsys: Any, *arguments: object) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of ``trimtab evaluate``."""
    code = exit_code(*arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def exit_code(*arguments: object) -> int:
    """Return the exit code of ``trimtab evaluate``, for fixtures that outlive a test and cannot capture."""
    try:
        main(["evaluate", *map(str, arguments)])
    except SystemExit as leave:
        return int(leave.code or 0)
    return 0


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
