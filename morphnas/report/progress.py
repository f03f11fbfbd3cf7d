"""Progress of a search: one live line in a terminal, one plain line per trial in a log."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

from tqdm import tqdm

from morphnas.report.words import (
    duration,
    epochs_words,
    error_words,
    interval_words,
    metric_words,
    status_words,
    trial_words,
)
from morphnas.search.trial import Trial
from morphnas.train.recipe import Outcome


class _Bar(tqdm):  # type: ignore[misc]  # tqdm has no types
    monitor_interval = 0  # no monitor thread


class Progress:
    """Displays the progress of a search, as an observer of its trials and epochs.

    limit_seconds: time limit of the whole search, from now on; None: no limit.
    file: where to print; None: standard error. enabled: False prints nothing.
    clock: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        limit_seconds: float | None = None,
        file: TextIO | None = None,
        enabled: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit, self._clock, self._start = limit_seconds, clock, clock()
        self._file = (sys.stderr if file is None else file) if enabled else None
        self._bar: _Bar | None = None
        self._running: dict[int, Trial] = {}  # the one updated last at the end
        self._best: Outcome | None = None
        if self._file is not None and self._file.isatty():
            layout = "{desc}" if limit_seconds is None else "{bar:16} {desc}"
            columns, rows = shutil.get_terminal_size()  # a default where the terminal does not know its size
            self._bar = _Bar(
                total=limit_seconds, file=self._file, leave=False, bar_format=layout, ncols=columns - 1, nrows=rows
            )

    @property
    def left(self) -> float | None:
        """Seconds until the limit, not below 0; None without one."""
        return None if self._limit is None else max(0.0, self._limit - self._elapsed)

    @property
    def _elapsed(self) -> float:
        return self._clock() - self._start

    def trial_begins(self, trial: Trial) -> None:
        self._running[trial.id] = trial
        self._show()

    def epoch_done(self, trial: Trial, outcome: Outcome) -> None:
        """An epoch of a trial is done. outcome: the one so far."""
        self._running[trial.id] = self._running.pop(trial.id, trial)
        if self._bar is not None:
            self._show(f"epoch {outcome.epochs}", metric_words(outcome, named=True))

    def trial_ends(self, trial: Trial) -> None:
        outcome = trial.outcome
        if outcome is not None and outcome.score is not None:
            best = self._best
            if best is None or best.score is None or (not outcome.slow, outcome.score) > (not best.slow, best.score):
                self._best = outcome
        if self._bar is None and self._file is not None:
            metric, interval = metric_words(outcome, named=True), interval_words(outcome)
            status, error = status_words(trial), error_words(outcome)
            self._print(
                f"trial {trial.id}: {trial_words(trial)}",
                f"{metric} ({interval})" if interval else metric,
                f"{epochs_words(outcome.epochs)} in {duration(outcome.seconds)}" if outcome is not None else "",
                "" if status == "finished" else f"{status}: {error}" if error else status,
                self._time(),
            )
        self._running.pop(trial.id, None)
        self._show()

    def tell(self, text: str) -> None:
        """Print a message on lines of its own."""
        if self._bar is not None:
            self._bar.clear()
        if self._file is not None:
            self._print(text)

    def close(self) -> None:
        """Remove the live line."""
        if self._bar is not None:
            self._bar.close()
        self._bar = self._file = None

    def _show(self, *parts: str) -> None:
        """Redraw the live line: the most important parts first, as a terminal cuts off its end."""
        if self._bar is not None:
            best = metric_words(self._best, named=True)
            last = next(reversed(self._running.values()), None)
            current = (f"trial {last.id}", *parts, trial_words(last)) if last is not None else ()
            if len(self._running) > 1:
                current = (f"{len(self._running)} at a time", *current)
            self._bar.n = min(self._elapsed, self._limit or 0)
            self._bar.set_description_str(_joined(self._time(), f"best {best}" if best else "", *current))

    def _print(self, *parts: str) -> None:
        print(_joined(*parts), file=self._file, flush=True)

    def _time(self) -> str:
        left = self.left
        return f"{duration(self._elapsed)} so far" if left is None else f"{duration(left)} left"


def _joined(*parts: str) -> str:
    return " | ".join(part for part in parts if part)
