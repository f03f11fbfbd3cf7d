"""Tests of the run folder: writing and reading, crashes and damaged files, the lock, and files of others."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save

from morphnas import explain, write_report
from morphnas.graph import Conv, Deeper, MorphError, Network, ReLU, Wider, cnn, mlp
from morphnas.graph import morphs as morphs_module
from morphnas.run import files as files_module
from morphnas.run import store as store_module
from morphnas.run.files import RunError, read_json, write_bytes, write_json
from morphnas.run.store import (
    FORMAT,
    Store,
    is_being_written,
    load_model,
    load_run,
    proposal_from_json,
    proposal_to_json,
    user_path,
    versions,
)
from morphnas.search import winner
from morphnas.search.trial import Proposal, Trial, grow_proposal, lineage
from morphnas.train.recipe import Augment, Epoch, Outcome, Recipe
from tests.run.doubles import (
    FINISHED,
    GRAPH,
    RECIPE,
    comparable_trials,
    file_contents,
    has_weights,
    new_store,
    proposals,
    resumed_store,
    weights,
)
from tests.run.failing_morph import FailingMorph

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run"


def temporary_files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.name.startswith(".") or file.name.endswith(".tmp")]


def edit_json(file: Path, **changes: Any) -> None:
    """Replace entries of a JSON file, without the store."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def finish_trials(store: Store, n: int) -> None:
    """Claim and finish the first `n` trials, each with weights seeded by its id."""
    for i, proposal in enumerate(proposals(n)):
        store.finish(i, FINISHED, weights(i, store.claim(proposal).graph))


def test_unknown_trial_id_raises(path: Path) -> None:
    with new_store(path) as store:
        trials = [store.claim(proposal) for proposal in proposals(2)]
        assert [store.trial(0), store.trial(1)] == store.trials == trials
        for method in (store.trial, store.network):
            with pytest.raises(RunError, match="there is no trial 2 in "):
                method(2)


def test_resume_removes_leftover_task_folders(path: Path, tmp_path: Path) -> None:
    """Killed workers leave such folders; those that may hold other files, and links, are not removed."""
    Store.create(path, {}).close()
    names = ["morphnas-abcd_123", "morphnas-12345678", "morphnas-mine", "morphnas-a_run_of", "morphnas-linked_x"]
    leftover, empty, mine, run, link = (path / name for name in names)
    linked = tmp_path / "linked"
    for folder in (leftover, empty, mine, run, linked):
        folder.mkdir()
    for file in (leftover / "task.pt", mine / "task.pt", run / "run.json", linked / "task.pt"):
        file.touch()
    link.symlink_to(linked)
    Store.resume(path).close()
    assert sorted(path.glob("morphnas-*")) == sorted([mine, run, link])
    assert (linked / "task.pt").exists()


# -- writing and reading


def test_start_weights_survive_resume_but_not_overwrite(path: Path) -> None:
    given, other = Network(GRAPH, weights(5)), mlp((4,), 2, width=9, depth=1)
    with new_store(path) as store:
        assert store.start(GRAPH) is GRAPH
        store.add_start_weights(given)
    with resumed_store(path) as store:
        found = store.start(GRAPH)
        assert isinstance(found, Network)
        assert has_weights(found, weights(5))
        assert store.has_start_weights(GRAPH)
        assert not store.has_start_weights(other)
        assert store.start(other) is other
        (file,) = (path / "starts").iterdir()
        file.write_bytes(b"damaged")
        with pytest.raises(RunError, match=f"{file.name} does not hold this network's weights"):
            store.start(GRAPH)
    with new_store(path.with_name("other")) as store:
        (store.path / "starts").symlink_to(path / "starts")
        with pytest.raises(RunError, match="points outside"):
            store.add_start_weights(given)
    store = Store.create(path, {}, overwrite=True)
    assert store.start(GRAPH) is GRAPH
    store.close()


