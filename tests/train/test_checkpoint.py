"""A training that is interrupted and resumed ends with bitwise the same weights as without the interruption."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from morphnas.train.checkpoint import Checkpoint, CheckpointMismatch, TrainingState
from morphnas.train.data import Task
from morphnas.train.recipe import Augment, Epoch, Outcome, Recipe
from morphnas.train.trainer import train
from tests.train.tasks import Clock, Constant, blob_task, copy_state, image_task, seeded, states_equal

TASK = image_task(n=50, n_valid=20)
RECIPE = Recipe(epochs=5, batch_size=16, lr=0.02)
RECIPES = {
    "sgd": RECIPE,
    "sgd without momentum": replace(RECIPE, momentum=0.0),
    "adamw": replace(RECIPE, optimizer="adamw", lr=0.003),
    "muon": replace(RECIPE, optimizer="muon"),
    "augmentation": replace(
        RECIPE, augment=Augment(0.1, True, 0.2, 5, flip_vertical=True, zoom=0.1, brightness=0.1, contrast=0.1)
    ),
    "average": replace(RECIPE, average=1.5, bias_rate=4.0),
    "part of the examples": replace(RECIPE, examples=33, optimizer="muon"),
    "patience": replace(RECIPE, epochs=14, patience=2, lr=1e-12),
}


def make_network() -> nn.Module:
    """A network with batch norm and dropout; its weights are the same every time."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        layers = (nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.Dropout(0.2))
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 8 * 8, 3))


class Interrupted(BaseException):
    pass


