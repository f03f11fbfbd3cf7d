"""Read examples from arrays, data frames, datasets, loaders and files in chunks, without a second copy of all."""

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

from morphnas.estimators.data_memory import DEFAULT_DATA_MEMORY, DataMemory
from morphnas.estimators.files import Files, image_folder, pixels
from morphnas.run.store import user_path
from morphnas.train.deadline import NEVER, Deadline

EXAMPLES = "rows (n, d) or images (n, h, w) or (n, h, w, channels) or volumes (n, d, h, w, channels)"

IMAGES, LABELS = ("image", "img", "pixel_values"), ("label", "labels")
"""Keys of the image and of the label in examples that are mappings."""
_PIECE = 2**22
"""Approximate number of values in a chunk."""
_MIN_FILE_BYTES = 2**26
"""Bytes of a Dataset's images collected in memory before they are moved to a file, so that there are few files."""


def check_not_masked(values: Any, name: str) -> None:
    """Raise ValueError for arrays with masked values: converted to plain arrays, they would lose the mask."""
    if np.ma.is_masked(values):
        masked = int(np.sum(np.ma.getmask(values)))
        raise ValueError(f"{name} is an array with {masked:,} masked values: fill or remove them first")


@dataclass(frozen=True, eq=False)
class Source:
    """n examples that are read in chunks.

    name: of the data in error messages. shapes: of the n examples. items: a sequence or array whose slices are
    examples. columns: column names of a data frame; None unless all are strings. deadline: reading past it raises
    TimeoutError.
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
        """The examples in an array or array-like, a list of images or of image files, or a data frame.

        Arrays are channels last, PyTorch tensors channels first. axes: axes of an example besides the channels; None:
        2, or 3 in tensors with that many. Raises ValueError if the shape is not that of examples; values are checked
        when chunks are read.
        """
        if hasattr(x, "toarray"):
            raise ValueError(f"{name} is a sparse matrix, but must be dense: use {name}.toarray()")
        if isinstance(x, torch.Tensor) and x.layout is not torch.strided:
            raise ValueError(f"{name} is a sparse tensor, but must be dense: use {name}.to_dense()")
        check_not_masked(x, name)
        if isinstance(x, Mapping):  # such as an HDF5 file or a loaded .npz file
            raise ValueError(f"{name} must be {EXAMPLES}, not {x!r:.80}")
        if isinstance(x, Files):
            return _validated(Source(name, x.shapes, x))
        columns = tuple(getattr(x, "columns", ()))
        named = columns if columns and all(isinstance(column, str) for column in columns) else None
        one_axis = isinstance(x, (list, tuple)) or len(getattr(x, "shape", ())) == 1
        if one_axis and isinstance(next(iter(x), None), (str, os.PathLike)):
            paths = list(x)
            if wrong := [i for i, path in enumerate(paths) if not isinstance(path, (str, os.PathLike))]:
                raise ValueError(f"{name}[{wrong[0]}] is not a file name, as others are, but {paths[wrong[0]]!r:.80}")
            files = Files([user_path(path) for path in paths])
            return _validated(Source(name, files.shapes, files))
        if isinstance(x, torch.Tensor):
            if _has_channels(x.ndim - 1, axes):
                x = x.movedim(1, -1)
                _warn_if_channels_last(tuple(x.shape[1:]), axes)
            x = as_array(x)
        if not hasattr(x, "iloc") and not all(hasattr(x, a) for a in ("shape", "dtype", "__getitem__")):
            if isinstance(x, (list, tuple)) and x and any(hasattr(item, "shape") or _is_pil(item) for item in x):
                return Source._of_images(x, name, axes)
            original = x
            try:
                x = np.asarray(x)
            except ValueError as error:
                raise ValueError(f"{name} cannot be converted to an array: {error}") from None
            if not x.shape:
                raise ValueError(f"{name} must be {EXAMPLES}, not {original!r:.80}")
        if x.shape and len(x.shape) == 1 and str(getattr(x, "dtype", "")) == "object":
            return Source._of_images(list(x), name, axes)
        if len(x.shape) < 2:
            raise ValueError(_too_few_axes(name, tuple(x.shape)))
        source = Source(name, [tuple(x.shape[1:])] * x.shape[0], getattr(x, "iloc", x), named)
        return _validated(source, tuple(x.shape))

    @staticmethod
    def _of_images(images: Sequence[Any], name: str, axes: int | None) -> Source:
        for i, item in enumerate(images):
            check_not_masked(item, f"{name}[{i}]")
        items = [image(item, axes) for item in images]
        return _validated(Source(name, [item.shape for item in items], items))

    @property
    def uniform(self) -> bool:
        """Whether all examples have the same shape."""
        return len(set(self.shapes)) == 1

    def pieces(self) -> Iterator[tuple[int, list[NDArray[Any]]]]:
        """Chunks: the index of the first example, and arrays (k, *shape), one if `uniform`, else one per example."""
        uniform = self.uniform
        for start, items in self.slices():
            if isinstance(items, list):
                yield start, [np.stack(items)] if uniform else [item[None] for item in items]
            else:
                yield start, [np.asarray(items)]

    def slices(self) -> Iterator[tuple[int, Any]]:
        """The same chunks as slices of the original array, data frame or list."""
        size = max(8, _PIECE // max(map(math.prod, set(self.shapes))))
        for start in range(0, len(self), size):
            if start:
                check_time(self.deadline, self.name, start, len(self))
            yield start, self.items[start : start + size]


def check_time(deadline: Deadline, name: str, read: int, of: int | None) -> None:
    """Raise TimeoutError if the deadline has passed. read, of: examples read so far, and in total (None: unknown)."""
    if deadline.passed:
        progress = f"{read:,} examples" if of is None else f"{read:,} of {of:,} examples"
        hint = "give more time, fewer examples, or a source that is faster to read"
        raise TimeoutError(f"reading {name} has taken all of the time limit, after {progress}: {hint}")


def _validated(source: Source, shape: tuple[int, ...] = ()) -> Source:
    """The source itself; ValueError if it or an example is empty, or if shapes are mixed and not those of images.

    shape: of all examples, if they came as an array.
    """
    name, required = source.name, "while a minimum of 1 is required."
    if not len(source):
        raise ValueError(f"{name} is empty: found array with 0 sample(s) (shape={shape or (0,)}) {required}")
    if source.uniform:
        shape = shape or (len(source), *source.shapes[0])
        if len(shape) < 2:
            raise ValueError(_too_few_axes(name, shape))
        if not math.prod(shape):
            raise ValueError(f"{name} is empty: found array with 0 feature(s) (shape={shape}) {required}")
        return source
    for i, shape in enumerate(source.shapes):
        if len(shape) not in (2, 3):
            raise ValueError(f"{name}[{i}] is not an image (h, w) or (h, w, channels): its shape is {shape}")
        if not math.prod(shape):
            raise ValueError(f"{name}[{i}] is empty, its shape is {shape}")
    return source


def _too_few_axes(name: str, shape: tuple[int, ...]) -> str:
    """The error message for data without an axis of examples or of values."""
    hint = "Reshape your data: for one example, add an axis in front"
    return f"{name} must be {EXAMPLES}, but its shape is {shape}. {hint}"


def open_data(
    x: Any,
    y: Any,
    name: str,
    data_memory: DataMemory = DEFAULT_DATA_MEMORY,
    axes: int | None = None,
    deadline: Deadline = NEVER,
) -> tuple[Source, Any]:
    """The examples and their labels: y, or those in a Dataset, a DataLoader or a folder; None if there are none.

    axes: see `Source.of`. deadline: see `Source`.
    """
    if not may_contain_labels(x):
        return replace(Source.of(x, name, axes), deadline=deadline), y
    if _is_dataset(x):
        x, labels = _read_dataset(x, name, data_memory, axes, deadline)
        if not x:
            raise ValueError(f"{name} is empty, it yields no examples")
    else:
        x, labels = image_folder(x)
    if y is not None and labels is not None:
        raise ValueError(f"{name} contains its own labels, so y must not be given")
    if y is not None and isinstance(x, Files):
        hint = "give the files as a list, in the order of y, or put them into a sub-folder per class"
        raise ValueError(f"{name} is a folder, whose files have no order for y to be in: {hint}")
    return replace(Source.of(x, name), deadline=deadline), labels if y is None else y


def may_contain_labels(x: Any) -> bool:
    """Whether x is a kind of data that can contain labels: a folder, a dataset or a loader."""
    return isinstance(x, (str, os.PathLike)) or _is_dataset(x)


def _is_dataset(x: Any) -> bool:
    """Whether x is a dataset or loader of PyTorch, or a Hugging Face dataset, which has named columns."""
    columns = hasattr(x, "column_names") and hasattr(x, "__iter__") and not isinstance(x, Mapping)
    return isinstance(x, (Dataset, DataLoader)) or columns


def _read_dataset(
    data: Any, name: str, data_memory: DataMemory, axes: int | None, deadline: Deadline
) -> tuple[list[NDArray[Any]], list[Any] | None]:
    """Read a Dataset or DataLoader once: all images, and their labels (None if it yields images only).

    Whenever the images in memory exceed the limit of `data_memory`, they are moved to a file.
    """
    data = _unshuffled(data) if isinstance(data, DataLoader) else data
    n_in_files, bytes_in_memory, limit = 0, 0, max(_MIN_FILE_BYTES, data_memory.byte_limit())
    images: list[NDArray[Any]] = []
    labels: list[Any] = []
    batched = isinstance(data, DataLoader) and data.batch_sampler is not None
    collated = batched and data.collate_fn is default_collate  # turns tuples of labels into a tuple of batches
    streamed = isinstance(data, (DataLoader, IterableDataset)) or not hasattr(data, "__getitem__")
    if not (streamed or hasattr(data, "__len__")):
        raise ValueError(f"{name} is a {type(data).__name__} without a length")
    total = len(data) if hasattr(data, "__len__") and not batched else None
    for item in data if streamed else map(data.__getitem__, range(len(data))):
        check_time(deadline, name, len(images), total)
        pair = _image_and_label(item, name) if isinstance(item, Mapping) else item
        pair = pair if isinstance(pair, (tuple, list)) else (pair,)
        if not 1 <= len(pair) <= 2:
            raise ValueError(f"{name} must yield (image, label), not a {type(item).__name__} of length {len(item)}")
        arrays = [image(example, axes) for example in (pair[0] if batched else [pair[0]])]
        images.extend(arrays)
        bytes_in_memory += sum(array.nbytes for array in arrays)
        if bytes_in_memory > limit:
            images[n_in_files:] = data_memory.to_file(images[n_in_files:])
            n_in_files, bytes_in_memory = len(images), 0
        if len(pair) == 2:
            labels.extend(_plain_labels(pair[1], collated) if batched else [_plain_labels(pair[1])])
    if labels and len(labels) != len(images):
        raise ValueError(f"{name} yields {len(images)} images, but {len(labels)} labels")
    if images:
        _warn_if_channels_last(images[0].shape, axes)
    return images, labels or None


def _image_and_label(item: Mapping[str, Any], name: str) -> tuple[Any, ...]:
    """The image and the label of an example or batch that is a mapping; only the image if the label is ambiguous.

    If there are just two keys, that of the label may be any. ValueError if no key is that of an image.
    """
    image = next((key for key in IMAGES if key in item), None)
    others = [key for key in item if key != image]
    label = next((key for key in LABELS if key in item), others[0] if len(others) == 1 else None)
    if image is None:
        parts = ", ".join(map(str, item))
        raise ValueError(f"{name} yields examples with the parts {parts:.200}: one must be named {' or '.join(IMAGES)}")
    return (item[image],) if label is None else (item[image], item[label])


def _unshuffled(loader: DataLoader[Any]) -> DataLoader[Any]:
    """A loader in the order of its dataset, if `loader` shuffles with a standard sampler; else `loader` itself.

    Then reading is repeatable, and separate y, groups and weights are aligned with the examples.
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
    settings = {name: getattr(loader, name) for name in names}
    if loader.batch_size is None:
        return DataLoader(loader.dataset, batch_size=None, sampler=order, **settings)
    batches = BatchSampler(order, loader.batch_size, loader.drop_last)
    return DataLoader(loader.dataset, batch_sampler=batches, **settings)


