"""Examples as the trainer reads them: tensors on the device, in whole batches, changed and normalised there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from morphnas.train.recipe import Augment

FARTHEST, FARTHEST_PIXEL = 5.0, 100.0
"""Standard deviations from the mean beyond which a feature, or a pixel, counts as no farther.

A feature that is the same in nearly all examples would be hundreds away in the others, and thousands in one that was
not there when deviations were taken. A channel's deviation is over all positions, of which few may be bright."""


def farthest(mean: Tensor) -> float:
    """Which of them holds for examples with this mean, (d) for features or (channels, 1, ...)."""
    return FARTHEST if mean.ndim == 1 else FARTHEST_PIXEL


@dataclass(frozen=True, eq=False)
class Examples:
    """x: (n, *shape) uint8 or float32. y: (n,) int64 class indices, on the device; x may be in main memory instead."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: Tensor | slice) -> Examples:
        """Those at the indices, on the device; those of a slice are views."""
        if isinstance(index, slice):
            return Examples(self.x[index], self.y[index])
        device = self.y.device
        return Examples(self.x[index.to(self.x.device)].to(device), self.y[index.to(device)])

    def to(self, device: torch.device) -> Examples:
        return Examples(self.x.to(device), self.y.to(device))


@dataclass(frozen=True, eq=False)
class Task:
    """What a network is trained on and judged by.

    valid: stops the training and scores it; None: there are too few examples, the training part scores.
    mean, std: of the training pixels, per channel, (channels, 1, ...) float32.
    """

    train: Examples
    valid: Examples | None
    n_classes: int
    mean: Tensor
    std: Tensor

    @staticmethod
    def of(train: Examples, valid: Examples | None, n_classes: int) -> Task:
        mean, std = (moment.to(train.y.device) for moment in moments(train.x))
        return Task(train, valid, n_classes, mean, std)

    @property
    def judge(self) -> Examples:
        return self.train if self.valid is None else self.valid

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def normalised(self, x: Tensor) -> Tensor:
        """Raw examples (n, *shape) less the mean, in standard deviations, of which at most `farthest`."""
        most = farthest(self.mean)
        return ((x.to(self.device).to(torch.float32) - self.mean) / self.std).clamp(-most, most)

    def to(self, device: torch.device) -> Task:
        valid = None if self.valid is None else self.valid.to(device)
        return replace(
            self, train=self.train.to(device), valid=valid, mean=self.mean.to(device), std=self.std.to(device)
        )


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over examples and positions, per channel, (channels, 1, ...) float32.

    Read in pieces, through one buffer: what is allocated anew for each adds up, where the heap gets fragmented. A
    channel that is constant gets 1 for its deviation.
    """
    axes = [0, *range(2, x.ndim)]
    count = x.numel() // x.shape[1]
    shape = (-1, *[1] * (x.ndim - 2))
    parts = x.split(max(1, 2**20 // math.prod(x.shape[1:])))
    buffer = torch.empty(parts[0].shape, dtype=torch.float64, device=x.device)
    mean, spread = torch.zeros(2, x.shape[1], dtype=torch.float64, device=x.device)
    for part in parts:
        mean += buffer[: len(part)].copy_(part).sum(axes) / count
    centre = mean.reshape(shape)
    for part in parts:
        spread += buffer[: len(part)].copy_(part).sub_(centre).square_().sum(axes)
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


def batches(order: Tensor, size: int, device: torch.device) -> Iterator[Tensor]:
    """The indices in parts of at most `size` and nearly equal lengths, on the device.

    No part is of one index alone, which batch norm cannot train on: with a `size` of 1 or 2 some are of 2 or 3.
    """
    return iter(order.to(device).tensor_split(steps(len(order), size)))


def augmented(x: Tensor, augment: Augment, generator: torch.Generator, mirrored: Tensor | None = None) -> Tensor:
    """A batch (n, channels, *spatial) with every image shifted, mirrored along its last axis, turned and cut out.

    mirrored: (n,) bool, which images are, where any may be; None: half of them, by chance. One gather moves and
    mirrors; pixels from outside repeat the edge. Cutout sets to the image's mean. Images are turned on a plane only.
    """
    n, spatial = len(x), x.shape[2:]
    if not spatial or not (augment.shift or augment.flip or augment.cutout or augment.rotate):
        return x
    index: list[Tensor] = [_along(torch.arange(n), 0, x.ndim), _along(torch.arange(x.shape[1]), 1, x.ndim)]
    for axis, size in enumerate(spatial, start=2):
        reach = math.ceil((augment.shift or 0.0) * size - 1e-6)
        offset = torch.randint(-reach, reach + 1, (n, 1), generator=generator)
        place = (torch.arange(size) + offset).clamp(0, size - 1)  # (n, size)
        if augment.flip and axis == x.ndim - 1:
            mirrored = torch.rand(n, generator=generator) < 0.5 if mirrored is None else mirrored.cpu()
            place = torch.where(mirrored[:, None], place.flip(1), place)
        index.append(place.reshape(n, *[size if i == axis else 1 for i in range(1, x.ndim)]))
    moved = x[tuple(i.to(x.device) for i in index)]
    if augment.rotate and len(spatial) == 2:
        moved = _turned(moved, augment.rotate, generator)
    if augment.cutout:
        hidden = torch.ones((n, *[1] * (x.ndim - 1)), dtype=torch.bool)
        for axis, size in enumerate(spatial, start=2):
            side = max(1, round(augment.cutout * size))
            first = torch.randint(1 - side, size, (n, 1), generator=generator)
            inside = (torch.arange(size) >= first) & (torch.arange(size) < first + side)
            hidden = hidden & inside.reshape(n, *[size if i == axis else 1 for i in range(1, x.ndim)])
        mean = moved.to(torch.float32).mean(dim=list(range(2, x.ndim)), keepdim=True).to(moved.dtype)
        moved = torch.where(hidden.to(x.device), mean, moved)
    return moved


def _turned(x: Tensor, degrees: float, generator: torch.Generator) -> Tensor:
    """Images (n, channels, h, w), each turned about its middle by a random angle of up to so many degrees."""
    angle = (2 * torch.rand(len(x), generator=generator) - 1) * math.radians(degrees)
    h, w = x.shape[2:]
    sin, cos, none = angle.sin(), angle.cos(), torch.zeros(len(x))
    rows = [torch.stack([cos, -sin * h / w, none], 1), torch.stack([sin * w / h, cos, none], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), [len(x), 1, h, w], align_corners=False).to(x.device)
    found = F.grid_sample(x.to(torch.float32), grid, padding_mode="border", align_corners=False)
    return found if x.is_floating_point() else found.round().to(x.dtype)


def _along(values: Tensor, axis: int, ndim: int) -> Tensor:
    return values.reshape([-1 if i == axis else 1 for i in range(ndim)])
