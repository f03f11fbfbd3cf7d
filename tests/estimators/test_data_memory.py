"""Examples stored in a file, for lack of memory, equal those in memory, and leave no files behind."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

import morphnas
from morphnas import ImageClassifier
from morphnas.estimators import data_memory as rooms
from morphnas.estimators.data_memory import DataMemory, free_memory, memory_for
from morphnas.estimators.inputs import Preprocessing, Problem
from morphnas.estimators.settings import Settings
from morphnas.estimators.sources import Source, open_data
from morphnas.train.data import Examples
from tests.estimators.conftest import stripes

CPU = torch.device("cpu")
TINY: dict[str, Any] = {
    "default_model_width": 2,
    "trainer_args": {"epochs": 2, "batch_size": 32, "precision": "float32"},
}
X, Y = stripes(600)
LATE = X.astype(np.int32)
LATE[598] += 200  # values in the last chunk do not fit into uint8
KINDS: dict[str, Any] = {"uint8": X, "float32": X / np.float32(255), "late": LATE}

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the system's temporary folder during a test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def found(x: Any, room: DataMemory, y: Any = Y, validation_data: Any = None) -> Problem:
    return Problem.infer(x, y, validation_data, None, 0, CPU, None, room)


def mapped(folder: Path) -> list[str]:
    """The unlinked files for examples in a folder that this process has mapped."""
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if f" {folder}/morphnas-" in line]


# -- the same problem


@linux
@pytest.mark.parametrize("kind", KINDS)
def test_a_problem_in_a_file_is_the_one_in_memory(
    kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("morphnas.estimators.sources._PIECE", 1)  # eight examples at a time
    expected = found(KINDS[kind], DataMemory(2**40))
    assert not mapped(folder)
    with caplog.at_level(logging.INFO, "morphnas"):
        problem = found(KINDS[kind], DataMemory(1))
    assert len(mapped(folder)) == 1, "a file that was too narrow is gone"
    assert f"are kept in a file in {folder}" in caplog.text
    assert not list(folder.iterdir()), "it has no name any more"
    assert problem.all_examples is not None
    assert expected.all_examples is not None
    assert problem.all_examples.x.dtype == expected.all_examples.x.dtype
    assert torch.equal(problem.all_examples.x, expected.all_examples.x)
    assert problem.fingerprint == expected.fingerprint
    assert torch.equal(problem.task.mean, expected.task.mean)
    assert torch.equal(problem.task.std, expected.task.std)
    storages = {part.x.untyped_storage().data_ptr() for part in (problem.task.train, problem.all_examples)}
    assert len(storages) == 1, "the parts are views"
    del problem
    assert not mapped(folder)


@given(st.integers(1, 40), st.sampled_from([(7,), (3, 4), (5, 2, 3)]), st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_what_a_file_holds_is_what_memory_holds(n: int, shape: tuple[int, ...], late: int, seed: int) -> None:
    """late: the first example whose values do not fit into uint8."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (n, *shape)).astype(np.int32)
    x[late:] += 300
    place = torch.from_numpy(rng.permutation(n))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("morphnas.estimators.sources._PIECE", 1)
        source = Source.of(x, "x")
        preprocessing = Preprocessing(shape, (1, *shape) if len(shape) == 2 else (shape[-1], *shape[:-1]))
        in_memory, in_file = (preprocessing(source, place, DataMemory(size)) for size in (2**40, 1))
    assert in_memory.dtype == in_file.dtype
    assert torch.equal(in_memory, in_file)


