"""Ctrl-C, SIGTERM and kill -9: what a fit leaves behind, how it is resumed, and that global state is restored."""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import morphnas
from morphnas import ImageClassifier
from morphnas.estimators.settings import fixed_settings
from morphnas.graph import cnn, resnet
from morphnas.report.progress import Progress
from morphnas.run import checkpoints, executors, final, plan
from morphnas.run import work as worker
from morphnas.run.files import RunError
from morphnas.run.interrupt import stop_on_signals
from morphnas.run.jobs import Job
from morphnas.run.store import load_run
from morphnas.run.work import work
from morphnas.search.trial import Trial
from morphnas.train.data import Task
from morphnas.train.recipe import Outcome
from morphnas.train.step import Step
from morphnas.train.trainer import EachEpoch, _Training
from tests.estimators.conftest import Data, stripes
from tests.run.doubles import comparable_trials

ROOT = Path(__file__).parents[2]
ARGS: dict[str, Any] = {
    "default_model_width": 2,
    "default_model_len": 2,
    "trainer_args": {"epochs": 3, "precision": "float32", "examples": None, "augment": morphnas.Augment()},
}
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")


def classifier(path: Path, **changes: Any) -> ImageClassifier:
    settings: dict[str, Any] = {"random_state": 3, "max_trials": 4, "searcher_args": ARGS, "refit": False}
    return ImageClassifier(path, **(settings | changes))


def at_call(patch: pytest.MonkeyPatch, name: str, n: int, action: Callable[[], object], owner: type = Progress) -> None:
    """Have `action` called after the n-th call of a method, by default of an observer."""
    method, calls = getattr(owner, name), itertools.count(1)

    def call_and_act(instance: Any, *args: Trial | Outcome) -> None:
        method(instance, *args)
        if next(calls) == n:
            action()

    patch.setattr(owner, name, call_and_act)


def signal_handlers() -> list[Any]:
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def send(number: int = signal.SIGINT) -> Callable[[], None]:
    """A function that sends a signal to this process."""
    return lambda: signal.raise_signal(number)


