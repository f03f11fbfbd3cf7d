"""Tests of checkpoint files: when they are written, continuing from them, damaged ones, and their removal."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import nn

from morphnas.graph import cnn
from morphnas.run import checkpoints, files
from morphnas.run import work as work_module
from morphnas.run.checkpoints import CheckpointWriter, Result
from morphnas.run.files import RunError
from morphnas.run.jobs import Job
from morphnas.run.work import work
from morphnas.train.checkpoint import Checkpoint
from morphnas.train.recipe import Augment, Outcome, Recipe
from morphnas.train.trainer import train
from tests.run.doubles import GRAPH, RECIPE, new_store, proposals, without_times
from tests.train.tasks import Clock, blob_task, image_task, states_equal

NET = cnn((2, 8, 8), 3, width=4, depth=2)
LONG = Recipe(epochs=5, batch_size=16, lr=0.02, optimizer="muon", augment=Augment(flip=True))
TASK = image_task(n=50, n_valid=20)


class Killed(BaseException):
    pass


@pytest.fixture
def every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has a checkpoint written after every epoch."""
    monkeypatch.setattr(checkpoints, "MIN_INTERVAL", 0.0)
    monkeypatch.setattr(checkpoints, "MAX_TIME_SHARE", 1e9)


def killed_after(n: int) -> Callable[[Outcome], None]:
    """A callback that raises `Killed` in the epoch after the n-th, whose checkpoint has been written."""

    def each_epoch(outcome: Outcome) -> None:
        if outcome.epochs == n + 1:
            raise Killed

    return each_epoch


def same_results(one: Result, other: Result) -> bool:
    """Whether two results have equal weights, and equal outcomes except for times."""
    assert one[1] is not None
    assert other[1] is not None
    return without_times(one[0]) == without_times(other[0]) and states_equal(one[1], other[1])


# -- continuing from a checkpoint


def test_work_continues_from_checkpoint(tmp_path: Path, every_epoch: None) -> None:
    job = Job(NET, (), LONG, 600, 1)
    expected = work(job, TASK)
    job = replace(job, checkpoint=tmp_path / "checkpoint.safetensors")
    with pytest.raises(Killed):
        work(job, TASK, killed_after(3))
    epochs: list[int] = []
    assert same_results(work(job, TASK, lambda outcome: epochs.append(outcome.epochs)), expected)
    assert epochs == [4, 5]


