"""Answers that are being written: their guidance can change, and they can be ended."""

from __future__ import annotations

import json

LONG = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 300,
    "ignore_eos": True,
    "stream": True,
}


def lines(response):
    for line in response.iter_lines():
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


def test_guidance_changes_in_mid_stream(client):
    with client.stream("POST", "/v1/chat/completions", json=LONG) as response:
        chunks = lines(response)
        first = next(chunks)
        change = client.post(f"/v1/generations/{first['id']}/guidance", json={"weights": {"harmless": 2.0}})
        rest = list(chunks)
    assert change.status_code == 200, change.text
    said = change.json()
    assert said["id"] == first["id"]
    assert said["guidance"]["weights"] == {"polite": 0.0, "values": 2.0}
    assert said["guidance"]["preferences"] == {"values": {"helpful": 0.0, "harmless": 1.0}}
    assert 0 <= said["from_token"] <= 300
    assert rest[-1]["guidance"] == said["guidance"]
    assert first["guidance"] != said["guidance"]


def test_an_answer_can_be_ended(client):
    with client.stream("POST", "/v1/chat/completions", json=LONG) as response:
        chunks = lines(response)
        first = next(chunks)
        assert client.delete(f"/v1/generations/{first['id']}").status_code == 200
        rest = list(chunks)
    assert rest[-1]["choices"][0]["finish_reason"] == "abort"
    gone = client.delete(f"/v1/generations/{first['id']}")
    assert gone.status_code == 404
    assert gone.json()["error"]["code"] == "generation_not_found"
