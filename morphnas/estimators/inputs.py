"""A user's examples as a problem to learn: checked, split, on the device. Everything wrong with them is said here."""

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

from morphnas.estimators.data_memory import ROOM, Room
from morphnas.estimators.distillation import Teacher, taught_by
from morphnas.estimators.placement import is_positive
from morphnas.estimators.sources import EXAMPLES, Source, brings_labels, opened
from morphnas.estimators.splits import Groups, Split, groups_of, split
from morphnas.estimators.targets import ReadY, RegressionTarget, SampleWeight, Target, classes_of, weights_of
from morphnas.run.store import data_name
from morphnas.train.data import Examples, Task
from morphnas.train.deadline import NEVER, Deadline

log = logging.getLogger("morphnas")

_LARGEST = 128 * 128
"""Pixels that images of mixed sizes are brought to at most."""
_TINY = float(np.finfo(np.float32).tiny)
_COARSE, _EXACT = 1e-4, 1e-12
"""Spread of a feature beside its size from which on float32 is good enough, and up to which it is mere rounding."""
_LUMA = (0.299, 0.587, 0.114)
"""How much red, green and blue are in grey (ITU-R BT.601)."""

ImageSize = int | Sequence[int]


@dataclass(frozen=True)
class Preprocessing:
    """What turns a user's examples into a network's input, without the batch axis."""

    given: tuple[int, ...]
    """Shape of one example as the user gives it."""
    shape: tuple[int, ...]
    """Shape of one example for the network, channels first."""
    resized: bool = False
    """Whether images of other sizes are resized."""
    columns: tuple[str, ...] | None = None
    """Names of a data frame's columns: other frames must have the same ones in the same order."""
    offset: tuple[float, ...] | None = None
    """What is taken off rows in float64, (d,), because float32 would hardly tell values apart that are large beside
    their spread, as times in seconds. None: nothing is."""

    @staticmethod
    def found(
        source: Source, image_shape: Sequence[int] | None, image_size: ImageSize | None, axes: int | None = None
    ) -> Preprocessing:
        """What examples are: rows, images (h, w) or (h, w, c), volumes (d, h, w, c), or what `axes` says; ValueError
        for anything else.
        """
        if axes is not None and (isinstance(axes, bool) or axes not in (1, 2, 3)):
            raise ValueError(f"axes must be None, 1 (sequences), 2 (images) or 3 (volumes), not {axes!r:.100}")
        image_shape = _checked_shape(image_shape)
        if axes in (1, 3):
            return Preprocessing._along(source, image_shape, image_size, axes)
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
            return Preprocessing._along(source, None, None, 3)
        else:
            images = "images (n, h, w) or (n, h, w, channels), or rows with image_shape"
            wanted = EXAMPLES if axes is None else images
            raise ValueError(f"x must be {wanted}, but its shape is {(len(source), *given)}")
        if len(image) == 3 and image[0] in (1, 3) and image[2] > 4:
            hint = f"images of shape {image} look channels first, but (height, width, channels) is expected"
            warnings.warn(f"{hint}: np.moveaxis(x, 1, -1) converts them", stacklevel=4)
        return Preprocessing(given, (1, *image) if len(image) == 2 else (image[2], *image[:2]))

    @staticmethod
    def _along(
        source: Source, image_shape: Sequence[int] | None, image_size: ImageSize | None, axes: int
    ) -> Preprocessing:
        """Spans (length) or (length, channels), volumes (d, h, w) or (d, h, w, channels); of rows by image_shape."""
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
        """For images of mixed shapes, or for those of a size that is asked for."""
        shapes = set(source.shapes)
        if image_shape is not None:
            raise ValueError(
                "image_shape is for rows of equal lengths: reshape them to (n, h, w) before they are resized"
            )
        if any(len(shape) not in (2, 3) for shape in shapes):
            shape = (len(source), *source.shapes[0])
            raise ValueError(f"image_size is for images (n, h, w) or (n, h, w, channels), but x has shape {shape}")
        depths = {_channels(shape) for shape in shapes}
        if len(depths) > 1 and not depths <= {1, 3, 4}:
            raise ValueError(f"x holds images of {sorted(depths)} channels: they must be equal, or 1, 3 and 4")
        sizes = {shape[:2] for shape in shapes}
        resized = size is not None or len(sizes) > 1
        height, width = size or (_median_size(source.shapes) if resized else min(sizes))
        channels = 3 if len(depths) > 1 else min(depths)
        if resized:
            places = f"{min(sizes)} to {max(sizes)}" if len(sizes) > 1 else f"{min(sizes)}"
            log.info("images of %s pixels are resized to (%d, %d)", places, height, width)
        if len(depths) > 1:
            log.info("images of %s channels are converted to RGB", sorted(depths))
        return Preprocessing((height, width, channels), (channels, height, width), resized)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Preprocessing:
        """What was written down of one; ValueError when it is none."""
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
        return Preprocessing(tuple(given), tuple(shape), resized, columns, offset)

    def __call__(self, source: Source, place: Tensor | None = None, room: Room = ROOM) -> Tensor:
        """The examples as a tensor (n, *shape), uint8 where they fit, else float32; example i is at place[i].

        In memory, or in a file where that has no room. ValueError that says what is wrong with them.
        """
        shape, start = (len(source), *self.shape), 0
        whole = torch.empty(0, dtype=torch.uint8)
        for piece in self.pieces(source):
            if not start:
                whole = room.empty(shape, piece.dtype)
            elif piece.dtype != torch.uint8 and whole.dtype == torch.uint8:
                whole = room.empty(shape, torch.float32).copy_(whole)
            where = slice(start, start + len(piece))
            whole[where if place is None else place[where]] = piece.to(whole.dtype)
            start += len(piece)
        return whole

    def pieces(self, source: Source) -> Iterator[Tensor]:
        """The examples, read a piece at a time: (k, *shape), uint8 or float32."""
        if self.columns and source.columns and self.columns != source.columns:
            words = "The feature names should match those that were passed during fit"  # scikit-learn's
            raise ValueError(f"{words}: {source.name} {_unlike(source.columns, self.columns)}")
        for start, arrays in source.pieces():
            yield torch.cat([self._one(array, source.name, start + i) for i, array in enumerate(arrays)])

    def _one(self, x: NDArray[Any], name: str, start: int) -> Tensor:
        """Examples (k, ...) of one shape as (k, *shape)."""
        fits = x.shape[1:] == self.given
        if not fits and self.resized and self.shape[0] > 1 and x.ndim == 3 and x.shape[2] in (1, 3, 4):
            raise ValueError(f"{name} looks like one image of shape {x.shape}: add an axis in front, {name}[None]")
        if not fits and (len(self.shape) != 3 or x.ndim not in (3, 4)):
            raise ValueError(self._unfit(x, name))
        if len(self.shape) == 1:
            return _tensor(_numbers(x, name, start, self.offset, self.columns))
        channels, *size = self.shape
        coloured = _channels(x.shape[1:]) == channels or (_channels(x.shape[1:]) in (1, 3, 4) and channels in (1, 3))
        if not fits and not (coloured and (self.resized or list(x.shape[1:3]) == size)):
            raise ValueError(self._unfit(x, name))
        x = x.reshape(len(x), *size, channels) if fits else x if x.ndim == 4 else x[..., None]
        images = _coloured(_tensor(np.moveaxis(_numbers(x, name, start), -1, 1)), channels)
        return images if list(images.shape[2:]) == size else _scaled(images, size)

    def _unfit(self, x: NDArray[Any], name: str) -> str:
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
    if not len(sizes) or not all(map(is_positive, sizes)):
        words = "(height, width) or (height, width, channels)"
        raise ValueError(f"image_shape must be {words}, or as axes say, in whole numbers, not {image_shape!r:.100}")
    return tuple(int(size) for size in sizes)


