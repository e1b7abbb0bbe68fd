"""The two ways to load a server: clients that wait for their answers, and arrivals that do not."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import quantiles
from typing import Any

import httpx

from serving_bench.client import Outcome, ask
from serving_bench.jobs import Job
from serving_bench.server import gauges

_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None)


def percentile(values: Sequence[float], share: float) -> float:
    """Return a percentile; NaN of nothing."""
    if len(values) < 2:
        return values[0] if values else float("nan")
    return quantiles(values, n=100, method="inclusive")[round(share * 100) - 1]


@dataclass
class Table:
    """One line: so many clients for so many seconds."""

    clients: int
    guided: bool
    seconds: float
    outcomes: list[Outcome]

    def row(self) -> dict[str, Any]:
        """Return the figures; times in milliseconds."""
        done = [o for o in self.outcomes if o.status == 200 and not o.note]
        first = [o.first for o in done if o.first is not None]
        gaps = [gap for o in done for gap in o.gaps]
        return {
            "clients": self.clients,
            "guided": self.guided,
            "requests_s": len(done) / self.seconds,
            "tokens_s": sum(o.tokens for o in done) / self.seconds,
            "ttft_p50": 1000 * percentile(first, 0.5),
            "ttft_p99": 1000 * percentile(first, 0.99),
            "itl_p50": 1000 * percentile(gaps, 0.5),
            "itl_p99": 1000 * percentile(gaps, 0.99),
            "answers": len(done),
            "wrong": sum(o.wrong is not None for o in self.outcomes),
            "failed": len(self.outcomes) - len(done),
        }


async def closed(url: str, model: str, jobs: Sequence[Job], *, clients: int, seconds: float, guided: bool) -> Table:
    """So many clients, each asking again as soon as it is answered; none begins after so many seconds."""
    outcomes: list[Outcome] = []
    begin = time.perf_counter()

    async def one(number: int, client: httpx.AsyncClient) -> None:
        rng = random.Random(number)
        while time.perf_counter() - begin < seconds:
            outcomes.append(await ask(client, model, rng.choice(jobs), guided=guided))

    async with httpx.AsyncClient(base_url=url, timeout=300, limits=_LIMITS) as client:
        await asyncio.gather(*(one(i, client) for i in range(clients)))
    return Table(clients, guided, time.perf_counter() - begin, outcomes)


@dataclass
class Ramp:
    """What became of a ramp.

    Attributes:
        seconds: how long requests arrived.
        most: requests a second at its end.
        outcomes: of every request.
        statuses: status or what else happened → how often.
        peak: most that the server said it held at a time.
        health_p99: of the liveness route meanwhile, milliseconds.
        recovery: seconds from the last arrival's end of the ramp to the first prompt answer.
        left: what the server holds afterwards.
        memory: resident memory before and after, MiB.
    """

    seconds: float
    most: float
    outcomes: list[Outcome]
    statuses: Counter[str]
    peak: dict[str, float]
    health_p99: float
    recovery: float
    left: dict[str, float]
    memory: tuple[float, float]


async def ramp(
    url: str, model: str, jobs: Sequence[Job], process: Any, *, seconds: float, most: float, idle_first: float
) -> Ramp:
    """Let requests arrive from none up to ``most`` a second; then see how it recovers.

    Args:
        url: the server.
        model: its model's name.
        jobs: what is asked, at random.
        process: the server's, for its memory.
        seconds: how long.
        most: arrivals a second at the end.
        idle_first: seconds to a first token when idle; twice that is prompt.
    """
    rng = random.Random(1)
    outcomes: list[Outcome] = []
    tasks: set[asyncio.Task[None]] = set()
    health: list[float] = []
    peak = {"running": 0.0, "waiting": 0.0, "cache": 0.0}
    before = process.memory_info().rss / 2**20
    stop = asyncio.Event()

    async with httpx.AsyncClient(base_url=url, timeout=300, limits=_LIMITS) as client:

        async def one() -> None:
            leave = rng.randint(1, 8) if rng.random() < 0.05 else None
            outcomes.append(await ask(client, model, rng.choice(jobs), guided=True, hang_up_after=leave))

        async def watch() -> None:
            while not stop.is_set():
                sent = time.perf_counter()
                await client.get("/health")
                health.append(time.perf_counter() - sent)
                for name, value in (await asyncio.to_thread(gauges, url)).items():
                    peak[name] = max(peak[name], value)
                await asyncio.sleep(0.5)

        watcher = asyncio.create_task(watch())
        begin = time.perf_counter()
        while (now := time.perf_counter() - begin) < seconds:
            task = asyncio.create_task(one())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            await asyncio.sleep(rng.expovariate(max(0.2, most * now / seconds)))
        over = time.perf_counter()
        # One probe after the other, until an answer begins as promptly as on an idle server.
        while True:
            probe = await ask(client, model, jobs[0], guided=True)
            if probe.status == 200 and probe.first is not None and probe.first <= 2 * idle_first:
                break
            await asyncio.sleep(0.05)
        recovery = probe.started + probe.first - over
        await asyncio.gather(*tasks)
        stop.set()
        await watcher
    await asyncio.sleep(0.5)
    statuses = Counter("hung up" if o.hung_up else o.note or str(o.status) for o in outcomes)
    after = process.memory_info().rss / 2**20
    p99 = 1000 * percentile(health, 0.99)
    return Ramp(seconds, most, outcomes, statuses, peak, p99, recovery, gauges(url), (before, after))
