"""What stands in deploy/ and SECURITY.md: checked by the tools that read it, and against the code."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic_core import PydanticUndefined

from trimtab.cli.serve import ServeOptions
from trimtab.serving.config import ServerConfig
from trimtab.serving.presets import Presets

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def program(name):
    """A program's path; without it the test is skipped, and fails where nothing may be skipped."""
    found = shutil.which(name) or shutil.which(str(Path(sys.executable).parent / name))
    if found is None:
        (pytest.fail if os.environ.get("TRIMTAB_CI") else pytest.skip)(f"{name} is not installed")
    return found


def test_the_dockerfile_has_no_findings():
    command = [program("hadolint"), "--failure-threshold", "style", str(DEPLOY / "Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_image_runs_as_nobody_special_and_says_how_it_is():
    text = (DEPLOY / "Dockerfile").read_text()
    last = text.rpartition("\nFROM ")[2]
    assert re.search(r"^USER 10001$", last, re.MULTILINE)
    assert "HEALTHCHECK" in last
    assert "/health" in last
    assert "g++" in last  # the kernels are compiled where they run
    assert "--insecure" not in text
    assert "API_KEY=" not in text
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        for name in source.split():
            assert (ROOT / name).exists(), name


def flags(words):
    return {word[2:].partition("=")[0].replace("-", "_") for word in words if word.startswith("--")}


def test_the_compose_file():
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    ours, page = services["trimtab"], services["webui"]
    assert flags(ours["command"]) <= set(ServeOptions.model_fields)
    assert page["profiles"] == ["chat"]
    assert all(port.startswith("127.0.0.1:") for service in services.values() for port in service["ports"])
    assert ours["read_only"] is True
    assert ours["cap_drop"] == ["ALL"]
    assert int(ours["stop_grace_period"].removesuffix("s")) > ServerConfig().shutdown_timeout + 5
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0:
        command = ["docker", "compose", "-f", str(DEPLOY / "compose.yaml"), "--profile", "chat", "config", "--quiet"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "MODEL": "x"})
        assert done.returncode == 0, done.stderr


def test_the_service():
    text = (DEPLOY / "trimtab.service").read_text()
    start = re.search(r"^ExecStart=(.*)$", text, re.MULTILINE)
    assert start
    assert flags(start[1].split()) <= {*ServeOptions.model_fields, "config"}
    stop = re.search(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
    assert stop
    assert int(stop[1]) > ServerConfig().shutdown_timeout + 5
    if shutil.which("systemd-analyze") is None:
        return
    command = ["systemd-analyze", "verify", str(DEPLOY / "trimtab.service")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    # The program is not installed here, and older versions ignore the two keys that make restarts back off.
    known = ("is not executable", "Unknown key 'RestartSteps'", "Unknown key 'RestartMaxDelaySec'")
    said = [line for line in done.stderr.splitlines() if "trimtab.service" in line]
    assert [line for line in said if not any(words in line for words in known)] == []


def test_the_example_presets_fit_every_guide(engine):
    presets = Presets.load(DEPLOY / "presets.yaml", list(engine.guides.values()))
    assert set(presets.named) == set(presets.descriptions) == {"gentle", "strong"}


def test_the_scrape_example():
    jobs = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())["scrape_configs"]
    assert "credentials_file" in jobs[0]["authorization"]


def _shown(value):
    return (
        "" if value in (None, [], PydanticUndefined) else str(value).lower() if isinstance(value, bool) else f"{value}"
    )


def test_the_page_lists_every_option_of_the_server():
    page = (ROOT / "docs" / "deploying.md").read_text()
    rows = dict(re.findall(r"^\| `--([\w-]+)` \| ([^|]*) \|", page, re.MULTILINE))
    fields = ServerConfig.model_fields
    assert {name.replace("-", "_") for name in rows} == set(fields)
    for name, info in fields.items():
        default = None if info.default_factory else info.default
        assert rows[name.replace("_", "-")].strip() == _shown(default), name


def test_every_promise_names_tests_that_exist():
    text = (ROOT / "SECURITY.md").read_text()
    rows = re.findall(r"^\| P(\d+) \|.*\| ([^|]*) \|$", text, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 17))
    for number, tests in rows:
        named = re.findall(r"`([\w/.]+\.py)::(\w+)`", tests)
        assert named, f"P{number} names no test"
        for file, test in named:
            assert f"def {test}(" in (ROOT / file).read_text(), f"{file}::{test}"
