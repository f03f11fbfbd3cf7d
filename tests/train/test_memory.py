"""Micro-batches, lack of memory or time, and divergence."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from morphnas.graph import cnn, to_module
from morphnas.train import trainer
from morphnas.train.augment import Draw
from morphnas.train.data import Task
from morphnas.train.deadline import OutOfTime
from morphnas.train.predict import evaluate, full_precision, predict
from morphnas.train.recipe import Outcome, Recipe
from morphnas.train.step import Step
from morphnas.train.trainer import PROBE_BELOW_SECONDS, PROBE_EXAMPLES, divergence, probe_step_seconds, train
from tests.train.tasks import Clock, TimedNetwork, blob_task, copy_state, image_task, linear, seeded, states_equal

PLAIN = Recipe(epochs=4, batch_size=16, lr=0.1, label_smoothing=0.0)


class LimitedMemory(nn.Module):
    """A network that runs out of memory for more than `max_examples`. batch_sizes: those that it was called with."""

    def __init__(self, inner: nn.Module, max_examples: int) -> None:
        super().__init__()
        self.inner, self.max_examples = inner, max_examples
        self.batch_sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batch_sizes.append(len(x))
        if len(x) > self.max_examples:
            raise torch.OutOfMemoryError(f"no room for {len(x)}")
        logits: Tensor = self.inner(x)
        return logits


def run(module: nn.Module, task: Task, recipe: Recipe = PLAIN, clock: Clock | None = None, seconds: float = 1e9,
        scored: bool = True, micro: int | None = None, smallest: int = 2) -> Outcome:  # fmt: skip
    deadline = (clock or Clock()).deadline(seconds)
    return train(module, task, recipe, deadline, seeded(), None, scored, micro, smallest)


# -- micro-batches


@pytest.mark.parametrize("micro", [2, 5, 7, 16])
def test_micro_batches_make_the_step_of_the_whole_batch(micro: int) -> None:
    task, losses, states = blob_task(), [], []
    for size in (16, micro):
        module = linear()
        step = Step(module, task, PLAIN, micro=size)
        loss = step(Draw.of(torch.arange(16), (4,), PLAIN.augment, seeded()), 1.0)
        assert step.micro == size
        losses.append(loss.item())
        states.append(copy_state(module))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name])


def test_out_of_memory_halves_the_micro_batch() -> None:
    task, unlimited, limited = blob_task(), linear(), LimitedMemory(linear(), 5)
    expected = run(unlimited, task)
    outcome = run(limited, task)
    assert outcome.status == "finished"
    assert outcome.micro_batch == 4
    assert outcome.score == pytest.approx(expected.score, abs=1e-4)
    assert limited.batch_sizes[:3] == [16, 8, 4]
    assert all(size <= 4 for size in limited.batch_sizes[3:20])


def test_network_that_never_fits_raises_out_of_memory() -> None:
    module = LimitedMemory(linear(), 3)
    with pytest.raises(torch.OutOfMemoryError, match="for 8"):
        run(module, blob_task(), smallest=8)
    assert module.batch_sizes == [16, 8]


def test_best_weights_are_kept_if_memory_runs_out_later() -> None:
    """Not even the smallest micro-batch fits, after some epochs."""
    module, task, clock = LimitedMemory(linear(), 16), blob_task(), Clock()
    best: list[dict[str, Tensor]] = []

    def each_epoch(outcome: Outcome) -> None:
        if outcome.epochs == 2:
            best.append(copy_state(module))
            module.max_examples = 1

    outcome = train(module, task, PLAIN, clock.deadline(1e9), seeded(), each_epoch)
    assert (outcome.status, outcome.epochs, outcome.best_epoch) == ("truncated", 2, 2)
    assert outcome.error is not None
    assert outcome.error.startswith("no room")
    assert states_equal(copy_state(module), best[0])


def test_other_errors_are_raised_at_once() -> None:
    module = LimitedMemory(linear(7), 16)
    with pytest.raises(RuntimeError, match="shape"):
        run(module, blob_task())
    assert module.batch_sizes == [16]


def test_given_micro_batch_is_used() -> None:
    module = LimitedMemory(linear(), 99)
    assert run(module, blob_task(), micro=4).micro_batch == 4
    assert max(module.batch_sizes) == 16  # in scoring, four times as many


def test_out_of_memory_in_prediction_halves_the_batch() -> None:
    task, module = blob_task(), LimitedMemory(linear(), 9)
    torch.testing.assert_close(
        predict(module, task.evaluation_set.x, task), predict(module.inner, task.evaluation_set.x, task)
    )
    with pytest.raises(torch.OutOfMemoryError):
        predict(LimitedMemory(linear(), 0), task.evaluation_set.x, task)


def test_memory_is_measured_before_weights_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """The measurement on a GPU starts before optimizer, running average and best weights allocate memory."""
    events: list[str] = []

    def recorded(name: str, make: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            events.append(name)
            return make(*args)

        return call

    monkeypatch.setattr(trainer, "_reset_peak_memory", recorded("measuring", lambda *_: 0))
    for name in ("Step", "_copy_weights"):
        monkeypatch.setattr(trainer, name, recorded(name, getattr(trainer, name)))
    run(linear(), blob_task(), replace(PLAIN, average=1.0, epochs=1))
    assert events[:3] == ["measuring", "Step", "_copy_weights"]


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_speed_on_a_gpu_is_that_of_finished_steps(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU executes a step after the call has returned: also the last one of an epoch, or its only one."""
    clock, task = Clock(), blob_task(16 * steps)
    finished = clock.now  # when the device will have finished all queued steps

    def queue_step(layer: nn.Module, _: object) -> None:
        nonlocal finished
        finished = max(finished, clock.now) + (1.0 if layer.training else 0.01)

    def wait(until: float, value: float) -> float:
        clock.now = max(clock.now, until)
        return value

    item = Tensor.item
    monkeypatch.setattr(Tensor, "item", lambda value: wait(finished, item(value)))
    monkeypatch.setattr(trainer, "fetch_async", lambda loss: partial(wait, finished, item(loss)))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 0)
    module = linear()
    module.register_forward_pre_hook(queue_step)
    training = trainer._Training(module, task, PLAIN, clock.deadline(1e9), seeded(), True, None, 2, None)
    training.gpu = True
    outcome = training.run(None, None)
    assert outcome.status == "finished"
    assert outcome.images_per_second == pytest.approx(16)
    assert training.state.pace >= 0.5 / 16


