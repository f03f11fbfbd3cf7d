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
from tests.train.tasks import Clock, Constant, blobs, equal, images, seeded, state

TASK = images(n=50, n_valid=20)
RECIPE = Recipe(epochs=5, batch_size=16, lr=0.02)
RECIPES = {
    "sgd": RECIPE,
    "sgd without momentum": replace(RECIPE, momentum=0.0),
    "adamw": replace(RECIPE, optimizer="adamw", lr=0.003),
    "muon": replace(RECIPE, optimizer="muon"),
    "flips": replace(
        RECIPE, augment=Augment(0.1, True, 0.2, 5, flip_vertical=True, zoom=0.1, brightness=0.1, contrast=0.1)
    ),
    "average": replace(RECIPE, average=1.5, bias_rate=4.0),
    "parts": replace(RECIPE, examples=33, optimizer="muon"),
    "patience": replace(RECIPE, epochs=14, patience=2, lr=1e-12),
}


def network() -> nn.Module:
    """Convolutions, norms and dropout, the same every time."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        layers = (nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.Dropout(0.2))
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 8 * 8, 3))


class Interrupted(BaseException):
    pass


def trained(
    recipe: Recipe, after: int = 0, saved: Checkpoint | None = None, task: Task = TASK, scored: bool = True
) -> tuple[Outcome, dict[str, Tensor], list[Checkpoint]]:
    """The outcome, weights and checkpoints of a training that is interrupted after `after` checkpoints; 0: never."""
    module, made = network(), list[Checkpoint]()

    def keep(make: Callable[[], Checkpoint]) -> None:
        made.append(make())
        if len(made) == after:
            raise Interrupted

    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        deadline = Clock().deadline(math.inf)
        try:
            outcome = train(module, task, recipe, deadline, seeded(1), None, scored, None, 2, keep=keep, saved=saved)
        except Interrupted:
            outcome = Outcome("failed")
    return outcome, state(module), made


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("scored", [True, False])
def test_it_goes_on_to_the_same_weights(name: str, scored: bool) -> None:
    expected, weights, made = trained(RECIPES[name], scored=scored)
    assert len(made) == expected.epochs - 1
    for after in {1, len(made) // 2, len(made)}:
        _, _, before = trained(RECIPES[name], after, scored=scored)
        assert before[-1].facts == made[after - 1].facts
        torch.manual_seed(after)  # whatever happened in between
        outcome, found, more = trained(RECIPES[name], saved=before[-1], scored=scored)
        assert replace(outcome, images_per_second=0) == replace(expected, images_per_second=0)
        assert equal(found, weights)
        assert [c.facts for c in more] == [c.facts for c in made[after:]]


def test_it_may_be_interrupted_again_and_again() -> None:
    expected, weights, _ = trained(RECIPES["muon"])
    saved = None
    for _ in range(expected.epochs - 1):
        _, _, made = trained(RECIPES["muon"], 1, saved)
        saved = made[-1]
    assert saved is not None
    outcome, found, _ = trained(RECIPES["muon"], saved=saved)
    assert outcome.curve == expected.curve
    assert equal(found, weights)


def test_patience_goes_on_where_it_was() -> None:
    task, recipe = blobs(), Recipe(epochs=40, batch_size=16, patience=4)

    def ends(saved: Checkpoint | None, after: int = 0) -> tuple[Outcome | None, list[Checkpoint]]:
        made: list[Checkpoint] = []

        def keep(make: Callable[[], Checkpoint]) -> None:
            made.append(make())
            if len(made) == after:
                raise Interrupted

        try:
            deadline = Clock().deadline(math.inf)
            return train(Constant(), task, recipe, deadline, seeded(), keep=keep, saved=saved), made
        except Interrupted:
            return None, made

    expected, made = ends(None)
    assert expected is not None
    assert expected.epochs < 20
    for after in range(1, len(made) + 1):
        outcome, _ = ends(ends(None, after)[1][-1])
        assert outcome == expected


def test_seconds_before_the_interruption_count() -> None:
    """A schedule that follows the clock needs the share of the whole time that was allotted."""
    clock = Clock()
    made: list[Checkpoint] = []

    def keep(make: Callable[[], Checkpoint]) -> None:
        clock.now += 10
        made.append(make())

    train(network(), TASK, RECIPE, clock.deadline(1000), seeded(), keep=keep)
    assert made[2].facts["seconds"] == 30
    outcome = train(network(), TASK, RECIPE, Clock().deadline(1000), seeded(), saved=made[2])
    assert outcome.seconds == 30


# -- checkpoints of something else


def test_where_it_was_comes_back_from_json() -> None:
    curve = (Epoch(1.0, 0.5, -0.4, 0.9),)
    past = TrainingState(
        Outcome("truncated", -0.5, 0.8), 9, 16, 0.25, 0.75, 3, 1, True, 0.5, 96, 64, 1.5, 0.01, (0.7,), curve, 2.0
    )
    assert TrainingState.from_json(past.to_json()) == past
    assert TrainingState.from_json(replace(past, decay=None).to_json()).decay is None


@pytest.mark.parametrize(
    "changes",
    [
        {"epoch": 0}, {"epoch": 5}, {"epoch": -1}, {"epoch": 2.0}, {"epoch": True}, {"epoch": 10**30}, {"last": 6},
        {"last": 10**12}, {"micro": 0}, {"micro": None}, {"calmed": 1}, {"pace": -1.0}, {"pace": "fast"},
        {"usual": [1e999]}, {"usual": ["x"]}, {"usual": 3}, {"curve": [{}]}, {"curve": 3}, {"best": None}, {"more": 1},
        {"best": {"status": "good"}}, {"decay": "never"}, {"seconds": 1e999},
    ],
)  # fmt: skip
def test_facts_of_no_training_are_unfit(changes: dict[str, Any]) -> None:
    _, _, made = trained(RECIPE, 2)
    with pytest.raises(CheckpointMismatch):
        trained(RECIPE, saved=Checkpoint({**made[-1].facts, **changes}, made[-1].tensors))


WRONG: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "nothing": lambda _: {},
    "a name more": lambda t: t | {"other": torch.zeros(1)},
    "a weight less": lambda t: {n: v for n, v in t.items() if n != "module.0.weight"},
    "another shape": lambda t: t | {"best.0.bias": torch.zeros(7)},
    "another dtype": lambda t: t | {"module.0.bias": torch.zeros(6, dtype=torch.int64)},
    "no parameter": lambda t: t | {"optimizer.99.momentum_buffer": torch.zeros(6)},
    "no number": lambda t: t | {"optimizer.x.momentum_buffer": torch.zeros(6)},
    "a momentum of another shape": lambda t: t | {"optimizer.0.momentum_buffer": torch.zeros(6, 2)},
    "an order of other examples": lambda t: t | {"order": torch.tensor([50])},
    "an endless order": lambda t: t | {"order": torch.zeros(10_000, dtype=torch.int64)},
    "another random state": lambda t: t | {"torch": torch.zeros(3, dtype=torch.uint8)},
    "a random state of ones": lambda t: t | {"generator": torch.ones_like(t["generator"])},
}


@pytest.mark.parametrize("name", WRONG)
def test_tensors_of_another_training_are_unfit(name: str) -> None:
    _, _, made = trained(RECIPE, 2)
    with pytest.raises(CheckpointMismatch):
        trained(RECIPE, saved=Checkpoint(made[-1].facts, WRONG[name](dict(made[-1].tensors))))
