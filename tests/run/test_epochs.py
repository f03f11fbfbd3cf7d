"""The callback after every epoch: its argument, its thread, and that its errors are harmless."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from morphnas.graph import Wider, cnn
from morphnas.run.checkpoints import Result
from morphnas.run.epochs import EpochCalls, EpochReport, StopFit
from morphnas.run.executors import SerialExecutor, process_executor
from morphnas.run.final import Final
from morphnas.run.jobs import Executor, Job
from morphnas.run.observers import Observer, Observers
from morphnas.run.search import Search
from morphnas.run.work import work
from morphnas.search.trial import Proposal, Trial
from morphnas.train.data import Task
from morphnas.train.deadline import Deadline, Stop
from morphnas.train.recipe import Epoch, Outcome, Recipe
from morphnas.train.trainer import EachEpoch
from tests.run.doubles import RECIPE, Notes, Script, Threads, proposals, store_of
from tests.train.tasks import blobs

TASK = blobs()
HERE = Path("run")
NET = cnn((1, 8, 8), 3, width=4, depth=2)
WIDER = Wider("conv_1", 8)
CURVE = (Epoch(1.0, 0.9, -0.8, 0.5), Epoch(2.0, 0.7, -0.6, 0.75))
SO_FAR = Outcome(
    "truncated", -0.6, 0.75, seconds=2.1, epochs=2, best_epoch=2, curve=CURVE, training_loss=0.7, lr=0.03
)  # fmt: skip


def child(**why: Any) -> Trial:
    return Trial(4, Proposal(1, (WIDER,), Recipe(epochs=6), why), WIDER.grow(NET))


def calls(function: Callable[[EpochReport], object] | None) -> EpochCalls:
    return EpochCalls(function, HERE, Stop())


# -- what it is told


def test_what_an_epoch_is_reported_as() -> None:
    report = EpochReport.of(HERE, child(), SO_FAR)
    assert report == EpochReport(HERE, 4, 1, (str(WIDER),), None, 2, 6, 2.1, 0.7, 0.03, 0.6, 0.75)
    assert report.numbers == {"loss": 0.7, "lr": 0.03, "seconds": 2.1, "validation_loss": 0.6, "metric": 0.75}
    with pytest.raises(AttributeError):
        report.loss = 0.0  # type: ignore[misc]


def test_what_nobody_judges_has_a_training_loss_alone() -> None:
    report = EpochReport.of(HERE, child(final="everything"), replace(SO_FAR, score=None, metric=None, curve=()))
    assert (report.final, report.validation_loss, report.metric) == ("everything", None, None)
    assert set(report.numbers) == {"loss", "lr", "seconds"}


# -- what it can do


def test_what_it_raises_is_logged_and_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def broken(report: EpochReport) -> None:
        raise RuntimeError("no connection")

    made = calls(broken)
    for _ in range(3):
        made.epoch_done(child(), SO_FAR)
    made.close()
    assert not made.stop.requested
    first, last = caplog.records
    assert first.levelno == last.levelno == logging.ERROR
    assert "each_epoch raised after epoch 2 of trial 4" in first.getMessage()
    assert "no connection" in caplog.text
    assert "in broken" in caplog.text
    assert last.getMessage() == "each_epoch raised 3 times"


def test_it_can_ask_to_stop() -> None:
    told: list[int] = []

    def enough(report: EpochReport) -> None:
        told.append(report.epoch)
        raise StopFit("good enough")

    made = calls(enough)
    made.epoch_done(child(), SO_FAR)
    made.epoch_done(child(), SO_FAR)
    assert made.stop.requested
    assert made.stopped
    assert told == [2], "it is not called again"


def test_what_it_returns_is_of_no_matter() -> None:
    made = calls(lambda _: True)
    made.epoch_done(child(), SO_FAR)
    assert not made.stop.requested
    calls(None).epoch_done(child(), SO_FAR)


def test_keyboard_interrupts_pass() -> None:
    def pressed(report: EpochReport) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calls(pressed).epoch_done(child(), SO_FAR)


def test_several_observers_are_told_in_their_order() -> None:
    told: list[tuple[str, tuple[str, int]]] = []

    class Named(Notes):
        def __init__(self, name: str) -> None:
            self.told = Named.Log(name)  # type: ignore[assignment]

        class Log:
            def __init__(self, name: str) -> None:
                self.name = name

            def append(self, what: tuple[str, int]) -> None:
                told.append((self.name, what))

    both: Observer = Observers((Named("a"), Named("b")))
    both.trial_begins(child())
    both.epoch_done(child(), SO_FAR)
    both.trial_ends(replace(child(), outcome=SO_FAR))
    assert told == [(name, what) for what in (("begins", 4), ("epoch", 2), ("ends", 4)) for name in "ab"]


# -- in one thread, whoever trains


def test_the_numbers_are_those_of_the_training(tmp_path: Path) -> None:
    reports: list[EpochReport] = []
    with store_of(tmp_path / "run") as store:
        made = EpochCalls(reports.append, store.path, Stop())
        Search(store, Script(proposals(2)), SerialExecutor(TASK), Deadline.after(600), observer=made).run()
        trials = store.trials
    assert [(r.trial, r.epoch) for r in reports] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    for trial in trials:
        assert trial.outcome is not None
        mine = [r for r in reports if r.trial == trial.id]
        assert [(r.loss, -(r.validation_loss or 0), r.metric) for r in mine] == [
            (e.loss, e.score, e.metric) for e in trial.outcome.curve
        ]
        assert trial.outcome.training_loss == mine[-1].loss
        assert trial.outcome.lr == mine[-1].lr
        assert RECIPE.lr > mine[0].lr > mine[-1].lr > 0


def test_an_outcome_with_the_last_epoch_is_read_again() -> None:
    assert Outcome.from_json(SO_FAR.to_json()) == SO_FAR
    older = {name: value for name, value in SO_FAR.to_json().items() if name not in ("training_loss", "lr")}
    assert Outcome.from_json(older).lr is None


class Elsewhere:
    """A worker in another thread, as those of `SupervisedExecutor` are."""

    workers, asks_ahead = 1, False

    def __init__(self, task: Task) -> None:
        self._task, self._pool = task, ThreadPoolExecutor(1)

    def submit(self, job: Job, each_epoch: EachEpoch | None = None) -> Future[Result]:
        return self._pool.submit(work, job, self._task, each_epoch)

    def shutdown(self) -> None:
        self._pool.shutdown()


@pytest.mark.parametrize("kind", [SerialExecutor, Threads, Elsewhere])
def test_it_is_called_in_the_thread_of_the_search(tmp_path: Path, kind: Callable[[Task], Executor]) -> None:
    threads: list[int] = []
    executor = kind(TASK)
    with store_of(tmp_path / "run") as store:
        made = EpochCalls(lambda _: threads.append(threading.get_ident()), store.path, Stop())
        Search(store, Script(proposals(3)), executor, Deadline.after(600), observer=made).run()
    executor.shutdown()
    assert threads == [threading.get_ident()] * 6


@pytest.mark.parametrize("kind", [SerialExecutor, Elsewhere])
def test_also_by_the_final_trainings(tmp_path: Path, kind: Callable[[Task], Executor]) -> None:
    told: list[tuple[int, int, str | None]] = []

    def note(report: EpochReport) -> None:
        assert threading.get_ident() == here
        told.append((report.trial, report.epoch, report.final))

    here, executor = threading.get_ident(), kind(TASK)
    with store_of(tmp_path / "run") as store:
        Search(store, Script(proposals(1)), executor, Deadline.after(600)).run()
        winner, made = store.trials[0], EpochCalls(note, store.path, Stop())
        args = (TASK, RECIPE, Deadline.after(600))
        Final(store, winner, executor, *args, all_examples=TASK.train, epochs=2, observer=made).run()
    executor.shutdown()
    assert told == [
        (1, 1, "inherited"), (1, 2, "inherited"), (2, 1, "fresh"), (2, 2, "fresh"), (3, 1, "everything"),
        (3, 2, "everything"),
    ]  # fmt: skip


def test_it_ends_a_training_where_that_is_in_this_process(tmp_path: Path) -> None:
    stop = Stop()
    with store_of(tmp_path / "run") as store:

        def enough(report: EpochReport) -> None:
            if report.trial == 1:
                raise StopFit

        made = EpochCalls(enough, store.path, stop)
        Search(store, Script(proposals(3)), SerialExecutor(TASK), Deadline.after(600, stop=stop), observer=made).run()
        first, second = store.trials
    assert first.outcome is not None
    assert second.outcome is not None
    assert (first.outcome.status, first.outcome.epochs) == ("finished", 2)
    assert (second.outcome.status, second.outcome.epochs, second.kept) == ("truncated", 1, True)


@pytest.mark.slow
def test_processes_tell_it_too(tmp_path: Path) -> None:
    import torch

    reports: list[tuple[int, int]] = []
    executor = process_executor(TASK, [torch.device("cpu")] * 2)
    with store_of(tmp_path / "run") as store:

        def note(report: EpochReport) -> None:
            assert threading.current_thread() is threading.main_thread()
            assert report.numbers.keys() == {"loss", "lr", "seconds", "validation_loss", "metric"}
            reports.append((report.trial, report.epoch))
            raise RuntimeError

        made = EpochCalls(note, store.path, Stop())
        Search(store, Script(proposals(4)), executor, Deadline.after(120), observer=made).run()
        assert all(trial.outcome is not None and trial.outcome.status == "finished" for trial in store.trials)
    executor.shutdown()
    assert sorted(reports) == [(trial, epoch) for trial in range(4) for epoch in (1, 2)]
