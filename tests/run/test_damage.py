"""Tests of damaged files of a run: they are read or refused with an error, and other files can still be read."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import morphnas
from morphnas.graph import Graph, GraphError, Wider
from morphnas.run import checkpoints
from morphnas.run.files import MAX_DEPTH, MAX_JSON_BYTES, RunError, check_inside, read_json, read_tensors, write_json
from morphnas.run.store import Store, load_run
from morphnas.search.trial import Proposal
from morphnas.train.recipe import Outcome, Recipe
from tests.estimators.conftest import stripes
from tests.fuzzing import mutate_file, read_with_all_readers
from tests.run.doubles import RECIPE, new_store, proposals, weights

TINY = {"default_model_width": 2, "default_model_len": 2, "trainer_args": {"epochs": 2, "precision": "float32"}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with files of every kind, including a checkpoint of an open trial, which tests must not modify."""
    path = Path(tmp_path_factory.mktemp("damage")) / "run"
    classifier = morphnas.ImageClassifier(path, max_trials=3, random_state=0, searcher_args=TINY, refit=False)
    classifier.fit(*stripes(60), time_limit=60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "MIN_INTERVAL", 0.0)
        patch.setattr(checkpoints, "MAX_TIME_SHARE", 1e9)
        patch.setattr(Store, "finish", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        resumed = morphnas.ImageClassifier(path, max_trials=4, resume=True, searcher_args=TINY, refit=False)
        with pytest.raises(KeyboardInterrupt):
            resumed.fit(*stripes(60), time_limit=60)
    assert len(list(path.glob("trials/*/checkpoint.safetensors"))) == 1
    return path


@pytest.fixture
def run_copy(run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run, tmp_path / "copy")


@pytest.fixture(scope="module")
def shared_copy(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run, which tests must restore."""
    return shutil.copytree(run, Path(tmp_path_factory.mktemp("shared")) / "run")


def file_names(run: Path) -> list[str]:
    return [str(file.relative_to(run)) for file in sorted(run.rglob("*")) if file.is_file()]


@pytest.fixture
def ignore_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_mutated_files_are_read_or_refused(run: Path, shared_copy: Path, ignore_warnings: None, seed: int) -> None:
    rng = random.Random(seed)
    name = rng.choice(file_names(run))
    before = (run / name).read_bytes()
    (shared_copy / name).write_bytes(mutate_file(before, name, rng))
    try:
        read_with_all_readers(shared_copy)
    finally:
        (shared_copy / name).write_bytes(before)


def test_truncated_file_affects_only_its_own_trial(run: Path, shared_copy: Path, ignore_warnings: None) -> None:
    expected = load_run(run)
    for name in file_names(run):
        data = (run / name).read_bytes()
        for length in {0, 9, len(data) // 2, len(data) - 1}:
            (shared_copy / name).write_bytes(data[:length])
            read_with_all_readers(shared_copy)
            affected = int(name.split("/")[1]) if name.startswith("trials/") else None
            found = {trial.id: trial for trial in load_run(shared_copy).trials}
            assert all(found[t.id] == t for t in expected.trials if t.id != affected and t.outcome is not None)
        (shared_copy / name).write_bytes(data)


def test_trials_and_model_are_read_with_damaged_run_json(run_copy: Path) -> None:
    expected = load_run(run_copy)
    (run_copy / "run.json").write_bytes(b"{")
    with pytest.warns(UserWarning, match=r"run\.json is not JSON.*the trials are read without it"):
        found = load_run(run_copy)
    assert found.trials == expected.trials
    with pytest.raises(RunError, match=r"run\.json is not JSON.*its trials and its model still load"):
        Store.resume(run_copy)
    assert morphnas.ImageClassifier.load(run_copy).predict(stripes(6)[0]).shape == (6,)


@pytest.mark.parametrize("name", ["model.json", "weights-0.safetensors"])
def test_resumed_fit_rewrites_damaged_model(run_copy: Path, name: str) -> None:
    expected = load_run(run_copy)
    (run_copy / "model" / name).write_bytes(b"{")
    with pytest.raises(RunError, match=rf"{re.escape(name)}.*resume=True writes it again"):
        morphnas.ImageClassifier.load(run_copy)
    assert load_run(run_copy).trials == expected.trials
    resumed = morphnas.ImageClassifier(run_copy, max_trials=4, resume=True, searcher_args=TINY, refit=False)
    resumed.fit(*stripes(60), time_limit=60)
    assert morphnas.ImageClassifier.load(run_copy).predict(stripes(6)[0]).shape == (6,)


def test_resumed_fit_warns_of_lost_weights_of_winner(run_copy: Path) -> None:
    shutil.rmtree(run_copy / "trials" / "00003")  # the open trial, which could win when resumed
    best = load_run(run_copy).get_best_model_id()
    (run_copy / "trials" / f"{best:05d}" / "weights.safetensors").write_bytes(b"")
    resumed = morphnas.ImageClassifier(run_copy, max_trials=3, resume=True, searcher_args=TINY, refit=False)
    with pytest.warns(UserWarning, match=f"the weights of trial {best} are lost"):
        resumed.fit(*stripes(60), time_limit=60)
    assert resumed.best_trial_ != best


# -- values that are too large or too deeply nested


def test_read_json_refuses_deep_nesting_and_nan(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"a":' * MAX_DEPTH + "1" + "}" * MAX_DEPTH)
    assert read_json(file)
    for depth in (MAX_DEPTH + 1, 900):
        file.write_text('{"a":' * depth + "1" + "}" * depth)
        with pytest.raises(RunError, match=r"nested more than|nested too deeply"):
            read_json(file)
    for word in ("NaN", "Infinity", "-Infinity"):
        file.write_text(f'{{"a": {word}}}')
        with pytest.raises(RunError, match=f"{word} is not JSON"):
            read_json(file)


@pytest.mark.parametrize("length", [0, 2**63, 2**40, 30, 2**64 - 1])
def test_invalid_length_of_safetensors_header_is_refused(tmp_path: Path, length: int) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(struct.pack("<Q", length) + b'{"a":{}}')
    with pytest.raises(RunError, match="holds no tensors"):
        read_tensors(file)


@pytest.mark.parametrize(
    "node",
    [
        {"name": "big", "op": "conv", "filters": 10**9, "inputs": ["x"]},
        {"name": "big", "op": "conv", "filters": 10**40, "inputs": ["x"]},
        {"name": "big", "op": "conv", "filters": 4, "kernel": 2**31 - 1, "inputs": ["x"]},
        {"name": "big", "op": "maxpool", "size": 10**30, "inputs": ["x"]},
    ],
)
def test_too_large_networks_are_refused(node: dict[str, Any]) -> None:
    nodes = [{"name": "x", "op": "input", "size": [3, 8, 8], "inputs": []}, node]
    with pytest.raises(GraphError):
        Graph.from_json({"format": 1, "nodes": nodes})


CHANGES: dict[int, Callable[[dict[str, Any]], None]] = {
    1: lambda proposal: proposal["morphs"][0].update(width=2**31 - 1),
    2: lambda proposal: proposal["recipe"].update(epochs=10**12),
    3: lambda proposal: proposal.update(morphs=2000 * proposal["morphs"]),
}
"""Changes of the proposals of trials."""


def test_trials_with_too_large_values_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with new_store(path) as store:
        store.claim(proposals(1)[0])
        store.finish(0, Outcome("finished", -0.5, 0.8, epochs=1, best_epoch=1), weights())
        for _ in CHANGES:
            store.claim(Proposal(0, (Wider("dense_1", 7),), RECIPE))
    for id, change in CHANGES.items():
        file = path / f"trials/{id:05d}/proposal.json"
        proposal = read_json(file)
        change(proposal)
        write_json(file, proposal)
    with pytest.warns(UserWarning, match="left out") as caught:
        assert [trial.id for trial in load_run(path).trials] == [0]
    assert len(caught) == 3


# -- links, pipes and removed folders


@pytest.mark.skipif(os.name != "posix", reason="links and pipes the POSIX way")
def test_links_out_of_the_run_folder_are_refused(run_copy: Path, tmp_path: Path) -> None:
    trials = load_run(run_copy).trials
    moved = next(t.id for t in trials if t.kept and t.id not in [trial.parent for trial in trials])
    other = next(t.id for t in trials if t.kept and t.id != moved)
    elsewhere, folder = tmp_path / "elsewhere", run_copy / "trials" / f"{moved:05d}"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)
    (run_copy / "trials" / "00004").symlink_to(tmp_path)  # the folder of the next trial
    with pytest.warns(UserWarning, match=f"trial {moved:05d} .* points outside"):
        assert moved not in [trial.id for trial in load_run(run_copy).trials]
    with pytest.warns(UserWarning, match="points outside"):
        store = Store.resume(run_copy)
    try:
        with pytest.raises(RunError, match="points outside"):
            store.claim(proposals(1)[0])
    finally:
        store.close()
    assert not (tmp_path / "proposal.json").exists()
    weights_file = run_copy / "trials" / f"{other:05d}" / "weights.safetensors"
    weights_file.rename(tmp_path / "weights")
    weights_file.symlink_to(tmp_path / "weights")
    with pytest.warns(UserWarning, match="points outside"), pytest.raises(RunError, match="points outside"):
        load_run(run_copy).load_model_by_id(other)
    weights_file.unlink()
    weights_file.symlink_to(weights_file)
    with pytest.raises(RunError, match="cannot be read"):
        read_tensors(weights_file)
    (tmp_path / "link").symlink_to(run_copy)  # the run folder itself may be a link
    assert check_inside(tmp_path / "link" / "run.json", tmp_path / "link")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes here")
def test_named_pipes_are_not_opened(run_copy: Path) -> None:
    for name in ("trials/00000/trial.json", "model/weights-0.safetensors"):
        (run_copy / name).unlink()
        os.mkfifo(run_copy / name)
    with pytest.warns(UserWarning, match="it is not a file"):
        load_run(run_copy)
    with pytest.raises(RunError, match="it is not a file"):
        morphnas.ImageClassifier.load(run_copy)


def test_longest_curve_is_within_size_limit_of_json() -> None:
    longest = Recipe(epochs=100_000)
    entry = {
        "seconds": 12345.123456789012,
        "loss": 0.12345678901234567,
        "score": -0.1234567890123456,
        "metric": 0.123456,
    }
    assert len(json.dumps({"curve": [entry]}, indent=1)) * longest.epochs < MAX_JSON_BYTES


def test_errors_after_removal_of_run_folder_name_it(tmp_path: Path) -> None:
    path = tmp_path / "run"
    store = Store.create(path, {})
    try:
        store.claim(proposals(1)[0])
        shutil.rmtree(path)
        for write in (
            lambda: store.finish(0, Outcome("failed"), weights()),
            lambda: store.claim(proposals(1)[0]),
            lambda: store.update_about(best=0),
        ):
            with pytest.raises(RunError, match=str(path)):
                write()
    finally:
        store.close()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "latin-1"])
def test_read_json_requires_utf_8(tmp_path: Path, encoding: str) -> None:
    """`json.loads` would detect other encodings, and import code for them."""
    (tmp_path / "run.json").write_bytes('{"name": "\u00fc"}'.encode(encoding))
    with pytest.raises(RunError, match=r"run\.json is not JSON"):
        read_json(tmp_path / "run.json")
    (tmp_path / "run.json").write_bytes('{"name": "\u00fc"}'.encode())
    assert read_json(tmp_path / "run.json") == {"name": "\u00fc"}
