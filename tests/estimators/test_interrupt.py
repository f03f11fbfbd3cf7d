"""Ctrl-C, SIGTERM and kill -9: what a fit leaves behind, how it is resumed, and that global state is restored."""

from __future__ import annotations

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
from morphnas.run.store import load_run
from morphnas.run.work import work
from morphnas.search.trial import Trial
from morphnas.train.recipe import Outcome
from morphnas.train.step import Step
from morphnas.train.trainer import _Training
from tests.estimators.conftest import Data, stripes
from tests.run.doubles import comparable

ROOT = Path(__file__).parents[2]
ARGS: dict[str, Any] = {
    "default_model_width": 2,
    "default_model_len": 2,
    "trainer_args": {"epochs": 3, "precision": "float32", "examples": None, "augment": morphnas.Augment()},
}
posix = pytest.mark.skipif(os.name != "posix", reason="signals the POSIX way")


def classifier(path: Path, **more: Any) -> ImageClassifier:
    settings: dict[str, Any] = {"random_state": 3, "max_trials": 4, "searcher_args": ARGS, "refit": False}
    return ImageClassifier(path, **(settings | more))


class At:
    """Calls `act` when the method `kind` of a class, by default an observer, is called for the n-th time."""

    def __init__(
        self, patch: pytest.MonkeyPatch, kind: str, n: int, act: Callable[[], object], who: type = Progress
    ) -> None:
        self.left = n
        before = getattr(who, kind)

        def told(one: Any, *what: Trial | Outcome) -> None:
            before(one, *what)
            self.left -= 1
            if self.left == 0:
                act()

        patch.setattr(who, kind, told)


def press(number: int = signal.SIGINT) -> Callable[[], None]:
    return lambda: signal.raise_signal(number)


