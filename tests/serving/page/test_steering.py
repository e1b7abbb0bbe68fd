"""Sliders, presets, links, tokens and snippets: what steers, and what shows that it does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading

import pytest
from playwright.sync_api import expect

from serving.conftest import serving
from serving.page.test_chatting import ask, finished
from trimtab.decoding.config import Sampling
from trimtab.engine import Guidance

pytestmark = pytest.mark.xdist_group("page")


def slider(page, name):
    return page.get_by_role("slider", name=name, exact=True)


def number(page, name):
    return page.get_by_label(f"{name}, exact", exact=True)


def hash_with(page, part):
    page.wait_for_function("(part) => location.hash.includes(part)", arg=part)


def test_a_slider_moved_while_it_speaks_steers_the_tokens_after_it(visitor, triple, slowly, monkeypatch):
    slowly(triple, 0.03)
    with serving(triple) as live:
        answers = []
        change = live.gateway.change

        async def watched(ticket, guidance):
            answers[:] = [*ticket.answers]
            return await change(ticket, guidance)

        monkeypatch.setattr(live.gateway, "change", watched)
        page = visitor.open(live.url + "/#v=1&t=0&n=60&compare=0&s=0")
        ask(page)
        expect(page.locator(".guided .prose")).not_to_be_empty()
        number(page, "Strength").fill("2.5")
        expect(page.locator(".mark")).to_contain_text("strength 2.5")
        finished(page)
        first = int(page.locator(".mark").get_attribute("data-token"))
        prompt, tokens = answers[0].prompts[0], answers[0].tokens
        assert 0 < first < len(tokens)
        weights = {"polite": 1.0} | dict.fromkeys(("helpful", "harmless", "concise"), 1 / 3)
        for begin, end, strength in ((0, first, 0.0), (first, len(tokens), 2.5)):
            sampling = Sampling(temperature=0, max_tokens=end - begin)
            guidance = Guidance(weights=weights, strength=strength)
            (wanted,) = triple.generate([*prompt, *tokens[:begin]], guidance=guidance, sampling=sampling)
            assert tokens[begin:end] == wanted.token_ids


def test_moves_are_gathered_and_the_last_one_wins(visitor, stage):
    moved = threading.Event()
    stage.tokens = ["x ", "y ", moved, "z."]
    page = visitor.open(stage.url + "/#v=1&compare=0")
    ask(page)
    expect(page.locator(".prose")).not_to_be_empty()
    slider(page, "Strength").focus()
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    expect(page.locator(".mark b")).to_have_text("strength 2")
    moved.set()
    finished(page)
    strengths = [change["strength"] for change in stage.changes]
    assert strengths == sorted(strengths) and strengths[-1] == 2 and len(strengths) < 20
    assert set(stage.changes[0]) == {"weights", "strength"}


def test_a_change_before_the_first_token_is_not_lost(visitor, stage):
    asked, changed = threading.Event(), threading.Event()
    stage.tokens = [asked, "late", changed, "r"]
    page = visitor.open(stage.url + "/#v=1&compare=0")
    ask(page)
    number(page, "polite").fill("-1.5")
    asked.set()
    expect(page.locator(".mark b")).to_have_text("polite −1.5")
    changed.set()
    finished(page)
    assert stage.changes[-1]["weights"]["polite"] == -1.5


def test_both_sides_are_coloured_by_the_same_weights(visitor, stage):
    """The ratios of both sides are the same here, so the weighted colours are, too, also after a change on the way."""
    moved = threading.Event()
    stage.tokens, stage.ratios = ["x ", "y ", moved, "z ", "z."], [0.6]
    page = visitor.open(stage.url + "/#v=1&compare=1&w.polite=1&s=1&view=tokens")
    ask(page)
    expect(page.locator(".guided .token")).to_have_count(2)
    expect(page.locator(".base .token")).to_have_count(2)
    number(page, "Strength").fill("4")
    expect(page.locator(".mark b")).to_have_text("strength 4")
    moved.set()
    finished(page, 2)
    shades = [
        page.locator(f".{side} .token").evaluate_all("all => all.map((one) => one.classList[1])")
        for side in ("guided", "base")
    ]
    assert shades[0] == shades[1]
    assert shades[0][0] == shades[0][1] != shades[0][2] == shades[0][3]


def test_a_mixture_by_mouse_touch_and_keyboard(visitor, stage):
    page = visitor.open(stage.url, has_touch=True)
    pad = page.get_by_role("slider", name="Mixture of")
    shares = lambda: [float(number(page, f"{n}, %").input_value()) for n in ("helpful", "harmless", "concise")]  # noqa: E731
    box = page.locator(".pad").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 2)
    assert shares() == pytest.approx([100, 0, 0], abs=0.2)
    page.touchscreen.tap(box["x"] + 2, box["y"] + box["height"] - 2)
    assert shares() == pytest.approx([0, 100, 0], abs=0.2)
    pad.focus()
    page.keyboard.press("Home")
    assert shares() == pytest.approx([33.3, 33.3, 33.3], abs=0.2)
    page.keyboard.press("ArrowUp")
    assert shares() == pytest.approx([38.3, 30.8, 30.8], abs=0.2)
    assert pad.get_attribute("aria-valuetext") == "helpful 38 %, harmless 31 %, concise 31 %"
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 2, box["y"] + box["height"] * 2, steps=3)
    page.mouse.up()
    assert shares() == pytest.approx([0, 0, 100], abs=0.2)
    number(page, "helpful, %").fill("50")
    assert shares() == pytest.approx([50, 0, 50], abs=0.2)
    ask(page)
    finished(page, 2)
    assert stage.asked[0]["guidance"]["weights"] == {"polite": 1.0, "helpful": 0.45, "harmless": 0.0, "concise": 0.45}


def test_presets_set_everything(visitor, stage):
    page = visitor.open(stage.url)
    chip = page.get_by_role("button", name="kind", exact=True)
    chip.click()
    assert chip.get_attribute("aria-pressed") == "true"
    assert number(page, "Strength").input_value() == "1.5" and number(page, "polite").input_value() == "2"
    assert number(page, "Weight of the mixture").input_value() == "0"
    page.get_by_role("button", name="Base only").click()
    assert number(page, "Strength").input_value() == "0" and chip.get_attribute("aria-pressed") == "false"
    page.get_by_role("button", name="Recommended").click()
    assert number(page, "Weight of the mixture").input_value() == "0.9"


def test_a_guide_says_what_it_rewards_where_its_name_does_not(visitor, stage):
    stage.info["guides"][0]["name"] = "trained"
    page = visitor.open(stage.url)
    expect(page.get_by_role("group", name="trained")).to_contain_text("Rewards polite. Friendly and respectful.")


def test_the_servers_default_is_where_it_begins(visitor, stage):
    stage.info["default"] = {"weights": {"polite": 0.4, "harmless": 0.6}, "strength": 0.5, "description": None}
    page = visitor.open(stage.url)
    assert number(page, "Strength").input_value() == "0.5" and number(page, "polite").input_value() == "0.4"
    assert number(page, "harmless, %").input_value() == "100"
    assert page.get_by_role("button", name="Default", exact=True).get_attribute("aria-pressed") == "true"


def test_a_link_restores_the_settings_and_tells_nobody(visitor, stage):
    page = visitor.open(stage.url)
    number(page, "Strength").fill("-0.75")
    number(page, "polite").fill("1.25")
    number(page, "harmless, %").fill("60")
    page.locator("#open-settings").click()
    for name, value in {"temperature": "0.3", "seed": "42", "maxTokens": "", "system": "Be kind. é & #"}.items():
        page.fill(f"#set-{name}", value)
    page.keyboard.press("Escape")
    page.fill("#prompt", "my secret")
    hash_with(page, "seed=42")
    assert "secret" not in page.url
    page.locator("#open-share").click()
    assert "secret" not in page.input_value("#share-link")
    page.locator("#link-prompt").check()
    link = page.input_value("#share-link")
    assert link.startswith(stage.url + "/#v=1&") and "my+secret" in link
    again = visitor.open(link)
    assert number(again, "Strength").input_value() == "-0.75"
    assert number(again, "polite").input_value() == "1.25"
    assert number(again, "harmless, %").input_value() == "60"
    assert again.input_value("#prompt") == "my secret"
    ask(again, "go")
    finished(again, 2)
    body = next(body for body in stage.asked if body["model"] == "tiny")
    assert (body["temperature"], body["seed"], "max_tokens" in body) == (0.3, 42, False)
    assert body["messages"][0] == {"role": "system", "content": "Be kind. é & #"}
    again.reload()
    again.wait_for_selector("body.ready")
    assert number(again, "Strength").input_value() == "-0.75"


@pytest.mark.parametrize(
    ("fragment", "words"),
    [
        ("#v=99&s=2", "newer one"),
        ("#v=1&s=1e999&t=7", "“s”"),
        ("#v=1&w.kindness=2", "kindness"),
        ("#v=1&w.polite=NaN", "polite"),
    ],
)
def test_a_link_that_does_not_hold_says_so(visitor, stage, fragment, words):
    page = visitor.open(stage.url + "/" + fragment)
    expect(page.locator("#notice")).to_contain_text(words)
    assert number(page, "Strength").input_value() == "1"


def test_numbers_that_are_none_are_marked_and_not_used(visitor, stage):
    page = visitor.open(stage.url)
    number(page, "Strength").fill("")
    assert number(page, "Strength").get_attribute("aria-invalid") == "true"
    number(page, "Strength").fill("1000")
    assert number(page, "Strength").get_attribute("aria-invalid") == "true"
    page.locator("#prompt").focus()
    assert number(page, "Strength").input_value() == "1"


def test_tokens_are_coloured_and_tell_about_themselves(visitor, stage):
    stage.tokens, stage.ratios = [" very", " good", " or", " bad"], [4.0, 0.2, 0.0, -2.0]
    page = visitor.open(stage.url + "/#v=1&compare=0&w.polite=1&s=1&view=tokens&by=polite")
    ask(page)
    finished(page)
    tokens = page.locator(".token")
    shades = [tokens.nth(i).get_attribute("class").split()[1] for i in range(4)]
    assert shades == ["up4", "up1", "z", "down3"]
    page.select_option("#measure", "")
    page.locator(".token").first.hover()
    told = page.locator("#popover")
    expect(told).to_be_visible()
    for words in (
        "␣very",
        "all, weighted",
        "+4.00",
        "helpful",
        "55× likelier",
        "Before (base)",
        "After (guided)",
        "KL 0.250",
    ):
        assert words in told.inner_text(), words
    assert told.locator("ol").count() == 2
    assert "61 %" in told.locator("ol").first.inner_text() and "37 %" in told.locator("ol").last.inner_text()
    page.mouse.move(5, 5)
    expect(told).to_be_hidden()
    tokens.nth(1).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(tokens.nth(3)).to_be_focused()
    assert tokens.nth(3).get_attribute("aria-describedby") == "popover" and "−2.00" in told.inner_text()
    page.keyboard.press("Home")
    expect(tokens.nth(0)).to_be_focused()
    page.keyboard.press("Escape")
    expect(told).to_be_hidden()
    page.locator(".switch [data-view=text]").click()
    expect(page.locator(".prose")).to_have_text("very good or bad")


def test_a_tap_opens_the_popover_on_a_phone(visitor, stage):
    page = visitor.open(
        stage.url + "/#v=1&compare=0&view=tokens", viewport={"width": 360, "height": 640}, has_touch=True
    )
    ask(page)
    finished(page)
    page.locator(".token").first.tap()
    expect(page.locator("#popover")).to_be_visible()
    box = page.locator("#popover").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 360 and box["y"] >= 0 and box["y"] + box["height"] <= 640
    page.locator(".asked p").tap()
    expect(page.locator("#popover")).to_be_hidden()


def test_the_plot_shows_means_of_both_sides(visitor, stage):
    stage.ratios = [1.0, 2.0, 0.0]
    page = visitor.open(stage.url)
    assert page.locator(".plot").is_hidden()
    ask(page)
    finished(page, 2)
    rows = page.locator("#plot-rows li")
    assert rows.count() == 4
    assert rows.first.inner_text().split() == ["polite", "guided", "+1.00", "base", "/", "+1.00"]


def test_real_scores_reach_the_page(visitor, triple):
    with serving(triple) as live:
        page = visitor.open(live.url + "/#v=1&n=12&seed=1&view=tokens")
        ask(page)
        finished(page, 2)
        page.locator(".guided .token").first.click()
        told = page.locator("#popover")
        for words in ("polite", "helpful", "harmless", "concise", "Before (base)", "KL"):
            expect(told).to_contain_text(words)
        assert told.locator("ol").first.locator("li").count() == 5


def test_without_scores_there_is_text_and_marks(visitor, stage):
    moved = threading.Event()
    stage.tokens = ["one ", "two ", moved, "three"]
    page = visitor.open(stage.url + "/#v=1&compare=0&scores=0")
    ask(page)
    expect(page.locator(".prose")).to_contain_text("two")
    number(page, "Strength").fill("2")
    expect(page.locator(".prose .mark b")).to_have_text("strength 2")
    moved.set()
    finished(page)
    assert "rewards" not in stage.asked[0]["guidance"] and stage.asked[0]["logprobs"] is True
    expect(page.locator(".prose")).to_have_text("one two (steering: strength 2) three")
    assert page.locator(".switch").is_hidden()


TRICKY = "It's \"quoted\" $HOME `id` \\ %s\nnew line é 🙂 '; echo no #"


def test_snippets_run_as_they_are(visitor, triple, tmp_path):
    with serving(triple, keys=["a key"]) as live:
        page = visitor.open(live.url + "/#v=1&n=8&seed=4&s=0.5", ready=False)
        visitor.expected = ["401"]
        page.fill("#set-key", "a key")
        page.press("#set-key", "Enter")
        page.wait_for_selector("body.ready")
        page.fill("#prompt", TRICKY)
        page.locator("#open-share").click()
        python, curl = page.locator("#share-python").inner_text(), page.locator("#share-curl").inner_text()
        assert "a key" not in python + curl
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": TRICKY}],
            "temperature": 0.7,
            "seed": 4,
            "max_tokens": 8,
            "guidance": {
                "weights": {"polite": 1} | dict.fromkeys(("helpful", "harmless", "concise"), 0.3333),
                "strength": 0.5,
            },
        }
        with live.client() as client:
            wanted = client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
        environment = {**os.environ, "TRIMTAB_API_KEY": "a key", "PYTHONIOENCODING": "utf-8"}
        (tmp_path / "ask.py").write_text(python, encoding="utf-8")
        ran = subprocess.run([sys.executable, tmp_path / "ask.py"], env=environment, capture_output=True, timeout=60)
        assert (ran.returncode, ran.stderr) == (0, b"")
        assert ran.stdout.decode().replace("\r\n", "\n") == wanted + "\n"
        assert shutil.which("curl") or "TRIMTAB_CI" not in os.environ, "curl is missing"
        if shutil.which("curl"):
            ran = subprocess.run(["sh", "-c", curl], env=environment, capture_output=True, timeout=60)
            import json

            assert json.loads(ran.stdout)["choices"][0]["message"]["content"] == wanted
