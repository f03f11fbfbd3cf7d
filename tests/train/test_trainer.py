"""The training loop: the schedule, the deadline, patience, divergence, and the score of the weights that are kept."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from morphnas.graph import cnn, fresh_weights, mlp, to_module
from morphnas.train import data, step
from morphnas.train import recipe as recipe_module
from morphnas.train.augment import Draw, augmented
from morphnas.train.checkpoint import Checkpoint, CheckpointMismatch
from morphnas.train.data import Examples, Task
from morphnas.train.deadline import NEVER
from morphnas.train.goal import Classification, CustomGoal, Regression, UndefinedMetric
from morphnas.train.predict import Diverged, evaluate, predict
from morphnas.train.recipe import Augment, Optimizer, Outcome, Recipe
from morphnas.train.step import make_optimizer
from morphnas.train.trainer import Schedule, last_epoch, train
from tests.train.tasks import (
    Clock,
    Constant,
    TimedNetwork,
    blob_task,
    copy_state,
    image_task,
    linear,
    record_rates,
    seeded,
    states_equal,
)

FOREVER = 1e9
PLAIN = Recipe(epochs=4, batch_size=16, lr=0.1, label_smoothing=0.0)


def run(
    module: nn.Module,
    task: Task,
    recipe: Recipe = PLAIN,
    seconds: float = FOREVER,
    clock: Clock | None = None,
    each_epoch: Callable[[Outcome], None] | None = None,
    scored: bool = True,
    seed: int = 0,
) -> Outcome:
    deadline = (clock or Clock()).deadline(seconds)
    return train(module, task, recipe, deadline, seeded(seed), each_epoch, scored)


# -- the learning rate schedule

WARMUPS = st.floats(0, 1)


def is_non_increasing(values: Iterable[float]) -> bool:
    """Whether no value is above the one before it, apart from rounding errors."""
    return all(later <= earlier + 1e-12 for earlier, later in pairwise(values))


@given(WARMUPS)
def test_rate_rises_in_warmup_and_then_falls_to_zero(warmup: float) -> None:
    schedule = Schedule(warmup)
    up = [schedule.rate(warmup * i / 50) for i in range(50)]
    down = [schedule.rate(warmup + (1 - warmup) * i / 50) for i in range(51)]
    assert is_non_increasing(-rate for rate in up)
    assert is_non_increasing(down)
    assert all(0 <= rate <= 1 + 1e-12 for rate in up + down)
    assert schedule.rate(1.0) == schedule.rate(1.7) == 0
    if 0 < warmup < 1:
        assert schedule.rate(0.0) == pytest.approx(0.05)
        assert schedule.rate(warmup) == pytest.approx(1)


@given(WARMUPS, st.floats(0.01, 1), st.integers(1, 60), st.integers(1, 60))
def test_final_decay_falls_from_the_current_rate(warmup: float, progress: float, epochs: int, more: int) -> None:
    schedule = Schedule(warmup)
    decaying = schedule.with_final_decay(progress, epochs, epochs + more)
    assert decaying.decay == progress
    assert decaying.end == pytest.approx(min(1, progress * (1 + more / epochs)))
    before = [progress * i / 20 for i in range(20)]
    assert [decaying.rate(p) for p in before] == [schedule.rate(p) for p in before]
    after = [decaying.rate(progress + (decaying.end - progress) * i / 40) for i in range(41)]
    assert is_non_increasing(after)
    assert min(after) >= 0
    if progress < 1:
        assert after[0] == pytest.approx(schedule.rate(progress), abs=1e-9)
        assert after[20] == pytest.approx(after[0] / 2, abs=1e-9)  # gradually
    assert decaying.rate(decaying.end) == decaying.rate(1.0) == 0


@given(st.integers(1, 500), st.integers(1, 500))
def test_final_decay_takes_half_the_epochs_so_far(epochs: int, more: int) -> None:
    planned = epochs + more
    last = last_epoch(epochs, planned)
    assert epochs < last <= planned
    assert last == planned or last - epochs == max(3, epochs // 2)


def test_last_epoch_of_final_decay() -> None:
    assert [last_epoch(n, 100) for n in (1, 5, 6, 8, 20, 90)] == [4, 8, 9, 12, 30, 100]


# -- learning


def test_linear_layer_learns_a_separable_task() -> None:
    task, module = blob_task(), linear()
    first = evaluate(module, task.evaluation_set, task)
    outcome = run(module, task)
    assert outcome.status == "finished"
    assert outcome.metric == 1.0
    assert outcome.score is not None
    assert outcome.score > max(first[0], -0.1)
    assert (outcome.epochs, len(outcome.curve), outcome.examples) == (4, 4, 40)
    assert outcome.curve[-1].loss < outcome.curve[0].loss


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_network_learns_images(optimizer: Any) -> None:
    task = image_task()
    graph = cnn((2, 8, 8), 3, width=4, depth=2)
    recipe = Recipe(epochs=8, batch_size=16, optimizer=optimizer, lr=0.05 if optimizer == "sgd" else 0.01)
    outcome = run(to_module(graph, fresh_weights(graph, seeded())), task, recipe)
    assert outcome.metric is not None
    assert outcome.metric > 0.9


def test_score_is_that_of_the_kept_weights() -> None:
    """Of the best epoch at a low learning rate; the peak rate is so high that this is not always the last."""
    task = image_task()
    graph = cnn((2, 8, 8), 3, width=4, depth=2)
    earlier = 0
    for seed in range(4):
        module = to_module(graph, fresh_weights(graph, seeded(seed)))
        recipe = Recipe(epochs=8, batch_size=16, lr=0.6, warmup=0.1, augment=Augment(shift=0.2))
        outcome = run(module, task, recipe, seed=seed)
        score, metric = evaluate(module, task.evaluation_set, task)
        assert outcome.score == pytest.approx(score, abs=1e-6)
        assert outcome.metric == pytest.approx(metric, abs=1e-6)
        scores = enumerate((e.score or 0.0 for e in outcome.curve), start=1)
        low_rate_scores = [score for i, score in scores if Schedule(recipe.warmup).is_low(i / 8)]
        assert 3 <= len(low_rate_scores) <= 5
        assert outcome.score == max(low_rate_scores)
        assert outcome.curve[outcome.best_epoch - 1].score == outcome.score
        assert outcome.curve[outcome.best_epoch - 1].metric == outcome.metric
        earlier += outcome.best_epoch < outcome.epochs
    assert earlier  # else there was nothing to test


def test_training_set_is_scored_without_a_validation_set() -> None:
    task, module = blob_task(n_valid=0), linear()
    outcome = run(module, task)
    assert outcome.examples == 80
    assert outcome.score == pytest.approx(evaluate(module, task.train, task)[0], abs=1e-6)


def test_label_smoothing_does_not_affect_the_score() -> None:
    task, module = blob_task(distance=1.0), linear()
    outcome = run(module, task, replace(PLAIN, label_smoothing=0.5))
    logits = predict(module, task.evaluation_set.x, task)
    plain = nn.functional.cross_entropy(logits.double(), task.evaluation_set.y).item()
    assert outcome.score == pytest.approx(-plain, abs=1e-6)
    assert outcome.curve[-1].loss > 0.5


@pytest.mark.parametrize(("n", "size"), [(65, 64), (3, 2), (33, 32), (5, 2), (9, 1), (2, 64)])
def test_batch_norm_never_gets_a_single_example(n: int, size: int) -> None:
    task = blob_task(n, 10)
    outcome = run(to_module(mlp((4,), 2, width=4)), task, replace(PLAIN, batch_size=size))
    assert outcome.status == "finished"


def test_training_does_not_modify_examples() -> None:
    task = image_task()
    before = [t.clone() for t in (task.train.x, task.train.y, task.evaluation_set.x, task.evaluation_set.y)]
    graph = cnn((2, 8, 8), 3, width=4, depth=1)
    run(to_module(graph), task, replace(PLAIN, augment=Augment(0.2, True, 0.3)))
    for old, new in zip(
        before, (task.train.x, task.train.y, task.evaluation_set.x, task.evaluation_set.y), strict=True
    ):
        assert torch.equal(old, new)


def test_weight_decay_excludes_biases_and_norms() -> None:
    """It applies to tensors of two or more axes."""
    module = to_module(mlp((4,), 2, width=4))
    groups = make_optimizer(module, replace(PLAIN, weight_decay=0.3)).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert {name: decay[id(p)] for name, p in module.named_parameters()} == {
        name: 0.3 if p.ndim > 1 else 0.0 for name, p in module.named_parameters()
    }


@pytest.mark.parametrize(("optimizer", "share"), [("sgd", 0.5), ("muon", 0.5), ("adamw", 1.0)])
def test_wide_dense_layers_with_a_bias_have_a_lower_rate(optimizer: Optimizer, share: float) -> None:
    """The size of AdamW's steps does not depend on the scale of gradients."""
    module = to_module(mlp((1024,), 2, width=512))
    groups = make_optimizer(module, replace(PLAIN, optimizer=optimizer)).param_groups
    shares = {id(p): group["share"] for group in groups for p in group["params"]}
    (last,) = (
        name for name, layer in module.named_modules() if isinstance(layer, nn.Linear) and layer.bias is not None
    )
    for name, p in module.named_parameters():
        assert shares[id(p)] == (share if name == f"{last}.weight" else 1.0), name


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
@pytest.mark.parametrize("width", [8, 64, 256])
def test_loss_does_not_explode_with_a_wide_last_layer(optimizer: Optimizer, width: int) -> None:
    """The baseline loss is log 10. At the full learning rate the loss exceeds twice that from 4,096 features on."""
    x, y = torch.randn(512, 3, 8, 8, generator=seeded(0)), torch.randint(0, 10, (512,), generator=seeded(1))
    task = Task.of(Examples(x, y), Examples(x[:64], y[:64]), Classification(10))
    module = to_module(cnn((3, 8, 8), 10, width=width, depth=1))
    assert module.get_parameter("dense_5.weight").shape[1] == 64 * width
    outcome = run(module, task, replace(PLAIN, epochs=4, batch_size=64, lr=0.1, optimizer=optimizer))
    assert max(epoch.loss for epoch in outcome.curve) < 2 * math.log(10)


