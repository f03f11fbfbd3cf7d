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


def infer(x: Any, y: Any = None, validation_data: Any = None, **options: Any) -> Problem:
    """The problem of the data, as a fit infers it."""
    return Problem.infer(x, y, validation_data, options.pop("image_shape", None), 0, CPU, **options)


def all_x(problem: Problem) -> torch.Tensor:
    """All examples, in the order of the problem."""
    examples = problem.task.train if problem.all_examples is None else problem.all_examples
    return examples.x


def assert_same(problem: Problem, expected: Problem) -> None:
    """Assert that two problems have the same examples."""
    assert all_x(problem).dtype == all_x(expected).dtype
    assert torch.equal(all_x(problem), all_x(expected))
    assert torch.equal(problem.task.train.y, expected.task.train.y)
    assert problem.fingerprint == expected.fingerprint


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
    """An iterable dataset."""

    def __iter__(self) -> Iterator[Any]:
        return zip(RGB, Y.tolist(), strict=True)


def to_tensors(x: NDArray[Any]) -> list[torch.Tensor]:
    """Images as tensors, channels first, like those of torchvision."""
    return [torch.from_numpy(image).movedim(-1, 0) for image in x]


# -- deadlines


class SlowPairs(Pairs):
    """Every example takes a second."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(to_tensors(RGB), Y.tolist())
        self.clock = clock

    def __getitem__(self, i: int) -> Any:
        self.clock.now += 1
        return super().__getitem__(i)


class SlowStream(IterableDataset[Any]):
    def __init__(self, clock: Clock) -> None:
        self.pairs = SlowPairs(clock)

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
    ("make_x", "y", "message"),
    [
        (SlowPairs, None, "10 of 60 examples"),
        (SlowStream, None, "10 examples"),
        (lambda clock: DataLoader(SlowPairs(clock), batch_size=4), None, "8 examples"),
        (SlowArray, Y, "42 of 60 examples"),
    ],
)
def test_reading_stops_at_deadline(make_x: Any, y: Any, message: str) -> None:
    clock = Clock()
    x = make_x(clock)
    assert len(infer(x, y, deadline=clock.deadline(1000)).order) == 60
    with pytest.raises(TimeoutError, match=f"reading x has taken all of the time limit, after {message}"):
        infer(x, y, deadline=clock.deadline(10.5))


def test_predictions_of_slow_teacher_stop_at_deadline() -> None:
    clock = Clock()

    class SlowTeacher:
        def predict_proba(self, x: Any) -> NDArray[Any]:
            clock.now += 6
            return np.full((len(x), 2), 0.5)

    x = np.zeros((60, 256, 256, 3), np.uint8)
    with pytest.raises(TimeoutError, match="42 of 60 examples"):
        infer(x, Y, teacher=SlowTeacher(), deadline=clock.deadline(10))


def test_reading_timeout_leaves_no_files(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match="after 0 of 60 examples"):
        ImageClassifier(tmp_path / "run", device="cpu").fit(Pairs(RGB, Y.tolist()), time_limit=1e-6)
    assert not any(tmp_path.iterdir())


# -- arrays


def test_parts_share_one_tensor_that_is_a_copy_of_x() -> None:
    x, y = stripes(600)
    before = x.copy()
    problem = infer(x, y)
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


@pytest.mark.parametrize("dtype", [bool, np.int64, np.uint16, np.int8])
def test_integers_from_0_to_255_are_stored_as_uint8(dtype: Any) -> None:
    x = (RGB % 2).astype(dtype)
    assert all_x(infer(x, Y)).dtype == torch.uint8
    assert all_x(infer(x.astype(float), Y)).dtype == torch.float32


def test_value_above_255_in_late_chunk_makes_all_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    x = RGB.astype(np.int32)
    x[55, 0, 0] = 256
    expected = infer(x, Y)
    monkeypatch.setattr("morphnas.estimators.sources._PIECE", 1)  # eight examples at a time
    assert_same(infer(x, Y), expected)
    assert all_x(expected).dtype == torch.float32
    assert all_x(expected).max() == 256
    with pytest.raises(ValueError, match=r"first in x\[57\]"):
        infer(np.where(np.arange(60)[:, None, None] == 57, np.nan, X), Y)


@pytest.mark.parametrize("dtype", [np.float64, np.int64, object])
def test_features_with_small_relative_spread_are_centred(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    small = np.stack([np.arange(60) % 7, np.arange(60), np.full(60, 5), np.arange(60) * 3], 1)
    large = (small + np.array([1_700_000_000, 0, 0, -(10**12)])).astype(dtype)
    for chunk_size in (None, 1):
        if chunk_size:
            monkeypatch.setattr("morphnas.estimators.sources._PIECE", chunk_size)
        centred = infer(large, Y, (large[:20], Y[:20]))
        assert centred.task.train.x.equal(torch.from_numpy(small).float())
        assert centred.task.valid is not None
        assert centred.task.valid.x.equal(centred.task.train.x[:20])
        assert centred.preprocessing.offset == (1_700_000_000, 0, 0, -(10**12))
    stored = json.loads(json.dumps(dataclasses.asdict(centred.preprocessing)))
    assert Preprocessing.from_json(stored) == centred.preprocessing
    for invalid in ([1.0], [1, 2, 3, None], "1234", [1, 2, 3, math.inf]):
        with pytest.raises(ValueError, match="offset cannot be"):
            Preprocessing.from_json(stored | {"offset": invalid})


def test_features_constant_in_first_chunks_are_centred(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("morphnas.estimators.sources._PIECE", 1)
    small = np.stack([np.maximum(np.arange(60) - 50, 0), np.arange(60)], 1)
    large = small + np.array([1.7e9, 0])
    centred = infer(large, Y, (large, Y))
    assert centred.task.train.x.equal(torch.from_numpy(small).float())


def test_other_features_are_not_centred() -> None:
    rounded = np.full(60, 0.3) + np.where(Y == 0, 0, 5e-17)  # rounding errors, like those of reordered sums
    rows = np.stack([rounded, 1000 + RNG.normal(size=60), RNG.normal(size=60)], 1)
    assert infer(rows, Y).preprocessing.offset is None
    assert infer(X.reshape(60, 36), Y).task.train.x.dtype == torch.uint8


class Slices:
    """The part of the array interface that h5py, zarr and others share."""

    def __init__(self, x: NDArray[Any]) -> None:
        self.x, self.shape, self.dtype, self.max_length = x, x.shape, x.dtype, 0

    def __getitem__(self, part: slice) -> NDArray[Any]:
        self.max_length = max(self.max_length, len(self.x[part]))
        return self.x[part]


def test_sliceable_array_is_read_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = infer(RGB, Y)
    monkeypatch.setattr("morphnas.estimators.sources._PIECE", RGB[:9].size)
    slices = Slices(RGB)
    assert_same(infer(slices, Y), expected)
    assert slices.max_length == 9
    np.save(tmp_path / "x.npy", RGB)
    assert_same(infer(np.load(tmp_path / "x.npy", mmap_mode="r"), Y), expected)
    assert_same(infer(torch.from_numpy(RGB).movedim(-1, 1), torch.from_numpy(Y)), expected)


def test_h5py_datasets(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["x"], file["y"] = RGB, Y
        assert_same(infer(file["x"], file["y"]), infer(RGB, Y))


def test_pandas_frames_and_series() -> None:
    pandas = pytest.importorskip("pandas")
    rows = RNG.normal(size=(60, 3))
    index = RNG.permutation(1000)[:60]
    labels = np.array(["a", "b", "c"])[Y]
    frame = pandas.DataFrame({"one": rows[:, 0], "two": rows[:, 1], "three": rows[:, 2]}, index=index)
    assert_same(infer(frame, pandas.Series(labels, index=index[::-1])), infer(rows, labels))
    frame["three"] = Y  # columns of two kinds
    rows[:, 2] = Y
    assert_same(infer(frame, pandas.Series(labels, dtype="category")), infer(rows, labels))
    assert_same(infer(pandas.Series(list(X), index=index), Y), infer(X, Y))


class Frame:
    """A data frame like those of polars, without `dtype` or `iloc`."""

    shape = (60, 2)

    def __init__(self, *columns: str) -> None:
        self.columns = list(columns)

    def __array__(self, dtype: Any = None, copy: Any = None) -> NDArray[Any]:
        return np.stack([np.arange(60.0), np.ones(60)], 1)


def test_features_too_small_for_float32_are_named() -> None:
    pandas = pytest.importorskip("pandas")
    rows = np.random.default_rng(0).normal(size=(60, 3)) * [1, 1e-44, 1]
    with pytest.raises(ValueError, match="the values of feature 1 are too small for float32"):
        infer(rows, Y)
    with pytest.raises(ValueError, match="the values of feature 'b' are too small for float32"):
        infer(pandas.DataFrame(rows, columns=["a", "b", "c"]), Y)
    rows[3] = 1e-44
    rows[:, 1] = 1e-30
    infer(rows, Y)


def test_datetime_column_is_rejected_with_hint() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": np.arange(60.0), "t": pandas.date_range("2020", periods=60)})
    with pytest.raises(ValueError, match=r"column 't' has Timestamp.*; convert it to a number first"):
        infer(frame, Y)


def test_column_names_of_any_frame_are_stored() -> None:
    problem = infer(Frame("one", "two"), Y)
    assert problem.preprocessing.columns == ("one", "two")
    with pytest.raises(ValueError, match="same columns in another order"):
        problem.preprocessing(Source.of(Frame("two", "one"), "x"))


def test_lists_of_images_equal_arrays() -> None:
    assert_same(infer(list(RGB), Y.tolist()), infer(RGB, Y))
    assert_same(infer(to_tensors(RGB), Y), infer(RGB, Y))
    assert_same(infer([image.tolist() for image in X], Y), infer(X, Y))
    assert_same(infer(list(X.astype(np.float32)), Y), infer(X.astype(np.float32), Y))


# -- datasets


def test_datasets_and_loaders_equal_arrays() -> None:
    expected = infer(RGB, Y)
    data = Pairs(to_tensors(RGB), torch.from_numpy(Y))
    assert_same(infer(data), expected)
    assert data.reads == 60
    assert_same(infer(DataLoader(data, batch_size=7)), expected)
    assert data.reads == 120, "read only once"
    assert_same(infer(Stream()), expected)
    unbatched = DataLoader(Pairs(to_tensors(RGB), Y), batch_size=None)
    assert_same(infer(unbatched), expected)
    assert_same(infer(TensorDataset(torch.from_numpy(RGB).movedim(-1, 1), torch.from_numpy(Y))), expected)
    names = [f"class {label}" for label in Y]
    assert_same(infer(DataLoader(Pairs(RGB.transpose(0, 3, 1, 2), names), batch_size=16)), infer(RGB, names))
    floats = RGB / np.float32(255)
    problem = infer(Pairs(to_tensors(floats), Y))
    assert_same(problem, infer(floats, Y))
    assert all_x(problem).dtype == torch.float32
    assert isinstance(problem.target, ClassTarget)
    assert problem.target.classes.tolist() == [0, 1, 2]


@pytest.mark.parametrize("size", [7, None])
@pytest.mark.parametrize("half", [False, True])
def test_shuffling_loader_is_read_in_dataset_order(size: int | None, half: bool) -> None:
    """So that reading is repeatable, and a separate y is aligned with the examples."""
    pairs, order = Pairs(to_tensors(RGB), Y), list(range(0, 60, 2 if half else 1))
    shuffled: Any = {"sampler": SubsetRandomSampler(order[::-1])} if half else {"shuffle": True}
    assert_same(infer(DataLoader(pairs, batch_size=size, **shuffled)), infer(RGB[order], Y[order]))
    without_labels = TensorDataset(torch.stack(to_tensors(RGB)))
    if size:
        loader = DataLoader(without_labels, batch_size=size, **shuffled)
        assert_same(infer(loader, Y[order]), infer(RGB[order], Y[order]))


def test_loader_that_samples_with_replacement_keeps_its_length() -> None:
    pairs = Pairs(to_tensors(RGB), Y.tolist())
    sampler = RandomSampler(pairs, replacement=True, num_samples=90)
    assert len(open_data(DataLoader(pairs, sampler=sampler, batch_size=4), None, "x")[0]) == 90


def test_pil_images_equal_arrays() -> None:
    image = pytest.importorskip("PIL.Image")
    assert_same(infer(Pairs([image.fromarray(x) for x in RGB], Y)), infer(RGB, Y))
    assert_same(infer([image.fromarray(x) for x in X], Y), infer(X, Y))


class Columns:
    """A dataset like those of Hugging Face: not a subclass of PyTorch's, but with columns."""

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
def test_dataset_with_named_columns(streamed: bool, names: tuple[str, str]) -> None:
    data = Columns(streamed, **dict(zip(names, (RGB, Y.tolist()), strict=True)))
    assert_same(infer(data), infer(RGB, Y))
    if not streamed:
        tensors = Columns(**{names[0]: to_tensors(RGB), names[1]: Y.tolist()})
        assert_same(infer(DataLoader(tensors, batch_size=7)), infer(RGB, Y))  # type: ignore[arg-type]
    source, y = open_data(Columns(streamed, **{names[0]: RGB}), None, "x")
    assert (len(source), y) == (60, None)


