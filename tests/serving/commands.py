"""``trimtab serve`` as a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PROGRAM = [sys.executable, "-c", "from trimtab.cli.main import main; main()", "serve"]


@dataclass
class Process:
    popen: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    @property
    def stderr(self) -> str:
        return "".join(self.lines)

    @property
    def url(self) -> str:
        """Where it serves, once it says so."""
        return self.wait_for(r"Serving (http\S+)/v1")[1]

    def wait_for(self, pattern: str, seconds: float = 150) -> re.Match[str]:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if found := re.search(pattern, self.stderr):
                return found
            if self.popen.poll() is not None:
                self.reader.join(5)
                if found := re.search(pattern, self.stderr):
                    return found
                break
            time.sleep(0.01)
        raise AssertionError(f"it never said {pattern!r}:\n{self.stderr}")

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.popen.send_signal(number)

    def ends(self, seconds: float = 60) -> int:
        """Its exit code."""
        code = self.popen.wait(timeout=seconds)
        self.reader.join(5)
        return code

    def __post_init__(self) -> None:
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            self.lines.append(line)


@contextlib.contextmanager
def started(
    *arguments: str | Path, environment: dict[str, str] | None = None, cwd: Path | None = None
) -> Iterator[Process]:
    """Start it; whatever is left of it at the end is killed."""
    env = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200", **(environment or {})}
    env = {name: value for name, value in env.items() if name != "TRIMTAB_API_KEY" or environment}
    popen = subprocess.Popen(
        [*PROGRAM, *map(str, arguments)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=env, cwd=cwd
    )
    process = Process(popen)
    try:
        yield process
    finally:
        popen.kill()
        popen.wait()
        process.reader.join(5)
        assert popen.stderr is not None
        popen.stderr.close()
