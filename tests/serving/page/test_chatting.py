"""Asking, reading, stopping, and what the page says when something goes wrong."""

from __future__ import annotations

import re
import time

import pytest
from fastapi.responses import JSONResponse
from playwright.sync_api import expect

from serving.conftest import PRESETS, serving
from serving.page.stage import on_thread
from trimtab.serving.app import create_app
from trimtab.serving.auth import Keys
from trimtab.serving.config import ServerConfig
from trimtab.serving.gateway import Gateway
from trimtab.serving.presets import Presets

pytestmark = pytest.mark.xdist_group("page")
SHORT = "#v=1&n=24&t=0.7&seed=5"  # settings by link: 24 tokens, a fixed seed


def refused(status: int, code: str, message: str = "no", **headers: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "code": code}}, status, headers)


def ask(page, text="hello"):
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")


def finished(page, count=1):
    expect(page.locator(".answer.done")).to_have_count(count)


def test_a_prompt_is_answered_on_both_sides_from_one_seed(visitor, triple):
    with serving(triple) as live:
        page = visitor.open(live.url + "/" + SHORT + "&view=tokens")
        ask(page)
        finished(page, 2)
        for side, model in (("guided", "tiny"), ("base", "tiny:plain")):
            body = {"messages": [{"role": "user", "content": "hello"}], "seed": 5, "temperature": 0.7, "max_tokens": 24}
            with live.client() as client:
                wanted = client.post("/v1/chat/completions", json={"model": model, **body}).json()
            assert (
                page.locator(f".{side} .foot").inner_text().startswith(f"{wanted['usage']['completion_tokens']} tokens")
            )
            shown = page.locator(f".{side} .cells").inner_text()
            shown = re.sub(r"[\ufffd◌]|token_id:\d+", "", shown)  # pieces of characters, and ids that have no text
            said = wanted["choices"][0]["message"]["content"].replace("\ufffd", "")
            assert len(said) > 5 and shown.startswith(said)
        assert "seed 5" in page.locator(".guided .foot").inner_text()
        assert live.idle()


def test_a_character_of_several_tokens_shows_at_the_last(visitor, stage):
    stage.tokens = ["bytes:\\xf0\\x9f", "bytes:\\x99\\x82", " ok", "bytes:\\xe2"]
    page = visitor.open(stage.url + "/#v=1&compare=0&view=tokens")
    ask(page)
    finished(page)
    assert page.locator(".token").all_inner_texts() == ["◌", "🙂", " ok", "◌"]


def test_enter_sends_and_shift_enter_breaks_the_line(visitor, stage):
    page = visitor.open(stage.url)
    page.fill("#prompt", "one")
    page.press("#prompt", "Shift+Enter")
    page.keyboard.type("two")
    assert page.input_value("#prompt") == "one\ntwo" and stage.asked == []
    page.press("#prompt", "Enter")
    finished(page, 2)
    assert stage.asked[0]["messages"] == [{"role": "user", "content": "one\ntwo"}]
    assert {body["model"] for body in stage.asked} == {"tiny", "tiny:plain"}
    assert stage.asked[0]["seed"] == stage.asked[1]["seed"]
    expect(page.locator(".guided .prose")).to_have_text("Hello there.")


def test_the_next_turn_carries_what_each_side_said(visitor, stage):
    page = visitor.open(stage.url + "/#v=1&system=Be+brief.")
    ask(page, "one")
    finished(page, 2)
    ask(page, "two")
    finished(page, 4)
    last = next(body for body in stage.asked[2:] if body["model"] == "tiny")
    assert [m["role"] for m in last["messages"]] == ["system", "user", "assistant", "user"]
    page.get_by_role("button", name="Edit").click()
    assert page.input_value("#prompt") == "two"
    expect(page.locator(".turn")).to_have_count(1)
    page.get_by_role("button", name="New").click()
    expect(page.locator(".turn")).to_have_count(0)
    expect(page.locator("#empty")).to_be_visible()


