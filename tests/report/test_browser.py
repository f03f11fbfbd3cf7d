"""The page of a run in a real browser: selecting, keys, sizes, dark mode; no requests and no errors."""

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


def searched() -> list[Trial]:
    """A history with learning curves, predictions and times, so that every panel has something to draw."""
    found = []
    for one in history():
        why = {"reason": "acquisition", "mean": -0.2, "sd": 0.1}
        recipe = replace(one.proposal.recipe, lr=0.01 * 2**one.id, optimizer="adamw" if one.id % 2 else "sgd")
        outcome = one.outcome
        if outcome is not None and outcome.score is not None:
            curve = tuple(
                Epoch(5.0 * (i + 1), 0.5, outcome.score - 0.1 * (3 - i), 0.8 + 0.01 * i) for i in range(outcome.epochs)
            )
            outcome = replace(outcome, curve=curve, seconds=20.0, latency=0.0003 + 0.0001 * one.id)
        found.append(
            replace(
                one,
                proposal=replace(one.proposal, recipe=recipe, why=why if one.parent is not None else {}),
                outcome=outcome,
                started=30.0 * one.id,
            )
        )
    return [*found, trial(8, found[0], outcome=Outcome("failed", error=f"Traceback\n{EVIL}"))]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield found
    found.quit()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """The browser with a full page, 1400 pixels wide; at the end, without errors or requests."""
    size(browser, 1400)
    media(browser, "light")
    file = write_report(
        Run(Path(f"runs/{EVIL}"), {"best": 5, "estimator": EVIL}, tuple(searched())), tmp_path / "a.html"
    )
    browser.get(file.as_uri())
    yield browser
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert browser.title != "evil"


def size(browser: Any, width: int) -> None:
    settings = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", settings)


