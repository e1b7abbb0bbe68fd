"""Keys: who gets in, where they are read from, and that no route was forgotten."""

from __future__ import annotations

import ast
import inspect
import stat

import pytest
from fastapi.routing import APIRoute

from serving.wires import read_all, replies, request, wired
from trimtab.errors import ConfigError
from trimtab.serving import auth
from trimtab.serving.app import create_app
from trimtab.serving.auth import Keys, digest, read_keys
from trimtab.serving.config import ServerConfig
from trimtab.serving.gateway import Gateway

KEY = "sk-" + "a" * 40
OTHER = "sk-" + "b" * 40
OPEN = {"/health", "/ready"}  # what the documentation calls open, beside the page's own files
PAGE_FILES = "trimtab.serving.playground"
HOSTS = ["localhost", "127.0.0.1", "x/../health", "localhost/health?", "/health", "a#", "health:0", "[::1]/ready", "é"]


@pytest.fixture(scope="module")
def server(engine):
    with wired(engine, keys=[KEY, OTHER]) as running:
        yield running


def routes_of(routes):
    """Every route of an application, those of included routers too."""
    found = []
    for route in routes:
        if hasattr(route, "effective_route_contexts"):
            found += [context.original_route for context in route.effective_route_contexts()]
        elif hasattr(route, "routes") and not isinstance(route, APIRoute):
            found += routes_of(route.routes)
        else:
            found.append(route)
    return found


def decided(app):
    """(route, whether it is open) of every route; one that the key's dependency cannot guard is an error."""
    found = []
    for route in routes_of(app.routes):
        assert isinstance(route, APIRoute), f"{route} has no dependencies, so that nobody asks it for a key"
        is_open = route.endpoint in app.state.open_endpoints
        if is_open:
            assert route.path in OPEN or route.endpoint.__module__ == PAGE_FILES, f"{route.path} needs no key: why?"
        found.append((route, is_open))
    return found


def asked(server, method, path, *headers):
    with server.connect() as sock:
        sock.sendall(request(method, path, b"", *headers).replace(b"Host: localhost\r\n", b"", 1))
        return replies(read_all(sock))[0]


def test_every_route_needs_a_key_whatever_the_host_says(server):
    routes = decided(server.app)
    assert {route.path for route, is_open in routes if not is_open} >= {"/version", "/metrics", "/openapi.json"}
    for route, is_open in routes:
        path = route.path.replace("{", "").replace("}", "").replace(":path", "")
        for method in route.methods:
            for host in HOSTS:
                for given in ((), ("Authorization: Bearer wrong",), (f"Authorization: Basic {KEY}",)):
                    reply = asked(server, method, path, f"Host: {host}", *given)
                    if is_open:
                        assert reply.status not in (401, 500), (route.path, host)
                    else:
                        assert reply.status in (401, 400), (route.path, host, reply)  # 400: no HTTP at all
                        assert reply.status == 401 or host == "é", (route.path, host)


def test_a_route_that_nobody_decided_about_needs_a_key(engine):
    app = create_app(Gateway(engine, ServerConfig()), keys=Keys([KEY]))

    @app.get("/new")
    async def new():
        return {}

    assert (False, "/new") in [(is_open, route.path) for route, is_open in decided(app)]
    app.add_route("/bare", lambda _: None)
    with pytest.raises(AssertionError, match="nobody asks it for a key"):
        decided(app)


