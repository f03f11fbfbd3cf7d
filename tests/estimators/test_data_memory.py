"""Examples that are stored in a file for lack of memory equal those in memory, and no files remain."""

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
from morphnas.estimators import data_memory
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
ARRAYS: dict[str, Any] = {"uint8": X, "float32": X / np.float32(255), "late": LATE}

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder of the system during a test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def infer_problem(x: Any, memory: DataMemory, y: Any = Y, validation_data: Any = None) -> Problem:
    return Problem.infer(x, y, validation_data, None, 0, CPU, None, memory)


def mapped_files(folder: Path) -> list[str]:
    """The unlinked files of examples in a folder that are mapped by this process."""
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if f" {folder}/morphnas-" in line]


# -- the same problem


@linux_only
@pytest.mark.parametrize("kind", ARRAYS)
def test_problem_in_file_equals_problem_in_memory(
    kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("morphnas.estimators.sources._PIECE", 1)  # eight examples at a time
    expected = infer_problem(ARRAYS[kind], DataMemory(2**40))
    assert not mapped_files(folder)
    with caplog.at_level(logging.INFO, "morphnas"):
        problem = infer_problem(ARRAYS[kind], DataMemory(1))
    assert len(mapped_files(folder)) == 1, "a file of a dtype that was too narrow is unmapped"
    assert f"are kept in a file in {folder}" in caplog.text
    assert not list(folder.iterdir()), "the file is unlinked"
    assert problem.all_examples is not None
    assert expected.all_examples is not None
    assert problem.all_examples.x.dtype == expected.all_examples.x.dtype
    assert torch.equal(problem.all_examples.x, expected.all_examples.x)
    assert problem.fingerprint == expected.fingerprint
    assert torch.equal(problem.task.mean, expected.task.mean)
    assert torch.equal(problem.task.std, expected.task.std)
    storages = {part.x.untyped_storage().data_ptr() for part in (problem.task.train, problem.all_examples)}
    assert len(storages) == 1, "the splits are views"
    del problem
    assert not mapped_files(folder)


@given(st.integers(1, 40), st.sampled_from([(7,), (3, 4), (5, 2, 3)]), st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_preprocessing_into_file_equals_that_in_memory(
    n: int, shape: tuple[int, ...], first_large: int, seed: int
) -> None:
    """first_large: the first example whose values do not fit into uint8."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (n, *shape)).astype(np.int32)
    x[first_large:] += 300
    place = torch.from_numpy(rng.permutation(n))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("morphnas.estimators.sources._PIECE", 1)
        source = Source.of(x, "x")
        preprocessing = Preprocessing(shape, (1, *shape) if len(shape) == 2 else (shape[-1], *shape[:-1]))
        in_memory, in_file = (preprocessing(source, place, DataMemory(size)) for size in (2**40, 1))
    assert in_memory.dtype == in_file.dtype
    assert torch.equal(in_memory, in_file)


@linux_only
@pytest.mark.parametrize("batched", [True, False])
def test_dataset_larger_than_memory_is_kept_in_files(
    batched: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morphnas.estimators.sources._MIN_FILE_BYTES", 3000)
    dataset: Any = TensorDataset(torch.from_numpy(X / np.float32(9))[:, None], torch.from_numpy(Y))
    dataset = DataLoader(dataset, batch_size=50) if batched else dataset
    images, labels = open_data(dataset, None, "x", DataMemory(1))
    assert len(mapped_files(folder)) > 5
    expected, _ = open_data(dataset, None, "x", DataMemory(2**40))
    for (_, piece), (_, other) in zip(images.pieces(), expected.pieces(), strict=True):
        assert all((a == b).all() and a.dtype == b.dtype for a, b in zip(piece, other, strict=True))
    assert labels == Y.tolist()
    fingerprints = [infer_problem(dataset, DataMemory(size), None).fingerprint for size in (1, 2**40)]
    assert fingerprints[0] == fingerprints[1]
    del images, piece
    assert not mapped_files(folder)


def test_to_file_keeps_values_dtypes_and_shapes() -> None:
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
    assert DataMemory(1).to_file(arrays[1:3])[0] is arrays[1], "arrays of objects and empty arrays are not written"


# -- the same networks


def fit_classifier(x: Any, path: Path, memory: int | None, **options: Any) -> ImageClassifier:
    settings: dict[str, Any] = {
        "random_state": 0,
        "max_trials": 2,
        "searcher_args": TINY,
        "data_memory": memory,
        "refit": False,
    }
    return ImageClassifier(path, **(settings | options)).fit(x, Y, time_limit=120)


@linux_only
@pytest.mark.parametrize("kind", ARRAYS)
def test_fit_on_file_equals_fit_in_memory(kind: str, tmp_path: Path) -> None:
    """The networks of two trials, the second a morph of the first or another starter, are bitwise equal."""
    x = ARRAYS[kind]
    expected, classifier = fit_classifier(x, tmp_path / "memory", 2**40), fit_classifier(x, tmp_path / "file", 1)
    assert not mapped_files(tmp_path)
    weights, expected_weights = classifier.network_.weights, expected.network_.weights
    assert weights.keys() == expected_weights.keys()
    assert all(torch.equal(value, expected_weights[name]) for name, value in weights.items())
    assert (classifier.predict_proba(x) == expected.predict_proba(x)).all()
    scores = [
        [trial.score for trial in morphnas.load_run(estimator.path_).trials] for estimator in (classifier, expected)
    ]
    assert scores[0] == scores[1]
    names = [sorted(path.name for path in Path(estimator.path_).iterdir()) for estimator in (classifier, expected)]
    assert names[0] == names[1], "no other files remain"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "memory"]


@linux_only
def test_final_fit_and_predict_respect_data_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("morphnas.estimators.sources._MIN_FILE_BYTES", 3000)
    data = TensorDataset(torch.from_numpy(X)[:, None], torch.from_numpy(Y))
    results = []
    for memory in (2**40, 1):
        classifier = fit_classifier(X, tmp_path / str(memory), memory, max_trials=1)
        classifier.final_fit(data, None, data, trainer_args={"epochs": 1}, time_limit=60)
        results.append((classifier.predict_proba(data), classifier.test_metric_, classifier.evaluate(data)))
    assert (results[0][0] == results[1][0]).all()
    assert results[0][1:] == results[1][1:]
    assert not mapped_files(tmp_path)


@linux_only
def test_validation_data_are_kept_in_a_file(folder: Path) -> None:
    problem = infer_problem(X, DataMemory(1), Y, (X, Y))
    assert len(mapped_files(folder)) == 2
    assert problem.task.valid is not None
    assert torch.equal(problem.task.valid.x, problem.task.train.x)


@linux_only
def test_no_files_remain_after_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = ARRAYS["float32"].copy()
    bad[-1, 0, 0] = np.nan
    monkeypatch.setattr("morphnas.estimators.sources._PIECE", 1)
    with pytest.raises(ValueError, match=r"first in x\[599\]"):
        infer_problem(bad, DataMemory(1))
    monkeypatch.setattr("morphnas.estimators.fitting.Search", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit_classifier(X, folder / "run", 1)
    assert [path.name for path in folder.iterdir()] == ["run"]
    assert not mapped_files(folder)


# -- disk space


def test_fit_raises_if_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk(10**6, 10**6 - 5000, 5000))
    message = rf"21,600 bytes on disk, 5,000 are free \(path, .*TMPDIR.*\): '{tmp_path}'"
    with pytest.raises(OSError, match=message):
        fit_classifier(X, tmp_path / "runs" / "run", 1)
    assert not list(tmp_path.iterdir()), "no run folder was created"


@linux_only
def test_failing_allocation_on_disk_raises_os_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if others had filled the disk after the check of the free space."""
    disk = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk(2**60, 0, 2**60))
    with pytest.raises(OSError, match=r"No space left|File too large"):
        DataMemory(1, tmp_path).empty((2**58,), torch.uint8)
    assert not list(tmp_path.iterdir())


@linux_only
def test_file_blocks_are_allocated_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing a mapped page of a sparse file to a full disk would kill the process."""
    blocks, fallocate = [], os.posix_fallocate

    def recording_fallocate(file: int, start: int, size: int) -> None:
        fallocate(file, start, size)
        blocks.append(os.fstat(file).st_blocks)

    monkeypatch.setattr(os, "posix_fallocate", recording_fallocate)
    DataMemory(1, tmp_path).empty((2**20,), torch.float32)
    assert 512 * blocks[0] >= 2**22


@pytest.mark.parametrize("memory", [0, -1, 1.5, "1GB", True])
def test_fit_rejects_invalid_data_memory(memory: Any) -> None:
    with pytest.raises(ValueError, match="data_memory must be None or a positive integer, of bytes"):
        ImageClassifier(data_memory=memory).fit(X, Y)


# -- free memory


def test_byte_limit_is_half_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_memory, "free_memory", lambda device: {"cpu": 1000, "meta": 600}[device.type])
    assert DataMemory().byte_limit() == 500
    assert DataMemory().byte_limit(torch.device("meta")) == 300
    assert DataMemory(7).byte_limit() == DataMemory(7).byte_limit(torch.device("meta")) == 7


def test_x_stays_on_cpu_if_it_does_not_fit_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_memory, "free_memory", lambda device: {"cpu": 2**40, "meta": 2 * 600 * 36}[device.type])
    device = torch.device("meta")
    examples = Examples(torch.from_numpy(X), torch.from_numpy(Y))
    moved = DataMemory().to_device(examples, device)
    assert (moved.x.device.type, moved.y.device.type) == ("meta", "meta")
    wide = DataMemory().to_device(Examples(examples.x.float(), examples.y), device)
    assert (wide.x.device.type, wide.y.device.type) == ("cpu", "meta")
    assert DataMemory(1).to_device(examples, CPU).x is examples.x


def test_free_memory_of_gpu_includes_torch_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda:3")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (device.index * 100, 1000))
    assert free_memory(gpu) == 300
    monkeypatch.setattr(torch.cuda, "memory_reserved", {gpu: 500}.get)
    monkeypatch.setattr(torch.cuda, "memory_allocated", {gpu: 20}.get)
    assert free_memory(gpu) == 780, "memory cached by torch is free as well"


def system_files(root: Path, available: str = "MemAvailable:    2000 kB", groups: dict[str, str] | None = None) -> Path:
    """Create the files that report free memory on Linux. groups: contents of files below /sys/fs/cgroup."""
    files = {"proc/meminfo": f"MemTotal: 9999 kB\n{available}\nHugePages_Total: 0\n"}
    if groups is not None:
        files["proc/self/cgroup"] = "1:name=systemd:/elsewhere\n0::/job/step\n"
        files |= {f"sys/fs/cgroup/{name}": text for name, text in groups.items()}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_free_memory_is_read_from_meminfo(tmp_path: Path) -> None:
    assert free_memory(CPU, system_files(tmp_path)) == 2000 * 1024


@pytest.mark.parametrize(
    ("groups", "free"),
    [
        ({"max": "900", "current": "500", "stat": "anon 300\nactive_file 60\ninactive_file 40\n"}, 500),
        ({"max": "900", "current": "950", "stat": "file 1\n"}, 0),
        ({"max": "max\n", "current": "500", "stat": "anon 1\n"}, 2000 * 1024),
        ({}, 2000 * 1024),
    ],
)
def test_free_memory_respects_cgroup_limits(groups: dict[str, str], free: int, tmp_path: Path) -> None:
    root = system_files(tmp_path, groups={f"job/memory.{name}": text for name, text in groups.items()})
    assert free_memory(CPU, root) == free


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="os.sysconf is missing")
def test_free_memory_without_meminfo_is_all_memory(tmp_path: Path) -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert free_memory(CPU, tmp_path) == free_memory(CPU, system_files(tmp_path, "")) == total
    assert free_memory() <= total


def test_free_memory_is_infinite_if_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sysconf", raising=False)
    assert free_memory(CPU, tmp_path) == float("inf")


@linux_only
@pytest.mark.slow
@pytest.mark.parametrize("needs_float32", [False, True])
def test_memory_does_not_grow_with_the_data(needs_float32: bool, tmp_path: Path) -> None:
    """Compares a fit on 400 MB of uint8, or on 1.6 GB of float32 because of the last example, with a fit on a tenth."""
    script = """
        import sys, threading, time
        from pathlib import Path
        import numpy as np
        import morphnas
        def allocated():
            status = Path("/proc/self/status").read_text()
            return 1024 * int(status.partition("RssAnon:")[2].split()[0])
        peaks = [0]
        def watch():
            while True:
                peaks[0] = max(peaks[0], allocated())
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
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.int16 if needs_float32 else np.uint8, (100_000, 64, 64))
    x[:] = np.arange(64)
    x[:, 0, :2] = np.stack(divmod(np.arange(len(x)), 250), axis=1)  # no duplicates
    if needs_float32:
        x[-1] = 300
    x.flush()
    del x
    command = [sys.executable, "-c", textwrap.dedent(script), *(str(tmp_path / name) for name in ("x.npy", "a", "b"))]
    root = Path(morphnas.__file__).parent.parent
    limit = 0.25 * 90_000 * 64 * 64 * (4 if needs_float32 else 1)
    for attempt in range(3):  # the allocator's noise is tens of megabytes
        if attempt:
            shutil.rmtree(tmp_path / "a")
            shutil.rmtree(tmp_path / "b")
        growth = int(subprocess.check_output(command, text=True, cwd=root))
        if growth < limit:
            break
    assert growth < limit
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "x.npy"]


