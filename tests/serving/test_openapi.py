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


def test_bounds_in_the_documentation_are_those_of_the_server(client):
    """Every field of a body is in the table of the documentation, under its name."""
    page = (Path(__file__).parents[2] / "docs" / "server.md").read_text(encoding="utf-8")
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    for name in ("ChatRequest", "CompletionRequest", "GuidanceRequest"):
        for field, schema in schemas[name]["properties"].items():
            if "Not supported" not in schema.get("description", ""):
                assert f"`{field}`" in page, f"{name}.{field}"
    for path in client.get("/openapi.json").json()["paths"]:
        assert path in page, path