def test_resumed_fit_without_time_to_search_does_not_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it was interrupted before its final trainings, or had ended."""
    monkeypatch.setattr(plan, "MIN_SEARCH_NETWORKS", 1000)
    monkeypatch.setattr(final, "MAX_FINAL_EPOCHS", 2)
    path, data = tmp_path / "run", stripes(120)
    starts = [cnn((1, 6, 6), 3, width=2), resnet((1, 6, 6), 3, width=2)]
    settings: dict[str, Any] = {"initial_networks": starts, "device": "cpu", "random_state": 1}
    settings["searcher_args"] = {"trainer_args": ARGS["trainer_args"]}
    with monkeypatch.context() as patch:
        patch.setattr(final.Final, "run", lambda _: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception, match="killed"):
            ImageClassifier(path, **settings).fit(*data, time_limit=20)
    for _ in range(2):
        ImageClassifier(path, **settings, resume=True).fit(*data, time_limit=20)
        searched = [trial for trial in load_run(path).trials if not trial.final]
        assert [trial.graph.key for trial in searched] == [graph.key for graph in starts]


# -- Ctrl-C


@posix
def test_ctrl_c_ends_fit_with_best_network_so_far(data: Data, tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, "epoch_done", 5, send())  # after the second epoch of the second network
        with pytest.warns(
            UserWarning, match=r"interrupted: the model is the best.*continue with .*resume=True, \.\.\.\)\.fit\("
        ):
            interrupted = classifier(path).fit(*data)
    first, second = load_run(path).trials
    assert first.outcome is not None
    assert second.outcome is not None
    assert (first.outcome.status, second.outcome.status) == ("finished", "truncated")
    assert second.kept
    assert second.score is not None
    assert second.outcome.epochs == 2
    assert ImageClassifier.load(path).predict(data[0]).tolist() == interrupted.predict(data[0]).tolist()
    classifier(path, resume=True).fit(*data)
    classifier(tmp_path / "uninterrupted").fit(*data)
    uninterrupted = load_run(tmp_path / "uninterrupted").trials
    assert uninterrupted[1].epochs == 3
    assert comparable_trials(load_run(path).trials) == comparable_trials(uninterrupted)


@posix
def test_ctrl_c_in_the_first_epoch_keeps_a_scored_network(data: Data, tmp_path: Path) -> None:
    step, calls = Step.__call__, itertools.count(1)

    def interrupt_second_step(self: Step, *args: Any) -> Any:
        if next(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return step(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "__call__", interrupt_second_step)
        args = ARGS | {"trainer_args": ARGS["trainer_args"] | {"batch_size": 16}}
        with pytest.warns(UserWarning, match="interrupted"):
            classifier(tmp_path / "run", searcher_args=args).fit(*data)
    (trial,) = load_run(tmp_path / "run").trials
    assert trial.outcome is not None
    assert (trial.outcome.status, trial.outcome.epochs, trial.kept) == ("truncated", 1, True)
    assert trial.score is not None


@posix
def test_ctrl_c_without_a_network_raises_keyboard_interrupt(data: Data, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, "trial_begins", 1, send())
        with pytest.raises(KeyboardInterrupt):
            classifier(tmp_path / "run").fit(*data)
    classifier(tmp_path / "run", resume=True).fit(*data)


@posix
def test_second_ctrl_c_ends_fit_at_once(data: Data, tmp_path: Path) -> None:
    path = tmp_path / "run"

    def send_twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, "epoch_done", 5, send_twice)
        with pytest.raises(KeyboardInterrupt):
            classifier(path).fit(*data)
    assert [trial.outcome is None for trial in load_run(path).trials] == [False, True]
    classifier(path, resume=True).fit(*data)
    classifier(tmp_path / "uninterrupted").fit(*data)
    assert comparable_trials(load_run(path).trials) == comparable_trials(load_run(tmp_path / "uninterrupted").trials)


@pytest.mark.parametrize("epochs", [5, 14])
def test_lost_device_ends_fit_which_can_be_resumed(data: Data, tmp_path: Path, epochs: int) -> None:
    """In the second network, and in a final training."""
    path, uninterrupted, settings = tmp_path / "run", tmp_path / "uninterrupted", {"refit": True, "max_trials": 4}

    def fail() -> None:
        raise RuntimeError("CUDA error: unspecified launch failure\nhints for debugging")

    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, "apply_patience", epochs, fail, _Training)  # in the middle of a training
        patch.setattr(worker, "is_device_lost", lambda _: True)
        with pytest.raises(RunError, match=r"use it \(CUDA error.*failure\): the networks .* in .*run; .*resume=True"):
            classifier(path, **settings).fit(*data)
    assert [trial.outcome is None for trial in load_run(path).trials].count(True) == 1
    assert not any(trial.outcome and trial.outcome.error for trial in load_run(path).trials)
    classifier(path, resume=True, **settings).fit(*data)
    classifier(uninterrupted, **settings).fit(*data)
    assert comparable_trials(load_run(path).trials) == comparable_trials(load_run(uninterrupted).trials)


@pytest.mark.parametrize("epochs", [5, 14])
def test_training_that_loses_device_twice_has_failed(data: Data, tmp_path: Path, epochs: int) -> None:
    path, settings = tmp_path / "run", {"refit": True, "max_trials": 4}

    def fail() -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    for resume in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            at_call(patch, "apply_patience", 1 if resume else epochs, fail, _Training)
            patch.setattr(worker, "is_device_lost", lambda _: True)
            with pytest.raises(RunError, match="this process can no longer use it"):
                classifier(path, resume=resume, **settings).fit(*data)
    (failed,) = [trial for trial in load_run(path).trials if trial.outcome and trial.outcome.status == "failed"]
    assert failed.id == (1 if epochs == 5 else 4)
    assert all(trial.outcome for trial in load_run(path).trials)
    resumed = classifier(path, resume=True, **settings).fit(*data)
    assert resumed.predict(data[0]).shape == (150,)


@posix
@pytest.mark.parametrize("refit", [False, True])
def test_sigterm_keeps_model_and_exits_with_143(data: Data, tmp_path: Path, refit: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, "epoch_done", 14 if refit else 5, send(signal.SIGTERM))
        with pytest.raises(SystemExit) as exit_info, pytest.warns(UserWarning, match="interrupted"):
            classifier(tmp_path / "run", refit=refit).fit(*data, time_limit=30)
    assert exit_info.value.code == 143
    assert ImageClassifier.load(tmp_path / "run").predict(data[0]).shape == (150,)


@posix
def test_signal_handlers_are_restored() -> None:
    before = signal_handlers()
    with stop_on_signals():
        assert all(now != then for now, then in zip(signal_handlers(), before, strict=True))
    assert signal_handlers() == before
    with pytest.raises(ZeroDivisionError), stop_on_signals():
        _ = 1 / 0
    assert signal_handlers() == before


@posix
def test_signal_handlers_of_user_are_not_replaced() -> None:
    received: list[int] = []
    before = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
        with stop_on_signals() as stop:
            signal.raise_signal(signal.SIGTERM)
        assert (received, stop.requested) == ([signal.SIGTERM], False)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with stop_on_signals() as stop:
            signal.raise_signal(signal.SIGTERM)
        assert not stop.requested
    finally:
        signal.signal(signal.SIGTERM, before)


def test_fit_in_another_thread_keeps_signal_handlers(data: Data, tmp_path: Path) -> None:
    results: list[object] = []

    def fit() -> None:
        with stop_on_signals():
            results.append(signal_handlers())
        results.append(classifier(tmp_path / "run", max_trials=1).fit(*data))

    thread = threading.Thread(target=fit)
    thread.start()
    thread.join()
    assert results[0] == signal_handlers()
    assert len(results) == 2, "the fit has ended"


# -- kill -9

KILLED_FIT = """
import os, signal, sys
from pathlib import Path
import pytest
from morphnas.run import checkpoints
from tests.estimators.conftest import stripes
from tests.estimators.test_interrupt import at_call, classifier
checkpoints.MIN_INTERVAL, checkpoints.MAX_TIME_SHARE = 0.0, 1e9
path, method, n = sys.argv[1:]
with pytest.MonkeyPatch.context() as patch:
    at_call(patch, method, int(n), lambda: os.kill(os.getpid(), signal.SIGKILL))
    classifier(Path(path), resume="auto").fit(*stripes(150), time_limit=600)
