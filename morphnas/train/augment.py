"""Data augmentation: parameters are drawn on the host once per epoch, and applied on the device batch by batch."""

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
    """The examples of an epoch, or of one batch of it, and their randomly drawn augmentation parameters: a row each.

    index: (n,) int64 indices into the training set. shift: (n, axes) int64 pixels. cutout: (n, axes) int64, the first
    pixel of the box that is cut out, which may be negative. angle: (n, 1) radians. upside_down: (n, 1) int64, 1 for
    images that are flipped vertically. zoom, brightness, contrast: (n, 1) factors. Parameters of augmentations that are
    off have 0 columns; angle and zoom are on or off together, and so are brightness and contrast.
    """

    index: Tensor
    shift: Tensor
    cutout: Tensor
    angle: Tensor
    upside_down: Tensor
    zoom: Tensor
    brightness: Tensor
    contrast: Tensor

    @staticmethod
    def of(index: Tensor, shape: Sequence[int], augment: Augment, generator: torch.Generator) -> Draw:
        """Draw parameters for the training examples at `index`. shape: of one example, (channels, *spatial)."""
        n, spatial = len(index), shape[1:]

        def integers(ranges: Sequence[tuple[int, int]], enabled: bool) -> Tensor:
            """(n, len(ranges)), each column uniform from low to high - 1; (n, 0) if not enabled."""
            drawn = [torch.randint(*bounds, (n, 1), generator=generator) for bounds in ranges if enabled]
            return torch.cat([torch.empty(n, 0, dtype=torch.int64), *drawn], 1)

        reaches = [math.ceil((augment.shift or 0.0) * size - 1e-6) for size in spatial]
        shift = integers([(-reach, reach + 1) for reach in reaches], bool(augment.shift))
        rotated = bool(augment.rotate or augment.zoom) and len(spatial) == 2
        relit = bool(spatial and (augment.brightness or augment.contrast))

        def uniform(enabled: bool) -> Tensor:
            """(n, 1) from -1 to 1; (n, 0) if not enabled."""
            return 2 * torch.rand(n, int(enabled), generator=generator) - 1

        angle = uniform(rotated) * math.radians(augment.rotate)
        sides = [_cutout_side(augment, size) for size in spatial]
        cutout = integers([(1 - side, size) for side, size in zip(sides, spatial, strict=True)], bool(augment.cutout))
        upside_down = integers([(0, 2)], augment.flip_vertical and len(spatial) > 1)
        zoom = (uniform(rotated) * math.log1p(augment.zoom)).exp()
        brightness, contrast = (1 + largest * uniform(relit) for largest in (augment.brightness, augment.contrast))
        return Draw(index, shift, cutout, angle, upside_down, zoom, brightness, contrast)

    def __len__(self) -> int:
        return len(self.index)

    def map(self, function: Callable[[Tensor], Tensor]) -> Draw:
        """Apply a function to every tensor."""
        return Draw(*(function(getattr(self, field.name)) for field in fields(self)))

    def to(self, device: torch.device, examples: torch.device) -> Draw:
        """Move the parameters to the device that augments, and the index to the device that holds the examples."""
        return replace(self.map(lambda rows: rows.to(device)), index=self.index.to(examples))

    def first(self, n: int) -> Draw:
        """The first n rows."""
        return self.map(lambda rows: rows[:n])

    def split(self, parts: int) -> list[Draw]:
        """Views of consecutive rows, of nearly equal lengths."""
        columns = (getattr(self, field.name).tensor_split(parts) for field in fields(self))
        return [Draw(*part) for part in zip(*columns, strict=True)]

    def copy_(self, other: Draw) -> None:
        """Copy the values of another draw into these tensors, which are the inputs of a CUDA graph."""
        for field in fields(self):
            getattr(self, field.name).copy_(getattr(other, field.name))


