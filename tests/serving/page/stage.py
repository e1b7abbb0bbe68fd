"""A server whose answers tests write themselves: the real page in front of an API that says what it is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from trimtab.serving import playground
from trimtab.serving.errors import handle_errors

INFO: dict[str, Any] = {
    "base": "tiny/base",
    "model": "tiny",
    "guides": [
        {
            "name": "polite",
            "kind": "arm",
            "objectives": [{"name": "polite", "description": "Friendly and respectful.", "direction": "maximize"}],
            "recommended_weight": 1.0,
            "conditioned": False,
        },
        {
            "name": "values",
            "kind": "arm",
            "objectives": [
                {"name": name, "description": f"It is {name}.", "direction": "maximize"}
                for name in ("helpful", "harmless", "concise")
            ],
            "recommended_weight": 0.9,
            "conditioned": True,
        },
    ],
    "presets": {"kind": {"weights": {"polite": 2.0}, "strength": 1.5}},
    "limits": {"max_logprobs": 20},
}


def note(token: str, ratio: float = 0.0, token_id: int = 7) -> dict[str, Any]:
    """What the server says of one token; ``ratio`` is every objective's log-ratio."""
    base = -2.0
    names = ("polite", "helpful", "harmless", "concise")
    return {
        "token": token,
        "token_id": token_id,
        "logprob": -1.0,
        "base_logprob": base,
        "kl": 0.25,
        "guides": {"polite": base + ratio, "values": base + ratio},
        "objectives": {name: {"logprob": base + ratio, "log_ratio": ratio} for name in names},
        "top": [
            {"token": token, "token_id": token_id, "logprob": -1.0},
            {"token": " b", "token_id": 1, "logprob": -3.0},
        ],
        "base_top": [
            {"token": " a", "token_id": 0, "logprob": -0.5},
            {"token": token, "token_id": token_id, "logprob": base},
        ],
    }


@dataclass
class Stage:
    """What the stand-in says, and what it was asked.

    Attributes:
        info: the answer of ``/v1/guides``.
        tokens: what is said, one token each; a number among them is a pause in seconds, and at an event it waits;
            at one that comes first, before anybody is told the answer's id.
        ratios: log-ratio of each token, the last for all that follow.
        error: a response that every chat gets instead.
        cut: how an answer ends instead of well: "event" (an error event) or "drop" (the connection ends).
        together: tokens in one chunk.
    """

    url: str = ""
    info: dict[str, Any] = field(default_factory=lambda: json.loads(json.dumps(INFO)))
    tokens: list[str | float | threading.Event] = field(default_factory=lambda: ["Hello", " there", "."])
    ratios: list[float] = field(default_factory=lambda: [0.0])
    error: Response | None = None
    cut: str | None = None
    together: int = 1
    asked: list[dict[str, Any]] = field(default_factory=list)
    changes: list[dict[str, Any]] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    written: dict[str, int] = field(default_factory=dict)

    def app(self) -> FastAPI:
        app = FastAPI()
        handle_errors(app)
        app.include_router(playground.router)

        @app.get("/v1/guides")
        async def guides() -> dict[str, Any]:
            return self.info

        @app.post("/v1/chat/completions")
        async def chat(request: Request) -> Response:
            self.asked.append(await request.json())
            if self.error is not None:
                return self.error
            return StreamingResponse(self.events(self.asked[-1]), media_type="text/event-stream")

        @app.post("/v1/generations/{name}/guidance")
        async def change(name: str, request: Request) -> dict[str, Any]:
            self.changes.append(await request.json())
            return {"id": name, "guidance": applied(self.changes[-1]), "from_token": self.written[name]}

        @app.delete("/v1/generations/{name}")
        async def stop(name: str) -> Response:
            self.stopped.append(name)
            return JSONResponse({"id": name})

        return app

    async def events(self, body: dict[str, Any]) -> Any:
        name = f"chatcmpl-{len(self.written)}"
        self.written[name] = 0
        guidance = body.get("guidance", {})
        scored = bool(guidance.get("rewards"))

        def chunk(delta: dict[str, Any], reason: str | None = None, **more: Any) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": reason, **more}
            return f"data: {json.dumps({'id': name, 'choices': [choice], 'guidance': applied(guidance)})}\n\n"

        yield ": ping\n\n"
        if isinstance(self.tokens[0], threading.Event):
            await asyncio.to_thread(self.tokens[0].wait, 20)
        yield chunk({"role": "assistant", "content": ""})
        held: list[str] = []
        for token in [*self.tokens, ""]:
            if isinstance(token, str) and token:
                held.append(token)
            if held and (len(held) >= self.together or not isinstance(token, str) or not token):
                begin = self.written[name]
                notes = [note(each, self.ratios[min(begin + i, len(self.ratios) - 1)]) for i, each in enumerate(held)]
                self.written[name] += len(held)
                more = {"guidance": {"tokens": notes}} if scored else {"logprobs": {"content": [{}] * len(held)}}
                yield chunk({"content": "".join(held)}, **more)
                held = []
            if isinstance(token, threading.Event):
                await asyncio.to_thread(token.wait, 20)
            elif not isinstance(token, str):
                await asyncio.sleep(token)
            if name in self.stopped:
                break
        if self.cut == "event":
            yield 'data: {"error": {"message": "The answer took too long.", "code": "deadline_exceeded"}}\n\n'
        if self.cut is None:
            yield chunk({}, "abort" if name in self.stopped else "stop")
        if self.cut != "drop":
            yield "data: [DONE]\n\n"


def applied(guidance: dict[str, Any]) -> dict[str, Any]:
    weights, strength = guidance.get("weights", {}), guidance.get("strength", 1.0)
    mixture = sum(weight for name, weight in weights.items() if name != "polite")
    by_guide = {"polite": strength * weights.get("polite", 0.0), "values": strength * mixture}
    return {"weights": by_guide, "preferences": {}, "strength": strength, "preset": None}


@contextlib.contextmanager
def on_thread(app: Any, port: int = 0) -> Iterator[tuple[str, uvicorn.Server]]:
    """Run an application in a thread; yield its address and the server."""
    server = uvicorn.Server(
        uvicorn.Config(
            app, host="127.0.0.1", port=port, log_level="critical", lifespan="on", timeout_graceful_shutdown=1
        )
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("the server did not start")
            time.sleep(0.005)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", server
    finally:
        server.should_exit = True
        thread.join(timeout=20)
