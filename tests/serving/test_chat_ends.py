"""However a request ends, nothing of it is left: slots, tickets, counts."""

from __future__ import annotations

import asyncio
import json
import socket
import time

import pytest

from serving.conftest import serving
from serving.talk import CHAT, COMPLETIONS, MESSAGES, canary, events, slowly, text_of
from trimtab.engine.guidance import Guidance
from trimtab.errors import ClosingError

LONG = {"messages": MESSAGES, "max_tokens": 400, "ignore_eos": True}


def raw(live, path: str, body: dict) -> socket.socket:
    """Send a request and leave the connection open."""
    content = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "host: localhost", "content-type: application/json"]
    head = "\r\n".join([*lines, f"content-length: {len(content)}", "", ""])
    connection = socket.create_connection(("127.0.0.1", int(live.url.rsplit(":", 1)[1])))
    connection.sendall(head.encode() + content)
    return connection


def until(condition, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, LONG),
        (CHAT, {**LONG, "stream": True}),
        (CHAT, {**LONG, "n": 5}),
        (COMPLETIONS, {**LONG, "prompt": ["a", "b"]}),
        (COMPLETIONS, {**LONG, "prompt": "a", "stream": True, "logprobs": 1}),
        (COMPLETIONS, {"prompt": [[5] * 300] * 4, "echo": True, "logprobs": 1, "max_tokens": 0}),
    ],
)
def test_a_disconnect_frees_the_slots_within_a_step(server, client, engine, path, body):
    gateway = server.gateway
    with slowly(engine, 0.05):
        connection = raw(server, path, body)
        assert until(lambda: gateway.running > 0)
        connection.close()
        began = time.monotonic()
        assert server.idle(3)
        took = time.monotonic() - began
    assert took < 1.5  # a step takes 0.05 s; the rest is this machine's
    assert not gateway._owners
    assert not gateway._readings
    canary(client, engine)


def test_a_client_that_never_reads_is_left_at_the_deadline(engine):
    body = {**LONG, "stream": True, "n": 4, "logprobs": True, "top_logprobs": 20, "guidance": {"top": 20}}
    with serving(engine, request_timeout=1.0) as live:
        connection = raw(live, CHAT, body)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        assert until(lambda: live.gateway.tickets)
        assert live.idle(6)
        connection.close()


def test_admission_counts_answers_and_not_requests(engine):
    with serving(engine, max_queued_requests=0, max_n=128) as live, slowly(engine, 0.02), live.client() as client:
        most = live.gateway.most
        refused = client.post(COMPLETIONS, json={"prompt": ["a"] * 2, "n": most // 2 + 1})
        assert refused.status_code == 400
        held = raw(live, CHAT, {**LONG, "n": most - 1})
        assert until(lambda: live.gateway.load == most - 1)
        busy = client.post(COMPLETIONS, json={"prompt": ["a", "b"], "max_tokens": 1})
        assert busy.status_code == 429
        assert busy.json()["error"]["code"] == "queue_full"
        assert busy.json()["error"]["type"] == "rate_limit_error"
        assert int(busy.headers["retry-after"]) >= 1
        assert client.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 1}).status_code == 200
        held.close()
        assert live.idle()


def test_many_at_once_are_answered_or_told_to_come_again(engine):
    """Ten times as many as there is room for: only 200 and 429, and afterwards nothing is left."""
    import concurrent.futures

    with serving(engine, max_queued_requests=2) as live, live.client() as client:
        limits = {"n": 8, "max_tokens": 3}

        def ask(seed: int) -> int:
            return client.post(CHAT, json={"messages": MESSAGES, "seed": seed, **limits}).status_code

        with slowly(engine, 0.02), concurrent.futures.ThreadPoolExecutor(20) as pool:
            found = list(pool.map(ask, range(60)))
        assert set(found) <= {200, 429}
        assert 200 in found
        assert live.idle()
        canary(client, engine)


