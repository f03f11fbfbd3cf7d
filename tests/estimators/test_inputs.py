"""Images from any source give the same problem as the same images in an array."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
)

import morphnas
from morphnas import ImageClassifier
from morphnas.estimators.files import Files
from morphnas.estimators.inputs import Preprocessing, Problem
from morphnas.estimators.labels import ClassTarget
from morphnas.estimators.sources import Source, open_data
from morphnas.estimators.targets import RegressionTarget, classification_target
from tests.estimators.conftest import stripes
from tests.train.tasks import Clock

CPU = torch.device("cpu")
X, Y = stripes(60)
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (60, 6, 5, 3), dtype=np.uint8)
TINY: dict[str, Any] = {"default_model_width": 2, "trainer_args": {"epochs": 1}}


def found(x: Any, y: Any = None, validation_data: Any = None, **options: Any) -> Problem:
    return Problem.infer(x, y, validation_data, options.pop("image_shape", None), 0, CPU, **options)


def pixels(problem: Problem) -> torch.Tensor:
    """All examples, in the order of the problem."""
    whole = problem.task.train if problem.all_examples is None else problem.all_examples
    return whole.x


def same(one: Problem, other: Problem) -> None:
    assert pixels(one).dtype == pixels(other).dtype
    assert torch.equal(pixels(one), pixels(other))
    assert torch.equal(one.task.train.y, other.task.train.y)
    assert one.fingerprint == other.fingerprint


class Pairs(Dataset[Any]):
    """A map-style dataset that counts how often it is read."""

    def __init__(self, images: Any, labels: Any) -> None:
        self.images, self.labels, self.reads = images, labels, 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Any:
        self.reads += 1
        return self.images[i], self.labels[i]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return zip(RGB, Y.tolist(), strict=True)


def first(x: NDArray[Any]) -> list[torch.Tensor]:
    """Images as torchvision returns them, channels first."""
    return [torch.from_numpy(image).movedim(-1, 0) for image in x]


# -- time


class Slow(Pairs):
    """Every example takes a second."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(first(RGB), Y.tolist())
        self.clock = clock

    def __getitem__(self, i: int) -> Any:
        self.clock.now += 1
        return super().__getitem__(i)


class SlowStream(IterableDataset[Any]):
    def __init__(self, clock: Clock) -> None:
        self.pairs = Slow(clock)

    def __iter__(self) -> Iterator[Any]:
        return map(self.pairs.__getitem__, range(len(RGB)))


class SlowArray:
    """An array on a slow disk: reading a chunk takes six seconds."""

    shape, dtype = (60, 256, 256, 3), np.dtype("uint8")

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def __getitem__(self, part: slice) -> NDArray[Any]:
        self.clock.now += 6
        return np.zeros((len(range(60)[part]), 256, 256, 3), np.uint8)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (Slow, None, "10 of 60 examples"),
        (SlowStream, None, "10 examples"),
        (lambda clock: DataLoader(Slow(clock), batch_size=4), None, "8 examples"),
        (SlowArray, Y, "42 of 60 examples"),
    ],
)
def test_reading_ends_with_the_time(x: Any, y: Any, words: str) -> None:
    clock = Clock()
    slow = x(clock)
    assert len(found(slow, y, deadline=clock.deadline(1000)).order) == 60
    with pytest.raises(TimeoutError, match=f"reading x has taken all of the time limit, after {words}"):
        found(slow, y, deadline=clock.deadline(10.5))


def test_a_teacher_that_takes_too_long_is_asked_no_longer() -> None:
    clock = Clock()

    class Teacher:
        def predict_proba(self, x: Any) -> NDArray[Any]:
            clock.now += 6
            return np.full((len(x), 2), 0.5)

    x = np.zeros((60, 256, 256, 3), np.uint8)
    with pytest.raises(TimeoutError, match="42 of 60 examples"):
        found(x, Y, teacher=Teacher(), deadline=clock.deadline(10))


def test_data_that_cannot_be_read_in_time_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match="after 0 of 60 examples"):
        ImageClassifier(tmp_path / "run", device="cpu").fit(Pairs(RGB, Y.tolist()), time_limit=1e-6)
    assert not any(tmp_path.iterdir())


# -- arrays


def test_the_parts_are_views_of_one_tensor_and_the_users_array_is_left_alone() -> None:
    x, y = stripes(600)
    before = x.copy()
    problem = found(x, y)
    assert problem.all_examples is not None
    assert problem.task.valid is not None
    assert problem.selection_set is not None
    parts = [problem.task.train, problem.task.valid, problem.selection_set]
    assert {part.x.untyped_storage().data_ptr() for part in [*parts, problem.all_examples]} == {
        problem.all_examples.x.untyped_storage().data_ptr()
    }
    assert sum(map(len, parts)) == len(problem.all_examples) == 600
    train, _ = train_test_split(np.arange(600), test_size=90, stratify=y, random_state=0)
    assert torch.equal(problem.task.train.x[:, 0], torch.from_numpy(x[train]))
    assert problem.task.train.y.tolist() == y[train].tolist()
    problem.all_examples.x.zero_()
    assert (x == before).all()


