"""``trimtab serve`` as a process of its own: started as users start it, or forked from one that has imported torch.

Importing takes seconds, so tests that are about what a running server does take the second way.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

HEAVY = ["torch", "transformers", "peft", "fastapi", "uvicorn", "prometheus_client"]
FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(HEAVY)

PROGRAM = [sys.executable, "-c", "from trimtab.cli.main import main; main()", "serve"]


class Forked:
    """What :class:`subprocess.Popen` offers, of a process that starts with torch imported."""

    def __init__(self, arguments: list[str], environment: dict[str, str], cwd: Path | None) -> None:
        reading, writing = os.pipe()
        folder = str(cwd or Path.cwd())
        self._process: Any = FORKING.Process(target=_serve, args=(arguments, environment, folder, DupFd(writing)))
        self._process.start()
        os.close(writing)
        self.stderr = os.fdopen(reading, encoding="utf-8")
        self.pid = int(self._process.pid)

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("trimtab serve", timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()


def _serve(arguments: list[str], environment: dict[str, str], folder: str, stderr: Any) -> None:
    os.dup2(stderr.detach(), 2)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    from trimtab.cli.main import main

    main(["serve", *arguments])


@dataclass
class Process:
    popen: subprocess.Popen[str] | Forked
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
    *arguments: str | Path, environment: dict[str, str] | None = None, cwd: Path | None = None, fork: bool = True
) -> Iterator[Process]:
    """Start it; whatever is left of it at the end is killed. ``fork=False``: as a user's shell does."""
    env = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200", **(environment or {})}
    env = {name: value for name, value in env.items() if name != "TRIMTAB_API_KEY" or environment}
    words = list(map(str, arguments))
    if fork:
        process = Process(Forked(words, env, cwd))
    else:
        pipes: Any = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL}
        process = Process(subprocess.Popen([*PROGRAM, *words], text=True, env=env, cwd=cwd, **pipes))
    popen = process.popen
    try:
        yield process
    finally:
        popen.kill()
        popen.wait()
        process.reader.join(5)
        assert popen.stderr is not None
        popen.stderr.close()