def test_a_fit_without_time_to_search_does_not_search_when_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither if it ended after its final trainings, nor if it ended before them."""
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
        tried = [trial for trial in load_run(path).trials if not trial.final]
        assert [trial.graph.key for trial in tried] == [graph.key for graph in starts]


# -- Ctrl-C


@posix
def test_ctrl_c_ends_the_fit_with_what_it_has(data: Data, tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        At(patch, "epoch_done", 5, press())  # of the second network, after its second epoch
        with pytest.warns(
            UserWarning, match=r"interrupted: the model is the best.*continue with .*resume=True, \.\.\.\)\.fit\("
        ):
            found = classifier(path).fit(*data)
    first, second = load_run(path).trials
    assert first.outcome is not None
    assert second.outcome is not None
    assert (first.outcome.status, second.outcome.status) == ("finished", "truncated")
    assert second.kept
    assert second.score is not None
    assert second.outcome.epochs == 2
    assert ImageClassifier.load(path).predict(data[0]).tolist() == found.predict(data[0]).tolist()
    classifier(path, resume=True).fit(*data)
    classifier(tmp_path / "whole").fit(*data)
    whole = load_run(tmp_path / "whole").trials
    assert whole[1].epochs == 3
    assert comparable(load_run(path).trials) == comparable(whole)  # as without the interruption


@posix
def test_ctrl_c_in_the_first_epoch_keeps_a_scored_network(data: Data, tmp_path: Path) -> None:
    step, count = Step.__call__, iter(range(9999))

    def stepped(self: Step, *args: Any) -> Any:
        if next(count) == 1:
            signal.raise_signal(signal.SIGINT)
        return step(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "__call__", stepped)
        args = ARGS | {"trainer_args": ARGS["trainer_args"] | {"batch_size": 16}}
        with pytest.warns(UserWarning, match="interrupted"):
            classifier(tmp_path / "run", searcher_args=args).fit(*data)
    (trial,) = load_run(tmp_path / "run").trials
    assert trial.outcome is not None
    assert (trial.outcome.status, trial.outcome.epochs, trial.kept) == ("truncated", 1, True)
    assert trial.score is not None


@posix
def test_ctrl_c_before_there_is_a_network_is_a_keyboard_interrupt(data: Data, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        At(patch, "trial_begins", 1, press())
        with pytest.raises(KeyboardInterrupt):
            classifier(tmp_path / "run").fit(*data)
    classifier(tmp_path / "run", resume=True).fit(*data)


@posix
def test_ctrl_c_twice_ends_it_at_once(data: Data, tmp_path: Path) -> None:
    path = tmp_path / "run"

    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        At(patch, "epoch_done", 5, twice)
        with pytest.raises(KeyboardInterrupt):
            classifier(path).fit(*data)
    assert [trial.outcome is None for trial in load_run(path).trials] == [False, True]
    classifier(path, resume=True).fit(*data)
    classifier(tmp_path / "unbroken").fit(*data)
    assert comparable(load_run(path).trials) == comparable(load_run(tmp_path / "unbroken").trials)


@pytest.mark.parametrize("epochs", [5, 14])
def test_a_device_that_is_gone_ends_the_fit_and_nothing_is_lost(data: Data, tmp_path: Path, epochs: int) -> None:
    """In the second network, and in a final training: both are resumed."""
    path, whole, more = tmp_path / "run", tmp_path / "unbroken", {"refit": True, "max_trials": 4}

    def launch() -> None:
        raise RuntimeError("CUDA error: unspecified launch failure\nwhat helps to find out why")

    with pytest.MonkeyPatch.context() as patch:
        At(patch, "apply_patience", epochs, launch, _Training)  # in the midst of a training
        patch.setattr(worker, "is_device_lost", lambda _: True)
        with pytest.raises(RunError, match=r"process \(CUDA error.*failure\): what .* in .*run, .*resume=True"):
            classifier(path, **more).fit(*data)
    assert [trial.outcome is None for trial in load_run(path).trials].count(True) == 1
    assert not any(trial.outcome and trial.outcome.error for trial in load_run(path).trials)
    classifier(path, resume=True, **more).fit(*data)
    classifier(whole, **more).fit(*data)
    assert comparable(load_run(path).trials) == comparable(load_run(whole).trials)


@pytest.mark.parametrize("epochs", [5, 14])
def test_what_ends_the_device_each_time_has_failed_the_second_time(data: Data, tmp_path: Path, epochs: int) -> None:
    path, more = tmp_path / "run", {"refit": True, "max_trials": 4}

    def launch() -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    for turn in range(2):
        with pytest.MonkeyPatch.context() as patch:
            At(patch, "apply_patience", 1 if turn else epochs, launch, _Training)
            patch.setattr(worker, "is_device_lost", lambda _: True)
            with pytest.raises(RunError, match="does nothing any more"):
                classifier(path, resume=bool(turn), **more).fit(*data)
    (failed,) = [trial for trial in load_run(path).trials if trial.outcome and trial.outcome.status == "failed"]
    assert failed.id == (1 if epochs == 5 else 4)
    assert all(trial.outcome for trial in load_run(path).trials)
    found = classifier(path, resume=True, **more).fit(*data)
    assert found.predict(data[0]).shape == (150,)


@posix
@pytest.mark.parametrize("refit", [False, True])
def test_sigterm_keeps_the_model_and_ends_the_process_as_usual(data: Data, tmp_path: Path, refit: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        At(patch, "epoch_done", 14 if refit else 5, press(signal.SIGTERM))
        with pytest.raises(SystemExit) as end, pytest.warns(UserWarning, match="interrupted"):
            classifier(tmp_path / "run", refit=refit).fit(*data, time_limit=30)
    assert end.value.code == 143
    assert ImageClassifier.load(tmp_path / "run").predict(data[0]).shape == (150,)


@posix
def test_handlers_are_installed_where_nobody_has_other_plans() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stop_on_signals():
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] != before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    with pytest.raises(ZeroDivisionError), stop_on_signals():
        _ = 1 / 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    heard: list[int] = []
    mine = lambda number, _: heard.append(number)  # noqa: E731
    try:
        signal.signal(signal.SIGTERM, mine)
        with stop_on_signals() as stop:
            signal.raise_signal(signal.SIGTERM)
        assert (heard, stop.requested) == ([signal.SIGTERM], False)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with stop_on_signals() as stop:
            signal.raise_signal(signal.SIGTERM)
        assert not stop.requested
    finally:
        signal.signal(signal.SIGTERM, before[1])


def test_another_thread_leaves_signals_alone(data: Data, tmp_path: Path) -> None:
    seen: list[object] = []

    def fit() -> None:
        with stop_on_signals():
            seen.append(signal.getsignal(signal.SIGINT))
        seen.append(classifier(tmp_path / "run", max_trials=1).fit(*data))

    thread = threading.Thread(target=fit)
    thread.start()
    thread.join()
    assert seen[0] == signal.getsignal(signal.SIGINT)
    assert len(seen) == 2


# -- kill -9

DRIVER = """
import os, signal, sys
from pathlib import Path
from morphnas.run import checkpoints
from morphnas.report.progress import Progress
from tests.estimators.conftest import stripes
from tests.estimators.test_interrupt import classifier
checkpoints.MIN_INTERVAL, checkpoints.MAX_TIME_SHARE = 0.0, 1e9
kind, left = sys.argv[2], int(sys.argv[3])
before = getattr(Progress, kind)
def told(*args):
    global left
    before(*args)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