# -- precision of convolutions

GPU = torch.device("cuda")


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(
    ("flags", "name", "full"),
    [
        (SimpleNamespace(allow_tf32=True), "allow_tf32", False),  # before torch 2.9
        (SimpleNamespace(fp32_precision="none", conv=SimpleNamespace(fp32_precision="tf32")), "fp32_precision", "ieee"),
    ],
)
def test_full_precision_is_set_and_restored(
    monkeypatch: pytest.MonkeyPatch, flags: Any, name: str, full: object, fails: bool
) -> None:
    monkeypatch.setattr(torch.backends, "cudnn", flags)
    holder = getattr(flags, "conv", flags)
    before = getattr(holder, name)
    with full_precision(torch.device("cpu")):
        assert getattr(holder, name) == before
    with pytest.raises(LookupError) if fails else nullcontext(), full_precision(GPU):
        assert getattr(holder, name) == full
        if fails:
            raise LookupError
    assert getattr(holder, name) == before


def test_full_precision_keeps_inheriting_the_global_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = SimpleNamespace(fp32_precision="tf32", conv=SimpleNamespace(fp32_precision="tf32"))
    monkeypatch.setattr(torch.backends, "cudnn", flags)
    with full_precision(GPU):
        pass
    assert flags.conv.fp32_precision == "none", "inherits the global setting, also if that is changed later"


# -- deadlines


def test_step_is_timed_first_when_time_is_short() -> None:
    module, recipe = LimitedMemory(linear(), 99), replace(PLAIN, batch_size=64, epochs=1)
    run(module, blob_task(128, 10), recipe, seconds=PROBE_BELOW_SECONDS + 1)
    assert module.batch_sizes[0] == 64
    hurried = LimitedMemory(linear(), 99)
    run(hurried, blob_task(128, 10), recipe, seconds=PROBE_BELOW_SECONDS - 1)
    assert hurried.batch_sizes[:4] == [PROBE_EXAMPLES, PROBE_EXAMPLES, 64, 64]
    assert states_equal(copy_state(hurried), copy_state(module))  # the estimate changes nothing


