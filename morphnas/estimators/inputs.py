"""Turn the user's data into a learning problem: validated, preprocessed, split, and on the device."""

from __future__ import annotations

import hashlib
import logging
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from morphnas.estimators.data_memory import DEFAULT_DATA_MEMORY, DataMemory
from morphnas.estimators.distillation import Teacher, teacher_outputs
from morphnas.estimators.placement import is_positive_int
from morphnas.estimators.sources import EXAMPLES, Source, may_contain_labels, open_data
from morphnas.estimators.splits import Groups, Split, groups_of, split
from morphnas.estimators.targets import (
    InferTarget,
    RegressionTarget,
    SampleWeight,
    Target,
    classification_target,
    weights_of,
)
from morphnas.run.store import data_id
from morphnas.train.data import Examples, Task, clip_limit
from morphnas.train.deadline import NEVER, Deadline

log = logging.getLogger("morphnas")

_MAX_PIXELS = 128 * 128
"""Upper limit on the pixels of the common size that images of mixed sizes are resized to."""
_MIN_FLOAT32 = float(np.finfo(np.float32).tiny)
_MAX_RELATIVE_SPREAD, _MIN_RELATIVE_SPREAD = 1e-4, 1e-12
"""Range of (max - min) / max(abs) in which an offset is subtracted from a feature: above it, float32 is precise enough;
below it, the differences are rounding errors."""
_LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the grey value (ITU-R BT.601)."""

ImageSize = int | Sequence[int]
Normalization = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel."""


