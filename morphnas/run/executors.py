"""Where jobs run: in this process, or in processes of this machine that are replaced when they die or hang.

A worker that raises, exits, is killed or does not answer in time is the failure of one trial. So every worker has a
thread here that waits for it alone, and nobody else waits for that worker. (`cluster.py` has the same for Ray.)
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol

import torch

from morphnas.run.checkpoints import Result
from morphnas.run.jobs import DeviceLost, Job, grace
from morphnas.run.transport import Answer, part_for, sealed, unsealed, write_task
from morphnas.run.work import work
from morphnas.train.data import Examples, Task
from morphnas.train.deadline import Deadline
from morphnas.train.recipe import Outcome
from morphnas.train.trainer import EachEpoch

log = logging.getLogger("morphnas")

AGAIN = 10.0
"""Seconds between two tries to start a worker, where others are there."""
STANDARD = [sysconfig.get_path("stdlib"), str(Path(sysconfig.get_path("platstdlib"), "lib-dynload"))]
"""Where Python's own modules are: a worker looks there first, so that a `types.py` beside the user's script does not
stand for Python's own."""
HEARS = 0.5
"""Seconds after which a worker that is still being sent its job, and is to stop, is suspended, or hangs."""
TRIES = 5
"""How often in a row a worker is tried to be started, where others are there, before it is given up."""


class SerialExecutor:
    """Runs each job in this process, before `submit` returns. Ctrl-C comes through to the caller, and so does
    DeviceGone, after which this process can do no job: the trial stays open.

    everything: examples for the trainings that nobody judges; None: those of the task.
    """

    workers = 1

    def __init__(self, task: Task, everything: Examples | None = None) -> None:
        self._task, self._everything = task, everything

    @property
    def ahead(self) -> bool:
        """On a CPU asking would take from the training what it gains."""
        return self._task.device.type != "cpu"

    def submit(self, job: Job, each_epoch: EachEpoch | None = None) -> Future[Result]:
        future: Future[Result] = Future()
        try:
            future.set_result(work(job, part_for(job, self._task, self._everything), each_epoch))
        except DeviceLost:
            raise
        except Exception as error:
            future.set_exception(error)
        return future

    def stop(self) -> None:
        """Jobs have a stop of their own, since `submit` is only back when they are done."""

    def shutdown(self) -> None:
        pass


class Lost(Exception):
    """A worker ended without an answer; says how."""


class Unheard(Lost):
    """A worker ended before it had a job."""


class Worker(Protocol):
    """One that does a job at a time, somewhere else."""

    def ready(self) -> None:
        """Return when it has started; Lost when it is gone."""
        ...

    def run(self, job: Job, each_epoch: EachEpoch | None) -> Result:
        """What came of the job; Lost when the worker is gone, Unheard if it was before it had all of the job."""
        ...

    def stop(self) -> None:
        """Have the job that it does end early, if it has one and can hear."""
        ...

    def kill(self) -> None:
        """End it, whatever it does: what waits for it, in another thread, then raises Lost."""
        ...

    def close(self) -> None:
        """Kill it, and leave nothing behind."""
        ...


@dataclass(frozen=True)
class _Order:
    job: Job
    each_epoch: EachEpoch | None
    future: Future[Result]
    deadline: Deadline
    stops: int
    begun: bool = False
    attempt: int = 0