def test_run_round_trip(path: Path) -> None:
    graph = cnn((1, 8, 8), 2, width=3, depth=2)
    relu = next(node.name for node in graph.nodes if isinstance(node.op, ReLU))
    conv = next(node.name for node in graph.nodes if isinstance(node.op, Conv))
    recipe = Recipe(epochs=3, augment=Augment(0.1, None, 0.2), patience=4)
    outcome = Outcome(
        "truncated", -0.25, 0.5, 3.5, 2, 1, (Epoch(1.5, 0.7, -0.25, 0.5),), 40, 12.5, 7, 1e-6, 0.4, "late"
    )
    with new_store(path, seed=3, plan={"a": [1]}) as store:
        first = store.claim(Proposal(graph, (), recipe, {"reason": "start", "budget": {"seconds": None}}))
        assert first == Trial(0, Proposal(graph, (), recipe, {"reason": "start", "budget": {"seconds": None}}), graph)
        store.finish(0, outcome, weights(1, graph))
        grown = Wider(conv, 5).grow(Deeper(relu).grow(graph))
        second = store.claim(Proposal(0, (Deeper(relu), Wider(conv, 5)), recipe))
        assert second.graph == grown
        store.finish(1, Outcome("oom", error="too much"), None)
        store.claim(Proposal(0, (), recipe))
        before = store.trials
    with resumed_store(path) as store:
        assert store.trials == before
        assert [t.outcome for t in store.trials] == [outcome, Outcome("oom", error="too much"), None]
        assert [t.kept for t in store.trials] == [True, False, False]
        assert [t.parent for t in store.trials] == [None, 0, 0]
        assert store.trials[1].graph == grown
        assert has_weights(store.network(0), weights(1, graph))
        assert store.claim(proposals(1)[0]).id == 3
    run = load_run(path)
    assert run.about["seed"] == 3
    assert run.about["plan"] == {"a": [1]}
    assert run.about["format"] == FORMAT
    assert list(run.trials[:3]) == before


def test_proposal_json_round_trip() -> None:
    for proposal in (
        Proposal(GRAPH, (), RECIPE, {"reason": "start"}),
        Proposal(7, (Deeper("relu_3"), Wider("dense_1", 9)), Recipe(patience=3), {"budget": {"seconds": 1.5}}),
    ):
        assert proposal_from_json(json.loads(json.dumps(proposal_to_json(proposal)))) == proposal


def test_run_with_unknown_morphs_can_be_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user_defined = FailingMorph("raise")
    with new_store(path) as store:
        store.claim(Proposal(GRAPH, (), RECIPE))
        store.finish(0, FINISHED, weights())
        store.claim(Proposal(0, (Wider("dense_1", 9), user_defined), RECIPE))
        store.finish(1, FINISHED, weights(1, store.trial(1).graph))
        store.update_about(best=1)
        trials = store.trials
    assert list(load_run(path).trials) == trials  # its kind is registered here
    monkeypatch.delitem(morphs_module.MORPHS, "failing")
    with pytest.warns(UserWarning, match="has morphs of a kind that is not defined here: failing"):
        run = load_run(path)
    trial = run.trial(1)
    known, unknown = trial.proposal.morphs
    assert (known, unknown.to_json()) == (Wider("dense_1", 9), user_defined.to_json())
    assert (trial.graph, trial.outcome, trial.parent) == (trials[1].graph, FINISHED, 0)
    assert "failing raise" in str(explain(run))
    assert "failing raise" in write_report(run, path / "report.html").read_text(encoding="utf-8")
    with pytest.raises(MorphError, match="import the module that defines 'failing'"):
        unknown.grow(GRAPH)


def test_run_has_no_temporary_files_or_pickles(path: Path) -> None:
    with new_store(path) as store:
        finish_trials(store, 3)
        store.update_about(best=1)
        store.write_model(store.network(1), {"labels": [0, 1]})
        store.write_model(store.network(2), {"labels": [0, 1]})
    assert not temporary_files(path)
    contents = file_contents(path)
    assert sorted(contents)[-7:] == [
        "trials/00000/weights.safetensors", "trials/00001/proposal.json", "trials/00001/trial.json",
        "trials/00001/weights.safetensors", "trials/00002/proposal.json", "trials/00002/trial.json",
        "trials/00002/weights.safetensors",
    ]  # fmt: skip
    for name, data in contents.items():
        assert not data.startswith((b"\x80", b"PK")), f"{name} may be a pickle"
        assert Path(name).suffix in (".json", ".safetensors") or name in ("lock", "holder")
        if name.endswith(".json"):
            assert isinstance(json.loads(data), dict)


def test_update_about_merges_facts(path: Path) -> None:
    with new_store(path, seed=1) as store:
        store.update_about(best=4)
        store.update_about(final=5, best=6)
    about = load_run(path).about
    assert (about["seed"], about["best"], about["final"]) == (1, 6, 5)


