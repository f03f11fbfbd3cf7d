"""Damaged files of a run: contents are valid or refused with an error message, and other files can still be read."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import morphnas
from morphnas.graph import Graph, GraphError, Wider
from morphnas.run import checkpoints
from morphnas.run.files import MAX_DEPTH, RunError, check_inside, read_json, read_tensors, write_json
from morphnas.run.store import Store, load_run
from morphnas.search.trial import Proposal
from morphnas.train.recipe import Outcome, Recipe
from tests.estimators.conftest import stripes
from tests.fuzzing import mutated, read
from tests.run.doubles import RECIPE, proposals, store_of, weights

TINY = {"default_model_width": 2, "default_model_len": 2, "trainer_args": {"epochs": 2, "precision": "float32"}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with files of every kind, including a checkpoint of an open trial. Must not be changed."""
    path = Path(tmp_path_factory.mktemp("damage")) / "run"
    classifier = morphnas.ImageClassifier(path, max_trials=3, random_state=0, searcher_args=TINY, refit=False)
    classifier.fit(*stripes(60), time_limit=60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "MIN_INTERVAL", 0.0)
        patch.setattr(checkpoints, "MAX_TIME_SHARE", 1e9)
        patch.setattr(Store, "finish", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        again = morphnas.ImageClassifier(path, max_trials=4, resume=True, searcher_args=TINY, refit=False)
        with pytest.raises(KeyboardInterrupt):
            again.fit(*stripes(60), time_limit=60)
    assert len(list(path.glob("trials/*/checkpoint.safetensors"))) == 1
    return path


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run, tmp_path / "copy")