def run_training(
    recipe: Recipe,
    interrupt_after: int = 0,
    saved: Checkpoint | None = None,
    task: Task = TASK,
    make_module: Callable[[], nn.Module] = make_network,
    scored: bool = True,
) -> tuple[Outcome, dict[str, Tensor], list[Checkpoint]]:
    """The outcome, weights and checkpoints of a training, which is interrupted after so many checkpoints; 0: never."""
    module, checkpoints = make_module(), list[Checkpoint]()

    def keep(make: Callable[[], Checkpoint]) -> None:
        checkpoints.append(make())
        if len(checkpoints) == interrupt_after:
            raise Interrupted

    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        deadline = Clock().deadline(math.inf)
        try:
            outcome = train(module, task, recipe, deadline, seeded(1), None, scored, None, 2, keep=keep, saved=saved)
        except Interrupted:
            outcome = Outcome("failed")
    return outcome, copy_state(module), checkpoints


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("scored", [True, False])
def test_resumed_training_ends_with_the_same_weights(name: str, scored: bool) -> None:
    expected, weights, checkpoints = run_training(RECIPES[name], scored=scored)
    assert len(checkpoints) == expected.epochs - 1
    for after in {1, len(checkpoints) // 2, len(checkpoints)}:
        _, _, earlier = run_training(RECIPES[name], after, scored=scored)
        assert earlier[-1].facts == checkpoints[after - 1].facts
        torch.manual_seed(after)  # the global random state is restored from the checkpoint
        outcome, found, later = run_training(RECIPES[name], saved=earlier[-1], scored=scored)
        assert replace(outcome, images_per_second=0) == replace(expected, images_per_second=0)
        assert states_equal(found, weights)
        assert [c.facts for c in later] == [c.facts for c in checkpoints[after:]]


def test_training_resumes_after_every_epoch() -> None:
    expected, weights, _ = run_training(RECIPES["muon"])
    saved = None
    for _ in range(expected.epochs - 1):
        _, _, checkpoints = run_training(RECIPES["muon"], 1, saved)
        saved = checkpoints[-1]
    assert saved is not None
    outcome, found, _ = run_training(RECIPES["muon"], saved=saved)
    assert outcome.curve == expected.curve
    assert states_equal(found, weights)


def test_resumed_training_keeps_its_patience() -> None:
    task, recipe = blob_task(), Recipe(epochs=40, batch_size=16, patience=4)
    expected, _, checkpoints = run_training(recipe, task=task, make_module=Constant)
    assert expected.epochs < 20
    for after in range(1, len(checkpoints) + 1):
        _, _, earlier = run_training(recipe, after, task=task, make_module=Constant)
        outcome, _, _ = run_training(recipe, saved=earlier[-1], task=task, make_module=Constant)
        assert outcome == expected


def test_resumed_training_counts_seconds_before_interruption() -> None:
    """A schedule that follows the clock needs the share of all time that has passed."""
    clock = Clock()
    checkpoints: list[Checkpoint] = []

    def keep(make: Callable[[], Checkpoint]) -> None:
        clock.now += 10
        checkpoints.append(make())

    train(make_network(), TASK, RECIPE, clock.deadline(1000), seeded(), keep=keep)
    assert checkpoints[2].facts["seconds"] == 30
    outcome = train(make_network(), TASK, RECIPE, Clock().deadline(1000), seeded(), saved=checkpoints[2])
    assert outcome.seconds == 30


# -- checkpoints of another training


def test_training_state_round_trips_through_json() -> None:
    curve = (Epoch(1.0, 0.5, -0.4, 0.9),)
    state = TrainingState(
        Outcome("truncated", -0.5, 0.8), 9, 16, 0.25, 0.75, 3, 1, True, 0.5, 96, 64, 1.5, 0.01, (0.7,), curve, 2.0
    )
    assert TrainingState.from_json(state.to_json()) == state
    assert TrainingState.from_json(replace(state, decay=None).to_json()).decay is None


@pytest.mark.parametrize(
    "changes",
    [
        {"epoch": 0}, {"epoch": 5}, {"epoch": -1}, {"epoch": 2.0}, {"epoch": True}, {"epoch": 10**30}, {"last": 6},
        {"last": 10**12}, {"micro": 0}, {"micro": None}, {"calmed": 1}, {"pace": -1.0}, {"pace": "fast"},
        {"usual": [1e999]}, {"usual": ["x"]}, {"usual": 3}, {"curve": [{}]}, {"curve": 3}, {"best": None}, {"more": 1},
        {"best": {"status": "good"}}, {"decay": "never"}, {"seconds": 1e999},
    ],
)  # fmt: skip
def test_invalid_facts_raise_checkpoint_mismatch(changes: dict[str, Any]) -> None:
    _, _, checkpoints = run_training(RECIPE, 2)
    with pytest.raises(CheckpointMismatch):
        run_training(RECIPE, saved=Checkpoint({**checkpoints[-1].facts, **changes}, checkpoints[-1].tensors))


MISMATCHES: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "no tensors": lambda _: {},
    "unknown name": lambda t: t | {"other": torch.zeros(1)},
    "missing weight": lambda t: {n: v for n, v in t.items() if n != "module.0.weight"},
    "other shape": lambda t: t | {"best.0.bias": torch.zeros(7)},
    "other dtype": lambda t: t | {"module.0.bias": torch.zeros(6, dtype=torch.int64)},
    "unknown parameter": lambda t: t | {"optimizer.99.momentum_buffer": torch.zeros(6)},
    "parameter without number": lambda t: t | {"optimizer.x.momentum_buffer": torch.zeros(6)},
    "momentum of other shape": lambda t: t | {"optimizer.0.momentum_buffer": torch.zeros(6, 2)},
    "order with index out of range": lambda t: t | {"order": torch.tensor([50])},
    "order too long": lambda t: t | {"order": torch.zeros(10_000, dtype=torch.int64)},
    "random state of other shape": lambda t: t | {"torch": torch.zeros(3, dtype=torch.uint8)},
    "invalid random state": lambda t: t | {"generator": torch.ones_like(t["generator"])},
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_other_tensors_raise_checkpoint_mismatch(name: str) -> None:
    _, _, checkpoints = run_training(RECIPE, 2)
    with pytest.raises(CheckpointMismatch):
        run_training(RECIPE, saved=Checkpoint(checkpoints[-1].facts, MISMATCHES[name](dict(checkpoints[-1].tensors))))
