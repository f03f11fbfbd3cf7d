"""Tests of the table of trials: contents, alignment, and numbers as text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morphnas.report import trials_table
from morphnas.report.words import count, duration, number_words
from morphnas.run.store import load_run
from morphnas.train.recipe import Outcome
from tests.report.history import GOOD, history, trial
from tests.run.doubles import new_store, proposals, weights


def test_contents_of_table() -> None:
    table = trials_table(history()[:5], best=2)
    assert table.splitlines() == EXPECTED.strip("\n").splitlines()


EXPECTED = """
  id  from  what                                                 depth  params  FLOPs  epochs   time    score  accuracy  95 %       status
  --  ----  ---------------------------------------------------  -----  ------  -----  ------  -----  -------  --------  ---------  ---------
   0        start                                                    4   7.87k   101k       4   12 s  -0.2500   92.50 %  89.5-94.7  finished
   1        start                                                    2     618  1.21k       4  2.0 s  -0.5000   85.00 %  81.2-88.2  finished
*  2     0  wider conv_1, width 12                                   4   8.49k   125k       4   1:15  -0.1250   95.00 %  92.4-96.7  finished
   3     2  add skip relu_3 to relu_10; deeper relu_3, kernel 3      5   10.0k   297k     0/4  0.0 s                                failed
   4     0  deeper relu_3, kernel 3                                  5   8.47k   176k     2/4  3.0 s  -0.3000   90.00 %  86.7-92.6  truncated
* the best
"""  # noqa: E501


def test_table_of_run_folder_or_trials(tmp_path: Path) -> None:
    with new_store(tmp_path / "run") as store:
        store.claim(proposals(1)[0])
        store.finish(0, GOOD, weights())
        trials = store.trials
    for run in (load_run(tmp_path / "run"), tmp_path / "run", str(tmp_path / "run"), tuple(trials)):
        assert trials_table(run) == trials_table(trials)


def test_columns_are_aligned() -> None:
    lines = trials_table(history(), best=5).splitlines()
    gaps = [i for i, character in enumerate(lines[1]) if character == " "]
    for line in [lines[0], *lines[2:-1]]:
        assert all(line[i : i + 1] in {"", " "} for i in gaps[2:]), line
        assert line.isascii()
    assert [line[:1] for line in lines[2:-1]] == [" ", " ", " ", " ", " ", "*", " ", " "]
    assert lines[-1] == "* the best"


def test_table_without_trials_or_without_best() -> None:
    assert len(trials_table([]).splitlines()) == 2
    assert "*" not in trials_table(history())


def test_other_metrics_are_shown_as_numbers() -> None:
    table = trials_table([trial(0, history()[0].graph, outcome=replace(GOOD, metric=0.123456, measure="R2"))])
    assert "R2" in table
    assert "0.1235" in table
    assert "accuracy" not in table


def test_metric_used_as_score_is_shown_once() -> None:
    graph = history()[0].graph
    by_metric = replace(GOOD, score=0.123456, metric=0.123456, measure="f1_macro", objective="f1_macro")
    header, _, line = trials_table([trial(0, graph, outcome=by_metric)]).splitlines()
    assert "score" not in header
    assert line.count("0.1235") == 1
    header = trials_table([trial(0, graph, outcome=by_metric), trial(1, graph, outcome=GOOD)]).splitlines()[0]
    assert "score" in header


@given(st.floats(-1e300, 1e300))
def test_numbers_are_rounded_to_a_few_digits(value: float) -> None:
    text = number_words(value)
    assert len(text) <= 11
    assert float(text) == pytest.approx(value, rel=5e-3)


def test_long_descriptions_are_truncated() -> None:
    table = trials_table(history(), widest=20)
    assert "add skip relu_3 t..." in table


def test_running_and_failed_trials_show_their_status() -> None:
    line = trials_table([trial(3, history()[0].graph, outcome=None)]).splitlines()[-1]
    assert line.split()[-2:] == ["0/4", "running"]
    assert "failed" in trials_table([trial(3, history()[0].graph, outcome=Outcome("failed"))])


@given(value=st.integers(0, 10**16))
def test_counts_keep_three_digits(value: int) -> None:
    text = count(value)
    size = float(text.rstrip("kMGT")) * {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}.get(text[-1], 1)
    assert abs(size - value) <= 0.0051 * value
    assert len(text) <= 6


@given(seconds=st.floats(0, 1e6))
def test_durations_are_accurate_to_the_second(seconds: float) -> None:
    text = duration(seconds)
    if text.endswith(" s"):
        assert abs(float(text[:-2]) - seconds) <= 0.51
    else:
        parts = [int(part) for part in text.split(":")]
        assert all(part < 60 for part in parts[1:])
        assert abs(sum(part * 60**i for i, part in enumerate(reversed(parts))) - seconds) <= 0.51


def test_retried_trial_is_marked() -> None:
    table = trials_table([trial(0, history()[0].graph, outcome=replace(GOOD, retries=1))])
    assert table.splitlines()[-1].endswith("finished, tried again")
