"""Jobs on a Ray cluster: an actor for each worker, which has the task and is replaced when it dies."""

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
from morphnas.run.executors import Lost, Supervised
from morphnas.run.extras import extra_missing
from morphnas.run.jobs import DeviceLost, Job
from morphnas.run.transport import Answer, done, sealed, task_of, tensors, unsealed
from morphnas.train.data import Examples, Task
from morphnas.train.deadline import Stop
from morphnas.train.recipe import Outcome
from morphnas.train.trainer import EachEpoch, warm_up

log = logging.getLogger("morphnas")

RETRIES = 2
"""Times that a job is done again whose worker was lost, which on a cluster need not be the job's fault; and times that
a cluster is asked again."""

TOKENS = (
    "from Ray 2.60 on all nodes and this process must agree on tokens: either all have RAY_AUTH_MODE=token and the "
    "same token, or all have RAY_AUTH_MODE=disabled"
)


def ray_executor(
    task: Task,
    everything: Examples | None = None,
    *,
    address: str | None = None,
    workers: int | None = None,
    cpus: float = 1,
    gpus: float = 0,
) -> Supervised:
    """An executor whose workers are actors on a Ray cluster.

    address: of the cluster, as `ray.init` takes it; None: a private one on this machine, which ends with the executor.
    A cluster that this process has joined already is used as it is. workers: at most; None: as many as the cluster has
    room for, of which each takes so many `cpus`, or `gpus`, of which it may be a share. everything: examples for the
    trainings that nobody judges. ImportError without Ray, ConnectionError where there is no cluster, ValueError where
    it has no room for a worker.
    """
    ray = found()
    leave = _join(ray, address) if not ray.is_initialized() else _stay
    try:
        there = ray.cluster_resources()
        have, need = (there.get("GPU", 0), gpus) if gpus else (there.get("CPU", 0), cpus)
        room = int(have / need + 1e-6)
        if not room:
            kind = "GPUs" if gpus else "CPUs"
            raise ValueError(f"the Ray cluster has {have:g} {kind}, but each trial needs {need:g} of them")
        held = ray.put(_arrays(tensors(task, everything)))
    except BaseException:
        leave()
        raise
    kind = ray.remote(_Remote).options(num_cpus=0 if gpus else cpus, num_gpus=gpus, max_restarts=0, max_concurrency=2)
    makes = [lambda: _Actor(ray, kind, held, max(1, int(cpus)))] * min(room, workers or room)
    ahead = bool(gpus) or len(makes) > 1
    return Supervised(makes, ahead, RETRIES, leave)


def _stay() -> None:
    """Leave the cluster to whoever joined it."""


def found() -> Any:
    """Ray, if it is there."""
    try:
        import ray
    except ImportError as error:
        raise extra_missing("trials run on a cluster by Ray", "ray") from error
    return ray


def reachable(address: str) -> None:
    """ConnectionError where nobody listens at an address host:port, which Ray itself takes minutes to find out."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host:
        return
    try:
        socket.create_connection((host, int(port)), 5).close()
    except OSError as error:
        raise ConnectionError(f"no Ray cluster answers at {address}: {error}") from error


def _join(ray: Any, address: str | None) -> Callable[[], None]:
    """Connect to a cluster; what leaves it again. Its variables RAY_* Ray keeps: it goes by them from then on."""
    quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    where = {"address": address} if address else {"address": "local", "include_dashboard": False}

    def leave() -> None:
        with _manners():
            ray.shutdown()

    def join() -> None:
        """Tried again where the process that Ray's client server has for each client died at birth, as some do."""
        for _ in range(RETRIES):
            with suppress(ConnectionAbortedError):
                ray.init(**where, **quiet)
                return
        ray.init(**where, **quiet)

    before = os.environ.get("PYTHONBREAKPOINT")
    try:
        with _manners():
            if address:
                reachable(address)
            join()
    except ConnectionError as error:
        if address and "no Ray cluster" in str(error):
            raise
        raise ConnectionError(f"no Ray cluster answers at {address or 'this machine'}: {error}. {TOKENS}") from error
    except Exception as error:
        raise ConnectionError(
            f"the Ray cluster at {address or 'this machine'} cannot be used: {error}. {TOKENS}"
        ) from error
    finally:
        os.environ.pop("PYTHONBREAKPOINT", None)  # Ray's own debugger
        if before is not None:
            os.environ["PYTHONBREAKPOINT"] = before
    return leave


