"""Examples on the device: what they are normalised by, how they are dealt out, and how images are changed."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from morphnas.train.data import Examples, Orders, Task, augmented, batches, moments, steps
from morphnas.train.recipe import Augment
from tests.train.tasks import blobs, images, seeded

CPU = torch.device("cpu")
SHAPES = [(7,), (2, 9), (3, 8, 6), (1, 4, 5, 6)]
SPATIAL = SHAPES[1:]


@pytest.fixture(autouse=True)
def _untouched() -> Iterator[None]:
    """Nothing here draws from, or seeds, anybody else's random numbers."""
    before = torch.get_rng_state(), random.getstate()
    yield
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()


# -- normalising


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_moments_are_torchs(shape: tuple[int, ...], kind: torch.dtype) -> None:
    x = torch.randint(0, 256, (2500, *shape), generator=seeded()).to(kind)  # read in three pieces
    x[:, 0] = (x[:, 0] / 3).to(kind)
    mean, std = moments(x)
    axes = [0, *range(2, x.ndim)]
    exact = x.double()
    assert mean.shape == std.shape == (shape[0], *[1] * (len(shape) - 1))
    assert mean.dtype == std.dtype == torch.float32
    torch.testing.assert_close(mean.flatten().double(), exact.mean(axes), rtol=1e-6, atol=0)
    torch.testing.assert_close(std.flatten().double(), exact.std(axes, correction=0), rtol=1e-6, atol=0)


def test_moments_of_pixels_far_from_zero_are_exact() -> None:
    """The mean of squares minus the square of the mean would have no digit right here."""
    x = 1e4 + 1e-2 * torch.randn(3000, 2, 5, generator=seeded())
    _, std = moments(x)
    torch.testing.assert_close(std.flatten().double(), x.double().std([0, 2], correction=0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6, 1e-9])
def test_a_constant_channel_is_not_divided_by_nothing(value: float) -> None:
    x = torch.stack([torch.full((50, 4), value), torch.rand(50, 4, generator=seeded())], 1)
    task = Task.of(Examples(x, torch.zeros(50, dtype=torch.int64)), None, 1)
    assert task.std.flatten()[0] == 1
    assert not task.normalised(x)[:, 0].any()
    assert task.normalised(x)[:, 1].std().item() == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("scale", [1e-20, 1e-8, 1e8])
def test_features_of_any_scale_are_normalised(scale: float) -> None:
    x = scale * torch.randn(200, 3, generator=seeded())
    task = Task.of(Examples(x, torch.zeros(200, dtype=torch.int64)), None, 1)
    assert task.normalised(x).std(0, correction=0) == pytest.approx([1.0] * 3, rel=1e-4)


