"""An executor on a Ray cluster: each worker is an actor, which holds the task and is replaced if it dies."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import torch

from morphnas.run.checkpoints import Result
from morphnas.run.executors import SupervisedExecutor, WorkerLost
from morphnas.run.extras import extra_missing
from morphnas.run.jobs import DeviceLost, Job
from morphnas.run.transport import (
    Message,
    deserialise_result,
    run_serialised_job,
    serialise_job,
    task_from_tensors,
    task_to_tensors,
)
from morphnas.train.data import Examples, Task
from morphnas.train.deadline import Stop
from morphnas.train.recipe import Outcome
from morphnas.train.trainer import EachEpoch, load_optimizers

log = logging.getLogger("morphnas")

RETRIES = 2
"""How often a job is run again after its worker was lost, which on a cluster need not be the job's fault, and how often
a connection to a cluster is tried again."""

AUTH_HINT = (
    "from Ray 2.60 on all nodes and this process must agree on tokens: either all have RAY_AUTH_MODE=token and the "
    "same token, or all have RAY_AUTH_MODE=disabled"
)


def ray_executor(
    task: Task,
    all_examples: Examples | None = None,
    *,
    address: str | None = None,
    workers: int | None = None,
    cpus: float = 1,
    gpus: float = 0,
) -> SupervisedExecutor:
    """An executor whose workers are actors on a Ray cluster.

    all_examples: training and held-out examples, for trainings that are not scored; None: those use the training set.
    address: of the cluster, as `ray.init` takes it; None: a private one on this machine, which ends with the executor.
    If this process has joined a cluster already, that one is used.
    workers: most workers; None: as many as the cluster has resources for.
    cpus, gpus: reserved for each worker, possibly fractions; with `gpus`, no CPUs are reserved.

    ImportError without Ray, ConnectionError if the cluster cannot be used, ValueError if it has no resources for a
    worker.
    """
    ray = import_ray()
    disconnect = _connect(ray, address) if not ray.is_initialized() else _stay_connected
    try:
        resources = ray.cluster_resources()
        have, need = (resources.get("GPU", 0), gpus) if gpus else (resources.get("CPU", 0), cpus)
        room = int(have / need + 1e-6)
        if not room:
            kind = "GPUs" if gpus else "CPUs"
            raise ValueError(f"the Ray cluster has {have:g} {kind}, but each trial needs {need:g} of them")
        task_ref = ray.put(_to_arrays(task_to_tensors(task, all_examples)))
    except BaseException:
        disconnect()
        raise
    actor_class = ray.remote(_RemoteWorker).options(
        num_cpus=0 if gpus else cpus, num_gpus=gpus, max_restarts=0, max_concurrency=2
    )
    factories = [lambda: _Actor(ray, actor_class, task_ref, max(1, int(cpus)))] * min(room, workers or room)
    ahead = bool(gpus) or len(factories) > 1
    return SupervisedExecutor(factories, ahead, RETRIES, disconnect)


def _stay_connected() -> None:
    """Does not disconnect: the user's own code joined the cluster."""


def import_ray() -> Any:
    """The module `ray`; ImportError, which says how to install it, if it is missing."""
    try:
        import ray
    except ImportError as error:
        raise extra_missing("trials run on a cluster by Ray", "ray") from error
    return ray


def check_reachable(address: str) -> None:
    """ConnectionError if nothing listens at host:port or ray://host:port, which takes Ray itself minutes to report.

    Addresses without a port, such as "auto", are not checked.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host:
        return
    try:
        socket.create_connection((host, int(port)), 5).close()
    except OSError as error:
        raise ConnectionError(f"no Ray cluster answers at {address}: {error}") from error


def _connect(ray: Any, address: str | None) -> Callable[[], None]:
    """Connect to a cluster; returns the function that disconnects. ConnectionError if that fails.

    Environment variables RAY_* that Ray sets are left as they are, since it reads them from then on.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    where = {"address": address} if address else {"address": "local", "include_dashboard": False}

    def disconnect() -> None:
        with _quiet_ray():
            ray.shutdown()

    def join() -> None:
        """With retries: the process that Ray's client server forks for each client sometimes dies as it starts."""
        for _ in range(RETRIES):
            with suppress(ConnectionAbortedError):
                ray.init(**where, **quiet)
                return
        ray.init(**where, **quiet)

    before = os.environ.get("PYTHONBREAKPOINT")
    try:
        with _quiet_ray():
            if address:
                check_reachable(address)
            join()
    except ConnectionError as error:
        if address and "no Ray cluster" in str(error):
            raise
        raise ConnectionError(f"no Ray cluster answers at {address or 'this machine'}: {error}. {AUTH_HINT}") from error
    except Exception as error:
        raise ConnectionError(
            f"the Ray cluster at {address or 'this machine'} cannot be used: {error}. {AUTH_HINT}"
        ) from error
    finally:
        os.environ.pop("PYTHONBREAKPOINT", None)  # which Ray sets to its own debugger
        if before is not None:
            os.environ["PYTHONBREAKPOINT"] = before
    return disconnect