setattr(Progress, kind, told)
classifier(Path(sys.argv[1]), refit=sys.argv[4] == "refit", resume="auto").fit(*stripes(150), time_limit=600)
"""


def driven(path: Path, kind: str, n: int, refit: str = "") -> int:
    command = [sys.executable, "-c", DRIVER, str(path), kind, str(n), refit]
    return subprocess.run(command, cwd=ROOT, check=False, timeout=200).returncode


@posix
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "n"), [("trial_ends", 2), ("epoch_done", 9)])
def test_a_search_that_is_killed_and_resumed_is_the_unbroken_one(
    data: Data, tmp_path: Path, kind: str, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted network goes on from its checkpoint, the searcher as it would have."""
    assert driven(tmp_path / "run", kind, n) == -signal.SIGKILL
    killed = load_run(tmp_path / "run").trials
    assert sum(trial.outcome is not None for trial in killed) == 2
    opened = list((tmp_path / "run").glob("trials/*/checkpoint.safetensors"))
    assert bool(opened) == (kind == "epoch_done")
    resumed = classifier(tmp_path / "run", resume=True).fit(*data, time_limit=600)
    unbroken = classifier(tmp_path / "unbroken").fit(*data, time_limit=600)
    found, expected = (load_run(path).trials for path in (resumed.path_, unbroken.path_))
    assert len(expected) == 4
    assert any(trial.proposal.morphs for trial in expected)
    assert comparable(found) == comparable(expected)
    assert [trial.graph.key for trial in found] == [trial.graph.key for trial in expected]
    assert found[:2] == killed[:2]
    assert (resumed.predict_proba(data[0]) == unbroken.predict_proba(data[0])).all()


def killed_in_a_final(path: Path, monkeypatch: pytest.MonkeyPatch, data: Data, during: str) -> list[Trial]:
    """A fit that ends at once in its final training of that name, after checkpoints."""

    class Killed(BaseException):
        pass

    monkeypatch.setattr(checkpoints, "MIN_INTERVAL", 0.0)
    monkeypatch.setattr(checkpoints, "MAX_TIME_SHARE", 1e9)

    def working(job: Any, task: Any, each_epoch: Any) -> Any:
        names = [t.proposal.why.get("final") for t in load_run(path).trials if t.outcome is None]

        def told(outcome: Outcome) -> None:
            each_epoch(outcome)
            if names == [during] and outcome.epochs == 3:
                raise Killed

        return work(job, task, told)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executors, "work", working)
        patch.setattr(final, "MAX_FINAL_EPOCHS", 6)
        with pytest.raises(Killed):
            classifier(path, refit=True, max_trials=2).fit(*data, time_limit=300)
    return list(load_run(path).trials)


