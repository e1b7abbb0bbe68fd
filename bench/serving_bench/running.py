"""One run of bench/serving.py, and its report."""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from engine_bench.making import make_guides

from serving_bench.jobs import Job, make_jobs
from serving_bench.phases import Ramp, closed, ramp
from serving_bench.server import serving
from trimtab.engine import load
from trimtab.models import load_base

OBJECTIVES = ("o0", "o1")  # of the random guide for two objectives
SLOTS, QUEUE = 16, 4  # of the server that is overloaded: answers that run, and that wait


def main() -> None:
    """Run and print Markdown."""
    parser = argparse.ArgumentParser(description="The server under load.")
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=20, help="for each line of the table")
    parser.add_argument("--rounds", type=int, default=3, help="times the lines take turns; 0: no table")
    parser.add_argument("--ramp", type=float, default=60, help="seconds of the ramp; 0 leaves it out")
    parser.add_argument("--times", type=float, default=10, help="capacities that the ramp ends at")
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--jobs", type=int, default=24, help="different requests")
    parser.add_argument("--threads", type=int, default=2, help="of the server")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="further flags of trimtab serve")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(options, Path(folder)))


async def run(options: argparse.Namespace, folder: Path) -> None:
    """Make what is asked, start the server, measure, report."""
    torch.set_num_threads(options.threads)
    base = load_base(options.base)
    guide = make_guides(base, folder / "guides", ("uniarm-2",))["uniarm-2"]
    print("writing the right answers, one at a time", flush=True)
    with load(base, [guide], config={"kernels": "native"}) as engine:
        jobs = make_jobs(engine, OBJECTIVES, options.jobs, options.tokens)
    flags = ["--base", options.base, "--guide", str(guide), "--kernels", "native", "--served-model-name", "model"]
    wide = [*flags, "--max-num-seqs", "32", "--max-queued-requests", "32", *options.flags]
    if options.rounds:
        with serving(wide, folder / "server.log", threads=options.threads) as (url, _):
            print(as_markdown(await table(url, jobs, options)), flush=True)
    if options.ramp:
        # What runs and waits is what a client waits for in the worst case: for a machine of this speed, so much.
        bounded = [*flags, "--max-num-seqs", str(SLOTS), "--max-queued-requests", str(QUEUE), *options.flags]
        with serving(bounded, folder / "ramp.log", threads=options.threads) as (url, process):
            print(report(await push(url, jobs, process, options)), flush=True)


async def table(url: str, jobs: list[Job], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure each number of clients, guided and unguided in turn."""
    await closed(url, "model", jobs, clients=2, seconds=2, guided=True)  # the first requests warm caches up
    rows: list[dict[str, Any]] = []
    for number in range(options.rounds):
        for clients in options.clients:
            for guided in (False, True):
                result = await closed(url, "model", jobs, clients=clients, seconds=options.seconds, guided=guided)
                rows.append({"round": number, **result.row()})
                print(json.dumps(rows[-1]), flush=True)
    return rows


async def push(url: str, jobs: list[Job], process: Any, options: argparse.Namespace) -> Ramp:
    """Measure what this server can do, then ramp up to so many times that."""
    alone = (await closed(url, "model", jobs, clients=1, seconds=5, guided=True)).row()
    full = (await closed(url, "model", jobs, clients=SLOTS, seconds=10, guided=True)).row()
    capacity, idle = full["requests_s"], alone["ttft_p50"] / 1000
    most = options.times * capacity
    print(f"capacity {capacity:.1f} requests/s; ramp to {most:.0f} in {options.ramp:g} s", flush=True)
    return await ramp(url, "model", jobs, process, seconds=options.ramp, most=most, idle_first=idle)


FIGURES = {
    "requests_s": "requests/s",
    "tokens_s": "tokens/s",
    "ttft_p50": "first token p50, ms",
    "ttft_p99": "p99, ms",
    "itl_p50": "between tokens p50, ms",
    "itl_p99": "p99, ms",
}


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """Return the table: of each figure min / median / max over the rounds."""
    lines = ["", f"| clients | | {' | '.join(FIGURES.values())} | answers | wrong |", "|---" * (4 + len(FIGURES)) + "|"]
    for clients in dict.fromkeys(row["clients"] for row in rows):
        for guided in (False, True):
            mine = [row for row in rows if row["clients"] == clients and row["guided"] is guided]
            cells = [spread([row[name] for row in mine]) for name in FIGURES]
            counts = [str(sum(row[name] for row in mine)) for name in ("answers", "wrong")]
            lines.append(f"| {clients} | {'guided' if guided else 'unguided'} | {' | '.join([*cells, *counts])} |")
    return "\n".join([*lines, ""])


def spread(values: list[float]) -> str:
    """Return min / median / max."""
    ordered = sorted(values)
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    return " / ".join(f"**{v:.3g}**" if i == 1 else f"{v:.3g}" for i, v in enumerate((ordered[0], middle, ordered[-1])))


def report(found: Ramp) -> str:
    """Return what the ramp showed."""
    wrong = [o for o in found.outcomes if o.wrong is not None]
    lines = [
        "",
        f"ramp to {found.most:.0f} requests/s in {found.seconds:g} s: {len(found.outcomes)} requests",
        f"what became of them: {dict(found.statuses.most_common())}",
        f"wrong or mixed answers: {len(wrong)}",
        f"most at a time: {found.peak}",
        f"/health p99 meanwhile: {found.health_p99:.0f} ms",
        f"recovery: {found.recovery:.2f} s",
        f"held afterwards: {found.left}",
        f"resident memory, MiB, before and after: {found.memory[0]:.0f}, {found.memory[1]:.0f}",
    ]
    return "\n".join(lines)
