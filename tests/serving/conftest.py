"""A server on a tiny model with two guides: in-process, and as a real one in a thread."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import uvicorn

import tiny_guides
from engine.blends import save_conditioned
from trimtab.engine import Engine, Guidance, load
from trimtab.models import load_base
from trimtab.serving.app import create_app
from trimtab.serving.auth import Keys
from trimtab.serving.config import ServerConfig
from trimtab.serving.gateway import Gateway
from trimtab.serving.presets import Presets

NAME = "tiny"
PRESETS = {
    "balanced": Guidance(weights={"helpful": 0.5, "harmless": 0.5}),
    "polite": Guidance(weights={"polite": 1.5}, strength=0.8),
}


@pytest.fixture(scope="session")
def guide_folders(llama_folder, tmp_path_factory):
    """A plain guide ``polite`` and a guide ``values`` that follows a preference over two objectives."""
    root = tmp_path_factory.mktemp("guides")
    base = load_base(str(llama_folder), dtype="float32")
    tiny_guides.save_lora_guide(root / "polite", base)
    save_conditioned(base, root / "values", "moslora-text", k=2)
    return [root / "polite", root / "values"]


@pytest.fixture(scope="session")
def engine(llama_folder, guide_folders) -> Iterator[Engine]:
    """The engine behind the servers; tests ask it what answers have to be."""
    with load(load_base(str(llama_folder), dtype="float32"), guide_folders) as loaded:
        yield loaded


@dataclass
class Live:
    """A server that runs in a thread.

    Attributes:
        url: its address.
        gateway: its gateway, to look at and not to call.
        engine: its engine.
    """

    url: str
    gateway: Gateway
    engine: Engine
    model: str = NAME
    key: str | None = None

    def client(self, **options: Any) -> httpx.Client:
        """An HTTP client of it."""
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30, **options)

    def idle(self, seconds: float = 5.0) -> bool:
        """Wait until nothing runs and nothing is remembered; return whether that came."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if not (self.gateway.load or self.gateway.tickets or self.gateway.running or self.gateway.waiting):
                return True
            time.sleep(0.005)
        return False


@contextlib.contextmanager
def serving(engine: Engine, *, keys: list[str] | None = None, presets=None, **options: Any) -> Iterator[Live]:
    """Run a server on a free port in a thread."""
    gateway = Gateway(engine, ServerConfig(port=0, served_model_name=NAME, **options))
    app = create_app(gateway, keys=Keys(keys or []), presets=Presets(PRESETS if presets is None else presets))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="on"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("the server did not start")
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Live(f"http://127.0.0.1:{port}", gateway, engine, key=(keys or [None])[0])
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        if thread.is_alive():
            raise RuntimeError("the server did not stop")


@pytest.fixture(scope="session")
def server(engine) -> Iterator[Live]:
    """A server without keys, for tests that leave it as it was."""
    with serving(engine) as live:
        yield live


@pytest.fixture
def client(server) -> Iterator[httpx.Client]:
    """An HTTP client of the shared server; afterwards nothing may be left of its requests."""
    with server.client() as made:
        yield made
    assert server.idle(), "requests were left behind"
