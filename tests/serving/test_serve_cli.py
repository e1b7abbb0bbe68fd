"""``trimtab serve``: what it refuses before it loads anything, and what it says when it runs."""

from __future__ import annotations

import importlib.util
import socket

import httpx
import pytest

from serving.commands import started
from trimtab.cli import serve
from trimtab.cli.main import main

KEY = "sk-" + "a" * 40


@pytest.fixture(autouse=True)
def no_key_in_the_environment(monkeypatch):
    monkeypatch.delenv("TRIMTAB_API_KEY", raising=False)


@pytest.fixture
def never_loads(monkeypatch):
    def load(_):
        raise AssertionError("a model was loaded before everything was looked at")

    monkeypatch.setattr(serve, "load_engine", load)


def fails(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        main(["serve", *map(str, arguments)])
    return left.value.code, capsys.readouterr().err


@pytest.mark.usefixtures("never_loads")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "Others can reach 0.0.0.0, and no API key is set"),
        (["--host", "::"], "no API key is set"),
        (["--host", "no such host"], "stands for no address"),
        (["--api-key-file", "missing"], "cannot be read"),
        (["--api-key", ""], "empty"),
        (["--ssl-certfile", "missing"], "--ssl-keyfile"),
        (["--ssl-certfile", "missing", "--ssl-keyfile", "missing"], "no file missing"),
        (["--allowed-origins", "*"], "is not the origin"),
        (["--weights", "polite"], "NAME=NUMBER"),
        (["--strength", "nan"], "nan"),
        (["--port", "70000"], "port"),
        (["--log-format", "xml"], "log_format"),
        (["--request-timeout", "inf"], "request_timeout"),
    ],
)
def test_what_is_refused_before_a_model_is_loaded(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, said = fails(capsys, "--port", 0, *arguments)
    assert code == 1
    assert message in said
    assert "Traceback" not in said


@pytest.mark.usefixtures("never_loads")
def test_an_empty_key_file_and_a_certificate_that_is_none(capsys, tmp_path):
    (tmp_path / "keys").write_text("\n# none\n")
    assert "holds no key" in fails(capsys, "--api-key-file", tmp_path / "keys")[1]
    pair = [tmp_path / "cert.pem", tmp_path / "key.pem"]
    for file in pair:
        file.write_text("not a certificate")
    assert "TLS cannot be served" in fails(capsys, "--ssl-certfile", pair[0], "--ssl-keyfile", pair[1])[1]


@pytest.mark.usefixtures("never_loads")
def test_a_port_that_is_taken(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, said = fails(capsys, "--port", taken.getsockname()[1])
    assert code == 1
    assert "cannot be listened on" in said
    assert "--port" in said


@pytest.mark.usefixtures("never_loads")
def test_what_has_to_be_installed(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else object())
    code, said = fails(capsys)
    assert code == 1
    assert 'pip install "trimtab[serve]"' in said
    assert "needs uvicorn, which is not" in said


def test_presets_and_weights_that_cannot_be_applied(capsys, llama_folder, guide_folders, tmp_path):
    presets = tmp_path / "presets.yaml"
    common = ["--base", llama_folder, "--guide", guide_folders[0], "--dtype", "float32", "--port", 0]
    presets.write_text("kind: {weights: {kindness: 1}}")
    code, said = fails(capsys, *common, "--presets", presets)
    assert code == 1
    assert "no guide or objective 'kindness'" in said
    presets.write_text("default: {strength: 2}")
    assert "leave one of them out" in fails(capsys, *common, "--presets", presets, "--strength", 3)[1]
    assert "no guide or objective 'kindness'" in fails(capsys, *common, "--weights", "kindness=1")[1]


def test_a_server_with_everything(llama_folder, guide_folders, tmp_path):
    keys, presets = tmp_path / "keys", tmp_path / "presets.yaml"
    keys.write_text(KEY)
    keys.chmod(0o640)
    presets.write_text("soft: {strength: 0.5}")
    arguments = ["--base", llama_folder, "--guide", guide_folders[0], "--dtype", "float32", "--host", "0.0.0.0"]
    arguments += ["--port", 0, "--api-key-file", keys, "--presets", presets, "--weights", "polite=0.25"]
    arguments += ["--served-model-name", "tiny", "--log-format", "json", "--max-n", 2]
    with started(*arguments, environment={"TRIMTAB_API_KEY": "another-key"}) as server:
        url = server.url
        server.wait_for("Page")
        for line in (
            "can be read by other users",
            "tiny, tiny:plain, tiny:default, tiny:soft",
            "polite=0.25",
            "needed (2 are accepted)",
        ):
            assert line in server.stderr
        assert "GiB keys and values" in server.stderr
        assert httpx.get(f"{url}/v1/models").status_code == 401
        for key in (KEY, "another-key"):
            headers = {"authorization": f"Bearer {key}"}
            models = httpx.get(f"{url}/v1/models", headers=headers).json()["data"]
            assert {model["id"] for model in models} >= {"tiny", "tiny:plain", "tiny:soft"}
        body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers).json()
        assert answer["guidance"]["weights"] == {"polite": 0.25}
        assert httpx.get(f"{url}/").status_code == 200
        server.signal()
        assert server.ends() == 0
        assert '"message": "POST /v1/chat/completions 200"' in server.stderr
        assert KEY not in server.stderr