@dataclass(frozen=True)
class Preprocessing:
    """How raw examples become network inputs. Shapes are without the batch axis."""

    given: tuple[int, ...]
    """Shape of one raw example, channels last."""
    shape: tuple[int, ...]
    """Shape of one network input, channels first."""
    resized: bool = False
    """Whether images of other sizes are resized to this shape."""
    columns: tuple[str, ...] | None = None
    """Column names of the data frame that was fitted on; other frames must have the same ones in the same order."""
    offset: tuple[float, ...] | None = None
    """(d,) values subtracted from rows in float64, before they become float32, which can hardly resolve features whose
    values are large relative to their spread, such as timestamps in seconds. None: nothing is subtracted."""
    normalization: Normalization | None = None
    """The user's mean and standard deviation of each channel; None: those of the training examples."""

    @staticmethod
    def infer(
        source: Source, image_shape: Sequence[int] | None, image_size: ImageSize | None, axes: int | None = None
    ) -> Preprocessing:
        """Infer the preprocessing from the shapes of the examples and the user's settings.

        Examples are rows (d,), images (h, w) or (h, w, c), volumes (d, h, w, c), or what `axes` (1: sequences, 2:
        images, 3: volumes) says. Raises ValueError for anything else.
        """
        if axes is not None and (isinstance(axes, bool) or axes not in (1, 2, 3)):
            raise ValueError(f"axes must be None, 1 (sequences), 2 (images) or 3 (volumes), not {axes!r:.100}")
        image_shape = _checked_shape(image_shape)
        if axes in (1, 3):
            return Preprocessing._sequences_or_volumes(source, image_shape, image_size, axes)
        if image_size is not None or not source.uniform:
            return Preprocessing._resizing(source, image_shape, _checked_size(image_size))
        given = source.shapes[0]
        if image_shape is not None:
            image = tuple(image_shape)
            if len(image) not in (2, 3):
                words = "(height, width) or (height, width, channels)"
                raise ValueError(f"image_shape must be {words}, not {image_shape!r}")
            if math.prod(image) != math.prod(given):
                raise ValueError(f"image_shape {image} has {math.prod(image)} values, but an example has shape {given}")
        elif len(given) == 1 and axes is None:
            side = math.isqrt(given[0])
            if given[0] >= 64 and side * side == given[0]:
                hint = f"x has rows of {given[0]} values, which are taken as features without order; if they are images"
                warnings.warn(f"{hint}, pass image_shape=({side}, {side})", stacklevel=4)
            return Preprocessing(given, given)
        elif len(given) in (2, 3):
            image = given
        elif len(given) == 4 and axes is None:
            return Preprocessing._sequences_or_volumes(source, None, None, 3)
        else:
            images = "images (n, h, w) or (n, h, w, channels), or rows with image_shape"
            wanted = EXAMPLES if axes is None else images
            raise ValueError(f"x must be {wanted}, but its shape is {(len(source), *given)}")
        if len(image) == 3 and image[0] in (1, 3) and image[2] > 4:
            hint = f"images of shape {image} look channels first, but (height, width, channels) is expected"
            warnings.warn(f"{hint}: np.moveaxis(x, 1, -1) converts them", stacklevel=4)
        return Preprocessing(given, (1, *image) if len(image) == 2 else (image[2], *image[:2]))

    @staticmethod
    def _sequences_or_volumes(
        source: Source, image_shape: Sequence[int] | None, image_size: ImageSize | None, axes: int
    ) -> Preprocessing:
        """For sequences (length,) or (length, channels), and volumes (d, h, w) or (d, h, w, channels).

        With `image_shape`, rows are reshaped to it. ValueError for shapes that differ or do not fit.
        """
        what, sizes = {1: ("sequences", "(length,)"), 3: ("volumes", "(depth, height, width)")}[axes]
        if image_size is not None or not source.uniform:
            raise ValueError(f"{what} in x must all have the same shape: only images are resized")
        given = source.shapes[0]
        shape = given if image_shape is None else tuple(image_shape)
        if len(shape) not in (axes, axes + 1) or math.prod(shape) != math.prod(given):
            words = f"{what} have the shape {sizes}, or one more axis for channels"
            raise ValueError(
                f"{words}, but an example of x has {given}{'' if image_shape is None else f', not {shape}'}"
            )
        return Preprocessing(given, (1, *shape) if len(shape) == axes else (shape[-1], *shape[:-1]))

    @staticmethod
    def _resizing(source: Source, image_shape: Sequence[int] | None, size: tuple[int, int] | None) -> Preprocessing:
        """For images of mixed shapes, or with a requested `size` (height, width)."""
        shapes = set(source.shapes)
        if image_shape is not None:
            raise ValueError(
                "image_shape is for rows of equal lengths: reshape them to (n, h, w) before they are resized"
            )
        if any(len(shape) not in (2, 3) for shape in shapes):
            shape = (len(source), *source.shapes[0])
            raise ValueError(f"image_size is for images (n, h, w) or (n, h, w, channels), but x has shape {shape}")
        channel_counts = {_channels(shape) for shape in shapes}
        if len(channel_counts) > 1 and not channel_counts <= {1, 3, 4}:
            raise ValueError(f"x holds images of {sorted(channel_counts)} channels: they must be equal, or 1, 3 and 4")
        sizes = {shape[:2] for shape in shapes}
        resized = size is not None or len(sizes) > 1
        height, width = size or (_median_size(source.shapes) if resized else min(sizes))
        channels = 3 if len(channel_counts) > 1 else min(channel_counts)
        if resized:
            size_range = f"{min(sizes)} to {max(sizes)}" if len(sizes) > 1 else f"{min(sizes)}"
            log.info("images of %s pixels are resized to (%d, %d)", size_range, height, width)
        if len(channel_counts) > 1:
            log.info("images of %s channels are converted to RGB", sorted(channel_counts))
        return Preprocessing((height, width, channels), (channels, height, width), resized)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Preprocessing:
        """The preprocessing stored as JSON; ValueError if `data` is invalid."""
        given, shape, resized, columns = data["given"], data["shape"], data.get("resized", False), data.get("columns")
        offset = data.get("offset")
        for sizes in (given, shape):
            whole = isinstance(sizes, list) and all(isinstance(n, int) and not isinstance(n, bool) for n in sizes)
            if not (whole and 1 <= len(sizes) <= 4 and min(sizes) > 0):
                raise ValueError(f"examples cannot have the shape {sizes!r:.100}")
        if math.prod(given) != math.prod(shape) or len(shape) > 4 or not isinstance(resized, bool):
            raise ValueError(f"examples of shape {given!r:.100} cannot become {shape!r:.100}")
        if columns is not None:
            if not (isinstance(columns, list) and all(isinstance(column, str) for column in columns)):
                raise ValueError(f"columns cannot have the names {columns!r:.100}")
            columns = tuple(columns)
        if offset is not None:
            numbers = isinstance(offset, list) and all(isinstance(v, (int, float)) and math.isfinite(v) for v in offset)
            if not numbers or [len(offset)] != given or given != shape:
                raise ValueError(f"offset cannot be {offset!r:.100}")
            offset = tuple(offset)
        normalization = data.get("normalization")
        if normalization is not None:
            normalization = _checked_normalization(normalization, tuple(shape))
        return Preprocessing(tuple(given), tuple(shape), resized, columns, offset, normalization)

    def __call__(
        self, source: Source, place: Tensor | None = None, data_memory: DataMemory = DEFAULT_DATA_MEMORY
    ) -> Tensor:
        """The examples as a tensor (n, *shape), uint8 if all values fit, else float32; example i is at place[i].

        The tensor is in memory, or in a mapped file if `data_memory` does not allow that. Raises ValueError for invalid
        examples.
        """
        shape, start = (len(source), *self.shape), 0
        whole = torch.empty(0, dtype=torch.uint8)
        for piece in self.pieces(source):
            if not start:
                whole = data_memory.empty(shape, piece.dtype)
            elif piece.dtype != torch.uint8 and whole.dtype == torch.uint8:
                whole = data_memory.empty(shape, torch.float32).copy_(whole)
            where = slice(start, start + len(piece))
            whole[where if place is None else place[where]] = piece.to(whole.dtype)
            start += len(piece)
        return whole

    def pieces(self, source: Source) -> Iterator[Tensor]:
        """Read and preprocess the examples in chunks (k, *shape), uint8 or float32."""
        if self.columns and source.columns and self.columns != source.columns:
            words = "The feature names should match those that were passed during fit"  # scikit-learn's
            raise ValueError(f"{words}: {source.name} {_column_difference(source.columns, self.columns)}")
        for start, arrays in source.pieces():
            yield torch.cat([self._preprocess(array, source.name, start + i) for i, array in enumerate(arrays)])

    def _preprocess(self, x: NDArray[Any], name: str, start: int) -> Tensor:
        """Examples (k, ...) of equal shape as a tensor (k, *shape).

        name, start: of the data, and the index of the first example, for error messages.
        """
        fits = x.shape[1:] == self.given
        if not fits and self.resized and self.shape[0] > 1 and x.ndim == 3 and x.shape[2] in (1, 3, 4):
            raise ValueError(f"{name} looks like one image of shape {x.shape}: add an axis in front, {name}[None]")
        if not fits and (len(self.shape) != 3 or x.ndim not in (3, 4)):
            raise ValueError(self._shape_error(x, name))
        if len(self.shape) == 1:
            return _tensor(_numbers(x, name, start, self.offset, self.columns))
        channels, *size = self.shape
        coloured = _channels(x.shape[1:]) == channels or (_channels(x.shape[1:]) in (1, 3, 4) and channels in (1, 3))
        if not fits and not (coloured and (self.resized or list(x.shape[1:3]) == size)):
            raise ValueError(self._shape_error(x, name))
        x = x.reshape(len(x), *size, channels) if fits else x if x.ndim == 4 else x[..., None]
        images = _convert_channels(_tensor(np.moveaxis(_numbers(x, name, start), -1, 1)), channels)
        return images if list(images.shape[2:]) == size else _resize(images, size)

    def _shape_error(self, x: NDArray[Any], name: str) -> str:
        """The error message for examples whose shape the preprocessing does not accept."""
        if x.shape == self.given or (self.resized and x.ndim == 2):
            return f"{name} looks like one example of shape {x.shape}: add an axis in front, {name}[None]"
        if x.ndim == 2 and len(self.given) == 1:  # scikit-learn's words
            words = f"morphnas is expecting {self.given[0]} features as input"
            return f"X has {x.shape[1]} features, but {words}"
        hint = "; with image_size= a fit resizes images" if len(self.shape) == 3 and x.ndim in (3, 4) else ""
        return f"{name} has examples of shape {x.shape[1:]}, but the model was fitted on {self.given}{hint}"