"""


def run_killed_fit(path: Path, method: str, n: int) -> int:
    """The exit status of a process that kills itself after the n-th call of a method of the observer."""
    command = [sys.executable, "-c", KILLED_FIT, str(path), method, str(n)]
    return subprocess.run(command, cwd=ROOT, check=False, timeout=200).returncode


@posix
@pytest.mark.slow
@pytest.mark.parametrize(("method", "n"), [("trial_ends", 2), ("epoch_done", 9)])
def test_killed_and_resumed_search_equals_uninterrupted(data: Data, tmp_path: Path, method: str, n: int) -> None:
    """An interrupted training continues from its checkpoint, the searcher as it would have."""
    assert run_killed_fit(tmp_path / "run", method, n) == -signal.SIGKILL
    killed = load_run(tmp_path / "run").trials
    assert sum(trial.outcome is not None for trial in killed) == 2
    written = list((tmp_path / "run").glob("trials/*/checkpoint.safetensors"))
    assert bool(written) == (method == "epoch_done")
    resumed = classifier(tmp_path / "run", resume=True).fit(*data, time_limit=600)
    uninterrupted = classifier(tmp_path / "uninterrupted").fit(*data, time_limit=600)
    trials, expected = (load_run(path).trials for path in (resumed.path_, uninterrupted.path_))
    assert len(expected) == 4
    assert any(trial.proposal.morphs for trial in expected)
    assert comparable_trials(trials) == comparable_trials(expected)
    assert [trial.graph.key for trial in trials] == [trial.graph.key for trial in expected]
    assert trials[:2] == killed[:2]
    assert (resumed.predict_proba(data[0]) == uninterrupted.predict_proba(data[0])).all()


def kill_in_final_training(path: Path, monkeypatch: pytest.MonkeyPatch, data: Data, kind: str) -> list[Trial]:
    """The trials of a fit that was killed in its final training of that kind, after checkpoints."""

    class Killed(BaseException):
        pass

    monkeypatch.setattr(checkpoints, "MIN_INTERVAL", 0.0)
    monkeypatch.setattr(checkpoints, "MAX_TIME_SHARE", 1e9)

    def work_until_killed(job: Job, task: Task, each_epoch: EachEpoch) -> Any:
        kinds = [t.proposal.why.get("final") for t in load_run(path).trials if t.outcome is None]

        def report_epoch(outcome: Outcome) -> None:
            each_epoch(outcome)
            if kinds == [kind] and outcome.epochs == 3:
                raise Killed

        return work(job, task, report_epoch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executors, "work", work_until_killed)
        patch.setattr(final, "MAX_FINAL_EPOCHS", 6)
        with pytest.raises(Killed):
            classifier(path, refit=True, max_trials=2).fit(*data, time_limit=300)
    return list(load_run(path).trials)


@pytest.mark.parametrize("kind", ["inherited", "fresh", "everything"])
def test_final_training_continues_from_its_checkpoint(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Earlier final trainings, which had ended, are not repeated."""
    before = kill_in_final_training(tmp_path / "run", monkeypatch, data, kind)
    monkeypatch.setattr(final, "MAX_FINAL_EPOCHS", 6)
    epochs: list[int] = []
    epoch_done = Progress.epoch_done

    def record_epoch(progress: Any, trial: Trial, outcome: Outcome) -> None:
        epochs.append(outcome.epochs)
        epoch_done(progress, trial, outcome)

    monkeypatch.setattr(Progress, "epoch_done", record_epoch)
    resumed = classifier(tmp_path / "run", refit=True, max_trials=2, resume=True).fit(*data, time_limit=300)
    after = load_run(tmp_path / "run").trials
    assert epochs[0] == 3  # the epoch in which it was killed, the first after the checkpoint
    assert [t.proposal.why.get("final") for t in after if t.final] == ["inherited", "fresh", "everything"]
    assert all(t.outcome is not None and t.outcome.status == "finished" for t in after)
    assert list(after[: len(before) - 1]) == before[:-1]
    monkeypatch.setattr(checkpoints, "MIN_INTERVAL", 10.0)
    uninterrupted = classifier(tmp_path / "uninterrupted", refit=True, max_trials=2).fit(*data, time_limit=300)
    assert comparable_trials(after) == comparable_trials(load_run(uninterrupted.path_).trials)
    assert (resumed.predict_proba(data[0]) == uninterrupted.predict_proba(data[0])).all()
    classifier(tmp_path / "run", refit=True, max_trials=2, resume=True).fit(*data, time_limit=300)
    assert sum(trial.final for trial in load_run(tmp_path / "run").trials) == 6  # an ended fit trains anew


