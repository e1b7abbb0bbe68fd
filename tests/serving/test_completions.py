"""Completions over HTTP: every form of prompt, several at a time, and prompts that are scored."""

from __future__ import annotations

import pytest

from serving.talk import COMPLETIONS, canary, choices_of, stream, text_of

BODY = {"model": "tiny", "max_tokens": 6, "seed": 5}


def ids_of(engine, text: str) -> list[int]:
    return engine.base.tokenizer(text)["input_ids"]


def post(client, **fields) -> dict:
    response = client.post(COMPLETIONS, json={**BODY, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def test_prompts_and_n_are_numbered_and_drawn_as_by_the_engine(client, engine):
    prompts = ["the quick", "happy to help", "a"]
    expected = engine.generate(prompts, seed=5, max_tokens=6, n=2)
    answer = post(client, prompt=prompts, n=2)
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    assert [choice["text"] for choice in answer["choices"]] == [g.text for g in expected]
    assert answer["usage"]["prompt_tokens"] == sum(len(ids_of(engine, prompt)) for prompt in prompts)
    assert answer["usage"]["completion_tokens"] == sum(len(g.token_ids) for g in expected)
    chunks = stream(client, COMPLETIONS, **BODY, prompt=prompts, n=2)
    assert [text_of(chunks, k) for k in range(6)] == [g.text for g in expected]


def test_every_form_of_a_prompt_is_the_same_prompt(client, engine):
    ids = ids_of(engine, "the quick")
    answers = [post(client, prompt=prompt) for prompt in ("the quick", ["the quick"], ids, [ids])]
    assert len({answer["choices"][0]["text"] for answer in answers}) == 1
    mixed = post(client, prompt=["a", ids])
    assert mixed["choices"][1]["text"] == post(client, prompt=["a", "the quick"])["choices"][1]["text"]


def test_sixteen_tokens_unless_asked_otherwise(client):
    answer = client.post(COMPLETIONS, json={"prompt": "a", "ignore_eos": True}).json()
    assert answer["usage"]["completion_tokens"] == 16
    assert answer["model"] == "tiny"
    assert answer["object"] == "text_completion"


@pytest.mark.parametrize("as_ids", [False, True])
@pytest.mark.parametrize("top", [0, 2])
def test_echo_scores_the_prompt(client, engine, as_ids, top):
    text = "the quick bröwn fox ☃ jumps"
    ids = ids_of(engine, text)
    answer = post(client, prompt=ids if as_ids else text, echo=True, logprobs=top, max_tokens=3, return_token_ids=True)
    (choice,) = answer["choices"]
    logprobs = choice["logprobs"]
    own = choice["token_ids"]
    score = engine.score(ids[:1], [*ids[1:], *own])
    assert choice["prompt_token_ids"] == ids
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    assert logprobs["token_logprobs"][1:] == pytest.approx(score.combined, abs=1e-4)
    assert choice["text"].startswith(text)
    assert len(logprobs["tokens"]) == len(logprobs["text_offset"]) == len(logprobs["top_logprobs"]) == len(ids) + 3
    for token, value, listed, offset in zip(*logprobs.values(), strict=True):
        if not token.startswith("bytes:") and token not in engine.base.tokenizer.all_special_tokens:
            assert choice["text"][offset : offset + len(token)] == token
        if listed is not None:
            assert listed[token] == value or max(listed.values()) >= value
            assert top <= len(listed) <= top + 1 or top == 0


def test_text_offsets_of_pieces_of_characters(client, engine):
    (choice,) = post(client, prompt="☃a", echo=True, logprobs=0, max_tokens=1)["choices"]
    logprobs = choice["logprobs"]
    count = len("☃".encode())
    assert logprobs["tokens"][:count] == ["bytes:\\xe2", "bytes:\\x98", "bytes:\\x83"]
    assert logprobs["text_offset"][: count + 1] == [0, 0, 0, 1]


def test_echo_alone_writes_nothing(client, engine):
    ids = ids_of(engine, "the quick brown")
    answer = post(client, prompt=[ids, ids[:1]], echo=True, logprobs=1, max_tokens=0, n=2)
    assert answer["usage"] == {
        "prompt_tokens": len(ids) + 1,
        "completion_tokens": 0,
        "total_tokens": len(ids) + 1,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    score = engine.score(ids[:1], ids[1:])
    for choice in answer["choices"][:2]:
        assert choice["text"] == "the quick brown"
        assert choice["logprobs"]["token_logprobs"][1:] == pytest.approx(score.combined, abs=1e-5)
    assert answer["choices"][2]["logprobs"]["token_logprobs"] == [None]


def test_a_stream_with_echo_joins_to_the_answer(client):
    fields = {"prompt": ["the quick", "a"], "echo": True, "logprobs": 1, "return_token_ids": True}
    whole = post(client, **fields)
    chunks = stream(client, COMPLETIONS, **BODY, **fields, stream_options={"include_usage": True})
    for choice in whole["choices"]:
        mine = choices_of(chunks, choice["index"])
        assert text_of(chunks, choice["index"]) == choice["text"]
        assert [t for c in mine for t in c.get("token_ids", [])] == choice["token_ids"]
        for name, values in choice["logprobs"].items():
            assert [v for c in mine if c["logprobs"] for v in c["logprobs"][name]] == values
    usage = chunks[-1]["usage"]
    assert {name: usage[name] for name in ("prompt_tokens", "completion_tokens")} == {
        name: whole["usage"][name] for name in ("prompt_tokens", "completion_tokens")
    }


def test_logprobs_of_a_completion_under_guidance(client, engine):
    ids = ids_of(engine, "the quick")
    guidance = {"weights": {"harmless": 1.5}}
    (choice,) = post(client, prompt=ids, logprobs=2, guidance=guidance, return_token_ids=True)["choices"]
    score = engine.score(ids, choice["token_ids"], guidance={"harmless": 1.5})
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(score.combined, abs=1e-5)
    for text, token in zip(choice["logprobs"]["tokens"], choice["token_ids"], strict=True):
        assert text.startswith("bytes:") or text == engine.base.tokenizer.decode([token])


def test_stop_strings_and_stop_tokens_end_it(client, engine):
    free = post(client, prompt="the quick", max_tokens=12, return_token_ids=True)["choices"][0]
    at = free["text"][4]
    stopped = post(client, prompt="the quick", max_tokens=12, stop=at)["choices"][0]
    assert stopped["text"] == free["text"][: free["text"].index(at)]
    assert stopped["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": []}, "prompt", None),
        ({"prompt": [[]]}, "prompt.0", None),
        ({"prompt": [1, "a"]}, "prompt.1", None),
        ({"prompt": ["a", 1]}, "prompt.1", None),
        ({"prompt": [True]}, "prompt.0", None),
        ({"prompt": [5, -1]}, "prompt.1", None),
        ({"prompt": [[5], [5, 2**63]]}, "prompt.1.1", None),
        ({"prompt": [5, 9999]}, "prompt.1", None),
        ({"prompt": [[5], [5, 9999]]}, "prompt.1.1", None),
        ({"prompt": ["a"] * 65}, "prompt", None),
        ({"prompt": 7}, "prompt", None),
        ({"prompt": {"a": 1}}, "prompt", None),
        ({"prompt": [5] * 513}, "prompt", "context_length_exceeded"),
        ({"prompt": [5] * 513, "echo": True, "logprobs": 1}, "prompt", "context_length_exceeded"),
        ({"prompt": [5] * 500, "max_tokens": 13}, "max_tokens", "context_length_exceeded"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens", None),
        ({"prompt": "a", "max_tokens": -1}, "max_tokens", None),
        ({"prompt": "a", "logprobs": True}, "logprobs", None),
        ({"prompt": "a", "logprobs": 21}, "logprobs", None),
        ({"prompt": "a", "best_of": 2}, "best_of", "unsupported_parameter"),
        ({"prompt": "a", "suffix": "x"}, "suffix", None),
        ({"prompt": ["a"] * 64, "n": 8}, "n", None),
        ({}, "prompt", None),
    ],
)
def test_what_cannot_be_served_names_its_field(client, engine, fields, param, code):
    response = client.post(COMPLETIONS, json={**BODY, **fields})
    error = response.json()["error"]
    assert response.status_code == 400, error
    assert (error["param"], error["code"]) == (param, code), error
    canary(client, engine)