def augmented(x: Tensor, draw: Draw, augment: Augment, mirrored: Tensor | None = None) -> Tensor:
    """Apply the drawn augmentations to a batch (n, channels, *spatial); shape and dtype stay.

    In this order: shift and flips (one gather; edge pixels fill the gap), rotation and zoom (of two-dimensional images
    only), brightness and contrast, and cutout, which sets pixels to the image's mean per channel.

    mirrored: (n,) bool, which images are flipped along the last axis; None: none.
    """
    n, spatial = len(x), x.shape[2:]
    if not spatial:
        return x
    if draw.shift.shape[1] or draw.upside_down.shape[1] or mirrored is not None:
        sources = [_along(torch.arange(size, device=x.device), axis, x.ndim) for axis, size in enumerate(x.shape[:2])]
        for axis, size in enumerate(spatial):
            source = torch.arange(size, device=x.device).expand(n, size)
            if draw.shift.shape[1]:
                source = (source + draw.shift[:, axis, None]).clamp(0, size - 1)
            if mirrored is not None and axis == len(spatial) - 1:
                source = torch.where(mirrored[:, None], source.flip(1), source)
            if draw.upside_down.shape[1] and axis == len(spatial) - 2:
                source = torch.where(draw.upside_down == 1, source.flip(1), source)
            sources.append(_per_image(source, axis, x.ndim))
        x = x[tuple(sources)]
    if draw.angle.shape[1]:
        x = _rotate_and_zoom(x, draw.angle, draw.zoom)
    if draw.contrast.shape[1]:
        x = _adjust_light(x, draw.brightness, draw.contrast)
    if draw.cutout.shape[1]:
        hidden = torch.ones((n, *[1] * (x.ndim - 1)), dtype=torch.bool, device=x.device)
        for axis, size in enumerate(spatial):
            position, first = torch.arange(size, device=x.device), draw.cutout[:, axis, None]
            inside = (position >= first) & (position < first + _cutout_side(augment, size))
            hidden = hidden & _per_image(inside, axis, x.ndim)
        mean = x.to(torch.float32).mean(dim=list(range(2, x.ndim)), keepdim=True).to(x.dtype)
        x = torch.where(hidden, mean, x)
    return x


def _cutout_side(augment: Augment, size: int) -> int:
    """Pixels that cutout covers along an axis of `size` pixels."""
    return max(1, round(augment.cutout * size))


def _rotate_and_zoom(x: Tensor, angle: Tensor, zoom: Tensor) -> Tensor:
    """Rotate images (n, channels, h, w) about their centres and enlarge them.

    angle: (n, 1) radians. zoom: (n, 1) factors.
    """
    h, w = x.shape[2:]
    sin, cos, zero = angle.sin() / zoom, angle.cos() / zoom, torch.zeros_like(angle)
    rows = [torch.cat([cos, -sin * h / w, zero], 1), torch.cat([sin * w / h, cos, zero], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), [len(x), 1, h, w], align_corners=False)
    resampled = F.grid_sample(x.to(torch.float32), grid, padding_mode="border", align_corners=False)
    return _cast(resampled, x.dtype)


def _adjust_light(x: Tensor, brightness: Tensor, contrast: Tensor) -> Tensor:
    """Multiply the deviations from each image's mean by its contrast factor (n, 1), then all values by its brightness
    factor (n, 1)."""
    values = x if x.is_floating_point() else x.to(torch.float32)
    mean = values.mean(dim=list(range(1, x.ndim)), keepdim=True)
    values = mean + (values - mean) * _per_image(contrast, -1, x.ndim)
    return _cast(values * _per_image(brightness, -1, x.ndim), x.dtype)


def _cast(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert to a dtype; integers are rounded and clamped to its range."""
    if dtype.is_floating_point:
        return values.to(dtype)
    return values.round().clamp(torch.iinfo(dtype).min, torch.iinfo(dtype).max).to(dtype)


def _along(values: Tensor, axis: int, ndim: int) -> Tensor:
    """Reshape (size,) to broadcast along one of `ndim` axes."""
    return values.reshape([-1 if i == axis else 1 for i in range(ndim)])


def _per_image(values: Tensor, axis: int, ndim: int) -> Tensor:
    """Reshape (n, size) to broadcast over images along their spatial axis of this number; -1: along channels."""
    return values.reshape([len(values) if i == 0 else values.shape[1] if i == axis + 2 else 1 for i in range(ndim)])
