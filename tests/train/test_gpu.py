"""Tests that need a GPU: CUDA graphs, running out of memory, and fits and processes on the device."""

from __future__ import annotations

import copy
import logging
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from morphnas import ImageClassifier, ImageRegressor
from morphnas.estimators.labels import ClassTarget
from morphnas.estimators.objective import UserLoss
from morphnas.estimators.targets import RegressionTarget
from morphnas.graph import cnn, densenet, mlp, resnet, to_module
from morphnas.run.plan import measure
from morphnas.run.store import load_run
from morphnas.train.augment import Draw
from morphnas.train.checkpoint import Checkpoint
from morphnas.train.data import Examples, Task
from morphnas.train.deadline import NEVER, Deadline
from morphnas.train.goal import Classification, CustomGoal, Goal, MultiLabel, Regression
from morphnas.train.last_layer import train_last_layer
from morphnas.train.predict import predict
from morphnas.train.recipe import Augment, Outcome, Recipe
from morphnas.train.step import EAGER_STEPS, Step, is_device_lost
from morphnas.train.trainer import train
from tests.train.tasks import blob_task, image_task, seeded

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]

GPU = torch.device("cuda")
SHAPE = (3, 16, 16)
RECIPE = Recipe(
    epochs=8, batch_size=64, optimizer="muon", lr=0.05, average=1.0, bias_rate=4.0, cuda_graphs=True,
    augment=Augment(0.1, True, 0.2, 10, flip_vertical=True, zoom=0.1, brightness=0.1, contrast=0.1),
)  # fmt: skip


@pytest.fixture
def task() -> Task:
    return image_task(500, 100, SHAPE).to(GPU)


def network(make: Any = cnn, width: int = 8) -> nn.Module:
    return to_module(make(SHAPE, 3, width=width)).to(GPU)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["sgd", "muon", "adamw"])
@pytest.mark.parametrize("make", [cnn, resnet, densenet])
def test_replayed_steps_update_weights_like_eager_ones(make: Any, optimizer: Any, precision: Any, task: Task) -> None:
    """The order of sums on a GPU is not deterministic, so the weights are close, but not equal."""
    recipe = replace(RECIPE, optimizer=optimizer, precision=precision, lr=0.01)
    start, updates = network(make), []
    draw = Draw.of(torch.arange(64), SHAPE, recipe.augment, seeded()).to(GPU, GPU)
    for graphs in (False, True):
        module = copy.deepcopy(start).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        step = Step(module, task, replace(recipe, cuda_graphs=graphs), mirrored=torch.arange(500) % 2 == 0)
        losses = [step(draw, 0.2).item() for _ in range(EAGER_STEPS + 5)]
        assert bool(step._replays) == graphs
        assert losses[-1] < losses[0]
        pairs = zip(module.parameters(), start.parameters(), strict=True)
        updates.append(torch.cat([(after - before).detach().flatten() for after, before in pairs]))
    assert (updates[1] - updates[0]).norm() < 0.1 * updates[0].norm()


def test_step_does_not_synchronise_with_the_device(task: Task) -> None:
    step = Step(network(), task, RECIPE, mirrored=torch.arange(500) % 2 == 0)
    draw = Draw.of(torch.arange(64), SHAPE, RECIPE.augment, seeded()).to(GPU, GPU)
    for _ in range(EAGER_STEPS + 2):
        step(draw, 0.2)
    eager = Step(network(), task, replace(RECIPE, cuda_graphs=False), mirrored=torch.arange(500) % 2 == 0)
    eager(draw, 0.2)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for one in (step, eager):
            one(draw, 0.1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_last_layer_alone_is_trained_on_the_device(task: Task) -> None:
    graph = resnet(SHAPE, 3, width=8)
    module = to_module(graph).to(GPU)
    recipe = replace(RECIPE, layers="last", epochs=3)
    outcome = train_last_layer(module, graph.output.name, task, recipe, NEVER, seeded())
    assert outcome.metric is not None
    assert outcome.metric > 0.6
    assert all(value.is_cuda for value in module.state_dict().values())


def test_steps_with_frozen_batch_norms_are_captured(task: Task) -> None:
    module = network(resnet)
    before = copy.deepcopy(module.state_dict())
    train(module, task, replace(RECIPE, freeze_norms=True, optimizer="adamw", lr=1e-3), NEVER, seeded())
    after = module.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in after if "running" in name)
    assert not torch.equal(after["conv_1.weight"], before["conv_1.weight"])


