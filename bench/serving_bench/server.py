"""The server as a process of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import psutil


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(flags: Sequence[str], log: Path, *, threads: int) -> Iterator[tuple[str, psutil.Process]]:
    """Start ``trimtab serve`` with these flags; yield its address and its process once it is ready."""
    port = free_port()
    program = "import sys; from trimtab.cli.main import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", program, "serve", "--port", str(port), *flags]
    with log.open("w") as sink:
        process = subprocess.Popen(
            command, stdout=sink, stderr=sink, env={**os.environ, "OMP_NUM_THREADS": str(threads)}
        )
        url = f"http://127.0.0.1:{port}"
        try:
            wait_until_ready(url, process, log)
            yield url, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(60)


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the server takes requests."""
    until = time.monotonic() + 300
    while time.monotonic() < until:
        if process.poll() is not None:
            raise SystemExit(f"The server ended:\n{log.read_text()}")
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/ready").status_code == 200:
                return
        time.sleep(0.2)
    raise SystemExit(f"The server is not ready after five minutes:\n{log.read_text()}")


def gauges(url: str) -> dict[str, float]:
    """Return what the server says it holds."""
    wanted = {
        "vllm:num_requests_running": "running",
        "vllm:num_requests_waiting": "waiting",
        "vllm:kv_cache_usage_perc": "cache",
    }
    found: dict[str, float] = {}
    for line in httpx.get(f"{url}/metrics").text.splitlines():
        name = line.partition("{")[0].partition(" ")[0]
        if name in wanted:
            found[wanted[name]] = float(line.rpartition(" ")[2])
    if len(found) != len(wanted):
        raise SystemExit(f"/metrics lacks {set(wanted.values()) - set(found)}.")
    return found