def test_low_free_memory_reduces_the_micro_batch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In searches and final trainings, by the memory that is estimated from the graph."""
    x, y = stripes(150)
    args = {"default_model_width": 4, "default_model_len": 1, "trainer_args": {"epochs": 1}}
    classifier = ImageClassifier(tmp_path / "run", max_trials=1, device="cpu", searcher_args=args, random_state=0)
    classifier.fit(x, y, time_limit=10)
    graph = classifier.load_searcher().trials[0].graph
    assert {t.outcome.micro_batch for t in classifier.load_searcher().trials if t.outcome} == {64}
    free = 2 * graph.peak_bytes(20)
    monkeypatch.setattr(data_memory, "free_memory", lambda *device: free_memory(*device) if device else free)
    classifier.final_fit(x, y, trainer_args={"epochs": 1}, time_limit=10)
    assert classifier.load_searcher().trials[-1].outcome.micro_batch == 16  # type: ignore[union-attr]
    classifier.set_params(overwrite=True).fit(x, y, time_limit=10)
    assert {t.outcome.micro_batch for t in classifier.load_searcher().trials if t.outcome} == {16}


def test_parallel_trials_share_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_memory, "free_memory", lambda: 1000.0)
    places: list[dict[str, Any]] = [{}, {"executor": "process", "devices": 2}]
    parallel_trials = [Settings.of(ImageClassifier(device="cpu", **place)).place.parallel_trials for place in places]
    assert [memory_for(None, CPU, n) for n in parallel_trials] == [500, 250]
    assert memory_for(70, CPU, 2) == 70
    assert memory_for(None, torch.device("cuda")) is None
