"""Health, readiness, version; and that the event loop has time for them while answers are written."""

from __future__ import annotations

import sys
import threading
import time

import httpx
import pytest

from serving.wires import wired
from trimtab import __version__


@pytest.fixture
def server(engine):
    with wired(engine) as running:
        yield running


def test_a_server_that_is_well(server):
    with server.client() as client:
        assert (client.get("/health").status_code, client.get("/ready").status_code) == (200, 200)
        assert client.get("/version").json() == {"version": __version__}
        paths = client.get("/openapi.json").json()["paths"]
        assert {"/health", "/ready", "/version", "/metrics", "/v1/chat/completions"} <= set(paths)
        assert client.get("/docs").status_code == 404


def test_a_server_that_drains_is_alive_and_not_ready(server):
    server.gateway.ready = False
    with server.client() as client:
        assert client.get("/health").status_code == 200
        reply = client.get("/ready")
        assert reply.status_code == 503
        assert reply.headers["retry-after"]
        assert reply.headers["connection"] == "close"


def test_a_server_whose_engine_is_dead_is_not_well(server):
    server.gateway._worker.stop()
    with server.client() as client:
        assert client.get("/health").status_code == 503
        assert client.get("/ready").status_code == 503


def test_health_answers_while_sixteen_answers_are_written(server):
    """The event loop waits for no step of the engine: most probes come back in a fraction of an answer's time."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 200, "ignore_eos": True}
    times = []

    def write():
        began = time.monotonic()
        httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120)
        times.append(time.monotonic() - began)

    writers = [threading.Thread(target=write) for _ in range(16)]
    with server.client() as client:
        client.get("/health")
        for writer in writers:
            writer.start()
        while server.gateway.running < 8:
            time.sleep(0.001)
        probes = []
        while any(writer.is_alive() for writer in writers) and len(probes) < 100:
            began = time.monotonic()
            assert client.get("/health").status_code == 200
            probes.append(time.monotonic() - began)
    for writer in writers:
        writer.join()
    assert len(probes) > 5
    assert sorted(probes)[len(probes) // 2] < max(times) / 4


def test_nothing_is_asked_of_anybody_else(server):
    """Every connection that is made while a server answers is one of its clients'."""
    asked = []

    def watched(event, arguments):
        if watching and event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
            asked.append(arguments[1][0] if event != "socket.getaddrinfo" else arguments[0])

    watching = True
    sys.addaudithook(watched)
    try:
        with server.client() as client:
            body = {"model": "tiny", "messages": [{"role": "user", "content": "see http://example.org/a.png"}]}
            assert client.post("/v1/chat/completions", json={**body, "max_tokens": 3}).status_code == 200
            assert client.get("/v1/models").status_code == 200
            assert client.get("/").status_code == 200
    finally:
        watching = False
    assert asked, "not even the client was seen"
    assert {host.decode() if isinstance(host, bytes) else host for host in asked} == {"127.0.0.1"}