@linux
@pytest.mark.parametrize("batched", [True, False])
def test_a_dataset_that_yields_more_than_there_is_room_for(
    batched: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morphnas.estimators.sources._MIN_FILE_BYTES", 3000)
    data: Any = TensorDataset(torch.from_numpy(X / np.float32(9))[:, None], torch.from_numpy(Y))
    data = DataLoader(data, batch_size=50) if batched else data
    images, labels = open_data(data, None, "x", DataMemory(1))
    assert len(mapped(folder)) > 5
    expected, _ = open_data(data, None, "x", DataMemory(2**40))
    for (_, piece), (_, other) in zip(images.pieces(), expected.pieces(), strict=True):
        assert all((a == b).all() and a.dtype == b.dtype for a, b in zip(piece, other, strict=True))
    assert labels == Y.tolist()
    assert found(data, DataMemory(1), None).fingerprint == found(data, DataMemory(2**40), None).fingerprint
    del images, piece
    assert not mapped(folder)


def test_arrays_of_many_kinds_go_into_a_file() -> None:
    arrays = [
        np.arange(7, dtype=np.uint8), np.array([{}, None]), np.zeros((0, 3)), np.arange(6.0).reshape(2, 3).T,
        np.array([True]), np.array(3, np.int16), np.array(["a", "bc"]),
    ]  # fmt: skip
    moved = DataMemory(1).to_file(arrays)
    for array, other in zip(arrays, moved, strict=True):
        assert array.dtype == other.dtype
        assert array.shape == other.shape
        assert (array == other).all()
        assert other.flags.aligned
    assert DataMemory(1).to_file(arrays[1:3])[0] is arrays[1], "nothing to write"


# -- the same networks


def fitted(x: Any, path: Path, memory: int | None, **more: Any) -> ImageClassifier:
    settings: dict[str, Any] = {
        "random_state": 0,
        "max_trials": 2,
        "searcher_args": TINY,
        "data_memory": memory,
        "refit": False,
    }
    return ImageClassifier(path, **(settings | more)).fit(x, Y, time_limit=120)


@linux
@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_on_a_file_finds_the_networks_found_in_memory(kind: str, tmp_path: Path) -> None:
    """Two trials, the second a morph of the first or another starter, are bitwise equal."""
    x = KINDS[kind]
    expected, classifier = fitted(x, tmp_path / "memory", 2**40), fitted(x, tmp_path / "file", 1)
    assert not mapped(tmp_path)
    ours, theirs = classifier.network_.weights, expected.network_.weights
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert (classifier.predict_proba(x) == expected.predict_proba(x)).all()
    scores = [[trial.score for trial in morphnas.load_run(c.path_).trials] for c in (classifier, expected)]
    assert scores[0] == scores[1]
    names = [sorted(path.name for path in Path(c.path_).iterdir()) for c in (classifier, expected)]
    assert names[0] == names[1], "nothing is left beside the run"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "memory"]


@linux
def test_final_fit_and_prediction_keep_to_the_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("morphnas.estimators.sources._MIN_FILE_BYTES", 3000)
    data = TensorDataset(torch.from_numpy(X)[:, None], torch.from_numpy(Y))
    results = []
    for memory in (2**40, 1):
        classifier = fitted(X, tmp_path / str(memory), memory, max_trials=1)
        classifier.final_fit(data, None, data, trainer_args={"epochs": 1}, time_limit=60)
        results.append((classifier.predict_proba(data), classifier.test_metric_, classifier.evaluate(data)))
    assert (results[0][0] == results[1][0]).all()
    assert results[0][1:] == results[1][1:]
    assert not mapped(tmp_path)


@linux
def test_validation_data_are_kept_in_a_file_too(folder: Path) -> None:
    problem = found(X, DataMemory(1), Y, (X, Y))
    assert len(mapped(folder)) == 2
    assert problem.task.valid is not None
    assert torch.equal(problem.task.valid.x, problem.task.train.x)


@linux
def test_nothing_is_left_after_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = KINDS["float32"].copy()
    bad[-1, 0, 0] = np.nan
    monkeypatch.setattr("morphnas.estimators.sources._PIECE", 1)
    with pytest.raises(ValueError, match=r"first in x\[599\]"):
        found(bad, DataMemory(1))
    monkeypatch.setattr("morphnas.estimators.fitting.Search", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fitted(X, folder / "run", 1)
    assert [path.name for path in folder.iterdir()] == ["run"]
    assert not mapped(folder)


# -- where it goes


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk(10**6, 10**6 - 5000, 5000))
    words = rf"21,600 bytes on disk, 5,000 are free \(path, .*TMPDIR.*\): '{tmp_path}'"
    with pytest.raises(OSError, match=words):
        fitted(X, tmp_path / "runs" / "run", 1)
    assert not list(tmp_path.iterdir()), "no run was begun"


