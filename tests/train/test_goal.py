"""Goals: properties that all of them have, and the losses and metrics of each."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import accuracy_score, log_loss, r2_score
from torch import Tensor

from morphnas.train.data import Examples, Task
from morphnas.train.deadline import NEVER
from morphnas.train.goal import SQUARED_ERROR_SCALE, Classification, Goal, MultiLabel, Regression
from morphnas.train.predict import evaluate
from morphnas.train.recipe import Recipe
from morphnas.train.trainer import train
from tests.train.tasks import linear, seeded

GOALS: list[Goal] = [Classification(2), Classification(7), MultiLabel(2), MultiLabel(5), Regression(1), Regression(3)]
every = pytest.mark.parametrize("goal", GOALS, ids=str)


def truth(goal: Goal, n: int = 60, seed: int = 0) -> Tensor:
    if isinstance(goal, Classification):
        return torch.arange(n) % goal.outputs
    y = torch.randn(n, goal.outputs, generator=seeded(seed))
    if isinstance(goal, MultiLabel):
        y = (y > 0).float()
        y[::2] = 1.0  # as outputs of 0 predict
        return y
    return (y - y.mean(0)) / y.std(0, correction=0)


def ideal(goal: Goal, y: Tensor) -> Tensor:
    """Outputs without errors, apart from their confidence."""
    if isinstance(goal, Classification):
        return 3.0 * torch.nn.functional.one_hot(y, goal.outputs).float()
    return 6.0 * (y - 0.5) if isinstance(goal, MultiLabel) else y


def spoilt(goal: Goal, y: Tensor, by: float, seed: int = 1) -> Tensor:
    return ideal(goal, y) + by * torch.randn(len(y), goal.outputs, generator=seeded(seed))


@every
def test_worse_outputs_have_larger_losses_and_errors_and_lower_scores(goal: Goal) -> None:
    y = truth(goal)
    several = [spoilt(goal, y, by) for by in (0.1, 1.0, 10.0)]
    losses = [goal.loss(outputs, y).item() for outputs in several]
    errors = [goal.errors(outputs, y).mean().item() for outputs in several]
    scores, metrics = zip(*(goal.score_and_metric(outputs, y) for outputs in several), strict=True)
    assert losses == sorted(losses)
    assert errors == sorted(errors)
    assert list(scores) == sorted(scores, reverse=True)
    assert list(metrics) == sorted(metrics, reverse=True)


@every
def test_the_best_that_can_be_said(goal: Goal) -> None:
    y = truth(goal)
    score, metric = goal.score_and_metric(ideal(goal, y), y)
    assert math.isfinite(score)
    assert metric == 1
    assert (goal.errors(ideal(goal, y), y) == 0).all()
    assert goal.errors(ideal(goal, y), y).shape == (60,)


@every
def test_who_knows_nothing_has_the_loss_of_ignorance_and_the_metric_of_chance(goal: Goal) -> None:
    y, outputs = truth(goal, 70 * 2), torch.zeros(140, goal.outputs)
    assert goal.loss(outputs, y).item() == pytest.approx(goal.baseline_loss, rel=1e-5)
    assert goal.score_and_metric(outputs, y)[1] == pytest.approx(goal.baseline_metric(y), abs=1e-6)


@every
def test_parts_of_a_batch_weigh_as_their_shares(goal: Goal) -> None:
    y, outputs = truth(goal), spoilt(goal, truth(goal), 1.0)
    parts = [(outputs[a:b], y[a:b]) for a, b in ((0, 13), (13, 60))]
    whole = sum(goal.loss(*part, smoothing=0.1).item() * len(part[1]) / 60 for part in parts)
    assert whole == pytest.approx(goal.loss(outputs, y, smoothing=0.1).item(), rel=1e-5)


@every
@given(counts=st.lists(st.integers(0, 4), min_size=12, max_size=12).filter(lambda counts: sum(counts) > 2))
def test_an_example_of_weight_three_counts_as_three(goal: Goal, counts: list[int]) -> None:
    y, outputs = truth(goal, 12), spoilt(goal, truth(goal, 12), 1.0)
    times = torch.tensor(counts)
    weights = times / times.double().mean()
    repeated = torch.arange(12).repeat_interleave(times)
    alike = goal.loss(outputs[repeated], y[repeated], None, 0.1).item()
    assert goal.loss(outputs, y, weights, 0.1).item() == pytest.approx(alike, rel=1e-4)
    score, metric = goal.score_and_metric(outputs[repeated], y[repeated])
    if len(repeated.unique()) > 1:  # the variance of a single example is a rounding error
        assert goal.score_and_metric(outputs, y, weights) == pytest.approx((score, metric), rel=1e-4, abs=1e-6)
    assert goal.baseline_metric(y, weights) == pytest.approx(goal.baseline_metric(y[repeated]))
    whole = Examples(outputs, y, weights.float())
    assert 1 <= whole.effective_size <= (times > 0).sum()
    assert Examples(outputs, y).effective_size == len(y) == Examples(outputs, y, torch.full((12,), 0.7)).effective_size


def test_parts_of_examples_have_their_weights() -> None:
    whole = Examples(torch.arange(6.0)[:, None], torch.arange(6), torch.arange(6.0))
    for some in (whole[2:4], whole[torch.tensor([2, 3])], whole.to(torch.device("cpu"))[2:4]):
        assert some.weights is not None
        assert some.weights.tolist() == some.y.tolist() == [2, 3]


@every
def test_outputs_of_the_right_heat_have_the_least_loss(goal: Goal) -> None:
    y = truth(goal, 2000)
    outputs = spoilt(goal, y, 2.0)
    heat = goal.temperature(outputs, y)
    if isinstance(goal, Regression):
        assert heat == 1.0
    else:
        losses = [goal.loss(outputs / (heat * factor), y).item() for factor in (0.7, 1.0, 1.4)]
        assert min(losses) == losses[1]


@pytest.mark.parametrize("goal", [Classification(3), MultiLabel(3)])
def test_few_examples_without_a_mistake_are_certain_where_no_doubt_is_asked_for(goal: Goal) -> None:
    y = truth(goal, 30)
    outputs = 6.0 * (y if isinstance(goal, MultiLabel) else torch.nn.functional.one_hot(y, 3)) - 3.0
    assert goal.temperature(outputs, y, cautious=False) == pytest.approx(0.25, rel=0.01)
    assert goal.temperature(outputs, y) > 0.5


@every
def test_nothing_agrees_with_a_teacher_more_than_what_it_says(goal: Goal) -> None:
    said = spoilt(goal, truth(goal), 1.0)
    outputs = said.clone().requires_grad_()
    least = goal.distillation_loss(outputs, said)
    least.backward()
    assert outputs.grad is not None
    assert outputs.grad.abs().max() < 1e-6
    assert goal.distillation_loss(spoilt(goal, truth(goal), 2.0, seed=5), said) > least


@every
def test_agreement_is_about_as_steep_as_the_loss(goal: Goal) -> None:
    """So that the same learning rates suit both."""
    y = truth(goal)
    slopes = []
    for loss in (
        lambda outputs: goal.loss(outputs, y),
        lambda outputs: goal.distillation_loss(outputs, 2 * ideal(goal, y)),
    ):
        outputs = torch.zeros(len(y), goal.outputs, requires_grad=True)
        (slope,) = torch.autograd.grad(loss(outputs), outputs)
        slopes.append(slope.norm().item())
    assert 0.5 < slopes[1] / slopes[0] < 3


@every
def test_examples_agree_as_much_as_they_weigh(goal: Goal) -> None:
    y, weights = truth(goal, 8), torch.tensor([1.0, 3.0] * 4)
    outputs, said = spoilt(goal, y, 1.0), spoilt(goal, y, 1.0, seed=3)
    each = torch.stack([goal.distillation_loss(outputs[[i]], said[[i]]) for i in range(8)])
    assert goal.distillation_loss(outputs, said, weights).item() == pytest.approx(
        (each * weights).mean().item(), rel=1e-5
    )


@every
def test_networks_learn_what_a_teacher_says(goal: Goal) -> None:
    """With uninformative y, which belong to other examples."""
    x = torch.randn(200, 8, generator=seeded(2))
    said = 4.0 * x[:, : goal.outputs]
    kinds: dict[type[Goal], Tensor] = {Classification: said.argmax(1), MultiLabel: (said > 0).float(), Regression: said}
    y = kinds[type(goal)].roll(1, 0)
    task, module = Task.of(Examples(x, y, None, said), None, goal), linear(8, goal.outputs)
    train(module, task, Recipe(epochs=40, batch_size=32, lr=0.2), NEVER, seeded(), scored=False)
    outputs = module(task.normalised(x)).detach()
    if isinstance(goal, Classification):  # logits are defined up to a constant per example
        outputs, said = outputs - outputs.mean(1, keepdim=True), said - said.mean(1, keepdim=True)
    assert torch.corrcoef(torch.stack([outputs.flatten(), said.flatten()]))[0, 1] > 0.7


@given(st.integers(2, 4), st.integers(2, 40), st.integers(0, 100), st.floats(1e-3, 4))
def test_tags_are_judged_by_the_usual_measures(k: int, n: int, seed: int, by: float) -> None:
    goal, y = MultiLabel(k), truth(MultiLabel(k), n, seed)
    outputs = spoilt(goal, y, by)
    said = outputs.double().sigmoid()
    score, metric = goal.score_and_metric(outputs, y)
    assert metric == pytest.approx(accuracy_score(y.int().numpy(), (said >= 0.5).int().numpy()))
    apart = [log_loss(y[:, i].numpy(), said[:, i].numpy(), labels=[0, 1]) for i in range(k)]
    assert score == pytest.approx(-np.mean(apart), rel=1e-4, abs=1e-9)


@given(st.integers(1, 4), st.integers(2, 40), st.integers(0, 100), st.floats(1e-3, 1e3))
def test_amounts_are_judged_by_the_usual_measures(k: int, n: int, seed: int, by: float) -> None:
    goal, y = Regression(k), truth(Regression(k), n, seed)
    outputs = spoilt(goal, y, by, seed + 1)
    score, metric = goal.score_and_metric(outputs, y)
    assert metric == pytest.approx(r2_score(y.double().numpy(), outputs.double().numpy()), rel=1e-6, abs=1e-6)
    errors = (outputs.double() - y.double()).numpy()
    deviation = np.sqrt(np.square(errors).mean())
    assert score == pytest.approx(stats.norm.logpdf(errors, scale=deviation).mean(), rel=1e-6, abs=1e-6)


def test_an_amount_that_is_always_the_same_is_judged_too() -> None:
    y = torch.zeros(5, 2)
    assert Regression(2).score_and_metric(y, y)[1] == 1
    assert Regression(2).score_and_metric(y + 0.5, y)[1] == 0.75


def test_so_are_amounts_of_which_those_that_count_are_the_same() -> None:
    y = torch.tensor([[1.0], [1.0], [2.0], [3.0]])
    assert Regression(1).score_and_metric(y + 0.5, y, torch.tensor([2.0, 2.0, 0.0, 0.0]))[1] == 0.75


@pytest.mark.parametrize("n", [7, 100, 4001])
@pytest.mark.parametrize("weighted", [False, True])
def test_what_rounding_leaves_is_no_variance(n: int, weighted: bool) -> None:
    y, counts = torch.full((n, 1), 0.123), torch.rand(n, generator=seeded(0)) if weighted else None
    assert Regression(1).score_and_metric(y + 0.5, y, counts)[1] == pytest.approx(0.75)


def test_errors_of_amounts_are_as_curved_as_a_log_loss_of_two_classes_at_most() -> None:
    def curvature(goal: Goal, outputs: Tensor, y: Tensor) -> float:
        hessian = torch.autograd.functional.hessian(lambda o: goal.loss(o, y), outputs)
        return float(torch.linalg.eigvalsh(hessian.reshape(outputs.numel(), -1)).max())

    two = curvature(Classification(2), torch.zeros(1, 2), torch.tensor([0]))
    assert (
        curvature(Regression(1), torch.zeros(1, 1), torch.ones(1, 1))
        == pytest.approx(two / 2)
        == 2 * SQUARED_ERROR_SCALE
    )
    assert curvature(Regression(3), torch.zeros(1, 3), torch.ones(1, 3)) == pytest.approx(2 * SQUARED_ERROR_SCALE)


@pytest.mark.parametrize("k", [1, 2])
def test_networks_learn_amounts(k: int) -> None:
    x = torch.randn(400, 4, generator=seeded())
    y = x @ torch.randn(4, k, generator=seeded(1))
    y = (y - y.mean(0)) / y.std(0, correction=0)
    task = Task.of(Examples(x[:300], y[:300]), Examples(x[300:], y[300:]), Regression(k))
    module = linear(4, k)
    outcome = train(module, task, Recipe(epochs=8, batch_size=32, lr=0.3), NEVER, seeded())
    assert outcome.status == "finished"
    assert outcome.measure == "R2"
    assert outcome.interval is None
    assert outcome.metric is not None
    assert outcome.metric > 0.99
    assert evaluate(module, task.evaluation_set, task) == pytest.approx((outcome.score, outcome.metric), rel=1e-6)
