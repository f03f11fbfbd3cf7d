"""Checkpoint files: when they are written, what they restore, damaged ones, and their removal."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import nn

from morphnas.graph import Graph, Weights, cnn
from morphnas.run import checkpoints, files
from morphnas.run import work as module
from morphnas.run.checkpoints import CheckpointWriter
from morphnas.run.files import RunError
from morphnas.run.jobs import Job
from morphnas.run.work import work
from morphnas.train.checkpoint import Checkpoint
from morphnas.train.recipe import Augment, Outcome, Recipe
from morphnas.train.trainer import train
from tests.run.doubles import GRAPH, RECIPE, proposals, store_of
from tests.train.tasks import Clock, blobs, equal, images

NET = cnn((2, 8, 8), 3, width=4, depth=2)
LONG = Recipe(epochs=5, batch_size=16, lr=0.02, optimizer="muon", augment=Augment(flip=True))
TASK = images(n=50, n_valid=20)


class Killed(BaseException):
    pass


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "MIN_INTERVAL", 0.0)
    monkeypatch.setattr(checkpoints, "MAX_TIME_SHARE", 1e9)


def killed_after(n: int) -> Callable[[Outcome], None]:
    """Raises in the epoch after the n-th."""

    def each_epoch(outcome: Outcome) -> None:
        if outcome.epochs == n + 1:
            raise Killed

    return each_epoch


def same(one: tuple[Outcome, Weights | None], other: tuple[Outcome, Weights | None]) -> bool:
    def timeless(outcome: Outcome) -> Outcome:
        curve = tuple(replace(epoch, seconds=0) for epoch in outcome.curve)
        return replace(outcome, seconds=0, images_per_second=0, latency=None, curve=curve)

    assert one[1] is not None
    assert other[1] is not None
    return timeless(one[0]) == timeless(other[0]) and equal(one[1], other[1])


def test_work_goes_on_from_its_file(tmp_path: Path, often: None) -> None:
    job = Job(NET, (), LONG, 600, 1)
    expected = work(job, TASK)
    kept = replace(job, checkpoint=tmp_path / "checkpoint.safetensors")
    with pytest.raises(Killed):
        work(kept, TASK, killed_after(3))
    epochs: list[int] = []
    assert same(work(kept, TASK, lambda outcome: epochs.append(outcome.epochs)), expected)
    assert epochs == [4, 5]


def test_a_second_try_goes_on_and_knows_of_the_first(
    tmp_path: Path, often: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first training diverges, the second is interrupted; the better of the two is returned, as without that."""
    rates = list[float]()

    def diverging(net: nn.Module, task: object, recipe: Recipe, *args: object, **more: object) -> Outcome:
        rates.append(recipe.lr)
        outcome: Outcome = train(net, task, recipe, *args, **more)  # type: ignore[arg-type]
        return replace(outcome, status="diverged", error="too fast") if recipe.lr == LONG.lr else outcome

    monkeypatch.setattr(module, "train", diverging)
    job = Job(NET, (), LONG, 600, 1)
    expected = work(job, TASK)
    kept = replace(job, checkpoint=tmp_path / "checkpoint.safetensors")
    count = iter(range(100))

    def each_epoch(_: Outcome) -> None:
        if next(count) == LONG.epochs + 3:
            raise Killed

    with pytest.raises(Killed):
        work(kept, TASK, each_epoch)
    del rates[:]
    assert same(work(kept, TASK), expected)
    assert rates == [LONG.lr / 4]