def test_file_is_synced_before_rename(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Otherwise a power failure may leave an empty file under the new name. The folder is synced after the rename."""
    calls: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(handle: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        real_fsync(handle)

    def replace(source: Any, target: Any) -> None:
        assert Path(source).read_bytes() == b"data"
        calls.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_bytes(tmp_path / "file", b"data")
    assert calls == ["file", "rename"] + ["folder"] * (os.name == "posix")


def test_write_json_refuses_nan(path: Path) -> None:
    path.mkdir()
    write_json(path / "a.json", {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path / "a.json", {"a": float("nan")})
    assert read_json(path / "a.json") == {"a": 1}


# -- crashes


class Crash(BaseException):
    """Simulates that the process is killed."""


def run_session(path: Path, on_step: Callable[[str], None]) -> None:
    """Finish two trials and write a model after each, from the current state of the folder on."""
    store = Store.resume(path) if (path / "run.json").exists() else Store.create(path, {"seed": 1})
    try:
        for i, proposal in enumerate(proposals(2)):
            if i == len(store.trials):
                store.claim(proposal)
            trial = store.trials[i]
            on_step(f"claimed {i}")
            if trial.outcome is None:
                store.finish(trial.id, FINISHED, weights(trial.id, trial.graph))
            on_step(f"finished {i}")
            store.update_about(best=trial.id)
            store.write_model(store.network(trial.id), {"of": trial.id})
            on_step(f"model {i}")
    finally:
        store.close()


def crash_session(monkeypatch: pytest.MonkeyPatch, path: Path, at: int, before: bool) -> list[str]:
    """Run the session until right before or after the `at`-th rename of a file; returns the steps completed by then."""
    steps: list[str] = []
    count = itertools.count()
    real_replace = os.replace

    def replace(source: Any, target: Any) -> None:
        crash = next(count) == at
        if crash and before:
            raise Crash
        real_replace(source, target)
        if crash:
            raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        try:
            run_session(path, steps.append)
        except Crash:
            steps.append("crash")
    return steps


@pytest.mark.parametrize("before", [True, False])
def test_crash_at_any_rename_loses_no_finished_trial(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, before: bool
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # the process dies, not the machine
    run_session(tmp_path / "uninterrupted", lambda _: None)
    expected = load_run(tmp_path / "uninterrupted")
    _, expected_about = load_model(tmp_path / "uninterrupted")
    for at in range(1000):
        path = tmp_path / f"run {at}"
        steps = crash_session(monkeypatch, path, at, before)
        if steps[-1] != "crash":
            assert at > 8
            break
        finished = [i for i in range(2) if f"finished {i}" in steps]
        if (path / "run.json").exists():
            run = load_run(path)
            assert [t.id for t in run.trials] == list(range(len(run.trials)))
            for trial in run.trials:
                committed = (path / f"trials/{trial.id:05}/trial.json").exists()
                assert trial.kept == committed
                assert trial.outcome == (FINISHED if committed else None)
                if committed:
                    assert has_weights(run.load_model_by_id(trial.id), weights(trial.id, trial.graph))
            assert {t.id for t in run.trials if t.outcome is not None} >= set(finished)
            models = [i for i in range(2) if f"model {i}" in steps]
            if models:
                network, about = load_model(path)
                assert about["of"] in (max(models), max(models) + 1)
                assert has_weights(network, weights(about["of"], network.graph))
        run_session(path, lambda _: None)  # a new process continues
        assert not temporary_files(path)
        assert comparable_trials(load_run(path).trials) == comparable_trials(expected.trials)
        _, about = load_model(path)
        assert about == expected_about | {"weights": about["weights"]}
        assert len(list((path / "model").glob("*.safetensors"))) == 1
    else:
        pytest.fail("the session never ended")


def test_id_of_trial_folder_without_proposal_is_reused(path: Path) -> None:
    """A crash between creating the folder and writing the proposal does not change later ids."""
    with new_store(path) as store:
        store.claim(proposals(1)[0])
        (path / "trials" / "00001").mkdir()
    with resumed_store(path) as store:
        assert [t.id for t in store.trials] == [0]
        assert store.claim(proposals(1)[0]).id == 1


def test_trial_whose_parent_is_not_earlier_is_left_out(path: Path) -> None:
    """Otherwise parents could form a cycle."""
    with new_store(path) as store:
        for proposal in proposals(4):
            store.finish(store.claim(proposal).id, FINISHED, weights(graph=grow_proposal(proposal, {})))
    for id, start in ((1, 2), (2, 1), (3, 3)):
        file = path / f"trials/{id:05d}/proposal.json"
        edit_json(file, start=start, graph=read_json(file)["start"])
    with pytest.warns(UserWarning, match="left out: it starts from trial [23], which is not an earlier trial"):
        trials = load_run(path).trials
    assert [(trial.id, trial.parent) for trial in trials] == [(0, None), (2, 1)]
    assert lineage(trials, trials[1]) == [trials[1]]


@pytest.mark.timeout(20)
def test_lineage_raises_on_cycle() -> None:
    trials = [Trial(i, Proposal(start, (), RECIPE), GRAPH) for i, start in enumerate((2, 0, 1, 2, 4))]
    for trial, repeated in zip(trials, (0, 1, 2, 2, 4), strict=True):
        with pytest.raises(ValueError, match=f"trial {repeated} is its own ancestor"):
            lineage(trials, trial)


def test_crash_in_write_model_keeps_previous_model(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    with new_store(path) as store:
        store.write_model(Network(GRAPH, weights(1)), {"n": 1})
        for crash_at in ("safetensors", "json"):

            def crashing(file: Path, data: bytes, crash_at: str = crash_at) -> None:
                if file.name.endswith(crash_at):
                    raise Crash
                write_bytes(file, data)

            with monkeypatch.context() as patch:
                patch.setattr(files_module, "write_bytes", crashing)
                with pytest.raises(Crash):
                    store.write_model(Network(GRAPH, weights(2)), {"n": 2})
            network, about = load_model(path)
            assert about["n"] == 1
            assert has_weights(network, weights(1))
        store.write_model(Network(GRAPH, weights(3)), {"n": 3})
        network, about = load_model(path)
        assert about["n"] == 3
        assert has_weights(network, weights(3))
        assert len(list((path / "model").iterdir())) == 2


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk_raises_run_error_with_file_name(monkeypatch: pytest.MonkeyPatch, path: Path, call: str) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with new_store(path) as store:
        store.claim(proposals(1)[0])
        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            with pytest.raises(RunError, match=r"weights\.safetensors cannot be written: No space left"):
                store.finish(0, FINISHED, weights())
        assert not temporary_files(path)
        assert store.trials[0].outcome is None
        assert load_run(path).trials[0].outcome is None
        store.finish(0, FINISHED, weights())
    assert load_run(path).trials[0].outcome == FINISHED


def test_background_write_is_awaited_when_files_are_needed(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    write_allowed = threading.Event()

    def slow(file: Path, data: bytes) -> None:
        assert threading.current_thread() is threading.main_thread() or write_allowed.wait(30)
        write_bytes(file, data)

    with new_store(path) as store:
        for proposal in proposals(2):
            store.claim(proposal)
        with monkeypatch.context() as patch:
            patch.setattr(files_module, "write_bytes", slow)
            ended = store.finish(0, FINISHED, weights(), in_background=True)
            assert store.trials[0] == ended
            assert ended.kept
            assert load_run(path).trials[0].outcome is None
            write_allowed.set()
            assert has_weights(store.network(0), weights())
            assert load_run(path).trials[0] == ended
            store.finish(1, FINISHED, weights(1, store.trials[1].graph), in_background=True)
    assert [trial.kept for trial in load_run(path).trials] == [True, True]


def test_lock_is_held_until_background_write_ends(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Even if waiting for it in `close` is interrupted."""
    write_allowed = threading.Event()

    def slow(file: Path, data: bytes) -> None:
        assert write_allowed.wait(30)
        write_bytes(file, data)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    store = Store.create(path, {})
    store.claim(proposals(1)[0])
    with monkeypatch.context() as patch:
        patch.setattr(files_module, "write_bytes", slow)
        store.finish(0, FINISHED, weights(), in_background=True)
        patch.setattr(ThreadPoolExecutor, "shutdown", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.close()
        with pytest.raises(RunError, match="is being written by"):
            Store.resume(path)
        write_allowed.set()
        store.wait_for_writes()
        while store._lock.is_locked:  # the writing thread releases it soon after
            time.sleep(0.001)
    with resumed_store(path) as store:
        assert store.trials[0].kept


def test_failed_background_write_raises_in_later_calls(
    monkeypatch: pytest.MonkeyPatch, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = Store.create(path, {})
    for proposal in proposals(2):
        store.claim(proposal)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        store.finish(0, FINISHED, weights(), in_background=True)
        calls: list[Callable[[], object]] = [
            lambda: store.finish(1, FINISHED, weights()), lambda: store.network(0), lambda: store.drop_weights(0),
            lambda: store.claim(Proposal(0, (), RECIPE)), lambda: store.update_about(final=0), store.wait_for_writes,
        ]  # fmt: skip
        for call in calls:
            with pytest.raises(RunError, match=r"weights\.safetensors cannot be written: No space left"):
                call()
        store.close()  # does not raise, which could hide the error that ends the driver
    assert "weights.safetensors cannot be written" in caplog.text
    with resumed_store(path) as store:  # the lock was released nevertheless
        assert [trial.outcome for trial in store.trials] == [None, None]


# -- unsuitable folders


def test_create_refuses_existing_run(path: Path) -> None:
    with new_store(path) as store:
        store.claim(proposals(1)[0])
    before = file_contents(path)
    with pytest.raises(RunError, match="holds a run already: resume=True continues it, overwrite=True replaces it"):
        Store.create(path, {})
    assert file_contents(path) == before


def test_overwrite_removes_only_the_earlier_run(path: Path) -> None:
    with new_store(path, seed=1) as store:
        store.claim(proposals(1)[0])
        store.finish(0, FINISHED, weights())
        store.write_model(store.network(0), {})
    (path / "notes.txt").write_text("mine")
    store = Store.create(path, {"seed": 2}, overwrite=True)
    try:
        assert store.trials == []
        assert load_run(path).about["seed"] == 2
        assert (path / "notes.txt").read_text() == "mine"
        assert not list(path.rglob("*.safetensors"))
        with pytest.raises(RunError, match=r"model\.json cannot be read"):
            load_model(path)
    finally:
        store.close()


def test_interrupted_overwrite_discards_facts_of_earlier_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with new_store(path, seed=1, final=0) as store:
        store.claim(proposals(1)[0])

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Store.create(path, {"seed": 2}, overwrite=True)
    assert "final" not in load_run(path).about
    Store.create(path, {"seed": 3}, overwrite=True).close()
    assert load_run(path).about["seed"] == 3


@pytest.mark.parametrize("overwrite", [True, False])
def test_folder_with_other_files_is_refused(path: Path, overwrite: bool) -> None:
    (path / "trials").mkdir(parents=True)
    (path / "trials" / "thesis.txt").write_text("mine")
    (path / "data.csv").write_text("1,2")
    before = file_contents(path)
    with pytest.raises(RunError, match=r"holds other files \(data\.csv, trials\): choose an empty or new folder"):
        Store.create(path, {}, overwrite=overwrite)
    with pytest.raises(RunError, match="holds other files"):
        Store.check(path, overwrite=overwrite, resume=True)
    assert file_contents(path) == before


def test_path_of_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(RunError, match="is a file, but a run needs a folder"):
        Store.create(file, {})
    for check in (Store.check, lambda path: Store.create(path, {})):
        with pytest.raises(RunError, match="cannot be written"):
            check(file / "run")
    assert file.read_text() == "mine"


def test_read_only_folder_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: not (mode & os.W_OK))
    for path in (tmp_path, tmp_path / "new", tmp_path / "new" / "deep"):
        with pytest.raises(RunError, match=f"{tmp_path.name}' cannot be written to: choose another path"):
            Store.check(path)
    assert not (tmp_path / "new").exists()


def test_check_creates_no_files(tmp_path: Path) -> None:
    Store.check(tmp_path / "a" / "b")
    Store.check(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_folder_can_be_used_after_crash_in_create(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """A crash before run.json is written leaves the files of the lock, and a temporary file."""

    def crash(*_: object) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(Crash):
            Store.create(path, {})
    assert not (path / "run.json").exists()
    with new_store(path) as store:
        assert store.claim(proposals(1)[0]).id == 0


def test_lock_is_released_after_failed_create_or_resume(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    with pytest.raises(ValueError, match="JSON") as error:
        Store.create(path, {"seed": float("inf")})
    with new_store(path):
        pass

    def failing(_: Path) -> list[Trial]:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "_read_trials", failing)
        with pytest.raises(MemoryError) as other:
            Store.resume(path)
    with resumed_store(path):
        pass
    del error, other  # their tracebacks keep the stores alive


@pytest.mark.parametrize("open_run", [Store.resume, load_run])
def test_folder_without_run_raises_run_error(path: Path, open_run: Callable[[Path], object]) -> None:
    for _ in range(2):  # without a folder, and with an empty one
        with pytest.raises(RunError, match=r"holds no run: there is no run\.json in it"):
            open_run(path)
        path.mkdir(exist_ok=True)
    assert list(path.iterdir()) == []


@pytest.mark.parametrize("open_run", [Store.resume, load_run])
@pytest.mark.parametrize("version", [2, "1", None])
def test_other_format_raises_run_error(path: Path, open_run: Callable[[Path], object], version: object) -> None:
    with new_store(path):
        pass
    edit_json(path / "run.json", format=version)
    with pytest.raises(RunError, match=f"run.json has format {version!r}, but this version reads 1"):
        open_run(path)


# -- the lock


def test_second_driver_is_refused(path: Path) -> None:
    with new_store(path):
        for open_store in (
            Store.resume,
            lambda path: Store.create(path, {}, overwrite=True),
            lambda path: Store.create(path, {}),
        ):
            with pytest.raises(RunError, match=f"is being written by process {os.getpid()} on "):
                open_store(path)
        assert load_run(path).trials == ()  # reading needs no lock
    with resumed_store(path):
        pass


def test_store_can_be_closed_twice_and_in_another_thread(path: Path) -> None:
    store = Store.create(path, {})
    thread = threading.Thread(target=store.close)
    thread.start()
    thread.join()
    with resumed_store(path):
        pass
    store.close()


DRIVER = """
import sys
from pathlib import Path
from morphnas.run.store import Store
from tests.run.doubles import proposals
store = Store.create(Path(sys.argv[1]), {})
store.claim(proposals(1)[0])
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills a process the POSIX way")
def test_lock_of_killed_driver_is_released(path: Path) -> None:
    command = [sys.executable, "-c", DRIVER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as driver:
        try:
            assert driver.stdout is not None
            assert driver.stdout.readline() == b"ready\n"
            with pytest.raises(RunError, match=f"is being written by process {driver.pid} on "):
                Store.resume(path)
        finally:
            driver.send_signal(signal.SIGKILL)
            driver.wait(60)
    with resumed_store(path) as store:
        assert [(t.id, t.outcome) for t in store.trials] == [(0, None)]


# -- damage


@pytest.fixture
def finished_run(path: Path) -> Path:
    """A run with four finished trials, the last of which started from the second's weights."""
    with new_store(path) as store:
        finish_trials(store, 3)
        store.claim(Proposal(1, (), RECIPE))
        store.finish(3, FINISHED, weights(3, store.trials[1].graph))
    return path


def load_ids(path: Path) -> tuple[list[int], list[str]]:
    """The ids of the trials that can be read, and the warnings issued; checks that `Store.resume` gives the same."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ids = [t.id for t in load_run(path).trials]
        with resumed_store(path) as store:
            assert [t.id for t in store.trials] == ids
    messages = [str(warning.message) for warning in caught]
    n = len(messages) // 2
    assert messages[:n] == messages[n:]
    return ids, messages[:n]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda _: b"",
    "garbage": lambda _: b"\x80\x04\x95garbage",
    "list": lambda _: b"[1, 2]",
    "null": lambda _: b"null",
    "number": lambda _: b"1e999",
    "deep": lambda _: b'{"a":' * 100_000,
    "other format": lambda data: data.replace(b'"format": 1', b'"format": 2', 1),
    "boolean start": lambda _: b'{"format": 1, "outcome": {}, "start": true, "morphs": [], "why": {}}',
    "other fields": lambda _: b'{"format": 1, "outcome": {"speed": 1}, "start": 99, "morphs": [], "why": {}}',
    "other types": lambda _: b'{"format": 1, "outcome": [], "start": {"nodes": 3}, "morphs": 3, "why": []}',
    "other values": lambda _: (
        b'{"format": 1, "outcome": {"curve": 3}, "start": 1, "morphs": [{"morph": []}], "why": {}}'
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["proposal.json", "trial.json"])
@pytest.mark.filterwarnings("ignore:trial 0000")
def test_damaged_trial_is_left_out_with_warning(finished_run: Path, name: str, damage: str) -> None:
    file = finished_run / "trials" / "00002" / name
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    ids, messages = load_ids(finished_run)
    assert ids == [0, 1, 3]
    (message,) = messages
    assert "trial 00002" in message
    assert str(finished_run) in message
    assert has_weights(load_run(finished_run).load_model_by_id(0), weights(0))
    with resumed_store(finished_run) as store:
        assert store.claim(proposals(1)[0]).id == 4


@pytest.mark.filterwarnings("ignore:trial 0000")
@pytest.mark.parametrize("name", ["proposal.json", "trial.json"])
def test_child_of_damaged_trial_is_read(finished_run: Path, name: str) -> None:
    before = load_run(finished_run)
    (finished_run / "trials" / "00001" / name).write_text("{}")
    ids, messages = load_ids(finished_run)
    assert ids == [0, 2, 3]
    assert len(messages) == 1
    run = load_run(finished_run)
    assert run.trial(3) == before.trial(3)
    assert lineage(run.trials, run.trial(3)) == [run.trial(3)]
    assert has_weights(run.load_model_by_id(3), dict(before.load_model_by_id(3).weights))


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage"])
def test_damaged_weights_raise_run_error_with_file_name(finished_run: Path, damage: str) -> None:
    file = finished_run / "trials" / "00001" / "weights.safetensors"
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    run = load_run(finished_run)
    with pytest.raises(RunError, match=r"00001.weights\.safetensors does not hold this network's weights"):
        run.load_model_by_id(1)
    assert has_weights(run.load_model_by_id(2), weights(2, run.trials[2].graph))


def test_weights_of_another_network_are_refused(finished_run: Path) -> None:
    file = finished_run / "trials" / "00001" / "weights.safetensors"
    for wrong in (weights(0), {}, weights(0) | {"other.weight": weights(0)["dense_1.weight"]}):
        file.write_bytes(save(wrong))
        with pytest.raises(RunError, match="does not hold this network's weights"):
            load_run(finished_run).load_model_by_id(1)


def test_trial_with_deleted_weights_is_not_kept(finished_run: Path) -> None:
    """A user may delete weights to save disk space."""
    (finished_run / "trials" / "00001" / "weights.safetensors").unlink()
    run = load_run(finished_run)
    assert [t.kept for t in run.trials] == [True, False, True, True]
    with pytest.raises(RunError, match="trial 1 has no weights: finished, but they were not kept"):
        run.load_model_by_id(1)


def test_other_entries_among_trials_are_ignored(finished_run: Path) -> None:
    (finished_run / "trials" / "notes").mkdir()
    (finished_run / "trials" / ".DS_Store").write_text("")
    assert load_ids(finished_run) == ([0, 1, 2, 3], [])


def test_too_large_json_is_not_read(monkeypatch: pytest.MonkeyPatch, finished_run: Path) -> None:
    monkeypatch.setattr(files_module, "MAX_JSON_BYTES", 10)
    with pytest.raises(RunError, match=r"run\.json is too large: .* bytes"):
        Store.resume(finished_run)


# -- the model for predictions


@pytest.mark.parametrize("name", ["../trials/00000/weights.safetensors", "/etc/passwd", "..", ".", "", "a/b", 3, None])
def test_model_weights_must_be_a_file_beside_model_json(finished_run: Path, name: object) -> None:
    with resumed_store(finished_run) as store:
        store.write_model(store.network(0), {})
    assert load_model(finished_run)
    edit_json(finished_run / "model" / "model.json", weights=name)
    with pytest.raises(RunError, match="is not a file"):
        load_model(finished_run)


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_model_json_raises_run_error_with_path(finished_run: Path, damage: str) -> None:
    with resumed_store(finished_run) as store:
        store.write_model(store.network(0), {})
    file = finished_run / "model" / "model.json"
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    with pytest.raises(RunError, match=re.escape(str(finished_run / "model"))):
        load_model(finished_run)


def test_model_with_empty_graph_raises_run_error(finished_run: Path) -> None:
    with resumed_store(finished_run) as store:
        store.write_model(store.network(0), {})
    edit_json(finished_run / "model" / "model.json", graph={"format": 1, "nodes": []})
    with pytest.raises(RunError, match=r"model\.json holds no network"):
        load_model(finished_run)


# -- reading runs


def test_run_can_be_read_while_it_is_written(path: Path) -> None:
    with new_store(path) as store:
        assert load_run(path).trials == ()
        store.claim(proposals(1)[0])
        run = load_run(path)
        assert [t.outcome for t in run.trials] == [None]
        assert run.history == []
        assert run.get_metric_value_by_id(0) is None
        with pytest.raises(RunError, match="trial 0 has no weights: still running"):
            run.load_model_by_id(0)
        store.finish(0, FINISHED, weights())
        assert run.trials[0].outcome is None  # a view does not change
        assert load_run(path).trials[0].outcome == FINISHED


def test_history_lists_trials_with_a_score(path: Path) -> None:
    with new_store(path) as store:
        for i, proposal in enumerate(proposals(3)):
            store.claim(proposal)
            store.finish(i, Outcome("failed") if i == 1 else FINISHED, None if i == 1 else weights(i, proposal.start))  # type: ignore[arg-type]
        store.claim(Proposal(2, (Wider("dense_1", 9),), RECIPE))
        store.finish(3, FINISHED, weights(3, store.trials[3].graph))
    history = load_run(path).history
    trained = mlp((4,), 2, width=9, depth=1)
    assert [entry["model_id"] for entry in history] == [0, 2, 3]
    assert history[2] == {
        "model_id": 3, "loss": 0.5, "metric_value": 0.8, "measure": "accuracy", "interval": FINISHED.interval,
        "parent": 2, "morphs": ["wider(dense_1, 9)"], "epochs": 2, "seconds": 2.0, "status": "finished",
        "latency": None, "parameters": trained.parameters, "flops": trained.flops,
    }  # fmt: skip
    assert json.loads(json.dumps(history))


def test_run_raises_for_unknown_ids_and_without_scores(finished_run: Path) -> None:
    run = load_run(finished_run)
    for method in (run.load_model_by_id, run.trial, run.get_metric_value_by_id):
        with pytest.raises(RunError, match=r"there is no model 17 in .*; its ids are \[0, 1, 2, 3\]"):
            method(17)
        for invalid in ("0", [0], None, 0.5):
            with pytest.raises(RunError, match=f"there is no model {re.escape(repr(invalid))} in "):
                method(invalid)  # type: ignore[arg-type]
    assert run.trial(np.int64(1)) is run.trials[1]  # type: ignore[arg-type]
    empty = replace(run, trials=())
    for best in (empty.get_best_model_id, empty.load_best_model):
        with pytest.raises(RunError, match="has no network with a score yet"):
            best()


def test_best_model_of_unfinished_search_is_winner_so_far(finished_run: Path) -> None:
    run = load_run(finished_run)
    assert "best" not in run.about
    assert run.get_best_model_id() == winner(run.trials).id  # type: ignore[union-attr]
    assert has_weights(run.load_best_model(), run.load_model_by_id(run.get_best_model_id()).weights)  # type: ignore[arg-type]


def test_best_model_is_the_one_in_run_json(finished_run: Path) -> None:
    with resumed_store(finished_run) as store:
        store.update_about(best=2)
    run = load_run(str(finished_run))
    assert run.get_best_model_id() == 2
    assert run.get_metric_value_by_id(2) == 0.8
    assert has_weights(run.load_best_model(), weights(2, run.trials[2].graph))


def test_versions_are_json() -> None:
    assert {"python", "torch", "numpy"} <= json.loads(json.dumps(versions())).keys()


def test_trials_record_first_trial_of_their_driver(path: Path) -> None:
    """The times of trials are relative to the start of that trial."""
    with new_store(path) as store:
        for proposal in proposals(3):
            store.claim(proposal)
    with resumed_store(path) as store:
        for proposal in proposals(5)[3:]:
            store.claim(proposal)
        assert [trial.driver_start for trial in store.trials] == [0, 0, 0, 3, 3]
    assert [trial.driver_start for trial in load_run(path).trials] == [0, 0, 0, 3, 3]


def test_damaged_trial_is_not_overwritten(path: Path) -> None:
    with new_store(path) as store:
        for proposal in proposals(2):
            store.claim(proposal)
    damaged = path / "trials" / "00001" / "proposal.json"
    damaged.write_text("{")
    with pytest.warns(UserWarning, match="trial 00001 .* is left out"), resumed_store(path) as store:
        assert store.claim(proposals(1)[0]).id == 2
    assert damaged.read_text() == "{"


def test_run_repr(path: Path) -> None:
    with new_store(path) as store:
        store.claim(proposals(1)[0])
    assert repr(load_run(path)) == f"Run({str(path)!r}, 1 trials)"


def test_user_path_refuses_urls() -> None:
    for name in ("s3://bucket/run", "https://somewhere/run", "file:///run"):
        with pytest.raises(ValueError, match="is an address, not the path of a folder or file on this machine"):
            user_path(name)
    assert user_path("C:/run").name == "run"


def test_run_is_being_written_until_it_is_closed(path: Path) -> None:
    with new_store(path):
        assert is_being_written(path)
    assert not is_being_written(path)


def test_is_being_written_after_driver_was_killed(tmp_path: Path) -> None:
    """On another machine it cannot be known whether the process has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for host, expected in ((socket.gethostname(), False), ("elsewhere", True)):
        (tmp_path / "holder").write_text(f"process {ended.pid} on {host}")
        assert is_being_written(tmp_path) is expected
    (tmp_path / "holder").write_text("nobody")
    assert not is_being_written(tmp_path)