@pytest.mark.parametrize("how", ["button", "escape", "close"])
def test_stopping_frees_the_place_on_the_server(visitor, triple, slowly, how):
    slowly(triple, 0.02)
    with serving(triple) as live:
        page = visitor.open(live.url + "/#v=1&n=300&t=1&seed=3")
        ask(page)
        expect(page.locator(".guided .prose")).not_to_be_empty()
        assert live.gateway.tickets
        if how == "close":
            page.close()
        else:
            page.locator("#send").click() if how == "button" else page.keyboard.press("Escape")
            finished(page, 2)
            assert "stopped" in page.locator(".guided .foot").inner_text()
            expect(page.locator("#send")).to_have_text("Send")
        assert live.idle(3) and live.gateway.tickets == {}


def test_markdown_grows_as_it_is_written(visitor, stage):
    stage.tokens = [
        "# Title\n\n",
        "- **one**\n",
        "- two\n\n",
        "```py\nx = ",
        0.3,
        "1\n```\n\n",
        "| a | b |\n|---|---|\n| 1 | 2 |\n",
    ]
    page = visitor.open(stage.url + "/#v=1&compare=0")
    ask(page)
    expect(page.locator(".prose li")).to_have_count(2)
    assert page.locator(".prose h4").inner_text() == "Title"
    finished(page)
    assert page.locator(".prose strong").inner_text() == "one"
    assert page.locator(".prose pre code").inner_text() == "x = 1\n"
    assert page.locator(".prose td").all_inner_texts() == ["1", "2"]


def test_a_list_whose_items_stand_apart_stays_one_list(visitor, stage):
    """Every item is numbered 1 by the model; a list counts on, if it is not cut where an item begins."""
    stage.tokens = [piece for item in "abc" for piece in ("1", 0.05, ".", 0.05, f" {item}", "\n\n", 0.05)] + ["Done."]
    page = visitor.open(stage.url + "/#v=1&compare=0")
    ask(page)
    finished(page)
    expect(page.locator(".prose ol")).to_have_count(1)
    assert page.locator(".prose ol > li").all_inner_texts() == ["a", "b", "c"]


def test_a_long_answer_leaves_the_page_at_hand(visitor, stage):
    words = ["word "] * 9 + ["end.\n\n"]
    stage.tokens = [piece for i in range(1000) for piece in (*words, *([0.001] if i % 10 == 0 else []))]
    stage.together = 10
    page = visitor.open(stage.url + "/#v=1&compare=0")
    page.evaluate(
        "() => { window.worst = 0; let last = performance.now();"
        " const beat = () => { const now = performance.now(); window.worst = Math.max(window.worst, now - last);"
        " last = now; setTimeout(beat, 10); }; beat(); }"
    )
    ask(page)
    page.fill("#prompt", "typed meanwhile")
    assert page.input_value("#prompt") == "typed meanwhile"
    expect(page.locator(".foot")).to_contain_text("10000 tokens", timeout=30_000)
    assert page.locator(".prose p").count() == 1000
    assert page.evaluate("window.worst") < 1500
    begin = time.monotonic()
    page.locator(".switch [data-view=tokens]").click()
    expect(page.locator(".token")).to_have_count(10_000)
    assert time.monotonic() - begin < 5


def test_what_a_busy_server_says_becomes_advice(visitor, stage):
    visitor.expected = ["429"]
    stage.error = refused(429, "queue_full", **{"retry-after": "2"})
    page = visitor.open(stage.url + "/#v=1&compare=0")
    ask(page)
    expect(page.locator(".note.bad")).to_contain_text("Try again in 2 s.")
    stage.error = None
    page.locator(".note.bad").get_by_role("button", name="Try again").click()
    finished(page)
    expect(page.locator(".prose")).to_have_text("Hello there.")


def test_a_refusal_is_told_in_the_servers_words(visitor, stage):
    visitor.expected = ["400"]
    stage.error = refused(400, "context_length_exceeded", "The prompt has 900 tokens: shorten the prompt.")
    page = visitor.open(stage.url + "/#v=1&compare=0")
    ask(page)
    expect(page.locator(".note.bad")).to_contain_text("shorten the prompt")