def _checked_shape(image_shape: Sequence[int] | None) -> tuple[int, ...] | None:
    if image_shape is None:
        return None
    sizes = image_shape if isinstance(image_shape, (tuple, list, np.ndarray)) else ()
    if not len(sizes) or not all(map(is_positive_int, sizes)):
        words = "(height, width) or (height, width, channels)"
        raise ValueError(f"image_shape must be {words}, or as axes say, in whole numbers, not {image_shape!r:.100}")
    return tuple(int(size) for size in sizes)


def _checked_size(image_size: ImageSize | None) -> tuple[int, int] | None:
    if image_size is None:
        return None
    sides = tuple(image_size) if isinstance(image_size, (tuple, list)) else (image_size, image_size)
    if len(sides) != 2 or not all(map(is_positive_int, sides)):
        raise ValueError(f"image_size must be a positive integer or (height, width), not {image_size!r}")
    return int(sides[0]), int(sides[1])


def _checked_normalization(normalization: Any, shape: tuple[int, ...]) -> Normalization:
    """The mean and the standard deviation of each channel of examples of that shape, each given as a number or one for
    each channel; ValueError if they are invalid."""
    words = "(mean, std), each a number or one for each channel, in the units of x"
    try:
        mean, std = (
            np.broadcast_to(np.asarray(values, dtype=np.float64).ravel(), (shape[0],)) for values in normalization
        )
    except (TypeError, ValueError):
        raise ValueError(
            f"normalization must be {words}, of which there are {shape[0]}, not {normalization!r:.200}"
        ) from None
    if len(shape) == 1:
        raise ValueError("normalization is for images, sequences and volumes, not for rows of features")
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
        raise ValueError(f"normalization must be {words}, finite and with std above 0, not {normalization!r:.200}")
    return tuple(mean.tolist()), tuple(std.tolist())


