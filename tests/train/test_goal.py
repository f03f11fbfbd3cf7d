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
for_every_goal = pytest.mark.parametrize("goal", GOALS, ids=str)


def make_targets(goal: Goal, n: int = 60, seed: int = 0) -> Tensor:
    if isinstance(goal, Classification):
        return torch.arange(n) % goal.outputs
    y = torch.randn(n, goal.outputs, generator=seeded(seed))
    if isinstance(goal, MultiLabel):
        y = (y > 0).float()
        y[::2] = 1.0  # which outputs of 0 predict
        return y
    return (y - y.mean(0)) / y.std(0, correction=0)


def ideal_outputs(goal: Goal, y: Tensor) -> Tensor:
    """Outputs without errors, apart from their confidence."""
    if isinstance(goal, Classification):
        return 3.0 * torch.nn.functional.one_hot(y, goal.outputs).float()
    return 6.0 * (y - 0.5) if isinstance(goal, MultiLabel) else y


def noisy_outputs(goal: Goal, y: Tensor, noise: float, seed: int = 1) -> Tensor:
    return ideal_outputs(goal, y) + noise * torch.randn(len(y), goal.outputs, generator=seeded(seed))


@for_every_goal
def test_noisier_outputs_have_worse_losses_and_scores(goal: Goal) -> None:
    y = make_targets(goal)
    series = [noisy_outputs(goal, y, noise) for noise in (0.1, 1.0, 10.0)]
    losses = [goal.loss(outputs, y).item() for outputs in series]
    errors = [goal.errors(outputs, y).mean().item() for outputs in series]
    scores, metrics = zip(*(goal.score_and_metric(outputs, y) for outputs in series), strict=True)
    assert losses == sorted(losses)
    assert errors == sorted(errors)
    assert list(scores) == sorted(scores, reverse=True)
    assert list(metrics) == sorted(metrics, reverse=True)


@for_every_goal
def test_ideal_outputs_have_no_errors(goal: Goal) -> None:
    y = make_targets(goal)
    score, metric = goal.score_and_metric(ideal_outputs(goal, y), y)
    assert math.isfinite(score)
    assert metric == 1
    assert (goal.errors(ideal_outputs(goal, y), y) == 0).all()
    assert goal.errors(ideal_outputs(goal, y), y).shape == (60,)


@for_every_goal
def test_uninformed_outputs_have_baseline_loss_and_metric(goal: Goal) -> None:
    y, outputs = make_targets(goal, 70 * 2), torch.zeros(140, goal.outputs)
    assert goal.loss(outputs, y).item() == pytest.approx(goal.baseline_loss, rel=1e-5)
    assert goal.score_and_metric(outputs, y)[1] == pytest.approx(goal.baseline_metric(y), abs=1e-6)


@for_every_goal
def test_loss_of_batch_is_the_mean_over_its_parts(goal: Goal) -> None:
    y, outputs = make_targets(goal), noisy_outputs(goal, make_targets(goal), 1.0)
    parts = [(outputs[a:b], y[a:b]) for a, b in ((0, 13), (13, 60))]
    whole = sum(goal.loss(*part, smoothing=0.1).item() * len(part[1]) / 60 for part in parts)
    assert whole == pytest.approx(goal.loss(outputs, y, smoothing=0.1).item(), rel=1e-5)


@for_every_goal
@given(counts=st.lists(st.integers(0, 4), min_size=12, max_size=12).filter(lambda counts: sum(counts) > 2))
def test_sample_weights_count_as_repetitions(goal: Goal, counts: list[int]) -> None:
    y, outputs = make_targets(goal, 12), noisy_outputs(goal, make_targets(goal, 12), 1.0)
    repetitions = torch.tensor(counts)
    weights = repetitions / repetitions.double().mean()
    repeated = torch.arange(12).repeat_interleave(repetitions)
    expected = goal.loss(outputs[repeated], y[repeated], None, 0.1).item()
    assert goal.loss(outputs, y, weights, 0.1).item() == pytest.approx(expected, rel=1e-4)
    score, metric = goal.score_and_metric(outputs[repeated], y[repeated])
    if len(repeated.unique()) > 1:  # the variance of a single example is a rounding error
        assert goal.score_and_metric(outputs, y, weights) == pytest.approx((score, metric), rel=1e-4, abs=1e-6)
    assert goal.baseline_metric(y, weights) == pytest.approx(goal.baseline_metric(y[repeated]))
    weighted = Examples(outputs, y, weights.float())
    assert 1 <= weighted.effective_size <= (repetitions > 0).sum()
    assert Examples(outputs, y).effective_size == len(y) == Examples(outputs, y, torch.full((12,), 0.7)).effective_size


