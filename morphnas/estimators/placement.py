"""Where trials run: the arguments `executor`, `devices` and `per_trial`, checked."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import torch

from morphnas.run.cluster import found, ray_executor, reachable
from morphnas.run.executors import SerialExecutor, process_executor
from morphnas.run.jobs import Executor
from morphnas.train.data import Examples, Task

if TYPE_CHECKING:
    from morphnas.estimators.base import ImageEstimator


@dataclass(frozen=True)
class Place:
    """device: that this process computes on. workers: devices of processes; none: trials run in this process.

    ray: whether they run on a Ray cluster, at the address (None: a private one), at most so many at a time, each with
    a share of GPUs or else of CPUs.
    """

    device: torch.device
    workers: tuple[torch.device, ...] = ()
    ray: bool = False
    address: str | None = None
    most: int | None = None
    cpus: float = 1
    gpus: float = 0

    @staticmethod
    def of(estimator: ImageEstimator) -> Place:
        """ValueError that names the argument that cannot be used; ImportError without Ray, ConnectionError without a
        cluster."""
        kind, devices, share = estimator.executor, estimator.devices, estimator.per_trial
        if kind is not None and not (isinstance(kind, str) and (kind in ("process", "ray", "auto") or ":" in kind)):
            names = 'None, "process", "ray", or the address of a Ray cluster ("auto", "host:port", "ray://host:port")'
            raise ValueError(f"executor must be {names}, not {kind!r}")
        named = tuple(devices) if isinstance(devices, Sequence) and not isinstance(devices, str) else ()
        most = devices if is_positive(devices) else None
        if devices is not None and not (named or most):
            raise ValueError(f"devices must be None, a positive integer or a list of devices, not {devices!r}")
        number = isinstance(share, (int, float, np.number)) and not isinstance(share, bool)
        if share is not None and not (number and 0 < share < math.inf):
            raise ValueError(f"per_trial must be None or a positive number, of CPUs or GPUs, not {share!r}")
        if kind is None and devices is not None:
            raise ValueError('devices is for executor="process" or "ray"; otherwise use device')
        if kind in (None, "process") and share is not None:
            raise ValueError('per_trial is for a Ray cluster: executor="ray" or its address')
        if kind == "process":
            workers = tuple(map(torch_device, named)) or _workers(torch_device(estimator.device), most)
            return Place(workers[0] if estimator.device is None else torch_device(estimator.device), workers)
        device = torch_device(estimator.device)
        if kind is None:
            return Place(device)
        if named:
            raise ValueError(
                "on a Ray cluster, which knows its own devices, devices must be None or a number of workers"
            )
        found()
        address = None if kind == "ray" else kind
        if address is not None:
            _check(address)
        share, gpu = 1 if share is None else float(share), device.type == "cuda"
        return Place(device, (), True, address, most, 1 if gpu else share, share if gpu else 0)

    @property
    def apart(self) -> bool:
        """Whether trials run in other processes."""
        return bool(self.workers) or self.ray

    @property
    def at_a_time(self) -> int:
        """Trials at a time, as far as is known before a cluster is asked: then at least two."""
        return len(self.workers) or (self.most or 2 if self.ray else 1)

    @property
    def shared(self) -> bool:
        """Whether a GPU has several trials at a time."""
        several = [(device.type, device.index or 0) for device in self.workers if device.type != "cpu"]
        return len(set(several)) < len(several) or 0 < self.gpus < 1

    @property
    def parting(self) -> float:
        """Seconds that it takes to let go of the workers at the end."""
        return 2.0 if self.ray else 0.0

    @property
    def threads(self) -> int | None:
        """That a worker may have on a CPU which it shares with others; None: as many as there are."""
        if self.ray:
            return max(1, int(self.cpus))
        shared = [device for device in self.workers if device.type == "cpu"]
        return min(torch.get_num_threads(), max(1, cores() // len(shared))) if shared else None

    def executor(self, task: Task, everything: Examples | None, threads: int, folder: Path) -> Executor:
        """What runs the trials of a search."""
        if self.ray:
            return self.final(task, everything)
        if not self.workers:
            return SerialExecutor(task, everything)
        return process_executor(task, self.workers, threads, folder)

    def final(self, task: Task, everything: Examples | None) -> Executor:
        """What runs the final trainings, one at a time: they have this machine for themselves, or the cluster."""
        if not self.ray:
            return SerialExecutor(task, everything)
        shares: dict[str, Any] = {"workers": self.most, "cpus": self.cpus, "gpus": self.gpus}
        return ray_executor(task, everything, address=self.address, **shares)


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _workers(device: torch.device, devices: int | None) -> tuple[torch.device, ...]:
    """As many devices of that kind as are asked for, or as there are: a CPU stands for each of its cores."""
    if device.type == "cpu":
        return (device,) * (cores() if devices is None else int(devices))
    there = torch.cuda.device_count() if device.index is None else 1
    if devices is not None and devices > there:
        raise ValueError(f"devices={devices} are not available: torch sees {there} {str(device)!r} device(s)")
    if device.index is not None:
        return (device,)
    return tuple(torch.device("cuda", i) for i in range(devices or there))


def _check(address: str) -> None:
    try:
        reachable(address)
    except ValueError:
        raise ValueError(
            f"executor {address!r} is not the address of a Ray cluster, such as host:port or ray://host:port"
        ) from None


def is_positive(value: object) -> TypeGuard[int]:
    """Whether it is a positive whole number, NumPy's too."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and int(value) > 0


def torch_device(device: str | torch.device | None) -> torch.device:
    """The device meant (None: a GPU if there is one); ValueError when it is not there."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f'device must be "cpu", "cuda" or "cuda:<number>", not {device!r}: {error}') from None
    if found.type == "cuda" and (not torch.cuda.is_available() or (found.index or 0) >= torch.cuda.device_count()):
        raise ValueError(f"device {device!r} is not available: torch sees {torch.cuda.device_count()} CUDA devices")
    return found
