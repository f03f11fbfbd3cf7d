"""Tests of the progress display: one live line in a terminal, plain lines in a log, nothing when it is disabled."""

from __future__ import annotations

import io
import os
import sys
import threading
from dataclasses import replace

import pytest

from morphnas.report import Progress
from morphnas.train.recipe import Outcome
from tests.report.history import GOOD, history
from tests.train.tasks import Clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def replay_history(progress: Progress, clock: Clock) -> None:
    """Pass all events of the history, in which every epoch takes 2.5 seconds of the clock."""
    for trial in history():
        progress.trial_begins(trial)
        for epoch in (1, 2):
            clock.now += 2.5
            progress.epoch_done(trial, replace(GOOD, epochs=epoch))
        progress.trial_ends(trial)
    progress.close()


def test_log_has_one_plain_line_per_trial() -> None:
    log, clock = io.StringIO(), Clock()
    replay_history(Progress(600, log, clock=clock), clock)
    lines = log.getvalue().splitlines()
    assert len(lines) == len(history())
    assert lines[2] == "trial 2: wider conv_1, width 12 | 95.00 % (92.4-96.7) | 4 epochs in 1:15 | 9:45 left"
    assert lines[3] == (
        "trial 3: add skip relu_3 to relu_10; deeper relu_3, kernel 3 | 0 epochs in 0.0 s | failed: no | 9:40 left"
    )
    assert "\r" not in log.getvalue()
    assert "\x1b" not in log.getvalue()


TRACEBACK = """ompute
  File "user.py", line 3, in metric
    raise ValueError("no such class")
ValueError: no such class
"""


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (TRACEBACK, "failed: ValueError: no such class"),
        ("the worker was killed; its output: a\nb", "failed: the worker was killed; its output: a"),
        ("x" * 1000, "failed: " + "x" * 157 + "..."),
        (" \n", "failed"),
        (None, "failed"),
    ],
)
def test_log_shows_error_in_one_line(error: str | None, status: str) -> None:
    log = io.StringIO()
    Progress(None, log).trial_ends(replace(history()[3], outcome=Outcome("failed", error=error)))
    (line,) = log.getvalue().splitlines()
    assert line.split(" | ")[2] == status


def test_terminal_shows_one_live_line_and_removes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    terminal, clock = Terminal(), Clock()
    threads = threading.active_count()
    progress = Progress(600, terminal, clock=clock)
    replay_history(progress, clock)
    shown = terminal.getvalue()
    assert "\n" not in shown
    states = [state.strip() for state in shown.split("\r")]
    assert any("best 92.50 % | trial 2 | wider conv_1, width 12" in state for state in states)
    assert any("trial 2 | epoch 2 | 92.50 % | wider conv_1" in state for state in states)
    assert states[-1] == ""
    assert threading.active_count() == threads


def test_slow_network_is_not_shown_as_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    terminal, (first, second, better, *_) = Terminal(), history()
    assert better.outcome is not None
    progress = Progress(600, terminal, clock=Clock())
    for one in (replace(better, outcome=replace(better.outcome, slow=True)), second, first):
        progress.trial_begins(one)
        progress.trial_ends(one)
    progress.close()
    states = [state.strip() for state in terminal.getvalue().split("\r")]
    assert "best 92.50 %" in [state for state in states if "best" in state][-1]


def test_elapsed_time_is_shown_without_a_limit() -> None:
    for file in (io.StringIO(), Terminal()):
        clock = Clock()
        progress = Progress(None, file, clock=clock)
        assert progress.left is None
        replay_history(progress, clock)
        assert "10 s so far" in file.getvalue()


def test_disabled_progress_prints_nothing() -> None:
    log, clock = Terminal(), Clock()
    replay_history(Progress(600, log, enabled=False, clock=clock), clock)
    assert log.getvalue() == ""


def test_time_left() -> None:
    clock = Clock()
    progress = Progress(10, io.StringIO(), clock=clock)
    clock.now += 4
    assert progress.left == 6
    clock.now += 40
    assert progress.left == 0
    progress.close()
    progress.close()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_terminal_of_unknown_size_shows_progress() -> None:
    import pty

    leader, follower = pty.openpty()
    with os.fdopen(follower, "w", encoding="utf-8") as terminal:
        clock = Clock()
        replay_history(Progress(600, terminal, clock=clock), clock)
        print("the end", end="", file=terminal, flush=True)
        written = b""
        while not written.endswith(b"the end"):  # it arrives in pieces
            written += os.read(leader, 100_000)
    os.close(leader)
    shown = written.decode()
    assert "trial 2 | epoch 1 | 92.50 % | wider" in shown
    assert "\n" not in shown
    assert max(len(state) for state in shown.split("\r")) < 80