# -- the calibration temperature


def cautious_log_loss(logits: Tensor, y: Tensor, temperature: float) -> float:
    """The log loss against labels with Laplace's probability (n + 1) / (n + 2), the other classes sharing the rest."""
    n, classes = logits.shape
    wrong = 1 / (n + 2) / (classes - 1)
    target = torch.full((n, classes), wrong).scatter(1, y[:, None], (n + 1) / (n + 2))
    return -(target * (logits / temperature).log_softmax(1)).sum(1).mean().item()


@given(st.integers(0, 10_000), st.floats(0.1, 30))
def test_temperature_minimises_the_cautious_log_loss(seed: int, scale: float) -> None:
    y = torch.randint(0, 4, (50,), generator=seeded(seed))
    logits = scale * (torch.randn(50, 4, generator=seeded(seed + 1)) + 1.5 * nn.functional.one_hot(y, 4))
    best = Classification(4).temperature(logits, y)
    assert 1 / 4 <= best <= 4
    least = cautious_log_loss(logits, y, best)
    for temperature in (1.0, *torch.logspace(-2, 2, 61, base=2.0).tolist()):
        assert least <= 1.002 * cautious_log_loss(logits, y, temperature) + 1e-3


@pytest.mark.parametrize("n", [30, 100, 1000])
def test_temperature_limits_confidence_by_sample_size(n: int) -> None:
    y = torch.arange(n) % 3
    logits = 6.0 * nn.functional.one_hot(y, 3)
    for scale in (0.5, 1.0, 2.0):
        temperature = Classification(3).temperature(scale * logits, y)
        confidence = (scale * logits / temperature).softmax(1).max(1).values
        assert confidence.mean().item() == pytest.approx((n + 1) / (n + 2), abs=2e-5)