@linux
def test_a_disk_that_others_fill_meanwhile_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk(2**60, 0, 2**60))
    with pytest.raises(OSError, match=r"No space left|File too large"):
        DataMemory(1, tmp_path).empty((2**58,), torch.uint8)
    assert not list(tmp_path.iterdir())


@linux
def test_files_are_reserved_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing a mapped page of a sparse file to a full disk would kill the process."""
    blocks, fallocate = [], os.posix_fallocate

    def spied(file: int, start: int, size: int) -> None:
        fallocate(file, start, size)
        blocks.append(os.fstat(file).st_blocks)

    monkeypatch.setattr(os, "posix_fallocate", spied)
    DataMemory(1, tmp_path).empty((2**20,), torch.float32)
    assert 512 * blocks[0] >= 2**22


@pytest.mark.parametrize("memory", [0, -1, 1.5, "1GB", True])
def test_data_memory_is_checked(memory: Any) -> None:
    with pytest.raises(ValueError, match="data_memory must be None or a positive integer, of bytes"):
        ImageClassifier(data_memory=memory).fit(X, Y)


# -- how much there is


def test_half_of_what_is_free_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "free_memory", lambda device: {"cpu": 1000, "meta": 600}[device.type])
    assert DataMemory().byte_limit() == 500
    assert DataMemory().byte_limit(torch.device("meta")) == 300
    assert DataMemory(7).byte_limit() == DataMemory(7).byte_limit(torch.device("meta")) == 7


def test_examples_stay_where_they_are_when_a_device_has_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "free_memory", lambda device: {"cpu": 2**40, "meta": 2 * 600 * 36}[device.type])
    device = torch.device("meta")
    examples = Examples(torch.from_numpy(X), torch.from_numpy(Y))
    fits = DataMemory().to_device(examples, device)
    assert (fits.x.device.type, fits.y.device.type) == ("meta", "meta")
    wide = DataMemory().to_device(Examples(examples.x.float(), examples.y), device)
    assert (wide.x.device.type, wide.y.device.type) == ("cpu", "meta")
    assert DataMemory(1).to_device(examples, CPU).x is examples.x


def test_a_gpu_is_asked_for_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda:3")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (device.index * 100, 1000))
    assert free_memory(gpu) == 300
    monkeypatch.setattr(torch.cuda, "memory_reserved", {gpu: 500}.get)
    monkeypatch.setattr(torch.cuda, "memory_allocated", {gpu: 20}.get)
    assert free_memory(gpu) == 780, "what torch keeps of what an earlier fit has had is free as well"


def machine(root: Path, available: str = "MemAvailable:    2000 kB", groups: dict[str, str] | None = None) -> Path:
    """The files that report free memory on Linux. groups: file names below /sys/fs/cgroup and their contents."""
    files = {"proc/meminfo": f"MemTotal: 9999 kB\n{available}\nHugePages_Total: 0\n"}
    if groups is not None:
        files["proc/self/cgroup"] = "1:name=systemd:/elsewhere\n0::/job/step\n"
        files |= {f"sys/fs/cgroup/{name}": text for name, text in groups.items()}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_free_memory_is_what_the_system_says(tmp_path: Path) -> None:
    assert free_memory(CPU, machine(tmp_path)) == 2000 * 1024


@pytest.mark.parametrize(
    ("groups", "free"),
    [
        ({"max": "900", "current": "500", "stat": "anon 300\nactive_file 60\ninactive_file 40\n"}, 500),
        ({"max": "900", "current": "950", "stat": "file 1\n"}, 0),
        ({"max": "max\n", "current": "500", "stat": "anon 1\n"}, 2000 * 1024),
        ({}, 2000 * 1024),
    ],
)
def test_a_container_may_have_less(groups: dict[str, str], free: int, tmp_path: Path) -> None:
    root = machine(tmp_path, groups={f"job/memory.{name}": text for name, text in groups.items()})
    assert free_memory(CPU, root) == free


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="there is nothing to ask")
def test_elsewhere_all_memory_counts_as_free(tmp_path: Path) -> None:
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert free_memory(CPU, tmp_path) == free_memory(CPU, machine(tmp_path, "")) == whole
    assert free_memory() <= whole


def test_where_nothing_says_there_is_no_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sysconf", raising=False)
    assert free_memory(CPU, tmp_path) == float("inf")


@linux
@pytest.mark.slow
@pytest.mark.parametrize("late", [False, True])
def test_more_data_take_no_more_memory(late: bool, tmp_path: Path) -> None:
    """Memory that a fit on 400 MB of uint8 allocates, or on 1.6 GB of floats, due to the last example, compared with a
    fit on a tenth of the data."""
    script = """
        import sys, threading, time
        from pathlib import Path
        import numpy as np
        import morphnas
        def held():
            status = Path("/proc/self/status").read_text()
            return 1024 * int(status.partition("RssAnon:")[2].split()[0])
        peaks = [0]
        def watch():
            while True:
                peaks[0] = max(peaks[0], held())
                time.sleep(0.005)
        threading.Thread(target=watch, daemon=True).start()
        def fit(n, path):
            x = np.lib.format.open_memmap(sys.argv[1], mode="r")[-n:]
            args = {"default_model_width": 2, "trainer_args": {"epochs": 1, "batch_size": 128}}
            classifier = morphnas.ImageClassifier(
                path, max_trials=1, random_state=0, searcher_args=args, data_memory=10**6, refit=False
            )
            classifier.fit(x, np.arange(len(x)) % 3, time_limit=60)
        fit(10_000, None)  # excludes what the allocator keeps from the first fit
        peaks[0] = 0
        fit(10_000, sys.argv[2])
        few, peaks[0] = peaks[0], 0
        fit(100_000, sys.argv[3])
        print(peaks[0] - few)
    """
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.int16 if late else np.uint8, (100_000, 64, 64))
    x[:] = np.arange(64)
    x[:, 0, :2] = np.stack(divmod(np.arange(len(x)), 250), axis=1)  # no two alike
    if late:
        x[-1] = 300
    x.flush()
    del x
    command = [sys.executable, "-c", textwrap.dedent(script), *(str(tmp_path / name) for name in ("x.npy", "a", "b"))]
    root = Path(morphnas.__file__).parent.parent
    for again in range(3):  # the allocator's noise is tens of megabytes
        if again:
            shutil.rmtree(tmp_path / "a")
            shutil.rmtree(tmp_path / "b")
        more = int(subprocess.check_output(command, text=True, cwd=root))
        if more < 0.25 * 90_000 * 64 * 64 * (4 if late else 1):
            break
    assert more < 0.25 * 90_000 * 64 * 64 * (4 if late else 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "x.npy"]


def test_where_little_memory_is_free_trainings_are_in_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Both in searches and final trainings, by the memory estimated from the graph."""
    x, y = stripes(150)
    args = {"default_model_width": 4, "default_model_len": 1, "trainer_args": {"epochs": 1}}
    made = ImageClassifier(tmp_path / "run", max_trials=1, device="cpu", searcher_args=args, random_state=0)
    made.fit(x, y, time_limit=10)
    graph = made.load_searcher().trials[0].graph
    assert {t.outcome.micro_batch for t in made.load_searcher().trials if t.outcome} == {64}
    monkeypatch.setattr(rooms, "free_memory", lambda *of: free_memory(*of) if of else 2 * graph.peak_bytes(20))
    made.final_fit(x, y, trainer_args={"epochs": 1}, time_limit=10)
    assert made.load_searcher().trials[-1].outcome.micro_batch == 16  # type: ignore[union-attr]
    made.set_params(overwrite=True).fit(x, y, time_limit=10)
    assert {t.outcome.micro_batch for t in made.load_searcher().trials if t.outcome} == {16}


def test_trainings_that_run_at_a_time_share_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "free_memory", lambda: 1000.0)
    places: list[dict[str, Any]] = [{}, {"executor": "process", "devices": 2}]
    parallel_trials = [Settings.of(ImageClassifier(device="cpu", **place)).place.parallel_trials for place in places]
    assert [memory_for(None, CPU, n) for n in parallel_trials] == [500, 250]
    assert memory_for(70, CPU, 2) == 70
    assert memory_for(None, torch.device("cuda")) is None
