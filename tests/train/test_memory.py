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
from tests.train.tasks import Clock, Timed, blobs, equal, images, linear, seeded, state

PLAIN = Recipe(epochs=4, batch_size=16, lr=0.1, label_smoothing=0.0)


class Small(nn.Module):
    """A network that runs out of memory for more than `most` examples; `seen`: the batch sizes it was called with."""

    def __init__(self, inner: nn.Module, most: int) -> None:
        super().__init__()
        self.inner, self.most = inner, most
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        if len(x) > self.most:
            raise torch.OutOfMemoryError(f"no room for {len(x)}")
        logits: Tensor = self.inner(x)
        return logits


def run(module: nn.Module, task: Task, recipe: Recipe = PLAIN, clock: Clock | None = None, seconds: float = 1e9,
        scored: bool = True, micro: int | None = None, smallest: int = 2) -> Outcome:  # fmt: skip
    return train(
        module, task, recipe, (clock or Clock()).deadline(seconds), seeded(), None, scored, micro, smallest
    )  # fmt: skip


# -- steps in parts


@pytest.mark.parametrize("micro", [2, 5, 7, 16])
def test_a_step_in_parts_is_the_step_of_the_whole_batch(micro: int) -> None:
    task, losses, states = blobs(), [], []
    for size in (16, micro):
        module = linear()
        step = Step(module, task, PLAIN, micro=size)
        loss = step(Draw.of(torch.arange(16), (4,), PLAIN.augment, seeded()), 1.0)
        assert step.micro == size
        losses.append(loss.item())
        states.append(state(module))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name])


def test_out_of_memory_halves_what_is_in_memory_and_goes_on() -> None:
    task, whole, small = blobs(), linear(), Small(linear(), 5)
    expected = run(whole, task)
    outcome = run(small, task)
    assert outcome.status == "finished"
    assert outcome.micro_batch == 4
    assert outcome.score == pytest.approx(expected.score, abs=1e-4)
    assert small.seen[:3] == [16, 8, 4]
    assert all(size <= 4 for size in small.seen[3:20])


def test_a_network_that_never_fits_raises() -> None:
    module = Small(linear(), 3)
    with pytest.raises(torch.OutOfMemoryError, match="for 8"):
        run(module, blobs(), smallest=8)
    assert module.seen == [16, 8]


def test_what_was_trained_is_kept_when_others_take_the_memory() -> None:
    """After some epochs not even the smallest micro-batch fits."""
    module, task, clock = Small(linear(), 16), blobs(), Clock()
    best: list[dict[str, Tensor]] = []

    def each_epoch(outcome: Outcome) -> None:
        if outcome.epochs == 2:
            best.append(state(module))
            module.most = 1

    outcome = train(module, task, PLAIN, clock.deadline(1e9), seeded(), each_epoch)
    assert (outcome.status, outcome.epochs, outcome.best_epoch) == ("truncated", 2, 2)
    assert outcome.error is not None
    assert outcome.error.startswith("no room")
    assert equal(state(module), best[0])


def test_other_errors_are_not_tried_again() -> None:
    module = Small(linear(7), 16)
    with pytest.raises(RuntimeError, match="shape"):
        run(module, blobs())
    assert module.seen == [16]


def test_a_given_micro_batch_is_kept_to() -> None:
    module = Small(linear(), 99)
    assert run(module, blobs(), micro=4).micro_batch == 4
    assert max(module.seen) == 16  # in scoring, four times as many


def test_scoring_goes_on_with_fewer_examples_when_memory_is_out() -> None:
    task, module = blobs(), Small(linear(), 9)
    torch.testing.assert_close(
        predict(module, task.evaluation_set.x, task), predict(module.inner, task.evaluation_set.x, task)
    )
    with pytest.raises(torch.OutOfMemoryError):
        predict(Small(linear(), 0), task.evaluation_set.x, task)


