"""Data sets as the trainer reads them: tensors on the device, gathered batch by batch and normalised there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from morphnas.train.goal import Goal

CLIP, CLIP_PIXELS = 5.0, 100.0
"""Standard deviations from the mean to which normalised features, and pixels, are clipped.

A feature that is constant in nearly all examples would be hundreds of deviations away in the others, and thousands in
an example outside the training set. The limit for pixels is higher, since a channel's deviation is over all positions,
of which few may be bright."""


def clip_limit(mean: Tensor) -> float:
    """The limit for examples whose mean has this shape: (features,), or (channels, 1, ...) for images."""
    return CLIP if mean.ndim == 1 else CLIP_PIXELS


@dataclass(frozen=True, eq=False)
class Examples:
    """Examples of a data set.

    x: (n, *shape) uint8 or float32. y: (n, ...) targets, as the `Goal` defines them. weights: (n,) float32 sample
    weights; None: equal. teacher_outputs: (n, outputs) float32, for distillation; None: no teacher. All are on the
    device, except that x may be in main memory.
    """

    x: Tensor
    y: Tensor
    weights: Tensor | None = None
    teacher_outputs: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: Tensor | slice) -> Examples:
        """The examples at an index tensor, all on the device; for a slice views, on the devices of the tensors."""
        if isinstance(index, slice):
            return self._map(self.x[index], lambda value: value[index])
        device = self.y.device
        on_device = index.to(device)
        return self._map(self.x[index.to(self.x.device)].to(device), lambda value: value[on_device])

    def to(self, device: torch.device, x: bool = True) -> Examples:
        """The examples on a device; x=False leaves x where it is."""
        return self._map(self.x.to(device) if x else self.x, lambda value: value.to(device))

    def _map(self, x: Tensor, function: Callable[[Tensor], Tensor]) -> Examples:
        """Examples with this x, and the function applied to all other tensors."""
        optional = (None if value is None else function(value) for value in (self.weights, self.teacher_outputs))
        return Examples(x, function(self.y), *optional)

    @property
    def effective_size(self) -> int:
        """Kish's effective sample size, at least 1 (Kish 1965, "Survey sampling", section 11.7)."""
        if self.weights is None:
            return len(self)
        weights = self.weights.double()
        return max(1, round((weights.sum().square() / weights.square().sum().clamp(min=1e-300)).item()))


@dataclass(frozen=True, eq=False)
class Task:
    """What a network is trained and evaluated on.

    valid: the validation set, for scores and early stopping; None: there are too few examples to hold any out, and the
    training set is scored. goal: loss and metrics. mean, std: of the training set, per channel, (channels, 1, ...)
    float32.
    """

    train: Examples
    valid: Examples | None
    goal: Goal
    mean: Tensor
    std: Tensor

    @staticmethod
    def of(train: Examples, valid: Examples | None, goal: Goal) -> Task:
        mean, std = (value.to(train.y.device) for value in moments(train.x, train.weights))
        return Task(train, valid, goal, mean, std)

    @property
    def evaluation_set(self) -> Examples:
        return self.train if self.valid is None else self.valid

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @property
    def scale(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel."""
        mean, std = (tuple(values.flatten().tolist()) for values in (self.mean, self.std))
        return mean, std

    def normalised(self, x: Tensor) -> Tensor:
        """Raw examples (n, *shape), standardised and clipped to +-`clip_limit`, float32 on the device."""
        limit = clip_limit(self.mean)
        return (x.to(self.device).to(torch.float32) - self.mean).div_(self.std).clamp_(-limit, limit)

    def to(self, device: torch.device) -> Task:
        valid = None if self.valid is None else self.valid.to(device)
        return replace(
            self, train=self.train.to(device), valid=valid, mean=self.mean.to(device), std=self.std.to(device)
        )


def moments(x: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over examples and positions, per channel, (channels, 1, ...) float32.

    weights: (n,) sample weights; None: equal.

    A constant channel gets a deviation of 1. Computed in float64, chunk by chunk through one buffer: allocating one for
    each chunk adds up where the heap gets fragmented.
    """
    axes = [0, *range(2, x.ndim)]
    size = max(1, 2**20 // math.prod(x.shape[1:]))
    chunks, chunk_weights, count = x.split(size), None, float(len(x))
    if weights is not None:
        column = weights.to(device=x.device, dtype=torch.float64).reshape(-1, *[1] * (x.ndim - 1))
        chunk_weights, count = column.split(size), column.sum().item()
    count *= math.prod(x.shape[2:])
    shape = (-1, *[1] * (x.ndim - 2))
    buffer = torch.empty(chunks[0].shape, dtype=torch.float64, device=x.device)
    mean, squares = torch.zeros(2, x.shape[1], dtype=torch.float64, device=x.device)

    def weighted_sum(i: int, values: Tensor) -> Tensor:
        return (values if chunk_weights is None else values.mul_(chunk_weights[i])).sum(axes)

    for i, chunk in enumerate(chunks):
        mean += weighted_sum(i, buffer[: len(chunk)].copy_(chunk)) / count
    centre = mean.reshape(shape)
    for i, chunk in enumerate(chunks):
        squares += weighted_sum(i, buffer[: len(chunk)].copy_(chunk).sub_(centre).square_())
    std = (squares / count).sqrt()
    std = torch.where(std > 1e-7 * mean.abs().clamp(min=1e-24), std, torch.ones_like(std))
    return mean.to(torch.float32).reshape(shape), std.to(torch.float32).reshape(shape)


def batch_count(n: int, size: int) -> int:
    """The number of batches of about `size` that n examples are split into; none has a single example, if n > 1."""
    return max(1, min(math.ceil(n / size), n // 2))


class ShuffledIndices:
    """Infinite iterator over the next `length` indices of concatenated random permutations of 0 .. n - 1.

    So the numbers of times that two indices have been returned differ by at most 1. Permutations are drawn when they
    are needed. remaining: indices drawn and not returned yet.
    """

    def __init__(self, n: int, length: int, generator: torch.Generator) -> None:
        self.n, self.length, self.generator = n, length, generator
        self.remaining = torch.empty(0, dtype=torch.int64)

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        while len(self.remaining) < self.length:
            self.remaining = torch.cat([self.remaining, torch.randperm(self.n, generator=self.generator)])
        indices, self.remaining = self.remaining[: self.length], self.remaining[self.length :]
        return indices
