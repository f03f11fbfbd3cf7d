"""Examples as the trainer reads them: tensors on the device, in whole batches, normalised there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from morphnas.train.goal import Goal

CLIP, CLIP_PIXELS = 5.0, 100.0
"""Standard deviations from the mean beyond which a feature, or a pixel, counts as no farther.

A feature that is the same in nearly all examples would be hundreds away in the others, and thousands in one that was
not there when deviations were taken. A channel's deviation is over all positions, of which few may be bright."""


def clip_limit(mean: Tensor) -> float:
    """Which of them holds for examples with this mean, (d) for features or (channels, 1, ...)."""
    return CLIP if mean.ndim == 1 else CLIP_PIXELS


@dataclass(frozen=True, eq=False)
class Examples:
    """Examples of a data set.

    x: (n, *shape) uint8 or float32. y: (n, ...), as their goal defines it. weights: (n,) float32 sample weights; None:
    equal. teacher_outputs: (n, outputs) float32, for distillation; None: there is no teacher. All on the device, except
    that x may be in main memory.
    """

    x: Tensor
    y: Tensor
    weights: Tensor | None = None
    teacher_outputs: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: Tensor | slice) -> Examples:
        """Those at the indices, on the device; those of a slice are views."""
        if isinstance(index, slice):
            return self._each(self.x[index], lambda value: value[index])
        device = self.y.device
        there = index.to(device)
        return self._each(self.x[index.to(self.x.device)].to(device), lambda value: value[there])

    def to(self, device: torch.device, x: bool = True) -> Examples:
        """Those on the device; x only where it is said so."""
        return self._each(self.x.to(device) if x else self.x, lambda value: value.to(device))

    def _each(self, x: Tensor, change: Callable[[Tensor], Tensor]) -> Examples:
        """Those with other x, and all else changed."""
        others = (None if value is None else change(value) for value in (self.weights, self.teacher_outputs))
        return Examples(x, change(self.y), *others)

    @property
    def effective_size(self) -> int:
        """How many examples that count alike would tell as much (Kish 1965, "Survey sampling", section 11.7)."""
        if self.weights is None:
            return len(self)
        weights = self.weights.double()
        return max(1, round((weights.sum().square() / weights.square().sum().clamp(min=1e-300)).item()))


@dataclass(frozen=True, eq=False)
class Task:
    """What a network is trained on and judged by.

    valid: stops the training and scores it; None: there are too few examples, the training part scores.
    goal: what outputs are to say. mean, std: of the training pixels, per channel, (channels, 1, ...) float32.
    """

    train: Examples
    valid: Examples | None
    goal: Goal
    mean: Tensor
    std: Tensor

    @staticmethod
    def of(train: Examples, valid: Examples | None, goal: Goal) -> Task:
        mean, std = (moment.to(train.y.device) for moment in moments(train.x, train.weights))
        return Task(train, valid, goal, mean, std)

    @property
    def evaluation_set(self) -> Examples:
        return self.train if self.valid is None else self.valid

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @property
    def scale(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of each channel."""
        mean, std = (tuple(values.flatten().tolist()) for values in (self.mean, self.std))
        return mean, std

    def normalised(self, x: Tensor) -> Tensor:
        """Raw examples (n, *shape) less the mean, in standard deviations, of which at most `clip_limit`."""
        most = clip_limit(self.mean)
        return (x.to(self.device).to(torch.float32) - self.mean).div_(self.std).clamp_(-most, most)

    def to(self, device: torch.device) -> Task:
        valid = None if self.valid is None else self.valid.to(device)
        return replace(
            self, train=self.train.to(device), valid=valid, mean=self.mean.to(device), std=self.std.to(device)
        )


def moments(x: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over examples and positions, per channel, (channels, 1, ...) float32.

    weights: (n,) what each example counts for; None: all alike.
    Read in pieces, through one buffer: what is allocated anew for each adds up, where the heap gets fragmented. A
    channel that is constant gets 1 for its deviation.
    """
    axes = [0, *range(2, x.ndim)]
    size = max(1, 2**20 // math.prod(x.shape[1:]))
    parts, several, count = x.split(size), None, float(len(x))
    if weights is not None:
        counts = weights.to(device=x.device, dtype=torch.float64).reshape(-1, *[1] * (x.ndim - 1))
        several, count = counts.split(size), counts.sum().item()
    count *= math.prod(x.shape[2:])
    shape = (-1, *[1] * (x.ndim - 2))
    buffer = torch.empty(parts[0].shape, dtype=torch.float64, device=x.device)
    mean, spread = torch.zeros(2, x.shape[1], dtype=torch.float64, device=x.device)

    def total(i: int, values: Tensor) -> Tensor:
        return (values if several is None else values.mul_(several[i])).sum(axes)

    for i, part in enumerate(parts):
        mean += total(i, buffer[: len(part)].copy_(part)) / count
    centre = mean.reshape(shape)
    for i, part in enumerate(parts):
        spread += total(i, buffer[: len(part)].copy_(part).sub_(centre).square_())
    std = (spread / count).sqrt()
    std = torch.where(std > 1e-7 * mean.abs().clamp(min=1e-24), std, torch.ones_like(std))
    return mean.to(torch.float32).reshape(shape), std.to(torch.float32).reshape(shape)


def steps(n: int, size: int) -> int:
    """The number of batches that n examples make."""
    return max(1, min(math.ceil(n / size), n // 2))


class Orders:
    """Endlessly the next `length` indices of random orders of 0 .. n - 1, one order after the other.

    Every index comes as often as any other, give or take one. Each order is drawn when it is needed. rest: what has
    been drawn and not been given out yet.
    """

    def __init__(self, n: int, length: int, generator: torch.Generator) -> None:
        self.n, self.length, self.generator = n, length, generator
        self.rest = torch.empty(0, dtype=torch.int64)

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        while len(self.rest) < self.length:
            self.rest = torch.cat([self.rest, torch.randperm(self.n, generator=self.generator)])
        order, self.rest = self.rest[: self.length], self.rest[self.length :]
        return order