@contextmanager
def _quiet_ray() -> Iterator[None]:
    """Suppress Ray's warnings and log messages below errors, and restore the SIGTERM handler that Ray replaces."""
    logger, main = logging.getLogger("ray"), threading.current_thread() is threading.main_thread()
    level, handler = logger.level, signal.getsignal(signal.SIGTERM)
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if main:
            signal.signal(signal.SIGTERM, handler)


def _to_arrays(data: dict[str, Any]) -> dict[str, Any]:
    """The data with NumPy arrays instead of tensors: workers on one node share their memory."""

    def array(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(array, value))
        return value.numpy() if isinstance(value, torch.Tensor) else value

    return {name: array(value) for name, value in data.items()}


def _to_tensors(data: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `_to_arrays`."""

    def tensor(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(tensor, value))
        return torch.from_numpy(value) if hasattr(value, "dtype") else value

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # examples are only read
        return {name: tensor(value) for name, value in data.items()}


class _RemoteWorker:
    """The actor on the cluster. It handles two calls at a time: `stop` also gets through while `answer` blocks.

    paths: the driver's `sys.path`, so that the user's modules can be imported if they exist on this node.
    """

    def __init__(self, data: dict[str, Any], threads: int, paths: list[str]) -> None:
        sys.path.extend(path for path in paths if path not in sys.path)
        import ray

        gpu = bool(ray.get_gpu_ids()) and torch.cuda.is_available()
        self._task, self._all_examples = task_from_tensors(_to_tensors(data), torch.device("cuda" if gpu else "cpu"))
        self._threads = threads
        self._messages: SimpleQueue[Message] = SimpleQueue()
        self._stop = Stop()
        load_optimizers()

    def ready(self) -> None:
        """Returns once the actor has been constructed."""

    def begin(self, job: bytes) -> None:
        """Start a job in a thread; `answer` returns its epochs and its result."""
        self._stop = Stop()
        threading.Thread(target=self._run, args=(job, self._stop), daemon=True).start()

    def stop(self) -> None:
        self._stop.requested = True

    def answer(self) -> list[Message]:
        """Block until there is a message; returns all there are."""
        messages = [self._messages.get()]
        while not self._messages.empty():
            messages.append(self._messages.get())
        return messages

    def _run(self, job: bytes, stop: Stop) -> None:
        torch.set_num_threads(self._threads)
        try:
            self._messages.put(run_serialised_job(job, self._task, self._all_examples, self._messages.put, stop))
        except DeviceLost:
            log.exception("the worker ends")
            os._exit(1)  # the worker that replaces it can use the device again


class _Actor:
    """The driver's handle of a `_RemoteWorker`. task_ref: the task in Ray's object store, see `_to_arrays`."""

    def __init__(self, ray: Any, actor_class: Any, task_ref: Any, threads: int) -> None:
        self._ray = ray
        self._actor = actor_class.remote(task_ref, threads, sys.path)
        self._ready = False

    def ready(self) -> None:
        if not self._ready:
            self._call(self._actor.ready)
            self._ready = True

    def run(self, job: Job, each_epoch: EachEpoch | None) -> Result:
        self._actor.begin.remote(serialise_job(replace(job, checkpoint=None)))  # a file on this machine
        while True:
            for message in self._call(self._actor.answer):
                if not isinstance(message, Outcome):
                    return deserialise_result(message)
                if each_epoch:
                    each_epoch(message)

    def _call(self, method: Any) -> Any:
        """Call the actor's method and wait for what it returns; WorkerLost if it raises or the actor has died."""
        try:
            return self._ray.get(method.remote())
        except self._ray.exceptions.RayError as error:
            raise WorkerLost(f"the worker is lost: {' '.join(str(error).split())[:2000]}") from error

    def stop(self) -> None:
        with suppress(Exception):  # Ray, or the actor, may be gone
            self._actor.stop.remote()

    def kill(self) -> None:
        with suppress(Exception):  # Ray may be gone already
            self._ray.kill(self._actor)

    close = kill
