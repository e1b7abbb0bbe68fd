"""What is told of every request and every answer; how deep JSON is; which pages may call."""

from __future__ import annotations

import io
import json
import logging
import random

import httpx
import pytest

from serving.wires import read_all, replies, request, wired
from trimtab.errors import ConfigError
from trimtab.serving import logs
from trimtab.serving.config import ServerConfig
from trimtab.serving.limits import MOST_HEADERS
from trimtab.serving.nesting import Nesting
from trimtab.serving.origins import check_origins, reaches_others

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "my secret question"}], "max_tokens": 3}
KEY = "sk-" + "k" * 40


@pytest.fixture(scope="module")
def server(engine):
    with wired(engine) as running:
        yield running


@pytest.fixture
def client(server):
    with server.client() as made:
        yield made


def depth(text):
    """The depth of JSON, character by character."""
    deepest = level = 0
    inside = escaped = False
    for sign in text:
        if inside:
            inside, escaped = not (sign == '"' and not escaped), sign == "\\" and not escaped
        elif sign == '"':
            inside = True
        elif sign in "[{":
            level += 1
            deepest = max(deepest, level)
        elif sign in "]}":
            level -= 1
    return deepest


@pytest.mark.parametrize(
    ("text", "deepest"),
    [
        ("1", 0),
        ("[]", 1),
        ('{"a": [[{}]]}', 4),
        ('["[[[[", "}}}}"]', 1),
        (r'["\"[[[["]', 1),
        (r'["\\", [[]]]', 3),
        (r'["\\\"[[[[", [[]]]', 3),
        ("[" * 5000, 5000),
        ("[]" * 5000, 1),
    ],
)
def test_the_depth_of_json(text, deepest):
    assert depth(text) == deepest
    for size in (1, 2, 3, 7, 10**6):
        nesting = Nesting()
        for at in range(0, len(text), size):
            nesting.feed(text[at : at + size].encode())
        assert nesting.deepest == deepest, size


def test_the_depth_of_random_json_in_random_pieces():
    draw = random.Random(0)
    alphabet = ["[", "]", "{", "}", '"', "\\", "\\\\", "a", "ü", " "]

    def value(level):
        if level > 6 or draw.random() < 0.3:
            return "".join(draw.choice(alphabet) for _ in range(draw.randrange(12)))
        return [value(level + 1) for _ in range(draw.randrange(4))]

    for _ in range(300):
        text = json.dumps(value(0), ensure_ascii=draw.random() < 0.5)
        left, nesting = text.encode(), Nesting()
        while left:
            size = draw.randrange(1, 9)
            nesting.feed(left[:size])
            left = left[size:]
        assert nesting.deepest == depth(text), text


def test_json_may_be_as_deep_as_the_limit_and_no_deeper(client):
    most = ServerConfig().max_json_depth
    for levels, code in ((most, 400), (most + 1, 400)):
        reply = client.post("/v1/chat/completions", content="[" * levels + "]" * levels)
        assert reply.status_code == code
        assert (reply.json()["error"]["code"] == "json_too_deep") == (levels > most)


def test_a_body_may_be_as_long_as_the_limit_and_no_longer(engine):
    with wired(engine, max_request_bytes=1024) as server, server.client() as client:
        body = json.dumps(CHAT)
        assert client.post("/v1/chat/completions", content=body.ljust(1024)).status_code == 200
        for content in (body.ljust(1025), (piece for piece in [body.ljust(1025).encode()])):
            reply = client.post("/v1/chat/completions", content=content)
            assert reply.status_code == 413
            assert "1024 bytes" in reply.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/health", "/version", "/nowhere", "/v1/models/none", "/"])
def test_headers_of_every_answer(client, path):
    reply = client.get(path, headers={"x-request-id": "mine-1"})
    assert reply.headers.get_list("x-request-id") == ["mine-1"]
    assert reply.headers.get_list("x-content-type-options") == ["nosniff"]
    assert reply.headers.get_list("referrer-policy") == ["no-referrer"]
    assert "server" not in reply.headers


@pytest.mark.parametrize("given", ["x" * 129, "with space", "tab\there", "", "ü"])
def test_a_request_id_that_is_not_taken_over(client, given):
    reply = client.get("/health", headers={"x-request-id": given.encode()})
    assert reply.headers["x-request-id"].startswith("req-")
    assert client.get("/health").headers["x-request-id"] != reply.headers["x-request-id"]


def test_many_headers(client):
    own = len(client.headers) + 1
    assert client.get("/health", headers={f"a{i}": "b" for i in range(MOST_HEADERS - own)}).status_code == 200
    assert client.get("/health", headers={f"a{i}": "b" for i in range(MOST_HEADERS + 1)}).status_code == 431


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1.evil.example", "http://localhost"]
)
def test_no_other_page_may_call_a_server_without_keys(client, server, origin):
    for headers in ({"content-type": "application/json"}, {"content-type": "text/plain"}):
        reply = client.post("/v1/chat/completions", json=CHAT, headers={**headers, "origin": origin})
        assert reply.status_code == 403
        assert reply.json()["error"]["code"] == "origin_not_allowed"
        assert "access-control-allow-origin" not in reply.headers
    assert client.get("/v1/models", headers={"origin": origin}).status_code == 403
    preflight = client.options(
        "/v1/chat/completions", headers={"origin": origin, "access-control-request-method": "POST"}
    )
    assert preflight.status_code >= 400
    assert "access-control-allow-origin" not in preflight.headers
    assert server.gateway.tickets == {}