@pytest.mark.parametrize("during", ["inherited", "fresh", "everything"])
def test_a_final_training_goes_on_from_its_checkpoint(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, during: str
) -> None:
    """And those before it, which are done, are not done again."""
    before = killed_in_a_final(tmp_path / "run", monkeypatch, data, during)
    monkeypatch.setattr(final, "MAX_FINAL_EPOCHS", 6)
    epochs: list[int] = []
    told = Progress.epoch_done

    def epoch_done(progress: Any, trial: Trial, outcome: Outcome) -> None:
        epochs.append(outcome.epochs)
        told(progress, trial, outcome)

    monkeypatch.setattr(Progress, "epoch_done", epoch_done)
    found = classifier(tmp_path / "run", refit=True, max_trials=2, resume=True).fit(*data, time_limit=300)
    after = load_run(tmp_path / "run").trials
    assert epochs[0] == 3  # the third epoch, told of when it was killed, is the first after the checkpoint
    assert [t.proposal.why.get("final") for t in after if t.final] == ["inherited", "fresh", "everything"]
    assert all(t.outcome is not None and t.outcome.status == "finished" for t in after)
    assert list(after[: len(before) - 1]) == before[:-1]
    monkeypatch.setattr(checkpoints, "MIN_INTERVAL", 10.0)
    unbroken = classifier(tmp_path / "unbroken", refit=True, max_trials=2).fit(*data, time_limit=300)
    assert comparable(after) == comparable(load_run(unbroken.path_).trials)
    assert (found.predict_proba(data[0]) == unbroken.predict_proba(data[0])).all()
    classifier(tmp_path / "run", refit=True, max_trials=2, resume=True).fit(*data, time_limit=300)
    assert sum(trial.final for trial in load_run(tmp_path / "run").trials) == 6  # a fit that came to its end is over