@pytest.mark.parametrize("kind", [bool, np.int64, np.uint16, np.int8])
def test_whole_numbers_from_0_to_255_are_kept_in_a_byte(kind: Any) -> None:
    x = (RGB % 2).astype(kind)
    assert pixels(found(x, Y)).dtype == torch.uint8
    assert pixels(found(x.astype(float), Y)).dtype == torch.float32


def test_a_number_above_255_in_a_late_piece_makes_all_of_them_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    x = RGB.astype(np.int32)
    x[55, 0, 0] = 256
    whole = found(x, Y)
    monkeypatch.setattr("morphnas.estimators.sources._PIECE", 1)  # eight examples at a time
    same(found(x, Y), whole)
    assert pixels(whole).dtype == torch.float32
    assert pixels(whole).max() == 256
    with pytest.raises(ValueError, match=r"first in x\[57\]"):
        found(np.where(np.arange(60)[:, None, None] == 57, np.nan, X), Y)


@pytest.mark.parametrize("kind", [np.float64, np.int64, object])
def test_features_that_are_large_beside_their_spread_are_centred(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    small = np.stack([np.arange(60) % 7, np.arange(60), np.full(60, 5), np.arange(60) * 3], 1)
    large = (small + np.array([1_700_000_000, 0, 0, -(10**12)])).astype(kind)
    for few in (None, 1):
        few and monkeypatch.setattr("morphnas.estimators.sources._PIECE", few)
        centred = found(large, Y, (large[:20], Y[:20]))
        assert centred.task.train.x.equal(torch.from_numpy(small).float())
        assert centred.task.valid is not None
        assert centred.task.valid.x.equal(centred.task.train.x[:20])
        assert centred.preprocessing.offset == (1_700_000_000, 0, 0, -(10**12))
    told = json.loads(json.dumps(dataclasses.asdict(centred.preprocessing)))
    assert Preprocessing.from_json(told) == centred.preprocessing
    for wrong in ([1.0], [1, 2, 3, None], "1234", [1, 2, 3, math.inf]):
        with pytest.raises(ValueError, match="offset cannot be"):
            Preprocessing.from_json(told | {"offset": wrong})


def test_so_are_features_that_are_constant_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("morphnas.estimators.sources._PIECE", 1)
    small = np.stack([np.maximum(np.arange(60) - 50, 0), np.arange(60)], 1)
    large = small + np.array([1.7e9, 0])
    centred = found(large, Y, (large, Y))
    assert centred.task.train.x.equal(torch.from_numpy(small).float())


def test_other_features_stay_as_they_are() -> None:
    rounded = np.full(60, 0.3) + np.where(Y == 0, 0, 5e-17)  # rounding errors, as of sums in another order
    rows = np.stack([rounded, 1000 + RNG.normal(size=60), RNG.normal(size=60)], 1)
    assert found(rows, Y).preprocessing.offset is None
    assert found(X.reshape(60, 36), Y).task.train.x.dtype == torch.uint8


class Slices:
    """The part of the array interface that h5py, zarr and others share."""

    def __init__(self, x: NDArray[Any]) -> None:
        self.x, self.shape, self.dtype, self.longest = x, x.shape, x.dtype, 0

    def __getitem__(self, part: slice) -> NDArray[Any]:
        self.longest = max(self.longest, len(self.x[part]))
        return self.x[part]


def test_what_has_slices_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = found(RGB, Y)
    monkeypatch.setattr("morphnas.estimators.sources._PIECE", RGB[:9].size)
    slices = Slices(RGB)
    same(found(slices, Y), whole)
    assert slices.longest == 9
    np.save(tmp_path / "x.npy", RGB)
    same(found(np.load(tmp_path / "x.npy", mmap_mode="r"), Y), whole)
    same(found(torch.from_numpy(RGB).movedim(-1, 1), torch.from_numpy(Y)), found(RGB, Y))


def test_h5py(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["x"], file["y"] = RGB, Y
        same(found(file["x"], file["y"]), found(RGB, Y))


def test_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    rows = RNG.normal(size=(60, 3))
    index = RNG.permutation(1000)[:60]
    labels = np.array(["a", "b", "c"])[Y]
    frame = pandas.DataFrame({"one": rows[:, 0], "two": rows[:, 1], "three": rows[:, 2]}, index=index)
    same(found(frame, pandas.Series(labels, index=index[::-1])), found(rows, labels))
    frame["three"] = Y  # columns of two kinds
    rows[:, 2] = Y
    same(found(frame, pandas.Series(labels, dtype="category")), found(rows, labels))
    same(found(pandas.Series(list(X), index=index), Y), found(X, Y))


class Frame:
    """A data frame like those of polars, without `dtype` or `iloc`."""

    shape = (60, 2)

    def __init__(self, *columns: str) -> None:
        self.columns = list(columns)

    def __array__(self, dtype: Any = None, copy: Any = None) -> NDArray[Any]:
        return np.stack([np.arange(60.0), np.ones(60)], 1)


def test_features_that_float32_cannot_hold_are_named() -> None:
    pandas = pytest.importorskip("pandas")
    rows = np.random.default_rng(0).normal(size=(60, 3)) * [1, 1e-44, 1]
    with pytest.raises(ValueError, match="the values of feature 1 are too small for float32"):
        found(rows, Y)
    with pytest.raises(ValueError, match="the values of feature 'b' are too small for float32"):
        found(pandas.DataFrame(rows, columns=["a", "b", "c"]), Y)
    rows[3] = 1e-44
    rows[:, 1] = 1e-30
    found(rows, Y)


def test_times_are_to_be_made_numbers() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": np.arange(60.0), "t": pandas.date_range("2020", periods=60)})
    with pytest.raises(ValueError, match=r"column 't' has Timestamp.*; convert it to a number first"):
        found(frame, Y)


def test_columns_of_any_frame_have_names() -> None:
    problem = found(Frame("one", "two"), Y)
    assert problem.preprocessing.columns == ("one", "two")
    with pytest.raises(ValueError, match="same columns in another order"):
        problem.preprocessing(Source.of(Frame("two", "one"), "x"))


def test_lists_of_images() -> None:
    same(found(list(RGB), Y.tolist()), found(RGB, Y))
    same(found(first(RGB), Y), found(RGB, Y))
    same(found([image.tolist() for image in X], Y), found(X, Y))
    same(found(list(X.astype(np.float32)), Y), found(X.astype(np.float32), Y))


# -- datasets


def test_datasets_and_loaders() -> None:
    whole = found(RGB, Y)
    data = Pairs(first(RGB), torch.from_numpy(Y))
    same(found(data), whole)
    assert data.reads == 60
    same(found(DataLoader(data, batch_size=7)), whole)
    assert data.reads == 120, "read once through"
    same(found(Stream()), whole)
    items = DataLoader(Pairs(first(RGB), Y), batch_size=None)
    same(found(items), whole)
    same(found(TensorDataset(torch.from_numpy(RGB).movedim(-1, 1), torch.from_numpy(Y))), whole)
    names = [f"class {label}" for label in Y]
    same(found(DataLoader(Pairs(RGB.transpose(0, 3, 1, 2), names), batch_size=16)), found(RGB, names))
    floats = RGB / np.float32(255)
    problem = found(Pairs(first(floats), Y))
    same(problem, found(floats, Y))
    assert pixels(problem).dtype == torch.float32
    assert isinstance(problem.target, ClassTarget)
    assert problem.target.classes.tolist() == [0, 1, 2]


@pytest.mark.parametrize("size", [7, None])
@pytest.mark.parametrize("half", [False, True])
def test_a_loader_that_shuffles_is_read_in_the_order_of_its_dataset(size: int | None, half: bool) -> None:
    """So that reading is repeatable, and a separate y is aligned with the examples."""
    pairs, order = Pairs(first(RGB), Y), list(range(0, 60, 2 if half else 1))
    shuffled: Any = {"sampler": SubsetRandomSampler(order[::-1])} if half else {"shuffle": True}
    same(found(DataLoader(pairs, batch_size=size, **shuffled)), found(RGB[order], Y[order]))
    alone = TensorDataset(torch.stack(first(RGB)))
    if size:
        same(found(DataLoader(alone, batch_size=size, **shuffled), Y[order]), found(RGB[order], Y[order]))


def test_a_loader_that_draws_is_read_as_it_comes() -> None:
    pairs = Pairs(first(RGB), Y.tolist())
    draws = RandomSampler(pairs, replacement=True, num_samples=90)
    assert len(open_data(DataLoader(pairs, sampler=draws, batch_size=4), None, "x")[0]) == 90


def test_a_dataset_of_pil_images() -> None:
    image = pytest.importorskip("PIL.Image")
    same(found(Pairs([image.fromarray(x) for x in RGB], Y)), found(RGB, Y))
    same(found([image.fromarray(x) for x in X], Y), found(X, Y))


class Columns:
    """A dataset like Hugging Face's: not a subclass of PyTorch's, but with columns."""

    def __init__(self, streamed: bool = False, **columns: Any) -> None:
        self.columns, self.column_names = columns, list(columns)
        if not streamed:
            self.__class__ = type("Listed", (Columns,), {"__getitem__": Columns._item, "__len__": Columns._length})

    def _length(self) -> int:
        return len(next(iter(self.columns.values())))

    def _item(self, i: int) -> dict[str, Any]:
        return {name: values[i] for name, values in self.columns.items()}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self._item(i) for i in range(self._length()))


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("names", [("image", "label"), ("img", "fine"), ("pixel_values", "labels")])
def test_a_dataset_whose_examples_have_named_parts(streamed: bool, names: tuple[str, str]) -> None:
    data = Columns(streamed, **dict(zip(names, (RGB, Y.tolist()), strict=True)))
    same(found(data), found(RGB, Y))
    if not streamed:
        same(found(DataLoader(Columns(**{names[0]: first(RGB), names[1]: Y.tolist()}), batch_size=7)), found(RGB, Y))  # type: ignore[arg-type]
    source, y = open_data(Columns(streamed, **{names[0]: RGB}), None, "x")
    assert (len(source), y) == (60, None)


def test_parts_beside_the_image_and_its_label_are_passed_over_if_these_have_the_usual_names() -> None:
    same(found(Columns(index=range(60), label=Y.tolist(), image=RGB)), found(RGB, Y))
    several = Columns(image=RGB, coarse=Y, fine=Y)
    with pytest.raises(ValueError, match=r"y is missing: .* or with keys of these names"):
        found(several)
    assert len(open_data(several, None, "x")[0]) == 60, "which suffices for predictions"
    parts = type("Parts", (dict,), {"column_names": {}})(train=several, test=several)
    with pytest.raises(ValueError, match=r"x must be rows .* not {'train'"):
        found(parts)


@pytest.mark.parametrize("kind", [list, np.array, lambda paths: [str(path) for path in paths]])
def test_a_list_of_files(kind: Callable[[list[Path]], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = pytest.importorskip("PIL.Image")
    paths = [tmp_path / f"{i}.png" for i in range(60)]
    for path, x in zip(paths, RGB, strict=True):
        image.fromarray(x).save(path)
    same(found(kind(paths), Y), found(RGB, Y))
    monkeypatch.setenv("HOME", str(tmp_path))
    same(found([f"~/{path.name}" for path in paths], Y), found(RGB, Y))
    paths[7].write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"7\.png' cannot be read as an image"):
        found(kind(paths), Y)


def test_a_dataset_may_hold_images_of_mixed_sizes() -> None:
    images = [RGB[i, : 4 + i % 3] for i in range(60)]
    same(found(Pairs(images, Y)), found(images, Y))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (TensorDataset(torch.zeros(60, 1, 6, 6)), "y is missing.*a Dataset of .image, label."),
        (DataLoader(TensorDataset(torch.zeros(60, 1, 6, 6)), batch_size=8), "y is missing"),
        (TensorDataset(*[torch.zeros(60, 1, 6, 6)] * 3), r"must yield \(image, label\), not a tuple of length 3"),
        (Pairs([], []), "empty"),
        (Dataset(), "is a Dataset without a length"),
        (Pairs(["cat.png"] * 60, Y), r"its shape is \(60,\)"),
    ],
)
def test_bad_datasets(data: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        found(data)


def test_several_amounts_of_a_loader_are_those_of_its_examples() -> None:
    pairs = [(torch.zeros(1, 6, 6), (float(i), (100 + i, f"{i}"))) for i in range(6)]
    for size in (2, 4):
        _, y = open_data(DataLoader(pairs, batch_size=size), None, "x")  # type: ignore[arg-type]
        assert y == [pair[1] for pair in pairs]


def test_one_image_is_not_taken_for_several(tmp_path: Path) -> None:
    problem = found([RGB[i][: 4 + i % 2] for i in range(60)], Y)
    assert len(problem.preprocessing(Source.of(RGB[:1], "x"))) == 1
    with pytest.raises(
        ValueError, match=r"x looks like one image of shape \(6, 5, 3\): add an axis in front, x\[None\]"
    ):
        problem.preprocessing(Source.of(RGB[0], "x"))
    grey = found([X[i][: 4 + i % 2] for i in range(60)], Y)
    with pytest.raises(ValueError, match=r"x looks like one example of shape \(6, 6\): add an axis in front"):
        grey.preprocessing(Source.of(X[0], "x"))


def test_amounts_and_tags_may_be_the_columns_of_a_frame() -> None:
    pandas = pytest.importorskip("pandas")
    for kind, read in ((float, RegressionTarget.infer), (bool, classification_target)):
        table = np.stack([Y > 0, Y > 1], 1).astype(kind)
        frame = pandas.DataFrame({"one": table[:, 0], "two": table[:, 1]})
        for columns in (frame, np.asfortranarray(table)):
            same(found(X, columns, read=read), found(X, table, read=read))


def test_tensors_may_want_gradients_and_be_of_kinds_that_numpy_has_not() -> None:
    rows, weights = X.reshape(len(X), -1).astype(np.float32), np.arange(len(X)) % 4
    plain = found(rows, Y, sample_weight=weights, groups=Y + np.arange(len(X)) % 2 * 3)
    for kind in (torch.float32, torch.bfloat16):
        x, y, counts = (torch.tensor(a, dtype=kind, requires_grad=True) for a in (rows, Y, weights))
        given = found(x, y, sample_weight=counts, groups=y + torch.arange(len(X)) % 2 * 3)
        assert torch.equal(given.task.train.y, plain.task.train.y)
        assert given.task.train.weights is not None
        assert plain.task.train.weights is not None
        assert torch.equal(given.task.train.weights, plain.task.train.weights)
    amounts, codes = RegressionTarget.infer(torch.tensor([1, 2, 4], dtype=torch.bfloat16, requires_grad=True), 3)
    assert amounts.decode(codes)[:, 0] == pytest.approx([1, 2, 4])


def test_a_sparse_tensor_is_to_be_made_dense() -> None:
    with pytest.raises(ValueError, match=r"x is a sparse tensor.*x\.to_dense\(\)"):
        found(torch.tensor(X.reshape(len(X), -1)).to_sparse(), Y)


def test_tensors_that_look_channels_last_are_warned_of() -> None:
    x = RNG.integers(0, 256, (60, 6, 6, 3), dtype=np.uint8)
    with pytest.warns(UserWarning, match=r"shape \(6, 6, 3\) look channels last.*DataLoader makes tensors of arrays"):
        found(DataLoader(Pairs(x, Y), batch_size=9))
    with pytest.warns(UserWarning, match=r"shape \(6, 6, 3\) look channels last"):
        found(torch.from_numpy(x), Y)
    same(found(Pairs(x, Y)), found(x, Y))


def test_labels_come_once() -> None:
    same(found(TensorDataset(torch.from_numpy(X)[:, None]), Y), found(X[..., None], Y))  # without labels
    with pytest.raises(ValueError, match="x contains its own labels"):
        found(Pairs(RGB, Y), Y)
    with pytest.raises(ValueError, match="y is missing"):
        ImageClassifier().fit(X)


# -- sizes and colours


def test_mixed_sizes_are_brought_to_the_median(caplog: pytest.LogCaptureFixture) -> None:
    images = [np.full((h, w), 10 * h, np.uint8) for h, w in [(4, 9), (6, 5), (8, 7)] * 20]
    with caplog.at_level(logging.INFO, "morphnas"):
        problem = found(images, Y)
    assert problem.preprocessing == Preprocessing((6, 7, 1), (1, 6, 7), resized=True)
    assert "(4, 9) to (8, 7) pixels are resized to (6, 7)" in caplog.text
    flat = problem.preprocessing(Source.of(images, "x"))
    assert flat.shape == (60, 1, 6, 7)
    assert flat.dtype == torch.uint8
    assert flat[:, 0, 0, 0].tolist() == [10 * len(image) for image in images], "in the order given"
    assert flat.flatten(1).unique(dim=1).shape[1] == 1, "what is plain stays plain"


def test_mixed_sizes_are_bounded_and_equal_ones_are_left() -> None:
    large = [np.zeros((300 + i % 2, 1200), np.uint8) for i in range(60)]
    shape = found(large, Y).preprocessing.shape
    assert shape == (1, 64, 255)  # 300.5 x 1200 is scaled down to 128 * 128 pixels in total
    assert found([x[:150, :150] for x in large], Y).preprocessing.shape == (1, 150, 150)


@pytest.mark.parametrize("size", [4, (4, 4), np.array([4, 4]).tolist(), np.int64(4)])
def test_image_size(size: Any) -> None:
    problem = found(RGB, Y, image_size=size)
    assert problem.preprocessing.shape == (3, 4, 4)
    assert pixels(problem).dtype == torch.uint8
    exact = torch.nn.functional.interpolate(
        torch.from_numpy(RGB).movedim(-1, 1).double(), (4, 4), mode="bilinear", antialias=True
    )
    assert (problem.preprocessing(Source.of(RGB, "x")) - exact).abs().max() <= 0.5 + 1e-4
    floats = problem.preprocessing(Source.of(RGB / 255, "x"))
    assert floats.dtype == torch.float32
    assert torch.allclose(floats.double(), exact / 255, atol=1e-6)
    assert problem.preprocessing(Source.of(RGB[:, :3, :2], "x")).shape == (60, 3, 4, 4), "later sizes do not matter"


def test_grey_and_rgb_become_rgb(caplog: pytest.LogCaptureFixture) -> None:
    alpha = np.concatenate([RGB, RGB[..., :1]], -1)
    grey = RGB[..., 0]
    images = [[grey, RGB, alpha, grey[..., None]][i % 4][i] for i in range(60)]
    with caplog.at_level(logging.INFO, "morphnas"):
        problem = found(images, Y)
    assert "channels are converted to RGB" in caplog.text
    assert problem.preprocessing == Preprocessing((6, 5, 3), (3, 6, 5)), "equal sizes: nothing is resized"
    x = problem.preprocessing(Source.of(images, "x"))
    assert (x[0] == torch.from_numpy(grey[0])).all()
    assert torch.equal(x[1:3].movedim(1, -1), torch.from_numpy(RGB[1:3]))
    assert (x[3] == torch.from_numpy(grey[3])).all()
    assert torch.equal(problem.preprocessing(Source.of(grey, "x"))[:, 2], torch.from_numpy(grey))
    with pytest.raises(ValueError, match=r"shape \(6, 4\), but the model was fitted on \(6, 5, 3\)"):
        problem.preprocessing(Source.of(grey[:, :, :4], "x"))


def test_rgb_becomes_grey_where_grey_was_fitted() -> None:
    fitted = found(RGB[..., 0], Y).preprocessing
    x = fitted(Source.of(RGB, "x"))
    assert x.dtype == torch.uint8
    luma = np.round(RGB @ np.array([0.299, 0.587, 0.114]))
    assert (x[:, 0] - torch.from_numpy(luma)).abs().max() <= 1
    assert (x[:, 0] == torch.from_numpy(luma)).float().mean() > 0.99
    assert torch.equal(fitted(Source.of(RGB[..., :1], "x")), fitted(Source.of(RGB[..., 0], "x")))
    four = found(np.concatenate([RGB, RGB[..., :1]], -1), Y).preprocessing
    assert four.shape == (4, 6, 5), "an array of four channels keeps them"
    with pytest.raises(ValueError, match=r"shape \(6, 5, 3\), but the model was fitted on \(6, 5, 4\)"):
        four(Source.of(RGB, "x"))


# -- files


def drawn(folder: Path, images: Sequence[NDArray[Any]], labels: Any) -> list[Path]:
    """Images written as PNG files to a sub-folder per class."""
    pillow = pytest.importorskip("PIL.Image")
    paths = [folder / str(label) / f"{i:02}.png" for i, label in enumerate(labels)]
    for path, image in zip(paths, images, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        pillow.fromarray(image).save(path)
    return paths


def test_a_folder(tmp_path: Path) -> None:
    names = np.array(["bird", "cat", "dog"])[Y]
    paths = drawn(tmp_path, list(RGB), names)
    (tmp_path / "cat" / "notes.txt").write_text("is no image")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "a.png").write_bytes(b"")
    order = sorted(range(60), key=lambda i: paths[i])
    expected = found(RGB[order], names[order])
    same(found(tmp_path), expected)
    same(found(str(tmp_path)), expected)
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "cat" / "features.h5").write_bytes(b"are no image")
    (tmp_path / "cat" / "round").symlink_to(tmp_path)
    (tmp_path / "dog").rename(tmp_path.with_suffix(".dogs"))
    (tmp_path / "dog").symlink_to(tmp_path.with_suffix(".dogs"))
    same(found(tmp_path), expected)
    (tmp_path / "cat" / "round").unlink()
    source, labels = open_data(tmp_path / "cat", None, "x_test")
    assert labels is None, "a folder of images alone can be predicted"
    assert len(source) == 20
    assert Files(paths).shapes == [(6, 5, 3)] * 60


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_photos_are_upright(tmp_path: Path, orientation: int) -> None:
    """As viewers show them, for every EXIF orientation."""
    pillow = pytest.importorskip("PIL.Image")
    photo = pillow.fromarray(RGB[0])
    exif = photo.getexif()
    exif[0x0112] = orientation
    photo.save(tmp_path / "a.png", exif=exif)
    files = Files([tmp_path / "a.png"])
    turned = np.rot90(RGB[0], {1: 0, 3: 2, 6: -1, 8: 1}[orientation])
    assert files.shapes == [turned.shape]
    assert (files[:][0] == turned).all()


