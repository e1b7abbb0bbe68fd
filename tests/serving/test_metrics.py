"""Metrics: parsed as Prometheus parses them, and compared with what requests of known size must have added."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.wires import wired

ROOT = Path(__file__).parents[2]
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hello there"}], "max_tokens": 5, "ignore_eos": True}
OF_VLLM = {
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:prompt_tokens",
    "vllm:generation_tokens",
    "vllm:prefix_cache_queries",
    "vllm:prefix_cache_hits",
    "vllm:num_preemptions",
    "vllm:request_success",
    "vllm:time_to_first_token_seconds",
    "vllm:inter_token_latency_seconds",
    "vllm:e2e_request_latency_seconds",
    "vllm:request_prompt_tokens",
    "vllm:request_generation_tokens",
}


@pytest.fixture
def server(engine):
    with wired(engine) as running:
        yield running


def read(client):
    """(name, labels) → value, and the families."""
    reply = client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=")
    families = list(text_string_to_metric_families(reply.text))
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for f in families for s in f.samples}, families


def value(found, name, **labels):
    return found.get((name, tuple(sorted(labels.items()))), 0.0)


def test_known_requests_add_known_numbers(server):
    model = {"model_name": "tiny"}
    with server.client() as client:
        first = client.post("/v1/chat/completions", json={**CHAT, "n": 2, "seed": 1}).json()
        client.post("/v1/chat/completions", json={**CHAT, "guidance": {"weights": {"polite": 2}, "rewards": True}})
        assert client.post("/v1/chat/completions", content="{").status_code == 400
        assert client.get("/none").status_code == 404
        assert client.post("/v1/chat/completions", content=b"x" * (5 * 2**20)).status_code == 413
        found, families = read(client)
        while not value(found, "trimtab:requests_rejected_total", reason="body"):  # counted when the client has gone
            found, families = read(client)
    prompt = first["usage"]["prompt_tokens"]
    assert value(found, "vllm:generation_tokens_total", **model) == 15
    assert value(found, "vllm:request_success_total", finished_reason="length", **model) == 3
    assert value(found, "vllm:time_to_first_token_seconds_count", **model) == 3
    assert value(found, "vllm:inter_token_latency_seconds_count", **model) == 12
    assert value(found, "vllm:e2e_request_latency_seconds_count", **model) == 3
    assert value(found, "vllm:request_generation_tokens_sum", **model) == 15
    assert value(found, "vllm:request_prompt_tokens_sum", **model) == 3 * prompt
    assert value(found, "vllm:prompt_tokens_total", **model) == 3 * prompt
    assert value(found, "vllm:prefix_cache_queries_total", **model) == 3 * prompt
    assert 0 <= value(found, "vllm:prefix_cache_hits_total", **model) <= 2 * prompt
    assert value(found, "vllm:num_requests_running", **model) == 0
    assert value(found, "vllm:num_requests_waiting", **model) == 0
    assert value(found, "vllm:kv_cache_usage_perc", **model) == 0
    assert value(found, "trimtab:guidance_weight_count", guide="polite") == 2
    # Prometheus knows no sum where a value can be negative. One request at the recommended weight 1, and one at 2:
    assert [value(found, "trimtab:guidance_weight_bucket", guide="polite", le=le) for le in ("0.75", "1.0", "2.0")] == [
        0,
        1,
        2,
    ]
    assert value(found, "trimtab:guidance_kl_nats_count") == 5
    assert value(found, "trimtab:guidance_kl_nats_sum") > 0
    assert value(found, "trimtab:engine_steps_total") > 0
    assert value(found, "trimtab:engine_failures_total") == 0
    assert value(found, "trimtab:ready") == 1
    http = {"method": "POST", "route": "/v1/chat/completions"}
    assert value(found, "trimtab:http_requests_total", status="200", **http) == 2
    assert value(found, "trimtab:http_requests_total", status="400", **http) == 1
    assert value(found, "trimtab:http_requests_total", status="404", method="GET", route="(none)") == 1
    assert value(found, "trimtab:requests_rejected_total", reason="body") == 1
    assert {family.name for family in families} >= OF_VLLM
    assert all(family.documentation for family in families)


def test_what_clients_send_makes_no_new_labels(server):
    with server.client() as client:
        read(client)
        before = len(read(client)[0])
        for name in ("a", "b", "c/d", "%00", "x" * 500):
            client.get(f"/v1/{name}")
            client.request("WEIRD" + name[0].upper(), "/nothing")
            client.delete(f"/v1/generations/{name[0]}")
        after = read(client)[0]
    new = {key for key in after if "http_requests" in key[0]}
    assert len(after) - before <= 6
    assert all("x" * 10 not in str(key) and "WEIRD" not in str(key) for key in new)


def test_two_servers_count_apart(engine):
    with wired(engine) as one, wired(engine) as two, one.client() as first, two.client() as second:
        first.post("/v1/chat/completions", json=CHAT)
        assert value(read(first)[0], "vllm:generation_tokens_total", model_name="tiny") == 5
        assert value(read(second)[0], "vllm:generation_tokens_total", model_name="tiny") == 0


def test_a_stream_that_nobody_wants_any_more_counts_as_aborted(server):
    with server.client() as client:
        with client.stream("POST", "/v1/chat/completions", json={**CHAT, "max_tokens": 400, "stream": True}) as reply:
            next(reply.iter_lines())
        while server.gateway.tickets:
            pass
        found, _ = read(client)
        assert value(found, "vllm:request_success_total", finished_reason="abort", model_name="tiny") == 1


def test_the_page_lists_every_metric(server):
    with server.client() as client:
        _, families = read(client)
    page = (ROOT / "docs" / "deploying.md").read_text()
    listed = set(re.findall(r"`((?:vllm|trimtab):\w+)`", page))
    assert listed == {family.name for family in families if ":" in family.name and not family.name.endswith("_created")}
