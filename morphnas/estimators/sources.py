"""Whatever holds a user's examples, as pieces that are read one after the other, so that no whole copy is made."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    default_collate,
)

from morphnas.estimators.data_memory import ROOM, Room
from morphnas.estimators.files import Files, folder, pixels
from morphnas.run.store import user_path
from morphnas.train.deadline import NEVER, Deadline

EXAMPLES = "rows (n, d) or images (n, h, w) or (n, h, w, channels) or volumes (n, d, h, w, channels)"

IMAGES, LABELS = ("image", "img", "pixel_values"), ("label", "labels")
"""Names of the parts of examples that are mappings."""
_PIECE = 2**22
"""Values that are read at once, about."""
_LOOSE = 2**26
"""Bytes of a Dataset's images that are in memory at least before they go into a file: files should be few."""


def refuse_masked(values: Any, name: str) -> None:
    """ValueError for an array that masks some of its values: as an array without a mask it would show them."""
    if np.ma.is_masked(values):
        masked = int(np.sum(np.ma.getmask(values)))
        raise ValueError(f"{name} is an array with {masked:,} masked values: fill or remove them first")


@dataclass(frozen=True, eq=False)
class Source:
    """n examples. name: what errors call them. shapes: of each, (n of them). items: slices of it are examples.

    columns: names of a data frame's; None where not all are texts, or it is none. deadline: until when they are read,
    TimeoutError then.
    """

    name: str
    shapes: Sequence[tuple[int, ...]]
    items: Any
    columns: tuple[str, ...] | None = None
    deadline: Deadline = NEVER

    def __len__(self) -> int:
        return len(self.shapes)

    @staticmethod
    def of(x: Any, name: str, axes: int | None = None) -> Source:
        """The examples in an array or anything that has its shape and slices, a list of images, or a data frame.

        Arrays have their channels last, PyTorch's tensors first; axes: of an example, besides channels, None: 2, or 3
        in tensors that have so many. ValueError for what holds no examples, by shape; values are looked at when pieces
        are read.
        """
        if hasattr(x, "toarray"):
            raise ValueError(f"{name} is a sparse matrix, but must be dense: use {name}.toarray()")
        if isinstance(x, torch.Tensor) and x.layout is not torch.strided:
            raise ValueError(f"{name} is a sparse tensor, but must be dense: use {name}.to_dense()")
        refuse_masked(x, name)
        if isinstance(x, Mapping):  # also an HDF5 file and what np.load makes of an .npz
            raise ValueError(f"{name} must be {EXAMPLES}, not {x!r:.80}")
        if isinstance(x, Files):
            return _checked(Source(name, x.shapes, x))
        columns = tuple(getattr(x, "columns", ()))
        named = columns if columns and all(isinstance(column, str) for column in columns) else None
        listed = isinstance(x, (list, tuple)) or len(getattr(x, "shape", ())) == 1
        if listed and isinstance(next(iter(x), None), (str, os.PathLike)):
            paths = list(x)
            if wrong := [i for i, path in enumerate(paths) if not isinstance(path, (str, os.PathLike))]:
                raise ValueError(f"{name}[{wrong[0]}] is no name of a file, as others are, but {paths[wrong[0]]!r:.80}")
            files = Files([user_path(path) for path in paths])
            return _checked(Source(name, files.shapes, files))
        if isinstance(x, torch.Tensor):
            if _has_channels(x.ndim - 1, axes):
                x = x.movedim(1, -1)
                _warn_of_last(tuple(x.shape[1:]), axes)
            x = as_array(x)
        if not hasattr(x, "iloc") and not all(hasattr(x, a) for a in ("shape", "dtype", "__getitem__")):
            if isinstance(x, (list, tuple)) and x and any(hasattr(item, "shape") or _pil(item) for item in x):
                return Source._of_images(x, name, axes)
            given = x
            try:
                x = np.asarray(x)
            except ValueError as error:
                raise ValueError(f"{name} cannot be converted to an array: {error}") from None
            if not x.shape:
                raise ValueError(f"{name} must be {EXAMPLES}, not {given!r:.80}")
        if x.shape and len(x.shape) == 1 and str(getattr(x, "dtype", "")) == "object":
            return Source._of_images(list(x), name, axes)
        if len(x.shape) < 2:
            raise ValueError(_too_flat(name, tuple(x.shape)))
        source = Source(name, [tuple(x.shape[1:])] * x.shape[0], getattr(x, "iloc", x), named)
        return _checked(source, tuple(x.shape))

    @staticmethod
    def _of_images(images: Sequence[Any], name: str, axes: int | None) -> Source:
        for i, item in enumerate(images):
            refuse_masked(item, f"{name}[{i}]")
        items = [image(item, axes) for item in images]
        return _checked(Source(name, [item.shape for item in items], items))

    @property
    def uniform(self) -> bool:
        """Whether all examples have one shape."""
        return len(set(self.shapes)) == 1

    def pieces(self) -> Iterator[tuple[int, list[NDArray[Any]]]]:
        """The number of a piece's first example, and the piece: arrays (k, *shape), one of them if all are uniform."""
        uniform = self.uniform
        for start, items in self.slices():
            if isinstance(items, list):
                yield start, [np.stack(items)] if uniform else [item[None] for item in items]
            else:
                yield start, [np.asarray(items)]

    def slices(self) -> Iterator[tuple[int, Any]]:
        """The same pieces as they were given: slices of an array, a data frame or a list."""
        size = max(8, _PIECE // max(map(math.prod, set(self.shapes))))
        for start in range(0, len(self), size):
            if start:
                check_time(self.deadline, self.name, start, len(self))
            yield start, self.items[start : start + size]


def check_time(deadline: Deadline, name: str, read: int, of: int | None) -> None:
    """TimeoutError where the deadline has passed. read: how many examples are, of how many, None: unknown."""
    if deadline.passed:
        many = f"{read:,} examples" if of is None else f"{read:,} of {of:,} examples"
        words = "give more time, fewer examples, or a source that is faster to read"
        raise TimeoutError(f"reading {name} has taken all of the time limit, after {many}: {words}")


def _checked(source: Source, shape: tuple[int, ...] = ()) -> Source:
    """Itself; ValueError where there are no examples, some without values, or images of mixed shapes that are none.

    shape: of all examples, where they came as an array.
    """
    name, required = source.name, "while a minimum of 1 is required."
    if not len(source):
        raise ValueError(f"{name} is empty: found array with 0 sample(s) (shape={shape or (0,)}) {required}")
    if source.uniform:
        shape = shape or (len(source), *source.shapes[0])
        if len(shape) < 2:
            raise ValueError(_too_flat(name, shape))
        if not math.prod(shape):
            raise ValueError(f"{name} is empty: found array with 0 feature(s) (shape={shape}) {required}")
        return source
    for i, one in enumerate(source.shapes):
        if len(one) not in (2, 3):
            raise ValueError(f"{name}[{i}] is not an image (h, w) or (h, w, channels): its shape is {one}")
        if not math.prod(one):
            raise ValueError(f"{name}[{i}] is empty, its shape is {one}")
    return source


def _too_flat(name: str, shape: tuple[int, ...]) -> str:
    hint = "Reshape your data: for one example, add an axis in front"
    return f"{name} must be {EXAMPLES}, but its shape is {shape}. {hint}"


def opened(
    x: Any, y: Any, name: str, room: Room = ROOM, axes: int | None = None, deadline: Deadline = NEVER
) -> tuple[Source, Any]:
    """The examples and their labels: y, or those that come with a Dataset, a DataLoader or a folder (None: none do).

    axes: see `Source.of`. deadline: see `Source`.
    """
    if not brings_labels(x):
        return replace(Source.of(x, name, axes), deadline=deadline), y
    if _is_dataset(x):
        x, labels = _drained(x, name, room, axes, deadline)
        if not x:
            raise ValueError(f"{name} is empty, it yields no examples")
    else:
        x, labels = folder(x)
    if y is not None and labels is not None:
        raise ValueError(f"{name} contains its own labels, so y must not be given")
    if y is not None and isinstance(x, Files):
        hint = "give the files as a list, in the order of y, or put them into a sub-folder per class"
        raise ValueError(f"{name} is a folder, whose files have no order for y to be in: {hint}")
    return replace(Source.of(x, name), deadline=deadline), labels if y is None else y


def brings_labels(x: Any) -> bool:
    """Whether these are examples that may come with labels of their own."""
    return isinstance(x, (str, os.PathLike)) or _is_dataset(x)


def _is_dataset(x: Any) -> bool:
    """Whether it is one of torch's, or one of Hugging Face's, which have columns."""
    columns = hasattr(x, "column_names") and hasattr(x, "__iter__") and not isinstance(x, Mapping)
    return isinstance(x, (Dataset, DataLoader)) or columns


def _drained(
    data: Any, name: str, room: Room, axes: int | None, deadline: Deadline
) -> tuple[list[NDArray[Any]], list[Any] | None]:
    """All images of a Dataset or a DataLoader, read once, and their labels (None: it yields images alone).

    Whenever those in memory come to take more than there is room for, they go into a file.
    """
    data = _in_order(data) if isinstance(data, DataLoader) else data
    filed, loose, most = 0, 0, max(_LOOSE, room.most())
    images: list[NDArray[Any]] = []
    labels: list[Any] = []
    batched = isinstance(data, DataLoader) and data.batch_sampler is not None
    collated = batched and data.collate_fn is default_collate  # which makes of tuples of labels a tuple of batches
    streamed = isinstance(data, (DataLoader, IterableDataset)) or not hasattr(data, "__getitem__")
    if not (streamed or hasattr(data, "__len__")):
        raise ValueError(f"{name} is a {type(data).__name__} without a length")
    known = len(data) if hasattr(data, "__len__") and not batched else None
    for item in data if streamed else map(data.__getitem__, range(len(data))):
        check_time(deadline, name, len(images), known)
        pair = _columns(item, name) if isinstance(item, Mapping) else item
        pair = pair if isinstance(pair, (tuple, list)) else (pair,)
        if not 1 <= len(pair) <= 2:
            raise ValueError(f"{name} must yield (image, label), not a {type(item).__name__} of length {len(item)}")
        some = [image(one, axes) for one in (pair[0] if batched else [pair[0]])]
        images.extend(some)
        loose += sum(one.nbytes for one in some)
        if loose > most:
            images[filed:] = room.filed(images[filed:])
            filed, loose = len(images), 0
        if len(pair) == 2:
            labels.extend(_listed(pair[1], collated) if batched else [_listed(pair[1])])
    if labels and len(labels) != len(images):
        raise ValueError(f"{name} yields {len(images)} images, but {len(labels)} labels")
    if images:
        _warn_of_last(images[0].shape, axes)
    return images, labels or None


def _columns(item: Mapping[str, Any], name: str) -> tuple[Any, ...]:
    """The image and the label of an example, or a batch, with named parts; the image alone where it is not clear which
    part is the label.

    The label may have any name where there are two parts.
    """
    image = next((key for key in IMAGES if key in item), None)
    others = [key for key in item if key != image]
    label = next((key for key in LABELS if key in item), others[0] if len(others) == 1 else None)
    if image is None:
        parts = ", ".join(map(str, item))
        raise ValueError(f"{name} yields examples with the parts {parts:.200}: one must be named {' or '.join(IMAGES)}")
    return (item[image],) if label is None else (item[image], item[label])


def _in_order(loader: DataLoader[Any]) -> DataLoader[Any]:
    """The loader without its shuffling, where it shuffles what it could read in order: twice is the same then, and
    what is said of the dataset's examples elsewhere (y, groups, weights) goes with them.
    """
    sampler, order = loader.sampler, list[int]()
    if type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == len(sampler.data_source):
        order = list(range(sampler.num_samples))
    elif type(sampler) is SubsetRandomSampler:
        order = sorted(int(index) for index in sampler.indices)
    own_batches = type(loader.batch_sampler) not in (BatchSampler, type(None))
    if type(loader) is not DataLoader or own_batches or not order:
        return loader
    names = ("collate_fn", "generator", "num_workers", "timeout", "worker_init_fn")
    same = {name: getattr(loader, name) for name in names}
    if loader.batch_size is None:
        return DataLoader(loader.dataset, batch_size=None, sampler=order, **same)
    batches = BatchSampler(order, loader.batch_size, loader.drop_last)
    return DataLoader(loader.dataset, batch_sampler=batches, **same)


def _listed(labels: Any, collated: bool = False) -> Any:
    """A label, or those of a batch, without tensors. collated: whether tuples of labels were made one of batches."""
    if collated and isinstance(labels, (list, tuple)) and not isinstance(labels[0], (str, bytes)):
        return list(zip(*(_listed(part, collated) for part in labels), strict=True))
    return labels.tolist() if isinstance(labels, torch.Tensor) else labels


def image(item: Any, axes: int | None = None) -> NDArray[Any]:
    """One example with its channels last: tensors have them first. axes: besides channels; None: 2, or 3."""
    if isinstance(item, torch.Tensor):
        return as_array(item.movedim(0, -1) if _has_channels(item.ndim, axes) else item)
    return pixels(item) if _pil(item) else np.asarray(item)


def _has_channels(ndim: int, axes: int | None) -> bool:
    """Whether an example of so many axes has one of channels. axes: see `Source.of`."""
    return ndim in (3, 4) if axes is None else ndim == axes + 1


def _warn_of_last(shape: tuple[int, ...], axes: int | None) -> None:
    """Where tensors whose channels were taken to be first seem to have them last. shape: (h, w, channels), as taken."""
    if axes in (None, 2) and len(shape) == 3 and shape[1] in (1, 3, 4) and shape[2] > 4:
        height, width, channels = shape
        looks = f"tensors of shape {(channels, height, width)} look channels last"
        hint = f"{looks}, but (channels, height, width) is expected"
        warnings.warn(f"{hint}: DataLoader makes tensors of arrays (height, width, channels) too", stacklevel=6)


def _pil(item: Any) -> bool:
    return hasattr(item, "getbands")


def as_array(x: torch.Tensor) -> NDArray[Any]:
    """The tensor's values; those of a kind that numpy does not have, as bfloat16, in float32."""
    x = x.detach().cpu()
    array: NDArray[Any] = (x.float() if x.dtype == torch.bfloat16 else x).numpy()
    return array
