"""Chat completions over HTTP: the answers are the engine's, whole and in pieces."""

from __future__ import annotations

import math

import pytest

from serving.talk import CHAT, MESSAGES, choices_of, stream, text_of

BODY = {"model": "tiny", "messages": MESSAGES, "max_tokens": 12, "seed": 3}


def test_an_answer_is_the_engines(client, engine):
    response = client.post(CHAT, json=BODY)
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
    whole = client.post(CHAT, json={**BODY, "n": 3}).json()
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
    answer = client.post(CHAT, json={**BODY, "model": model, "guidance": guidance}).json()
    (expected,) = engine.generate([MESSAGES], guidance=weights, seed=3, max_tokens=12)
    assert answer["choices"][0]["message"]["content"] == expected.text
    assert answer["guidance"]["weights"] == expected.weights
    assert answer["model"] == model


def test_logprobs_are_those_of_the_guided_distribution(client, engine):
    answer = client.post(CHAT, json={**BODY, "logprobs": True, "top_logprobs": 3}).json()
    content = answer["choices"][0]["logprobs"]["content"]
    (expected,) = engine.generate([MESSAGES], seed=3, max_tokens=12)
    score = engine.score(MESSAGES, expected.token_ids)
    assert [each["logprob"] for each in content] == pytest.approx(score.combined, abs=1e-5)
    assert answer["usage"]["completion_tokens"] == len(content)
    for each in content:
        assert len(each["top_logprobs"]) == 3
        values = [top["logprob"] for top in each["top_logprobs"]]
        assert values == sorted(values, reverse=True)
        assert each["logprob"] <= values[0] <= 0
        listed = {top["token"]: top["logprob"] for top in each["top_logprobs"]}
        assert listed.get(each["token"], each["logprob"]) == each["logprob"]
    text = b"".join(bytes(each["bytes"]) for each in content).decode("utf-8", "replace")
    assert text.startswith(answer["choices"][0]["message"]["content"].rstrip("\ufffd"))


def test_logprobs_without_alternatives_and_not_at_all(client):
    alone = client.post(CHAT, json={**BODY, "logprobs": True}).json()
    assert all(each["top_logprobs"] == [] for each in alone["choices"][0]["logprobs"]["content"])
    none = client.post(CHAT, json=BODY).json()
    assert none["choices"][0]["logprobs"] is None
    assert "guidance" not in none["choices"][0]