def test_indexed_examples_keep_their_weights() -> None:
    whole = Examples(torch.arange(6.0)[:, None], torch.arange(6), torch.arange(6.0))
    for part in (whole[2:4], whole[torch.tensor([2, 3])], whole.to(torch.device("cpu"))[2:4]):
        assert part.weights is not None
        assert part.weights.tolist() == part.y.tolist() == [2, 3]


@for_every_goal
def test_temperature_minimises_the_loss(goal: Goal) -> None:
    y = make_targets(goal, 2000)
    outputs = noisy_outputs(goal, y, 2.0)
    temperature = goal.temperature(outputs, y)
    if isinstance(goal, Regression):
        assert temperature == 1.0
    else:
        losses = [goal.loss(outputs / (temperature * factor), y).item() for factor in (0.7, 1.0, 1.4)]
        assert min(losses) == losses[1]


@pytest.mark.parametrize("goal", [Classification(3), MultiLabel(3)])
def test_temperature_without_caution_trusts_few_examples(goal: Goal) -> None:
    y = make_targets(goal, 30)
    outputs = 6.0 * (y if isinstance(goal, MultiLabel) else torch.nn.functional.one_hot(y, 3)) - 3.0
    assert goal.temperature(outputs, y, cautious=False) == pytest.approx(0.25, rel=0.01)
    assert goal.temperature(outputs, y) > 0.5


@for_every_goal
def test_distillation_loss_is_least_at_the_teacher_outputs(goal: Goal) -> None:
    teacher_outputs = noisy_outputs(goal, make_targets(goal), 1.0)
    outputs = teacher_outputs.clone().requires_grad_()
    least = goal.distillation_loss(outputs, teacher_outputs)
    least.backward()
    assert outputs.grad is not None
    assert outputs.grad.abs().max() < 1e-6
    assert goal.distillation_loss(noisy_outputs(goal, make_targets(goal), 2.0, seed=5), teacher_outputs) > least


@for_every_goal
def test_distillation_gradients_are_about_those_of_the_loss(goal: Goal) -> None:
    """So the same learning rates suit both."""
    y = make_targets(goal)
    norms = []
    for loss in (
        lambda outputs: goal.loss(outputs, y),
        lambda outputs: goal.distillation_loss(outputs, 2 * ideal_outputs(goal, y)),
    ):
        outputs = torch.zeros(len(y), goal.outputs, requires_grad=True)
        (gradient,) = torch.autograd.grad(loss(outputs), outputs)
        norms.append(gradient.norm().item())
    assert 0.5 < norms[1] / norms[0] < 3


@for_every_goal
def test_distillation_loss_is_weighted(goal: Goal) -> None:
    y, weights = make_targets(goal, 8), torch.tensor([1.0, 3.0] * 4)
    outputs, teacher_outputs = noisy_outputs(goal, y, 1.0), noisy_outputs(goal, y, 1.0, seed=3)
    losses = torch.stack([goal.distillation_loss(outputs[[i]], teacher_outputs[[i]]) for i in range(8)])
    assert goal.distillation_loss(outputs, teacher_outputs, weights).item() == pytest.approx(
        (losses * weights).mean().item(), rel=1e-5
    )


