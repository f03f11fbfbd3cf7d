"""Images in files, decoded by Pillow in threads: folders with a sub-folder per class, and lists in CSV files."""

from __future__ import annotations

import csv
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from morphnas.run.extras import extra_missing
from morphnas.run.store import user_path

T = TypeVar("T")

_ORIENTATION, _LYING = 0x0112, (5, 6, 7, 8)
"""The EXIF tag that says how an image is to be turned, and the values for which its sides change places."""
SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "eval", "evaluation", "dev"}
"""Names of folders that hold a part of a data set."""
_NO_IMAGES = {".bufr", ".eps", ".fit", ".fits", ".grib", ".h5", ".hdf", ".mpeg", ".mpg", ".pdf", ".ps"}
"""Suffixes that Pillow knows, of files which mostly are none, or which it cannot read."""


@dataclass(frozen=True, eq=False)
class Files:
    """Images that are decoded when a slice of them is asked for: (h, w) where they are grey, else (h, w, 3), upright.

    ValueError that names the file for one that cannot be read.
    """

    paths: Sequence[Path]
    parallel: bool = True

    @cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """The images' shapes, from the heads of the files alone."""
        return self._each(_shape_turned, self.paths)

    def __getitem__(self, part: slice) -> list[NDArray[Any]]:
        return self._each(_turned, self.paths[part])

    def _each(self, what: Callable[[Any], T], paths: Iterable[Path]) -> list[T]:
        pillow = _pillow()

        def read(path: Path) -> T:
            try:
                with pillow.open(path) as image:
                    return what(image)
            except Exception as error:  # whatever a decoder trips over
                raise ValueError(f"{str(path)!r} cannot be read as an image: {error}") from error

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1) if self.parallel else 1) as threads:
            return list(threads.map(read, paths))


def pixels(image: Any) -> NDArray[Any]:
    """A PIL image as (h, w) where it is grey, else as (h, w, 3) without alpha."""
    return np.asarray(image.convert(_mode(image)))


def _turned(image: Any) -> NDArray[Any]:
    """The `pixels` of a file's image as viewers show it: turned as its EXIF orientation says."""
    from PIL import ImageOps

    return pixels(ImageOps.exif_transpose(image))


def _shape_turned(image: Any) -> tuple[int, ...]:
    """The shape of what `_turned` gives, for which nothing is decoded."""
    size = (image.height, image.width)
    size = size[::-1] if image.getexif().get(_ORIENTATION) in _LYING else size
    return (*size, 3) if _mode(image) == "RGB" else size


def _mode(image: Any) -> str:
    """Pillow's word for what an image becomes: 16 and 32 bits a pixel stay."""
    if image.mode in ("1", "L", "LA", "La"):
        return "L"
    mode: str = image.mode
    return mode if mode.startswith(("I", "F")) else "RGB"


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise extra_missing("images in files are read with Pillow", "images") from error
    return Image


def _below(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """All in a folder and its sub-folders, links among them, but no link to a folder that it lies in."""
    real = folder.resolve()
    for file in () if real in above else folder.iterdir():
        if not file.name.startswith(".") and file.name != "__MACOSX":
            yield file
            if file.is_dir():
                yield from _below(file, (*above, real))


def folder(path: str | os.PathLike[str]) -> tuple[Files, list[str] | None]:
    """The images below a folder, sorted by path, and their classes: the names of its sub-folders, None without any.

    Links are followed; hidden files, what macOS adds to archives, and files with no suffix of images are passed over.
    ValueError when there are no images at all, none in a sub-folder, or some beside the sub-folders, or when these are
    not classes, but parts of a data set with sub-folders of their own.
    """
    root = user_path(path)
    if not root.is_dir():
        raise ValueError(f"{str(root)!r} is not a folder of images")
    pillow = _pillow()
    suffixes = {suffix for suffix, kind in pillow.registered_extensions().items() if kind in pillow.OPEN} - _NO_IMAGES
    below = sorted(_below(root, ()))
    images = [file for file in below if file.suffix.lower() in suffixes and file.is_file()]
    if not images:
        raise ValueError(f"the folder {str(root)!r} holds no images")
    loose = [file.name for file in images if file.parent == root]
    if len(loose) == len(images):
        return Files(images), None
    if loose:
        raise ValueError(f"the folder {str(root)!r} must only hold a sub-folder per class, but also holds {loose[0]!r}")
    parts = [file.relative_to(root).parts for file in images]
    labels = [part[0] for part in parts]
    if {name.lower() for name in labels} <= SPLITS and min(map(len, parts)) > 2:
        one = str(root / max(set(labels), key=labels.count))
        found = ", ".join(sorted(set(labels)))
        raise ValueError(f"{str(root)!r} holds parts of a data set ({found}), no classes: give one of them, as {one!r}")
    if empty := {file.name for file in below if file.is_dir() and file.parent == root} - set(labels):
        raise ValueError(f"the folder {str(root / min(empty))!r} holds no images")
    return Files(images), labels


def load_image_dataset(
    csv_file_path: str | os.PathLike[str], images_path: str | os.PathLike[str], parallel: bool = True
) -> tuple[NDArray[Any] | list[NDArray[Any]], NDArray[np.str_]]:
    """Images and labels listed in a CSV file with a header line, whose first two columns are file name and label.

    x: (n, h, w) or (n, h, w, 3) if all images have the same shape, else a list of them, which `fit` takes too. y: (n,)
    strings. parallel: read in threads. ValueError names the line or the file that cannot be read.
    """
    files, _, labels = images_of(csv_file_path, images_path, parallel)
    images = files[:]
    same = len({image.shape for image in images}) == 1
    return np.stack(images) if same else images, np.array(labels)


def images_of(
    csv_file_path: str | os.PathLike[str],
    images_path: str | os.PathLike[str],
    parallel: bool = True,
    labelled: bool = True,
) -> tuple[Files, list[str], list[str]]:
    """The images that a CSV file lists, their names in it, and their labels, none unless asked for."""
    try:
        with user_path(csv_file_path).open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, skipinitialspace=True)
            rows = [(i, row) for i, row in enumerate(lines, start=1) if row]
    except (csv.Error, UnicodeError) as error:
        raise ValueError(f"{str(csv_file_path)!r} cannot be read as CSV: {error}") from error
    if len(rows) < 2:
        raise ValueError(f"{str(csv_file_path)!r} lists no images: its first row is read as the header")
    (_, head), *rows = rows
    root = user_path(images_path)
    if (root / head[0]).is_file():
        words = f"the first row of {str(csv_file_path)!r} is taken for the head, though it names an image: {head}"
        warnings.warn(words, stacklevel=3)
    for i, row in rows if labelled else ():
        if len(row) < 2 or not row[1].strip():
            raise ValueError(
                f"{str(csv_file_path)!r}, row {i}: a file name and a label are needed, there is only {row}"
            )
    names = [row[0] for _, row in rows]
    files = Files([root / name for name in names], parallel)
    return files, names, [row[1] for _, row in rows] if labelled else []