def test_temperature_is_proportional_to_the_logits() -> None:
    task, module = blob_task(distance=1.0), linear()
    run(module, task)
    logits = predict(module, task.evaluation_set.x, task)
    assert task.goal.temperature(2 * logits, task.evaluation_set.y) == pytest.approx(
        2 * task.goal.temperature(logits, task.evaluation_set.y), 0.01
    )


# -- reproducibility


def test_equal_seeds_train_equal_networks() -> None:
    task, graph = image_task(), cnn((2, 8, 8), 3, width=4, depth=2)
    recipe = Recipe(epochs=2, batch_size=16, augment=Augment(0.2, True, 0.3))

    def trained(seed: int) -> tuple[Outcome, dict[str, Tensor]]:
        module = to_module(graph, fresh_weights(graph, seeded()))
        return run(module, task, recipe, seed=seed), copy_state(module)

    (one, first), (two, again), (_, other) = trained(0), trained(0), trained(1)
    assert states_equal(first, again)
    assert one == replace(two, seconds=one.seconds, images_per_second=one.images_per_second)
    assert not states_equal(first, other)


def test_training_leaves_global_random_states_unchanged() -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()  # noqa: NPY002
    run(linear(), blob_task())
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert before[2] == np.random.get_state(legacy=False)["state"]["key"].tolist()  # noqa: NPY002


