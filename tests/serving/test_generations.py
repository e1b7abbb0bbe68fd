"""Answers that are being written: their guidance can change, and they can be ended."""

from __future__ import annotations

import json

import pytest

from serving.conftest import serving
from serving.talk import CHAT, COMPLETIONS, MESSAGES, canary, slowly

LONG = {
    "model": "tiny",
    "messages": MESSAGES,
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


def test_tokens_before_the_change_follow_the_old_guidance_and_those_after_it_the_new(client, engine):
    """The log-probabilities of every token are those of the guidance that was in force when it was written."""
    body = {**LONG, "model": "tiny:plain", "max_tokens": 40, "logprobs": True, "return_token_ids": True, "seed": 4}
    new = {"helpful": 2.5, "polite": 1.0}
    with slowly(engine, 0.005), client.stream("POST", CHAT, json=body) as response:
        chunks = lines(response)
        first = next(chunks)
        seen = [next(chunks) for _ in range(5)]
        said = client.post(f"/v1/generations/{first['id']}/guidance", json={"weights": new, "strength": 1.0}).json()
        rest = [*seen, *chunks]
    at = said["from_token"]
    assert 5 <= at < 40
    ids = [t for chunk in rest for t in chunk["choices"][0].get("token_ids", [])]
    told = [e["logprob"] for c in rest if c["choices"][0]["logprobs"] for e in c["choices"][0]["logprobs"]["content"]]
    before, after = (engine.score(MESSAGES, ids, guidance=guidance).combined for guidance in (0.0, new))
    assert told == pytest.approx([*before[:at], *after[at:]], abs=1e-4)


def test_what_a_change_leaves_out_stays(client, engine):
    with slowly(engine), client.stream("POST", CHAT, json={**LONG, "model": "tiny:polite"}) as response:
        chunks = lines(response)  # letting go of it would close the stream
        first = next(chunks)
        path = f"/v1/generations/{first['id']}/guidance"
        assert first["guidance"] == {
            "weights": {"polite": 1.2000000000000002, "values": 0.0},
            "preferences": first["guidance"]["preferences"],
            "strength": 0.8,
            "preset": "polite",
        }
        stronger = client.post(path, json={"strength": 2}).json()["guidance"]
        assert stronger["weights"]["polite"] == 3.0
        assert stronger["preset"] is None
        other = client.post(path, json={"weights": {"values": 1.0}}).json()["guidance"]
        assert other["weights"] == {"polite": 0.0, "values": 2.0}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"weights": {"helpfull": 1}}, "weights.helpfull"),
        ({"strength": "1"}, "strength"),
        ({"strength": 1e5}, "strength"),
        ({"rewards": True}, "rewards"),
        ({"weights": {"helpful": None}}, "weights.helpful"),
    ],
)
def test_a_change_that_cannot_be_applied_changes_nothing(client, engine, server, change, param):
    with slowly(engine), client.stream("POST", CHAT, json=LONG) as response:
        chunks = lines(response)  # letting go of it would close the stream
        first = next(chunks)
        refused = client.post(f"/v1/generations/{first['id']}/guidance", json=change)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == param
        assert server.gateway.tickets[first["id"]].preset is None
        client.delete(f"/v1/generations/{first['id']}")
        assert list(chunks)[-1]["guidance"] == first["guidance"]


def test_several_answers_change_and_end_together(client, engine):
    with slowly(engine), client.stream("POST", COMPLETIONS, json={**LONG, "prompt": ["a", "b"], "n": 2}) as response:
        chunks = lines(response)  # letting go of it would close the stream
        first = next(chunks)
        changed = client.post(f"/v1/generations/{first['id']}/guidance", json={"strength": 0})
        assert changed.json()["guidance"]["weights"] == {"polite": 0.0, "values": 0.0}
        assert client.delete(f"/v1/generations/{first['id']}").json()["deleted"] is True
        ends = [c for chunk in chunks for c in chunk["choices"] if c["finish_reason"]]
    assert sorted(c["index"] for c in ends) == [0, 1, 2, 3]
    assert {c["finish_reason"] for c in ends} == {"abort"}


def test_whole_answers_can_be_ended_by_who_knows_their_name(client, engine, server):
    import threading

    got = []
    body = {**LONG, "stream": False, "max_tokens": 400}
    with slowly(engine):
        thread = threading.Thread(target=lambda: got.append(client.post(CHAT, json=body).json()))
        thread.start()
        while not server.gateway.tickets:
            pass
        (name,) = server.gateway.tickets
        assert client.delete(f"/v1/generations/{name}").status_code == 200
        thread.join()
    assert got[0]["choices"][0]["finish_reason"] == "abort"


def test_nobody_else_can_change_or_end_an_answer(engine):
    with serving(engine, keys=["ann", "bob"]) as live, slowly(engine), live.client() as ann, live.client() as bob:
        bob.headers["authorization"] = "Bearer bob"
        with ann.stream("POST", CHAT, json=LONG) as response:
            chunks = lines(response)
            first = next(chunks)
            path = f"/v1/generations/{first['id']}"
            for refused in (bob.delete(path), bob.post(f"{path}/guidance", json={"strength": 0})):
                assert refused.status_code == 404
                assert refused.json() == bob.delete("/v1/generations/chatcmpl-none").json()
            assert ann.delete(path).status_code == 200
            assert list(chunks)[-1]["choices"][0]["finish_reason"] == "abort"
        assert live.idle()


def test_a_canary_after_all_that(client, engine):
    canary(client, engine)