def _with_normalization(task: Task, normalization: Normalization, x: Tensor) -> Task:
    """The task with the user's mean and deviation; ValueError if these lead to values of x that would be clipped."""
    mean, std = (torch.tensor(values).reshape(task.mean.shape).to(task.mean) for values in normalization)
    axes = [axis for axis in range(x.ndim) if axis != 1]
    bounds = [reduce(x, axes).float().to(mean.device) for reduce in (torch.amin, torch.amax)]  # of each channel
    largest = max(((bound - mean.flatten()) / std.flatten()).abs().max().item() for bound in bounds)
    if largest > clip_limit(mean):
        low, high = bounds[0].min().item(), bounds[1].max().item()
        raise ValueError(
            f"normalization: x has values from {low:g} to {high:g}, which become as large as {largest:g}: is it in the "
            "units of x? For images from 0 to 255, multiply a mean and std meant for values from 0 to 1 by 255"
        )
    return replace(task, mean=mean, std=std)


def _column_difference(columns: Sequence[str], fitted: Sequence[str]) -> str:
    """A description of how column names differ from those of the fit."""

    def named(names: Sequence[str]) -> str:
        more = f" and {len(names) - 5:,} others" if len(names) > 5 else ""
        return f"the column{'s' if len(names) > 1 else ''} {', '.join(map(repr, names[:5]))}{more}"

    missing, extra = ([*(Counter(a) - Counter(b)).elements()] for a, b in ((fitted, columns), (columns, fitted)))
    differences = [f"lacks {named(missing)}"] * bool(missing) + [f"has {named(extra)} besides"] * bool(extra)
    if differences:
        return " and ".join(differences)
    actual, expected = next(pair for pair in zip(columns, fitted, strict=True) if pair[0] != pair[1])
    return f"has the same columns in another order, first {actual!r} where that had {expected!r}"


def _channels(shape: tuple[int, ...]) -> int:
    return shape[2] if len(shape) == 3 else 1


def _median_size(shapes: Sequence[tuple[int, ...]]) -> tuple[int, int]:
    """The median height and width, scaled down to at most `_MAX_PIXELS` pixels."""
    sides = np.median([shape[:2] for shape in shapes], axis=0)
    sides = sides * min(1.0, math.sqrt(_MAX_PIXELS / math.prod(sides)))
    return max(1, int(sides[0] + 1e-9)), max(1, int(sides[1] + 1e-9))


def _real(x: NDArray[Any], name: str, columns: Sequence[str] | None = None) -> NDArray[Any]:
    """The values as real numbers; ValueError if they are not. columns: column names, for error messages."""
    if x.dtype == object:
        try:
            x = x.astype(np.float64)
        except (TypeError, ValueError) as error:
            cause = _non_numeric(x, columns) or error
            raise ValueError(f"{name} holds objects that are not numbers: {cause}") from None
    if x.dtype.kind not in "buif":
        word = "Complex data not supported: " if x.dtype.kind == "c" else ""
        raise ValueError(f"{word}{name} must hold numbers, but its dtype is {x.dtype}")
    return x


