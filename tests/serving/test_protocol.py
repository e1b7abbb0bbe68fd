"""What strange clients send, byte by byte: it is refused, and nothing of it stays."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import socket
import struct
import time

import psutil
import pytest
from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from serving.wires import read_all, replies, request, wired

SLOW = 0.4  # seconds that a client may take
BODY = 100_000
HEAD = 16_384
METHODS = ("HEAD", "OPTIONS", "PUT", "PATCH", "TRACE", "DELETE", "PROPFIND")


@pytest.fixture(scope="module")
def server(engine):
    options = {"max_request_bytes": BODY, "max_header_bytes": HEAD, "client_timeout": SLOW, "max_connections": 40}
    with wired(engine, **options) as running:
        _add_routes(running.app)
        yield running


def _add_routes(app):
    """Routes that read a body, write without end, and list the others."""

    @app.post("/echo")
    async def echo(request: Request):
        return Response(await request.body())

    @app.get("/flood")
    async def flood():
        async def endless():
            while True:
                yield b"x" * 65536
                await asyncio.sleep(0)  # without it, nobody would notice that the client has gone

        return StreamingResponse(endless())

    @app.get("/routes")
    async def routes():
        return [{"path": path} for path in app.openapi()["paths"]]


@pytest.fixture(autouse=True)
def canary(server):
    """After each: nothing of the request is left, and the server answers."""
    yield
    assert server.idle(), "requests or connections were left behind"
    assert [only(say(server, request("GET", path))).status for path in ("/health", "/ready")] == [200, 200]


def say(server, data, timeout=10.0):
    """Send bytes, as far as the server takes them; return what it answers."""
    with server.connect(timeout) as sock:
        with contextlib.suppress(OSError):
            sock.sendall(data)
        return replies(read_all(sock))


def only(found):
    assert len(found) == 1, found
    return found[0]


def refused(reply, status, code=None):
    assert reply.status == status, reply
    error = reply.error
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert reply.headers["connection"] == "close"
    assert reply.headers["x-request-id"]
    assert reply.headers["x-content-type-options"] == "nosniff"


def test_a_head_of_a_megabyte(server):
    before = psutil.Process().memory_info().rss
    for name in ("X-Long: ", "Cookie: ", "Authorization: Bearer "):
        refused(only(say(server, request("GET", "/version", b"", name + "a" * 2**20))), 431, "head_too_large")
    refused(only(say(server, b"GET /" + b"a" * 2**20 + b" HTTP/1.1\r\n\r\n")), 431, "head_too_large")
    refused(only(say(server, b"A" * 2**20)), 431, "head_too_large")
    assert psutil.Process().memory_info().rss - before < 16 * 2**20


def test_ten_thousand_header_fields(server):
    refused(only(say(server, request("GET", "/health", b"", *["A: b"] * 10_000))), 431, "head_too_large")
    short = only(say(server, request("GET", "/health", b"", *["A: b"] * 200)))
    assert short.status == 431
    assert "100 may come" in short.error["message"]
    assert only(say(server, request("GET", "/health", b"", *["A: b"] * 90))).status == 200


def test_a_body_that_is_too_long_is_refused_before_it_is_sent(server):
    with server.connect() as sock:
        sock.sendall(request("POST", "/v1/chat/completions", b"", f"Content-Length: {10**9}"))
        refused(only(replies(read_all(sock))), 413, "body_too_large")


def test_a_long_body_that_is_sent_all_the_same(server):
    before = psutil.Process().memory_info().rss
    found = say(server, request("POST", "/v1/chat/completions", b"[" + b" " * 50_000_000))
    refused(only(found), 413, "body_too_large")
    assert psutil.Process().memory_info().rss - before < 120 * 2**20  # 50 MB of them are this test's own


def test_a_chunked_body_without_end(server):
    """The client reads its refusal although it never stops sending."""
    with server.connect() as sock:
        sock.sendall(request("POST", "/v1/chat/completions", b"", "Transfer-Encoding: chunked"))
        piece = b"2000\r\n" + b" " * 0x2000 + b"\r\n"
        sock.settimeout(0.001)
        received, sent, began = b"", 0, time.monotonic()
        while time.monotonic() - began < 8:
            try:
                sent += sock.send(piece)
                received += sock.recv(65536) or b""
            except TimeoutError:
                continue
            except OSError:
                break
        refused(only(replies(received)), 413, "body_too_large")
        assert time.monotonic() - began < 8, "the server never closed"


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":'], ids=["arrays", "objects", "both"])
def test_json_ten_thousand_levels_deep(server, opening):
    for path in ("/v1/chat/completions", "/v1/completions"):
        reply = only(say(server, request("POST", path, opening.encode() * 10_000)))
        if reply.status != 404:  # a route that reads bodies
            refused(reply, 400, "json_too_deep")


def test_a_slow_head(server):
    with server.connect() as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        began = time.monotonic()
        with pytest.raises(OSError):
            for _ in range(100):
                sock.sendall(b"X-Drip: 1\r\n")
                time.sleep(SLOW / 8)
                if sock.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK):
                    raise BrokenPipeError
        assert time.monotonic() - began < 5 * SLOW
        refused(only(replies(read_all(sock))), 408, "request_timeout")


def test_a_connection_that_says_nothing(server):
    with server.connect() as sock:
        refused(only(replies(read_all(sock))), 408, "request_timeout")


def test_a_second_request_that_is_slow(server):
    with server.connect() as sock:
        sock.sendall(request("GET", "/health", close=False) + b"GET /hea")
        found = replies(read_all(sock))
        assert [reply.status for reply in found] == [200, 408]


def test_a_slow_body(server):
    for frame in ("Content-Length: 1000", "Transfer-Encoding: chunked"):
        with server.connect() as sock:
            sock.sendall(request("POST", "/echo", b"", frame))
            refused(only(replies(read_all(sock))), 408, "request_timeout")


def test_a_client_that_does_not_read(server):
    """Its connection is given up; nothing waits for it for ever."""
    with server.connect() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(request("GET", "/flood"))
        assert server.idle(seconds=10 * SLOW + 3)


def test_a_client_that_resets(server):
    for data in (b"GET /hea", request("GET", "/flood"), request("POST", "/echo", b"", "Content-Length: 500")):
        with server.connect() as sock:
            sock.sendall(data)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_a_half_closed_connection(server):
    with server.connect() as sock:
        sock.sendall(request("GET", "/health"))
        sock.shutdown(socket.SHUT_WR)
        read_all(sock)  # answered or closed: both are right
    with server.connect() as sock:
        sock.sendall(request("POST", "/echo", b"", "Content-Length: 500"))
        sock.shutdown(socket.SHUT_WR)
        assert not [reply for reply in replies(read_all(sock)) if reply.status == 500]


def test_pipelined_requests_are_answered_in_their_order(server):
    paths = ["/health", "/version", "/nowhere", "/ready"]
    found = say(server, b"".join(request("GET", p, close=False) for p in paths) + request("GET", "/health"))
    assert [reply.status for reply in found] == [200, 200, 404, 200, 200]


def test_two_requests_in_one_are_not_smuggled(server):
    inner = request("GET", "/version")
    found = say(server, request("POST", "/echo", inner, close=True))
    assert [reply.status for reply in found] == [200]
    both = request("POST", "/echo", b"0\r\n\r\n" + inner, "Content-Length: 4", "Transfer-Encoding: chunked")
    assert [reply.status for reply in say(server, both)] in ([200], [400])


@pytest.mark.parametrize(
    "frame",
    [
        "Content-Length: -1",
        "Content-Length: 1e3",
        "Content-Length: 0x10",
        "Content-Length: 5, 6",
        "Content-Length: " + "9" * 40,
        "Content-Length: ٣",
        "Content-Length:",
        "Transfer-Encoding: gzip",
        "Transfer-Encoding: chunked, chunked",
    ],
)
def test_wrong_lengths(server, frame):
    for reply in say(server, request("POST", "/echo", b"12345", frame.encode().decode("latin-1"))):
        assert reply.status in (400, 413, 431, 501), reply


def test_a_body_that_is_shorter_or_longer_than_it_says(server):
    shorter = say(server, request("POST", "/echo", b"{}", "Content-Length: 10"))
    assert [reply.status for reply in shorter] == [408]
    longer = say(server, request("POST", "/echo", b"{}{}{}", "Content-Length: 2", close=False))
    assert [reply.status for reply in longer] in ([200, 400], [200, 408])


@pytest.mark.parametrize(
    "chunk",
    [b"zz\r\nab\r\n", b"-1\r\n", b"ffffffffffffffffffff\r\n", b"2;" + b"x" * 40_000 + b"\r\nab\r\n", b"2\r\nabcd\r\n"],
)
def test_broken_chunks(server, chunk):
    found = say(server, request("POST", "/echo", chunk, "Transfer-Encoding: chunked"))
    assert [reply.status for reply in found] in ([400], [431], [413], [408])


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x00" * 100 + b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nA\x00B: c\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: other\r\n\r\n",
    ],
)
def test_what_is_not_http(server, data):
    found = say(server, data)
    assert found, "closed without a word"
    assert found[0].status in (400, 403), found[0]
    assert found[0].headers["connection"] == "close" or found[0].status == 403


def test_bad_utf8_in_a_body(server):
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize"):
        reply = only(say(server, request("POST", path, b'{"model": "\xff\xfe"}')))
        assert reply.status in (400, 404)


def test_http_1_0(server):
    reply = only(say(server, b"GET /health HTTP/1.0\r\n\r\n"))
    assert reply.status == 200


def test_every_other_method_on_every_route(server):
    paths = {route["path"] for route in json.loads(only(say(server, request("GET", "/routes"))).body)}
    assert "/health" in paths
    for path in paths:
        for method in METHODS:
            for reply in say(server, request(method, path.replace("{", "").replace("}", ""))):
                assert reply.status < 500 or reply.status == 501, (method, path, reply)
                assert method != "TRACE" or reply.status >= 400


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "localhost@evil.example", "", "[::", "*"],
)
def test_other_hosts_get_nothing_from_a_server_without_keys(server, host):
    data = request("GET", "/version").replace(b"Host: localhost", f"Host: {host}".encode())
    reply = only(say(server, data))
    assert (reply.status, reply.error["code"]) == (403, "host_not_allowed")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "127.1.2.3"])
def test_this_machine_may_call_itself_what_it_likes(server, host):
    data = request("GET", "/version").replace(b"Host: localhost", f"Host: {host}".encode())
    assert only(say(server, data)).status == 200


def test_a_request_for_another_server_is_none_of_ours(server):
    absolute = b"GET http://evil.example/version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert only(say(server, absolute)).status == 404
    assert only(say(server, request("CONNECT", "evil.example:443"))).status in (404, 405, 400)


def test_as_many_connections_as_may_be(server):
    held = [server.connect() for _ in range(40)]
    try:
        for sock in held:
            sock.sendall(b"GET /health HTTP/1.1\r\n")
        time.sleep(0.05)
        with server.connect() as sock:
            reply = only(replies(read_all(sock)))
            assert (reply.status, reply.error["code"]) == (503, "too_many_connections")
            assert reply.headers["retry-after"] == "1"
    finally:
        for sock in held:
            sock.close()


def test_nothing_is_left_of_many_of_them(server):
    def leftovers():
        gc.collect()
        return psutil.Process().num_fds()

    hostile = [
        b"GET /x" + b"a" * 20_000,
        request("POST", "/echo", b"[" * 5000),
        request("POST", "/echo", b"", "Content-Length: 999999999"),
        b"\x00\r\n\r\n",
        request("GET", "/health"),
    ]
    for data in hostile:
        say(server, data)
    assert server.idle()
    before = leftovers()
    for _ in range(8):
        for data in hostile:
            say(server, data)
    assert server.idle()
    assert leftovers() <= before + 2
