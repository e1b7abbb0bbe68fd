"""A server as ``trimtab serve`` runs it, in a thread; and clients that speak to its socket byte by byte."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn

from trimtab.engine import Engine
from trimtab.serving.app import create_app
from trimtab.serving.auth import Keys
from trimtab.serving.config import ServerConfig
from trimtab.serving.gateway import Gateway
from trimtab.serving.presets import Presets
from trimtab.serving.run import uvicorn_config

NAME = "tiny"


@dataclass
class Wire:
    port: int
    gateway: Gateway
    app: Any
    uvicorn: uvicorn.Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self, timeout: float = 10) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def client(self, key: str | None = None, **options: Any) -> httpx.Client:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30, **options)

    def idle(self, seconds: float = 5.0) -> bool:
        """Whether nothing is left of any request, and no connection is open."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            gateway = self.gateway
            if not (gateway.tickets or gateway.running or gateway.waiting or self.uvicorn.server_state.connections):
                return True
            time.sleep(0.01)
        return False


@contextlib.contextmanager
def wired(engine: Engine, *, keys: list[str] | None = None, presets: Any = None, **options: Any) -> Iterator[Wire]:
    config = ServerConfig(port=0, **{"served_model_name": NAME, **options})
    gateway = Gateway(engine, config)
    app = create_app(gateway, keys=Keys(keys or []), presets=Presets(presets or {}))
    server = uvicorn.Server(uvicorn_config(app, config))
    sock = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("the server did not start")
            time.sleep(0.005)
        yield Wire(sock.getsockname()[1], gateway, app, server)
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        if thread.is_alive():
            raise RuntimeError("the server did not stop")


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        return json.loads(self.body)["error"]


def read_all(sock: socket.socket | ssl.SSLSocket) -> bytes:
    """Everything until the server closes, a reset included: what came before it counts."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := sock.recv(65536):
            received += piece
    return received


def replies(data: bytes) -> list[Reply]:
    """The answers in what a server sent, each with a content length."""
    found: list[Reply] = []
    while data:
        head, _, rest = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = int(headers.get("content-length", "0"))
        found.append(Reply(int(first.split(" ")[1]), headers, rest[:length]))
        data = rest[length:]
    return found


def request(method: str, path: str, body: bytes = b"", *headers: str, close: bool = True) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers]
    if body or method == "POST":
        lines += ["Content-Type: application/json"]
        if not any(line.lower().startswith(("content-length", "transfer-encoding")) for line in headers):
            lines.append(f"Content-Length: {len(body)}")
    if close:
        lines.append("Connection: close")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body
