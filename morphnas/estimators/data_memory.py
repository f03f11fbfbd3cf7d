"""Where examples are held: in memory, or in a file, mapped, where they would take too much of it."""

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

SHARE = 0.5
"""Of the free memory, what examples may take, and what a training may."""

_CPU = torch.device("cpu")
_ALIGNED = 64


@dataclass(frozen=True)
class Room:
    """What examples may take, and where they are when that is not enough.

    memory: bytes, of main memory and of a GPU's; None: half of what is free when they come. folder: one whose disk
    takes files, as it is, or as the nearest of its parents that exists; None: the system's temporary one.
    """

    memory: int | None = None
    folder: Path | None = None

    def most(self, device: torch.device = _CPU) -> float:
        """Bytes that examples may take on the device."""
        return SHARE * free_memory(device) if self.memory is None else self.memory

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor to write examples to: in memory, or else in a file. OSError where that does not fit on its disk."""
        size = math.prod(shape) * dtype.itemsize
        if size <= self.most():
            return torch.empty(tuple(shape), dtype=dtype)
        return self._file(size).view(dtype).reshape(tuple(shape))

    def filed(self, arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """The arrays with their values in a file instead of memory; those of objects as they are."""
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

    def placed(self, examples: Examples, device: torch.device) -> Examples:
        """The examples on the device; where they do not fit there, x stays, and batches are moved one by one."""
        return examples.to(device, x=examples.x.nbytes <= self.most(device))

    @property
    def disk(self) -> Path:
        """The folder that files are made in: what there is of `folder`, or the system's temporary one."""
        folder = Path(tempfile.gettempdir()) if self.folder is None else self.folder.absolute()
        return next(there for there in (folder, *folder.parents) if there.is_dir())

    def _file(self, size: int) -> Tensor:
        """A tensor (size,) uint8 in a file that has no name any more, so that it goes with the tensor, come what may.

        OSError where it does not fit on the disk.
        """
        folder = self.disk
        if size > (free := shutil.disk_usage(folder).free):
            hint = "path, or the environment's TMPDIR without one, says where"
            words = f"examples that memory is too small for need {size:,} bytes on disk, {free:,} are free ({hint})"
            raise OSError(errno.ENOSPC, words, str(folder))
        log.info("examples of %.2f GB are kept in a file in %s while they are needed", size / 1e9, folder)
        with tempfile.NamedTemporaryFile(prefix="morphnas-", dir=folder) as file:
            if hasattr(os, "posix_fallocate"):  # a disk that gets full is an error here, in a mapped page a signal
                os.posix_fallocate(file.fileno(), 0, size)
            return torch.from_file(file.name, shared=True, size=size, dtype=torch.uint8)


ROOM = Room()


def memory_for(own: int | None, device: torch.device, at_a_time: int = 1) -> int | None:
    """Bytes that each of so many trainings should take at most: the user's own limit, else on a CPU, where a process
    that wants more than there is may be killed, a share of what is free. None: a GPU says when there is too little."""
    free = math.inf if own is not None or device.type == "cuda" else free_memory()
    return own if free == math.inf else int(SHARE * free / at_a_time)


def free_memory(device: torch.device = _CPU, root: Path = Path("/")) -> float:
    """Bytes that a program can still have on a device, as far as the system says. root: of its files, for the CPU."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, to be used again
        return torch.cuda.mem_get_info(device)[0] + kept
    try:
        kilobytes = _counts(root / "proc" / "meminfo")["MemAvailable:"]
    except (OSError, KeyError):
        pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf
        return pages * os.sysconf("SC_PAGE_SIZE") if pages != math.inf else math.inf
    return min(1024 * kilobytes, _left_to_the_container(root))


def _left_to_the_container(root: Path) -> float:
    """What this process's control groups (version 2) leave it: less than all where it is in a container or a job."""
    left, groups = math.inf, root / "sys" / "fs" / "cgroup"
    try:
        lines = (root / "proc" / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
        own = groups / next(line for line in lines if line.startswith("0::"))[3:].lstrip("/")
    except (OSError, StopIteration):
        return left
    for group in (own, *own.parents):
        try:
            most = int((group / "memory.max").read_text(encoding="utf-8"))
            used = int((group / "memory.current").read_text(encoding="utf-8"))
            counts = _counts(group / "memory.stat")
        except (OSError, ValueError):  # it has no limit: "max"
            continue
        left = min(left, most - used + counts.get("active_file", 0) + counts.get("inactive_file", 0))
    return max(0, left)


def _counts(path: Path) -> dict[str, int]:
    """A file of lines "name number ..."."""
    lines = map(str.split, path.read_text(encoding="utf-8").splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1}