@pytest.mark.parametrize(("cut", "words"), [("event", "The answer took too long."), ("drop", "may have restarted")])
def test_an_answer_that_breaks_off_keeps_what_there_is(visitor, stage, cut, words):
    stage.cut = cut
    page = visitor.open(stage.url + "/#v=1&compare=0")
    ask(page)
    expect(page.locator(".note.bad")).to_contain_text(words)
    expect(page.locator(".prose")).to_have_text("Hello there.")
    expect(page.locator("#send")).to_have_text("Send")


def make_app(engine, **options):
    return create_app(
        Gateway(engine, ServerConfig(served_model_name="tiny", **options)), keys=Keys([]), presets=Presets(PRESETS)
    )


def test_a_server_that_restarts_while_it_answers(visitor, triple, slowly):
    visitor.expected = ["ERR_"]
    slowly(triple, 0.02)
    with on_thread(make_app(triple, shutdown_timeout=0.1)) as (url, _):
        page = visitor.open(url + "/#v=1&n=400&t=1&seed=3&compare=0")
        ask(page)
        expect(page.locator(".prose")).not_to_be_empty()
    expect(page.locator(".note.bad")).to_be_visible()
    page.locator(".note.bad").get_by_role("button", name="Try again").click()
    expect(page.locator(".note.bad")).to_contain_text("cannot be reached")
    with on_thread(make_app(triple, max_model_len=100), port=int(url.rpartition(":")[2])):
        page.locator("#open-settings").click()
        page.fill("#set-maxTokens", "10")
        page.keyboard.press("Escape")
        page.locator(".note.bad").get_by_role("button", name="Try again").click()
        finished(page)
        expect(page.locator(".note.bad")).to_have_count(0)


def test_the_key_is_asked_for_and_stays_in_the_tab(visitor, triple):
    visitor.expected = ["401"]
    with serving(triple, keys=["right"]) as live:
        page = visitor.open(live.url + "/" + SHORT, ready=False)
        expect(page.locator("#set-key")).to_be_focused()
        expect(page.locator("#key-problem")).to_contain_text("needs an API key")
        page.fill("#set-key", "wrong")
        page.press("#set-key", "Enter")
        expect(page.locator("#key-problem")).to_contain_text("does not accept this API key")
        page.fill("#set-key", "right")
        page.press("#set-key", "Enter")
        page.wait_for_selector("body.ready")
        ask(page)
        finished(page, 2)
        page.locator("#open-share").click()
        shown = page.locator("#share").inner_text() + page.input_value("#share-link")
        assert "right" not in page.url + shown.replace("right of", "")
        assert page.evaluate("JSON.stringify(localStorage)") == "{}"
        page.reload()
        page.wait_for_selector("body.ready")
        assert visitor.open(live.url, page.context, ready=False).evaluate("sessionStorage.length") == 0


@pytest.mark.parametrize("path", ["/below/", "/below"])
def test_it_works_below_a_root_path(visitor, triple, path):
    with serving(triple, root_path="/below") as live:
        page = visitor.open(f"{live.url}{path}{SHORT}&compare=0")
        assert page.url.startswith(f"{live.url}/below/#v=1")
        ask(page)
        finished(page)
        page.locator("#open-share").click()
        assert f"{live.url}/below/v1/chat/completions" in page.locator("#share-curl").inner_text()
        assert live.idle()


def test_two_tabs_do_not_mix(visitor, stage):
    stage.tokens = ["a", 0.2, "b"]
    context = visitor.context()
    first = visitor.open(stage.url + "/#v=1&compare=0&s=0.5", context)
    second = visitor.open(stage.url + "/#v=1&compare=0&s=2", context)
    ask(first, "one")
    ask(second, "two")
    for page, text in ((first, "one"), (second, "two")):
        finished(page)
        expect(page.locator(".asked p")).to_have_text(text)
        expect(page.locator(".prose")).to_have_text("ab")
    assert sorted(body["guidance"]["strength"] for body in stage.asked) == [0.5, 2]
