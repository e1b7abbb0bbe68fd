"""The OpenAI SDK, unchanged, against a real server."""

from __future__ import annotations

import asyncio
import threading

import openai
import pytest

from serving.conftest import serving
from serving.talk import MESSAGES, canary, slowly

SEEDED = {"model": "tiny", "messages": MESSAGES, "max_tokens": 10, "seed": 11}
LONG = {"model": "tiny", "messages": MESSAGES, "max_tokens": 400, "extra_body": {"ignore_eos": True}}


@pytest.fixture
def sdk(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=20) as made:
        yield made
    assert server.idle()


def test_chat(sdk, engine):
    answer = sdk.chat.completions.create(**SEEDED, n=2, user="ann", metadata={"a": "b"})
    expected = engine.generate([MESSAGES], seed=11, max_tokens=10, n=2)
    assert [choice.message.content for choice in answer.choices] == [g.text for g in expected]
    assert [choice.finish_reason for choice in answer.choices] == [g.finish_reason for g in expected]
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"


def test_chat_in_a_stream(sdk, engine):
    texts, reasons, usage = ["", ""], [None, None], None
    for chunk in sdk.chat.completions.create(**SEEDED, n=2, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    expected = engine.generate([MESSAGES], seed=11, max_tokens=10, n=2)
    assert texts == [g.text for g in expected]
    assert reasons == [g.finish_reason for g in expected]
    assert usage.completion_tokens == sum(len(g.token_ids) for g in expected)


def test_the_streaming_helper(sdk, engine):
    (free,) = engine.generate([MESSAGES], seed=11, max_tokens=10)
    with sdk.chat.completions.stream(**SEEDED, stop=free.text[3:5]) as stream:
        events = [event.type for event in stream]
        final = stream.get_final_completion()
    assert final.choices[0].message.content == free.text[: free.text.index(free.text[3:5])]
    assert "content.done" in events


def test_logprobs(sdk):
    answer = sdk.chat.completions.create(**SEEDED, logprobs=True, top_logprobs=2)
    for token in answer.choices[0].logprobs.content:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 2
        assert token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob
        assert bytes(token.bytes)


def test_completions(sdk, engine):
    answer = sdk.completions.create(model="tiny:plain", prompt=["the quick", "a"], max_tokens=5, seed=2, logprobs=1)
    expected = engine.generate(["the quick", "a"], guidance=0.0, seed=2, max_tokens=5)
    assert [choice.text for choice in answer.choices] == [g.text for g in expected]
    assert len(answer.choices[0].logprobs.token_logprobs) == len(expected[0].token_ids)
    text = "".join(
        chunk.choices[0].text
        for chunk in sdk.completions.create(model="tiny:plain", prompt="the quick", max_tokens=5, seed=2, stream=True)
    )
    assert text == expected[0].text


def test_stop(sdk, engine):
    (free,) = engine.generate([MESSAGES], seed=11, max_tokens=10)
    at = free.text[3:5]
    answer = sdk.chat.completions.create(**SEEDED, stop=[at, "never"])
    assert answer.choices[0].message.content == free.text[: free.text.index(at)]
    assert answer.choices[0].finish_reason == "stop"


def test_guidance_goes_in_the_extra_body_and_comes_back(sdk, engine):
    answer = sdk.chat.completions.create(
        **SEEDED, extra_body={"guidance": {"weights": {"helpful": 0.7, "harmless": 0.3}, "rewards": True}}
    )
    (expected,) = engine.generate([MESSAGES], guidance={"helpful": 0.7, "harmless": 0.3}, seed=11, max_tokens=10)
    assert answer.choices[0].message.content == expected.text
    assert answer.guidance["preferences"]["values"] == pytest.approx({"helpful": 0.7, "harmless": 0.3})
    assert len(answer.choices[0].guidance["tokens"]) == len(expected.token_ids)


def test_models(sdk):
    assert [model.id for model in sdk.models.list()] == ["tiny", "tiny:plain", "tiny:balanced", "tiny:polite"]
    assert sdk.models.retrieve("tiny:plain").id == "tiny:plain"


def test_a_seed_gives_one_text_also_in_company(server, engine):
    weights = [None, {"helpful": 1.0}, {"polite": 2.0}, {"harmless": 0.5, "polite": 0.5}]

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as sdk:
            answers = await asyncio.gather(
                *(
                    sdk.chat.completions.create(**{**SEEDED, "seed": k}, extra_body={"guidance": w and {"weights": w}})
                    for k in range(6)
                    for w in weights
                )
            )
        return [answer.choices[0].message.content for answer in answers]

    alone = [engine.generate([MESSAGES], guidance=w, seed=k, max_tokens=10)[0].text for k in range(6) for w in weights]
    assert asyncio.run(ask()) == alone
    assert server.idle()


def test_async_streams(server, engine):
    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as sdk:
            stream = await sdk.chat.completions.create(**SEEDED, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

    assert asyncio.run(ask()) == engine.generate([MESSAGES], seed=11, max_tokens=10)[0].text
    assert server.idle()


def test_errors_by_class(sdk):
    with pytest.raises(openai.NotFoundError) as missing:
        sdk.chat.completions.create(**{**SEEDED, "model": "gpt-4o"})
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as bad:
        sdk.chat.completions.create(**SEEDED, temperature=9)
    assert (bad.value.param, bad.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.BadRequestError) as unknown:
        sdk.chat.completions.create(**SEEDED, extra_body={"guidance": {"weights": {"kind": 1}}})
    assert unknown.value.param == "guidance.weights.kind"


def test_a_client_that_goes_away_frees_its_slot(server, sdk, engine):
    with slowly(engine):
        stream = sdk.chat.completions.create(**LONG, stream=True)
        for _, chunk in zip(range(5), stream, strict=False):
            assert chunk.id in server.gateway.tickets
        (ticket,) = server.gateway.tickets.values()
        stream.close()
        assert server.idle(2)
    assert len(ticket.answers[0].tokens) < 100
    assert not server.gateway._owners


def test_a_client_that_gives_up_waiting_frees_its_slot(server, sdk, engine):
    with slowly(engine):
        with pytest.raises(openai.APITimeoutError):
            sdk.with_options(timeout=0.3).chat.completions.create(**LONG)
        assert server.idle(2)
    with server.client() as client:
        canary(client, engine)


def test_an_async_task_that_is_cancelled_frees_its_slot(server, engine):
    async def ask() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as sdk:
            task = asyncio.create_task(sdk.chat.completions.create(**LONG, n=4))
            while server.gateway.running < 4:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    with slowly(engine):
        asyncio.run(ask())
        assert server.idle(2)


def test_a_key_is_asked_for(engine):
    with serving(engine, keys=["right"]) as live:
        options = {"base_url": f"{live.url}/v1", "max_retries": 0}
        with openai.OpenAI(api_key="wrong", **options) as sdk, pytest.raises(openai.AuthenticationError) as error:
            sdk.models.list()
        assert error.value.code == "invalid_api_key"
        with openai.OpenAI(api_key="right", **options) as sdk:
            assert sdk.chat.completions.create(**SEEDED).choices


def test_one_too_many_and_the_end(engine):
    with serving(engine, max_queued_requests=0, max_n=64) as live, slowly(engine):
        most = live.gateway.most
        with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as sdk:
            first = sdk.chat.completions.create(**LONG, n=most, stream=True)
            next(iter(first))
            with pytest.raises(openai.RateLimitError) as busy:
                sdk.chat.completions.create(**SEEDED)
            assert busy.value.code == "queue_full"
            assert int(busy.value.response.headers["retry-after"]) >= 1
            first.close()
            assert live.idle(5)
            assert sdk.chat.completions.create(**SEEDED).choices
            live.gateway.ready = False
            with pytest.raises(openai.InternalServerError) as closing:
                sdk.chat.completions.create(**SEEDED)
            assert closing.value.status_code == 503
            assert "retry-after" in closing.value.response.headers


def test_a_deadline_ends_answers_and_streams(engine):
    with serving(engine, request_timeout=0.4) as live, slowly(engine, 0.02):
        with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as sdk:
            with pytest.raises(openai.APIStatusError) as late:
                sdk.chat.completions.create(**LONG)
            assert (late.value.status_code, late.value.code) == (504, "deadline_exceeded")
            with pytest.raises(openai.APIError) as later:
                list(sdk.chat.completions.create(**LONG, stream=True))
            assert later.value.code == "deadline_exceeded"
        assert live.idle(2)


def test_the_end_of_the_server_is_told_in_the_stream(engine):
    found: list[Exception] = []

    def ask(url: str) -> None:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as sdk:
            try:
                for _ in sdk.chat.completions.create(**LONG, stream=True):
                    pass
            except openai.APIError as error:
                found.append(error)

    with slowly(engine), serving(engine) as live:
        thread = threading.Thread(target=ask, args=(live.url,))
        thread.start()
        while not live.gateway.running:
            pass
        asyncio.run_coroutine_threadsafe(live.gateway.stop(), live.gateway._loop).result(5)
        thread.join(10)
    assert found[0].code == "service_unavailable"
