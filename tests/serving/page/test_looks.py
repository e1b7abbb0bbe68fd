"""What holds however the page looks: nothing foreign runs, everybody can use it, and it fits."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from serving.page.stage import INFO
from serving.page.test_chatting import ask, finished
from serving.page.test_steering import number

pytestmark = pytest.mark.xdist_group("page")

EVIL = [
    "<img src=x onerror=\"window.bad='img'\">",
    "<script>window.bad='script'</script>",
    "<svg onload=\"window.bad='svg'\"></svg>",
    "<iframe srcdoc=\"<script>parent.bad='frame'</script>\"></iframe>",
    "<style>body{display:none}</style>",
    '<b onclick="window.bad=\'on\'" style="position:fixed">b</b>',
    "[link](javascript:window.bad='link')",
    "[link](data:text/html,<script>window.bad='data'</script>)",
    "![image](https://example.org/pixel.png)",
    "<a href=\"jav&#x09;ascript:window.bad='tab'\">tab</a>",
    "</div></main><form action=//example.org><button>",
    "```\"><img src=x onerror=window.bad='code'>\ncode\n```",
    "<math><mtext></table><mglyph><style><img src=x onerror=\"window.bad='math'\">",
    "|a|<img src=x onerror=\"window.bad='cell'\">|\n|-|-|\n|<script>window.bad=1</script>|b|",
]


@pytest.mark.parametrize("view", ["text", "tokens"])
def test_nothing_that_a_model_or_a_user_writes_is_run(visitor, stage, view):
    stage.tokens = [piece for text in EVIL for piece in (text[:9], text[9:] + "\n\n")]
    page = visitor.open(f"{stage.url}/#v=1&view={view}")
    ask(page, "\n".join(EVIL))
    finished(page, 2)
    log = page.locator("#log")
    for tag in ("img", "script", "iframe", "style", "form", "svg", "math"):
        assert log.locator(f".answer {tag}, .asked {tag}").count() == 0, tag
    for link in log.locator("a").all():
        assert (link.get_attribute("href") or "https:").startswith(("https:", "http:", "mailto:"))
        link.evaluate("(e) => e.hasAttribute('href') || e.click()")
    assert "<script>window.bad='script'</script>" in log.locator(".guided").inner_text()
    if view == "tokens":
        page.locator(".token").first.click()
    page.wait_for_timeout(100)
    assert page.evaluate("window.bad") is None


def test_names_and_descriptions_are_text(visitor, stage):
    evil = EVIL[0]
    stage.info["presets"] = {
        evil: {"weights": {}, "strength": 2},
        "__proto__": {"weights": {"polite": 1}, "strength": 1},
    }
    stage.info["model"] = evil
    for guide in stage.info["guides"]:
        guide["name"] += evil
        for objective in guide["objectives"]:
            objective["description"] = evil
    page = visitor.open(f"{stage.url}/#v=1&w.{evil}=1&system={evil}&prompt={evil}")
    assert page.input_value("#prompt") == evil
    page.get_by_role("button", name=evil).first.click()
    page.locator("#open-share").click()
    assert evil.replace('"', '\\"') in page.locator("#share-curl").inner_text().replace("'\\''", "'")
    page.wait_for_timeout(100)
    assert page.evaluate("window.bad") is None
    assert page.locator("img").count() == 0


def test_the_policy_and_the_trusted_types_hold(visitor, stage):
    """The guards would stop what the code does not do: each of these is refused."""
    visitor.expected = [
        "policy violated",
        "Content Security Policy",
        "TrustedHTML",
        "violates",
        "This document requires",
        "example.org",
    ]
    page = visitor.open(stage.url)
    refused = page.evaluate(
        """async () => {
            const seen = [];
            const attempt = (name, act) => { try { act(); } catch { seen.push(name); } };
            attempt('html', () => { document.body.insertAdjacentHTML('beforeend', '<p>x</p>'); });
            attempt('policy', () => trustedTypes.createPolicy('other', {}));
            const script = document.createElement('script');
            attempt('script', () => { script.text = 'window.bad = 1'; });
            await fetch('https://example.org/').catch(() => seen.push('fetch'));
            const image = new Image();
            image.src = 'https://example.org/a.png';
            await new Promise((done) => image.addEventListener('error', done));
            seen.push('image');
            return seen;
        }"""
    )
    assert refused == ["html", "policy", "script", "fetch", "image"]


def violations(page) -> list[str]:
    found = Axe().run(page).response["violations"]
    return [f"{v['id']}: {[node['target'] for node in v['nodes']][:4]}" for v in found]


@pytest.mark.parametrize(
    "how",
    [
        {"color_scheme": "light"},
        {"color_scheme": "dark"},
        {"color_scheme": "light", "viewport": {"width": 360, "height": 740}, "has_touch": True},
    ],
    ids=["light", "dark", "phone"],
)
def test_axe_finds_nothing(visitor, stage, how):
    stage.tokens = [
        "# A\n\n",
        "- b **c**\n\n",
        "`d` [e](https://example.org)\n\n",
        "|a|b|\n|-|-|\n|1|2|\n\n",
        "```\nx\n```\n\n",
        "f",
        " g",
        " h",
        " i",
        " j",
    ]
    stage.ratios = [0.0, 0.2, 0.7, 2.0, 4.0, -0.2, -0.7, -2.0, -4.0, 0.0]
    page = visitor.open(stage.url, **how)
    assert violations(page) == []
    ask(page)
    finished(page, 2)
    if "viewport" in how:
        page.locator("#helm-toggle").click()
    assert violations(page) == []
    for button in page.locator(".switch [data-view=tokens]").all():
        button.click()
    if "viewport" in how:
        page.locator("#helm-toggle").click()
    page.locator(".guided .token").nth(4).click()
    expect(page.locator("#popover")).to_be_visible()
    assert violations(page) == []
    page.keyboard.press("Escape")
    for button in ("#open-settings", "#open-share"):
        page.locator(button).click()
        assert violations(page) == []
        page.keyboard.press("Escape")


def test_axe_finds_nothing_where_something_went_wrong(visitor, stage):
    stage.cut = "event"
    page = visitor.open(stage.url + "/#v=1&w.nobody=1")
    ask(page)
    expect(page.locator(".note.bad")).to_have_count(2)
    assert violations(page) == []


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_is_wider_than_the_window(visitor, stage, width):
    stage.tokens = ["x" * 400, "\n\n```\n" + "y" * 400 + "\n```\n\n", "|a|b|\n|-|-|\n|" + "z" * 300 + "|1|\n"]
    stage.info["presets"]["p" * 80] = {"weights": {}, "strength": 1}
    stage.info["guides"][1]["objectives"][0]["name"] = "o" * 60
    page = visitor.open(stage.url, viewport={"width": width, "height": 700})
    fits = lambda: page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # noqa: E731
    assert fits()
    ask(page, "q" * 300)
    finished(page, 2)
    assert fits()
    columns = [page.locator(f".{side}").bounding_box() for side in ("guided", "base")]
    assert (columns[0]["y"] < columns[1]["y"]) == (width < 760), "stacked on a phone, side by side elsewhere"
    if width < 760:
        page.locator("#helm-toggle").click()
        assert fits() and number(page, "Strength").is_visible()
    page.locator(".switch [data-view=tokens]").first.click()
    assert fits()
    page.locator("#open-share").click()
    assert fits()


def test_everything_can_be_done_from_the_keyboard(visitor, stage):
    page = visitor.open(stage.url)
    page.locator(".skip").focus()
    focused = (
        "() => { const e = document.activeElement, by = document.getElementById(e.getAttribute('aria-labelledby'));"
        " return e.id || e.getAttribute('aria-label') || by?.textContent || e.textContent.trim(); }"
    )
    ring = (
        "() => { const s = getComputedStyle(document.activeElement);"
        " return s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2 || s.strokeWidth === '4px'; }"
    )
    seen = []
    for _ in range(60):
        name = page.evaluate(focused)
        assert name and name not in seen, f"{name!r} behind {seen}"
        seen.append(name)
        assert page.evaluate(ring), f"{name} shows no focus"
        if name == "prompt":
            page.keyboard.type("hello")
            break
        page.keyboard.press("Tab")
    for name in (
        "Skip to the prompt",
        "new",
        "open-share",
        "open-settings",
        "theme",
        "compare",
        "kind",
        "Strength, exact",
    ):
        assert name in seen, seen
    assert any(name.startswith("Mixture of") for name in seen)
    page.keyboard.press("Enter")
    finished(page, 2)
    expect(page.locator("#status")).to_contain_text("Answered")
    page.locator(".switch [data-view=tokens]").first.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".guided .token").nth(1)).to_be_focused()
    expect(page.locator("#popover")).to_be_visible()


def luminance(page) -> float:
    """How light the page's background is, 0 to 1, from its first pixel."""
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(map(float, colour[colour.index("(") + 1 : -1].split(","))) / 765