def test_columns_other_than_image_and_label_are_ignored() -> None:
    assert_same(infer(Columns(index=range(60), label=Y.tolist(), image=RGB)), infer(RGB, Y))
    ambiguous = Columns(image=RGB, coarse=Y, fine=Y)
    with pytest.raises(ValueError, match=r"y is missing: .* or with keys of these names"):
        infer(ambiguous)
    assert len(open_data(ambiguous, None, "x")[0]) == 60, "predictions need no labels"
    parts = type("Parts", (dict,), {"column_names": {}})(train=ambiguous, test=ambiguous)
    with pytest.raises(ValueError, match=r"x must be rows .* not {'train'"):
        infer(parts)


@pytest.mark.parametrize("convert", [list, np.array, lambda paths: [str(path) for path in paths]])
def test_list_of_files(convert: Callable[[list[Path]], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = pytest.importorskip("PIL.Image")
    paths = [tmp_path / f"{i}.png" for i in range(60)]
    for path, x in zip(paths, RGB, strict=True):
        image.fromarray(x).save(path)
    assert_same(infer(convert(paths), Y), infer(RGB, Y))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert_same(infer([f"~/{path.name}" for path in paths], Y), infer(RGB, Y))
    paths[7].write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"7\.png' cannot be read as an image"):
        infer(convert(paths), Y)


def test_dataset_of_mixed_sizes_equals_list() -> None:
    images = [RGB[i, : 4 + i % 3] for i in range(60)]
    assert_same(infer(Pairs(images, Y)), infer(images, Y))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (TensorDataset(torch.zeros(60, 1, 6, 6)), "y is missing.*a Dataset of .image, label."),
        (DataLoader(TensorDataset(torch.zeros(60, 1, 6, 6)), batch_size=8), "y is missing"),
        (TensorDataset(*[torch.zeros(60, 1, 6, 6)] * 3), r"must yield \(image, label\), not a tuple of length 3"),
        (Pairs([], []), "empty"),
        (Dataset(), "is a Dataset without a length"),
        (Pairs(["cat.png"] * 60, Y), r"its shape is \(60,\)"),
    ],
)
def test_invalid_datasets_are_rejected(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        infer(data)


def test_nested_labels_of_loader_match_their_examples() -> None:
    """`default_collate` transposes tuples of labels."""
    pairs = [(torch.zeros(1, 6, 6), (float(i), (100 + i, f"{i}"))) for i in range(6)]
    for size in (2, 4):
        _, y = open_data(DataLoader(pairs, batch_size=size), None, "x")  # type: ignore[arg-type]
        assert y == [pair[1] for pair in pairs]


def test_single_image_is_rejected_as_batch() -> None:
    problem = infer([RGB[i][: 4 + i % 2] for i in range(60)], Y)
    assert len(problem.preprocessing(Source.of(RGB[:1], "x"))) == 1
    with pytest.raises(
        ValueError, match=r"x looks like one image of shape \(6, 5, 3\): add an axis in front, x\[None\]"
    ):
        problem.preprocessing(Source.of(RGB[0], "x"))
    grey = infer([X[i][: 4 + i % 2] for i in range(60)], Y)
    with pytest.raises(ValueError, match=r"x looks like one example of shape \(6, 6\): add an axis in front"):
        grey.preprocessing(Source.of(X[0], "x"))


def test_y_with_several_columns_may_be_a_frame() -> None:
    pandas = pytest.importorskip("pandas")
    for dtype, read in ((float, RegressionTarget.infer), (bool, classification_target)):
        table = np.stack([Y > 0, Y > 1], 1).astype(dtype)
        frame = pandas.DataFrame({"one": table[:, 0], "two": table[:, 1]})
        for y in (frame, np.asfortranarray(table)):
            assert_same(infer(X, y, read=read), infer(X, table, read=read))


def test_bfloat16_tensors_that_require_gradients_are_read() -> None:
    rows, weights = X.reshape(len(X), -1).astype(np.float32), np.arange(len(X)) % 4
    expected = infer(rows, Y, sample_weight=weights, groups=Y + np.arange(len(X)) % 2 * 3).task.train
    for dtype in (torch.float32, torch.bfloat16):
        x, y, w = (torch.tensor(a, dtype=dtype, requires_grad=True) for a in (rows, Y, weights))
        train = infer(x, y, sample_weight=w, groups=y + torch.arange(len(X)) % 2 * 3).task.train
        assert torch.equal(train.y, expected.y)
        assert train.weights is not None
        assert expected.weights is not None
        assert torch.equal(train.weights, expected.weights)
    target, codes = RegressionTarget.infer(torch.tensor([1, 2, 4], dtype=torch.bfloat16, requires_grad=True), 3)
    assert target.decode(codes)[:, 0] == pytest.approx([1, 2, 4])


def test_sparse_tensor_is_rejected_with_hint() -> None:
    with pytest.raises(ValueError, match=r"x is a sparse tensor.*x\.to_dense\(\)"):
        infer(torch.tensor(X.reshape(len(X), -1)).to_sparse(), Y)


def test_channels_last_tensors_warn() -> None:
    x = RNG.integers(0, 256, (60, 6, 6, 3), dtype=np.uint8)
    with pytest.warns(UserWarning, match=r"shape \(6, 6, 3\) look channels last.*DataLoader makes tensors of arrays"):
        infer(DataLoader(Pairs(x, Y), batch_size=9))
    with pytest.warns(UserWarning, match=r"shape \(6, 6, 3\) look channels last"):
        infer(torch.from_numpy(x), Y)
    assert_same(infer(Pairs(x, Y)), infer(x, Y))


def test_labels_must_be_given_exactly_once() -> None:
    assert_same(infer(TensorDataset(torch.from_numpy(X)[:, None]), Y), infer(X[..., None], Y))
    with pytest.raises(ValueError, match="x contains its own labels"):
        infer(Pairs(RGB, Y), Y)
    with pytest.raises(ValueError, match="y is missing"):
        ImageClassifier().fit(X)


# -- sizes and colours


def test_mixed_sizes_are_resized_to_median(caplog: pytest.LogCaptureFixture) -> None:
    images = [np.full((h, w), 10 * h, np.uint8) for h, w in [(4, 9), (6, 5), (8, 7)] * 20]
    with caplog.at_level(logging.INFO, "morphnas"):
        problem = infer(images, Y)
    assert problem.preprocessing == Preprocessing((6, 7, 1), (1, 6, 7), resized=True)
    assert "(4, 9) to (8, 7) pixels are resized to (6, 7)" in caplog.text
    x = problem.preprocessing(Source.of(images, "x"))
    assert x.shape == (60, 1, 6, 7)
    assert x.dtype == torch.uint8
    assert x[:, 0, 0, 0].tolist() == [10 * len(image) for image in images], "in the order given"
    assert x.flatten(1).unique(dim=1).shape[1] == 1, "constant images stay constant"


def test_only_mixed_sizes_are_scaled_down() -> None:
    large = [np.zeros((300 + i % 2, 1200), np.uint8) for i in range(60)]
    shape = infer(large, Y).preprocessing.shape
    assert shape == (1, 64, 255)  # 300.5 x 1200 is scaled down to 128 * 128 pixels in total
    assert infer([x[:150, :150] for x in large], Y).preprocessing.shape == (1, 150, 150)


@pytest.mark.parametrize("size", [4, (4, 4), np.array([4, 4]).tolist(), np.int64(4)])
def test_image_size_resizes_images(size: Any) -> None:
    problem = infer(RGB, Y, image_size=size)
    assert problem.preprocessing.shape == (3, 4, 4)
    assert all_x(problem).dtype == torch.uint8
    exact = torch.nn.functional.interpolate(
        torch.from_numpy(RGB).movedim(-1, 1).double(), (4, 4), mode="bilinear", antialias=True
    )
    assert (problem.preprocessing(Source.of(RGB, "x")) - exact).abs().max() <= 0.5 + 1e-4
    floats = problem.preprocessing(Source.of(RGB / 255, "x"))
    assert floats.dtype == torch.float32
    assert torch.allclose(floats.double(), exact / 255, atol=1e-6)
    assert problem.preprocessing(Source.of(RGB[:, :3, :2], "x")).shape == (60, 3, 4, 4), "other sizes are resized too"


def test_mixed_grey_and_rgb_become_rgb(caplog: pytest.LogCaptureFixture) -> None:
    alpha = np.concatenate([RGB, RGB[..., :1]], -1)
    grey = RGB[..., 0]
    images = [[grey, RGB, alpha, grey[..., None]][i % 4][i] for i in range(60)]
    with caplog.at_level(logging.INFO, "morphnas"):
        problem = infer(images, Y)
    assert "channels are converted to RGB" in caplog.text
    assert problem.preprocessing == Preprocessing((6, 5, 3), (3, 6, 5)), "images of equal sizes are not resized"
    x = problem.preprocessing(Source.of(images, "x"))
    assert (x[0] == torch.from_numpy(grey[0])).all()
    assert torch.equal(x[1:3].movedim(1, -1), torch.from_numpy(RGB[1:3]))
    assert (x[3] == torch.from_numpy(grey[3])).all()
    assert torch.equal(problem.preprocessing(Source.of(grey, "x"))[:, 2], torch.from_numpy(grey))
    with pytest.raises(ValueError, match=r"shape \(6, 4\), but the model was fitted on \(6, 5, 3\)"):
        problem.preprocessing(Source.of(grey[:, :, :4], "x"))


def test_rgb_becomes_grey_for_model_fitted_on_grey() -> None:
    preprocessing = infer(RGB[..., 0], Y).preprocessing
    x = preprocessing(Source.of(RGB, "x"))
    assert x.dtype == torch.uint8
    luma = np.round(RGB @ np.array([0.299, 0.587, 0.114]))
    assert (x[:, 0] - torch.from_numpy(luma)).abs().max() <= 1
    assert (x[:, 0] == torch.from_numpy(luma)).float().mean() > 0.99
    assert torch.equal(preprocessing(Source.of(RGB[..., :1], "x")), preprocessing(Source.of(RGB[..., 0], "x")))
    four_channels = infer(np.concatenate([RGB, RGB[..., :1]], -1), Y).preprocessing
    assert four_channels.shape == (4, 6, 5), "an array with four channels keeps them"
    with pytest.raises(ValueError, match=r"shape \(6, 5, 3\), but the model was fitted on \(6, 5, 4\)"):
        four_channels(Source.of(RGB, "x"))


def test_preprocessing_is_restored_from_json() -> None:
    preprocessing = Preprocessing((6, 5, 3), (3, 6, 5), resized=True)
    assert Preprocessing.from_json({"given": [6, 5, 3], "shape": [3, 6, 5], "resized": True}) == preprocessing
    assert not Preprocessing.from_json({"given": [6], "shape": [6]}).resized


# -- files


def write_images(folder: Path, images: Sequence[NDArray[Any]], labels: Any) -> list[Path]:
    """Write PNG files to a sub-folder per class, and return their paths."""
    pillow = pytest.importorskip("PIL.Image")
    paths = [folder / str(label) / f"{i:02}.png" for i, label in enumerate(labels)]
    for path, image in zip(paths, images, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        pillow.fromarray(image).save(path)
    return paths


def test_folder_of_classes_equals_array(tmp_path: Path) -> None:
    names = np.array(["bird", "cat", "dog"])[Y]
    paths = write_images(tmp_path, list(RGB), names)
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "a.png").write_bytes(b"")
    order = sorted(range(60), key=lambda i: paths[i])
    expected = infer(RGB[order], names[order])
    assert_same(infer(tmp_path), expected)
    assert_same(infer(str(tmp_path)), expected)
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "cat" / "features.h5").write_bytes(b"not an image")
    (tmp_path / "cat" / "cycle").symlink_to(tmp_path)
    (tmp_path / "dog").rename(tmp_path.with_suffix(".dogs"))
    (tmp_path / "dog").symlink_to(tmp_path.with_suffix(".dogs"))
    assert_same(infer(tmp_path), expected)
    (tmp_path / "cat" / "cycle").unlink()
    source, labels = open_data(tmp_path / "cat", None, "x_test")
    assert labels is None, "a folder without classes can be predicted"
    assert len(source) == 20
    assert Files(paths).shapes == [(6, 5, 3)] * 60


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    pillow = pytest.importorskip("PIL.Image")
    photo = pillow.fromarray(RGB[0])
    exif = photo.getexif()
    exif[0x0112] = orientation
    photo.save(tmp_path / "a.png", exif=exif)
    files = Files([tmp_path / "a.png"])
    turned = np.rot90(RGB[0], {1: 0, 3: 2, 6: -1, 8: 1}[orientation])
    assert files.shapes == [turned.shape]
    assert (files[:][0] == turned).all()


