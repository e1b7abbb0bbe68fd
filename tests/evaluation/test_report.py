"""The report in a real browser: no error, no request, nothing a prompt can inject, and it can be used."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from engine.blends import save_conditioned
from evaluation.sweep_runs import exit_code, write_prompts
from evaluation_stub import Stub, shown
from trimtab.evaluation.report.charts import Point, Series, chart
from trimtab.evaluation.report.markup import Cell, embedded, number, table
from trimtab.evaluation.sweeps.measuring import pieces
from trimtab.models import load_base

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def report(llama_folder, tmp_path_factory):
    """A report with a grid of two objectives, a method, hostile prompts and a hostile name."""
    folder = tmp_path_factory.mktemp("report")
    base = load_base(str(llama_folder), dtype="float32")
    save_conditioned(base, folder / "uni", "pblora", k=2)

    with Stub(_judge) as judge:
        code = exit_code(
            "--base", llama_folder, "--guide", folder / "uni", "--dtype", "float32", "--kernels",
            "torch", "--judge-url", judge.url, "--judge-model", "<i>judge", "--yes", "--judge-samples", 2,
            "--prompts", write_prompts(folder), "--max-tokens", 8, "--scorers", "length,distinct-1",
            "--alphas", "grid:3", "--front", "helpful=length", "--front", "harmless=distinct-1",
            "--output-dir", folder / "run", "--n", 2, "--config", _methods(folder),
        )  # fmt: skip
    assert code == 0
    return folder / "run" / "report.html"


def _judge(body):
    a, b = shown(body)
    return f"<script>alert(5)</script> <img src=x onerror=alert(6)>\nVerdict: {'A' if len(a) >= len(b) else 'B'}"


def _methods(folder: Path) -> Path:
    path = folder / "methods.yaml"
    path.write_text("methods:\n- {name: '<b onclick=alert(3)>&amp;', system: '<script>alert(4)</script>'}\n")
    return path


@pytest.fixture
def browser():
    if CHROMIUM is None:
        if os.environ.get("TRIMTAB_CI"):
            pytest.fail("CI has no Chromium, so nobody looked at the report.")
        pytest.skip("no Chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def _opened(browser, report, **options):
    page = browser.new_page(**options)
    trouble: list[str] = []
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("dialog", lambda dialog: (trouble.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: trouble.append(request.url) if not request.url.startswith("file:") else None)
    page.goto(report.as_uri())
    return page, trouble


def test_it_is_one_file_that_asks_for_nothing(report):
    text = report.read_text()
    assert len(text.encode()) < 5_000_000
    assert not re.search(r"""<[^>]*\s(?:src|href)=(?!["']?#)""", text.split("<script")[0])
    assert "<script>alert" not in text
    assert "<img" not in text
    assert "<b onclick" not in text
    assert text.count("<script") == 2


def test_it_can_be_used(browser, report):
    page, trouble = _opened(browser, report)
    rows = page.locator("#reward-table tbody tr")
    before = rows.all_inner_texts()
    head = page.locator("#reward-table thead th").nth(1)
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    values = [float(v) for v in page.locator("#reward-table tbody tr td:nth-child(2)").evaluate_all(
        "cells => cells.map(cell => cell.dataset.sort)")]  # fmt: skip
    assert values == sorted(values, reverse=True)
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    head.get_by_role("button").click()
    assert rows.all_inner_texts() == before

    first = page.locator("#prompt-text").inner_text()
    page.get_by_role("button", name="Next").click()
    assert page.locator("#prompt-text").inner_text() != first
    page.locator("#prompt").select_option(index=2)
    assert "<script>alert(1)</script>" in page.locator("#prompt-text").inner_text()
    left = page.locator("#left-answer .answer").inner_text()
    page.locator("#left").select_option(index=1)
    samples = [json.loads(line) for line in (report.parent / "samples.jsonl").read_text().splitlines()]
    setting = json.loads((report.parent / "metrics.json").read_text())["settings"][1]["name"]
    (record,) = [s for s in samples if (s["setting"], s["id"], s["sample"]) == (setting, "c", 0)]
    shown = page.locator("#left-answer .answer").evaluate("e => e.textContent")
    assert record["response"].strip() in shown
    assert shown != left

    page.locator("#colour").select_option(label="helpful")
    token = page.locator("#right-answer .token").nth(1)
    token.hover()
    assert "to the base" in page.locator("#token-note").inner_text()
    page.locator("#right-answer .token").first.focus()
    page.keyboard.press("ArrowRight")
    assert token.evaluate("e => e === document.activeElement")

    head = page.locator("#judge-table thead th").nth(2)
    head.get_by_role("button").click()
    rates = [float(v) for v in page.locator("#judge-table tbody tr td:nth-child(3)").evaluate_all(
        "cells => cells.map(cell => cell.dataset.sort)")]  # fmt: skip
    assert rates == sorted(rates, reverse=True)
    verdicts = [json.loads(line) for line in (report.parent / "verdicts.jsonl").read_text().splitlines()]
    found = next(v for v in verdicts if v["outcome"] == "win" and v["role"] == "base" and v["sample"] == 0)
    names = [s["name"] for s in json.loads((report.parent / "metrics.json").read_text())["settings"]]
    page.locator("#prompt").select_option(index=found["number"])
    for left, right, winner in ((found["setting"], "base", "left"), ("base", found["setting"], "right")):
        page.locator("#left").select_option(index=names.index(left))
        page.locator("#right").select_option(index=names.index(right))
        assert f"The judge <i>judge prefers the {winner} answer in both orders." in page.locator("#judged").inner_text()
    page.locator("#judged summary").click()
    assert "<script>alert(5)</script>" in page.locator("#judged").inner_text()
    page.locator("#left").select_option(index=names.index(found["setting"]))
    assert "was not asked about these two answers" in page.locator("#judged").inner_text()

    page.locator("#chart-scorer").select_option(index=1)
    assert page.locator(".charts:visible").get_attribute("data-scorer") == "1"
    assert page.locator("#front-table tbody tr").count() == 1
    assert trouble == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_by_everyone(browser, report, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    # The page's own policy keeps scripts out, axe's among them; here it is looked at without.
    page, trouble = _opened(browser, report, color_scheme=scheme, bypass_csp=True)
    page.locator("details").evaluate_all("all => all.forEach(each => { each.open = true; })")
    results = axe.Axe().run(page)
    assert results.violations_count == 0, results.generate_report()
    assert trouble == []


def test_it_fits_a_phone(browser, report):
    page, _ = _opened(browser, report, viewport={"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_texts_stay_texts():
    assert embedded({"a": "</script><b>\u2028"}) == '{"a":"\\u003c/script\\u003e\\u003cb\\u003e\\u2028"}'
    assert json.loads(embedded({"a": "</script>&"})) == {"a": "</script>&"}
    html = table("<c>", ['"<h>'], [[Cell("<t>", "<d>", mark='"x')]])
    assert not re.search(r"<[chtd]>", html.replace("<th", "").replace("<td", ""))
    drawn = chart("<t>", [Series("<s>", [Point(0, 1, "<n>", "<k>", "base")], False, 0)], "<x>", "<y>")
    assert not re.search(r"<[tsnkxy]>", drawn)


def test_numbers_are_short():
    assert [number(v) for v in (0.0, 0.12345, 1.2345, 12.345, 123.45, None, float("nan"))] == [
        "0.000", "0.123", "1.23", "12.3", "123", "–", "–",
    ]  # fmt: skip
    assert [number(v, signed=True) for v in (0.5, -0.5, -0.0001)] == ["+0.500", "−0.500", "0.000"]


def test_pieces_of_characters_go_to_the_token_that_ends_them():
    assert pieces(["a", "a\ufffd", "aé", "aéb"]) == ["a", "", "é", "b"]
    assert pieces(["\ufffd"]) == ["\ufffd"]