def test_failed_capture_restores_random_state_and_memory(task: Task, caplog: pytest.LogCaptureFixture) -> None:
    module = nn.Sequential(network(), nn.Dropout(0.5))
    module.register_forward_hook(lambda _, __, outputs: outputs.sum().item() and None)  # cannot be captured
    recipe = replace(RECIPE, precision="float32", optimizer="sgd")
    step = Step(module, task, recipe, mirrored=torch.arange(500) % 2 == 0)
    draw = Draw.of(torch.arange(64), SHAPE, RECIPE.augment, seeded()).to(GPU, GPU)
    losses = [step(draw, 0.0).item() for _ in range(EAGER_STEPS + 5)]
    assert not step._replays
    assert "cannot be captured" in caplog.text
    assert len(set(losses)) == len(losses)
    torch.cuda.empty_cache()
    reserved = torch.cuda.memory_reserved(GPU)
    torch.empty(2**28, dtype=torch.uint8, device=GPU)
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved(GPU) == reserved, "unused memory is freed as before"


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2.0, 3.0])])
def test_steps_with_a_pytorch_loss_are_captured(weights: torch.Tensor | None, task: Task) -> None:
    criterion = UserLoss(nn.CrossEntropyLoss(weights), ClassTarget(np.arange(3)))  # its weights are not on the device
    step = Step(network(), replace(task, goal=CustomGoal(task.goal, criterion=criterion)), replace(RECIPE, lr=0.01))
    draw = Draw.of(torch.arange(64), SHAPE, RECIPE.augment, seeded()).to(GPU, GPU)
    losses = [step(draw, 0.2).item() for _ in range(EAGER_STEPS + 5)]
    assert step._replays
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("goal", [Classification(3), MultiLabel(3)])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_steps_with_weights_and_a_teacher_are_captured(precision: Any, goal: Goal, task: Task) -> None:
    flags = F.one_hot(task.train.y, 3).float()
    y = flags if isinstance(goal, MultiLabel) else task.train.y
    weights = torch.linspace(0.5, 1.5, 500, device=GPU)
    train_set = replace(task.train, y=y, teacher_outputs=5 * (2 * flags - 1), weights=weights)
    recipe = replace(RECIPE, precision=precision, lr=0.01)
    step = Step(network(), replace(task, train=train_set, goal=goal), recipe, mirrored=torch.arange(500) % 2 == 0)
    draw = Draw.of(torch.arange(64), SHAPE, RECIPE.augment, seeded()).to(GPU, GPU)
    losses = [step(draw, 0.2).item() for _ in range(EAGER_STEPS + 5)]
    assert step._replays
    assert losses[-1] < losses[0]


def test_steps_with_a_loss_in_original_units_are_captured(task: Task) -> None:
    target, y = RegressionTarget.infer(np.arange(500.0) % 7 + 1000, 500)
    goal = CustomGoal(Regression(1), criterion=UserLoss(nn.L1Loss(), target))
    regression_task = replace(task, train=replace(task.train, y=torch.from_numpy(y).to(GPU)), goal=goal)
    step = Step(to_module(cnn(SHAPE, 1, width=8)).to(GPU), regression_task, replace(RECIPE, lr=0.01))
    draw = Draw.of(torch.arange(64), SHAPE, RECIPE.augment, seeded()).to(GPU, GPU)
    losses = [step(draw, 0.2).item() for _ in range(EAGER_STEPS + 5)]
    assert step._replays
    assert losses[-1] < losses[0]


def test_fit_with_user_defined_metric_and_loss(tmp_path: Path) -> None:
    x, y = load_digits(return_X_y=True)
    weighted_loss = nn.CrossEntropyLoss(torch.linspace(1, 2, 10))
    for loss in (weighted_loss, lambda outputs, y: 2 * F.cross_entropy(outputs, y)):
        path = tmp_path / type(loss).__name__
        classifier = ImageClassifier(path, metric="f1_macro", loss=loss, image_shape=(8, 8), max_trials=2)
        classifier.fit(x[:1400], y[:1400], time_limit=15)
        assert classifier.evaluate(x[1400:], y[1400:]) > 0.9
        recipes = {trial.proposal.recipe.cuda_graphs for trial in load_run(path).trials}
        assert loss is weighted_loss or recipes == {False}


