"""Augmentation parameters of an epoch, their split into batches, and the augmented images."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from morphnas.train.augment import Draw, augmented
from morphnas.train.data import ShuffledIndices, batch_count
from morphnas.train.recipe import Augment
from tests.train.tasks import SHAPES, seeded

SPATIAL = SHAPES[1:]
ALL = Augment(0.2, True, 0.5, 20, flip_vertical=True, zoom=0.3, brightness=0.2, contrast=0.4)
pytestmark = pytest.mark.usefixtures("random_states_unchanged")


def make_draw(index: Tensor, shape: tuple[int, ...] = (3, 8, 8), augment: Augment | None = None) -> Draw:
    return Draw.of(index, shape, augment or ALL, seeded())


def augment_once(
    x: Tensor, augment: Augment, generator: torch.Generator | None = None, mirrored: Tensor | None = None
) -> Tensor:
    """Augment each image once; half of them are flipped horizontally if `augment.flip` is set."""
    generator = generator or seeded()
    draw = Draw.of(torch.arange(len(x)), x.shape[1:], augment, generator)
    if mirrored is None and augment.flip:
        mirrored = torch.rand(len(x), generator=generator) < 0.5
    return augmented(x, draw, augment, mirrored)


@given(st.integers(1, 400), st.integers(1, 80), st.integers(0, 2**32))
def test_batches_contain_every_example_once(n: int, size: int, seed: int) -> None:
    batches = [draw.index for draw in make_draw(next(ShuffledIndices(n, n, seeded(seed)))).split(batch_count(n, size))]
    lengths = [len(batch) for batch in batches]
    assert sorted(torch.cat(batches).tolist()) == list(range(n))
    assert max(lengths) - min(lengths) <= 1
    assert max(lengths) <= max(size, 3)
    assert len(batches) == batch_count(n, size)
    if size > 2:
        assert len(batches) == math.ceil(n / size)


@given(st.integers(2, 400), st.integers(1, 80))
def test_no_batch_has_a_single_example(n: int, size: int) -> None:
    """Batch norm cannot normalise a single example."""
    assert min(len(part) for part in make_draw(torch.arange(n)).split(batch_count(n, size))) > 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "augment", [Augment(), Augment(0.3), Augment(cutout=0.4, rotate=20), Augment(zoom=0.2, brightness=0.5), ALL]
)
def test_parts_of_a_draw_augment_as_the_whole(shape: tuple[int, ...], augment: Augment) -> None:
    x, mirrored = distinct_pixels(shape, 20), torch.arange(20) % 3 == 0 if augment.flip else None
    order = torch.randperm(20, generator=seeded())
    whole = make_draw(order, shape, augment)
    expected = augmented(x[order], whole, augment, None if mirrored is None else mirrored[order])
    for parts in (whole.split(3), [whole.first(20)]):
        assert sum(map(len, parts)) == len(whole) == 20
        found = [
            augmented(x[part.index], part, augment, None if mirrored is None else mirrored[part.index])
            for part in parts
        ]
        assert torch.equal(torch.cat(found), expected)
    other = Draw.of(order.flip(0), shape, augment, seeded(1))
    other.copy_(whole)
    sides = None if mirrored is None else mirrored[other.index]
    assert torch.equal(augmented(x[other.index], other, augment, sides), expected)
    assert len(whole.first(7)) == 7


AUGMENTS = [
    Augment(0.3), Augment(flip=True), Augment(cutout=0.4), Augment(rotate=20), Augment(flip_vertical=True),
    Augment(zoom=0.3), Augment(brightness=0.3), Augment(contrast=0.3), ALL,
]  # fmt: skip


def distinct_pixels(shape: tuple[int, ...], n: int = 40, dtype: torch.dtype = torch.float32) -> Tensor:
    """Images (n, *shape) of distinct pixel values, as far as the dtype allows."""
    count = math.prod(shape)
    order = torch.stack([torch.randperm(count, generator=seeded(i)) for i in range(n)])
    return order.reshape(n, *shape).to(dtype)


def window(image: Tensor, offset: tuple[int, ...]) -> Tensor:
    """The image (channels, *spatial) shifted by `offset`; edge pixels fill the gap."""
    reach = max(abs(o) for o in offset)
    padded = np.pad(image.numpy(), [(0, 0), *[(reach, reach)] * len(offset)], mode="edge")
    cut = tuple(slice(reach + o, reach + o + size) for o, size in zip(offset, image.shape[1:], strict=True))
    return torch.from_numpy(padded[(slice(None), *cut)].copy())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32, torch.float64])
@pytest.mark.parametrize("augment", AUGMENTS)
def test_augmentation_keeps_shape_and_dtype(shape: tuple[int, ...], dtype: torch.dtype, augment: Augment) -> None:
    x = distinct_pixels(shape, dtype=dtype)
    before = x.clone()
    found = augment_once(x, augment)
    assert found.shape == x.shape
    assert found.dtype == dtype
    assert torch.equal(x, before), "the input is not modified"
    axes, for_two_axes = len(shape) - 1, (Augment(rotate=20), Augment(zoom=0.3))
    off = axes == 0 or (augment in for_two_axes and axes != 2) or (augment == Augment(flip_vertical=True) and axes == 1)
    assert torch.equal(found, x) == off


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("flip", [False, None])
def test_augmentation_that_is_off_changes_nothing(shape: tuple[int, ...], flip: bool | None) -> None:
    x = distinct_pixels(shape)
    assert torch.equal(augment_once(x, Augment(flip=flip)), x)


@pytest.mark.parametrize("shape", SPATIAL)
def test_shifted_images_are_windows_of_the_original(shape: tuple[int, ...]) -> None:
    share, x = 0.3, distinct_pixels(shape, 200)
    reach = [math.ceil(share * size - 1e-6) for size in shape[1:]]
    offsets = [tuple(o) for o in np.ndindex(*(2 * r + 1 for r in reach))]
    offsets = [tuple(o - r for o, r in zip(offset, reach, strict=True)) for offset in offsets]
    found = augment_once(x, Augment(shift=share))
    matches = [[o for o in offsets if torch.equal(window(old, o), new)] for old, new in zip(x, found, strict=True)]
    assert all(len(match) == 1 for match in matches)
    for axis, r in enumerate(reach):  # every shift, the largest included, is drawn
        assert {match[0][axis] for match in matches} == set(range(-r, r + 1))
    assert len({match[0] for match in matches}) > len(reach) * max(reach)  # shifts along the axes are independent


@pytest.mark.parametrize("shape", SPATIAL)
def test_given_images_are_flipped_along_the_last_axis(shape: tuple[int, ...]) -> None:
    x = distinct_pixels(shape, 12)
    mirrored = torch.arange(12) % 3 == 0
    found = augment_once(x, Augment(flip=True), mirrored=mirrored)
    assert torch.equal(found, torch.where(mirrored.reshape(-1, *[1] * len(shape)), x.flip(-1), x))


@pytest.mark.parametrize("shape", [shape for shape in SPATIAL if len(shape) > 2])
def test_half_of_the_images_are_flipped_vertically(shape: tuple[int, ...]) -> None:
    x = distinct_pixels(shape, 400)
    found = augment_once(x, Augment(flip_vertical=True))
    flipped = [torch.equal(new, old.flip(-2)) for old, new in zip(x, found, strict=True)]
    kept = [torch.equal(new, old) for old, new in zip(x, found, strict=True)]
    assert all(a != b for a, b in zip(flipped, kept, strict=True))
    assert 160 <= sum(flipped) <= 240
    both = augment_once(x, Augment(flip=True, flip_vertical=True), mirrored=torch.ones(400, dtype=torch.bool))
    for old, new in zip(x, both, strict=True):
        assert torch.equal(new, old.flip(-1)) or torch.equal(new, old.flip(-1).flip(-2))


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_zoom_is_about_the_centre(size: tuple[int, int]) -> None:
    """Position and width of a spot change by one factor along both axes, which is as often above as below 1."""
    rows, columns = (torch.arange(side) - (side - 1) / 2 for side in size)
    x = torch.zeros(400, 1, *size)
    x[:, 0] = torch.exp(-((rows[:, None] - 4) ** 2 + (columns + 5) ** 2) / 4)
    found = augment_once(x, Augment(zoom=0.25))[:, 0]
    mass = found.sum((1, 2))
    down, right = (found.sum(2) * rows).sum(1) / mass, (found.sum(1) * columns).sum(1) / mass
    factor = down / 4
    assert torch.allclose(factor, right / -5, atol=0.02)
    assert torch.allclose(mass / x[0].sum(), factor**2, atol=0.05)
    assert 1.22 < factor.max() < 1.27
    assert 0.78 < factor.min() < 0.83
    assert factor.log().mean().abs() < 0.03


@pytest.mark.parametrize("shape", SPATIAL)
def test_brightness_scales_values_and_contrast_deviations(shape: tuple[int, ...]) -> None:
    x = distinct_pixels(shape, 300) + 7.0
    bright = augment_once(x, Augment(brightness=0.25)) / x
    factors = bright.flatten(1).mean(1)
    assert torch.allclose(bright, factors.reshape(-1, *[1] * len(shape)).expand_as(x), atol=1e-5)
    assert 1.2 < factors.max() <= 1.25
    assert 0.75 <= factors.min() < 0.8
    mean = x.flatten(1).mean(1).reshape(-1, *[1] * len(shape))
    found = augment_once(x, Augment(contrast=0.5)) - mean
    ratios = (found.flatten(1).std(1) / (x - mean).flatten(1).std(1)).reshape(mean.shape)
    assert torch.allclose(found, (x - mean) * ratios, atol=1e-3)
    assert 1.45 < ratios.max() <= 1.501
    assert 0.499 <= ratios.min() < 0.55


def test_integer_pixels_are_clamped_to_their_range() -> None:
    """Bright pixels do not overflow to dark ones."""
    x = torch.full((50, 1, 4, 4), 250, dtype=torch.uint8)
    x[:, :, 0] = 3
    found = augment_once(x, Augment(brightness=0.9, contrast=0.9))
    assert found.dtype == torch.uint8
    assert (found[:, :, 1:] >= found[:, :, :1]).all()
    assert int(found.max()) == 255


@pytest.mark.parametrize("size", [(9, 9), (9, 21), (30, 8)])
def test_rotation_is_about_the_centre(size: tuple[int, int]) -> None:
    """By angles up to the given one, in both directions: a spot on the right moves along a circle."""
    height, width = size
    radius = min(size) // 2 - 2  # far enough from the edges
    x = torch.zeros(400, 1, height, width)
    rows, columns = torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2
    x[:, 0] = torch.exp(-(rows[:, None] ** 2) - (columns - radius) ** 2)
    found = augment_once(x, Augment(rotate=40))[:, 0]
    mass = found.sum((1, 2))
    down, right = (found.sum(2) * rows).sum(1) / mass, (found.sum(1) * columns).sum(1) / mass
    assert torch.allclose((down**2 + right**2).sqrt(), torch.tensor(float(radius)), atol=0.35)
    angles = torch.rad2deg(torch.atan2(down, right))
    assert 35 < angles.max() < 44
    assert -44 < angles.min() < -35
    assert angles.mean().abs() < 5


@pytest.mark.parametrize("shape", [(1, 12), (2, 8, 10), (1, 6, 6, 6)])
def test_cutout_sets_a_box_to_the_mean(shape: tuple[int, ...]) -> None:
    x = distinct_pixels(shape, 200) + 0.25  # the mean ends in .5 or in .0
    found = augment_once(x, Augment(cutout=0.5))
    sides = [round(0.5 * size) for size in shape[1:]]
    full_size, cut_ends = 0, set()
    for old, new in zip(x, found, strict=True):
        differs = old != new
        assert (differs == differs[:1]).all()  # at the same position in all channels
        box = differs[0].nonzero()
        low, high = box.min(0).values, box.max(0).values
        assert len(box) == math.prod((high - low + 1).tolist())  # a box without holes
        assert all(length <= side for length, side in zip((high - low + 1).tolist(), sides, strict=True))
        mean = old.flatten(1).mean(1)
        assert (new.flatten(1) - mean[:, None]).abs()[differs.flatten(1)].max() < 1e-4
        full_size += len(box) == math.prod(sides)
        for axis, side in enumerate(sides):
            if high[axis] - low[axis] + 1 < side:
                cut_ends.add((axis, int(low[axis]) == 0))
    assert full_size > 0
    assert cut_ends == {(axis, first) for axis in range(len(sides)) for first in (True, False)}  # cut at either end


def test_small_cutout_covers_one_pixel() -> None:
    x = distinct_pixels((1, 4, 4)) + 0.25
    found = augment_once(x, Augment(cutout=0.01))
    assert ((found != x).flatten(1).sum(1) == 1).all()


@pytest.mark.parametrize("augment", AUGMENTS)
def test_augmentation_depends_only_on_the_generator(augment: Augment) -> None:
    x, generator = distinct_pixels((1, 8, 8)), seeded(3)
    first, second = augment_once(x, augment, generator), augment_once(x, augment, generator)
    assert torch.equal(first, augment_once(x, augment, seeded(3)))
    assert not torch.equal(first, second)


def test_single_pixels_and_empty_batches_can_be_augmented() -> None:
    augment = Augment(0.4, True, 0.4)
    for shape in ((1, 1), (2, 1, 1), (1, 1, 1, 1)):
        x = distinct_pixels(shape)
        assert torch.equal(augment_once(x, augment), x)
        assert augment_once(x[:0], augment).shape == (0, *shape)