def _checked_size(image_size: ImageSize | None) -> tuple[int, int] | None:
    if image_size is None:
        return None
    sides = tuple(image_size) if isinstance(image_size, (tuple, list)) else (image_size, image_size)
    if len(sides) != 2 or not all(map(is_positive, sides)):
        raise ValueError(f"image_size must be a positive integer or (height, width), not {image_size!r}")
    return int(sides[0]), int(sides[1])


def _unlike(columns: Sequence[str], known: Sequence[str]) -> str:
    """How columns differ from those of the fit, in words."""

    def some(names: Sequence[str]) -> str:
        more = f" and {len(names) - 5:,} others" if len(names) > 5 else ""
        return f"the column{'s' if len(names) > 1 else ''} {', '.join(map(repr, names[:5]))}{more}"

    lacking, besides = ([*(Counter(a) - Counter(b)).elements()] for a, b in ((known, columns), (columns, known)))
    told = [f"lacks {some(lacking)}"] * bool(lacking) + [f"has {some(besides)} besides"] * bool(besides)
    if told:
        return " and ".join(told)
    found, wanted = next(pair for pair in zip(columns, known, strict=True) if pair[0] != pair[1])
    return f"has the same columns in another order, first {found!r} where that had {wanted!r}"


def _channels(shape: tuple[int, ...]) -> int:
    return shape[2] if len(shape) == 3 else 1