def test_repetition_after_divergence_continues_from_checkpoint(
    tmp_path: Path, every_epoch: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first training diverges, and its repetition is interrupted; the better of the two is returned."""
    rates = list[float]()

    def diverging(net: nn.Module, task: object, recipe: Recipe, *args: object, **kwargs: object) -> Outcome:
        rates.append(recipe.lr)
        outcome: Outcome = train(net, task, recipe, *args, **kwargs)  # type: ignore[arg-type]
        return replace(outcome, status="diverged", error="too fast") if recipe.lr == LONG.lr else outcome

    monkeypatch.setattr(work_module, "train", diverging)
    job = Job(NET, (), LONG, 600, 1)
    expected = work(job, TASK)
    job = replace(job, checkpoint=tmp_path / "checkpoint.safetensors")
    count = itertools.count()

    def each_epoch(_: Outcome) -> None:
        if next(count) == LONG.epochs + 3:
            raise Killed

    with pytest.raises(Killed):
        work(job, TASK, each_epoch)
    rates.clear()
    assert same_results(work(job, TASK), expected)
    assert rates == [LONG.lr / 4]


def test_checkpoint_of_repetition_is_used_without_time_left(
    tmp_path: Path, every_epoch: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverging(net: nn.Module, task: object, recipe: Recipe, *args: object, **kwargs: object) -> Outcome:
        first = recipe.lr == LONG.lr
        recipe = replace(recipe, epochs=1) if first else recipe
        outcome: Outcome = train(net, task, recipe, *args, **kwargs)  # type: ignore[arg-type]
        return replace(outcome, status="diverged", score=-9.0) if first else outcome

    monkeypatch.setattr(work_module, "train", diverging)
    job = Job(NET, (), LONG, 600, 1, checkpoint=tmp_path / "checkpoint.safetensors")
    reported = list[Outcome]()

    def each_epoch(outcome: Outcome) -> None:
        reported.append(outcome)
        if len(reported) == 5:
            raise Killed

    with pytest.raises(Killed):
        work(job, TASK, each_epoch)
    outcome, weights = work(replace(job, seconds=0), TASK)
    assert (outcome.status, outcome.epochs, outcome.retries) == ("truncated", 3, 1)
    assert outcome.score == reported[-2].score
    assert weights is not None


@pytest.mark.parametrize(
    "change",
    [
        lambda job: replace(job, recipe=replace(LONG, lr=0.03)),
        lambda job: replace(job, seed=2),
        lambda job: replace(job, start=cnn((2, 8, 8), 3, width=5, depth=2)),
    ],
    ids=["recipe", "seed", "start"],
)
def test_checkpoint_of_another_job_is_not_used(
    tmp_path: Path, every_epoch: None, caplog: pytest.LogCaptureFixture, change: Callable[[Job], Job]
) -> None:
    job = Job(NET, (), LONG, 600, 1, checkpoint=tmp_path / "checkpoint.safetensors")
    with pytest.raises(Killed):
        work(job, TASK, killed_after(2))
    other = change(job)
    expected = work(replace(other, checkpoint=None), TASK)
    with caplog.at_level(logging.WARNING, "morphnas"):
        assert same_results(work(other, TASK), expected)
    assert "starts again" in caplog.text


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "garbage": lambda _: b"garbage" * 9,
    "huge header": lambda _: b"\xff" * 8 + b"{}",
    "truncated": lambda data: data[: len(data) // 2],
    "other format": lambda data: data.replace(b'format\\": 1', b'format\\": 2', 1),
    "deep": lambda _: save({"x": torch.zeros(1)}, {"checkpoint": "[" * 200_000 + "]" * 200_000}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_checkpoint_is_not_used(
    tmp_path: Path, every_epoch: None, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    file = tmp_path / "checkpoint.safetensors"
    job = Job(NET, (), LONG, 600, 1, checkpoint=file)
    with pytest.raises(Killed):
        work(job, TASK, killed_after(2))
    data = file.read_bytes()
    damaged = DAMAGE[damage](data)
    assert damaged != data
    file.write_bytes(damaged)
    with caplog.at_level(logging.WARNING, "morphnas"):
        assert same_results(work(job, TASK), work(replace(job, checkpoint=None), TASK))
    assert "starts again" in caplog.text


# -- when checkpoints are written


def make_writer(path: Path | None, clock: Clock) -> CheckpointWriter:
    return CheckpointWriter(path, {"seed": 1}, clock)


def checkpoint() -> Checkpoint:
    return Checkpoint({"epoch": 1}, {"a": torch.zeros(2)})


def test_checkpoints_are_at_least_ten_seconds_apart(tmp_path: Path) -> None:
    clock, made = Clock(), list[float]()

    def make() -> Checkpoint:
        made.append(clock.now - 1000)
        return checkpoint()

    writer = make_writer(tmp_path / "c", clock)
    for _ in range(40):
        clock.now += 3
        writer(make)
    assert made == [12.0 * (i + 1) for i in range(10)]


def test_slow_checkpoints_take_two_percent_of_the_time(tmp_path: Path) -> None:
    clock, made = Clock(), list[float]()

    def make() -> Checkpoint:
        made.append(clock.now)
        clock.now += 2
        return checkpoint()

    writer = make_writer(tmp_path / "c", clock)
    while clock.now < 6000:
        clock.now += 1
        writer(make)
    assert 45 < len(made) <= 50  # 2 s in every 102 s


def test_first_checkpoint_of_large_network_is_delayed(tmp_path: Path) -> None:
    """Writing one of 100 MB of weights takes about 2 s, which are 2 % of 100 s."""
    clock = Clock()
    writer = CheckpointWriter(tmp_path / "c", {"seed": 1}, clock, weights=100_000_000)
    clock.now += 99
    writer(lambda: pytest.fail("too early"))
    clock.now += 2
    writer(checkpoint)
    assert (tmp_path / "c").exists()


def test_no_checkpoints_without_path() -> None:
    clock = Clock()
    writer = make_writer(None, clock)
    clock.now += 100
    writer(lambda: pytest.fail("a checkpoint was made"))
    assert writer.load() is None


def test_full_disk_ends_only_the_checkpoints(
    tmp_path: Path, every_epoch: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise RunError(f"{path} cannot be written: No space left on device")

    monkeypatch.setattr(files, "write_bytes", full)
    job = Job(GRAPH, (), replace(RECIPE, epochs=4), 600, 1)
    with caplog.at_level(logging.WARNING, "morphnas"):
        assert same_results(work(replace(job, checkpoint=tmp_path / "c"), blob_task()), work(job, blob_task()))
    assert caplog.text.count("no further checkpoints of this training are written") == 1


def test_finish_removes_checkpoint(tmp_path: Path) -> None:
    with new_store(tmp_path / "run") as store:
        store.claim(proposals(1)[0])
        store.checkpoint(0).write_bytes(b"any")
        store.finish(0, Outcome("failed"), None)
        assert not store.checkpoint(0).exists()


def test_contents_of_checkpoint_file(tmp_path: Path, every_epoch: None) -> None:
    job = Job(NET, (), LONG, 600, 1, checkpoint=tmp_path / "checkpoint.safetensors")
    with pytest.raises(Killed):
        work(job, TASK, killed_after(2))
    tensors, metadata = files.read_tensors(tmp_path / "checkpoint.safetensors")
    facts = json.loads(metadata["checkpoint"])
    assert facts["facts"]["epoch"] == 2
    assert facts["job"]["recipe"] == LONG.to_json()
    assert {name.split(".")[0] for name in tensors} == {
        "module", "best", "optimizer", "generator", "torch", "order", "mirrored",
    }  # fmt: skip
