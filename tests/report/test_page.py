"""Tests of the page of a run as text: its contents, and that no string becomes markup. `test_browser.py` opens it."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from morphnas.report.page import answers, page, show, write_report
from morphnas.run.files import RunError
from morphnas.run.store import Run
from morphnas.search.trial import Trial
from morphnas.train.recipe import Outcome
from tests.report.history import GOOD, history, trial

EVIL = "</script><img src=x onerror=document.title='evil'>"
TRIALS = tuple(history())
STATES: dict[str, tuple[Trial, ...]] = {
    "empty": (),
    "one running": (replace(TRIALS[0], outcome=None, kept=False),),
    "one finished": TRIALS[:1],
    "only failures": tuple(
        replace(t, outcome=Outcome("failed", error="Traceback\nValueError: no"), kept=False) for t in TRIALS[:3]
    ),
    "every status": TRIALS,
    "only slow": tuple(replace(TRIALS[0], id=i, outcome=replace(GOOD, latency=0.1, slow=True)) for i in range(9)),
}
RECORDS: dict[str, Any] = {
    "strings": {"reason": EVIL, "mean": "high", "sd": None, "nearest": "all", "budget": 3},
    "shapes": {"reason": ["a"], "mean": True, "sd": "inf", "nearest": [[1], 2, ["x"]], "budget": {"seconds": "?"}},
    "sizes": {"mean": 10**400, "sd": -(10**400), "budget": {"seconds": 10**400}},
    "names": {EVIL: EVIL, "candidates": {"deep": [1, 2]}, "acquisition": 7},
}  # fmt: skip
"""Malformed records of searchers, as in `Proposal.why`."""


def run_of(trials: tuple[Trial, ...] = TRIALS, path: str = "run", **about: Any) -> Run:
    return Run(Path(path), about, trials)


def embedded_data(text: str) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert match
    data: dict[str, Any] = json.loads(match[1])
    return data


class Tags(HTMLParser):
    """The tags of a page, with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.mark.parametrize("state", STATES)
def test_every_state_of_a_run_has_a_page(state: str) -> None:
    text = page(run_of(STATES[state]))
    assert len(embedded_data(text)["columns"].get("id", [])) == len(STATES[state])
    assert "To continue" in text
    without_scripts = re.sub(r"<script.*?</script>|<style>.*?</style>", "", text, flags=re.DOTALL)
    assert "$" not in without_scripts, "every placeholder of the template is filled"


@pytest.mark.parametrize("record", RECORDS)
def test_malformed_records_of_searchers_do_not_break_page(record: str) -> None:
    trials = tuple(replace(t, proposal=replace(t.proposal, why=RECORDS[record])) for t in TRIALS)
    assert not [tag for tag, _ in Tags(page(run_of(trials))).tags if tag == "img"]


def test_strings_of_the_run_are_not_markup() -> None:
    failed = trial(8, TRIALS[0], outcome=Outcome("failed", error=f"Traceback\n{EVIL}"))
    about = {
        "estimator": EVIL,
        "decides": {"search_type": EVIL},
        "device": EVIL,
        "data": {"classes": EVIL, "shape": EVIL},
    }
    text = page(run_of((*TRIALS, failed), path=f"runs/{EVIL}", **about))
    tags = Tags(text).tags
    assert not [tag for tag, _ in tags if tag == "img"]
    assert sum(tag == "script" for tag, _ in tags) == 2
    assert "<img" not in text
    assert html.escape(EVIL) in text
    assert embedded_data(text)["errors"][-1].endswith(EVIL)


def test_page_makes_no_requests() -> None:
    text = page(run_of())
    assert "default-src 'none'" in text
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text)
    links = [value for _, attrs in Tags(text).tags for name, value in attrs.items() if name in ("src", "href")]
    assert links == ["data:,"]


def test_embedded_data_match_the_trials() -> None:
    data = embedded_data(page(run_of(best=5)))
    columns = data["columns"]
    assert columns["id"] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert columns["parent"] == [None, None, 0, 2, 0, 2, 1, 2]
    assert columns["metric"][:3] == [0.925, 0.85, 0.95]
    assert columns["gain"][2] == pytest.approx(0.125)
    assert columns["status"][3] == "failed"
    assert columns["status"][7] == "running"
    assert (data["best"], data["line"]) == (5, [0, 2, 5])


def test_answers() -> None:
    by_question = {answer.question: answer for answer in answers(run_of(best=5, time_limit=600.0))}
    assert by_question["Best network"].figure == "96.00 %"
    assert "3.5 points better than network 0" in by_question["Best network"].sentence
    assert by_question["Networks tried"].figure == "8"
    assert "1 running" in by_question["Networks tried"].sentence
    assert "of 10:00 allowed" in by_question["Time"].sentence.lower()
    assert by_question["Did it converge?"].figure == "too early to say"
    assert "1 training has not finished" in by_question["To continue"].sentence


def test_a_thousand_networks_take_under_a_megabyte() -> None:
    template = TRIALS[2]
    assert template.outcome is not None
    many: list[Trial] = [replace(TRIALS[0], id=0)]
    for i in range(1, 1000):
        outcome = replace(template.outcome, score=-0.5 + 0.0003 * i, metric=0.9 + 0.00005 * i)
        why = {"reason": "acquisition", "mean": -0.2, "sd": 0.1}
        proposal = replace(template.proposal, start=(i - 1) // 3, why=why)
        many.append(replace(template, id=i, proposal=proposal, outcome=outcome))
    assert len(page(run_of(tuple(many), best=999)).encode()) < 1_000_000


def test_report_is_written_to_file_or_folder(tmp_path: Path) -> None:
    target = tmp_path / "new" / "page.html"
    assert write_report(run_of(), target) == target
    assert [file.name for file in target.parent.iterdir()] == ["page.html"]
    assert write_report(run_of(path=str(tmp_path))) == tmp_path / "report.html"
    with pytest.raises(RunError, match="holds no run"):
        write_report(tmp_path / "none")
    folder = target.with_name("folder")
    (folder / "inner" / "report.html").mkdir(parents=True)
    assert write_report(run_of(), folder) == folder / "report.html"
    with pytest.raises(OSError, match="report"):
        write_report(run_of(), folder / "inner")
    assert sorted(file.name for file in target.parent.rglob("*.*")) == ["page.html", "report.html", "report.html"]


def test_page_reloads_itself_only_if_requested() -> None:
    assert embedded_data(page(run_of()))["reload"] is None
    assert embedded_data(page(run_of(), 5))["reload"] == 5
    assert "The search is running" in page(run_of(), 5)
    for invalid in (0, -1, float("nan"), "5", True):
        with pytest.raises(ValueError, match="reload must be None or seconds above 0"):
            page(run_of(), invalid)  # type: ignore[arg-type]


def test_show_embeds_page_in_a_frame() -> None:
    shown = show(run_of(), height=500)._repr_html_()
    ((tag, attrs),) = Tags(shown).tags
    assert tag == "iframe"
    assert attrs["height"] == "500"
    assert attrs["srcdoc"] == page(run_of())