@dataclass
class Supervised:
    """Workers that do not share this process, each with a thread that hands it jobs and replaces it when it is lost.

    Jobs are taken by workers that are there, not by those that are still to come; where none can be started, they fail.
    A worker that cannot be started is given up after `TRIES`, unless all the others cannot, either.
    make: what begins to start a worker, one for each at a time. retries: how often a job is done again whose worker was
    lost. at_the_end: is called when all workers are gone.
    """

    make: Sequence[Callable[[], Worker]]
    ahead: bool
    retries: int = 0
    at_the_end: Callable[[], None] = lambda: None
    _orders: SimpleQueue[_Order | None] = field(default_factory=SimpleQueue, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _alive: list[Worker] = field(default_factory=list, init=False)
    _missing: set[threading.Thread] = field(default_factory=set, init=False)
    """Those whose worker could not be started the last time."""
    _given_up: set[threading.Thread] = field(default_factory=set, init=False)
    """Those of them that do not try again."""
    _closed: threading.Event = field(default_factory=threading.Event, init=False)
    _stops: int = field(default=0, init=False)
    """How often jobs were stopped: those from before are not done again."""

    def __post_init__(self) -> None:
        self._threads = [threading.Thread(target=self._serve, args=(make,), daemon=True) for make in self.make]
        for thread in self._threads:
            thread.start()

    @property
    def workers(self) -> int:
        return len(self.make) - len(self._given_up)

    def submit(self, job: Job, each_epoch: EachEpoch | None = None) -> Future[Result]:
        order = _Order(job, each_epoch, Future(), Deadline.after(job.seconds), self._stops)
        self._orders.put(order)
        if self._closed.is_set():
            order.future.cancel()
        return order.future

    def stop(self) -> None:
        with self._lock:
            alive = list(self._alive)
        self._stops += 1
        for worker in alive:  # which may take a moment
            worker.stop()

    def shutdown(self) -> None:
        with self._lock:
            closed = self._closed.is_set()
            self._closed.set()
            for worker in self._alive:
                worker.kill()
        for _ in self._threads:
            self._orders.put(None)
        for thread in self._threads:
            thread.join()
        while not self._orders.empty():
            if (order := self._orders.get()) and not order.future.cancel():
                self._failed(order, "the executor was shut down")
        if not closed:
            self.at_the_end()

    def _serve(self, make: Callable[[], Worker]) -> None:
        worker: Worker | None = None
        here, failures = threading.current_thread(), 0
        while not self._closed.is_set():
            missing = ""
            try:
                worker = worker or self._started(make)
                worker.ready()
                self._missing.discard(here)
                failures = 0
            except Lost as lost:
                self._drop(worker)
                worker, missing, failures = None, str(lost), failures + 1
                if here not in self._missing and not self._closed.is_set():
                    log.warning("a worker cannot be started: %s", lost)
                self._missing.add(here)
                if self._others:
                    if failures >= TRIES:
                        log.warning("a worker is given up after %d failed starts: %s", failures, lost)
                        self._given_up.add(here)
                        return
                    self._closed.wait(AGAIN)
                    continue
            if (order := self._orders.get()) is None:
                break
            if worker is None and self._others:  # another one has started meanwhile
                self._orders.put(order)
                continue
            if not (order.begun or order.future.set_running_or_notify_cancel()):
                continue
            order = replace(order, begun=True)
            if worker is None:
                self._lost(order, missing)
            elif not self._done(order, worker):
                self._drop(worker)
                worker = None
        self._drop(worker)

    @property
    def _others(self) -> bool:
        """Whether there is a thread whose worker has started, or may yet."""
        return len(self._missing) < len(self.make)

    def _done(self, order: _Order, worker: Worker) -> bool:
        """Have a job done; whether the worker is of use any longer."""
        late = threading.Event()
        try:
            with _patient(worker, order.deadline.left + grace(order.job.seconds), late):
                order.future.set_result(worker.run(replace(order.job, seconds=order.deadline.left), order.each_epoch))
                return True
        except Lost as lost:
            if late.is_set():
                seconds = f"{order.job.seconds:.3g} s"
                self._failed(
                    order, f"no answer within the {seconds} there were: the worker hung and was ended ({lost})"
                )
            else:
                self._lost(order, str(lost), begun=not isinstance(lost, Unheard))
        except Exception:  # of each_epoch, or the job cannot travel; what the worker does is not known
            self._failed(order, traceback.format_exc()[-4000:])
        return False

    def _lost(self, order: _Order, error: str, begun: bool = True) -> None:
        """The job's worker is gone: another one may do it. begun: whether that one had it, and may be gone for it."""
        attempt = order.attempt + begun
        ends = self._closed.is_set() or self._stops > order.stops
        if attempt <= self.retries and not order.deadline.passed and not ends:
            self._orders.put(replace(order, attempt=attempt))
        else:
            self._failed(order, error)

    @staticmethod
    def _failed(order: _Order, error: str) -> None:
        order.future.set_result((Outcome("failed", error=error), None))

    def _started(self, make: Callable[[], Worker]) -> Worker:
        with self._lock:
            if self._closed.is_set():
                raise Lost("the executor was shut down")
            try:
                worker = make()
            except Exception as error:
                raise Lost(f"no worker could be started: {type(error).__name__}: {error}") from error
            self._alive.append(worker)
            return worker

    def _drop(self, worker: Worker | None) -> None:
        if worker:
            with self._lock:
                self._alive.remove(worker)
            worker.close()


@contextlib.contextmanager
def _patient(worker: Worker, seconds: float, late: threading.Event) -> Iterator[None]:
    """Kills the worker when that many seconds pass inside, and then sets the event."""

    def give_up() -> None:
        late.set()
        worker.kill()

    timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def process_executor(
    task: Task, devices: Sequence[torch.device], threads: int = 1, folder: str | os.PathLike[str] | None = None
) -> Supervised:
    """An executor with a process on each device; one that is named twice has two.

    threads: of each process. folder: where the examples are put into a file that all map, until the end; None: the
    system's temporary folder. Scripts need no `__main__` guard: processes begin with the package, not with the script.
    """
    place = Path(tempfile.mkdtemp(prefix="morphnas-", dir=folder))
    try:
        write_task(place / "task.pt", task)
    except BaseException as error:
        shutil.rmtree(place, ignore_errors=True)
        if isinstance(error, (OSError, RuntimeError)):  # torch has an error of its own for a disk that is full
            raise OSError(
                f"the examples for the worker processes cannot be written to {place.parent}: {error}"
            ) from error
        raise
    makes = [lambda device=device: _Process(place, device, threads) for device in devices]
    ahead = len(devices) > 1 or any(device.type != "cpu" for device in devices)
    return Supervised(makes, ahead, at_the_end=lambda: shutil.rmtree(place, ignore_errors=True))


class _Process:
    """A process that runs `worker.py`, which ends when this one does."""

    def __init__(self, place: Path, device: torch.device, threads: int) -> None:
        paths = [*STANDARD, *(path or os.getcwd() for path in sys.path)]  # noqa: PTH109
        begin = f"import sys; sys.path[:] = {paths!r}; import morphnas.run.worker; morphnas.run.worker.main()"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed in `close`
        self._ready = False
        self._sending = threading.Lock()
        answers, pipe = os.pipe()
        self._answers = os.fdopen(answers, "rb")
        try:
            self._process = subprocess.Popen(  # noqa: S603  # this interpreter, with our own arguments
                [sys.executable, "-P", "-c", begin, str(place), str(device), str(threads), str(pipe)],
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=self._log,
                pass_fds=[pipe],
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
                start_new_session=True,  # Ctrl-C is for this process, which tells its workers itself
            )
        finally:
            os.close(pipe)

    def ready(self) -> None:
        if not self._ready:
            self._receive()
            self._ready = True

    def run(self, job: Job, each_epoch: EachEpoch | None) -> Result:
        self._send(sealed(job))
        while isinstance(answer := self._receive(), Outcome):
            if each_epoch:
                each_epoch(answer)
        return unsealed(answer)

    def stop(self) -> None:
        if not self._sending.acquire(timeout=HEARS):  # it does not take its job either
            self.kill()
            return
        try:
            with contextlib.suppress(Lost):
                self._write(None)
        finally:
            self._sending.release()

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in filter(None, (self._process.stdin, self._answers, self._log)):
            with contextlib.suppress(OSError):  # what was still to be written
                pipe.close()

    def _send(self, parcel: bytes) -> None:
        with self._sending:
            self._write(parcel)

    def _write(self, parcel: bytes | None) -> None:
        assert self._process.stdin is not None
        try:
            pickle.dump(parcel, self._process.stdin)
            self._process.stdin.flush()
        except (OSError, ValueError) as error:
            raise Unheard(self._last_words()) from error

    def _receive(self) -> Answer:
        try:
            answer: Answer = pickle.load(self._answers)  # noqa: S301  # our own process
        except Exception as error:
            raise Lost(self._last_words()) from error
        return answer

    def _last_words(self) -> str:
        """How the process ended, and what it said."""
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return "the worker closed its pipe, or said what cannot be read"
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - 3000))
        said = self._log.read().decode(errors="replace").strip()
        how = f"ended with exit code {code}"
        if code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
            how += ", as the system does when memory runs out" if code == -signal.SIGKILL else ""
        return f"the worker {how}" + (f"; its last words: {said}" if said else "")
