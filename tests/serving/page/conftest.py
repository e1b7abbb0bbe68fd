"""A browser, and pages in it that tell of everything they must not do."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

import tiny_guides
from engine.blends import save_conditioned
from serving.page.stage import Stage, on_thread
from trimtab.engine import Engine, load
from trimtab.models import load_base

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
expect.set_options(timeout=20_000)  # a busy machine is slow, and a check that holds does not wait
FLAGS = "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium. Of each module its own: Playwright occupies the thread's event loop as long as it runs."""
    if CHROMIUM is None and "TRIMTAB_CI" not in os.environ:
        pytest.skip("there is no Chromium (Debian: apt-get install chromium)")
    assert CHROMIUM is not None, "the tests of the page need Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[f"--{flag}" for flag in [*FLAGS.split(), "disable-sync"]]
        )
        yield started
        started.close()


class Visitor:
    """Opens pages, and holds what they did that a page of ours must never do.

    Attributes:
        complaints: errors of scripts, violations of the policy, and requests to other hosts.
        expected: parts of messages that a test means to bring about.
    """

    def __init__(self, browser: Browser) -> None:
        self.browser = browser
        self.complaints: list[str] = []
        self.expected: list[str] = []
        self.contexts: list[BrowserContext] = []

    def context(self, **options: Any) -> BrowserContext:
        context = self.browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        context.set_default_timeout(20_000)
        context.add_init_script(
            "document.addEventListener('securitypolicyviolation', (e) =>"
            " console.error('policy violated: ' + e.violatedDirective + ' ' + e.blockedURI));"
        )
        self.contexts.append(context)
        return context

    def open(self, url: str, context: BrowserContext | None = None, *, ready: bool = True, **options: Any) -> Page:
        page = (context or self.context(**options)).new_page()
        host = url.split("/")[2]
        page.on(
            "request",
            lambda r: self.complain(f"asked {r.url}", r.url.split("/")[2:3] != [host] and r.url[:5] != "data:"),
        )
        page.on("console", lambda m: self.complain(f"{m.text} {m.location['url']}", m.type in ("error", "warning")))
        page.on("pageerror", lambda e: self.complain(f"script error: {e}", True))
        page.on("dialog", lambda d: self.complain(f"dialog: {d.message}", True))
        page.goto(url)
        if ready:
            page.wait_for_selector("body.ready")
        return page

    def complain(self, text: str, really: bool) -> None:
        # Browsers load the icon whenever they like, also when the test's server has ended.
        if really and not ("ERR_CONNECTION" in text and "rudder.svg" in text):
            self.complaints.append(text)

    def close(self) -> list[str]:
        for context in self.contexts:
            context.close()
        return [text for text in self.complaints if not any(part in text for part in self.expected)]


@pytest.fixture
def visitor(browser: Browser) -> Iterator[Visitor]:
    """Pages whose every misdeed fails the test."""
    made = Visitor(browser)
    yield made
    assert made.close() == []


@pytest.fixture
def stage() -> Iterator[Stage]:
    """A server whose answers the test writes."""
    made = Stage()
    with on_thread(made.app()) as (url, _):
        made.url = url
        yield made


@pytest.fixture(scope="session")
def triple(llama_folder, tmp_path_factory) -> Iterator[Engine]:
    """An engine with a plain guide and one that mixes three objectives."""
    root = tmp_path_factory.mktemp("triple")
    base = load_base(str(llama_folder), dtype="float32")
    tiny_guides.save_lora_guide(root / "polite", base)
    save_conditioned(base, root / "values", "moslora-text", k=3)
    with load(load_base(str(llama_folder), dtype="float32"), [root / "polite", root / "values"]) as loaded:
        yield loaded


@pytest.fixture
def slowly() -> Iterator[Callable[[Engine, float], None]]:
    """Let every step of an engine take longer, so that there is time to do something meanwhile."""
    with contextlib.ExitStack() as stack:

        def slow(engine: Engine, seconds: float) -> None:
            driver = engine.parts[1]
            turn = driver.turn

            def slower() -> bool:
                time.sleep(seconds)
                return turn()

            driver.turn = slower
            stack.callback(lambda: delattr(driver, "turn"))

        yield slow
