"""Where trials run: the checked arguments `executor`, `device`, `devices` and `per_trial`."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import torch

from morphnas.run.cluster import check_reachable, import_ray, ray_executor
from morphnas.run.executors import SerialExecutor, process_executor
from morphnas.run.jobs import Executor
from morphnas.train.data import Examples, Task

if TYPE_CHECKING:
    from morphnas.estimators.base import ImageEstimator


@dataclass(frozen=True)
class Place:
    """Where trials run: in this process, in worker processes, or on a Ray cluster.

    device: of this process. workers: device of each worker process; empty: no worker processes. ray: whether trials run
    on a Ray cluster. address: of the cluster; None: a private one. max_workers: on the cluster; None: as many as it has
    room for. cpus, gpus: what each trial takes on the cluster.
    """

    device: torch.device
    workers: tuple[torch.device, ...] = ()
    ray: bool = False
    address: str | None = None
    max_workers: int | None = None
    cpus: float = 1
    gpus: float = 0

    @staticmethod
    def of(estimator: ImageEstimator) -> Place:
        """The place that an estimator's arguments mean.

        ValueError that names an invalid argument; ImportError without Ray, ConnectionError without a cluster.
        """
        kind, devices, share = estimator.executor, estimator.devices, estimator.per_trial
        if kind is not None and not (isinstance(kind, str) and (kind in ("process", "ray", "auto") or ":" in kind)):
            names = 'None, "process", "ray", or the address of a Ray cluster ("auto", "host:port", "ray://host:port")'
            raise ValueError(f"executor must be {names}, not {kind!r}")
        named = tuple(devices) if isinstance(devices, Sequence) and not isinstance(devices, str) else ()
        count = devices if is_positive_int(devices) else None
        if devices is not None and not (named or count):
            raise ValueError(f"devices must be None, a positive integer or a list of devices, not {devices!r}")
        is_number = isinstance(share, (int, float, np.number)) and not isinstance(share, bool)
        if share is not None and not (is_number and 0 < share < math.inf):
            raise ValueError(f"per_trial must be None or a positive number, of CPUs or GPUs, not {share!r}")
        if kind is None and devices is not None:
            raise ValueError('devices is for executor="process" or "ray"; otherwise use device')
        if kind in (None, "process") and share is not None:
            raise ValueError('per_trial is for a Ray cluster: executor="ray" or its address')
        if kind == "process":
            workers = tuple(map(torch_device, named)) or _worker_devices(torch_device(estimator.device), count)
            return Place(workers[0] if estimator.device is None else torch_device(estimator.device), workers)
        device = torch_device(estimator.device)
        if kind is None:
            return Place(device)
        if named:
            raise ValueError(
                "on a Ray cluster, which knows its own devices, devices must be None or a number of workers"
            )
        import_ray()
        address = None if kind == "ray" else kind
        if address is not None:
            _check_address(address)
        share, gpu = 1 if share is None else float(share), device.type == "cuda"
        return Place(device, (), True, address, count, 1 if gpu else share, share if gpu else 0)

    @property
    def uses_other_processes(self) -> bool:
        """Whether trials run in other processes."""
        return bool(self.workers) or self.ray

    @property
    def parallel_trials(self) -> int:
        """Number of trials at a time; on a cluster without `max_workers`, whose size is not known yet, 2."""
        return len(self.workers) or (self.max_workers or 2 if self.ray else 1)

    @property
    def shares_gpu(self) -> bool:
        """Whether several trials run on one GPU at a time."""
        gpus = [(device.type, device.index or 0) for device in self.workers if device.type != "cpu"]
        return len(set(gpus)) < len(gpus) or 0 < self.gpus < 1

    @property
    def shutdown_seconds(self) -> float:
        """Seconds that it takes to shut the workers down."""
        return 2.0 if self.ray else 0.0

    @property
    def threads(self) -> int | None:
        """Threads of each worker on a CPU that several may share; None: no limit."""
        if self.ray:
            return max(1, int(self.cpus))
        on_cpu = [device for device in self.workers if device.type == "cpu"]
        return min(torch.get_num_threads(), max(1, cores() // len(on_cpu))) if on_cpu else None

    def executor(self, task: Task, all_examples: Examples | None, threads: int, folder: Path) -> Executor:
        """The executor for the trials of a search. threads, folder: of worker processes, see `process_executor`."""
        if self.ray:
            return self.final(task, all_examples)
        if not self.workers:
            return SerialExecutor(task, all_examples)
        return process_executor(task, self.workers, threads, folder)

    def final(self, task: Task, all_examples: Examples | None) -> Executor:
        """The executor for the final trainings, one at a time: this process, or the cluster."""
        if not self.ray:
            return SerialExecutor(task, all_examples)
        shares: dict[str, Any] = {"workers": self.max_workers, "cpus": self.cpus, "gpus": self.gpus}
        return ray_executor(task, all_examples, address=self.address, **shares)


def cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _worker_devices(device: torch.device, count: int | None) -> tuple[torch.device, ...]:
    """A device of that kind for each of `count` workers; None: one for each GPU, or for each core of the CPU."""
    if device.type == "cpu":
        return (device,) * (cores() if count is None else int(count))
    available = torch.cuda.device_count() if device.index is None else 1
    if count is not None and count > available:
        raise ValueError(f"devices={count} are not available: torch sees {available} {str(device)!r} device(s)")
    if device.index is not None:
        return (device,)
    return tuple(torch.device("cuda", i) for i in range(count or available))


def _check_address(address: str) -> None:
    try:
        check_reachable(address)
    except ValueError:
        raise ValueError(
            f"executor {address!r} is not the address of a Ray cluster, such as host:port or ray://host:port"
        ) from None


def is_positive_int(value: object) -> TypeGuard[int]:
    """Whether a value is a positive integer, of Python or NumPy."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and int(value) > 0


def torch_device(device: str | torch.device | None) -> torch.device:
    """The device (None: a GPU if there is one); ValueError if it is unknown or not available."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        parsed = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f'device must be "cpu", "cuda" or "cuda:<number>", not {device!r}: {error}') from None
    if parsed.type == "cuda" and (not torch.cuda.is_available() or (parsed.index or 0) >= torch.cuda.device_count()):
        raise ValueError(f"device {device!r} is not available: torch sees {torch.cuda.device_count()} CUDA devices")
    return parsed
