"""A client that notes when each token came."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

from serving_bench.jobs import Job


@dataclass
class Outcome:
    """What became of one request.

    Attributes:
        status: HTTP status; 0 where the connection failed.
        started: when it was sent, seconds of this process.
        first: seconds to the first token.
        gaps: seconds between tokens that follow each other.
        tokens: tokens that came.
        ended: when it was over.
        wrong: what the text was, where it is not the right one.
        hung_up: whether the client left in the middle.
        note: what else there is to say.
    """

    status: int = 0
    started: float = 0.0
    first: float | None = None
    gaps: list[float] = field(default_factory=list)
    tokens: int = 0
    ended: float = 0.0
    wrong: str | None = None
    hung_up: bool = False
    note: str = ""


async def ask(
    client: httpx.AsyncClient, model: str, job: Job, *, guided: bool, hang_up_after: int | None = None
) -> Outcome:
    """Send one request and read its stream; leave after so many tokens, if any."""
    outcome = Outcome(started=time.perf_counter())
    pieces: list[str] = []
    finished = False
    try:
        async with client.stream("POST", "/v1/chat/completions", json=job.body(model, guided=guided)) as response:
            outcome.status = response.status_code
            if response.status_code != 200:
                await response.aread()
                if response.status_code in (429, 503) and "retry-after" not in response.headers:
                    outcome.note = "no Retry-After"
                return outcome
            last = None
            async for line in response.aiter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                chunk: dict[str, Any] = json.loads(line[6:])
                if "error" in chunk:
                    outcome.note = chunk["error"]["code"] or chunk["error"]["type"]
                    continue
                now = time.perf_counter()
                for choice in chunk["choices"]:
                    finished |= choice["finish_reason"] is not None
                    text = choice["delta"].get("content")
                    if not text:
                        continue
                    pieces.append(text)
                    outcome.tokens += 1
                    if last is None:
                        outcome.first = now - outcome.started
                    else:
                        outcome.gaps.append(now - last)
                    last = now
                if hang_up_after is not None and outcome.tokens >= hang_up_after:
                    outcome.hung_up = True
                    return outcome
        text, right = "".join(pieces), job.golden if guided else job.plain
        if finished and text != right:
            outcome.wrong = text
        if not finished and not outcome.note:
            outcome.note = "cut short"
    except httpx.HTTPError as error:
        outcome.note = type(error).__name__
    finally:
        outcome.ended = time.perf_counter()
    return outcome
