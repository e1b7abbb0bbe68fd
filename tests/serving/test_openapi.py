"""The OpenAPI description: it is complete, and what it says is what the server does, for right and for wrong data."""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path

import pytest

from serving.talk import canary

SCHEMATHESIS = Path(sysconfig.get_path("scripts")) / "schemathesis"
EXAMPLES = 10  # a route, in each of the random phases
# What a schema cannot say (a model's name, a text that is too long for the model) is refused all the same.
NOT_CHECKED = "positive_data_acceptance"


@pytest.mark.parametrize("phase", ["examples,coverage", "fuzzing", "stateful"])
def test_what_it_says_is_what_the_server_does(server, client, engine, tmp_path, phase):
    command = [str(SCHEMATHESIS), "run", f"{server.url}/openapi.json", "--phases", phase, "--mode", "all"]
    command += [
        "--max-examples",
        str(EXAMPLES),
        "--seed",
        "1",
        "--exclude-checks",
        NOT_CHECKED,
        "--no-color",
        "--no-shrink",
    ]
    command += ["--generation-deterministic", "--suppress-health-check", "all"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert server.idle()
    canary(client, engine)