def media(browser: Any, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def key(browser: Any, name: str) -> None:
    """Press a key on what has the focus."""
    browser.switch_to.active_element.send_keys(name)


def chosen(browser: Any) -> dict[str, str]:
    """By panel, the network that is selected in it."""
    script = """return Object.fromEntries([...document.querySelectorAll('[role="option"][aria-selected="true"]')]
        .map(element => [element.closest('figure').id, element.dataset.id]))"""
    found: dict[str, str] = browser.execute_script(script)
    return found


def test_a_choice_is_seen_in_every_panel(opened: Any) -> None:
    assert chosen(opened) == {}
    opened.find_element("css selector", "#parameters [data-id='2']").click()
    assert chosen(opened) == dict.fromkeys(PANELS, "2")
    marked = opened.execute_script(
        "return [...document.querySelectorAll('.over')].filter(over => over.childNodes.length).length"
    )
    assert marked == len(PANELS) - 2, "the tree and the lineage are rows"
    assert "Network 2" in opened.find_element("id", "details").text
    assert "wider conv_1" in opened.find_element("id", "details").text
    assert opened.current_url.endswith("#2")
    opened.refresh()
    assert chosen(opened) == dict.fromkeys(PANELS, "2"), "a page that reloads itself keeps the choice"
    opened.get("about:blank")  # so that the next test's page is loaded anew, not only its part after #


def test_it_works_by_keyboard(opened: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    opened.execute_script("document.querySelector('#tree [role=listbox]').focus()")
    key(opened, Keys.HOME)
    first = chosen(opened)["tree"]
    key(opened, Keys.ARROW_DOWN)
    assert chosen(opened)["tree"] != first
    key(opened, Keys.END)
    key(opened, Keys.ENTER)
    assert opened.switch_to.active_element.get_attribute("id") == "details"
    key(opened, Keys.ESCAPE)
    assert chosen(opened) == {}
    stops = opened.execute_script(
        "return [...document.querySelectorAll('[tabindex=\"0\"]')].map(e => e.closest('figure').id)"
    )
    assert set(PANELS) <= set(stops)
    assert opened.execute_script("return [...document.querySelectorAll('[role=listbox]')].every(e => e.ariaLabel)")


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_wide_and_narrow_in_light_and_dark(opened: Any, width: int, scheme: str) -> None:
    size(opened, width)
    media(opened, scheme)
    opened.refresh()
    assert opened.execute_script("return document.documentElement.scrollWidth") == width
    for name in PANELS:
        box = opened.find_element("id", name).rect
        assert 0 <= box["x"] <= box["x"] + box["width"] <= width
    ink, page = opened.execute_script("const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]")
    light = [sum(map(int, colour[4:-1].split(", "))) for colour in (ink, page)]
    assert (light[0] < light[1]) == (scheme == "light")


def test_the_measure_can_be_changed(opened: Any) -> None:
    assert "96.00 %" in opened.find_element("css selector", "#tree [data-id='5']").text
    opened.find_element("css selector", "input[value=score]").click()
    assert "0.1000" in opened.find_element("css selector", "#tree [data-id='5']").text
    opened.execute_script(
        "const s = document.querySelector('.slider input'); s.value = 1; s.dispatchEvent(new Event('input'))"
    )
    assert not opened.find_element("id", "map-5").is_displayed()


def test_a_metric_that_is_the_score_is_the_only_measure(browser: Any, tmp_path: Path) -> None:
    own = [
        replace(t, outcome=replace(t.outcome, score=t.outcome.metric, measure="f1", objective="f1")) if t.outcome else t
        for t in searched()
    ]
    predicted = {"mean": 0.91, "sd": 0.02}
    for i, t in enumerate(own):
        if "mean" in t.proposal.why:
            own[i] = replace(t, proposal=replace(t.proposal, why={**t.proposal.why, **predicted}))
    file = write_report(Run(Path("run"), {"best": 5}, tuple(own)), tmp_path / "own.html")
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


def test_strings_of_the_run_are_text(opened: Any) -> None:
    assert EVIL in opened.find_element("css selector", ".about").text
    assert opened.execute_script("return document.images.length") == 0
    opened.find_element("css selector", "#failures [data-id='8']").click()
    assert EVIL in opened.find_element("css selector", "#details pre").text


def test_a_thousand_networks_open_at_once(browser: Any, tmp_path: Path) -> None:
    """Within 5 s, on a machine that is also busy with other things."""
    size(browser, 1400)
    basis = searched()[2]
    many = [replace(searched()[0], id=0)]
    for i in range(1, 1000):
        assert basis.outcome is not None
        outcome = replace(basis.outcome, score=-0.5 + 0.0003 * i, metric=0.9 + 0.00005 * i)
        many.append(replace(basis, id=i, proposal=replace(basis.proposal, start=(i - 1) // 3), outcome=outcome))
    file = write_report(Run(Path("run"), {"best": 999}, tuple(many)), tmp_path / "many.html")
    assert file.stat().st_size < 1_000_000
    browser.get(file.as_uri())
    assert browser.execute_script("return document.documentElement.dataset.ready") == "yes"
    assert browser.execute_script("return performance.timing.loadEventEnd - performance.timing.navigationStart") < 5000
    browser.execute_script(
        "document.querySelector('#map [data-id=\"500\"]').dispatchEvent(new Event('click', {bubbles: true}))"
    )
    assert chosen(browser)["tree"] == "500"
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("trials", [(), searched()[:1], [replace(searched()[0], outcome=None)], [searched()[3]]])
def test_small_runs_are_drawn_without_errors(browser: Any, tmp_path: Path, trials: Any) -> None:
    file = write_report(Run(Path("run"), {}, tuple(trials)), tmp_path / "few.html")
    browser.get(file.as_uri())
    assert browser.execute_script("return document.documentElement.dataset.ready") == "yes"
    assert browser.get_log("browser") == []


def test_it_reloads_itself(browser: Any, tmp_path: Path) -> None:
    file = tmp_path / "live.html"
    write_report(Run(Path("before"), {}, tuple(searched())), file, reload=0.5)
    browser.get(file.as_uri())
    write_report(Run(Path("after"), {}, tuple(searched())), file)
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 20).until(lambda driver: driver.find_element("css selector", "h1").text == "after")


def test_a_notebook_shows_it(browser: Any, tmp_path: Path) -> None:
    file = tmp_path / "cell.html"
    file.write_text(f"<!DOCTYPE html><meta charset=utf-8>{show(Run(Path('run'), {}, tuple(searched())))._repr_html_()}")
    browser.get(file.as_uri())
    browser.switch_to.frame(0)
    assert browser.execute_script("return document.documentElement.dataset.ready") == "yes"
    browser.find_element("css selector", "#parameters [data-id='5']").click()
    assert chosen(browser)["tree"] == "5"
    browser.switch_to.default_content()
    assert browser.get_log("browser") == []