@contextmanager
def _manners() -> Iterator[None]:
    """Keeps Ray from saying what concerns nobody here, and from handling SIGTERM instead of whoever does."""
    said, main = logging.getLogger("ray"), threading.current_thread() is threading.main_thread()
    level, handler = said.level, signal.getsignal(signal.SIGTERM)
    said.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        said.setLevel(level)
        if main:
            signal.signal(signal.SIGTERM, handler)


def _arrays(held: dict[str, Any]) -> dict[str, Any]:
    """The same with arrays for tensors: the workers of a node have those in common."""

    def array(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(array, value))
        return value.numpy() if isinstance(value, torch.Tensor) else value

    return {name: array(value) for name, value in held.items()}


def _tensors(held: dict[str, Any]) -> dict[str, Any]:
    def tensor(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(tensor, value))
        return torch.from_numpy(value) if hasattr(value, "dtype") else value

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nobody writes to examples
        return {name: tensor(value) for name, value in held.items()}


class _Remote:
    """A worker, where it runs. While one thread of it waits for an answer, another one can hear of a stop."""

    def __init__(self, held: dict[str, Any], threads: int, paths: list[str]) -> None:
        sys.path.extend(path for path in paths if path not in sys.path)  # to classes of the user's own, if on this node
        import ray

        gpu = bool(ray.get_gpu_ids()) and torch.cuda.is_available()
        self._task, self._everything = task_of(_tensors(held), torch.device("cuda" if gpu else "cpu"))
        self._threads = threads
        self._answers: SimpleQueue[Answer] = SimpleQueue()
        self._stop = Stop()
        warm_up()

    def ready(self) -> None:
        """Answers when the worker is."""

    def begin(self, parcel: bytes) -> None:
        self._stop = Stop()
        threading.Thread(target=self._do, args=(parcel, self._stop), daemon=True).start()

    def stop(self) -> None:
        self._stop.asked = True

    def answer(self) -> list[Answer]:
        """What there is to say, when there is something."""
        said = [self._answers.get()]
        while not self._answers.empty():
            said.append(self._answers.get())
        return said

    def _do(self, parcel: bytes, stop: Stop) -> None:
        torch.set_num_threads(self._threads)
        try:
            self._answers.put(done(parcel, self._task, self._everything, self._answers.put, stop))
        except DeviceLost:
            log.exception("the worker ends")
            os._exit(1)  # the worker in its place can use the device


class _Actor:
    """A worker, as seen from here."""

    def __init__(self, ray: Any, kind: Any, held: Any, threads: int) -> None:
        self._ray = ray
        self._actor = kind.remote(held, threads, sys.path)
        self._ready = False

    def ready(self) -> None:
        if not self._ready:
            self._asked(self._actor.ready)
            self._ready = True

    def run(self, job: Job, each_epoch: EachEpoch | None) -> Result:
        self._actor.begin.remote(sealed(replace(job, checkpoint=None)))  # its file is of this machine
        while True:
            for answer in self._asked(self._actor.answer):
                if not isinstance(answer, Outcome):
                    return unsealed(answer)
                if each_epoch:
                    each_epoch(answer)

    def _asked(self, method: Any) -> Any:
        try:
            return self._ray.get(method.remote())
        except self._ray.exceptions.RayError as error:
            raise Lost(f"the worker is gone: {' '.join(str(error).split())[:2000]}") from error

    def stop(self) -> None:
        with suppress(Exception):  # Ray, or the actor, may be gone
            self._actor.stop.remote()

    def kill(self) -> None:
        with suppress(Exception):  # Ray may be gone already
            self._ray.kill(self._actor)

    close = kill
