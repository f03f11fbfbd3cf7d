"""A user's arrays as a problem to learn: checked, split, on the device. Everything wrong with them is said here."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import train_test_split

from morphnas.estimators.labels import Labels
from morphnas.train.data import Examples, Task

_EXAMPLES = "rows (n, d) or images (n, h, w) or (n, h, w, channels)"


@dataclass(frozen=True)
class Preprocessing:
    """What turns a user's examples into a network's input, without the batch axis: shapes alone."""

    given: tuple[int, ...]
    """Shape of one example as the user gives it."""
    shape: tuple[int, ...]
    """Shape of one example for the network, channels first."""

    @staticmethod
    def found(x: NDArray[Any], image_shape: Sequence[int] | None) -> Preprocessing:
        """What examples (n, ...) are: rows, images (h, w) or images (h, w, c); ValueError for anything else."""
        given = x.shape[1:]
        if image_shape is not None:
            image = tuple(image_shape)
            whole = all(isinstance(size, (int, np.integer)) and size > 0 for size in image)
            if len(image) not in (2, 3) or not whole:
                words = "(height, width) or (height, width, channels)"
                raise ValueError(f"image_shape must be {words}, not {image_shape!r}")
            if math.prod(image) != math.prod(given):
                raise ValueError(f"image_shape {image} has {math.prod(image)} values, but an example has shape {given}")
        elif x.ndim == 2:
            side = math.isqrt(given[0])
            if given[0] >= 64 and side * side == given[0]:
                hint = f"x has rows of {given[0]} values, which are taken as features without order; if they are images"
                warnings.warn(f"{hint}, pass image_shape=({side}, {side})", stacklevel=4)
            return Preprocessing(given, given)
        elif x.ndim in (3, 4):
            image = given
        else:
            raise ValueError(f"x must be {_EXAMPLES}, but its shape is {x.shape}")
        if len(image) == 3 and image[0] in (1, 3) and image[2] > 4:
            hint = f"images of shape {image} look channels first, but (height, width, channels) is expected"
            warnings.warn(f"{hint}: np.moveaxis(x, 1, -1) turns them", stacklevel=4)
        return Preprocessing(given, (1, *image) if len(image) == 2 else (image[2], *image[:2]))

    def __call__(self, x: NDArray[Any]) -> torch.Tensor:
        """Examples (n, *given) as a tensor (n, *shape), uint8 or float32."""
        if x.shape[1:] != self.given:
            if x.ndim == 2 and len(self.given) == 1:  # scikit-learn's words
                raise ValueError(
                    f"X has {x.shape[1]} features, but ImageClassifier is expecting {self.given[0]} features as input"
                )
            raise ValueError(f"x has examples of shape {x.shape[1:]}, but the model was fitted on {self.given}")
        if len(self.shape) > 1:
            channels, *spatial = self.shape
            x = np.moveaxis(x.reshape(len(x), *spatial, channels), -1, 1)
        return torch.from_numpy(np.ascontiguousarray(x))


def checked_examples(x: ArrayLike, name: str = "x") -> NDArray[Any]:
    """The examples as uint8 or float32, (n, ...); ValueError that says what is wrong with them."""
    if hasattr(x, "toarray"):
        raise ValueError(f"{name} is a sparse matrix, a dense array is needed: {name}.toarray()")
    try:
        array = np.asarray(x)
    except ValueError as error:
        raise ValueError(f"{name} cannot be made an array, are its images of mixed sizes? ({error})") from None
    if array.dtype == object and array.ndim and array.size:
        shapes = {np.shape(item) for item in array[:1000].ravel()}
        if len(shapes) > 1 or shapes != {()}:
            raise ValueError(f"{name} holds images of mixed sizes, {sorted(shapes)[:3]} ...: resize them to one size")
        try:
            array = array.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} holds objects that are no numbers: {error}") from None
    if array.ndim < 2:
        raise ValueError(
            f"{name} must be {_EXAMPLES}, but its shape is {array.shape}. "
            "Reshape your data: for one example, add an axis in front"
        )
    if array.dtype.kind not in "buif":
        word = "Complex data not supported: " if array.dtype.kind == "c" else ""
        raise ValueError(f"{word}{name} must hold numbers, but its dtype is {array.dtype}")
    if array.size == 0:
        what = f"{len(array)} sample(s)" if len(array) == 0 else f"0 feature(s) (shape={array.shape})"
        raise ValueError(f"{name} is empty: found array with {what} while a minimum of 1 is required.")
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind in "bui" and array.min() >= 0 and array.max() <= 255:
        return array.astype(np.uint8)
    with np.errstate(over="ignore"):  # found right below
        array = array.astype(np.float32, copy=False)
    for part in range(0, len(array), 4096):
        if not (finite := np.isfinite(array[part : part + 4096])).all():
            where = part + int(np.argwhere(~finite.reshape(len(finite), -1).all(1))[0, 0])
            what = "NaN or infinity (or values too large for float32)"
            raise ValueError(f"{name} contains {what}, first in {name}[{where}]")
    return array


@dataclass(frozen=True, eq=False)
class Split:
    """The parts of the training examples, as indices: to train on, to stop and score by, to choose by."""

    train: NDArray[np.intp]
    valid: NDArray[np.intp] | None
    chooser: NDArray[np.intp] | None


def split(y: NDArray[np.int64], seed: int) -> Split:
    """15 % of the examples, at most 5,000, held out stratified; half of them choose, from 500 examples on.

    No part is held out below 50 examples or when a class has a single one.
    """
    n, index = len(y), np.arange(len(y))
    counts = np.bincount(y)
    held = max(min(5000, round(0.15 * n)), len(counts))
    if n < 50 or counts[counts > 0].min() < 2 or n - held < len(counts):
        return Split(index, None, None)
    train, valid = train_test_split(index, test_size=held, stratify=y, random_state=seed)
    if n < 500:
        return Split(train, valid, None)
    half = np.random.RandomState(seed).permutation(len(valid))  # classes may be too small to stratify once more
    middle = len(valid) - len(valid) // 2
    return Split(train, valid[half[:middle]], valid[half[middle:]])


@dataclass(frozen=True, eq=False)
class Problem:
    """What is to be learnt.

    task: the part to train on and the part to stop and score by. chooser: examples that choose among final models and
    do nothing else; None: too few. everything: all that may be trained on at last; None: the task trains on it already.
    fingerprint: tells the data from others, JSON values.
    """

    labels: Labels
    preprocessing: Preprocessing
    task: Task
    chooser: Examples | None
    everything: Examples | None
    fingerprint: dict[str, Any]

    @staticmethod
    def found(
        x: ArrayLike,
        y: ArrayLike,
        validation_data: Any,
        image_shape: Sequence[int] | None,
        seed: int,
        device: torch.device,
    ) -> Problem:
        """The problem that a user's arrays pose; ValueError for those that pose none."""
        images = checked_examples(x)
        preprocessing = Preprocessing.found(images, image_shape)
        labels, codes = Labels.found(y, len(images))
        whole = Examples(preprocessing(images), torch.from_numpy(codes))
        own = None
        if validation_data is not None:
            if not isinstance(validation_data, (tuple, list)) or len(validation_data) != 2:
                raise ValueError("validation_data must be a pair (x, y)")
            own_x, own_y = validation_data
            own = examples(own_x, own_y, preprocessing, labels, "validation_data")
        return Problem.of(whole, own, labels, preprocessing, fingerprint(images, codes, labels), seed, device)

    @staticmethod
    def of(
        whole: Examples,
        own: Examples | None,
        labels: Labels,
        preprocessing: Preprocessing,
        fingerprint: dict[str, Any],
        seed: int,
        device: torch.device,
    ) -> Problem:
        """The problem of examples that are checked already; own: those of the user's to stop and score by."""
        parts = Split(np.arange(len(whole)), None, None) if own is not None else split(whole.y.numpy(), seed)

        def part(index: NDArray[np.intp] | None) -> Examples | None:
            return None if index is None else whole[torch.from_numpy(index)].to(device)

        valid = part(parts.valid) if own is None else own.to(device)
        train = whole.to(device) if len(parts.train) == len(whole) else part(parts.train)
        assert train is not None
        everything = None if parts.valid is None else whole.to(device)
        task = Task.of(train, valid, len(labels.classes))
        return Problem(labels, preprocessing, task, part(parts.chooser), everything, fingerprint)

    @property
    def chance(self) -> float:
        """The accuracy of always saying the most frequent class."""
        return float(torch.bincount(self.task.train.y).max()) / len(self.task.train)


def examples(x: ArrayLike, y: ArrayLike, preprocessing: Preprocessing, labels: Labels, name: str) -> Examples:
    """Further arrays of a problem whose preprocessing and labels are known; ValueError when they do not fit it."""
    images = preprocessing(checked_examples(x, name))
    return Examples(images, torch.from_numpy(labels.encode(y, len(images))))


def fingerprint(x: NDArray[Any], y: NDArray[np.int64], labels: Labels) -> dict[str, Any]:
    """What tells data apart: shape, classes and a hash over (at most about 64 MB of) the examples and all labels."""
    every = max(1, x.nbytes // 2**26)
    digest = hashlib.blake2b(digest_size=16)
    digest.update(np.ascontiguousarray(x[::every]).data)
    digest.update(y.data)
    return {"shape": list(x.shape), "dtype": str(x.dtype), "classes": len(labels.classes), "hash": digest.hexdigest()}
