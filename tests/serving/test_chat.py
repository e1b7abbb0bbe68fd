"""Chat completions over HTTP: the answers are the engine's, whole and in pieces."""

from __future__ import annotations

import json

import pytest

MESSAGES = [{"role": "user", "content": "hello"}]
BODY = {"model": "tiny", "messages": MESSAGES, "max_tokens": 12, "seed": 3}


def events(response) -> list:
    """The events of a stream; the last is [DONE]."""
    lines = [line for line in response.iter_lines() if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def stream(client, path="/v1/chat/completions", **body) -> list:
    with client.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        return events(response)


def text_of(chunks, index=0) -> str:
    found = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content") or "" for choice in found)


def test_an_answer_is_the_engines(client, engine):
    response = client.post("/v1/chat/completions", json=BODY)
    (expected,) = engine.generate([MESSAGES], seed=3, max_tokens=12)
    assert response.status_code == 200
    answer = response.json()
    assert answer["object"] == "chat.completion"
    (choice,) = answer["choices"]
    assert choice["message"]["content"] == expected.text
    assert choice["finish_reason"] == expected.finish_reason
    assert answer["usage"]["completion_tokens"] == len(expected.token_ids)
    assert answer["usage"]["prompt_tokens"] == expected.prompt_tokens
    assert answer["guidance"]["weights"] == expected.weights
    assert answer["guidance"]["preferences"] == expected.preferences


def test_a_stream_joins_to_the_answer(client):
    whole = client.post("/v1/chat/completions", json={**BODY, "n": 3}).json()
    chunks = stream(client, **BODY, n=3, stream_options={"include_usage": True})
    assert len({chunk["id"] for chunk in chunks}) == 1
    for choice in whole["choices"]:
        index = choice["index"]
        mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert text_of(chunks, index) == choice["message"]["content"]
        assert mine[0]["delta"]["role"] == "assistant"
        assert [c["finish_reason"] for c in mine if c["finish_reason"]] == [choice["finish_reason"]]
        assert mine[-1]["finish_reason"]
    assert chunks[-1]["choices"] == []
    assert {k: v for k, v in chunks[-1]["usage"].items() if k.endswith("tokens")} == {
        k: v for k, v in whole["usage"].items() if k.endswith("tokens")
    }
    assert chunks[0]["guidance"] == whole["guidance"] == chunks[-2]["guidance"]


@pytest.mark.parametrize(
    ("model", "guidance", "weights"),
    [
        ("tiny:plain", None, 0.0),
        ("tiny", {"strength": 0}, 0.0),
        ("tiny:balanced", None, {"helpful": 0.5, "harmless": 0.5}),
        ("tiny", {"weights": {"helpful": 0.5, "harmless": 0.5}}, {"helpful": 0.5, "harmless": 0.5}),
        ("tiny:polite", {"weights": {"harmless": 1}, "strength": 2.0}, {"harmless": 2.0}),
    ],
)
def test_models_and_guidance_are_what_the_engine_takes(client, engine, model, guidance, weights):
    answer = client.post("/v1/chat/completions", json={**BODY, "model": model, "guidance": guidance}).json()
    (expected,) = engine.generate([MESSAGES], guidance=weights, seed=3, max_tokens=12)
    assert answer["choices"][0]["message"]["content"] == expected.text
    assert answer["guidance"]["weights"] == expected.weights
    assert answer["model"] == model
