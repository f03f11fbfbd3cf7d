"""The progress display: one live line for a terminal, plain lines for a log, nothing when it is off."""

from __future__ import annotations

import io
import os
import sys
import threading
from dataclasses import dataclass, replace

import pytest

from morphnas.report import Progress
from morphnas.train.recipe import Outcome
from tests.report.history import GOOD, history


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def play(progress: Progress, clock: Clock) -> None:
    for trial in history():
        progress.trial_begins(trial)
        for epoch in (1, 2):
            clock.now += 2.5
            progress.epoch_done(trial, replace(GOOD, epochs=epoch))
        progress.trial_ends(trial)
    progress.close()


def test_a_log_gets_one_plain_line_per_trial() -> None:
    log, clock = io.StringIO(), Clock()
    play(Progress(600, log, clock=clock), clock)
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
    ("error", "told"),
    [
        (TRACEBACK, "failed: ValueError: no such class"),
        ("the worker was killed; its last words: a\nb", "failed: the worker was killed; its last words: a"),
        ("x" * 1000, "failed: " + "x" * 157 + "..."),
        (" \n", "failed"),
        (None, "failed"),
    ],
)
def test_a_log_tells_in_a_line_why_a_network_failed(error: str | None, told: str) -> None:
    log, one = io.StringIO(), history()[3]
    Progress(None, log).trial_ends(replace(one, outcome=Outcome("failed", error=error)))
    (line,) = log.getvalue().splitlines()
    assert line.split(" | ")[2] == told


def test_a_terminal_gets_one_live_line_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    terminal, clock = Terminal(), Clock()
    threads = threading.active_count()
    progress = Progress(600, terminal, clock=clock)
    play(progress, clock)
    shown = terminal.getvalue()
    assert "\n" not in shown
    states = [state.strip() for state in shown.split("\r")]
    assert any("best 92.50 % | trial 2 | wider conv_1, width 12" in state for state in states)
    assert any("trial 2 | epoch 2 | 92.50 % | wider conv_1" in state for state in states)
    assert states[-1] == ""
    assert threading.active_count() == threads


def test_a_network_that_is_too_slow_is_not_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_without_a_limit_it_says_how_long_it_has_taken() -> None:
    for file in (io.StringIO(), Terminal()):
        clock = Clock()
        progress = Progress(None, file, clock=clock)
        assert progress.left is None
        play(progress, clock)
        assert "10 s so far" in file.getvalue()


def test_it_is_silent_when_it_is_off() -> None:
    log, clock = Terminal(), Clock()
    play(Progress(600, log, enabled=False, clock=clock), clock)
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
def test_a_terminal_that_does_not_know_its_size_shows_it_too() -> None:
    import pty

    leader, follower = pty.openpty()
    with os.fdopen(follower, "w", encoding="utf-8") as terminal:
        clock = Clock()
        play(Progress(600, terminal, clock=clock), clock)
        print("the end", end="", file=terminal, flush=True)
        written = b""
        while not written.endswith(b"the end"):  # the kernel hands over what was written in pieces
            written += os.read(leader, 100_000)
    os.close(leader)
    shown = written.decode()
    assert "trial 2 | epoch 1 | 92.50 % | wider" in shown
    assert "\n" not in shown
    assert max(len(state) for state in shown.split("\r")) < 80