def _median_size(shapes: Sequence[tuple[int, ...]]) -> tuple[int, int]:
    """The median height and width, both made smaller where that is more than `_LARGEST` pixels."""
    sides = np.median([shape[:2] for shape in shapes], axis=0)
    sides = sides * min(1.0, math.sqrt(_LARGEST / math.prod(sides)))
    return max(1, int(sides[0] + 1e-9)), max(1, int(sides[1] + 1e-9))


def _real(x: NDArray[Any], name: str, columns: Sequence[str] | None = None) -> NDArray[Any]:
    """The values as they are; ValueError where they are no real numbers. columns: names of a data frame's."""
    if x.dtype == object:
        try:
            x = x.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} holds objects that are no numbers: {_culprit(x, columns) or error}") from None
    if x.dtype.kind not in "buif":
        word = "Complex data not supported: " if x.dtype.kind == "c" else ""
        raise ValueError(f"{word}{name} must hold numbers, but its dtype is {x.dtype}")
    return x


def _culprit(x: NDArray[Any], columns: Sequence[str] | None) -> str:
    """The first value of rows that is no number, and what column it is in; "" of what are no rows."""
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
    """See `Preprocessing`, of rows: the lowest values."""
    pieces = (_real(x, source.name, source.columns) for _, (x,) in source.pieces())
    with np.errstate(invalid="ignore"):  # of NaN and infinity, which are refused later
        lows, highs = zip(*((x.min(0).astype(np.float64), x.max(0).astype(np.float64)) for x in pieces), strict=True)
        low, high = np.min(lows, axis=0), np.max(highs, axis=0)
        size, spread = np.maximum(np.abs(low), np.abs(high)), high - low
    if (lost := np.flatnonzero((size > 0) & (size < _TINY))).size:
        column = repr(source.columns[lost[0]]) if source.columns else lost[0]
        raise ValueError(
            f"{source.name}: the values of feature {column} are too small for float32, {size[lost[0]]:.3g} at most: "
            "multiply them by a constant"
        )
    large = (_EXACT * size < spread) & (spread < _COARSE * size)
    return tuple(np.where(large, low, 0.0).tolist()) if large.any() else None


def _numbers(
    x: NDArray[Any],
    name: str,
    start: int,
    offset: tuple[float, ...] | None = None,
    columns: Sequence[str] | None = None,
) -> NDArray[Any]:
    """The values as uint8 where they fit, else as float32. start, columns: what errors call the first example, and a
    data frame's columns."""
    x = _real(x, name, columns)
    if offset is not None:
        x = x - np.array(offset)
    elif x.dtype.kind in "bui" and (x.dtype == np.uint8 or (x.min() >= 0 and x.max() <= 255)):
        return x.astype(np.uint8, copy=False)
    with np.errstate(over="ignore"):  # found right below
        x = x.astype(np.float32, copy=False)
    if not (finite := np.isfinite(x)).all():
        where = start + int(np.argwhere(~finite.reshape(len(finite), -1).all(1))[0, 0])
        what = "NaN or infinity (or values too large for float32)"
        raise ValueError(f"{name} contains {what}, first in {name}[{where}]")
    return x


def _tensor(x: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.require(x, requirements=["C", "W"]))  # torch warns of memory that is read-only