def test_copies_of_the_weights_are_part_of_what_a_training_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The measurement on a GPU starts before optimizer, running average and best weights allocate memory."""
    events: list[str] = []

    def noted(name: str, make: Callable[..., Any]) -> Callable[..., Any]:
        def made(*args: Any) -> Any:
            events.append(name)
            return make(*args)

        return made

    monkeypatch.setattr(trainer, "_reset_peak_memory", noted("measuring", lambda *_: 0))
    for name in ("Step", "_copy_weights"):
        monkeypatch.setattr(trainer, name, noted(name, getattr(trainer, name)))
    run(linear(), blobs(), replace(PLAIN, average=1.0, epochs=1))
    assert events[:3] == ["measuring", "Step", "_copy_weights"]


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_speed_of_a_gpu_is_of_steps_that_are_done(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU executes a step after the call has returned: also the last of an epoch, or its only one."""
    clock, task = Clock(), blobs(16 * steps)
    free = clock.now  # when the device will have finished all queued steps

    def asked(layer: nn.Module, _: object) -> None:
        nonlocal free
        free = max(free, clock.now) + (1.0 if layer.training else 0.01)

    def after(until: float, number: float) -> float:
        clock.now = max(clock.now, until)
        return number

    item = Tensor.item
    monkeypatch.setattr(Tensor, "item", lambda value: after(free, item(value)))
    monkeypatch.setattr(trainer, "fetch_async", lambda loss: partial(after, free, item(loss)))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 0)
    module = linear()
    module.register_forward_pre_hook(asked)
    training = trainer._Training(module, task, PLAIN, clock.deadline(1e9), seeded(), True, None, 2, None)
    training.gpu = True
    outcome = training.run(None, None)
    assert outcome.status == "finished"
    assert outcome.images_per_second == pytest.approx(16)
    assert training.state.pace >= 0.5 / 16


# -- the deadline


GPU = torch.device("cuda")


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(
    ("flags", "name", "full"),
    [
        (SimpleNamespace(allow_tf32=True), "allow_tf32", False),  # before torch 2.9
        (SimpleNamespace(fp32_precision="none", conv=SimpleNamespace(fp32_precision="tf32")), "fp32_precision", "ieee"),
    ],
)
def test_inside_convolutions_compute_in_float32(
    monkeypatch: pytest.MonkeyPatch, flags: Any, name: str, full: object, fails: bool
) -> None:
    monkeypatch.setattr(torch.backends, "cudnn", flags)
    at = getattr(flags, "conv", flags)
    before = getattr(at, name)
    with full_precision(torch.device("cpu")):
        assert getattr(at, name) == before
    with pytest.raises(LookupError) if fails else nullcontext(), full_precision(GPU):
        assert getattr(at, name) == full
        if fails:
            raise LookupError
    assert getattr(at, name) == before


def test_what_users_say_of_all_precisions_still_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = SimpleNamespace(fp32_precision="tf32", conv=SimpleNamespace(fp32_precision="tf32"))
    monkeypatch.setattr(torch.backends, "cudnn", flags)
    with full_precision(GPU):
        pass
    assert flags.conv.fp32_precision == "none", "inherits the global setting, also if that is changed later"


def test_when_time_is_short_what_a_step_takes_is_found_out_first() -> None:
    module, recipe = Small(linear(), 99), replace(PLAIN, batch_size=64, epochs=1)
    run(module, blobs(128, 10), recipe, seconds=PROBE_BELOW_SECONDS + 1)
    assert module.seen[0] == 64
    hasty = Small(linear(), 99)
    run(hasty, blobs(128, 10), recipe, seconds=PROBE_BELOW_SECONDS - 1)
    assert hasty.seen[:4] == [PROBE_EXAMPLES, PROBE_EXAMPLES, 64, 64]
    assert equal(state(hasty), state(module))  # and it changes nothing


def test_what_a_step_takes_is_foretold_without_one() -> None:
    clock = Clock()
    assert probe_step_seconds(Timed(linear(), clock, 0.1, 0.01), blobs(), PLAIN, clock) == pytest.approx(0.1)
    assert probe_step_seconds(Small(linear(), 0), blobs(), PLAIN, clock) == 0.0
    module, random = to_module(cnn((2, 8, 8), 3, width=4)), torch.get_rng_state()
    before = state(module)
    probe_step_seconds(module, images(16, 4), PLAIN, clock)
    assert equal(state(module), before)
    assert all(p.grad is None for p in module.parameters())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("seconds", [2.0, 4.0, 7.0, 12.0])
def test_a_first_batch_that_does_not_fit_is_split(seconds: float) -> None:
    """A batch takes 12.8 s; there is time for two probes and, later, for a part of the rest."""
    clock, task = Clock(), blobs(128, 10)
    module = Timed(linear(), clock, 0.1, 0.01)
    begun = clock.now
    outcome = run(module, task, replace(PLAIN, batch_size=128), clock, seconds)
    assert outcome.status == "truncated"
    assert outcome.best_epoch == 1
    assert outcome.score is not None
    assert 0.4 * seconds < clock.now - begun <= seconds


