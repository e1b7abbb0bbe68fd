"""The page's files: what is served, with which headers, and what is vendored."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
from pathlib import Path

import httpx
import pytest

from serving.page.stage import Stage, on_thread
from trimtab.serving import playground

FOLDER = Path(playground.__file__).parent / "page"
NAMES = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def client():
    with on_thread(Stage().app()) as (url, _), httpx.Client(base_url=url) as made:
        yield made


def test_every_file_is_served_with_its_type_and_the_policy(client):
    assert len(NAMES) > 15
    for name in NAMES:
        answer = client.get(f"/page/{name}")
        assert answer.status_code == 200, name
        assert answer.content == (FOLDER / name).read_bytes()
        assert answer.headers["x-content-type-options"] == "nosniff"
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy and "http" not in policy
        if name.endswith(("js", "mjs")):
            assert answer.headers["content-type"] == "text/javascript; charset=utf-8"


def test_the_index_is_at_the_root(client):
    answer = client.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.content == (FOLDER / "index.html").read_bytes()
    assert client.head("/").headers["etag"] == answer.headers["etag"]


def test_a_file_that_is_known_is_not_sent_again(client):
    tag = client.get("/").headers["etag"]
    for header in (tag, f"W/{tag}", f'"other", {tag}'):
        again = client.get("/", headers={"if-none-match": header})
        assert (again.status_code, again.content) == (304, b"")
    assert client.get("/", headers={"if-none-match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/page/",
        "/page/nothing.js",
        "/page/../playground.py",
        "/page/%2e%2e/playground.py",
        "/page/js/%2e%2e/index.html",
        "/page//index.html",
        "/page/js",
        "/page/..%2fplayground.py",
        "/page/index.html%00",
        "/page/js/main.js/",
    ],
)
def test_nothing_else_is_served(client, path):
    asked = http.client.HTTPConnection(client.base_url.host, client.base_url.port)  # sends a path as it is
    asked.putrequest("GET", path)
    asked.endheaders()
    answer = asked.getresponse()
    assert answer.status == 404
    assert "message" in json.loads(answer.read())["error"]
    asked.close()


def test_a_range_is_not_cut_out(client):
    answer = client.get("/page/vendor/purify.es.mjs", headers={"range": "bytes=0-1,5-9"})
    assert (answer.status_code, len(answer.content)) == (200, (FOLDER / "vendor/purify.es.mjs").stat().st_size)


def test_vendored_files_are_those_of_the_packages():
    table = re.findall(
        r"^\| (\S+) \| \S+ \| \S+ \|.*\| ([0-9a-f]{64}) \|$", (FOLDER / "vendor/README.md").read_text(), re.M
    )
    assert {name for name, _ in table} == {p.name for p in (FOLDER / "vendor").iterdir()} - {"README.md"}
    for name, digest in table:
        assert hashlib.sha256((FOLDER / "vendor" / name).read_bytes()).hexdigest() == digest, name


def test_the_page_keeps_the_rules_of_the_house():
    own = [name for name in NAMES if not name.startswith("vendor/")]
    for name in own:
        text = (FOLDER / name).read_text(encoding="utf-8")
        assert text.count("\n") <= 400, name
        for taboo in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert taboo not in text, f"{name}: {taboo}"
        for address in re.findall(r"https?://[^\s\"'`)]+", text):
            assert address == "http://www.w3.org/2000/svg", f"{name}: {address}"
    index = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?![^>]*src=)", index)
    assert not re.search(r"(?:src|href)=\"/", index), "an absolute path breaks below a root path"


def test_every_loaded_file_exists():
    index = (FOLDER / "index.html").read_text(encoding="utf-8")
    for name in re.findall(r"(?:src|href)=\"page/([^\"]+)\"", index):
        assert name in NAMES
    for module in [name for name in NAMES if name.startswith("js/")]:
        for imported in re.findall(r"from \"([^\"]+)\"", (FOLDER / module).read_text(encoding="utf-8")):
            assert (FOLDER / module).parent.joinpath(imported).resolve().is_file(), f"{module}: {imported}"