def test_a_fault_in_a_step_ends_the_requests_and_not_the_server(server, client, engine, monkeypatch):
    scheduler = engine.parts[1].scheduler

    def fail() -> bool:
        monkeypatch.undo()
        raise RuntimeError("secret")

    monkeypatch.setattr(scheduler, "step", fail)
    answer = client.post(CHAT, json={"messages": MESSAGES, "max_tokens": 2})
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert "secret" not in answer.text
    monkeypatch.setattr(scheduler, "step", fail)
    with client.stream("POST", CHAT, json={**LONG, "stream": True}) as response:
        last = events(response)[-1]
    assert last["error"]["code"] == "internal_error"
    canary(client, engine)


def test_a_fault_of_our_own_tells_no_internals(server, client, engine, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("secret")

    monkeypatch.setattr(engine, "answers", fail)
    answer = client.post(CHAT, json={"messages": MESSAGES})
    assert answer.status_code == 500
    assert answer.json()["error"] == {**answer.json()["error"], "type": "internal_error", "code": "internal_error"}
    assert "secret" not in answer.text
    monkeypatch.undo()
    assert "secret" in caplog.text
    canary(client, engine)


def test_numbers_that_are_none_end_the_request_only(client, engine, monkeypatch):
    from trimtab.engine import sampler

    combine = sampler.combine

    def broken(base, *rest, **options):
        monkeypatch.undo()
        return combine(base, *rest, **options) * float("nan")

    monkeypatch.setattr(sampler, "combine", broken)
    answer = client.post(CHAT, json={"messages": MESSAGES, "max_tokens": 2})
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "internal_error"
    canary(client, engine)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_engine_is_told_to_those_who_wait(engine, monkeypatch):
    with serving(engine) as live, live.client() as client:

        def die(*_):
            raise SystemExit

        with slowly(engine, 0.01):
            connection = raw(live, CHAT, {**LONG, "stream": True})
            assert until(lambda: live.gateway.running)
            monkeypatch.setattr(live.gateway._worker, "_tell", die)
            assert until(lambda: not live.gateway.ready)
        connection.settimeout(5)
        text = b""
        while b"[DONE]" not in text:
            text += connection.recv(65536)
        assert b"service_unavailable" in text
        connection.close()
        answer = client.post(CHAT, json={"messages": MESSAGES})
        assert answer.status_code == 503
        assert "retry-after" in answer.headers
        monkeypatch.undo()
        engine.parts[1].forget(list(engine.parts[1].scheduler.running))


def test_drain_waits_for_what_runs_and_for_no_more(engine):
    with serving(engine) as live, live.client() as client, slowly(engine):
        loop = live.gateway._loop
        with client.stream("POST", CHAT, json={**LONG, "max_tokens": 30, "stream": True}) as response:
            drained = asyncio.run_coroutine_threadsafe(live.gateway.drain(10), loop)
            assert until(lambda: not live.gateway.ready)
            assert client.post(CHAT, json={"messages": MESSAGES}).status_code == 503
            chunks = events(response)
        assert drained.result(5) is True
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"
        live.gateway.ready = True
        connection = raw(live, CHAT, LONG)
        assert until(lambda: live.gateway.running)
        assert asyncio.run_coroutine_threadsafe(live.gateway.drain(0.05), loop).result(5) is False
        connection.close()


def test_a_request_that_is_prepared_while_the_server_ends(engine):
    with serving(engine) as live:
        gateway = live.gateway

        async def late() -> None:
            task = asyncio.ensure_future(gateway.write("a", guidance=Guidance(), sampling=_sampling()))
            await asyncio.sleep(0)
            gateway._ended = True
            with pytest.raises(ClosingError):
                await task
            gateway._ended = False

        asyncio.run_coroutine_threadsafe(late(), gateway._loop).result(5)
        assert live.idle()


def _sampling():
    from trimtab.decoding.config import Sampling

    return Sampling(max_tokens=2)


def test_a_silent_stream_is_kept_open_by_comments(server, client, engine, monkeypatch):
    body = {"messages": MESSAGES, "stream": True, "max_tokens": 3, "temperature": 0, "ignore_eos": True}
    quick = client.post(CHAT, json=body)
    assert ": ping" not in quick.text
    monkeypatch.setattr("trimtab.serving.api.streams.PING_SECONDS", 0.05)
    with slowly(engine, 0.3):
        slow = client.post(CHAT, json=body)
    assert ": ping\n\n" in slow.text
    assert text_of(events(slow)) == text_of(events(quick))
