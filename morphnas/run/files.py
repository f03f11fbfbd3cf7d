"""Reading and writing the files of a run: writes are atomic, and the contents of files are not trusted.

Files are JSON of bounded size and depth, or safetensors: neither can execute code. Only regular files are opened, so
that reading never blocks on a pipe, and none outside the run's folder that a link inside it points to.
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
"""Largest size in bytes of the JSON header of a safetensors file."""


class RunError(ValueError):
    """A run, or a file or network of it, does not exist or cannot be used, read or written."""


@contextlib.contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the body into a RunError that names the path."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}") from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: at any moment it holds either the old or the new content. RunError if that fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise RunError(f"{path} cannot be written: {error.strerror or error}") from error


def _sync_folder(path: Path) -> None:
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """The contents of a file; RunError, which names it, unless it is a regular file of at most `max_bytes`."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise RunError(f"{path} cannot be read: it is not a file")
        if status.st_size > max_bytes:
            raise RunError(f"{path} is too large: {status.st_size:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}") from error


def check_inside(path: Path, folder: Path) -> Path:
    """The path itself; RunError if links make it point outside the folder."""
    try:
        if path.resolve().is_relative_to(folder.resolve()):
            return path
    except (OSError, RuntimeError) as error:  # links in a circle
        raise RunError(f"{path} cannot be read: {error}") from error
    raise RunError(f"{path} points outside {folder}, so it is not read")


# -- JSON


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    write_bytes(path, json.dumps(data, indent=1, allow_nan=False).encode())


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; RunError, which names the file, if it cannot be read, holds none, or is too large or
    nested too deeply."""
    content = read_bytes(path, MAX_JSON_BYTES)
    try:
        data = parse_json(content)
    except ValueError as error:
        raise RunError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise RunError(f"{path} is not a JSON object")
    if _deeper_than(MAX_DEPTH, data):
        raise RunError(f"{path} is nested more than {MAX_DEPTH} deep")
    return data


def parse_json(data: bytes | str) -> Any:
    """A JSON value; ValueError for text that is not JSON, contains NaN or Infinity, is nested too deeply, or is not
    UTF-8.

    Decoded here, since `json.loads` detects other encodings in bytes and imports code for them.
    """
    try:
        return json.loads(data if isinstance(data, str) else data.decode(), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _refuse_constant(word: str) -> float:
    raise ValueError(f"{word} is not JSON")


def _deeper_than(max_depth: int, data: object) -> bool:
    """Whether objects and lists are nested more than `max_depth` levels deep."""
    level: list[Any] = [data]
    for _ in range(max_depth):
        inner: list[Any] = []
        for value in level:
            items = value.values() if isinstance(value, dict) else value
            inner += [item for item in items if isinstance(item, (dict, list))]
        if not inner:
            return False
        level = inner
    return True


# -- tensors


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file. metadata: text values in its header."""
    write_bytes(path, save(dict(tensors), metadata=None if metadata is None else dict(metadata)))


def read_tensors(path: Path, max_bytes: int = 2**40) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and metadata of a safetensors file; RunError if it is none, or larger than `max_bytes`.

    Read as a whole instead of memory-mapped, so that later changes of the file have no effect, and a disk error raises
    an exception instead of a signal.
    """
    data = read_bytes(path, max_bytes)
    try:
        length = int.from_bytes(data[:8], "little")
        if not 0 < length <= min(MAX_HEADER, len(data) - 8):
            raise ValueError(f"its header has {length:,} bytes, the file {len(data):,}")
        header = parse_json(data[8 : 8 + length])
        metadata = header.get("__metadata__") or {}
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its header has metadata other than text")
        return load(data), metadata
    except Exception as error:  # safetensors raises exceptions of its own, which are not public API
        raise RunError(f"{path} holds no tensors: {error}") from error


def read_weights(path: Path, graph: Graph) -> Weights:
    """The graph's weights from a safetensors file; RunError if they cannot be read or do not fit the graph."""
    shapes = graph.weight_shapes
    max_bytes = 2**20 + sum(256 + len(name) + 8 * torch.Size(shape).numel() for name, shape in shapes.items())
    try:
        weights, _ = read_tensors(path, max_bytes)
        check_weights(graph, weights)
        for name, value in weights.items():
            is_counter = name.endswith(".num_batches_tracked")
            if value.dtype not in ((torch.int64,) if is_counter else (torch.float32, torch.float64)):
                raise ValueError(f"{name} is of {value.dtype}")
    except ValueError as error:
        raise RunError(f"{path} does not hold this network's weights: {error}") from error
    return weights
