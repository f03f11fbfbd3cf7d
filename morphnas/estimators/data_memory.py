"""Where examples are stored: in memory, or in a memory-mapped file if they are too large for it."""

from __future__ import annotations

import errno
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from morphnas.train.data import Examples

log = logging.getLogger("morphnas")

FREE_MEMORY_SHARE = 0.5
"""Share of the free memory that the examples may take, and that the trainings may take."""

_CPU = torch.device("cpu")
_ALIGNED = 64


@dataclass(frozen=True)
class DataMemory:
    """How much memory examples may take, and where the files are for those that need more.

    memory: bytes, both of main memory and of a GPU; None: half of what is free when they are stored. folder: where
    files are created, or in its nearest parent that exists; None: the system's temporary folder.
    """

    memory: int | None = None
    folder: Path | None = None

    def byte_limit(self, device: torch.device = _CPU) -> float:
        """How many bytes examples may take on the device."""
        return FREE_MEMORY_SHARE * free_memory(device) if self.memory is None else self.memory

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor in memory or, if too large, in a mapped file; OSError if the disk is too full."""
        size = math.prod(shape) * dtype.itemsize
        if size <= self.byte_limit():
            return torch.empty(tuple(shape), dtype=dtype)
        return self._file(size).view(dtype).reshape(tuple(shape))

    def to_file(self, arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Move the values of arrays to a mapped file; arrays of objects stay as they are."""
        sizes = [0 if array.dtype.hasobject else array.nbytes for array in arrays]
        if not any(sizes):
            return list(arrays)
        ends = [0]
        for size in sizes:
            ends.append(ends[-1] + math.ceil(size / _ALIGNED) * _ALIGNED)
        whole, moved = self._file(ends[-1]).numpy(), list(arrays)
        for i, (array, start, size) in enumerate(zip(arrays, ends, sizes, strict=False)):
            if size:
                moved[i] = whole[start : start + size].view(array.dtype).reshape(array.shape)
                moved[i][...] = array
        return moved

    def to_device(self, examples: Examples, device: torch.device) -> Examples:
        """Move the examples to the device; if they do not fit, x stays where it is and batches are moved one by one."""
        return examples.to(device, x=examples.x.nbytes <= self.byte_limit(device))

    @property
    def disk(self) -> Path:
        """The folder in which files are created: `folder` or its nearest existing parent, or the temporary folder."""
        folder = Path(tempfile.gettempdir()) if self.folder is None else self.folder.absolute()
        return next(parent for parent in (folder, *folder.parents) if parent.is_dir())

    def _file(self, size: int) -> Tensor:
        """A tensor (size,) uint8 in a mapped file that is unlinked at once, so that it cannot outlive the tensor.

        OSError if the disk has no space for it.
        """
        folder = self.disk
        if size > (free := shutil.disk_usage(folder).free):
            hint = "path, or the environment's TMPDIR without one, says where"
            words = f"examples that do not fit into memory need {size:,} bytes on disk, {free:,} are free ({hint})"
            raise OSError(errno.ENOSPC, words, str(folder))
        log.info("examples of %.2f GB are kept in a file in %s while they are needed", size / 1e9, folder)
        with tempfile.NamedTemporaryFile(prefix="morphnas-", dir=folder) as file:
            if hasattr(os, "posix_fallocate"):  # a full disk is an error here, but a signal in a mapped page
                os.posix_fallocate(file.fileno(), 0, size)
            return torch.from_file(file.name, shared=True, size=size, dtype=torch.uint8)


DEFAULT_DATA_MEMORY = DataMemory()


def memory_for(max_memory: int | None, device: torch.device, parallel_trials: int = 1) -> int | None:
    """How many bytes each of `parallel_trials` trainings may take; None: no limit.

    It is `max_memory`, the user's limit for a training, or else, on a CPU, where a process that needs too much may be
    killed, a share of the free memory. A GPU needs no limit: it raises an error when it is out of memory.
    """
    free = math.inf if max_memory is not None or device.type == "cuda" else free_memory()
    return max_memory if free == math.inf else int(FREE_MEMORY_SHARE * free / parallel_trials)


def free_memory(device: torch.device = _CPU, root: Path = Path("/")) -> float:
    """Bytes that this process can still allocate on a device, inf if unknown. root: where /proc and /sys are found."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch's allocator
        return torch.cuda.mem_get_info(device)[0] + cached
    try:
        kilobytes = _counts(root / "proc" / "meminfo")["MemAvailable:"]
    except (OSError, KeyError):
        pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf
        return pages * os.sysconf("SC_PAGE_SIZE") if pages != math.inf else math.inf
    return min(1024 * kilobytes, _free_in_container(root))


def _free_in_container(root: Path) -> float:
    """Bytes that the control groups (version 2) of this process, as of a container, leave it; inf: no limit."""
    left, groups = math.inf, root / "sys" / "fs" / "cgroup"
    try:
        lines = (root / "proc" / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
        own_group = groups / next(line for line in lines if line.startswith("0::"))[3:].lstrip("/")
    except (OSError, StopIteration):
        return left
    for group in (own_group, *own_group.parents):
        try:
            limit = int((group / "memory.max").read_text(encoding="utf-8"))
            used = int((group / "memory.current").read_text(encoding="utf-8"))
            counts = _counts(group / "memory.stat")
        except (OSError, ValueError):  # no limit: "max"
            continue
        left = min(left, limit - used + counts.get("active_file", 0) + counts.get("inactive_file", 0))
    return max(0, left)


def _counts(path: Path) -> dict[str, int]:
    """Parse a file of lines "name number ..."."""
    lines = map(str.split, path.read_text(encoding="utf-8").splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1}