def _non_numeric(x: NDArray[Any], columns: Sequence[str] | None) -> str:
    """A description of the first non-numeric value in rows (n, d), its column and a remedy; "" for other shapes."""
    for i, column in enumerate(x.T if x.ndim == 2 else ()):
        for value in column:
            try:
                np.asarray(value, dtype=np.float64)
            except (TypeError, ValueError):
                hint = "encode it first, as by sklearn's OneHotEncoder"
                if type(value).__name__ in ("NAType", "NaTType"):
                    hint = "fill in missing values first"
                elif type(value).__name__ in ("Timestamp", "Timedelta", "datetime", "timedelta", "date", "Period"):
                    hint = "convert it to a number first, such as seconds"
                named = repr(columns[i]) if columns else i
                return f"column {named} has {value!r:.80}; {hint}"
    return ""


def _offset(source: Source) -> tuple[float, ...] | None:
    """`Preprocessing.offset` of rows: the minimum of each feature that needs one, else 0; None if no feature needs one.

    ValueError for features whose values are too small for float32.
    """
    pieces = (_real(x, source.name, source.columns) for _, (x,) in source.pieces())
    with np.errstate(invalid="ignore"):  # NaN and infinity, which raise an error later
        lows, highs = zip(*((x.min(0).astype(np.float64), x.max(0).astype(np.float64)) for x in pieces), strict=True)
        low, high = np.min(lows, axis=0), np.max(highs, axis=0)
        size, spread = np.maximum(np.abs(low), np.abs(high)), high - low
    if (tiny := np.flatnonzero((size > 0) & (size < _MIN_FLOAT32))).size:
        column = repr(source.columns[tiny[0]]) if source.columns else tiny[0]
        raise ValueError(
            f"{source.name}: the values of feature {column} are too small for float32, {size[tiny[0]]:.3g} at most: "
            "multiply them by a constant"
        )
    needed = (_MIN_RELATIVE_SPREAD * size < spread) & (spread < _MAX_RELATIVE_SPREAD * size)
    return tuple(np.where(needed, low, 0.0).tolist()) if needed.any() else None


def _numbers(
    x: NDArray[Any],
    name: str,
    start: int,
    offset: tuple[float, ...] | None = None,
    columns: Sequence[str] | None = None,
) -> NDArray[Any]:
    """The values as uint8 if they fit, else as float32 less `offset`; ValueError for NaN and infinity.

    name, start, columns: of the data, the index of the first example, and column names, for error messages.
    """
    x = _real(x, name, columns)
    if offset is not None:
        x = x - np.array(offset)
    elif x.dtype.kind in "bui" and (x.dtype == np.uint8 or (x.min() >= 0 and x.max() <= 255)):
        return x.astype(np.uint8, copy=False)
    with np.errstate(over="ignore"):  # overflow to infinity raises right below
        x = x.astype(np.float32, copy=False)
    if not (finite := np.isfinite(x)).all():
        where = start + int(np.argwhere(~finite.reshape(len(finite), -1).all(1))[0, 0])
        what = "NaN or infinity (or values too large for float32)"
        raise ValueError(f"{name} contains {what}, first in {name}[{where}]")
    return x


def _tensor(x: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.require(x, requirements=["C", "W"]))  # torch warns about read-only memory


def _convert_channels(images: Tensor, channels: int) -> Tensor:
    """Convert images (k, c, h, w) to (k, channels, h, w): grey to RGB, RGB to grey, RGBA without alpha."""
    if images.shape[1] == channels:
        return images
    if images.shape[1] == 1:
        return images.expand(-1, channels, -1, -1)
    if channels == 3:
        return images[:, :3]
    grey = torch.einsum("kchw,c->khw", images[:, :3].to(torch.float32), torch.tensor(_LUMA))[:, None]
    return _as_dtype_of(images, grey)


def _resize(images: Tensor, size: Sequence[int]) -> Tensor:
    """Resize images (k, c, h, w) to (k, c, *size), bilinearly with antialiasing."""
    pixels = images.to(torch.float32)
    return _as_dtype_of(images, F.interpolate(pixels, size=list(size), mode="bilinear", antialias=True))


def _as_dtype_of(images: Tensor, pixels: Tensor) -> Tensor:
    """Float pixels, rounded to uint8 if the images are uint8."""
    return pixels.round().clamp(0, 255).to(torch.uint8) if images.dtype == torch.uint8 else pixels


