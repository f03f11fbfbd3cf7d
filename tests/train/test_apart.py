"""Examples in main memory and the network on a device: "meta", which cannot be mixed with CPU tensors either."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from morphnas.graph import cnn, to_module
from morphnas.run.work import _Mirror
from morphnas.train import step
from morphnas.train.augment import Draw
from morphnas.train.calibrate import calibrate
from morphnas.train.data import Examples, Task, moments
from morphnas.train.goal import Classification
from morphnas.train.predict import predict
from morphnas.train.recipe import Augment, Recipe
from morphnas.train.step import Step
from morphnas.train.trainer import probe_step_seconds
from tests.train.tasks import image_task, seeded

DEVICE = torch.device("meta")


@pytest.fixture
def task() -> Task:
    original = image_task()
    assert original.valid is not None
    train, valid = (Examples(part.x, part.y.to(DEVICE)) for part in (original.train, original.valid))
    return Task.of(train, valid, Classification(3))


@pytest.fixture
def module() -> nn.Module:
    return to_module(cnn((2, 8, 8), 3, width=4)).to(DEVICE)


def test_batches_are_moved_to_the_device(task: Task) -> None:
    assert task.device == DEVICE
    assert task.mean.device == task.std.device == DEVICE
    assert task.train.x.device.type == "cpu"
    batch = task.train[torch.arange(5)]
    assert batch.x.device == batch.y.device == DEVICE
    assert (batch.x.shape, batch.x.dtype) == ((5, 2, 8, 8), torch.uint8), "bytes are moved, not floats"
    part = task.train[3:8]
    assert part.x.untyped_storage().data_ptr() == task.train.x.untyped_storage().data_ptr(), "a slice is a view"
    assert task.normalised(part.x).device == DEVICE
    assert task.to(DEVICE).train.x.device == DEVICE


def test_indexed_examples_and_mean_on_one_device() -> None:
    task = image_task()
    index = torch.tensor([4, 1, 1])
    assert torch.equal(task.train[index].x, task.train.x[index])
    assert torch.equal(task.train[index].y, task.train.y[index])
    assert torch.equal(Task.of(task.train, None, Classification(3)).mean, moments(task.train.x)[0])


def test_training_and_prediction_with_examples_in_main_memory(
    task: Task, module: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "make_optimizer", lambda *_: None)  # torch has none for this device
    recipe = Recipe(augment=Augment(shift=0.2, flip=True, cutout=0.3))
    steps = Step(module, task, recipe, mirrored=torch.arange(len(task.train)) % 2 == 0)
    draw = Draw.of(torch.arange(len(task.train)), (2, 8, 8), recipe.augment, seeded())
    for batch in draw.to(DEVICE, task.train.x.device).split(3):
        assert steps._accumulate_gradients(batch.split(2)).device == DEVICE
    assert all(p.grad is not None and p.grad.device == DEVICE for p in module.parameters())
    assert predict(module, task.evaluation_set.x, task).shape == (48, 3)
    assert predict(_Mirror(module), task.evaluation_set.x, task).device == DEVICE
    assert probe_step_seconds(module, task, recipe, time.perf_counter) > 0
    norms = [name for name, layer in module.named_modules() if isinstance(layer, nn.BatchNorm2d)]
    calibrate(module, norms[:1], task.normalised(task.train[torch.arange(9)].x))