@pytest.mark.parametrize("graphs", [False, True])
def test_network_learns(graphs: bool, task: Task, caplog: pytest.LogCaptureFixture) -> None:
    module = network()
    with caplog.at_level(logging.WARNING):
        outcome = train(module, task, replace(RECIPE, cuda_graphs=graphs, epochs=24), NEVER, seeded())
    assert outcome.status == "finished"
    assert outcome.metric is not None
    assert outcome.metric > 0.9
    assert outcome.peak_bytes > 0
    assert not caplog.records
    gpu_outputs = predict(module, task.evaluation_set.x, task).cpu()
    cpu_outputs = predict(module.cpu(), task.evaluation_set.x.cpu(), task.to(torch.device("cpu")))
    assert torch.allclose(gpu_outputs, cpu_outputs, atol=0.05)


def test_training_resumes_from_a_checkpoint(task: Task) -> None:
    checkpoints: list[Checkpoint] = []
    recipe = replace(RECIPE, optimizer="sgd", epochs=6)
    first, second = network(), network()
    uninterrupted = train(first, task, recipe, NEVER, seeded(), keep=lambda make: checkpoints.append(make()))
    resumed = train(second, task, recipe, NEVER, seeded(), saved=checkpoints[2])
    assert (resumed.epochs, resumed.curve[:3]) == (6, uninterrupted.curve[:3])
    assert uninterrupted.score is not None
    assert resumed.score == pytest.approx(uninterrupted.score, abs=0.1)


def test_measurement_chooses_cuda_graphs(task: Task, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        pace = measure(task, 60.0, RECIPE)
    assert pace.seconds_per_flop > 0
    assert pace.cuda_graphs
    assert not caplog.records


def test_peak_bytes_include_copies_of_the_weights() -> None:
    """Nearly all memory of a wide network is as large as its weights: these, gradients, the optimizer's momentum, the
    running average, and the best weights so far, twice while better ones are copied."""
    graph = mlp((64,), 2, width=4096)
    weights = 4 * sum(torch.Size(shape).numel() for shape in graph.weight_shapes.values())
    recipe = replace(RECIPE, augment=Augment(), lr=1e-3, optimizer="sgd", epochs=2)
    outcome = train(to_module(graph).to(GPU), blob_task(400, 50, 64).to(GPU), recipe, NEVER, seeded())
    assert 5 * weights < outcome.peak_bytes < 9 * weights


@pytest.fixture
def memory_limit() -> Iterator[int]:
    """Limits PyTorch to a hundredth of the GPU's memory; the limit in bytes."""
    torch.cuda.empty_cache()
    share = 0.01
    torch.cuda.set_per_process_memory_fraction(share)
    yield int(share * torch.cuda.get_device_properties(GPU).total_memory)
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def test_out_of_memory_halves_the_micro_batch(memory_limit: int) -> None:
    graph = cnn((3, 64, 64), 3, width=64)
    task = image_task(2048, 64, (3, 64, 64)).to(GPU)
    assert graph.peak_bytes(2048) > memory_limit
    outcome = train(to_module(graph).to(GPU), task, replace(RECIPE, batch_size=2048, epochs=2), NEVER, seeded())
    assert outcome.status == "finished"
    assert 2 <= outcome.micro_batch < 2048
    assert 0 < outcome.peak_bytes <= min(memory_limit, graph.peak_bytes(outcome.micro_batch))


def test_search_continues_after_out_of_memory(memory_limit: int, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    y = np.arange(2500) % 3
    x = (random.integers(0, 120, (2500, 64, 64, 3)) + 40 * y[:, None, None, None]).astype(np.uint8)
    settings = {"trainer_args": {"batch_size": 2048}, "default_model_width": 64}
    classifier = ImageClassifier(tmp_path / "run", random_state=0, device="cuda", max_trials=3, searcher_args=settings)
    classifier.fit(x, y, time_limit=40)
    outcomes = [trial.outcome for trial in load_run(tmp_path / "run").trials if trial.outcome is not None]
    assert all(outcome.status in ("finished", "truncated") for outcome in outcomes)
    assert all(2 <= outcome.micro_batch < 2048 and outcome.peak_bytes <= memory_limit for outcome in outcomes)
    assert classifier.evaluate(x, y) > 0.9


def test_training_with_examples_in_main_memory(task: Task) -> None:
    x = task.train.x.cpu()
    separated = replace(task, train=Examples(x, task.train.y))
    outcome = train(network(), separated, RECIPE, NEVER, seeded())
    assert outcome.metric is not None
    assert outcome.metric > 0.8


def test_lost_device_is_detected() -> None:
    """In another process, which loses the GPU."""
    assert not is_device_lost(GPU)
    script = """if True:
        import torch
        from morphnas.train.step import is_device_lost
        device = torch.device("cuda")
        beyond = torch.tensor([7], device=device)
        try:
            torch.zeros(3, device=device)[beyond].sum().item()
        except RuntimeError:
            print(is_device_lost(device))
    """
    ran = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=120)
    assert ran.stdout.strip() == "True", ran.stderr
    assert not is_device_lost(GPU)


def test_loss_that_rejects_logits_does_not_lose_the_device() -> None:
    """In another process, which would lose the GPU by a failed assertion on it."""
    script = """if True:
        import numpy as np
        import torch
        from morphnas import ImageClassifier
        from morphnas.train.step import is_device_lost
        random = np.random.default_rng(0)
        x, tags = random.random((200, 8, 8)), random.integers(0, 2, (200, 3))
        try:
            ImageClassifier(loss=torch.nn.BCELoss(), device="cuda").fit(x, tags, time_limit=5)
        except ValueError as error:
            print("between 0 and 1" in str(error), is_device_lost(torch.device("cuda")))
    """
    ran = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=120)
    assert ran.stdout.strip() == "True False", ran.stderr