@dataclass(frozen=True, eq=False)
class Problem:
    """A learning problem: data, splits, target and preprocessing.

    task: the training set, and the validation set for early stopping and scores. selection_set: held-out examples that
    are only used to choose among final models; None if there are too few, or validation_data is given. all_examples:
    all examples that the final training may use; None if the task's training set has them all. fingerprint: identifies
    the data, as JSON values. order: (n,) indices in x of the examples in the order of the splits: training set,
    validation set (unless validation_data is given), selection_set.
    """

    target: Target
    preprocessing: Preprocessing
    task: Task
    selection_set: Examples | None
    all_examples: Examples | None
    fingerprint: dict[str, Any]
    order: NDArray[np.intp]

    @staticmethod
    def infer(
        x: Any,
        y: Any,
        validation_data: Any,
        image_shape: Sequence[int] | None,
        seed: int,
        device: torch.device,
        image_size: ImageSize | None = None,
        data_memory: DataMemory = DEFAULT_DATA_MEMORY,
        read: InferTarget = classification_target,
        sample_weight: SampleWeight = None,
        axes: int | None = None,
        groups: Groups = None,
        teacher: Teacher = None,
        deadline: Deadline = NEVER,
        normalization: Any = None,
    ) -> Problem:
        """Build the problem from the arguments of `fit`. read: infers the target from y and encodes y.

        Raises ValueError for invalid data, TimeoutError if reading them takes until the deadline.
        """
        source, y = open_data(x, y, "x", data_memory, axes, deadline)
        if groups is not None and validation_data is not None:
            raise ValueError(
                "groups and validation_data exclude each other: with validation_data nothing of x is held out"
            )
        preprocessing = replace(Preprocessing.infer(source, image_shape, image_size, axes), columns=source.columns)
        if len(preprocessing.shape) == 1:
            preprocessing = replace(preprocessing, offset=_offset(source))
        if normalization is not None:
            normalization = _checked_normalization(normalization, preprocessing.shape)
            preprocessing = replace(preprocessing, normalization=normalization)
        target, codes = read(y, len(source))
        weights = weights_of(sample_weight, len(source), codes, target)
        if weights is not None and isinstance(target, RegressionTarget):
            target, codes = RegressionTarget.infer(y, len(source), weights)
        validation = None
        if validation_data is not None:
            several = isinstance(validation_data, (tuple, list)) and len(validation_data) in (2, 3)
            validation_x, validation_y, *validation_weight = validation_data if several else (validation_data, None)
            if several or may_contain_labels(validation_x):
                validation_x, validation_y = open_data(
                    validation_x, validation_y, "validation_data", data_memory, axes, deadline
                )
            if validation_y is None:
                words = "(x, y) or (x, y, sample_weight)"
                raise ValueError(f"validation_data must be {words}, or a Dataset or a folder with labels")
            validation = prepare_examples(validation_x, validation_y, preprocessing, target, data_memory)
            if validation_weight:
                validation_weights = weights_of(validation_weight[0], len(validation), validation.y.numpy(), target)
                validation = replace(
                    validation, weights=None if validation_weights is None else torch.from_numpy(validation_weights)
                )
            elif isinstance(sample_weight, str) and weights is not None:  # the weights of the classes in x
                by_class = np.zeros(target.goal.outputs, dtype=np.float32)
                by_class[codes] = weights
                validation = replace(validation, weights=torch.from_numpy(by_class)[validation.y])
        group_ids, taught = groups_of(groups, len(source)), teacher_outputs(teacher, source, target)
        return Problem.from_source(
            source, codes, weights, group_ids, taught, validation, target, preprocessing, seed, device, data_memory
        )

    @staticmethod
    def from_source(
        source: Source,
        codes: NDArray[Any],
        weights: NDArray[np.float32] | None,
        groups: NDArray[np.int64] | None,
        taught: NDArray[np.float32] | None,
        validation: Examples | None,
        target: Target,
        preprocessing: Preprocessing,
        seed: int,
        device: torch.device,
        data_memory: DataMemory = DEFAULT_DATA_MEMORY,
    ) -> Problem:
        """Build the problem from a source and encoded y.

        weights: (n,) sample weights. groups: (n,) group numbers. taught: the teacher's outputs. validation: the user's
        validation set; None: examples are held out.

        All examples are stored once, in the order of the splits, which are views of that storage: on the device, in
        main memory if the device is too small, or in a mapped file if both are.
        """
        unsplit = Split(np.arange(len(codes)), None, None)
        parts = unsplit if validation is not None else split(target.strata(codes), seed, groups)
        order = np.concatenate([part for part in (parts.train, parts.valid, parts.selection_set) if part is not None])
        place = torch.from_numpy(np.argsort(order))
        x = preprocessing(source, place, data_memory)
        about = fingerprint(x, codes, weights, place, target, preprocessing, groups, taught is not None)
        if validation is not None:
            validation_hash = _hash(
                validation.x, validation.y.numpy(), None if validation.weights is None else validation.weights.numpy()
            )
            about["validation"] = {"shape": [len(validation), *preprocessing.given], "hash": validation_hash}
        ordered = (None if values is None else torch.from_numpy(values[order]) for values in (weights, taught))
        whole = data_memory.to_device(Examples(x, torch.from_numpy(codes[order]), *ordered), device)
        first = len(parts.train)
        last = first if parts.valid is None else first + len(parts.valid)
        valid = None if parts.valid is None else whole[first:last]
        if validation is not None:
            valid = data_memory.to_device(validation, device)
        selection_set = None if parts.selection_set is None else whole[last:]
        task = Task.of(whole[:first], valid, target.goal)
        if preprocessing.normalization is not None:
            task = _with_normalization(task, preprocessing.normalization, x)
        for part in (task.train, valid, selection_set):
            if part is not None and part.weights is not None and not part.weights.any():
                raise ValueError("sample_weight is 0 for all examples of a split: too few examples have a weight")
        return Problem(target, preprocessing, task, selection_set, None if parts.valid is None else whole, about, order)

    @property
    def name(self) -> str:
        """A name that identifies the data: the training set and the held-out examples."""
        return data_id(self.fingerprint)

    @property
    def bytes_in_memory(self) -> int:
        """Bytes that the examples take in main or GPU memory; those in a mapped file do not count."""
        parts = [self.all_examples or self.task.train]
        if self.all_examples is None and self.task.valid is not None:
            parts.append(self.task.valid)
        return sum(part.x.nbytes for part in parts if part.x.untyped_storage().filename is None)

    @property
    def baseline_metric(self) -> float:
        """The metric of the best constant prediction."""
        return self.task.goal.baseline_metric(self.task.train.y, self.task.train.weights)