def test_a_name_that_somebody_let_stand_for_this_machine(server):
    """DNS rebinding: the page's origin and the host agree, and neither is this machine's name."""
    evil = request("POST", "/v1/chat/completions", json.dumps(CHAT).encode(), "Origin: http://evil.example:8000")
    with server.connect() as sock:
        sock.sendall(evil.replace(b"Host: localhost", b"Host: evil.example:8000"))
        reply = replies(read_all(sock))[0]
    assert (reply.status, reply.error["code"]) == (403, "host_not_allowed")


def test_its_own_page_may_call(client, server):
    for host in (f"127.0.0.1:{server.port}", f"localhost:{server.port}"):
        reply = client.post("/v1/chat/completions", json=CHAT, headers={"host": host, "origin": f"http://{host}"})
        assert reply.status_code == 200


def test_pages_that_are_allowed(engine):
    origin = "https://chat.example.org"
    for keys in (None, [KEY]):
        with wired(engine, keys=keys, allowed_origins=[origin]) as server, server.client(keys and KEY) as client:
            asked = {
                "access-control-request-method": "POST",
                "access-control-request-headers": "authorization,x-stainless-os",
            }
            preflight = client.options("/v1/chat/completions", headers={"origin": origin, **asked})
            assert preflight.status_code == 200
            assert preflight.headers["access-control-allow-origin"] == origin
            assert "authorization" in preflight.headers["access-control-allow-headers"]
            reply = client.post("/v1/chat/completions", json=CHAT, headers={"origin": origin})
            assert reply.status_code == 200
            assert reply.headers["access-control-allow-origin"] == origin
            assert "access-control-allow-credentials" not in reply.headers
            other = client.get("/v1/models", headers={"origin": "https://evil.example"})
            assert "access-control-allow-origin" not in other.headers
            assert other.status_code == (200 if keys else 403)


@pytest.mark.parametrize(
    "origin", ["*", "https://*.example.org", "example.org", "https://example.org/path", "null", ""]
)
def test_what_is_no_origin(origin):
    with pytest.raises(ConfigError, match="is not the origin"):
        check_origins([origin])
    assert check_origins(["https://Example.org:8443/"]) == ["https://example.org:8443"]


def test_who_reaches_a_host():
    assert not any(reaches_others(host) for host in ("127.0.0.1", "localhost", "::1", "127.9.9.9"))
    assert all(reaches_others(host) for host in ("0.0.0.0", "::", "192.0.2.1", ""))
    with pytest.raises(ConfigError, match="stands for no address"):
        reaches_others("no such host")


@pytest.fixture
def logged():
    """What is logged, in both forms."""
    streams = []
    before = logging.getLogger("trimtab").level
    logging.getLogger("trimtab").setLevel(logging.INFO)
    for formatter in (logs.TextFormatter(), logs.JsonFormatter()):
        stream = io.StringIO()
        handler = logging.StreamHandler(stream)
        handler.setFormatter(formatter)
        logging.getLogger().addHandler(handler)
        streams.append((stream, handler))
    yield lambda: [stream.getvalue() for stream, _ in streams]
    for _, handler in streams:
        logging.getLogger().removeHandler(handler)
    logging.getLogger("trimtab").setLevel(before)


def test_a_line_for_each_request(engine, logged):
    with wired(engine, keys=[KEY]) as server, server.client(KEY) as client:
        reply = client.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": "r-1"})
        assert reply.status_code == 200
        client.get("/health")
        client.get("/none%1b[31m%0aforged")
    text, found = logged()
    lines = [json.loads(line) for line in found.splitlines()]
    line = next(line for line in lines if line.get("request_id") == "r-1")
    assert line["message"] == "POST /v1/chat/completions 200"
    assert line["prompt_tokens"] == reply.json()["usage"]["prompt_tokens"]
    assert line["completion_tokens"] == reply.json()["usage"]["completion_tokens"]
    assert line["finish_reasons"] == [reply.json()["choices"][0]["finish_reason"]]
    assert line["level"] == "info"
    assert line["seconds"] > 0
    assert [item for item in lines if item["message"] == "GET (none) 404"]
    assert not [item for item in lines if "/health" in item["message"]]
    for everything in (text, found):
        assert "secret" not in everything
        assert KEY not in everything
        assert "\x1b" not in everything
    assert len(text.splitlines()) == len(lines)


def test_prompts_are_logged_only_when_that_is_asked_for(engine, logged):
    with wired(engine, enable_log_requests=True) as server, server.client() as client:
        evil = {**CHAT, "messages": [{"role": "user", "content": "a\n2026-01-01 ERROR forged\r\x1b[2J\u2028\u202e"}]}
        reply = client.post("/v1/chat/completions", json=evil)
    text, found = logged()
    line = next(line for line in map(json.loads, found.splitlines()) if "prompts" in line)
    assert "forged" in line["prompts"][0]
    assert line["answers"] == [reply.json()["choices"][0]["message"]["content"]]
    assert len(text.splitlines()) == len(found.splitlines())
    assert all(sign not in text for sign in "\r\x1b\u2028\u202e")


def test_a_trace_cannot_look_like_a_line_of_the_log():
    record = logging.LogRecord("trimtab", logging.ERROR, "", 0, "it failed", None, None)
    try:
        raise ValueError("x\n2026-01-01T00:00:00.000Z INFO forged\x1b[0m")
    except ValueError as error:
        record.exc_info = (ValueError, error, error.__traceback__)
    lines = logs.TextFormatter().format(record).splitlines()
    assert len(lines) > 2
    assert all(line.startswith("    ") for line in lines[1:])
    assert "\x1b" not in "".join(lines)
    assert len(logs.JsonFormatter().format(record).splitlines()) == 1


def test_openai_clients_are_told_what_was_wrong(client):
    reply = client.post("/v1/chat/completions", content="[" * 100, headers={"x-request-id": "z"})
    assert isinstance(reply, httpx.Response)
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