def _coloured(images: Tensor, channels: int) -> Tensor:
    """Images (k, c, h, w) as (k, channels, h, w): grey to RGB, RGB to grey, RGBA without alpha."""
    if images.shape[1] == channels:
        return images
    if images.shape[1] == 1:
        return images.expand(-1, channels, -1, -1)
    if channels == 3:
        return images[:, :3]
    grey = torch.einsum("kchw,c->khw", images[:, :3].to(torch.float32), torch.tensor(_LUMA))[:, None]
    return _like(grey, images)


def _scaled(images: Tensor, size: Sequence[int]) -> Tensor:
    """Images (k, c, h, w) of another size, (k, c, *size)."""
    pixels = images.to(torch.float32)
    return _like(F.interpolate(pixels, size=list(size), mode="bilinear", antialias=True), images)


def _like(pixels: Tensor, images: Tensor) -> Tensor:
    """Computed pixels as whole numbers again where the images are."""
    return pixels.round().clamp(0, 255).to(torch.uint8) if images.dtype == torch.uint8 else pixels


@dataclass(frozen=True, eq=False)
class Problem:
    """What is to be learnt.

    task: the part to train on and the part to stop and score by. chooser: examples that choose among final models and
    do nothing else; None: too few. everything: all that may be trained on at last; None: the task trains on it already.
    fingerprint: tells the data from others, JSON values. order: which of the examples given the parts hold, one after
    the other.
    """

    target: Target
    preprocessing: Preprocessing
    task: Task
    chooser: Examples | None
    everything: Examples | None
    fingerprint: dict[str, Any]
    order: NDArray[np.intp]

    @staticmethod
    def found(
        x: Any,
        y: Any,
        validation_data: Any,
        image_shape: Sequence[int] | None,
        seed: int,
        device: torch.device,
        image_size: ImageSize | None = None,
        room: Room = ROOM,
        read: ReadY = classes_of,
        sample_weight: SampleWeight = None,
        axes: int | None = None,
        groups: Groups = None,
        teacher: Teacher = None,
        deadline: Deadline = NEVER,
    ) -> Problem:
        """The problem that a user's examples pose. read: what y is.

        ValueError for those that pose none, TimeoutError for those that take too long to read.
        """
        source, y = opened(x, y, "x", room, axes, deadline)
        if groups is not None and validation_data is not None:
            raise ValueError(
                "groups and validation_data exclude each other: with validation_data nothing of x is held out"
            )
        preprocessing = replace(Preprocessing.found(source, image_shape, image_size, axes), columns=source.columns)
        if len(preprocessing.shape) == 1:
            preprocessing = replace(preprocessing, offset=_offset(source))
        target, codes = read(y, len(source))
        weights = weights_of(sample_weight, len(source), codes, target)
        if weights is not None and isinstance(target, RegressionTarget):
            target, codes = RegressionTarget.found(y, len(source), weights)
        own = None
        if validation_data is not None:
            several = isinstance(validation_data, (tuple, list)) and len(validation_data) in (2, 3)
            own_x, own_y, *own_weight = validation_data if several else (validation_data, None)
            if several or brings_labels(own_x):
                own_x, own_y = opened(own_x, own_y, "validation_data", room, axes, deadline)
            if own_y is None:
                words = "(x, y) or (x, y, sample_weight)"
                raise ValueError(f"validation_data must be {words}, or a Dataset or a folder with labels")
            own = examples(own_x, own_y, preprocessing, target, room)
            if own_weight:
                counted = weights_of(own_weight[0], len(own), own.y.numpy(), target)
                own = replace(own, weights=None if counted is None else torch.from_numpy(counted))
            elif isinstance(sample_weight, str) and weights is not None:  # as much as those of its class in x
                by_class = np.zeros(target.goal.outputs, dtype=np.float32)
                by_class[codes] = weights
                own = replace(own, weights=torch.from_numpy(by_class)[own.y])
        together, taught = groups_of(groups, len(source)), taught_by(teacher, source, target)
        return Problem.of(source, codes, weights, together, taught, own, target, preprocessing, seed, device, room)

    @staticmethod
    def of(
        source: Source,
        codes: NDArray[Any],
        weights: NDArray[np.float32] | None,
        groups: NDArray[np.int64] | None,
        taught: NDArray[np.float32] | None,
        own: Examples | None,
        target: Target,
        preprocessing: Preprocessing,
        seed: int,
        device: torch.device,
        room: Room = ROOM,
    ) -> Problem:
        """The problem of examples, y as networks learn it, what each counts for, which belong together, and what a
        teacher's outputs are; own: those to stop and score by.

        All are held once, ordered by the parts, which are views of them: on the device, in main memory where that is
        too small, or in a file where both are.
        """
        everything = Split(np.arange(len(codes)), None, None)
        parts = everything if own is not None else split(target.strata(codes), seed, groups)
        order = np.concatenate([part for part in (parts.train, parts.valid, parts.chooser) if part is not None])
        place = torch.from_numpy(np.argsort(order))
        x = preprocessing(source, place, room)
        about = fingerprint(x, codes, weights, place, target, preprocessing, groups, taught is not None)
        if own is not None:
            hashed = _hashed(own.x, own.y.numpy(), None if own.weights is None else own.weights.numpy())
            about["validation"] = {"shape": [len(own), *preprocessing.given], "hash": hashed}
        counted, said = (None if of is None else torch.from_numpy(of[order]) for of in (weights, taught))
        whole = room.placed(Examples(x, torch.from_numpy(codes[order]), counted, said), device)
        first = len(parts.train)
        last = first if parts.valid is None else first + len(parts.valid)
        valid = None if parts.valid is None else whole[first:last]
        if own is not None:
            valid = room.placed(own, device)
        chooser = None if parts.chooser is None else whole[last:]
        task = Task.of(whole[:first], valid, target.goal)
        for part in (task.train, valid, chooser):
            if part is not None and part.weights is not None and not part.weights.any():
                raise ValueError("sample_weight is 0 for all examples of a split: too few examples have a weight")
        return Problem(target, preprocessing, task, chooser, None if parts.valid is None else whole, about, order)

    @property
    def name(self) -> str:
        """Tells the examples trained on, and those held out, from others."""
        return data_name(self.fingerprint)

    @property
    def bytes_in_memory(self) -> int:
        """That the examples take of memory, or of a GPU's: 0 of those in a file."""
        several = [self.everything or self.task.train]
        if self.everything is None and self.task.valid is not None:
            several.append(self.task.valid)
        return sum(part.x.nbytes for part in several if part.x.untyped_storage().filename is None)

    @property
    def chance(self) -> float:
        """The metric of always saying the same."""
        return self.task.goal.chance(self.task.train.y, self.task.train.weights)