def test_files_of_every_kind(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    colours, grey = pillow.fromarray(RGB[0]), pillow.fromarray(X[0])
    kinds = {
        "rgb.png": colours, "grey.png": grey, "palette.png": colours.convert("P"), "alpha.png": colours.convert("RGBA"),
        "bits.png": grey.convert("1"), "grey alpha.png": grey.convert("LA"), "cmyk.jpg": colours.convert("CMYK"),
        "deep.png": pillow.fromarray(X[0].astype(np.uint16) * 256), "real.tiff": pillow.fromarray(X[0] / np.float32(9)),
    }  # fmt: skip
    for name, image in kinds.items():
        image.save(tmp_path / name)
    files = Files(sorted(tmp_path.iterdir()))
    assert files.shapes == [image.shape for image in files[:]]
    read = dict(zip((path.name for path in files.paths), files[:], strict=True))
    assert (read["alpha.png"] == RGB[0]).all()
    assert (read["grey alpha.png"] == X[0]).all()
    assert (read["deep.png"] == X[0].astype(int) * 256).all()
    assert (read["real.tiff"] == X[0] / np.float32(9)).all()
    assert read["cmyk.jpg"].shape == read["palette.png"].shape == (6, 5, 3)


def test_parts_of_a_data_set_are_no_classes(tmp_path: Path) -> None:
    for part in ("train", "Test"):
        drawn(tmp_path / part, list(X), ["cat", "dog"] * 30)
    with pytest.raises(ValueError, match=r"holds parts of a data set \(Test, train\), not classes: give one of them"):
        found(tmp_path)
    found(tmp_path / "train")
    drawn(tmp_path / "bird", list(X), ["young", "old"] * 30)
    found(tmp_path)  # has three classes, whatever their names


def test_a_folder_without_classes_has_no_order_for_y(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for i, x in enumerate(RGB[:12]):
        image.fromarray(x).save(tmp_path / f"{i}.png")
    with pytest.raises(
        ValueError, match="x is a folder, whose files have no order for y to be in: give the files as a"
    ):
        found(tmp_path, Y[:12])
    assert len(open_data(tmp_path, None, "x")[0]) == 12


def test_bad_folders_of_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere' is not a folder of images"):
        found(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no images"):
        found(tmp_path)
    drawn(tmp_path, list(X), ["cat"] * 60)
    with pytest.raises(ValueError, match=r"y holds one class only, .*cat"):
        found(tmp_path)
    (tmp_path / "dog").mkdir()
    with pytest.raises(ValueError, match="dog' holds no images"):
        found(tmp_path)
    (tmp_path / "dog" / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken\.png' cannot be read as an image"):
        found(tmp_path)
    whole = (tmp_path / "cat" / "00.png").read_bytes()
    (tmp_path / "dog" / "broken.png").write_bytes(whole[:-30])  # the header is intact
    with pytest.raises(ValueError, match=r"broken\.png' cannot be read as an image"):
        found(tmp_path)
    (tmp_path / "dog" / "broken.png").write_bytes(whole)
    (tmp_path / "loose.png").write_bytes(whole)
    with pytest.raises(ValueError, match=r"also holds 'loose.png'"):
        found(tmp_path)
    with pytest.raises(ValueError, match="y is missing"):
        found(tmp_path / "cat")


def test_pillow_is_asked_for_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[images\]' in your clone"):
        found(tmp_path)


@pytest.mark.parametrize("parallel", [True, False])
def test_a_csv_of_files(tmp_path: Path, parallel: bool) -> None:
    names = [f"kind {label}" for label in Y]
    paths = drawn(tmp_path / "images", list(RGB), [""] * 60)
    table = tmp_path / "labels.csv"
    rows = [f'{path.name},"{name}",ignored' for path, name in zip(paths, names, strict=True)]
    table.write_text("\n".join(["\ufeffimage,what is it,more", *rows, ""]), encoding="utf-8")
    x, y = morphnas.load_image_dataset(table, str(tmp_path / "images"), parallel)
    assert isinstance(x, np.ndarray)
    assert (x == RGB).all()
    assert y.tolist() == names
    drawn(tmp_path / "images", [RGB[0, :4]], [""])
    mixed, y = morphnas.load_image_dataset(str(table), tmp_path / "images")
    assert [image.shape for image in mixed[:2]] == [(4, 5, 3), (6, 5, 3)]
    assert found(mixed, y).preprocessing.shape == (3, 6, 5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,label\nnowhere.png,cat\n", r"nowhere\.png' cannot be read"),
        ("file\na.png\n", r"row 2: a file name and a label are needed, there is only \['a.png'\]"),
        ("file,label\na.png, \n", r"row 2: a file name and a label are needed, there is only \['a.png', ''\]"),
        ("file,label\n\xe4.png,cat\n", r"labels\.csv' cannot be read as CSV: 'utf-8' codec can't decode"),
        ("file,label\n", "lists no images: its first row is read as the header"),
        ("", "lists no images"),
    ],
)
def test_bad_csv_files(tmp_path: Path, text: str, words: str) -> None:
    pytest.importorskip("PIL")
    (tmp_path / "labels.csv").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=words):
        morphnas.load_image_dataset(tmp_path / "labels.csv", tmp_path)


def test_blanks_behind_commas_belong_to_no_label_and_a_first_row_that_is_no_head_is_told_of(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    drawn(tmp_path, list(RGB[:3]), [""] * 3)
    rows, table = [f"0{i}.png, label {i}" for i in range(3)], tmp_path / "labels.csv"
    table.write_text("\n".join(["file, label", *rows]))
    assert morphnas.load_image_dataset(table, tmp_path)[1].tolist() == ["label 0", "label 1", "label 2"]
    table.write_text("\n".join(rows))
    words = r"first row of .* is read as the header, though it names an image: \['00.png', 'label 0'\]"
    with pytest.warns(UserWarning, match=words):
        x, _ = morphnas.load_image_dataset(table, tmp_path)
    assert len(x) == 2


# -- whole fits


def test_fit_on_a_dataset_resizes_when_it_predicts(tmp_path: Path) -> None:
    images = [X[i, : 6 - i % 2] for i in range(60)]
    data = Pairs(images, Y)
    classifier = ImageClassifier(tmp_path / "run", max_trials=1, random_state=0, refit=False, searcher_args=TINY)
    classifier.fit(data, time_limit=3, validation_data=Pairs(X, Y))
    again = ImageClassifier.load(tmp_path / "run")
    assert (
        again._model.preprocessing
        == classifier._model.preprocessing
        == Preprocessing((5, 6, 1), (1, 5, 6), resized=True)
    )
    expected = classifier.predict_proba(images)
    assert expected.shape == (60, 3)
    for x in (data, DataLoader(Pairs(X[:, None], Y), batch_size=9), X, list(X[:, :, :, None].repeat(3, -1))):
        assert again.predict(x).shape == (60,)
    assert (again.predict_proba(data) == expected).all()
    assert again.evaluate(data) == again.evaluate(images, Y)
    classifier.final_fit(data, None, Pairs(images, Y), trainer_args={"epochs": 1}, time_limit=3)
    assert classifier.test_metric_ == classifier.evaluate(data)
    with pytest.raises(ValueError, match="both x_test and y_test"):
        classifier.final_fit(data, None, images)


def test_fit_on_a_folder(tmp_path: Path) -> None:
    paths = drawn(tmp_path / "images", list(X), Y.tolist())
    classifier = ImageClassifier(tmp_path / "run", max_trials=1, random_state=0, refit=False, searcher_args=TINY)
    classifier.fit(tmp_path / "images", time_limit=3)
    assert classifier.classes_.tolist() == ["0", "1", "2"]
    order = sorted(range(60), key=lambda i: paths[i])
    assert (classifier.predict(tmp_path / "images") == classifier.predict(X[order])).all()
    assert classifier.evaluate(tmp_path / "images") == classifier.evaluate(X, Y.astype(str))
    with pytest.raises(ValueError, match=r"shape \(6, 5\), but the model was fitted on \(6, 6\)"):
        classifier.predict(X[:, :, :5])


# -- memory


@pytest.mark.slow
def test_preparing_takes_less_than_twice_the_data(tmp_path: Path) -> None:
    """Pages of the memory map that were read count too, so that there may be only one copy besides."""
    script = """
        import resource, sys
        import numpy as np, torch
        from morphnas.estimators.inputs import Problem
        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        x = np.lib.format.open_memmap(sys.argv[1], mode="r")
        y = np.arange(len(x)) % 10
        small = Problem.infer(x[:100], y[:100], None, None, 0, torch.device("cpu"))  # for lazy imports
        before = peak()
        problem = Problem.infer(x, y, None, None, 0, torch.device("cpu"))
        assert len(problem.task.train) + len(problem.task.valid) + len(problem.selection_set) == len(x)
        print((peak() - before) / x.nbytes, 2 + 64 * 2**20 / x.nbytes)
    """
    path = tmp_path / "x.npy"
    x = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(30_000, 36, 36, 3))
    x[:] = 7
    x.flush()
    # a process inherits the peak memory of the one that starts it, so a small process is started in between
    small = "import subprocess, sys; subprocess.run(sys.argv[1:], check=True)"
    command = [sys.executable, "-c", small, sys.executable, "-c", textwrap.dedent(script), str(path)]
    root = Path(morphnas.__file__).parent.parent
    used, allowed = map(float, subprocess.check_output(command, text=True, cwd=root).split())
    assert used < allowed


def test_preprocessing_is_kept_as_json() -> None:
    one = Preprocessing((6, 5, 3), (3, 6, 5), resized=True)
    assert Preprocessing.from_json({"given": [6, 5, 3], "shape": [3, 6, 5], "resized": True}) == one
    assert not Preprocessing.from_json({"given": [6], "shape": [6]}).resized