@dataclass
class ListedMetric:
    """A user-defined metric that returns one of the given values after another."""

    values: list[float]
    name: str = "listed"

    def __call__(self, outputs: Tensor, y: Tensor, weights: Tensor | None = None) -> float:
        value = self.values.pop(0)
        if not math.isfinite(value):
            raise UndefinedMetric("the metric listed is nan")
        return value


def task_with_metric(values: list[float]) -> Task:
    task = blob_task()
    return replace(task, goal=CustomGoal(task.goal, ListedMetric(values)))


def test_equal_score_replaces_weights_but_is_no_improvement() -> None:
    values = [*[0.1] * 6, 0.5, 0.75, 0.25, 0.75, 0.75, 0.5]
    outcome = run(linear(), task_with_metric(values), replace(PLAIN, epochs=12, warmup=0.0))
    assert (outcome.score, outcome.metric, outcome.best_epoch) == (0.75, 0.75, 11)
    assert (outcome.measure, outcome.objective, outcome.by_metric) == ("listed", "listed", True)
    outcome = run(linear(), task_with_metric([0.5] * 40), replace(PLAIN, epochs=40, warmup=0.0, patience=4))
    assert outcome.epochs < 40


def test_epoch_with_undefined_metric_is_kept_only_without_others() -> None:
    nan = math.nan
    outcome = run(linear(), task_with_metric([0.5, nan, 0.25, nan]), replace(PLAIN, epochs=4))
    assert (outcome.status, outcome.epochs, outcome.error) == ("finished", 4, None)
    assert (outcome.score, outcome.best_epoch) == (0.25, 3)  # the learning rate is low by then
    assert [epoch.score for epoch in outcome.curve] == [0.5, None, 0.25, None]
    outcome = run(linear(), task_with_metric([nan] * 4), replace(PLAIN, epochs=4))
    assert (outcome.status, outcome.epochs, outcome.score, outcome.best_epoch) == ("finished", 4, None, 4)
    assert outcome.error == "after epoch 4 the metric listed is nan"
    assert len(outcome.curve) == 4


def test_checkpoint_of_another_goal_is_rejected() -> None:
    checkpoints: list[Checkpoint] = []
    recipe = replace(PLAIN, epochs=4)
    train(linear(), task_with_metric([0.5] * 9), recipe, NEVER, seeded(), keep=lambda make: checkpoints.append(make()))
    with pytest.raises(CheckpointMismatch, match="its scores are of listed, not of log loss"):
        train(linear(), blob_task(), recipe, NEVER, seeded(), saved=checkpoints[0])
    assert train(linear(), task_with_metric([0.5] * 9), recipe, NEVER, seeded(), saved=checkpoints[0]).epochs == 4


# -- the deadline


@pytest.mark.parametrize(
    ("seconds", "per_example", "per_score"),
    [
        (50, 0.01, 0.001),  # many epochs
        (50, 0.01, 0.01),  # scoring takes as long as training
        (50, 0.2, 0.05),  # a few epochs
        (12, 0.2, 0.02),  # an epoch is longer than the limit
        (8, 0.1, 0.0),  # a few steps
    ],
)
def test_training_uses_the_time_until_the_deadline(seconds: float, per_example: float, per_score: float) -> None:
    clock, task = Clock(), blob_task()
    module = TimedNetwork(linear(), clock, per_example, per_score)
    start_time = clock.now
    outcome = run(module, task, replace(PLAIN, epochs=1000, batch_size=8), seconds, clock)
    spent = clock.now - start_time
    assert spent <= seconds + 1e-9
    assert spent >= 0.4 * seconds
    assert outcome.status == "truncated"
    assert outcome.seconds == pytest.approx(spent)
    assert outcome.epochs == len(outcome.curve) >= 1
    clock.now = 0
    assert outcome.score == pytest.approx(evaluate(module, task.evaluation_set, task)[0], abs=1e-6)


def test_training_with_a_pause_ends_by_the_deadline() -> None:
    """One step takes 20 times as long as all others, near the end."""
    clock, task = Clock(), blob_task()
    module = TimedNetwork(linear(), clock, 0.01, 0.001)
    start_time = clock.now
    pauses: list[float] = []

    def pause(layer: nn.Module, _: object) -> None:
        if layer.training and clock.now - start_time > 45 and not pauses:
            pauses.append(clock.now)
            clock.now += 1.6

    module.register_forward_pre_hook(pause)
    run(module, task, replace(PLAIN, epochs=1000, batch_size=8), 50, clock)
    assert pauses
    assert clock.now - start_time <= 50