@pytest.fixture(scope="module")
def shared(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(run, Path(tmp_path_factory.mktemp("shared")) / "run")


def names(run: Path) -> list[str]:
    return [str(file.relative_to(run)) for file in sorted(run.rglob("*")) if file.is_file()]


@pytest.fixture
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_mutated_files_are_read_or_refused(run: Path, shared: Path, quiet: None, seed: int) -> None:
    rng = random.Random(seed)
    name = rng.choice(names(run))
    before = (run / name).read_bytes()
    (shared / name).write_bytes(mutated(before, name, rng))
    try:
        read(shared)
    finally:
        (shared / name).write_bytes(before)


def test_files_cut_short_cost_themselves_alone(run: Path, shared: Path, quiet: None) -> None:
    expected = load_run(run)
    for name in names(run):
        data = (run / name).read_bytes()
        for length in {0, 9, len(data) // 2, len(data) - 1}:
            (shared / name).write_bytes(data[:length])
            read(shared)
            own = int(name.split("/")[1]) if name.startswith("trials/") else None
            found = {trial.id: trial for trial in load_run(shared).trials}
            assert all(found[t.id] == t for t in expected.trials if t.id != own and t.outcome is not None)
        (shared / name).write_bytes(data)


@pytest.mark.parametrize("name", ["run.json", "model/model.json", "model/weights-0.safetensors"])
def test_what_is_damaged_is_named_and_the_rest_is_there(copied: Path, name: str) -> None:
    expected = load_run(copied)
    (copied / name).write_bytes(b"{")
    if name == "run.json":
        with pytest.warns(UserWarning, match=r"run\.json is not JSON.*the trials are read without it"):
            found = load_run(copied)
        assert found.trials == expected.trials
        with pytest.raises(RunError, match=r"run\.json is not JSON.*its trials and its model still load"):
            Store.resume(copied)
        assert morphnas.ImageClassifier.load(copied).predict(stripes(6)[0]).shape == (6,)
    else:
        with pytest.raises(RunError, match=rf"{Path(name).name}.*resume=True writes it again"):
            morphnas.ImageClassifier.load(copied)
        assert load_run(copied).trials == expected.trials
        again = morphnas.ImageClassifier(copied, max_trials=4, resume=True, searcher_args=TINY, refit=False)
        again.fit(*stripes(60), time_limit=60)
        assert morphnas.ImageClassifier.load(copied).predict(stripes(6)[0]).shape == (6,)


def test_lost_weights_of_the_winner_are_said_and_another_wins(copied: Path) -> None:
    shutil.rmtree(copied / "trials" / "00003")  # which may win
    best = load_run(copied).get_best_model_id()
    (copied / "trials" / f"{best:05d}" / "weights.safetensors").write_bytes(b"")
    again = morphnas.ImageClassifier(copied, max_trials=3, resume=True, searcher_args=TINY, refit=False)
    with pytest.warns(UserWarning, match=f"the weights of trial {best} are lost"):
        again.fit(*stripes(60), time_limit=60)
    assert again.best_trial_ != best


# -- values that are too large or too deeply nested, and files outside the folder


def test_json_that_is_too_deep_or_no_json_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    for depth, fine in ((MAX_DEPTH, True), (MAX_DEPTH + 1, False), (900, False)):
        file.write_text('{"a":' * depth + "1" + "}" * depth)
        if fine:
            assert read_json(file)
        else:
            with pytest.raises(RunError, match=r"nested|not JSON"):
                read_json(file)
    for word in ("NaN", "Infinity", "-Infinity"):
        file.write_text(f'{{"a": {word}}}')
        with pytest.raises(RunError, match=f"{word} is not JSON"):
            read_json(file)


@pytest.mark.parametrize("length", [0, 2**63, 2**40, 30, 2**64 - 1])
def test_headers_of_absurd_lengths_are_refused(tmp_path: Path, length: int) -> None:
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
def test_networks_of_absurd_sizes_are_refused(node: dict[str, Any]) -> None:
    nodes = [{"name": "x", "op": "input", "size": [3, 8, 8], "inputs": []}, node]
    with pytest.raises(GraphError):
        Graph.from_json({"format": 1, "nodes": nodes})


def test_absurd_morphs_and_recipes_cost_their_trial_alone(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with store_of(path) as store:
        store.claim(proposals(1)[0])
        store.finish(0, Outcome("finished", -0.5, 0.8, epochs=1, best_epoch=1), weights())
        for _ in range(3):
            store.claim(Proposal(0, (Wider("dense_1", 7),), RECIPE))
    file = path / "trials/00001/proposal.json"
    for id, changes in ((1, {"width": 2**31 - 1}), (2, None), (3, {})):
        file = path / f"trials/{id:05d}/proposal.json"
        data = read_json(file)
        if changes is None:
            data["recipe"]["epochs"] = 10**12
        elif changes:
            data["morphs"][0] |= changes
        else:
            data["morphs"] *= 2000
        write_json(file, data)
    with pytest.warns(UserWarning, match="left out") as caught:
        assert [trial.id for trial in load_run(path).trials] == [0]
    assert len(caught) == 3


@pytest.mark.skipif(os.name != "posix", reason="links and pipes the POSIX way")
def test_nothing_is_read_or_written_outside_the_folder(copied: Path, tmp_path: Path) -> None:
    trials = load_run(copied).trials
    gone = next(t.id for t in trials if t.kept and t.id not in [trial.parent for trial in trials])
    other = next(t.id for t in trials if t.kept and t.id != gone)
    elsewhere, folder = tmp_path / "elsewhere", copied / "trials" / f"{gone:05d}"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)
    (copied / "trials" / "00004").symlink_to(tmp_path)
    with pytest.warns(UserWarning, match=f"trial {gone:05d} .* leads out of"):
        assert gone not in [trial.id for trial in load_run(copied).trials]
    with pytest.warns(UserWarning, match="leads out of"):
        store = Store.resume(copied)
    try:
        with pytest.raises(RunError, match="leads out of"):
            store.claim(proposals(1)[0])
    finally:
        store.close()
    assert not (tmp_path / "proposal.json").exists()
    weights_file = copied / "trials" / f"{other:05d}" / "weights.safetensors"
    weights_file.rename(tmp_path / "weights")
    weights_file.symlink_to(tmp_path / "weights")
    with pytest.warns(UserWarning, match="leads out of"), pytest.raises(RunError, match="leads out of"):
        load_run(copied).load_model_by_id(other)
    weights_file.unlink()
    weights_file.symlink_to(weights_file)
    with pytest.raises(RunError, match="cannot be read"):
        read_tensors(weights_file)
    (tmp_path / "link").symlink_to(copied)  # the folder itself may be one
    assert check_inside(tmp_path / "link" / "run.json", tmp_path / "link")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes here")
def test_nobody_waits_for_a_pipe(copied: Path) -> None:
    for name in ("trials/00000/trial.json", "model/weights-0.safetensors"):
        (copied / name).unlink()
        os.mkfifo(copied / name)
    with pytest.warns(UserWarning, match="it is not a file"):
        load_run(copied)
    with pytest.raises(RunError, match="it is not a file"):
        morphnas.ImageClassifier.load(copied)


def test_what_is_written_can_be_read() -> None:
    """The longest curve that a recipe allows is within the size limit of files that are read."""
    longest = Recipe(epochs=100_000)
    entry = {
        "seconds": 12345.123456789012,
        "loss": 0.12345678901234567,
        "score": -0.1234567890123456,
        "metric": 0.123456,
    }
    assert len(json.dumps({"curve": [entry]}, indent=1)) * longest.epochs < 32 * 2**20


def test_a_folder_that_is_removed_meanwhile_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run"
    store = Store.create(path, {})
    try:
        store.claim(proposals(1)[0])
        shutil.rmtree(path)
        for act in (
            lambda: store.finish(0, Outcome("failed"), weights()),
            lambda: store.claim(proposals(1)[0]),
            lambda: store.update_about(best=0),
        ):
            with pytest.raises(RunError, match=str(path)):
                act()
    finally:
        store.close()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "latin-1"])
def test_json_is_in_utf_8(tmp_path: Path, encoding: str) -> None:
    """Python would detect another encoding, and import code for it."""
    (tmp_path / "run.json").write_bytes('{"name": "\u00fc"}'.encode(encoding))
    with pytest.raises(RunError, match=r"run\.json is not JSON"):
        read_json(tmp_path / "run.json")
    (tmp_path / "run.json").write_bytes('{"name": "\u00fc"}'.encode())
    assert read_json(tmp_path / "run.json") == {"name": "\u00fc"}