def test_a_second_try_is_not_lost_where_no_time_is_left(
    tmp_path: Path, often: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverging(net: nn.Module, task: object, recipe: Recipe, *args: object, **more: object) -> Outcome:
        first = recipe.lr == LONG.lr
        given = (replace(recipe, epochs=1), *args) if first else (recipe, *args)
        outcome: Outcome = train(net, task, *given, **more)  # type: ignore[arg-type]
        return replace(outcome, status="diverged", score=-9.0) if first else outcome

    monkeypatch.setattr(module, "train", diverging)
    job = Job(NET, (), LONG, 600, 1, checkpoint=tmp_path / "checkpoint.safetensors")
    seen = list[Outcome]()

    def each_epoch(outcome: Outcome) -> None:
        seen.append(outcome)
        if len(seen) == 5:
            raise Killed

    with pytest.raises(Killed):
        work(job, TASK, each_epoch)
    outcome, weights = work(replace(job, seconds=0), TASK)
    assert (outcome.status, outcome.epochs, outcome.retries) == ("truncated", 3, 1)
    assert outcome.score == seen[-2].score
    assert weights is not None


@pytest.mark.parametrize(
    "change",
    [
        lambda job: replace(job, recipe=replace(LONG, lr=0.03)),
        lambda job: replace(job, seed=2),
        lambda job: replace(job, start=cnn((2, 8, 8), 3, width=5, depth=2)),
    ],
)
def test_a_checkpoint_of_another_work_is_said_and_not_used(
    tmp_path: Path, often: None, caplog: pytest.LogCaptureFixture, change: Callable[[Job], Job]
) -> None:
    job = Job(NET, (), LONG, 600, 1, checkpoint=tmp_path / "checkpoint.safetensors")
    with pytest.raises(Killed):
        work(job, TASK, killed_after(2))
    other = change(job)
    expected = work(replace(other, checkpoint=None), TASK)
    with caplog.at_level(logging.WARNING, "morphnas"):
        assert same(work(other, TASK), expected)
    assert "starts again" in caplog.text


@pytest.mark.parametrize("data", [b"", b"garbage" * 9, b"\xff" * 8 + b"{}", "half", "other format", "deep"])
def test_a_damaged_checkpoint_is_said_and_not_used(
    tmp_path: Path, often: None, caplog: pytest.LogCaptureFixture, data: bytes | str
) -> None:
    file = tmp_path / "checkpoint.safetensors"
    job = Job(NET, (), LONG, 600, 1, checkpoint=file)
    with pytest.raises(Killed):
        work(job, TASK, killed_after(2))
    whole = file.read_bytes()
    made = {"half": whole[: len(whole) // 2], "other format": whole.replace(b'format\\": 1', b'format\\": 2', 1)}
    made["deep"] = save({"x": torch.zeros(1)}, {"checkpoint": "[" * 200_000 + "]" * 200_000})
    file.write_bytes(made[data] if isinstance(data, str) else data)
    with caplog.at_level(logging.WARNING, "morphnas"):
        assert same(work(job, TASK), work(replace(job, checkpoint=None), TASK))
    assert "starts again" in caplog.text


# -- when


def keeper(path: Path | None, clock: Clock) -> CheckpointWriter:
    return CheckpointWriter(path, {"seed": 1}, clock)


def checkpoint() -> Checkpoint:
    return Checkpoint({"epoch": 1}, {"a": torch.zeros(2)})


def test_checkpoints_are_ten_seconds_apart(tmp_path: Path) -> None:
    clock, made = Clock(), list[float]()

    def make() -> Checkpoint:
        made.append(clock.now - 1000)
        return checkpoint()

    keep = keeper(tmp_path / "c", clock)
    for _ in range(40):
        clock.now += 3
        keep(make)
    assert made == [12.0 * (i + 1) for i in range(10)]


def test_slow_checkpoints_take_a_small_share_of_the_time(tmp_path: Path) -> None:
    clock, made = Clock(), list[float]()

    def make() -> Checkpoint:
        made.append(clock.now)
        clock.now += 2
        return checkpoint()

    keep = keeper(tmp_path / "c", clock)
    while clock.now < 6000:
        clock.now += 1
        keep(make)
    assert 45 < len(made) <= 50  # 2 s in every 102


def test_a_large_network_is_written_down_for_the_first_time_when_that_is_a_small_share(tmp_path: Path) -> None:
    """100 MB of weights take about 2 s, which are 2 % of 100."""
    clock = Clock()
    keep = CheckpointWriter(tmp_path / "c", {"seed": 1}, clock, weights=100_000_000)
    clock.now += 99
    keep(lambda: pytest.fail("that would be too soon"))
    clock.now += 2
    keep(checkpoint)
    assert (tmp_path / "c").exists()


def test_no_place_no_checkpoint() -> None:
    clock = Clock()
    keep = keeper(None, clock)
    clock.now += 100
    keep(lambda: pytest.fail("made for nobody"))
    assert keep.load() is None


def test_a_disk_that_is_full_costs_the_checkpoints_alone(
    tmp_path: Path, often: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise RunError(f"{path} cannot be written: No space left on device")

    monkeypatch.setattr(files, "write_bytes", full)
    job = Job(GRAPH, (), replace(RECIPE, epochs=4), 600, 1)
    with caplog.at_level(logging.WARNING, "morphnas"):
        assert same(work(replace(job, checkpoint=tmp_path / "c"), blobs()), work(job, blobs()))
    assert caplog.text.count("no more checkpoints of this training") == 1


def test_a_committed_trial_has_no_checkpoint(tmp_path: Path) -> None:
    with store_of(tmp_path / "run") as store:
        for i, proposal in enumerate(proposals(2)):
            store.claim(proposal)
            store.checkpoint(i).write_bytes(b"any")
            assert isinstance(proposal.start, Graph)
            store.finish(i, Outcome("failed"), None)
            assert not store.checkpoint(i).exists()


def test_what_a_checkpoint_holds_can_be_looked_into(tmp_path: Path, often: None) -> None:
    job = Job(NET, (), LONG, 600, 1, checkpoint=tmp_path / "checkpoint.safetensors")
    with pytest.raises(Killed):
        work(job, TASK, killed_after(2))
    tensors, metadata = files.read_tensors(tmp_path / "checkpoint.safetensors")
    facts = json.loads(metadata["checkpoint"])
    assert facts["facts"]["epoch"] == 2
    assert facts["job"]["recipe"] == LONG.to_json()
    assert {name.split(".")[0] for name in tensors} == {
        "module",
        "best",
        "optimizer",
        "generator",
        "torch",
        "order",
        "mirrored",
    }
