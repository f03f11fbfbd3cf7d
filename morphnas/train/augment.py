"""Random changes of training images: drawn on the host for a whole epoch, made on the device a batch at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from morphnas.train.recipe import Augment


@dataclass(frozen=True, eq=False)
class Draw:
    """The examples that an epoch, or a batch of it, trains on, and what was drawn for each of them: a row each.

    index: (n,) int64. shift: (n, axes) int64 pixels. hidden: (n, axes) int64 pixels at which what is cut out begins.
    angle: (n, 1) radians. over: (n, 1) int64, 1 for those that are turned upside down. zoom, brightness, contrast:
    (n, 1) factors. What an `Augment` does not change has no columns; angle and zoom have them together, and so have
    brightness and contrast.
    """

    index: Tensor
    shift: Tensor
    hidden: Tensor
    angle: Tensor
    over: Tensor
    zoom: Tensor
    brightness: Tensor
    contrast: Tensor

    @staticmethod
    def of(index: Tensor, shape: Sequence[int], augment: Augment, generator: torch.Generator) -> Draw:
        """What happens to examples of the shape (channels, *spatial) at these indices of the training data."""
        n, spatial = len(index), shape[1:]

        def columns(ranges: Sequence[tuple[int, int]], wanted: bool) -> Tensor:
            drawn = [torch.randint(*bounds, (n, 1), generator=generator) for bounds in ranges if wanted]
            return torch.cat([torch.empty(n, 0, dtype=torch.int64), *drawn], 1)

        reaches = [math.ceil((augment.shift or 0.0) * size - 1e-6) for size in spatial]
        shift = columns([(-reach, reach + 1) for reach in reaches], bool(augment.shift))
        turned = bool(augment.rotate or augment.zoom) and len(spatial) == 2
        lit = bool(spatial and (augment.brightness or augment.contrast))

        def amounts(wanted: bool) -> Tensor:
            """(n, 1) from -1 to 1."""
            return 2 * torch.rand(n, int(wanted), generator=generator) - 1

        angle = amounts(turned) * math.radians(augment.rotate)
        sides = [_side(augment, size) for size in spatial]
        hidden = columns([(1 - side, size) for side, size in zip(sides, spatial, strict=True)], bool(augment.cutout))
        over = columns([(0, 2)], augment.flip_vertical and len(spatial) > 1)
        zoom = (amounts(turned) * math.log1p(augment.zoom)).exp()
        brightness, contrast = (1 + most * amounts(lit) for most in (augment.brightness, augment.contrast))
        return Draw(index, shift, hidden, angle, over, zoom, brightness, contrast)

    def __len__(self) -> int:
        return len(self.index)

    def each(self, change: Callable[[Tensor], Tensor]) -> Draw:
        return Draw(*(change(getattr(self, field.name)) for field in fields(self)))

    def to(self, device: torch.device, examples: torch.device) -> Draw:
        """For images that are changed on the device; the index goes where the examples lie."""
        return replace(self.each(lambda rows: rows.to(device)), index=self.index.to(examples))

    def first(self, n: int) -> Draw:
        return self.each(lambda rows: rows[:n])

    def split(self, parts: int) -> list[Draw]:
        """Views, of nearly equal lengths."""
        several = (getattr(self, field.name).tensor_split(parts) for field in fields(self))
        return [Draw(*part) for part in zip(*several, strict=True)]

    def copy_(self, other: Draw) -> None:
        for field in fields(self):
            getattr(self, field.name).copy_(getattr(other, field.name))


def augmented(x: Tensor, draw: Draw, augment: Augment, mirrored: Tensor | None = None) -> Tensor:
    """A batch (n, channels, *spatial) with every image shifted, mirrored along its last axes, turned, lit and cut out.

    mirrored: (n,) bool, which images are, left and right; None: none. One gather moves and mirrors; pixels from outside
    repeat the edge. Cutout sets to the image's mean. Images are turned and zoomed on a plane only.
    """
    n, spatial = len(x), x.shape[2:]
    if not spatial:
        return x
    if draw.shift.shape[1] or draw.over.shape[1] or mirrored is not None:
        places = [_along(torch.arange(size, device=x.device), axis, x.ndim) for axis, size in enumerate(x.shape[:2])]
        for axis, size in enumerate(spatial):
            place = torch.arange(size, device=x.device).expand(n, size)
            if draw.shift.shape[1]:
                place = (place + draw.shift[:, axis, None]).clamp(0, size - 1)
            if mirrored is not None and axis == len(spatial) - 1:
                place = torch.where(mirrored[:, None], place.flip(1), place)
            if draw.over.shape[1] and axis == len(spatial) - 2:
                place = torch.where(draw.over == 1, place.flip(1), place)
            places.append(_of_each(place, axis, x.ndim))
        x = x[tuple(places)]
    if draw.angle.shape[1]:
        x = _turned(x, draw.angle, draw.zoom)
    if draw.contrast.shape[1]:
        x = _lit(x, draw.brightness, draw.contrast)
    if draw.hidden.shape[1]:
        hidden = torch.ones((n, *[1] * (x.ndim - 1)), dtype=torch.bool, device=x.device)
        for axis, size in enumerate(spatial):
            place, first = torch.arange(size, device=x.device), draw.hidden[:, axis, None]
            inside = (place >= first) & (place < first + _side(augment, size))
            hidden = hidden & _of_each(inside, axis, x.ndim)
        mean = x.to(torch.float32).mean(dim=list(range(2, x.ndim)), keepdim=True).to(x.dtype)
        x = torch.where(hidden, mean, x)
    return x


def _side(augment: Augment, size: int) -> int:
    """Pixels that are cut out along an axis of so many."""
    return max(1, round(augment.cutout * size))


def _turned(x: Tensor, angle: Tensor, zoom: Tensor) -> Tensor:
    """Images (n, channels, h, w), each turned about its middle by its angle in radians and enlarged by its factor,
    (n, 1) each."""
    h, w = x.shape[2:]
    sin, cos, none = angle.sin() / zoom, angle.cos() / zoom, torch.zeros_like(angle)
    rows = [torch.cat([cos, -sin * h / w, none], 1), torch.cat([sin * w / h, cos, none], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), [len(x), 1, h, w], align_corners=False)
    found = F.grid_sample(x.to(torch.float32), grid, padding_mode="border", align_corners=False)
    return _as(found, x.dtype)


def _lit(x: Tensor, brightness: Tensor, contrast: Tensor) -> Tensor:
    """Images with their values, and the deviations of these from each image's mean, multiplied by its factors, (n, 1)
    each."""
    found = x if x.is_floating_point() else x.to(torch.float32)
    mean = found.mean(dim=list(range(1, x.ndim)), keepdim=True)
    found = mean + (found - mean) * _of_each(contrast, -1, x.ndim)
    return _as(found * _of_each(brightness, -1, x.ndim), x.dtype)


def _as(values: Tensor, kind: torch.dtype) -> Tensor:
    """Values of a kind that may be whole numbers, within its range."""
    if kind.is_floating_point:
        return values.to(kind)
    return values.round().clamp(torch.iinfo(kind).min, torch.iinfo(kind).max).to(kind)


def _along(values: Tensor, axis: int, ndim: int) -> Tensor:
    return values.reshape([-1 if i == axis else 1 for i in range(ndim)])


def _of_each(values: Tensor, axis: int, ndim: int) -> Tensor:
    """Values (n, size) of every image, along its spatial axis with that number."""
    return values.reshape([len(values) if i == 0 else values.shape[1] if i == axis + 2 else 1 for i in range(ndim)])