@pytest.mark.parametrize(
    "placement", [{}, {"device": "cuda:0"}, {"executor": "process", "devices": ["cuda:0", "cuda:0"]}]
)
def test_fit_on_the_device(placement: dict[str, Any], tmp_path: Path) -> None:
    digits = load_digits()
    x, y = digits.images, digits.target
    classifier = ImageClassifier(tmp_path / "run", random_state=0, **placement).fit(x[:1400], y[:1400], time_limit=30)
    assert classifier.evaluate(x[1400:], y[1400:]) > 0.95
    assert all(t.outcome is not None and t.outcome.status != "failed" for t in load_run(tmp_path / "run").trials)
    module = classifier.to_module()
    assert all(value.device.type == "cpu" for value in module.state_dict().values())
    assert (ImageClassifier.load(tmp_path / "run").predict(x[1400:]) == classifier.predict(x[1400:])).mean() > 0.99


def test_trainings_in_threads_do_not_interfere(task: Task) -> None:
    """While one captures a CUDA graph, the others train and score."""
    deadline = Deadline.after(300)  # with a deadline, scoring waits for the device

    def trained(seed: int) -> Outcome:
        return train(network(), task, replace(RECIPE, epochs=24), deadline, seeded(seed))

    with ThreadPoolExecutor(4) as threads:
        outcomes = list(threads.map(trained, range(8)))
    assert all(outcome.status == "finished" for outcome in outcomes)
    assert all(outcome.metric and outcome.metric > 0.8 for outcome in outcomes)


def test_fit_with_regression_weights_and_latency_limit(tmp_path: Path) -> None:
    digits = load_digits()
    x, weights = digits.images, 1.0 + (digits.target < 5)
    y = np.stack([digits.target, x.mean((1, 2))], 1)
    regressor = ImageRegressor(tmp_path / "run", random_state=0, device="cuda", limits={"max_latency_ms": 50.0})
    regressor.fit(x[:1400], y[:1400], time_limit=20, sample_weight=weights[:1400])
    assert regressor.score(x[1400:], y[1400:]) > 0.5
    outcomes = [trial.outcome for trial in load_run(tmp_path / "run").trials]
    assert any(outcome is not None and outcome.latency and outcome.latency < 0.05 for outcome in outcomes)
    classifier = ImageClassifier(tmp_path / "other", random_state=0, device="cuda", ensemble=2, max_trials=3)
    classifier.fit(x[:1400], digits.target[:1400], time_limit=20, sample_weight=weights[:1400])
    assert classifier.evaluate(x[1400:], digits.target[1400:]) > 0.9
