"""Examples on the device: normalisation and shuffling."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from morphnas.train.data import Examples, ShuffledIndices, Task, moments
from morphnas.train.goal import Classification
from tests.train.tasks import SHAPES, blob_task, image_task, seeded

pytestmark = pytest.mark.usefixtures("random_states_unchanged")


# -- normalisation


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_moments_agree_with_torch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randint(0, 256, (2500, *shape), generator=seeded()).to(dtype)  # read in three pieces
    x[:, 0] = (x[:, 0] / 3).to(dtype)
    mean, std = moments(x)
    axes = [0, *range(2, x.ndim)]
    exact = x.double()
    assert mean.shape == std.shape == (shape[0], *[1] * (len(shape) - 1))
    assert mean.dtype == std.dtype == torch.float32
    torch.testing.assert_close(mean.flatten().double(), exact.mean(axes), rtol=1e-6, atol=0)
    torch.testing.assert_close(std.flatten().double(), exact.std(axes, correction=0), rtol=1e-6, atol=0)


def test_moments_of_values_far_from_zero_are_exact() -> None:
    """The mean of squares minus the square of the mean would have no correct digit here."""
    x = 1e4 + 1e-2 * torch.randn(3000, 2, 5, generator=seeded())
    _, std = moments(x)
    torch.testing.assert_close(std.flatten().double(), x.double().std([0, 2], correction=0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6, 1e-9])
def test_constant_channel_has_deviation_1(value: float) -> None:
    x = torch.stack([torch.full((50, 4), value), torch.rand(50, 4, generator=seeded())], 1)
    task = Task.of(Examples(x, torch.zeros(50, dtype=torch.int64)), None, Classification(1))
    assert task.std.flatten()[0] == 1
    assert not task.normalised(x)[:, 0].any()
    assert task.normalised(x)[:, 1].std().item() == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("scale", [1e-20, 1e-8, 1e8])
def test_features_of_any_scale_are_normalised(scale: float) -> None:
    x = scale * torch.randn(200, 3, generator=seeded())
    task = Task.of(Examples(x, torch.zeros(200, dtype=torch.int64)), None, Classification(1))
    assert task.normalised(x).std(0, correction=0) == pytest.approx([1.0] * 3, rel=1e-4)


@pytest.mark.parametrize(("shape", "limit"), [((3,), 5.0), ((3, 4, 4), 100.0)])
def test_normalised_values_are_clipped(shape: tuple[int, ...], limit: float) -> None:
    x = torch.zeros(100_000, *shape)
    x[0, 0], x[1] = 1e-3, torch.rand(shape, generator=seeded())
    task = Task.of(Examples(x, torch.zeros(len(x), dtype=torch.int64)), None, Classification(1))
    assert task.normalised(torch.full((1, *shape), 1e9)).unique().tolist() == [limit]
    assert task.normalised(torch.full((1, *shape), -1e9)).unique().tolist() == [-limit]
    typical = task.mean + 4 * task.std
    torch.testing.assert_close(task.normalised(typical[None]), torch.full((1, *typical.shape), 4.0), rtol=1e-3, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_normalised_examples_have_mean_0_and_deviation_1(shape: tuple[int, ...]) -> None:
    x = torch.randint(0, 256, (200, *shape), generator=seeded()).to(torch.uint8)
    task = Task.of(Examples(x, torch.zeros(200, dtype=torch.int64)), None, Classification(1))
    found = task.normalised(x)
    assert found.dtype == torch.float32
    axes = [0, *range(2, x.ndim)]
    assert found.mean(axes).abs().max() < 1e-5
    assert (found.std(axes, correction=0) - 1).abs().max() < 1e-5


def test_mean_is_that_of_the_training_set() -> None:
    task = blob_task()
    assert task.valid is not None
    assert torch.equal(task.mean, moments(task.train.x)[0])


def test_training_set_is_scored_without_a_validation_set() -> None:
    task = blob_task(n_valid=0)
    assert task.evaluation_set is task.train
    task = blob_task()
    assert task.evaluation_set is task.valid


def test_task_is_moved_to_a_device() -> None:
    task = blob_task().to(torch.device("meta"))
    assert task.device.type == "meta"
    assert {
        t.device.type
        for t in (task.train.x, task.train.y, task.evaluation_set.x, task.evaluation_set.y, task.mean, task.std)
    } == {"meta"}


# -- batches


@given(st.integers(1, 60), st.integers(1, 150), st.integers(1, 8))
def test_shuffled_indices_are_balanced(n: int, length: int, epochs: int) -> None:
    found = torch.cat(list(islice(ShuffledIndices(n, length, seeded()), epochs)))
    assert len(found) == epochs * length
    counts = torch.bincount(found, minlength=n)
    assert counts.max() - counts.min() <= 1


def test_shuffled_indices_depend_only_on_the_generator() -> None:
    first, second = islice(ShuffledIndices(50, 50, seeded(1)), 2)
    assert torch.equal(first, next(ShuffledIndices(50, 50, seeded(1))))
    assert not torch.equal(first, second)
    assert not torch.equal(first, torch.arange(50))


def test_stripes_of_test_images_show_the_class() -> None:
    task = image_task()
    assert task.train.x.dtype == torch.uint8
    assert len(task.train) == 96
    assert len(task.evaluation_set) == 48
    brightness = task.train.x[..., :6].float().reshape(96, -1, 3, 2).mean((1, 3))  # of the three places
    assert torch.equal(brightness.argmax(1), task.train.y)


@pytest.mark.parametrize("shape", SHAPES)
def test_moments_count_weights_as_repetitions(shape: tuple[int, ...]) -> None:
    x = torch.randn(1500, *shape, generator=seeded())
    weights = torch.arange(1500) % 3
    x[weights == 0] = 1e6
    for weighted, repeated in zip(moments(x, weights.float()), moments(x.repeat_interleave(weights, 0)), strict=True):
        torch.testing.assert_close(weighted, repeated, rtol=1e-5, atol=1e-6)