class Scored(nn.Module):
    """Scoring is fast at first, and later takes seconds per example."""

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


def test_a_score_that_the_deadline_cuts_short_does_not_count() -> None:
    clock, task = Clock(), blobs(80, 320)
    module = Scored(linear(), clock, 2 * 6, 1.0)  # two epochs are scored in time, in parts of 32 and of 64
    begun = clock.now
    outcome = run(module, task, clock=clock, seconds=40)
    assert outcome.status == "truncated"
    assert outcome.epochs == 3
    assert outcome.best_epoch <= 2 == len(outcome.curve)
    assert clock.now - begun <= 40
    clock.now = 0
    assert outcome.score == pytest.approx(evaluate(module, task.evaluation_set, task)[0], abs=1e-6)


def test_without_an_earlier_score_what_was_trained_is_kept() -> None:
    clock, module = Clock(), linear()
    before = state(module)
    outcome = run(Scored(module, clock, 0, 1.0), blobs(80, 320), clock=clock, seconds=40)
    assert (outcome.status, outcome.score, outcome.best_epoch) == ("truncated", None, 1)
    assert not equal(before, state(module))


def test_predictions_stop_at_the_deadline() -> None:
    clock, task = Clock(), blobs(300, 10)
    module = Timed(linear(), clock, 0.0, 0.1)
    found = predict(module, task.train.x, task, deadline=clock.deadline(12))
    assert len(found) == 96  # 32, 64, and 128 would take 12.8 s
    torch.testing.assert_close(found, predict(module, task.train.x[:96], task))
    with pytest.raises(OutOfTime):
        evaluate(module, task.train, task, deadline=clock.deadline(12))
    assert len(predict(module, task.train.x, task, deadline=clock.deadline(0))) == 0


# -- divergence


def test_what_an_explosion_is() -> None:
    assert divergence(math.nan, [], math.log(10))
    assert divergence(math.inf, [1.0], math.log(10))
    assert not divergence(1e9, [], math.log(10))  # nothing to compare it with
    assert not divergence(22.0, [1.0], math.log(10))  # below 10 times the baseline loss
    assert not divergence(39.0, [2.0], math.log(10))
    assert "from 2 to 41" in divergence(41.0, [2.0, 2.0], math.log(10))


class Bursting(nn.Module):
    """From its n-th step on, its outputs are a factor larger."""

    def __init__(self, inner: nn.Module, steps: int, factor: float) -> None:
        super().__init__()
        self.inner, self.steps, self.factor, self.taken = inner, steps, factor, 0

    def forward(self, x: Tensor) -> Tensor:
        self.taken += self.training
        logits: Tensor = self.inner(x)
        return logits * (self.factor if self.taken > self.steps else 1.0)


@pytest.mark.parametrize("factor", [math.nan, math.inf, -1e6])
@pytest.mark.parametrize("steps", [0, 7, 33])
def test_a_batch_that_explodes_is_the_last_one(steps: int, factor: float) -> None:
    module = Bursting(linear(), steps, factor)
    outcome = run(module, blobs(400, 20), replace(PLAIN, batch_size=16))
    if steps or not math.isfinite(factor):  # the loss of a first batch may be large
        assert outcome.status == "diverged"
        assert module.taken == steps + 1
        assert outcome.error is not None
        assert "at a learning rate of 0.1" in outcome.error
        assert all(value.isfinite().all() for value in module.state_dict().values())


# -- memory estimates


def test_the_estimate_grows_with_what_is_in_memory() -> None:
    graph = cnn((3, 32, 32), 10, width=16, depth=3)
    per_example = graph.peak_bytes(2) - graph.peak_bytes(1)
    assert per_example > graph.activation_bytes
    assert graph.peak_bytes(64) == graph.peak_bytes(0) + 64 * per_example
    assert graph.peak_bytes(0) >= 24 * graph.parameters
    assert graph.peak_bytes(8) < cnn((3, 32, 32), 10, width=32, depth=3).peak_bytes(8)


def test_what_autograd_keeps_is_within_the_estimate() -> None:
    task, graph = images(), cnn((2, 8, 8), 3, width=8, depth=3)
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        kept[value.data_ptr()] = value.nbytes
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        to_module(graph)(task.normalised(task.train.x))
    assert 0.4 * graph.peak_bytes(96) < sum(kept.values()) <= graph.peak_bytes(96)