def _plain_labels(labels: Any, collated: bool = False) -> Any:
    """A label or a batch of labels, converted from tensors. collated: `default_collate` transposed tuples of labels."""
    if collated and isinstance(labels, (list, tuple)) and not isinstance(labels[0], (str, bytes)):
        return list(zip(*(_plain_labels(part, collated) for part in labels), strict=True))
    return labels.tolist() if isinstance(labels, torch.Tensor) else labels


def image(item: Any, axes: int | None = None) -> NDArray[Any]:
    """One example as an array, channels last; tensors are channels first. axes: see `Source.of`."""
    if isinstance(item, torch.Tensor):
        return as_array(item.movedim(0, -1) if _has_channels(item.ndim, axes) else item)
    return pixels(item) if _is_pil(item) else np.asarray(item)


def _has_channels(ndim: int, axes: int | None) -> bool:
    """Whether an example with `ndim` axes has a channel axis. axes: see `Source.of`."""
    return ndim in (3, 4) if axes is None else ndim == axes + 1


def _warn_if_channels_last(shape: tuple[int, ...], axes: int | None) -> None:
    """Warn if tensors, read as channels first, look channels last. shape: (h, w, channels) as they were read."""
    if axes in (None, 2) and len(shape) == 3 and shape[1] in (1, 3, 4) and shape[2] > 4:
        height, width, channels = shape
        looks = f"tensors of shape {(channels, height, width)} look channels last"
        hint = f"{looks}, but (channels, height, width) is expected"
        warnings.warn(f"{hint}: DataLoader makes tensors of arrays (height, width, channels) too", stacklevel=6)


def _is_pil(item: Any) -> bool:
    return hasattr(item, "getbands")


def as_array(x: torch.Tensor) -> NDArray[Any]:
    """The tensor as a NumPy array; bfloat16, which NumPy does not have, becomes float32."""
    x = x.detach().cpu()
    array: NDArray[Any] = (x.float() if x.dtype == torch.bfloat16 else x).numpy()
    return array
