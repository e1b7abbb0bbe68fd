"""A stub of a chat-completions endpoint on a free port, which answers as it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Stub:
    """Runs in a thread; ``reply(body)`` gives a text, an object, or (status, headers, object)."""

    def __init__(self, reply: Callable[[dict[str, Any]], Any]) -> None:
        self.reply = reply
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = self._now = 0
        self._lock = threading.Lock()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with stub._lock:
                    stub.bodies.append(body)
                    stub.headers.append({**{k.lower(): v for k, v in self.headers.items()}, ":path": self.path})
                    stub._now += 1
                    stub.most_at_once = max(stub.most_at_once, stub._now)
                try:
                    status, headers, content = stub._answer(body)
                finally:
                    with stub._lock:
                        stub._now -= 1
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {"content-type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def _answer(self, body: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        reply = self.reply(body)
        if isinstance(reply, tuple):
            return reply
        return 200, {}, reply if isinstance(reply, dict) else completion(reply)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Stub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)


def completion(text: str, **choice: Any) -> dict[str, Any]:
    """A chat completion with one choice."""
    return {
        "model": "stub-1",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", **choice}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2},
    }


def shown(body: dict[str, Any]) -> tuple[str, str]:
    """The answers that a judge is shown as A and as B."""
    text = body["messages"][-1]["content"]
    parts = []
    for name in ("answer-A-", "answer-B-"):
        _, _, rest = text.partition(f"<{name}")
        mark, _, rest = rest.partition(">\n")
        parts.append(rest.partition(f"\n</{name}{mark}>")[0])
    return parts[0], parts[1]