def examples(source: Source, y: Any, preprocessing: Preprocessing, target: Target, room: Room = ROOM) -> Examples:
    """Further examples of a problem whose preprocessing and target are known; ValueError when they do not fit it."""
    try:
        codes = target.encode(y, len(source))
    except ValueError as error:
        raise ValueError(f"{source.name}: {error}") from None
    return Examples(preprocessing(source, None, room), torch.from_numpy(codes))


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
    """What tells data apart: shape, classes, tags or amounts, and a hash over (at most about 64 MB of) the examples,
    and y, weights and groups, and whether there is a teacher.

    x: example i is x[place[i]]. The order that the parts put them in makes no difference.
    """
    shape, dtype = [len(x), *preprocessing.given], str(x.dtype).removeprefix("torch.")
    said = {name: value for name, value in target.to_json().items() if name != "names"}  # which change nothing
    names = repr(said).encode() + (b"" if groups is None else groups.tobytes()) + b"taught" * taught
    hashed = _hashed(x, codes, weights, place, names)
    return {
        "shape": shape,
        "dtype": dtype,
        **target.goal.to_json(),
        **({"taught": True} if taught else {}),
        "hash": hashed,
    }


def _hashed(
    x: Tensor,
    codes: NDArray[Any],
    weights: NDArray[np.float32] | None = None,
    place: Tensor | None = None,
    names: bytes = b"",
) -> str:
    place = torch.arange(len(x)) if place is None else place
    digest = hashlib.blake2b(names, digest_size=16)
    for part in place[:: max(1, x.nbytes // 2**26)].split(256):
        digest.update(x[part].numpy().data)
    digest.update(codes.data)
    if weights is not None:
        digest.update(weights.data)
    return digest.hexdigest()
