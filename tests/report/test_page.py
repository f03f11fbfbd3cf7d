"""The page of a run as text: its contents, and that no string becomes markup. `test_browser.py` opens it."""

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
    "nothing": (),
    "one that runs": (replace(TRIALS[0], outcome=None, kept=False),),
    "one": TRIALS[:1],
    "only failures": tuple(
        replace(t, outcome=Outcome("failed", error="Traceback\nValueError: no"), kept=False) for t in TRIALS[:3]
    ),
    "all that can be": TRIALS,
    "only slow ones": tuple(replace(TRIALS[0], id=i, outcome=replace(GOOD, latency=0.1, slow=True)) for i in range(9)),
}
WHYS: dict[str, Any] = {
    "strings": {"reason": EVIL, "mean": "high", "sd": None, "nearest": "all", "budget": 3},
    "shapes": {"reason": ["a"], "mean": True, "sd": "inf", "nearest": [[1], 2, ["x"]], "budget": {"seconds": "?"}},
    "sizes": {"mean": 10**400, "sd": -(10**400), "budget": {"seconds": 10**400}},
    "names": {EVIL: EVIL, "candidates": {"deep": [1, 2]}, "acquisition": 7},
}  # fmt: skip


def run_of(trials: tuple[Trial, ...] = TRIALS, path: str = "run", **about: Any) -> Run:
    return Run(Path(path), about, trials)


def data_of(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


class Tags(HTMLParser):
    """The tags of a page, as parsed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.mark.parametrize("state", STATES)
def test_every_state_of_a_run_has_a_page(state: str) -> None:
    text = page(run_of(STATES[state]))
    assert len(data_of(text)["columns"].get("id", [])) == len(STATES[state])
    assert "To continue" in text
    assert "$" not in re.sub(r"<script.*?</script>|<style>.*?</style>", "", text, flags=re.DOTALL), (
        "no place is left open"
    )


@pytest.mark.parametrize("why", WHYS)
def test_what_a_searcher_noted_down_cannot_break_it(why: str) -> None:
    trials = tuple(replace(t, proposal=replace(t.proposal, why=WHYS[why])) for t in TRIALS)
    found = Tags(page(run_of(trials)))
    assert not [tag for tag, _ in found.tags if tag == "img"]


def test_no_string_of_a_run_is_markup() -> None:
    bad = trial(8, TRIALS[0], outcome=Outcome("failed", error=f"Traceback\n{EVIL}"))
    about = {
        "estimator": EVIL,
        "decides": {"search_type": EVIL},
        "device": EVIL,
        "data": {"classes": EVIL, "shape": EVIL},
    }
    text = page(run_of((*TRIALS, bad), path=f"runs/{EVIL}", **about))
    found = Tags(text).tags
    assert not [tag for tag, _ in found if tag == "img"]
    assert sum(tag == "script" for tag, _ in found) == 2
    assert "<img" not in text
    assert html.escape(EVIL) in text
    assert data_of(text)["errors"][-1].endswith(EVIL)


def test_nothing_is_asked_for() -> None:
    text = page(run_of())
    assert "default-src 'none'" in text
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text)
    links = [value for _, attrs in Tags(text).tags for name, value in attrs.items() if name in ("src", "href")]
    assert links == ["data:,"]


def test_the_data_are_those_of_the_trials() -> None:
    columns = data_of(page(run_of(best=5)))["columns"]
    assert columns["id"] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert columns["parent"] == [None, None, 0, 2, 0, 2, 1, 2]
    assert columns["metric"][:3] == [0.925, 0.85, 0.95]
    assert columns["gain"][2] == pytest.approx(0.125)
    assert columns["status"][3] == "failed"
    assert columns["status"][7] == "running"
    data = data_of(page(run_of(best=5)))
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


def test_a_thousand_networks_stay_under_a_megabyte() -> None:
    curve = TRIALS[2].outcome
    assert curve is not None
    many: list[Trial] = [replace(TRIALS[0], id=0)]
    for i in range(1, 1000):
        start = many[(i - 1) // 3]
        outcome = replace(curve, score=-0.5 + 0.0003 * i, metric=0.9 + 0.00005 * i)
        proposal = replace(TRIALS[2].proposal, start=start.id, why={"reason": "acquisition", "mean": -0.2, "sd": 0.1})
        many.append(replace(TRIALS[2], id=i, proposal=proposal, outcome=outcome))
    assert len(page(run_of(tuple(many), best=999)).encode()) < 1_000_000


def test_it_is_written_whole_and_where_it_is_asked_for(tmp_path: Path) -> None:
    target = tmp_path / "new" / "page.html"
    assert write_report(run_of(), target) == target
    assert [file.name for file in target.parent.iterdir()] == ["page.html"]
    assert write_report(run_of(path=str(tmp_path))) == tmp_path / "report.html"
    with pytest.raises(RunError, match="holds no run"):
        write_report(tmp_path / "none")
    folder = target.with_name("folder")
    (folder / "in it").mkdir(parents=True)
    assert write_report(run_of(), folder) == folder / "report.html"
    (folder / "in it" / "report.html").mkdir()
    with pytest.raises(OSError, match="report"):
        write_report(run_of(), folder / "in it")
    assert sorted(file.name for file in target.parent.rglob("*.*")) == ["page.html", "report.html", "report.html"]


def test_it_reloads_itself_if_asked_to() -> None:
    assert data_of(page(run_of()))["reload"] is None
    assert data_of(page(run_of(), 5))["reload"] == 5
    assert "The search is running" in page(run_of(), 5)
    for bad in (0, -1, float("nan"), "5", True):
        with pytest.raises(ValueError, match="reload must be None or seconds above 0"):
            page(run_of(), bad)  # type: ignore[arg-type]


def test_a_notebook_shows_it_in_a_frame() -> None:
    shown = show(run_of(), height=500)._repr_html_()
    ((tag, attrs),) = Tags(shown).tags
    assert tag == "iframe"
    assert attrs["height"] == "500"
    assert attrs["srcdoc"] == page(run_of())