def test_a_final_training_that_can_be_much_longer_now_begins_anew(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    killed_in_a_final(tmp_path / "run", monkeypatch, data, "inherited")
    monkeypatch.setattr(final, "MAX_FINAL_EPOCHS", 14)
    with caplog.at_level(logging.INFO, "morphnas"):
        classifier(tmp_path / "run", refit=True, max_trials=2, resume=True).fit(*data, time_limit=300)
    assert "is not continued: there is time for a much longer training now" in caplog.text
    after = [t for t in load_run(tmp_path / "run").trials if t.final]
    assert after[0].outcome is not None
    assert after[0].outcome.error == "interrupted, and then no longer needed"
    assert len(after) == 4


# -- going on with something else


@pytest.mark.parametrize(
    ("changes", "words"),
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
def test_other_settings_are_refused_by_name(data: Data, tmp_path_factory: Any, changes: Any, words: str) -> None:
    path = _begun(data, tmp_path_factory)
    with pytest.raises(RunError, match=f"holds a run with other settings: .*{words}"):
        classifier(path, **({"resume": True} | changes)).fit(*data)


SETTINGS: list[dict[str, Any]] = [
    {"limits": {"max_params": 999_999}},
    {"limits": morphnas.Limits(max_latency_ms=50.0, morphs=("deeper", "wider"))},
    {"searcher_args": {"trainer_args": {"augment": morphnas.Augment(shift=0.1), "lr": np.float32(0.1)}}},
    {"image_size": (8, 8), "axes": ("time", "channels")},
    {"initial_networks": (morphnas.graph.cnn((1, 6, 6), 3, width=3, depth=1),)},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_settings_are_the_same_when_they_have_been_read_again(settings: dict[str, Any]) -> None:
    decides = fixed_settings(ImageClassifier(**settings).get_params(deep=False))
    assert json.loads(json.dumps(decides)) == decides


@pytest.mark.parametrize("settings", SETTINGS[:2])
def test_the_same_limits_are_taken(data: Data, tmp_path: Path, settings: dict[str, Any]) -> None:
    classifier(tmp_path / "run", max_trials=1, **settings).fit(*data)
    found = classifier(tmp_path / "run", max_trials=2, resume=True, **settings).fit(*data)
    assert len(found.load_searcher().trials) == 2


def test_of_many_limits_those_that_differ_are_named(data: Data, tmp_path: Path) -> None:
    classifier(tmp_path / "run", max_trials=1, limits={"max_params": 999_999}).fit(*data)
    with pytest.raises(RunError, match=r"limits was {'max_depth': None} and is {'max_depth': 9};"):
        classifier(tmp_path / "run", resume=True, limits={"max_params": 999_999, "max_depth": 9}).fit(*data)


_RUNS: list[Path] = []


def _begun(data: Data, tmp_path_factory: Any) -> Path:
    """A run of one network, made once."""
    if not _RUNS:
        path = Path(tmp_path_factory.mktemp("begun")) / "run"
        classifier(path, max_trials=1).fit(*data)
        _RUNS.append(path)
    return _RUNS[0]


def test_what_decides_nothing_may_change(data: Data, tmp_path_factory: Any) -> None:
    path = _begun(data, tmp_path_factory)
    same: dict[str, Any] = {"search_type": "bayesian", "initial_networks": [], "random_state": None}
    free = {"time_limit": 99, "max_trials": 2, "verbose": False, "device": "cpu", "refit": False, "keep": 2}
    classifier(path, resume=True, **(same | free)).fit(*data)
    assert len(load_run(path).trials) == 2


def test_other_validation_data_are_other_data(data: Data, tmp_path: Path) -> None:
    x, y = data
    path = tmp_path / "run"
    classifier(path, max_trials=1).fit(x[:100], y[:100], validation_data=(x[100:], y[100:]))
    again = classifier(path, max_trials=1, resume=True)
    for other in (None, (x[101:], y[101:]), (x[100:], y[100:][::-1]), (255 - x[100:], y[100:])):
        with pytest.raises(RunError, match="other data"):
            again.fit(x[:100], y[:100], validation_data=other)
    again.fit(x[:100], y[:100], validation_data=(x[100:], y[100:]))
    with pytest.raises(RunError, match="other data"):
        again.fit(x[:100], y[:100].astype(str), validation_data=(x[100:], y[100:].astype(str)))


# -- manners


def world() -> dict[str, Any]:
    """Global state, which belongs to the user."""
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
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "folder": Path.cwd(),
        "warnings": list(warnings.filters),
        "logging": (root.level, list(root.handlers), logging.lastResort, logging.root.manager.disable),
        "ours": (logging.getLogger("morphnas").level, list(logging.getLogger("morphnas").handlers)),
        "environment": dict(os.environ),
        "errors": np.geterr(),
        "hooks": (sys.excepthook, threading.excepthook),
        "alive": sorted(thread.name for thread in threading.enumerate()),
    }  # fmt: skip


@pytest.mark.parametrize("end", ["well", "interrupted", "no network", "no disk"])
def test_the_world_is_as_it_was(data: Data, tmp_path: Path, end: str) -> None:
    classifier(tmp_path / "first", max_trials=1).fit(*data, time_limit=8)  # what PyTorch loads late changes it, once
    random.seed(1), np.random.seed(2), torch.manual_seed(3)  # noqa: NPY002
    before = world()
    with pytest.MonkeyPatch.context() as patch:
        fit = classifier(tmp_path / "run", refit=True, max_trials=2, verbose=True, keep=1)
        if end == "interrupted":
            At(patch, "epoch_done", 4, press())
            with pytest.warns(UserWarning, match="interrupted"):
                fit.fit(*data, time_limit=8)
        elif end == "well":
            fit.fit(*data, time_limit=8)
            fit.predict(data[0])
        else:
            no_network = (executors, "work", MemoryError("none"))
            module, at, error = (
                no_network if end == "no network" else (morphnas.run.search, "prune", RunError("disk full"))
            )
            patch.setattr(module, at, lambda *_: (_ for _ in ()).throw(error))
            with pytest.raises(RunError):
                fit.fit(*data, time_limit=8)
    assert world() == before


# -- what is kept


def test_the_folder_stays_small(data: Data, tmp_path: Path) -> None:
    path = tmp_path / "run"
    found = classifier(path, max_trials=9, keep=1, refit=True).fit(*data, time_limit=8)
    run = load_run(path)
    kept = {trial.id for trial in run.trials if trial.kept}
    assert {found.best_trial_, found.final_trial_} <= kept
    searched = [trial for trial in run.trials if not trial.final]
    assert max(searched, key=lambda trial: trial.score or -9).id in kept
    assert len(kept) <= 6
    assert len(list(path.glob("trials/*/weights.safetensors"))) == len(kept)
    gone = next(trial for trial in searched if trial.id not in kept)
    with pytest.raises(RunError, match="they were not kept"):
        run.load_model_by_id(gone.id)
    found.final_fit(*data, time_limit=1)
    classifier(path, max_trials=10, keep=1, refit=False, resume=True).fit(*data)


@pytest.mark.parametrize("keep", [0, -1, True, "best", 1.5, None])
def test_what_is_kept_is_all_or_a_number(keep: Any, data: Data) -> None:
    with pytest.raises(ValueError, match='keep must be "all" or a positive integer'):
        ImageClassifier(keep=keep).fit(*data)


# -- for long


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory and files the Linux way")
def test_hundreds_of_trials_leave_memory_and_files_as_they_were(tmp_path: Path) -> None:
    x, y = stripes(60)
    seen: list[tuple[int, int]] = []

    def note(*_: object) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        seen.append((pages * os.sysconf("SC_PAGE_SIZE"), len(list(Path("/proc/self/fd").iterdir()))))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "trial_ends", note)
        args = ARGS | {"trainer_args": ARGS["trainer_args"] | {"epochs": 1}}
        small = {"max_params": 20_000, "max_depth": 8}  # so that memory tells of leaks, not of larger networks
        settings = {"max_trials": 300, "searcher_args": args, "search_type": "random", "limits": small}
        classifier(tmp_path / "run", **settings).fit(x, y, time_limit=280)
    assert len(seen) == 300
    memory, files = zip(*seen, strict=True)
    assert max(files[20:]) == min(files[20:])
    grown = float(np.polyfit(range(200), memory[100:], 1)[0]) * 200
    assert grown < 30e6, f"{grown / 1e6:.1f} MB more in 200 trials"


def test_only_weights_that_are_kept_are_there_while_it_searches_and_afterwards(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search does not wait with that for the end, and final trainings leave the last one's and its start's alone."""
    path, seen = tmp_path / "run", list[int]()
    told = Progress.trial_ends

    def trial_ends(progress: Progress, trial: Trial) -> None:
        told(progress, trial)
        if not trial.final:
            seen.append(len(list(path.glob("trials/*/weights.safetensors"))))

    monkeypatch.setattr(Progress, "trial_ends", trial_ends)
    monkeypatch.setattr(final, "MAX_FINAL_EPOCHS", 3)
    found = classifier(path, max_trials=6, keep=1, refit=True).fit(*data, time_limit=100)
    assert len(seen) == 6
    assert max(seen) <= 3
    kept = {trial.id for trial in load_run(path).trials if trial.final and trial.kept}
    whole = load_run(path).trial(found.final_trial_)
    assert kept <= {whole.id, whole.proposal.why.get("score_of")}
