"""Read image files with Pillow, in threads: from folders with a sub-folder per class, or listed in a CSV file."""

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

_ORIENTATION, _TRANSPOSED = 0x0112, (5, 6, 7, 8)
"""The EXIF tag of the orientation, and its values for which width and height are exchanged."""
SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "eval", "evaluation", "dev"}
"""Folder names that are splits of a data set rather than classes."""
_NOT_IMAGES = {".bufr", ".eps", ".fit", ".fits", ".grib", ".h5", ".hdf", ".mpeg", ".mpg", ".pdf", ".ps"}
"""Suffixes registered with Pillow for files that usually are not images, or that it cannot read."""


@dataclass(frozen=True, eq=False)
class Files:
    """Image files that are decoded when sliced: (h, w) if grey, else (h, w, 3), upright by their EXIF orientation.

    A file that cannot be read raises ValueError with its name.
    """

    paths: Sequence[Path]
    parallel: bool = True

    @cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes of the images, from the file headers only."""
        return self._map(_upright_shape, self.paths)

    def __getitem__(self, part: slice) -> list[NDArray[Any]]:
        return self._map(_upright_pixels, self.paths[part])

    def _map(self, function: Callable[[Any], T], paths: Iterable[Path]) -> list[T]:
        """Apply a function to the opened images, in threads."""
        pillow = _pillow()

        def read(path: Path) -> T:
            try:
                with pillow.open(path) as image:
                    return function(image)
            except Exception as error:  # decoders raise errors of many kinds
                raise ValueError(f"{str(path)!r} cannot be read as an image: {error}") from error

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1) if self.parallel else 1) as threads:
            return list(threads.map(read, paths))


def pixels(image: Any) -> NDArray[Any]:
    """A PIL image as an array (h, w) if it is grey, else (h, w, 3), without alpha."""
    return np.asarray(image.convert(_mode(image)))


def _upright_pixels(image: Any) -> NDArray[Any]:
    """The `pixels` of an image after applying its EXIF orientation."""
    from PIL import ImageOps

    return pixels(ImageOps.exif_transpose(image))


def _upright_shape(image: Any) -> tuple[int, ...]:
    """The shape of `_upright_pixels`, without decoding."""
    size = (image.height, image.width)
    size = size[::-1] if image.getexif().get(_ORIENTATION) in _TRANSPOSED else size
    return (*size, 3) if _mode(image) == "RGB" else size


def _mode(image: Any) -> str:
    """The Pillow mode an image is converted to: L, RGB, or its own if it has 16 or 32 bits per pixel."""
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


def _walk(folder: Path, parents: tuple[Path, ...]) -> Iterator[Path]:
    """All files and folders below a folder, following links except those to a folder that contains them."""
    real = folder.resolve()
    for file in () if real in parents else folder.iterdir():
        if not file.name.startswith(".") and file.name != "__MACOSX":
            yield file
            if file.is_dir():
                yield from _walk(file, (*parents, real))


def image_folder(path: str | os.PathLike[str]) -> tuple[Files, list[str] | None]:
    """The images below a folder, sorted by path, and their classes: the names of its sub-folders, None without any.

    Links are followed; hidden files, `__MACOSX` folders and files without an image suffix are skipped. Raises
    ValueError if there are no images at all or none in a sub-folder, if there are images beside the sub-folders, or if
    the sub-folders are splits (train, test, ...) with sub-folders of their own rather than classes.
    """
    root = user_path(path)
    if not root.is_dir():
        raise ValueError(f"{str(root)!r} is not a folder of images")
    pillow = _pillow()
    suffixes = {suffix for suffix, kind in pillow.registered_extensions().items() if kind in pillow.OPEN} - _NOT_IMAGES
    below = sorted(_walk(root, ()))
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
        largest = str(root / max(set(labels), key=labels.count))
        names = ", ".join(sorted(set(labels)))
        hint = f"give one of them, as {largest!r}"
        raise ValueError(f"{str(root)!r} holds parts of a data set ({names}), not classes: {hint}")
    if empty := {file.name for file in below if file.is_dir() and file.parent == root} - set(labels):
        raise ValueError(f"the folder {str(root / min(empty))!r} holds no images")
    return Files(images), labels


def load_image_dataset(
    csv_file_path: str | os.PathLike[str], images_path: str | os.PathLike[str], parallel: bool = True
) -> tuple[NDArray[Any] | list[NDArray[Any]], NDArray[np.str_]]:
    """Read the images and labels listed in a CSV file with a header line, whose columns are file name and label.

    Parameters
    ----------
    csv_file_path : str or Path
        The CSV file, in UTF-8. Further columns are ignored.
    images_path : str or Path
        The folder that the file names are relative to.
    parallel : bool
        Read the images in threads.

    Returns
    -------
    x : ndarray or list of ndarray
        Images (n, h, w), or (n, h, w, 3) if they are in colour; a list if their shapes differ, which `fit` accepts too.
    y : ndarray
        Labels (n,), strings.

    Raises
    ------
    ValueError
        If the CSV file or an image cannot be read, or a row has no label; it names the row or the image.
    OSError
        If the CSV file cannot be opened.
    ImportError
        If Pillow is not installed.
    """
    files, _, labels = images_in_csv(csv_file_path, images_path, parallel)
    images = files[:]
    same = len({image.shape for image in images}) == 1
    return np.stack(images) if same else images, np.array(labels)


def images_in_csv(
    csv_file_path: str | os.PathLike[str],
    images_path: str | os.PathLike[str],
    parallel: bool = True,
    labelled: bool = True,
) -> tuple[Files, list[str], list[str]]:
    """The image files listed in a CSV file, their names as listed, and their labels (empty unless `labelled`)."""
    try:
        with user_path(csv_file_path).open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, skipinitialspace=True)
            rows = [(i, row) for i, row in enumerate(lines, start=1) if row]
    except (csv.Error, UnicodeError) as error:
        raise ValueError(f"{str(csv_file_path)!r} cannot be read as CSV: {error}") from error
    if len(rows) < 2:
        raise ValueError(f"{str(csv_file_path)!r} lists no images: its first row is read as the header")
    (_, header), *rows = rows
    root = user_path(images_path)
    if (root / header[0]).is_file():
        text = f"the first row of {str(csv_file_path)!r} is read as the header, though it names an image: {header}"
        warnings.warn(text, stacklevel=3)
    for i, row in rows if labelled else ():
        if len(row) < 2 or not row[1].strip():
            raise ValueError(
                f"{str(csv_file_path)!r}, row {i}: a file name and a label are needed, there is only {row}"
            )
    names = [row[0] for _, row in rows]
    files = Files([root / name for name in names], parallel)
    return files, names, [row[1] for _, row in rows] if labelled else []