@pytest.mark.parametrize("stop", [None, ["e", "a"]])
def test_a_stream_tells_of_every_token(client, stop):
    body = {**BODY, "n": 2, "stop": stop, "logprobs": True, "top_logprobs": 1, "return_token_ids": True}
    body["guidance"] = {"rewards": True, "top": 2}
    whole = client.post(CHAT, json=body).json()
    chunks = stream(client, **body)
    assert chunks[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    for choice in whole["choices"]:
        mine = choices_of(chunks, choice["index"])
        assert [e for c in mine if c["logprobs"] for e in c["logprobs"]["content"]] == choice["logprobs"]["content"]
        assert [t for c in mine for t in c.get("token_ids", [])] == choice["token_ids"]
        assert [t for c in mine for t in c.get("guidance", {"tokens": []})["tokens"]] == choice["guidance"]["tokens"]
        assert text_of(chunks, choice["index"]) == choice["message"]["content"]


def test_notes_say_what_base_guides_and_objectives_think(client, engine):
    weights = {"polite": 0.5, "helpful": 0.6, "harmless": 0.2}
    body = {**BODY, "guidance": {"weights": weights, "rewards": True, "top": 2}, "return_token_ids": True}
    (choice,) = client.post(CHAT, json=body).json()["choices"]
    score = engine.score(MESSAGES, choice["token_ids"], guidance=weights, by_objective=True)
    notes = choice["guidance"]["tokens"]
    assert [note["token_id"] for note in notes] == choice["token_ids"] == score.token_ids
    assert [note["logprob"] for note in notes] == pytest.approx(score.combined, abs=1e-5)
    assert [note["base_logprob"] for note in notes] == pytest.approx(score.base, abs=1e-5)
    for name in ("polite", "values"):
        assert [note["guides"][name] for note in notes] == pytest.approx(score.guides[name], abs=1e-5)
    for name in ("helpful", "harmless"):
        told = [note["objectives"][name] for note in notes]
        assert [each["logprob"] for each in told] == pytest.approx(score.objectives["values"][name], abs=1e-5)
        ratios = [each["log_ratio"] for each in told]
        expected = [each["logprob"] - note["base_logprob"] for each, note in zip(told, notes, strict=True)]
        assert ratios == pytest.approx(expected)
    for note in notes:
        assert len(note["top"]) == len(note["base_top"]) == 2
        assert note["kl"] >= -1e-6
        assert note["logprob"] <= note["top"][0]["logprob"] + 1e-9
    assert any(note["kl"] > 1e-3 for note in notes)  # guidance does something


def test_notes_of_the_plain_base_differ_from_it_in_nothing(client):
    body = {**BODY, "model": "tiny:plain", "guidance": {"rewards": True, "top": 3}}
    (choice,) = client.post(CHAT, json=body).json()["choices"]
    for note in choice["guidance"]["tokens"]:
        assert note["logprob"] == note["base_logprob"]
        assert note["top"] == note["base_top"]
        assert math.isclose(note["kl"], 0, abs_tol=1e-6)
        assert set(note["objectives"]) == {"polite", "helpful", "harmless"}


def test_plain_is_strength_zero_is_the_base(client, llama_folder):
    from trimtab.engine import load
    from trimtab.models import load_base

    with load(load_base(str(llama_folder), dtype="float32")) as bare:
        (expected,) = bare.generate([MESSAGES], seed=3, max_tokens=12)
    plain = client.post(CHAT, json={**BODY, "model": "tiny:plain"}).json()
    zero = client.post(CHAT, json={**BODY, "guidance": {"weights": {"helpful": 3}, "strength": 0}}).json()
    texts = {answer["choices"][0]["message"]["content"] for answer in (plain, zero)}
    assert texts == {expected.text}
    guided = client.post(CHAT, json=BODY).json()
    assert guided["choices"][0]["message"]["content"] != expected.text


def test_parts_and_developer_are_text_and_system(client):
    said = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}], "name": "ann"},
    ]
    same = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    first, second = (client.post(CHAT, json={**BODY, "messages": messages}).json() for messages in (said, same))
    assert first["choices"] == second["choices"]
    assert first["usage"]["prompt_tokens"] == second["usage"]["prompt_tokens"]


def test_max_tokens_defaults_to_the_room_there_is(client, server):
    answer = client.post(CHAT, json={"messages": MESSAGES, "ignore_eos": True, "temperature": 0}).json()
    usage = answer["usage"]
    assert answer["choices"][0]["finish_reason"] == "length"
    assert usage["total_tokens"] == server.gateway.max_model_len
    assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"]


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"max_tokens": 5000}, "max_tokens", "context_length_exceeded"),
        ({"max_completion_tokens": 5000}, "max_completion_tokens", "context_length_exceeded"),
        ({"messages": [{"role": "user", "content": "word " * 2000}]}, "messages", "context_length_exceeded"),
        ({"model": "tyny"}, "model", "model_not_found"),
        ({"guidance": {"strenght": 1}}, "guidance.strenght", None),
        ({"guidance": {"weights": {"helpfull": 1}}}, "guidance.weights.helpfull", None),
        ({"guidance": {"weights": {"helpful": -1}}}, "guidance.weights.helpful", None),
        ({"guidance": {"weights": {"values": 1, "helpful": 1}}}, "guidance.weights", None),
        ({"guidance": {"strength": 10000}}, "guidance.strength", None),
        ({"guidance": {"top": 21}}, "guidance.top", None),
        ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
        ({"guided_regex": "a+"}, "guided_regex", "unsupported_parameter"),
        ({"chat_template": "{{ 1 }}"}, "chat_template", "unsupported_parameter"),
        ({"continue_final_message": True}, "continue_final_message", "unsupported_parameter"),
        ({"echo": True}, "echo", "unsupported_parameter"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages.0.content.0.type",
            "unsupported_parameter",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", None),
        ({"messages": [{"role": "user"}]}, "messages.0.content", None),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content", None),
        ({"messages": []}, "messages", None),
        ({"top_logprobs": 2}, "top_logprobs", None),
        ({"stream_options": {"include_usage": True}}, "stream_options", None),
        ({"n": 9}, "n", None),
        ({"logit_bias": {"x": 1}}, "logit_bias.x", None),
        ({"logit_bias": {"99999": 1}}, "logit_bias.99999", None),
        ({"stop_token_ids": [5, 99999]}, "stop_token_ids.1", None),
        ({"stop": ["a", ""]}, "stop.1", None),
        ({"min_tokens": 20}, "min_tokens", None),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_cannot_be_served_names_its_field(client, fields, param, code):
    response = client.post(CHAT, json={**BODY, **fields})
    error = response.json()["error"]
    assert response.status_code == (404 if code == "model_not_found" else 400), error
    assert (error["param"], error["code"]) == (param, code), error
    assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]


