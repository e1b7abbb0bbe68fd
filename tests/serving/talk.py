"""How tests talk to a server: streams as lists of chunks, and what a canary has to answer."""

from __future__ import annotations

import contextlib
import json
import time

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
MESSAGES = [{"role": "user", "content": "hello"}]


def events(response) -> list:
    """The events of a stream; the last has to be [DONE]."""
    lines = [line for line in response.iter_lines() if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def stream(client, path=CHAT, **body) -> list:
    with client.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        return events(response)


def choices_of(chunks, index=0) -> list:
    return [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]


def text_of(chunks, index=0) -> str:
    """The text of an answer, of chats and of completions."""
    return "".join(c["text"] if "text" in c else c["delta"].get("content") or "" for c in choices_of(chunks, index))


@contextlib.contextmanager
def slowly(engine, seconds: float = 0.01):
    """Let every step of an engine take so long."""
    driver = engine.parts[1]
    turn = type(driver).turn

    def slow() -> bool:
        time.sleep(seconds)
        return turn(driver)

    driver.turn = slow
    try:
        yield
    finally:
        del driver.turn


def canary(client, engine) -> None:
    """Check that the server still gives the answer that the engine gives."""
    body = {"messages": MESSAGES, "max_tokens": 8, "temperature": 0}
    response = client.post(CHAT, json=body)
    assert response.status_code == 200, response.text
    (expected,) = engine.generate([MESSAGES], temperature=0, max_tokens=8)
    assert response.json()["choices"][0]["message"]["content"] == expected.text