def test_no_route_reads_a_body_before_it_looks_at_the_key(server):
    for route, is_open in decided(server.app):
        if "POST" in route.methods and not is_open:
            with server.connect(timeout=5) as sock:  # the body never comes
                sock.sendall(request("POST", route.path, b"", "Content-Length: 60000"))
                assert replies(read_all(sock))[0].status == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([f"Authorization: Bearer {KEY}"], 200),
        ([f"Authorization: bearer   {OTHER} "], 200),
        ([], 401),
        (["Authorization: Bearer "], 401),
        (["Authorization: "], 401),
        ([f"Authorization: Bearer {KEY[:-1]}"], 401),
        ([f"Authorization: Bearer {KEY}x"], 401),
        ([f"Authorization: Bearer {digest(KEY)}"], 401),
        ([f"Authorization: {KEY}"], 401),
        ([f"X-Api-Key: {KEY}"], 401),
        ([f"Authorization: Bearer {KEY}", "Authorization: Bearer wrong"], 401),
        (["Authorization: Bearer wrong", f"Authorization: Bearer {KEY}"], 401),
        ([f"Cookie: authorization=Bearer {KEY}"], 401),
    ],
)
def test_which_headers_hold_a_key(server, headers, status):
    reply = asked(server, "GET", "/version", "Host: x", *headers)
    assert reply.status == status
    if status == 401:
        assert reply.headers["www-authenticate"] == "Bearer"
        assert (reply.error["type"], reply.error["code"]) == ("authentication_error", "invalid_api_key")
        assert KEY not in str(reply.error)


def test_a_key_in_the_url_is_none(server):
    for path in (f"/version?api_key={KEY}", f"/version?authorization=Bearer%20{KEY}"):
        assert asked(server, "GET", path, "Host: x").status == 401


def test_owners_are_digests_and_differ():
    keys = Keys([KEY, OTHER])
    assert keys.owner(KEY) == digest(KEY) != keys.owner(OTHER)
    assert keys.owner("no") is None
    assert not Keys([])
    assert KEY not in str(vars(keys))


def test_all_keys_are_compared_in_constant_time():
    tree = ast.parse(inspect.getsource(auth))
    owner = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "owner")
    called = [node.func.attr for node in ast.walk(owner) if isinstance(node, ast.Call) and hasattr(node.func, "attr")]
    assert called == ["compare_digest"]
    assert not [node for node in ast.walk(owner) if isinstance(node, ast.Compare | ast.Break)]
    loop = next(node for node in ast.walk(owner) if isinstance(node, ast.For))
    assert not [node for node in ast.walk(loop) if isinstance(node, ast.Return)]


def test_keys_come_from_flags_file_and_environment(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# team a\nfrom-the-file\n\n  another  \n")
    file.chmod(0o600)
    config = ServerConfig(api_key=["from-a-flag"], api_key_file=file)
    keys, warnings = read_keys(config, {"TRIMTAB_API_KEY": "one, two"})
    assert all(keys.owner(key) for key in ("from-the-file", "another", "from-a-flag", "one", "two"))
    assert len(keys) == 5
    assert not keys.owner("# team a")
    assert [w for w in warnings if "--api-key shows" in w]
    assert not [w for w in warnings if "other users" in w]


def test_a_key_file_that_others_can_read_is_told(tmp_path):
    file = tmp_path / "keys"
    file.write_text("secret")
    file.chmod(stat.S_IRUSR | stat.S_IWUSR | stat.S_IROTH)
    _, warnings = read_keys(ServerConfig(api_key_file=file), {})
    assert warnings == [f"The key file {file} can be read by other users: chmod 600 {file}"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no key"),
        (b"# only a comment\n", "holds no key"),
        (b"\xff\xfe", "not text"),
        (b"two words", "empty"),
    ],
)
def test_key_files_that_are_refused(tmp_path, content, message):
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_keys(ServerConfig(api_key_file=file), {})


def test_keys_that_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(ServerConfig(api_key_file=tmp_path / "none"), {})
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(ServerConfig(api_key_file=tmp_path), {})
    for key in ("", " ", "schlüssel", "a\nb"):
        with pytest.raises(ConfigError, match="no client can send"):
            read_keys(ServerConfig(api_key=[key]), {})
    with pytest.raises(ConfigError, match="TRIMTAB_API_KEY"):
        read_keys(ServerConfig(), {"TRIMTAB_API_KEY": "a,,b"})
    assert not read_keys(ServerConfig(), {"TRIMTAB_API_KEY": ""})[0]