def test_the_theme_follows_the_system_until_one_is_chosen(visitor, stage):
    page = visitor.open(stage.url, color_scheme="dark")
    assert luminance(page) < 0.2
    page.emulate_media(color_scheme="light")
    assert luminance(page) > 0.8
    page.get_by_role("button", name="Dark theme").click()
    assert luminance(page) < 0.2
    page.reload()
    page.wait_for_selector("body.ready")
    assert luminance(page) < 0.2
    assert page.get_by_role("button", name="Dark theme").get_attribute("aria-pressed") == "true"


def test_nothing_moves_where_that_is_not_wanted(visitor, stage):
    page = visitor.open(stage.url, reduced_motion="reduce")
    moving = "[...document.querySelectorAll('*')].filter((e) => parseFloat(getComputedStyle(e).transitionDuration) > 0)"
    assert page.evaluate(f"{moving}.length") == 0


def test_screen_readers_hear_the_ends_and_not_every_word(visitor, stage):
    stage.tokens = ["word "] * 50
    page = visitor.open(stage.url)
    page.evaluate(
        "() => { const status = document.getElementById('status'); window.said = [];"
        " const watch = new MutationObserver(() => window.said.push(status.textContent));"
        " watch.observe(status, {childList: true, characterData: true, subtree: true}); }"
    )
    ask(page)
    finished(page, 2)
    expect(page.locator("#status")).to_contain_text("Answered")
    said = page.evaluate("window.said.filter(Boolean)")
    assert said[0] == "Answering." and len(said) <= 3
    live = page.evaluate("[...document.querySelectorAll('[aria-live], [role=log]')].length")
    assert live == 0


def test_without_guides_it_is_a_plain_chat(visitor, stage):
    stage.info = {**INFO, "guides": [], "presets": {}}
    page = visitor.open(stage.url)
    ask(page)
    finished(page)
    assert "guidance" not in stage.asked[0]
    assert "No guide is loaded" in page.locator("#helm").inner_text()