@pytest.mark.parametrize("per_score", [0.0, 0.002, 0.02])
def test_rate_has_fallen_by_the_deadline(per_score: float) -> None:
    clock, task = Clock(), blob_task()
    module = TimedNetwork(linear(), clock, 0.01, per_score)
    with record_rates(module) as rates:
        outcome = run(module, task, replace(PLAIN, epochs=1000, batch_size=8), 50, clock)
    assert outcome.status == "truncated"
    peak = rates.index(max(rates))
    assert max(rates) == pytest.approx(PLAIN.lr, rel=0.05)
    assert peak == pytest.approx(PLAIN.warmup * len(rates), rel=0.2)
    assert is_non_increasing(-rate for rate in rates[: peak + 1])
    assert is_non_increasing(rates[peak:])
    assert rates[-1] < 0.03 * PLAIN.lr


@pytest.mark.parametrize(
    ("lr_examples", "small_set", "factor"),
    [(None, 1, 1.0), (10_000, 1, 1.0), (800, 1, 1.0), (200, 1, 0.5), (8, 1, 0.112), (8, 20, 0.5), (8, 80, 1.0)],
)
@pytest.mark.parametrize("planned", [10, 10_000])
def test_rate_is_lower_in_longer_trainings(
    lr_examples: int, small_set: int, factor: float, planned: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 800 examples seen, of 80, whether the schedule or the clock ends the training."""
    monkeypatch.setattr(recipe_module, "SMALL_TRAINING_SET", small_set)
    clock, task = Clock(), blob_task()
    assert len(task.train) == 80
    recipe = replace(PLAIN, epochs=planned, batch_size=8, lr_examples=lr_examples)
    module = TimedNetwork(linear(), clock, 0.05)
    with record_rates(module) as rates:
        run(module, task, recipe, 1e6 if planned == 10 else 40.0, clock)
    assert len(rates) == pytest.approx(100, rel=0.1)
    assert max(rates) == pytest.approx(factor * PLAIN.lr, rel=0.1)
    assert rates.index(max(rates)) == pytest.approx(0.2 * len(rates), abs=3)


def test_rate_follows_the_epochs_when_time_suffices() -> None:
    clock, task = Clock(), blob_task()
    module = TimedNetwork(linear(), clock, 0.01)
    with record_rates(module) as rates:
        outcome = run(module, task, replace(PLAIN, epochs=10, batch_size=8), 1e6, clock)
    assert outcome.status == "finished"
    assert len(rates) == 100
    assert rates.index(max(rates)) == 20
    assert rates[60] == pytest.approx(0.5 * PLAIN.lr)
    assert 0 < rates[-1] < 0.02 * PLAIN.lr


@pytest.mark.parametrize("scored", [True, False])
def test_nothing_is_trained_without_time(scored: bool) -> None:
    module = linear()
    before = copy_state(module)
    outcome = run(module, blob_task(), seconds=0, scored=scored)
    assert (outcome.status, outcome.epochs, outcome.best_epoch, outcome.curve) == ("truncated", 0, 0, ())
    assert outcome.score is None
    assert outcome.metric is None
    assert states_equal(before, copy_state(module))


def test_training_finishes_if_time_barely_suffices() -> None:
    clock = Clock()
    outcome = run(TimedNetwork(linear(), clock, 0.1), blob_task(), replace(PLAIN, epochs=2), 80 * 0.1 * 2 + 5, clock)
    assert outcome.status == "finished"


# -- patience


@pytest.mark.parametrize(
    ("planned", "patience", "epochs"),
    [
        (40, 1, 13),  # the warm-up ends at epoch 8, patience at 9; the decay takes 4
        (40, 3, 16),
        (40, 8, 24),
        (40, 19, 40),  # the decay ends with the last planned epoch
        (40, 40, 40),
        (40, None, 40),
        (13, 3, 8),  # the warm-up ends between epochs 2 and 3
        (12, 3, 12),  # a short schedule has no patience
        (5, 1, 5),
    ],
)
def test_patience_begins_the_final_decay(planned: int, patience: int | None, epochs: int) -> None:
    module = Constant()
    with record_rates(module) as rates:
        outcome = run(module, blob_task(16, 4), replace(PLAIN, epochs=planned, patience=patience))
    assert (outcome.status, outcome.epochs) == ("finished", epochs)
    assert len(rates) == epochs
    assert is_non_increasing(rates[rates.index(max(rates)) :])


def test_final_decay_ends_near_zero() -> None:
    module = Constant()
    with record_rates(module) as rates:
        run(module, blob_task(64, 4), replace(PLAIN, epochs=100, patience=20, batch_size=16))
    first, end = 40 * 4, 60 * 4
    assert len(rates) == end
    assert rates[first - 1] > 0.7 * PLAIN.lr
    assert rates[(first + end) // 2] == pytest.approx(rates[first] / 2, rel=0.05)
    assert rates[-1] < 0.05 * PLAIN.lr


def test_final_decay_is_gradual_when_the_clock_leads() -> None:
    """There is time for half of the planned epochs: the decay takes all its epochs, from the rate set by the clock."""
    clock = Clock()
    module = TimedNetwork(Constant(), clock, 1.0)
    with record_rates(module) as rates:
        outcome = run(module, blob_task(64, 4), replace(PLAIN, epochs=100, patience=15, batch_size=16), 50 * 64, clock)
    assert outcome.status == "finished"
    first, end = 24 * 4, 36 * 4
    assert outcome.epochs == 36
    assert len(rates) == end
    assert rates[first] == pytest.approx(rates[first - 1], rel=0.05)
    assert rates[(first + end) // 2] == pytest.approx(rates[first] / 2, rel=0.1)
    assert rates[-1] < 0.1 * PLAIN.lr


def test_final_decay_ends_by_the_deadline() -> None:
    clock = Clock()
    module = TimedNetwork(Constant(), clock, 1.0)
    with record_rates(module) as rates:
        outcome = run(module, blob_task(16, 4), replace(PLAIN, epochs=100, patience=32, batch_size=4), 50 * 16, clock)
    assert outcome.status == "truncated"
    assert 42 < outcome.epochs <= 50
    assert rates[-1] < 0.05 * PLAIN.lr


def test_better_epochs_reset_patience() -> None:
    outcome = run(linear(), blob_task(), replace(PLAIN, epochs=14, patience=2, lr=1e-3))
    assert outcome.epochs == outcome.best_epoch == 14


# -- divergence


class Poisoned(nn.Module):
    """A network whose outputs in training are NaN after so many steps."""

    def __init__(self, inner: nn.Module, steps: int) -> None:
        super().__init__()
        self.inner, self.steps_left = inner, steps

    def forward(self, x: Tensor) -> Tensor:
        self.steps_left -= self.training
        logits: Tensor = self.inner(x)
        return logits * math.nan if self.training and self.steps_left < 0 else logits


def is_finite(module: nn.Module) -> bool:
    return all(value.isfinite().all() for value in module.state_dict().values())


@pytest.mark.parametrize("steps", [10, 12, 14])  # at the end of an epoch, and within one
def test_divergence_keeps_the_best_weights(steps: int) -> None:
    task, module = blob_task(), Poisoned(linear(), steps)
    outcome = run(module, task, replace(PLAIN, epochs=8))
    assert outcome.status == "diverged"
    assert outcome.epochs == 3
    assert outcome.best_epoch == 2 == len(outcome.curve)
    assert is_finite(module)
    assert outcome.score == pytest.approx(evaluate(module, task.evaluation_set, task)[0], abs=1e-6)
    assert outcome.error is not None
    assert "epoch 3 at a learning rate of 0.1" in outcome.error


def test_divergence_ends_a_long_epoch_early() -> None:
    module = Poisoned(linear(), 5)
    with record_rates(module) as rates:
        outcome = run(module, blob_task(800, 10), replace(PLAIN, batch_size=4))
    assert outcome.status == "diverged"
    assert len(rates) <= 32


@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_huge_learning_rate_diverges(scored: bool, optimizer: Any) -> None:
    """At once in a chain of layers; late or never where batch norm or AdamW limits the scale of outputs or steps."""
    recipe = replace(PLAIN, lr=1e6, optimizer=optimizer, warmup=0.0, epochs=20)
    chain = nn.Sequential(*(linear(4, 4, seed) for seed in range(6)), linear(4, 2))
    status = run(chain, blob_task(), recipe, scored=scored).status
    assert status == "diverged" or optimizer == "adamw"
    assert is_finite(chain)
    normed = to_module(mlp((4,), 2, width=4))
    run(normed, blob_task(), recipe, scored=scored)
    assert is_finite(normed)


@pytest.mark.parametrize("scored", [True, False])
def test_infinite_weights_after_the_last_step_are_not_kept(scored: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of a batch is computed before its step, so that no loss shows what the very last step did."""
    monkeypatch.setattr(data, "CLIP", math.inf)
    task, module = blob_task(16, 8), linear()
    x = task.train.x * 1e35  # the first outputs are finite, the gradients times the learning rate are not
    task = replace(task, train=Examples(x, task.train.y), std=torch.ones(4), mean=torch.zeros(4))
    before = copy_state(module)
    outcome = run(module, task, Recipe(epochs=1, batch_size=16, lr=1e6, warmup=0.0, weight_decay=0), scored=scored)
    assert is_finite(module)
    assert outcome.status == "diverged"
    assert states_equal(before, copy_state(module))


def test_nan_in_the_training_set_is_divergence() -> None:
    task, module = blob_task(), linear()
    task.train.x[3, 1] = math.nan
    before = copy_state(module)
    outcome = run(module, Task.of(task.train, task.valid, Classification(2)))
    assert outcome.status == "diverged"
    assert outcome.score is None
    assert outcome.best_epoch == 0
    assert states_equal(before, copy_state(module))


@pytest.mark.parametrize("outlier", ["outlying target", "large weight"])
def test_large_loss_of_an_outlier_is_no_divergence(outlier: str) -> None:
    """Its loss is as large for an uninformed network; divergence is still detected."""
    task, weights, y = blob_task(320), torch.ones(320), torch.randn(360, 1, generator=seeded())
    if outlier == "outlying target":
        y[200] = 100.0
        train, valid = Examples(task.train.x, y[:320]), Examples(task.evaluation_set.x, y[320:])
        task, module = Task.of(train, valid, Regression(1)), linear(n_classes=1)
    else:
        weights[200] = 3000.0
        task, module = Task.of(replace(task.train, weights=weights), task.valid, Classification(2)), linear()
    recipe = replace(PLAIN, lr=1e-4, epochs=3)
    assert run(module, task, recipe).status == "finished"
    poisoned = Poisoned(module, 45)
    assert run(poisoned, task, recipe).status == "diverged"


def test_nan_in_the_validation_set_is_divergence() -> None:
    task = blob_task()
    module = linear()
    task.evaluation_set.x[0, 0] = math.nan
    with pytest.raises(Diverged, match="outputs are NaN or infinite"):
        evaluate(module, task.evaluation_set, task)
    assert run(module, task).status == "diverged"


# -- training without validation


def test_last_weights_are_kept_without_validation() -> None:
    task = blob_task()
    scored, unscored = linear(), linear()
    expected = run(scored, task, replace(PLAIN, lr=1e-2))
    assert expected.best_epoch == 4  # so that the last weights are the best ones
    outcome = run(unscored, task, replace(PLAIN, lr=1e-2), scored=False)
    assert outcome.status == "finished"
    assert (outcome.score, outcome.metric, outcome.curve, outcome.examples) == (None, None, (), 0)
    assert outcome.epochs == outcome.best_epoch == 4
    assert states_equal(copy_state(scored), copy_state(unscored))


def test_patience_is_ignored_without_validation() -> None:
    assert run(Constant(), blob_task(16, 4), replace(PLAIN, epochs=20, patience=2), scored=False).epochs == 20


def test_divergence_without_validation_keeps_finite_weights() -> None:
    module, other = Poisoned(linear(), 12), linear()
    outcome = run(module, blob_task(), replace(PLAIN, epochs=8), scored=False)
    assert (outcome.status, outcome.best_epoch) == ("diverged", 2)
    states: list[dict[str, Tensor]] = []
    run(other, blob_task(), replace(PLAIN, epochs=8), each_epoch=lambda _: states.append(copy_state(other)))
    assert states_equal(copy_state(module.inner), states[1])


def test_training_without_validation_ends_by_the_deadline() -> None:
    clock = Clock()
    start_time, module = clock.now, TimedNetwork(linear(), clock, 0.01, 100.0)
    outcome = run(module, blob_task(), replace(PLAIN, epochs=1000), 20, clock, scored=False)
    assert outcome.status == "truncated"
    assert 10 < clock.now - start_time <= 20


# -- the callback after each epoch


@pytest.mark.parametrize("scored", [True, False])
def test_callback_gets_the_outcome_after_each_epoch(scored: bool) -> None:
    outcomes: list[Outcome] = []
    clock = Clock()
    module = TimedNetwork(linear(), clock, 0.1)
    outcome = run(module, blob_task(), replace(PLAIN, epochs=5), each_epoch=outcomes.append, clock=clock, scored=scored)
    assert [each.epochs for each in outcomes] == [1, 2, 3, 4, 5]
    assert [len(each.curve) for each in outcomes] == ([1, 2, 3, 4, 5] if scored else [0] * 5)
    assert [each.seconds for each in outcomes] == pytest.approx([8.0 * i for i in range(1, 6)])
    for i, each in enumerate(outcomes, 1):
        assert each.curve == outcome.curve[:i]
        assert each.score == (max(epoch.score or 0.0 for epoch in outcome.curve[:i]) if scored else None)


def test_exception_of_the_callback_ends_the_training() -> None:
    outcomes: list[Outcome] = []

    def cancel(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if len(outcomes) == 2:
            raise InterruptedError("enough")

    with pytest.raises(InterruptedError, match="enough"):
        run(linear(), blob_task(), each_epoch=cancel)
    assert len(outcomes) == 2


# -- predictions


def test_predictions_do_not_depend_on_the_batch_size() -> None:
    task = image_task()
    graph = cnn((2, 8, 8), 3, width=4, depth=2, dropout=0.5)
    module = to_module(graph)
    whole = predict(module, task.train.x, task)
    assert whole.shape == (96, 3)
    assert whole.dtype == torch.float32
    assert not whole.requires_grad
    assert not module.training
    torch.testing.assert_close(predict(module.train(), task.train.x, task, batch_size=7), whole)
    assert predict(module, task.train.x[:0], task).shape == (0, 3)


# -- settings of the recipe


def test_averaged_weights_are_scored_and_kept() -> None:
    task, recipe = image_task(), Recipe(epochs=3, batch_size=16, lr=0.1)
    plain, averaged, barely = (to_module(cnn((2, 8, 8), 3, width=4)) for _ in range(3))
    outcome = run(averaged, task, replace(recipe, average=2.0))
    run(plain, task, recipe)
    run(barely, task, replace(recipe, average=0.1))  # of less than a step
    assert evaluate(averaged, task.evaluation_set, task)[0] == pytest.approx(outcome.score, abs=1e-6)
    assert not states_equal(copy_state(averaged), copy_state(plain))
    assert states_equal(copy_state(barely), copy_state(plain))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_bias_rate_applies_to_batch_norms_alone(optimizer: Literal["sgd", "adamw"]) -> None:
    module = to_module(cnn((2, 8, 8), 3, width=4))
    groups = make_optimizer(module, Recipe(optimizer=optimizer, bias_rate=8.0, weight_decay=0.01)).param_groups
    names = {id(p): name for name, p in module.named_parameters()}
    settings = {names[id(p)]: (g["share"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert settings.keys() == dict(module.named_parameters()).keys()
    for name, setting in settings.items():
        node, tensor = name.split(".")
        is_norm = node.startswith("bn")
        assert setting == (8.0 if is_norm and tensor == "bias" else 1.0, 0.0 if is_norm or tensor == "bias" else 0.01)


def test_images_are_flipped_every_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when an epoch is a part of the training set."""
    numbers = torch.arange(24, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 2, 8, 8)
    task = replace(image_task(24, 8), train=Examples(numbers, torch.arange(24) % 3))
    flips: dict[int, list[bool]] = {}

    def record(x: Tensor, draw: Draw, augment: Augment, mirrored: Tensor | None = None) -> Tensor:
        assert mirrored is not None
        for number, side in zip(x[:, 0, 0, 0].tolist(), mirrored.tolist(), strict=True):
            flips.setdefault(number, []).append(side)
        return augmented(x, draw, augment, mirrored)

    monkeypatch.setattr(step, "augmented", record)
    recipe = Recipe(epochs=8, examples=12, batch_size=8, augment=Augment(flip=True))
    train(to_module(cnn((2, 8, 8), 3, width=4)), task, recipe, NEVER, seeded(), scored=False)
    assert len(flips) == 24
    assert {len(sides) for sides in flips.values()} == {4}
    assert all(one != other for sides in flips.values() for one, other in pairwise(sides))
    assert 4 < sum(sides[0] for sides in flips.values()) < 20


def test_epoch_has_the_number_of_examples_of_the_recipe() -> None:
    task, module = blob_task(64, 16), linear()
    batch_sizes: list[int] = []

    def count(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if layer.training:
            batch_sizes.append(len(inputs[0]))

    module.register_forward_pre_hook(count)
    for examples, expected in ((20, [10, 10] * 3), (None, [16] * 12), (1000, [16] * 12)):
        batch_sizes.clear()
        outcome = train(module, task, Recipe(epochs=3, examples=examples, batch_size=16), NEVER, seeded())
        assert batch_sizes == expected
        assert outcome.epochs == len(outcome.curve) == 3
