"""Tests of the callback after every epoch: its argument, its thread, and that its errors are harmless."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from morphnas.graph import Wider, cnn
from morphnas.run.epochs import EpochCalls, EpochReport, StopFit
from morphnas.run.executors import SerialExecutor, process_executor
from morphnas.run.final import Final
from morphnas.run.jobs import Executor
from morphnas.run.observers import Observer, Observers
from morphnas.run.search import Search
from morphnas.search.trial import Proposal, Trial
from morphnas.train.data import Task
from morphnas.train.deadline import Deadline, Stop
from morphnas.train.recipe import Epoch, Outcome, Recipe
from tests.run.doubles import RECIPE, ScriptedSearcher, ThreadExecutor, new_store, proposals
from tests.train.tasks import blob_task

TASK = blob_task()
RUN = Path("run")
NETWORK = cnn((1, 8, 8), 3, width=4, depth=2)
WIDER = Wider("conv_1", 8)
CURVE = (Epoch(1.0, 0.9, -0.8, 0.5), Epoch(2.0, 0.7, -0.6, 0.75))
OUTCOME = Outcome(
    "truncated", -0.6, 0.75, seconds=2.1, epochs=2, best_epoch=2, curve=CURVE, training_loss=0.7, lr=0.03
)  # fmt: skip


def child(**why: Any) -> Trial:
    return Trial(4, Proposal(1, (WIDER,), Recipe(epochs=6), why), WIDER.grow(NETWORK))


def epoch_calls(function: Callable[[EpochReport], object] | None) -> EpochCalls:
    return EpochCalls(function, RUN, Stop())


# -- the report


def test_report_of_scored_epoch() -> None:
    report = EpochReport.of(RUN, child(), OUTCOME)
    assert report == EpochReport(RUN, 4, 1, (str(WIDER),), None, 2, 6, 2.1, 0.7, 0.03, 0.6, 0.75)
    assert report.numbers == {"loss": 0.7, "lr": 0.03, "seconds": 2.1, "validation_loss": 0.6, "metric": 0.75}
    with pytest.raises(AttributeError):
        report.loss = 0.0  # type: ignore[misc]


def test_report_of_unscored_epoch_has_no_validation_figures() -> None:
    report = EpochReport.of(RUN, child(final="everything"), replace(OUTCOME, score=None, metric=None, curve=()))
    assert (report.final, report.validation_loss, report.metric) == ("everything", None, None)
    assert set(report.numbers) == {"loss", "lr", "seconds"}


# -- the callback


def test_callback_error_is_logged_and_ignored(caplog: pytest.LogCaptureFixture) -> None:
    def broken(report: EpochReport) -> None:
        raise RuntimeError("no connection")

    observer = epoch_calls(broken)
    for _ in range(3):
        observer.epoch_done(child(), OUTCOME)
    observer.close()
    assert not observer.stop.requested
    first, last = caplog.records
    assert first.levelno == last.levelno == logging.ERROR
    assert "each_epoch raised after epoch 2 of trial 4" in first.getMessage()
    assert "no connection" in caplog.text
    assert "in broken" in caplog.text
    assert last.getMessage() == "each_epoch raised 3 times"


def test_stop_fit_sets_stop_and_ends_calls() -> None:
    epochs: list[int] = []

    def stop_fit(report: EpochReport) -> None:
        epochs.append(report.epoch)
        raise StopFit("good enough")

    observer = epoch_calls(stop_fit)
    observer.epoch_done(child(), OUTCOME)
    observer.epoch_done(child(), OUTCOME)
    assert observer.stop.requested
    assert observer.stopped
    assert epochs == [2], "it is not called again"


def test_return_value_of_callback_is_ignored() -> None:
    observer = epoch_calls(lambda _: True)
    observer.epoch_done(child(), OUTCOME)
    assert not observer.stop.requested


def test_no_callback_is_allowed() -> None:
    epoch_calls(None).epoch_done(child(), OUTCOME)


def test_keyboard_interrupt_in_callback_propagates() -> None:
    def interrupt(report: EpochReport) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        epoch_calls(interrupt).epoch_done(child(), OUTCOME)


def test_observers_are_called_in_order() -> None:
    calls: list[tuple[str, int, str]] = []

    @dataclass
    class Named:
        name: str

        def trial_begins(self, trial: Trial) -> None:
            calls.append(("begins", trial.id, self.name))

        def epoch_done(self, trial: Trial, outcome: Outcome) -> None:
            calls.append(("epoch", outcome.epochs, self.name))

        def trial_ends(self, trial: Trial) -> None:
            calls.append(("ends", trial.id, self.name))

    both: Observer = Observers((Named("a"), Named("b")))
    both.trial_begins(child())
    both.epoch_done(child(), OUTCOME)
    both.trial_ends(replace(child(), outcome=OUTCOME))
    assert calls == [(*call, name) for call in (("begins", 4), ("epoch", 2), ("ends", 4)) for name in "ab"]


# -- with executors


def test_reports_match_outcomes(tmp_path: Path) -> None:
    reports: list[EpochReport] = []
    with new_store(tmp_path / "run") as store:
        observer = EpochCalls(reports.append, store.path, Stop())
        Search(
            store, ScriptedSearcher(proposals(2)), SerialExecutor(TASK), Deadline.after(600), observer=observer
        ).run()
        trials = store.trials
    assert [(r.trial, r.epoch) for r in reports] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    for trial in trials:
        assert trial.outcome is not None
        own = [r for r in reports if r.trial == trial.id]
        assert [(r.loss, -(r.validation_loss or 0), r.metric) for r in own] == [
            (e.loss, e.score, e.metric) for e in trial.outcome.curve
        ]
        assert trial.outcome.training_loss == own[-1].loss
        assert trial.outcome.lr == own[-1].lr
        assert RECIPE.lr > own[0].lr > own[-1].lr > 0


def test_outcome_round_trips_through_json() -> None:
    assert Outcome.from_json(OUTCOME.to_json()) == OUTCOME
    older = {name: value for name, value in OUTCOME.to_json().items() if name not in ("training_loss", "lr")}
    assert Outcome.from_json(older) == replace(OUTCOME, training_loss=None, lr=None)


class OneThread(ThreadExecutor):
    """One worker in another thread, as that of a `SupervisedExecutor` is."""

    workers = 1


@pytest.mark.parametrize("make_executor", [SerialExecutor, ThreadExecutor, OneThread])
def test_callback_runs_in_thread_of_search(tmp_path: Path, make_executor: Callable[[Task], Executor]) -> None:
    threads: list[int] = []
    executor = make_executor(TASK)
    with new_store(tmp_path / "run") as store:
        observer = EpochCalls(lambda _: threads.append(threading.get_ident()), store.path, Stop())
        Search(store, ScriptedSearcher(proposals(3)), executor, Deadline.after(600), observer=observer).run()
    executor.shutdown()
    assert threads == [threading.get_ident()] * 6


@pytest.mark.parametrize("make_executor", [SerialExecutor, OneThread])
def test_callback_runs_in_thread_of_final_trainings(tmp_path: Path, make_executor: Callable[[Task], Executor]) -> None:
    reports: list[tuple[int, int, str | None, int]] = []

    def note(report: EpochReport) -> None:
        reports.append((report.trial, report.epoch, report.final, threading.get_ident()))

    executor = make_executor(TASK)
    with new_store(tmp_path / "run") as store:
        Search(store, ScriptedSearcher(proposals(1)), executor, Deadline.after(600)).run()
        winner, observer = store.trials[0], EpochCalls(note, store.path, Stop())
        args = (TASK, RECIPE, Deadline.after(600))
        Final(store, winner, executor, *args, all_examples=TASK.train, epochs=2, observer=observer).run()
    executor.shutdown()
    assert {thread for *_, thread in reports} == {threading.get_ident()}
    assert [report[:3] for report in reports] == [
        (1, 1, "inherited"), (1, 2, "inherited"), (2, 1, "fresh"), (2, 2, "fresh"), (3, 1, "everything"),
        (3, 2, "everything"),
    ]  # fmt: skip


def test_stop_fit_ends_running_training_in_this_process(tmp_path: Path) -> None:
    stop = Stop()
    with new_store(tmp_path / "run") as store:

        def stop_in_second_trial(report: EpochReport) -> None:
            if report.trial == 1:
                raise StopFit

        observer, deadline = EpochCalls(stop_in_second_trial, store.path, stop), Deadline.after(600, stop=stop)
        Search(store, ScriptedSearcher(proposals(3)), SerialExecutor(TASK), deadline, observer=observer).run()
        first, second = store.trials
    assert first.outcome is not None
    assert second.outcome is not None
    assert (first.outcome.status, first.outcome.epochs) == ("finished", 2)
    assert (second.outcome.status, second.outcome.epochs, second.kept) == ("truncated", 1, True)


@pytest.mark.slow
def test_callback_runs_in_main_thread_with_processes(tmp_path: Path) -> None:
    reports: list[tuple[int, int, bool]] = []
    executor = process_executor(TASK, [torch.device("cpu")] * 2)
    with new_store(tmp_path / "run") as store:

        def note(report: EpochReport) -> None:
            complete = report.numbers.keys() == {"loss", "lr", "seconds", "validation_loss", "metric"}
            in_main_thread = threading.current_thread() is threading.main_thread()
            reports.append((report.trial, report.epoch, complete and in_main_thread))
            raise RuntimeError

        observer = EpochCalls(note, store.path, Stop())
        Search(store, ScriptedSearcher(proposals(4)), executor, Deadline.after(120), observer=observer).run()
        assert all(trial.outcome is not None and trial.outcome.status == "finished" for trial in store.trials)
    executor.shutdown()
    assert sorted(reports) == [(trial, epoch, True) for trial in range(4) for epoch in (1, 2)]
