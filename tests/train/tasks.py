"""Small tasks, slow networks and a manual clock, for tests of training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from morphnas.train import step
from morphnas.train.data import Examples, Task
from morphnas.train.deadline import Deadline
from morphnas.train.goal import Classification

SHAPES = [(7,), (2, 9), (3, 8, 6), (1, 4, 5, 6)]
"""Shapes of examples: features, and series, images and volumes of several channels."""


@dataclass
class Clock:
    """A manual clock, which advances by `tick` seconds at every reading."""

    now: float = 1000.0
    tick: float = 0.0

    def __call__(self) -> float:
        self.now += self.tick
        return self.now

    def deadline(self, seconds: float) -> Deadline:
        return Deadline(self.now + seconds, self)


class TimedNetwork(nn.Module):
    """A network that advances the clock by given seconds per example, in training and in evaluation mode."""

    def __init__(self, inner: nn.Module, clock: Clock, training: float, scoring: float = 0.0) -> None:
        super().__init__()
        self.inner, self.clock, self.costs = inner, clock, (training, scoring)

    def forward(self, x: Tensor) -> Tensor:
        self.clock.now += len(x) * (self.costs[0] if self.training else self.costs[1])
        logits: Tensor = self.inner(x)
        return logits


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blob_task(n: int = 80, n_valid: int = 40, features: int = 4, seed: int = 0, distance: float = 3.0) -> Task:
    """Features around one of two centres, which are `distance` standard deviations apart along every axis."""
    generator = seeded(seed)
    y = torch.arange(n + n_valid) % 2
    x = torch.randn(len(y), features, generator=generator) + distance * (y[:, None] - 0.5)
    valid = Examples(x[n:], y[n:]) if n_valid else None
    return Task.of(Examples(x[:n], y[:n]), valid, Classification(2))


def image_task(n: int = 96, n_valid: int = 48, shape: tuple[int, ...] = (2, 8, 8), seed: int = 0) -> Task:
    """uint8 noise with a bright stripe across the last axis, at one of three places: the class."""
    generator = seeded(seed)
    y = torch.arange(n + n_valid) % 3
    x = torch.randint(0, 180, (len(y), *shape), generator=generator)
    width = shape[-1] // 3
    for i, place in enumerate(y.tolist()):
        x[i, ..., place * width : (place + 1) * width] += 60
    x = x.to(torch.uint8)
    valid = Examples(x[n:], y[n:]) if n_valid else None
    return Task.of(Examples(x[:n], y[:n]), valid, Classification(3))


def linear(features: int = 4, n_classes: int = 2, seed: int = 0) -> nn.Linear:
    """A linear classifier whose weights are drawn without changing torch's global random state."""
    layer = nn.utils.skip_init(nn.Linear, features, n_classes)
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight.copy_(0.1 * torch.randn(n_classes, features, generator=seeded(seed)))
        layer.bias.zero_()
    return layer


class Constant(nn.Module):
    """A network whose outputs do not depend on its weights, so that no epoch is better than the first."""

    def __init__(self, n_classes: int = 2) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_classes))

    def forward(self, x: Tensor) -> Tensor:
        return (0 * self.weight).expand(len(x), -1)


def copy_state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def states_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two states are bitwise equal."""
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@contextmanager
def record_rates(module: nn.Module) -> Iterator[list[float]]:
    """A list of the learning rates of all training steps made in this context."""
    rates: list[float] = []
    optimizers: list[torch.optim.Optimizer] = []
    original = step.make_optimizer

    def make_optimizer(*args: object) -> torch.optim.Optimizer:
        optimizers.append(original(*args))  # type: ignore[arg-type]
        return optimizers[-1]

    def record(layer: nn.Module, _: object) -> None:
        if layer.training:
            rates.append(optimizers[-1].param_groups[0]["lr"].item())

    handle = module.register_forward_pre_hook(record)
    step.make_optimizer = make_optimizer  # type: ignore[assignment]
    try:
        yield rates
    finally:
        step.make_optimizer = original
        handle.remove()