@pytest.mark.parametrize(("shape", "most"), [((3,), 5.0), ((3, 4, 4), 100.0)])
def test_what_hardly_varies_is_not_blown_up(shape: tuple[int, ...], most: float) -> None:
    x = torch.zeros(100_000, *shape)
    x[0, 0], x[1] = 1e-3, torch.rand(shape, generator=seeded())
    task = Task.of(Examples(x, torch.zeros(len(x), dtype=torch.int64)), None, 1)
    assert task.normalised(torch.full((1, *shape), 1e9)).unique().tolist() == [most]
    assert task.normalised(torch.full((1, *shape), -1e9)).unique().tolist() == [-most]
    usual = task.mean + 4 * task.std
    torch.testing.assert_close(task.normalised(usual[None]), torch.full((1, *usual.shape), 4.0), rtol=1e-3, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_normalised_examples_have_mean_0_and_deviation_1(shape: tuple[int, ...]) -> None:
    x = torch.randint(0, 256, (200, *shape), generator=seeded()).to(torch.uint8)
    task = Task.of(Examples(x, torch.zeros(200, dtype=torch.int64)), None, 1)
    found = task.normalised(x)
    assert found.dtype == torch.float32
    axes = [0, *range(2, x.ndim)]
    assert found.mean(axes).abs().max() < 1e-5
    assert (found.std(axes, correction=0) - 1).abs().max() < 1e-5


def test_the_validation_part_does_not_move_the_mean() -> None:
    task = blobs()
    assert task.valid is not None
    assert torch.equal(task.mean, moments(task.train.x)[0])


def test_the_training_part_judges_where_there_is_no_other() -> None:
    assert blobs(n_valid=0).judge is not None
    task = blobs(n_valid=0)
    assert task.judge is task.train
    task = blobs()
    assert task.judge is task.valid


def test_a_task_can_move() -> None:
    task = blobs().to(torch.device("meta"))
    assert task.device.type == "meta"
    assert {t.device.type for t in (task.train.x, task.train.y, task.judge.x, task.judge.y, task.mean, task.std)} == {
        "meta"
    }


# -- batches


@given(st.integers(1, 400), st.integers(1, 80), st.integers(0, 2**32))
def test_batches_hold_every_example_once(n: int, size: int, seed: int) -> None:
    parts = list(batches(next(Orders(n, n, seeded(seed))), size, CPU))
    lengths = [len(part) for part in parts]
    assert sorted(torch.cat(parts).tolist()) == list(range(n))
    assert max(lengths) - min(lengths) <= 1
    assert max(lengths) <= max(size, 3)
    assert len(parts) == steps(n, size)
    if size > 2:
        assert len(parts) == math.ceil(n / size)


@given(st.integers(2, 400), st.integers(1, 80))
def test_no_batch_holds_one_example_alone(n: int, size: int) -> None:
    """Batch norm cannot normalise a single example."""
    assert min(len(part) for part in batches(torch.arange(n), size, CPU)) > 1


@given(st.integers(1, 60), st.integers(1, 150), st.integers(1, 8))
def test_orders_hold_every_example_as_often_as_any_other(n: int, length: int, epochs: int) -> None:
    found = torch.cat(list(islice(Orders(n, length, seeded()), epochs)))
    assert len(found) == epochs * length
    counts = torch.bincount(found, minlength=n)
    assert counts.max() - counts.min() <= 1


def test_orders_follow_their_generator() -> None:
    first, second = islice(Orders(50, 50, seeded(1)), 2)
    assert torch.equal(first, next(Orders(50, 50, seeded(1))))
    assert not torch.equal(first, second)
    assert not torch.equal(first, torch.arange(50))


# -- augmentation


CHANGES = [Augment(0.3), Augment(flip=True), Augment(cutout=0.4), Augment(rotate=20), Augment(0.2, True, 0.5, 20)]


def pixels(shape: tuple[int, ...], n: int = 40, kind: torch.dtype = torch.float32) -> Tensor:
    """Images in which no two pixels are alike (as far as the dtype goes)."""
    count = math.prod(shape)
    order = torch.stack([torch.randperm(count, generator=seeded(i)) for i in range(n)])
    return order.reshape(n, *shape).to(kind)


def window(image: Tensor, offset: tuple[int, ...]) -> Tensor:
    """The image (channels, *spatial) seen through a window moved by `offset`, edges repeated: by padding."""
    reach = max(abs(o) for o in offset)
    padded = np.pad(image.numpy(), [(0, 0), *[(reach, reach)] * len(offset)], mode="edge")
    cut = tuple(slice(reach + o, reach + o + size) for o, size in zip(offset, image.shape[1:], strict=True))
    return torch.from_numpy(padded[(slice(None), *cut)].copy())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
@pytest.mark.parametrize(
    "augment", [Augment(0.3), Augment(flip=True), Augment(cutout=0.4), Augment(0.2, True, 0.5, 20)]
)
def test_shape_and_dtype_stay(shape: tuple[int, ...], kind: torch.dtype, augment: Augment) -> None:
    x = pixels(shape, kind=kind)
    before = x.clone()
    found = augmented(x, augment, seeded())
    assert found.shape == x.shape
    assert found.dtype == kind
    assert torch.equal(x, before)  # the examples themselves stay as they are
    flat = len(shape) == 1 or (augment == Augment(rotate=20) and len(shape) != 3)
    assert torch.equal(found, x) == flat  # there is nowhere to move


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("flip", [False, None])
def test_no_augmentation_changes_nothing(shape: tuple[int, ...], flip: bool | None) -> None:
    x = pixels(shape)
    assert torch.equal(augmented(x, Augment(flip=flip), seeded()), x)


@pytest.mark.parametrize("shape", SPATIAL)
def test_shifted_images_are_windows_of_the_original(shape: tuple[int, ...]) -> None:
    share, x = 0.3, pixels(shape, 200)
    reach = [math.ceil(share * size - 1e-6) for size in shape[1:]]
    offsets = [tuple(o) for o in np.ndindex(*(2 * r + 1 for r in reach))]
    offsets = [tuple(o - r for o, r in zip(offset, reach, strict=True)) for offset in offsets]
    found = augmented(x, Augment(shift=share), seeded())
    seen = [[o for o in offsets if torch.equal(window(old, o), new)] for old, new in zip(x, found, strict=True)]
    assert all(len(fits) == 1 for fits in seen)
    for axis, r in enumerate(reach):  # every displacement, the farthest included, is drawn
        assert {fits[0][axis] for fits in seen} == set(range(-r, r + 1))
    assert len({fits[0] for fits in seen}) > len(reach) * max(reach)  # along each axis by itself


@pytest.mark.parametrize("shape", SPATIAL)
def test_half_of_the_images_are_mirrored_along_the_last_axis(shape: tuple[int, ...]) -> None:
    x = pixels(shape, 400)
    found = augmented(x, Augment(flip=True), seeded())
    mirrored = [torch.equal(new, old.flip(-1)) for old, new in zip(x, found, strict=True)]
    kept = [torch.equal(new, old) for old, new in zip(x, found, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 160 <= sum(mirrored) <= 240


def test_images_are_mirrored_as_they_are_told_to_be() -> None:
    x = pixels((2, 4, 5), 12)
    mirrored = torch.arange(12) % 3 == 0
    found = augmented(x, Augment(flip=True), seeded(), mirrored)
    assert torch.equal(found, torch.where(mirrored[:, None, None, None], x.flip(-1), x))


@pytest.mark.parametrize("size", [(9, 9), (9, 21), (30, 8)])
def test_images_are_turned_about_their_middle(size: tuple[int, int]) -> None:
    """By angles up to the one given, in both ways: a point on the right moves along a circle."""
    height, width = size
    radius = min(size) // 2 - 2  # far enough from the edges
    x = torch.zeros(400, 1, height, width)
    rows, columns = torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2
    x[:, 0] = torch.exp(-(rows[:, None] ** 2) - (columns - radius) ** 2)
    found = augmented(x, Augment(rotate=40), seeded())[:, 0]
    mass = found.sum((1, 2))
    down, right = (found.sum(2) * rows).sum(1) / mass, (found.sum(1) * columns).sum(1) / mass
    assert torch.allclose((down**2 + right**2).sqrt(), torch.tensor(float(radius)), atol=0.35)
    angles = torch.rad2deg(torch.atan2(down, right))
    assert 35 < angles.max() < 44
    assert -44 < angles.min() < -35
    assert angles.mean().abs() < 5


@pytest.mark.parametrize("shape", [(1, 12), (2, 8, 10), (1, 6, 6, 6)])
def test_cutout_hides_a_box_behind_the_mean(shape: tuple[int, ...]) -> None:
    x = pixels(shape, 200) + 0.25  # the mean ends in .5 or in .0
    found = augmented(x, Augment(cutout=0.5), seeded())
    sides = [round(0.5 * size) for size in shape[1:]]
    whole, edges = 0, set()
    for old, new in zip(x, found, strict=True):
        changed = old != new
        assert (changed == changed[:1]).all()  # in all channels at one place
        place = changed[0].nonzero()
        low, high = place.min(0).values, place.max(0).values
        assert len(place) == math.prod((high - low + 1).tolist())  # a box without holes
        assert all(length <= side for length, side in zip((high - low + 1).tolist(), sides, strict=True))
        mean = old.flatten(1).mean(1)
        assert (new.flatten(1) - mean[:, None]).abs()[changed.flatten(1)].max() < 1e-4
        whole += len(place) == math.prod(sides)
        for axis, side in enumerate(sides):
            if high[axis] - low[axis] + 1 < side:
                edges.add((axis, int(low[axis]) == 0))
    assert whole > 0
    assert edges == {(axis, first) for axis in range(len(sides)) for first in (True, False)}  # cut at either end


def test_a_thin_cutout_still_hides_a_pixel() -> None:
    x = pixels((1, 4, 4)) + 0.25
    found = augmented(x, Augment(cutout=0.01), seeded())
    assert ((found != x).flatten(1).sum(1) == 1).all()


@pytest.mark.parametrize(
    "augment", [Augment(0.3), Augment(flip=True), Augment(cutout=0.4), Augment(0.2, True, 0.5, 20)]
)
def test_augmentation_follows_its_generator(augment: Augment) -> None:
    x, generator = pixels((1, 8, 8)), seeded(3)
    first, second = augmented(x, augment, generator), augmented(x, augment, generator)
    assert torch.equal(first, augmented(x, augment, seeded(3)))
    assert not torch.equal(first, second)


def test_one_pixel_and_no_images_can_be_augmented() -> None:
    augment = Augment(0.4, True, 0.4)
    for shape in ((1, 1), (2, 1, 1), (1, 1, 1, 1)):
        x = pixels(shape)
        assert torch.equal(augmented(x, augment, seeded()), x)
        assert augmented(x[:0], augment, seeded()).shape == (0, *shape)


def test_the_images_of_the_tests_can_be_told_apart() -> None:
    task = images()
    assert task.train.x.dtype == torch.uint8
    assert len(task.train) == 96
    assert len(task.judge) == 48
