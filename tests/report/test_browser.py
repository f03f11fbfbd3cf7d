"""Tests of the page of a run in a real browser: selection, keys, widths, dark mode; no requests and no errors."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from morphnas.report.page import show, write_report
from morphnas.run.store import Run
from morphnas.search.trial import Trial
from morphnas.train.recipe import Epoch, Outcome
from tests.report.history import history, trial
from tests.report.test_page import EVIL

webdriver = pytest.importorskip("selenium.webdriver")
BROWSER, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="no Chromium with its driver"),
]
PANELS = (
    "progress",
    "curves",
    "tree",
    "map",
    "strides",
    "kinds",
    "setting-lr",
    "setting-optimizer",
    "belief",
    "calibration",
    "parameters",
    "flops",
    "latency",
    "time",
    "lineage",
)


def make_full_history() -> list[Trial]:
    """A history with learning curves, predictions and times, so that every panel has something to draw."""
    trials = []
    for one in history():
        why = {"reason": "acquisition", "mean": -0.2, "sd": 0.1}
        recipe = replace(one.proposal.recipe, lr=0.01 * 2**one.id, optimizer="adamw" if one.id % 2 else "sgd")
        outcome = one.outcome
        if outcome is not None and outcome.score is not None:
            curve = tuple(
                Epoch(5.0 * (i + 1), 0.5, outcome.score - 0.1 * (3 - i), 0.8 + 0.01 * i) for i in range(outcome.epochs)
            )
            outcome = replace(outcome, curve=curve, seconds=20.0, latency=0.0003 + 0.0001 * one.id)
        trials.append(
            replace(
                one,
                proposal=replace(one.proposal, recipe=recipe, why=why if one.parent is not None else {}),
                outcome=outcome,
                started=30.0 * one.id,
            )
        )
    return [*trials, trial(8, trials[0], outcome=Outcome("failed", error=f"Traceback\n{EVIL}"))]


FULL_HISTORY = make_full_history()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield chrome
    chrome.quit()


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """The browser with a full page, 1400 pixels wide; checks afterwards that there were no errors and no requests."""
    set_width(browser, 1400)
    set_colour_scheme(browser, "light")
    file = write_report(
        Run(Path(f"runs/{EVIL}"), {"best": 5, "estimator": EVIL}, tuple(FULL_HISTORY)), tmp_path / "a.html"
    )
    browser.get(file.as_uri())
    yield browser
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert browser.title != "evil"


def set_width(browser: Any, width: int) -> None:
    settings = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", settings)


def set_colour_scheme(browser: Any, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def press(browser: Any, key: str) -> None:
    """Press a key in the element that has the focus."""
    browser.switch_to.active_element.send_keys(key)


def selected(browser: Any) -> dict[str, str]:
    """By panel, the network that is selected in it."""
    script = """return Object.fromEntries([...document.querySelectorAll('[role="option"][aria-selected="true"]')]
        .map(element => [element.closest('figure').id, element.dataset.id]))"""
    by_panel: dict[str, str] = browser.execute_script(script)
    return by_panel


def test_selection_is_shown_in_every_panel(open_page: Any) -> None:
    assert selected(open_page) == {}
    open_page.find_element("css selector", "#parameters [data-id='2']").click()
    assert selected(open_page) == dict.fromkeys(PANELS, "2")
    marked = open_page.execute_script(
        "return [...document.querySelectorAll('.over')].filter(over => over.childNodes.length).length"
    )
    assert marked == len(PANELS) - 2, "the tree and the lineage mark rows instead"
    assert "Network 2" in open_page.find_element("id", "details").text
    assert "wider conv_1" in open_page.find_element("id", "details").text
    assert open_page.current_url.endswith("#2")
    open_page.refresh()
    assert selected(open_page) == dict.fromkeys(PANELS, "2"), "a reloaded page keeps the selection"
    open_page.get("about:blank")  # so that the next test loads its page again, instead of jumping to a fragment


def test_page_works_by_keyboard(open_page: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    open_page.execute_script("document.querySelector('#tree [role=listbox]').focus()")
    press(open_page, Keys.HOME)
    first = selected(open_page)["tree"]
    press(open_page, Keys.ARROW_DOWN)
    assert selected(open_page)["tree"] != first
    press(open_page, Keys.END)
    press(open_page, Keys.ENTER)
    assert open_page.switch_to.active_element.get_attribute("id") == "details"
    press(open_page, Keys.ESCAPE)
    assert selected(open_page) == {}
    stops = open_page.execute_script(
        "return [...document.querySelectorAll('[tabindex=\"0\"]')].map(e => e.closest('figure').id)"
    )
    assert set(PANELS) <= set(stops)
    assert open_page.execute_script("return [...document.querySelectorAll('[role=listbox]')].every(e => e.ariaLabel)")


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_width_and_colour_scheme(open_page: Any, width: int, scheme: str) -> None:
    set_width(open_page, width)
    set_colour_scheme(open_page, scheme)
    open_page.refresh()
    assert open_page.execute_script("return document.documentElement.scrollWidth") == width
    for name in PANELS:
        box = open_page.find_element("id", name).rect
        assert 0 <= box["x"] <= box["x"] + box["width"] <= width
    colours = open_page.execute_script("const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]")
    text, background = (sum(map(int, colour[4:-1].split(", "))) for colour in colours)
    assert (text < background) == (scheme == "light")


def test_measure_and_time_can_be_changed(open_page: Any) -> None:
    assert "96.00 %" in open_page.find_element("css selector", "#tree [data-id='5']").text
    open_page.find_element("css selector", "input[value=score]").click()
    assert "0.1000" in open_page.find_element("css selector", "#tree [data-id='5']").text
    open_page.execute_script(
        "const s = document.querySelector('.slider input'); s.value = 1; s.dispatchEvent(new Event('input'))"
    )
    assert not open_page.find_element("id", "map-5").is_displayed()


def test_metric_used_as_score_is_the_only_measure(browser: Any, tmp_path: Path) -> None:
    trials = [
        replace(t, outcome=replace(t.outcome, score=t.outcome.metric, measure="f1", objective="f1")) if t.outcome else t
        for t in FULL_HISTORY
    ]
    predicted = {"mean": 0.91, "sd": 0.02}
    for i, t in enumerate(trials):
        if "mean" in t.proposal.why:
            trials[i] = replace(t, proposal=replace(t.proposal, why={**t.proposal.why, **predicted}))
    file = write_report(Run(Path("run"), {"best": 5}, tuple(trials)), tmp_path / "f1.html")
    browser.get(file.as_uri())
    assert browser.execute_script("return document.documentElement.dataset.ready") == "yes"
    assert not browser.find_element("id", "measure").is_displayed()
    browser.find_element("css selector", "#parameters [data-id='2']").click()
    details = browser.find_element("id", "details").text
    assert "f1" in details
    assert "loss" not in details
    assert "loss" not in browser.find_element("id", "belief").text
    ticks = [text.text for text in browser.find_elements("css selector", "#belief svg text")]
    assert "0.9" in ticks, ticks
    assert not any(tick.startswith("-") for tick in ticks)
    assert browser.get_log("browser") == []
    browser.get("about:blank")


def test_strings_of_the_run_are_not_markup(open_page: Any) -> None:
    assert EVIL in open_page.find_element("css selector", ".about").text
    assert open_page.execute_script("return document.images.length") == 0
    open_page.find_element("css selector", "#failures [data-id='8']").click()
    assert EVIL in open_page.find_element("css selector", "#details pre").text


def test_a_thousand_networks_load_within_5_seconds(browser: Any, tmp_path: Path) -> None:
    """The limit leaves room for a machine that is busy with other things."""
    set_width(browser, 1400)
    template = FULL_HISTORY[2]
    many = [replace(FULL_HISTORY[0], id=0)]
    for i in range(1, 1000):
        assert template.outcome is not None
        outcome = replace(template.outcome, score=-0.5 + 0.0003 * i, metric=0.9 + 0.00005 * i)
        many.append(replace(template, id=i, proposal=replace(template.proposal, start=(i - 1) // 3), outcome=outcome))
    file = write_report(Run(Path("run"), {"best": 999}, tuple(many)), tmp_path / "many.html")
    assert file.stat().st_size < 1_000_000
    browser.get(file.as_uri())
    assert browser.execute_script("return document.documentElement.dataset.ready") == "yes"
    assert browser.execute_script("return performance.timing.loadEventEnd - performance.timing.navigationStart") < 5000
    browser.execute_script(
        "document.querySelector('#map [data-id=\"500\"]').dispatchEvent(new Event('click', {bubbles: true}))"
    )
    assert selected(browser)["tree"] == "500"
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("trials", [[], FULL_HISTORY[:1], [replace(FULL_HISTORY[0], outcome=None)], [FULL_HISTORY[3]]])
def test_small_runs_are_drawn_without_errors(browser: Any, tmp_path: Path, trials: Any) -> None:
    file = write_report(Run(Path("run"), {}, tuple(trials)), tmp_path / "few.html")
    browser.get(file.as_uri())
    assert browser.execute_script("return document.documentElement.dataset.ready") == "yes"
    assert browser.get_log("browser") == []


def test_page_reloads_itself(browser: Any, tmp_path: Path) -> None:
    file = tmp_path / "live.html"
    write_report(Run(Path("before"), {}, tuple(FULL_HISTORY)), file, reload=0.5)
    browser.get(file.as_uri())
    write_report(Run(Path("after"), {}, tuple(FULL_HISTORY)), file)
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 20).until(lambda driver: driver.find_element("css selector", "h1").text == "after")


def test_page_works_in_notebook_frame(browser: Any, tmp_path: Path) -> None:
    file = tmp_path / "cell.html"
    shown = show(Run(Path("run"), {}, tuple(FULL_HISTORY)))
    file.write_text(f"<!DOCTYPE html><meta charset=utf-8>{shown._repr_html_()}")
    browser.get(file.as_uri())
    browser.switch_to.frame(0)
    assert browser.execute_script("return document.documentElement.dataset.ready") == "yes"
    browser.find_element("css selector", "#parameters [data-id='5']").click()
    assert selected(browser)["tree"] == "5"
    browser.switch_to.default_content()
    assert browser.get_log("browser") == []
