"""How a server ends: a process of its own, under load, told to end in every way there is."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from serving.commands import started

STREAMS = 10
LONG = {"model": "tiny", "messages": [{"role": "user", "content": "Tell me"}], "stream": True, "ignore_eos": True}


@pytest.fixture(scope="module")
def common(llama_folder, guide_folders):
    return ["--base", llama_folder, "--guide", guide_folders[0], "--port", "0", "--served-model-name", "tiny",
            "--dtype", "float32", "--speculation", "off"]  # fmt: skip


class Stream(threading.Thread):
    """One answer that is read as it comes, slowly enough to be in the middle of it for a while."""

    def __init__(self, url, tokens, pause=0.0):
        super().__init__(daemon=True)
        self.url, self.tokens, self.pause = url, tokens, pause
        self.begun = threading.Event()
        self.events, self.status, self.failed = [], 0, None
        self.start()

    def run(self):
        body = {**LONG, "max_tokens": self.tokens, "seed": 1}
        try:
            with httpx.stream("POST", f"{self.url}/v1/chat/completions", json=body, timeout=60) as reply:
                self.status = reply.status_code
                for line in reply.iter_lines():
                    if line.startswith("data: "):
                        self.events.append(line[6:])
                        self.begun.set()
                        time.sleep(self.pause)
        except httpx.HTTPError as error:
            self.failed = error
        self.begun.set()

    @property
    def error(self):
        found = [json.loads(event) for event in self.events if event != "[DONE]"]
        return next((event["error"] for event in found if "error" in event), None)

    @property
    def finish_reasons(self):
        found = [json.loads(event) for event in self.events if event != "[DONE]"]
        return [c["finish_reason"] for event in found for c in event.get("choices", ()) if c.get("finish_reason")]


def running(url, count=STREAMS, tokens=450):
    streams = [Stream(url, tokens) for _ in range(count)]
    for stream in streams:
        assert stream.begun.wait(30)
    return streams


def until(check, seconds=10):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if check():
            return True
        time.sleep(0.01)
    return False


def test_sigterm_lets_answers_finish_and_refuses_new_ones(common):
    with started(*common, fork=False) as server:
        url = server.url
        with httpx.Client(base_url=url) as kept:  # a connection that is open already
            assert kept.get("/ready").status_code == 200
            streams = running(url)
            server.signal()
            server.wait_for("SIGTERM: no new requests")
            ready = kept.get("/ready")
            assert ready.status_code == 503
            assert ready.headers["connection"] == "close"
            assert httpx.get(f"{url}/health").status_code == 200
            new = httpx.post(f"{url}/v1/chat/completions", json={**LONG, "stream": False, "max_tokens": 2})
            assert new.status_code == 503
            assert new.json()["error"]["code"] == "service_unavailable"
            assert int(new.headers["retry-after"]) > 0
            assert new.headers["connection"] == "close"
            assert any(stream.is_alive() for stream in streams), "they were through before anything was tried"
            for stream in streams:
                stream.join(30)
        assert server.ends() == 0
        for stream in streams:
            assert (stream.failed, stream.error) == (None, None)
            assert stream.finish_reasons == ["length"]
            assert stream.events[-1] == "[DONE]"
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")
        assert "Traceback" not in server.stderr
        assert server.stderr.count("POST /v1/chat/completions 200") == STREAMS


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_without_time_answers_end_with_an_error_that_says_so(common, number):
    with started(*common, "--shutdown-timeout", "0") as server:
        streams = running(server.url)
        began = time.monotonic()
        server.signal(number)
        assert server.ends() == 0
        assert time.monotonic() - began < 15
        cut = 0
        for stream in streams:
            stream.join(10)
            assert stream.failed is None, stream.failed
            assert stream.events[-1] == "[DONE]"
            assert bool(stream.error) != bool(stream.finish_reasons)  # it ends once, one way or the other
            if stream.error:
                cut += 1
                assert stream.error["code"] == "service_unavailable"
        assert cut
        assert "Traceback" not in server.stderr


@pytest.mark.parametrize(("second", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_ends_at_once(common, second, code):
    with started(*common, "--shutdown-timeout", "60", "--request-timeout", "600") as server:
        slow = [Stream(server.url, 480, pause=0.2) for _ in range(4)]
        assert all(stream.begun.wait(20) for stream in slow)
        server.signal(signal.SIGINT)
        server.wait_for("SIGINT: no new requests")
        began = time.monotonic()
        server.signal(second)
        assert server.ends() == code
        assert time.monotonic() - began < 10  # of 60
        assert "Traceback" not in server.stderr


def test_an_idle_server_ends_at_once(common):
    with started(*common) as server, httpx.Client(base_url=server.url) as kept:
        assert kept.get("/health").status_code == 200
        began = time.monotonic()
        server.signal()
        assert server.ends() == 0
        assert time.monotonic() - began < 15  # of the 30 that it may take


def test_kill_leaves_nothing(common, tmp_path):
    with started(*common, cwd=tmp_path) as server:
        url = server.url
        assert not psutil.Process(server.popen.pid).children(recursive=True)
        streams = running(url, 3)
        server.signal(signal.SIGKILL)
        assert server.ends() == -signal.SIGKILL
        for stream in streams:
            stream.join(10)
            assert stream.failed is not None or stream.events[-1] == "[DONE]"
        assert os.listdir(tmp_path) == []  # noqa: PTH208
        port = url.rpartition(":")[2]
        with started(*common, "--port", port) as again:
            assert httpx.get(f"{again.url}/health").status_code == 200


def test_a_client_that_went_away_does_not_hold_the_end(common):
    with started(*common) as server:
        with ThreadPoolExecutor(4) as pool:

            def leave(_):
                with httpx.stream(
                    "POST", f"{server.url}/v1/chat/completions", json={**LONG, "max_tokens": 480}
                ) as reply:
                    next(reply.iter_lines())

            list(pool.map(leave, range(4)))
        began = time.monotonic()
        server.signal()
        assert server.ends() == 0
        assert time.monotonic() - began < 15


def test_a_dead_engine_is_told_and_ends_the_process(common, tmp_path):
    """The engine's thread is made to die as no request can; whoever watches the process starts it again."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, threading, time\n"
        "def kill():\n"
        "    while not os.path.exists('die'):\n"
        "        time.sleep(0.02)\n"
        "    from trimtab.engine.driver import Driver\n"
        "    def dies(*_):\n"
        "        raise SystemExit\n"
        "    Driver.turn = dies\n"
        "threading.Thread(target=kill, daemon=True).start()\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with started(*common, environment={"PYTHONPATH": path}, cwd=tmp_path, fork=False) as server:
        streams = running(server.url, 3)
        (tmp_path / "die").write_text("")
        assert server.ends() == 1
        for stream in streams:
            stream.join(10)
            assert stream.error or stream.finish_reasons == ["length"] or stream.failed
        assert any(stream.error for stream in streams)
        assert "engine's thread has ended" in server.stderr