def test_messages_suggest_what_was_meant(client):
    def message(**fields) -> str:
        return client.post(CHAT, json={**BODY, **fields}).json()["error"]["message"]

    assert message(model="tiny:plian") == "The model 'tiny:plian' is not served here. Did you mean 'tiny:plain'?"
    assert message(guidance={"strenght": 1}) == "There is no field 'strenght' in 'guidance'. Did you mean 'strength'?"
    assert "Did you mean 'helpful'?" in message(guidance={"weights": {"helpfull": 1}})
    assert message(temperature=3) == "'temperature' is 3, but it must be at most 2."
    assert message(temperature="hot") == "'temperature' is \"hot\", but it must be a finite number."
    assert message(n=True) == "'n' is true, but it must be a whole number."


def test_unknown_fields_are_left_alone(client):
    fields = {"metadata": {"a": 1}, "store": False, "tools": [], "tool_choice": "auto", "user": "ann", "audio": None}
    fields |= {"response_format": {"type": "text"}, "stop": None, "logit_bias": {}}
    assert client.post(CHAT, json={**BODY, **fields}).status_code == 200


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"{", "application/json", 400),
        (b"", "application/json", 400),
        (b"[1]", "application/json", 400),
        (b"null", "application/json", 400),
        (b'{"messages": NaN}', "application/json", 400),
        (b'{"messages": -Infinity}', "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b'{"seed": ' + b"1" * 5000 + b"}", "application/json", 400),
        (b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "application/json", 400),
        (b"a=1", "application/x-www-form-urlencoded", 415),
    ],
    ids=["open", "empty", "list", "null", "nan", "infinity", "utf16", "digits", "deep", "form"],
)
def test_bodies_that_are_no_json_objects(client, body, content_type, status):
    response = client.post(CHAT, content=body, headers={"content-type": content_type})
    assert response.status_code == status
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_half_characters_and_nul_are_refused_by_name(client):
    for text in (b'"\\ud800"', b'"a\\u0000b"'):
        body = b'{"messages": [{"role": "user", "content": %s}]}' % text
        error = client.post(CHAT, content=body, headers={"content-type": "application/json"}).json()["error"]
        assert error["param"] == "messages.0.content"
    name = b'{"messages": [{"role": "user", "content": "a"}], "guidance": {"weights": {"\\ud800": 1}}}'
    response = client.post(CHAT, content=name, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("guidance.weights")


def test_routes_and_methods_that_are_not_there(client):
    for method, path, status in [("GET", "/v1/nothing", 404), ("GET", CHAT, 405), ("PUT", "/v1/models", 405)]:
        response = client.request(method, path)
        assert response.status_code == status
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_models_are_listed(client, server):
    listed = client.get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["tiny", "tiny:plain", "tiny:balanced", "tiny:polite"]
    assert all(model["max_model_len"] == server.gateway.max_model_len for model in listed["data"])
    assert client.get("/v1/models/tiny:plain").json() == listed["data"][1]
    assert client.get("/v1/models/tiny:plan").status_code == 404


def test_guides_are_listed(client):
    said = client.get("/v1/guides").json()
    assert [guide["name"] for guide in said["guides"]] == ["polite", "values"]
    assert [each["name"] for each in said["guides"][1]["objectives"]] == ["helpful", "harmless"]
    assert said["guides"][1]["conditioned"] is True
    assert said["presets"]["balanced"]["weights"] == {"helpful": 0.5, "harmless": 0.5}
    assert said["default"] is None