def test_image_files_of_any_mode_are_read(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    rgb, grey = pillow.fromarray(RGB[0]), pillow.fromarray(X[0])
    modes = {
        "rgb.png": rgb, "grey.png": grey, "palette.png": rgb.convert("P"), "alpha.png": rgb.convert("RGBA"),
        "bits.png": grey.convert("1"), "grey alpha.png": grey.convert("LA"), "cmyk.jpg": rgb.convert("CMYK"),
        "deep.png": pillow.fromarray(X[0].astype(np.uint16) * 256), "real.tiff": pillow.fromarray(X[0] / np.float32(9)),
    }  # fmt: skip
    for name, image in modes.items():
        image.save(tmp_path / name)
    files = Files(sorted(tmp_path.iterdir()))
    assert files.shapes == [image.shape for image in files[:]]
    images = dict(zip((path.name for path in files.paths), files[:], strict=True))
    assert (images["alpha.png"] == RGB[0]).all()
    assert (images["grey alpha.png"] == X[0]).all()
    assert (images["deep.png"] == X[0].astype(int) * 256).all()
    assert (images["real.tiff"] == X[0] / np.float32(9)).all()
    assert images["cmyk.jpg"].shape == images["palette.png"].shape == (6, 5, 3)


def test_folder_of_train_and_test_parts_is_rejected(tmp_path: Path) -> None:
    for part in ("train", "Test"):
        write_images(tmp_path / part, list(X), ["cat", "dog"] * 30)
    with pytest.raises(ValueError, match=r"holds parts of a data set \(Test, train\), not classes: give one of them"):
        infer(tmp_path)
    infer(tmp_path / "train")
    write_images(tmp_path / "bird", list(X), ["young", "old"] * 30)
    infer(tmp_path)  # three classes, whatever their names


def test_folder_without_classes_does_not_accept_y(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for i, x in enumerate(RGB[:12]):
        image.fromarray(x).save(tmp_path / f"{i}.png")
    with pytest.raises(
        ValueError, match="x is a folder, whose files have no order for y to be in: give the files as a"
    ):
        infer(tmp_path, Y[:12])
    assert len(open_data(tmp_path, None, "x")[0]) == 12


def test_invalid_folders_of_images_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere' is not a folder of images"):
        infer(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no images"):
        infer(tmp_path)
    write_images(tmp_path, list(X), ["cat"] * 60)
    with pytest.raises(ValueError, match=r"y holds one class only, .*cat"):
        infer(tmp_path)
    (tmp_path / "dog").mkdir()
    with pytest.raises(ValueError, match="dog' holds no images"):
        infer(tmp_path)
    (tmp_path / "dog" / "broken.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"broken\.png' cannot be read as an image"):
        infer(tmp_path)
    valid = (tmp_path / "cat" / "00.png").read_bytes()
    (tmp_path / "dog" / "broken.png").write_bytes(valid[:-30])  # the header is intact
    with pytest.raises(ValueError, match=r"broken\.png' cannot be read as an image"):
        infer(tmp_path)
    (tmp_path / "dog" / "broken.png").write_bytes(valid)
    (tmp_path / "loose.png").write_bytes(valid)
    with pytest.raises(ValueError, match=r"also holds 'loose.png'"):
        infer(tmp_path)
    with pytest.raises(ValueError, match="y is missing"):
        infer(tmp_path / "cat")


def test_missing_pillow_is_reported_with_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[images\]' in your clone"):
        infer(tmp_path)


@pytest.mark.parametrize("parallel", [True, False])
def test_csv_of_files(tmp_path: Path, parallel: bool) -> None:
    names = [f"kind {label}" for label in Y]
    paths = write_images(tmp_path / "images", list(RGB), [""] * 60)
    table = tmp_path / "labels.csv"
    rows = [f'{path.name},"{name}",ignored' for path, name in zip(paths, names, strict=True)]
    table.write_text("\n".join(["\ufeffimage,what is it,more", *rows, ""]), encoding="utf-8")
    x, y = morphnas.load_image_dataset(table, str(tmp_path / "images"), parallel)
    assert isinstance(x, np.ndarray)
    assert (x == RGB).all()
    assert y.tolist() == names
    write_images(tmp_path / "images", [RGB[0, :4]], [""])
    mixed, y = morphnas.load_image_dataset(str(table), tmp_path / "images")
    assert [image.shape for image in mixed[:2]] == [(4, 5, 3), (6, 5, 3)]
    assert infer(mixed, y).preprocessing.shape == (3, 6, 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\nnowhere.png,cat\n", r"nowhere\.png' cannot be read"),
        ("file\na.png\n", r"row 2: a file name and a label are needed, there is only \['a.png'\]"),
        ("file,label\na.png, \n", r"row 2: a file name and a label are needed, there is only \['a.png', ''\]"),
        ("file,label\n\xe4.png,cat\n", r"labels\.csv' cannot be read as CSV: 'utf-8' codec can't decode"),
        ("file,label\n", "lists no images: its first row is read as the header"),
        ("", "lists no images"),
    ],
)
def test_invalid_csv_files_are_rejected(tmp_path: Path, text: str, message: str) -> None:
    pytest.importorskip("PIL")
    (tmp_path / "labels.csv").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=message):
        morphnas.load_image_dataset(tmp_path / "labels.csv", tmp_path)


def test_csv_blanks_are_stripped_and_missing_header_warns(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    write_images(tmp_path, list(RGB[:3]), [""] * 3)
    rows, table = [f"0{i}.png, label {i}" for i in range(3)], tmp_path / "labels.csv"
    table.write_text("\n".join(["file, label", *rows]))
    assert morphnas.load_image_dataset(table, tmp_path)[1].tolist() == ["label 0", "label 1", "label 2"]
    table.write_text("\n".join(rows))
    message = r"first row of .* is read as the header, though it names an image: \['00.png', 'label 0'\]"
    with pytest.warns(UserWarning, match=message):
        x, _ = morphnas.load_image_dataset(table, tmp_path)
    assert len(x) == 2


# -- whole fits


def test_model_fitted_on_dataset_predicts_other_sizes(tmp_path: Path) -> None:
    images = [X[i, : 6 - i % 2] for i in range(60)]
    data = Pairs(images, Y)
    classifier = ImageClassifier(tmp_path / "run", max_trials=1, random_state=0, refit=False, searcher_args=TINY)
    classifier.fit(data, time_limit=3, validation_data=Pairs(X, Y))
    loaded = ImageClassifier.load(tmp_path / "run")
    assert (
        loaded._model.preprocessing
        == classifier._model.preprocessing
        == Preprocessing((5, 6, 1), (1, 5, 6), resized=True)
    )
    expected = classifier.predict_proba(images)
    assert expected.shape == (60, 3)
    for x in (data, DataLoader(Pairs(X[:, None], Y), batch_size=9), X, list(X[:, :, :, None].repeat(3, -1))):
        assert loaded.predict(x).shape == (60,)
    assert (loaded.predict_proba(data) == expected).all()
    assert loaded.evaluate(data) == loaded.evaluate(images, Y)
    classifier.final_fit(data, None, Pairs(images, Y), trainer_args={"epochs": 1}, time_limit=3)
    assert classifier.test_metric_ == classifier.evaluate(data)
    with pytest.raises(ValueError, match="both x_test and y_test"):
        classifier.final_fit(data, None, images)


def test_fit_on_folder_of_classes(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "images", list(X), Y.tolist())
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
def test_preparation_needs_less_memory_than_twice_the_data(tmp_path: Path) -> None:
    """Pages read from the memory map count too, so that only one copy is allowed."""
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
    launcher = "import subprocess, sys; subprocess.run(sys.argv[1:], check=True)"
    command = [sys.executable, "-c", launcher, sys.executable, "-c", textwrap.dedent(script), str(path)]
    root = Path(morphnas.__file__).parent.parent
    used, allowed = map(float, subprocess.check_output(command, text=True, cwd=root).split())
    assert used < allowed
