"""Files of a run: written so that they are whole at any moment, read without trust in what they hold.

JSON of bounded size and depth, and safetensors: neither can execute code. Only regular files are opened, so that
nothing waits for a pipe, and none that a link inside the folder puts outside of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from morphnas.graph import Graph, Weights
from morphnas.graph.module import check_weights

MAX_JSON_BYTES = 32 * 2**20
MAX_DEPTH = 64
MAX_HEADER = 32 * 2**20
"""Bytes of the JSON that says where a safetensors file has which tensor."""


class RunError(ValueError):
    """A folder is not the run that was expected, cannot be used, or holds a file that cannot be read."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """RunError, which names the path, where what is done inside fails for its disk or its folder."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}") from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that at any moment the old or the new content is there, whole; RunError when that fails."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise RunError(f"{path} cannot be written: {error.strerror or error}") from error


def _sync_folder(path: Path) -> None:
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_bytes(path: Path, most: int) -> bytes:
    """What a regular file of at most so many bytes holds; RunError, with the file's name, when it is none."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise RunError(f"{path} cannot be read: it is not a file")
        if about.st_size > most:
            raise RunError(f"{path} is too large: {about.st_size:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}") from error


def inside(path: Path, folder: Path) -> Path:
    """The path; RunError where links lead it out of the folder."""
    try:
        if path.resolve().is_relative_to(folder.resolve()):
            return path
    except (OSError, RuntimeError) as error:  # links in a circle
        raise RunError(f"{path} cannot be read: {error}") from error
    raise RunError(f"{path} leads out of {folder}, so it is not read")


# -- JSON


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    write_bytes(path, json.dumps(data, indent=1, allow_nan=False).encode())


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; RunError, with the file's name, when there is none."""
    data = read_bytes(path, MAX_JSON_BYTES)
    try:
        found = parse_json(data)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise RunError(f"{path} is not a JSON object")
    if _deeper(found, MAX_DEPTH):
        raise RunError(f"{path} is nested more than {MAX_DEPTH} deep")
    return found


def parse_json(data: bytes | str) -> Any:
    """A JSON value; ValueError for text that is none, or not in UTF-8: other encodings are Python's to find out and to
    import."""
    return json.loads(data if isinstance(data, str) else data.decode(), parse_constant=_refused)


def _refused(word: str) -> float:
    raise ValueError(f"{word} is not JSON")


def _deeper(data: object, most: int) -> bool:
    """Whether objects and lists lie in each other for more than so many levels."""
    level: list[Any] = [data]
    for _ in range(most):
        inner: list[Any] = []
        for value in level:
            items = value.values() if isinstance(value, dict) else value
            inner += [item for item in items if isinstance(item, (dict, list))]
        if not inner:
            return False
        level = inner
    return True


# -- tensors


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> None:
    """A safetensors file; about: text that its header holds."""
    write_bytes(path, save(dict(tensors), metadata=None if about is None else dict(about)))


def read_tensors(path: Path, most: int = 2**40) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file of at most so many bytes, and the text in its header; RunError when it is none.

    Read as a whole instead of being mapped: what happens to the file later is of no matter, and an error of the disk is
    an error instead of a signal.
    """
    data = read_bytes(path, most)
    try:
        length = int.from_bytes(data[:8], "little")
        if not 0 < length <= min(MAX_HEADER, len(data) - 8):
            raise ValueError(f"its header has {length:,} bytes, the file {len(data):,}")
        header = parse_json(data[8 : 8 + length])
        about = header.get("__metadata__") or {}
        if not all(isinstance(value, str) for value in about.values()):
            raise ValueError("its header holds something else than text")
        return load(data), about
    except Exception as error:  # safetensors raises its own kinds, which are no public API
        raise RunError(f"{path} holds no tensors: {error}") from error


def read_weights(path: Path, graph: Graph) -> Weights:
    """The graph's weights from a safetensors file; RunError when they cannot be read or are not the graph's."""
    wanted = graph.weight_shapes
    most = 2**20 + sum(256 + len(name) + 8 * torch.Size(shape).numel() for name, shape in wanted.items())
    try:
        weights, _ = read_tensors(path, most)
        check_weights(graph, weights)
        for name, value in weights.items():
            whole = name.endswith(".num_batches_tracked")
            if value.dtype not in ((torch.int64,) if whole else (torch.float32, torch.float64)):
                raise ValueError(f"{name} is of {value.dtype}")
    except ValueError as error:
        raise RunError(f"{path} does not hold this network's weights: {error}") from error
    return weights