@for_every_goal
def test_network_learns_teacher_outputs(goal: Goal) -> None:
    """The y are uninformative: they belong to other examples."""
    x = torch.randn(200, 8, generator=seeded(2))
    teacher = 4.0 * x[:, : goal.outputs]
    kinds: dict[type[Goal], Tensor] = {
        Classification: teacher.argmax(1),
        MultiLabel: (teacher > 0).float(),
        Regression: teacher,
    }
    y = kinds[type(goal)].roll(1, 0)
    task, module = Task.of(Examples(x, y, None, teacher), None, goal), linear(8, goal.outputs)
    train(module, task, Recipe(epochs=40, batch_size=32, lr=0.2), NEVER, seeded(), scored=False)
    outputs = module(task.normalised(x)).detach()
    if isinstance(goal, Classification):  # logits are defined up to a constant per example
        outputs, teacher = outputs - outputs.mean(1, keepdim=True), teacher - teacher.mean(1, keepdim=True)
    assert torch.corrcoef(torch.stack([outputs.flatten(), teacher.flatten()]))[0, 1] > 0.7


@given(st.integers(2, 4), st.integers(2, 40), st.integers(0, 100), st.floats(1e-3, 4))
def test_multi_label_score_and_metric_agree_with_sklearn(k: int, n: int, seed: int, noise: float) -> None:
    goal, y = MultiLabel(k), make_targets(MultiLabel(k), n, seed)
    outputs = noisy_outputs(goal, y, noise)
    probabilities = outputs.double().sigmoid()
    score, metric = goal.score_and_metric(outputs, y)
    assert metric == pytest.approx(accuracy_score(y.int().numpy(), (probabilities >= 0.5).int().numpy()))
    losses = [log_loss(y[:, i].numpy(), probabilities[:, i].numpy(), labels=[0, 1]) for i in range(k)]
    assert score == pytest.approx(-np.mean(losses), rel=1e-4, abs=1e-9)


@given(st.integers(1, 4), st.integers(2, 40), st.integers(0, 100), st.floats(1e-3, 1e3))
def test_regression_score_and_metric_agree_with_references(k: int, n: int, seed: int, noise: float) -> None:
    goal, y = Regression(k), make_targets(Regression(k), n, seed)
    outputs = noisy_outputs(goal, y, noise, seed + 1)
    score, metric = goal.score_and_metric(outputs, y)
    assert metric == pytest.approx(r2_score(y.double().numpy(), outputs.double().numpy()), rel=1e-6, abs=1e-6)
    errors = (outputs.double() - y.double()).numpy()
    deviation = np.sqrt(np.square(errors).mean())
    assert score == pytest.approx(stats.norm.logpdf(errors, scale=deviation).mean(), rel=1e-6, abs=1e-6)


def test_r2_of_constant_target() -> None:
    y = torch.zeros(5, 2)
    assert Regression(2).score_and_metric(y, y)[1] == 1
    assert Regression(2).score_and_metric(y + 0.5, y)[1] == 0.75


def test_r2_of_target_that_is_constant_where_weighted() -> None:
    y = torch.tensor([[1.0], [1.0], [2.0], [3.0]])
    assert Regression(1).score_and_metric(y + 0.5, y, torch.tensor([2.0, 2.0, 0.0, 0.0]))[1] == 0.75


@pytest.mark.parametrize("n", [7, 100, 4001])
@pytest.mark.parametrize("weighted", [False, True])
def test_r2_ignores_rounding_error_of_constant_target(n: int, weighted: bool) -> None:
    y, counts = torch.full((n, 1), 0.123), torch.rand(n, generator=seeded(0)) if weighted else None
    assert Regression(1).score_and_metric(y + 0.5, y, counts)[1] == pytest.approx(0.75)


def test_regression_loss_has_half_the_curvature_of_log_loss() -> None:
    def curvature(goal: Goal, outputs: Tensor, y: Tensor) -> float:
        hessian = torch.autograd.functional.hessian(lambda o: goal.loss(o, y), outputs)
        return float(torch.linalg.eigvalsh(hessian.reshape(outputs.numel(), -1)).max())

    log_loss_curvature = curvature(Classification(2), torch.zeros(1, 2), torch.tensor([0]))
    assert (
        curvature(Regression(1), torch.zeros(1, 1), torch.ones(1, 1))
        == pytest.approx(log_loss_curvature / 2)
        == 2 * SQUARED_ERROR_SCALE
    )
    assert curvature(Regression(3), torch.zeros(1, 3), torch.ones(1, 3)) == pytest.approx(2 * SQUARED_ERROR_SCALE)


@pytest.mark.parametrize("k", [1, 2])
def test_network_learns_regression(k: int) -> None:
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