def test_probe_estimates_step_seconds_without_side_effects() -> None:
    clock = Clock()
    assert probe_step_seconds(TimedNetwork(linear(), clock, 0.1, 0.01), blob_task(), PLAIN, clock) == pytest.approx(0.1)
    assert probe_step_seconds(LimitedMemory(linear(), 0), blob_task(), PLAIN, clock) == 0.0
    module, random_state = to_module(cnn((2, 8, 8), 3, width=4)), torch.get_rng_state()
    weights = copy_state(module)
    probe_step_seconds(module, image_task(16, 4), PLAIN, clock)
    assert states_equal(copy_state(module), weights)
    assert all(p.grad is None for p in module.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("seconds", [2.0, 4.0, 7.0, 12.0])
def test_first_batch_is_shortened_to_fit_the_deadline(seconds: float) -> None:
    """A batch takes 12.8 s; there is time for two passes that estimate this, and for a part of the batch."""
    clock, task = Clock(), blob_task(128, 10)
    module = TimedNetwork(linear(), clock, 0.1, 0.01)
    start = clock.now
    outcome = run(module, task, replace(PLAIN, batch_size=128), clock, seconds)
    assert outcome.status == "truncated"
    assert outcome.best_epoch == 1
    assert outcome.score is not None
    assert 0.4 * seconds < clock.now - start <= seconds


class SlowScoring(nn.Module):
    """A network whose scoring takes no time at first, and `cost` seconds per example after the first `after` calls."""

    def __init__(self, inner: nn.Module, clock: Clock, after: int, cost: float) -> None:
        super().__init__()
        self.inner, self.clock, self.after, self.cost, self.calls = inner, clock, after, cost, 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            self.calls += 1
            self.clock.now += len(x) * self.cost if self.calls > self.after else 0.0
        else:
            self.clock.now += 0.01 * len(x)
        logits: Tensor = self.inner(x)
        return logits


def test_score_interrupted_by_the_deadline_is_ignored() -> None:
    clock, task = Clock(), blob_task(80, 320)
    module = SlowScoring(linear(), clock, 2 * 6, 1.0)  # two epochs are scored in time, each in 6 batches
    start = clock.now
    outcome = run(module, task, clock=clock, seconds=40)
    assert outcome.status == "truncated"
    assert outcome.epochs == 3
    assert outcome.best_epoch <= 2 == len(outcome.curve)
    assert clock.now - start <= 40
    clock.now = 0
    assert outcome.score == pytest.approx(evaluate(module, task.evaluation_set, task)[0], abs=1e-6)


def test_unscored_weights_are_kept_without_an_earlier_score() -> None:
    clock, module = Clock(), linear()
    before = copy_state(module)
    outcome = run(SlowScoring(module, clock, 0, 1.0), blob_task(80, 320), clock=clock, seconds=40)
    assert (outcome.status, outcome.score, outcome.best_epoch) == ("truncated", None, 1)
    assert not states_equal(before, copy_state(module))


def test_predictions_stop_at_the_deadline() -> None:
    clock, task = Clock(), blob_task(300, 10)
    module = TimedNetwork(linear(), clock, 0.0, 0.1)
    found = predict(module, task.train.x, task, deadline=clock.deadline(12))
    assert len(found) == 96  # 32, 64, and 128 would take 12.8 s
    torch.testing.assert_close(found, predict(module, task.train.x[:96], task))
    with pytest.raises(OutOfTime):
        evaluate(module, task.train, task, deadline=clock.deadline(12))
    assert len(predict(module, task.train.x, task, deadline=clock.deadline(0))) == 0


# -- divergence


def test_losses_that_count_as_divergence() -> None:
    assert divergence(math.nan, [], math.log(10))
    assert divergence(math.inf, [1.0], math.log(10))
    assert not divergence(1e9, [], math.log(10))  # nothing to compare it with
    assert not divergence(22.0, [1.0], math.log(10))  # below 10 times the baseline loss
    assert not divergence(39.0, [2.0], math.log(10))
    assert "from 2 to 41" in divergence(41.0, [2.0, 2.0], math.log(10))


class Exploding(nn.Module):
    """A network whose outputs are multiplied by a factor after so many steps."""

    def __init__(self, inner: nn.Module, steps: int, factor: float) -> None:
        super().__init__()
        self.inner, self.steps, self.factor, self.taken = inner, steps, factor, 0

    def forward(self, x: Tensor) -> Tensor:
        self.taken += self.training
        logits: Tensor = self.inner(x)
        return logits * (self.factor if self.taken > self.steps else 1.0)


@pytest.mark.parametrize("factor", [math.nan, math.inf, -1e6])
@pytest.mark.parametrize("steps", [0, 7, 33])
def test_training_ends_when_the_loss_explodes(steps: int, factor: float) -> None:
    module = Exploding(linear(), steps, factor)
    outcome = run(module, blob_task(400, 20), replace(PLAIN, batch_size=16))
    if steps or not math.isfinite(factor):  # the loss of a first batch may be large
        assert outcome.status == "diverged"
        assert module.taken == steps + 1
        assert outcome.error is not None
        assert "at a learning rate of 0.1" in outcome.error
        assert all(value.isfinite().all() for value in module.state_dict().values())
    else:
        assert module.taken > 1


# -- memory estimates


def test_peak_bytes_grow_with_batch_and_network() -> None:
    graph = cnn((3, 32, 32), 10, width=16, depth=3)
    per_example = graph.peak_bytes(2) - graph.peak_bytes(1)
    assert per_example > graph.activation_bytes
    assert graph.peak_bytes(64) == graph.peak_bytes(0) + 64 * per_example
    assert graph.peak_bytes(0) >= 24 * graph.parameters
    assert graph.peak_bytes(8) < cnn((3, 32, 32), 10, width=32, depth=3).peak_bytes(8)


def test_peak_bytes_cover_tensors_saved_by_autograd() -> None:
    task, graph = image_task(), cnn((2, 8, 8), 3, width=8, depth=3)
    saved: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        saved[value.data_ptr()] = value.nbytes
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        to_module(graph)(task.normalised(task.train.x))
    assert 0.4 * graph.peak_bytes(96) < sum(saved.values()) <= graph.peak_bytes(96)