def prepare_examples(
    source: Source, y: Any, preprocessing: Preprocessing, target: Target, data_memory: DataMemory = DEFAULT_DATA_MEMORY
) -> Examples:
    """Preprocess and encode further examples as in the fit; ValueError if they do not match it."""
    try:
        codes = target.encode(y, len(source))
    except ValueError as error:
        raise ValueError(f"{source.name}: {error}") from None
    return Examples(preprocessing(source, None, data_memory), torch.from_numpy(codes))


def fingerprint(
    x: Tensor,
    codes: NDArray[Any],
    weights: NDArray[np.float32] | None,
    place: Tensor,
    target: Target,
    preprocessing: Preprocessing,
    groups: NDArray[np.int64] | None = None,
    taught: bool = False,
) -> dict[str, Any]:
    """What identifies the data: shape, dtype, kind of target, and a hash of y, weights, groups, whether there is a
    teacher, and the examples (of large data every k-th, at most about 128 MB).

    x: example i is x[place[i]], so that the order of the splits makes no difference.
    """
    shape, dtype = [len(x), *preprocessing.given], str(x.dtype).removeprefix("torch.")
    about_y = {name: value for name, value in target.to_json().items() if name != "names"}  # names have no effect
    prefix = repr(about_y).encode() + (b"" if groups is None else groups.tobytes()) + b"taught" * taught
    return {
        "shape": shape,
        "dtype": dtype,
        **target.goal.to_json(),
        **({"taught": True} if taught else {}),
        "hash": _hash(x, codes, weights, place, prefix),
    }


def _hash(
    x: Tensor,
    codes: NDArray[Any],
    weights: NDArray[np.float32] | None = None,
    place: Tensor | None = None,
    prefix: bytes = b"",
) -> str:
    place = torch.arange(len(x)) if place is None else place
    digest = hashlib.blake2b(prefix, digest_size=16)
    for part in place[:: max(1, x.nbytes // 2**26)].split(256):
        digest.update(x[part].numpy().data)
    digest.update(codes.data)
    if weights is not None:
        digest.update(weights.data)
    return digest.hexdigest()
