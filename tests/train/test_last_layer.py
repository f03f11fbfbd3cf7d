"""Tests of the training of the last layer alone: its optimum, what it keeps, and its deadlines."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from morphnas.train import last_layer
from morphnas.train.data import Examples, Task
from morphnas.train.deadline import NEVER, Deadline, Stop
from morphnas.train.goal import Classification, CustomGoal, MultiLabel, Regression
from morphnas.train.last_layer import STRENGTHS, train_last_layer
from morphnas.train.predict import Diverged, evaluate, predict
from morphnas.train.recipe import Outcome, Recipe
from tests.train.tasks import Clock, TimedNetwork, blob_task, copy_state, image_task, seeded, states_equal

RECIPE = Recipe(epochs=len(STRENGTHS), label_smoothing=0.0, layers="last")
TASK = image_task()


def network(outputs: int = 3, seed: int = 0, bias: bool = True) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(6 * 64, outputs, bias=bias)).eval()


def fit(
    module: nn.Module, task: Task = TASK, recipe: Recipe = RECIPE, deadline: Deadline = NEVER, **more: Any
) -> Outcome:
    return train_last_layer(module, "4", task, recipe, deadline, seeded(1), **more)


@pytest.mark.parametrize("bias", [True, False])
def test_only_the_last_layer_changes_and_its_score_is_that_of_the_network(bias: bool) -> None:
    module = network(bias=bias)
    before = copy_state(module)
    outcome = fit(module)
    after = copy_state(module)
    assert [name for name in after if not torch.equal(after[name], before[name])] == [
        name for name in after if name.startswith("4.")
    ]
    score, metric = evaluate(module, TASK.evaluation_set, TASK)
    assert outcome.score == pytest.approx(score, abs=1e-4)
    assert outcome.metric == metric
    assert metric > 0.9
    assert (outcome.status, outcome.epochs, outcome.examples, outcome.held_out) == ("finished", 6, 48, True)
    assert outcome.score == max(point.score for point in outcome.curve if point.score is not None)
    assert outcome.curve[outcome.best_epoch - 1].score == outcome.score
    losses = [point.loss for point in outcome.curve]
    assert losses == sorted(losses, reverse=True)  # weaker regularisation
    assert outcome.training_loss == losses[-1]


def test_weights_are_those_of_logistic_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_layer, "MIN_DEVIATION", 0.0)
    monkeypatch.setattr(last_layer, "MAX_ITERATIONS", 1000)
    task = blob_task(200, 50, features=5, distance=0.7)
    module = nn.Sequential(nn.Linear(5, 2))
    train_last_layer(module, "0", task, replace(RECIPE, epochs=3), NEVER, seeded(), scored=False)
    x, y = task.normalised(task.train.x).numpy(), task.train.y.numpy()
    # a softmax over two classes with half the penalty on each is one logit with a quarter of it on their difference
    reference = LogisticRegression(C=2 / (STRENGTHS[2] * len(x)), tol=1e-8).fit(x, y)
    with torch.no_grad():
        logits = predict(module, task.evaluation_set.x, task)
    expected = reference.decision_function(task.normalised(task.evaluation_set.x).numpy())
    np.testing.assert_allclose((logits[:, 1] - logits[:, 0]).numpy(), expected, atol=2e-2)


@settings(max_examples=10)
@given(st.integers(1, 6), st.integers(0, 50))
def test_unscored_training_keeps_the_last_strength(epochs: int, seed: int) -> None:
    """It is the start of a longer one with the same examples, whatever that keeps."""
    module = network(seed=seed)
    outcome = fit(module, recipe=replace(RECIPE, epochs=epochs), scored=False)
    assert (outcome.score, outcome.examples, outcome.curve) == (None, 0, ())
    assert (outcome.epochs, outcome.best_epoch) == (epochs, epochs)
    scored = network(seed=seed)
    best = fit(scored, recipe=replace(RECIPE, epochs=epochs))
    if best.best_epoch == epochs:
        assert states_equal(copy_state(module), copy_state(scored))


class Squares:
    """A user-defined loss: the squared error of the probabilities."""

    name = "squares"

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        return (outputs.softmax(1) - nn.functional.one_hot(y, 3)).square().sum(1)


GOALS: dict[str, tuple[Any, Tensor]] = {
    "multi-label": (MultiLabel(3), torch.nn.functional.one_hot(TASK.train.y, 3).float()),
    "regression": (Regression(1), (TASK.train.y[:, None] - 1.0)),
    "loss": (CustomGoal(Classification(3), criterion=Squares()), TASK.train.y),
}


@pytest.mark.parametrize("name", GOALS)
def test_every_goal_is_learned(name: str) -> None:
    goal, y = GOALS[name]
    task = replace(
        TASK, train=Examples(TASK.train.x[:64], y[:64]), valid=Examples(TASK.train.x[64:], y[64:]), goal=goal
    )
    outcome = fit(network(goal.outputs), task)
    assert outcome.metric is not None
    assert outcome.metric > 0.6
    assert outcome.objective == goal.objective


def test_sample_weights_and_teacher_count() -> None:
    y = torch.zeros(96, dtype=torch.int64)
    train = replace(TASK.train, y=y, teacher_outputs=20 * nn.functional.one_hot(TASK.train.y, 3).float())
    outcome = fit(module := network(), replace(TASK, train=train))
    assert outcome.metric is not None
    taught = predict(module, TASK.train.x, TASK).softmax(1)
    assert taught[TASK.train.y == 2, 2].mean() > 0.2  # the labels alone say that all are of class 0
    weighted = replace(TASK, train=replace(TASK.train, weights=(TASK.train.y < 2).float() * 1.5))
    fit(module := network(), weighted)
    assert (predict(module, TASK.train.x, TASK).argmax(1) < 2).all()


def test_without_held_out_examples_the_training_set_is_scored() -> None:
    outcome = fit(network(), replace(TASK, valid=None))
    assert (outcome.held_out, outcome.examples) == (False, 96)


def test_features_of_as_many_examples_as_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    module = network()
    module[0].register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    monkeypatch.setattr(last_layer, "MAX_FEATURE_BYTES", 10 * 4 * 384)
    fit(module)
    assert sum(seen) == 48 + 10


def test_examples_are_gathered_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    module = network()
    module[0].register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    monkeypatch.setattr(last_layer, "PART_BYTES", 30 * 2 * 8 * 8)
    fit(module)
    assert seen == [32, 16, 30, 30, 30, 6]  # to score, in growing batches, and to train


def test_features_of_as_many_examples_as_there_is_time_for() -> None:
    clock = Clock()
    module = nn.Sequential(*list(network())[:4], TimedNetwork(nn.Identity(), clock, 0.0, 0.1), network()[4])
    outcome = train_last_layer(module, "5", TASK, RECIPE, clock.deadline(12.0), seeded())
    assert 48 * 0.1 < clock.now - 1000 < 9.0  # the validation examples, and half of the rest for training examples
    assert outcome.status == "finished"
    before = copy_state(module)
    outcome = train_last_layer(module, "5", TASK, RECIPE, clock.deadline(4.0), seeded())  # not even to score
    assert (outcome.status, outcome.epochs, outcome.score) == ("truncated", 0, None)
    assert states_equal(copy_state(module), before)


def test_deadline_between_strengths_keeps_the_best_so_far() -> None:
    clock, reports = Clock(), list[Outcome]()
    deadline = clock.deadline(100)

    def report(outcome: Outcome) -> None:
        reports.append(outcome)
        clock.now += 40

    outcome = fit(network(), deadline=deadline, each_epoch=report)
    assert (outcome.status, outcome.epochs) == ("truncated", 3)
    assert [r.epochs for r in reports] == [1, 2, 3]
    assert outcome.best_epoch
    assert outcome.score == max(r.score for r in reports if r.score is not None)


def test_stop_during_the_first_strength_keeps_what_was_found() -> None:
    clock = Clock(tick=0.001)  # every look at the clock
    module = network()
    outcome = fit(module, deadline=clock.deadline(0.05))
    assert outcome.status == "truncated"
    assert outcome.epochs
    assert all(value.isfinite().all() for value in module.state_dict().values())
    stop = Stop()
    stop.requested = True
    assert fit(network(), deadline=Deadline(math.inf, clock, stop)).epochs == 0


def test_constant_features_do_not_amplify_noise() -> None:
    """A feature that hardly varies in training may have any value later: it gets no large weight."""
    x = torch.randn(60, 3, generator=seeded())
    x[:, 2] = 1e-6 * x[:, 2]
    task = Task.of(Examples(x, (x[:, 0] > 0).long()), None, Classification(2))
    task = replace(task, mean=torch.zeros(3), std=torch.ones(3))
    layer = nn.Linear(3, 2)
    train_last_layer(nn.Sequential(layer), "0", task, RECIPE, NEVER, seeded())
    assert layer.weight[:, 2].abs().max() < layer.weight[:, 0].abs().max()


def test_features_that_are_nan_are_an_error() -> None:
    module = network()
    module.load_state_dict({name: value * torch.nan for name, value in module.state_dict().items()})
    with pytest.raises(Diverged):
        fit(module)
    assert isinstance(module[4], nn.Linear)


def test_last_layer_must_be_dense() -> None:
    with pytest.raises(TypeError, match="only a dense last layer can be trained alone, not Flatten"):
        train_last_layer(network(), "3", TASK, RECIPE, NEVER, seeded())