def test_final_training_restarts_if_it_can_be_much_longer(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kill_in_final_training(tmp_path / "run", monkeypatch, data, "inherited")
    monkeypatch.setattr(final, "MAX_FINAL_EPOCHS", 14)
    with caplog.at_level(logging.INFO, "morphnas"):
        classifier(tmp_path / "run", refit=True, max_trials=2, resume=True).fit(*data, time_limit=300)
    assert "is not continued: there is time for a much longer training now" in caplog.text
    after = [t for t in load_run(tmp_path / "run").trials if t.final]
    assert after[0].outcome is not None
    assert after[0].outcome.error == "interrupted, and then no longer needed"
    assert len(after) == 4


# -- resuming with other arguments


@pytest.fixture(scope="module")
def run_folder(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one network or two, which tests may resume."""
    path = Path(tmp_path_factory.mktemp("runs")) / "run"
    classifier(path, max_trials=1).fit(*data)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment": True, "searcher_args": None}, "augment was None and is True, searcher_args was"),
        ({"searcher_args": None}, "searcher_args was"),
        ({"search_type": "random"}, "search_type was 'bayesian' and is 'random'"),
        ({"limits": {"max_params": 999_999}}, "limits was None"),
        ({"random_state": 4}, "random_state was 3 and is 4"),
        ({"image_size": 8}, "image_size was None and is \\[8, 8\\]"),
        ({"initial_networks": [morphnas.graph.cnn((1, 6, 6), 3, width=3, depth=1)]}, "initial_networks was None"),
        ({"max_memory": 10**9, "axes": 2}, "axes was .* max_memory was None and is 1000000000"),
    ],
)
def test_changed_settings_are_rejected_by_name(data: Data, run_folder: Path, changes: Any, message: str) -> None:
    with pytest.raises(RunError, match=f"holds a run with other settings: .*{message}"):
        classifier(run_folder, **({"resume": True} | changes)).fit(*data)


SETTINGS: list[dict[str, Any]] = [
    {"limits": {"max_params": 999_999}},
    {"limits": morphnas.Limits(max_latency_ms=50.0, morphs=("deeper", "wider"))},
    {"searcher_args": {"trainer_args": {"augment": morphnas.Augment(shift=0.1), "lr": np.float32(0.1)}}},
    {"image_size": (8, 8), "axes": ("time", "channels")},
    {"initial_networks": (morphnas.graph.cnn((1, 6, 6), 3, width=3, depth=1),)},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_fixed_settings_survive_json(settings: dict[str, Any]) -> None:
    fixed = fixed_settings(ImageClassifier(**settings).get_params(deep=False))
    assert json.loads(json.dumps(fixed)) == fixed


@pytest.mark.parametrize("settings", SETTINGS[:2])
def test_resume_accepts_equal_limits(data: Data, tmp_path: Path, settings: dict[str, Any]) -> None:
    classifier(tmp_path / "run", max_trials=1, **settings).fit(*data)
    resumed = classifier(tmp_path / "run", max_trials=2, resume=True, **settings).fit(*data)
    assert len(resumed.load_searcher().trials) == 2


def test_resume_names_only_changed_limits(data: Data, tmp_path: Path) -> None:
    classifier(tmp_path / "run", max_trials=1, limits={"max_params": 999_999}).fit(*data)
    with pytest.raises(RunError, match=r"limits was {'max_depth': None} and is {'max_depth': 9};"):
        classifier(tmp_path / "run", resume=True, limits={"max_params": 999_999, "max_depth": 9}).fit(*data)


def test_resume_accepts_changes_of_other_settings(data: Data, run_folder: Path) -> None:
    equivalent: dict[str, Any] = {"search_type": "bayesian", "initial_networks": [], "random_state": None}
    others = {"time_limit": 99, "max_trials": 2, "verbose": False, "device": "cpu", "refit": False, "keep": 2}
    classifier(run_folder, resume=True, **(equivalent | others)).fit(*data)
    assert len(load_run(run_folder).trials) == 2


def test_resume_rejects_other_validation_data(data: Data, tmp_path: Path) -> None:
    x, y = data
    path = tmp_path / "run"
    classifier(path, max_trials=1).fit(x[:100], y[:100], validation_data=(x[100:], y[100:]))
    resumed = classifier(path, max_trials=1, resume=True)
    for other in (None, (x[101:], y[101:]), (x[100:], y[100:][::-1]), (255 - x[100:], y[100:])):
        with pytest.raises(RunError, match="other data"):
            resumed.fit(x[:100], y[:100], validation_data=other)
    resumed.fit(x[:100], y[:100], validation_data=(x[100:], y[100:]))
    with pytest.raises(RunError, match="other data"):
        resumed.fit(x[:100], y[:100].astype(str), validation_data=(x[100:], y[100:].astype(str)))


# -- global state


def global_state() -> dict[str, Any]:
    root = logging.getLogger()
    return {
        "python": random.getstate(),
        "numpy": [str(part) for part in np.random.get_state()],  # noqa: NPY002
        "torch": torch.get_rng_state().tolist(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "flags": (
            torch.are_deterministic_algorithms_enabled(), torch.get_default_dtype(), torch.is_grad_enabled(),
            torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.get_float32_matmul_precision(),
            torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled(),
        ),
        "signals": signal_handlers(),
        "folder": Path.cwd(),
        "warnings": list(warnings.filters),
        "logging": (root.level, list(root.handlers), logging.lastResort, logging.root.manager.disable),
        "logger": (logging.getLogger("morphnas").level, list(logging.getLogger("morphnas").handlers)),
        "environment": dict(os.environ),
        "errors": np.geterr(),
        "hooks": (sys.excepthook, threading.excepthook),
        "threads alive": sorted(thread.name for thread in threading.enumerate()),
    }  # fmt: skip


@pytest.mark.parametrize("end", ["success", "interrupt", "no network", "disk full"])
def test_fit_restores_global_state(data: Data, tmp_path: Path, end: str) -> None:
    classifier(tmp_path / "first", max_trials=1).fit(*data, time_limit=8)  # late imports of PyTorch change it, once
    random.seed(1), np.random.seed(2), torch.manual_seed(3)  # noqa: NPY002
    before = global_state()
    estimator = classifier(tmp_path / "run", refit=True, max_trials=2, verbose=True, keep=1)
    with pytest.MonkeyPatch.context() as patch:
        if end == "interrupt":
            at_call(patch, "epoch_done", 4, send())
            with pytest.warns(UserWarning, match="interrupted"):
                estimator.fit(*data, time_limit=8)
        elif end == "success":
            estimator.fit(*data, time_limit=8)
            estimator.predict(data[0])
        else:
            out_of_memory = (executors, "work", MemoryError("none"))
            disk_full = (morphnas.run.search, "prune", RunError("disk full"))
            module, name, error = out_of_memory if end == "no network" else disk_full
            patch.setattr(module, name, lambda *_: (_ for _ in ()).throw(error))
            with pytest.raises(RunError):
                estimator.fit(*data, time_limit=8)
    assert global_state() == before


# -- weights that are kept


def test_keep_limits_stored_weights(data: Data, tmp_path: Path) -> None:
    path = tmp_path / "run"
    estimator = classifier(path, max_trials=9, keep=1, refit=True).fit(*data, time_limit=8)
    run = load_run(path)
    kept = {trial.id for trial in run.trials if trial.kept}
    assert {estimator.best_trial_, estimator.final_trial_} <= kept
    searched = [trial for trial in run.trials if not trial.final]
    assert max(searched, key=lambda trial: trial.score or -9).id in kept
    assert len(kept) <= 6
    assert len(list(path.glob("trials/*/weights.safetensors"))) == len(kept)
    deleted = next(trial for trial in searched if trial.id not in kept)
    with pytest.raises(RunError, match="they were not kept"):
        run.load_model_by_id(deleted.id)
    estimator.final_fit(*data, time_limit=1)
    classifier(path, max_trials=10, keep=1, refit=False, resume=True).fit(*data)


def test_keep_deletes_weights_during_search_and_afterwards(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the final trainings, only the last one and the one that scores it keep their weights."""
    path, counts = tmp_path / "run", list[int]()
    trial_ends = Progress.trial_ends

    def count_weights(progress: Progress, trial: Trial) -> None:
        trial_ends(progress, trial)
        if not trial.final:
            counts.append(len(list(path.glob("trials/*/weights.safetensors"))))

    monkeypatch.setattr(Progress, "trial_ends", count_weights)
    monkeypatch.setattr(final, "MAX_FINAL_EPOCHS", 3)
    estimator = classifier(path, max_trials=6, keep=1, refit=True).fit(*data, time_limit=100)
    assert len(counts) == 6
    assert max(counts) <= 3
    kept = {trial.id for trial in load_run(path).trials if trial.final and trial.kept}
    last = load_run(path).trial(estimator.final_trial_)
    assert last.id in kept
    assert kept <= {last.id, last.proposal.why.get("score_of")}


# -- long searches


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory and open files from Linux's /proc")
def test_long_search_leaks_neither_memory_nor_files(tmp_path: Path) -> None:
    x, y = stripes(60)
    usage: list[tuple[int, int]] = []  # bytes and open files

    def record(*_: object) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        usage.append((pages * os.sysconf("SC_PAGE_SIZE"), len(list(Path("/proc/self/fd").iterdir()))))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "trial_ends", record)
        args = ARGS | {"trainer_args": ARGS["trainer_args"] | {"epochs": 1}}
        small = {"max_params": 20_000, "max_depth": 8}  # so that memory grows by leaks only, not by larger networks
        settings = {"max_trials": 300, "searcher_args": args, "search_type": "random", "limits": small}
        classifier(tmp_path / "run", **settings).fit(x, y, time_limit=280)
    assert len(usage) == 300
    memory, files = zip(*usage, strict=True)
    assert max(files[20:]) == min(files[20:])
    growth = float(np.polyfit(range(200), memory[100:], 1)[0]) * 200
    assert growth < 30e6, f"{growth / 1e6:.1f} MB more in 200 trials"
