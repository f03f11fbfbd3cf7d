"""Executors: jobs run in this process, or in worker processes on this machine that are replaced if they die or hang.

A worker that raises, exits, is killed or does not answer in time costs one trial only: each worker has its own
supervising thread here, and nothing else waits for it. (`cluster.py` does the same for Ray.)
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
from morphnas.run.transport import Message, deserialise_result, serialise_job, task_for_job, write_task
from morphnas.run.work import work
from morphnas.train.data import Examples, Task
from morphnas.train.deadline import Deadline
from morphnas.train.recipe import Outcome
from morphnas.train.trainer import EachEpoch

log = logging.getLogger("morphnas")

RESTART_DELAY = 10.0
"""Seconds between two attempts to start a worker, if other workers are available."""
STANDARD_LIBRARY = [sysconfig.get_path("stdlib"), str(Path(sysconfig.get_path("platstdlib"), "lib-dynload"))]
"""Folders of Python's standard library, which come first in a worker's `sys.path`, so that a `types.py` beside the
user's script does not shadow the standard module."""
STOP_TIMEOUT = 0.5
"""Seconds that `_Process.stop` waits for a job that is still being sent; after them the worker counts as hung and is
killed."""
MAX_START_ATTEMPTS = 5
"""Consecutive failed starts after which a worker is given up, if other workers are available."""


class SerialExecutor:
    """Runs each job in this process before `submit` returns.

    KeyboardInterrupt propagates to the caller, and so does `DeviceLost`, after which this process cannot run any job:
    the trial stays open.

    all_examples: training and held-out examples, for trainings that are not scored; None: those use the training set.
    """

    workers = 1

    def __init__(self, task: Task, all_examples: Examples | None = None) -> None:
        self._task, self._all_examples = task, all_examples

    @property
    def asks_ahead(self) -> bool:
        """False on a CPU: asking the searcher during a training would slow that down by as much as it saves."""
        return self._task.device.type != "cpu"

    def submit(self, job: Job, each_epoch: EachEpoch | None = None) -> Future[Result]:
        future: Future[Result] = Future()
        try:
            future.set_result(work(job, task_for_job(job, self._task, self._all_examples), each_epoch))
        except DeviceLost:
            raise
        except Exception as error:
            future.set_exception(error)
        return future

    def stop(self) -> None:
        """Nothing to do: jobs run in this process, where `Job.stop` ends them."""

    def shutdown(self) -> None:
        pass


class WorkerLost(Exception):
    """A worker ended without returning a result; the message says how it ended."""


class JobNotReceived(WorkerLost):
    """A worker ended before it had received its job."""


class Worker(Protocol):
    """A worker outside this process, as its supervising thread sees it. Runs one job at a time."""

    def ready(self) -> None:
        """Block until it has started; WorkerLost if it ended instead."""
        ...

    def run(self, job: Job, each_epoch: EachEpoch | None) -> Result:
        """Run the job and return its result; WorkerLost if the worker ends, JobNotReceived if it ends before it has
        received the whole job."""
        ...

    def stop(self) -> None:
        """Ask it to end its current job early, if it has one and still reads its messages."""
        ...

    def kill(self) -> None:
        """End it, whatever it does: a `ready` or `run` that waits for it in another thread then raises WorkerLost."""
        ...

    def close(self) -> None:
        """Kill it and release its resources."""
        ...


@dataclass(frozen=True)
class _QueuedJob:
    job: Job
    each_epoch: EachEpoch | None
    future: Future[Result]
    deadline: Deadline
    stops: int
    """`SupervisedExecutor._stops` when the job was submitted."""
    started: bool = False
    attempt: int = 0


@dataclass
class SupervisedExecutor:
    """An executor with workers outside this process, each with a thread that hands it jobs and replaces it if lost.

    Only workers that have started take jobs; if none can be started, jobs fail. A worker that cannot be started is
    given up after `MAX_START_ATTEMPTS`, unless none of the others can be started either.

    factories: one for each worker; each call begins to start a worker. asks_ahead: see `Executor`. retries: how often a
    job is run again after a worker that had received it was lost. on_shutdown: called once, after all workers have
    ended.
    """

    factories: Sequence[Callable[[], Worker]]
    asks_ahead: bool
    retries: int = 0
    on_shutdown: Callable[[], None] = lambda: None
    _queue: SimpleQueue[_QueuedJob | None] = field(default_factory=SimpleQueue, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _alive: list[Worker] = field(default_factory=list, init=False)
    _without_worker: set[threading.Thread] = field(default_factory=set, init=False)
    """Threads whose last attempt to start a worker failed."""
    _given_up: set[threading.Thread] = field(default_factory=set, init=False)
    """Those of `_without_worker` that have ended and do not try again."""
    _closed: threading.Event = field(default_factory=threading.Event, init=False)
    _stops: int = field(default=0, init=False)
    """Number of `stop` calls: jobs submitted before the latest one are not retried."""

    def __post_init__(self) -> None:
        self._threads = [
            threading.Thread(target=self._serve, args=(factory,), daemon=True) for factory in self.factories
        ]
        for thread in self._threads:
            thread.start()

    @property
    def workers(self) -> int:
        return len(self.factories) - len(self._given_up)

    def submit(self, job: Job, each_epoch: EachEpoch | None = None) -> Future[Result]:
        queued = _QueuedJob(job, each_epoch, Future(), Deadline.after(job.seconds), self._stops)
        self._queue.put(queued)
        if self._closed.is_set():
            queued.future.cancel()
        return queued.future

    def stop(self) -> None:
        with self._lock:
            alive = list(self._alive)
        self._stops += 1
        for worker in alive:  # without the lock: each may take up to `STOP_TIMEOUT`
            worker.stop()

    def shutdown(self) -> None:
        with self._lock:
            closed = self._closed.is_set()
            self._closed.set()
            for worker in self._alive:
                worker.kill()
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        while not self._queue.empty():
            if (queued := self._queue.get()) and not queued.future.cancel():
                self._fail(queued, "the executor was shut down")
        if not closed:
            self.on_shutdown()

    def _serve(self, factory: Callable[[], Worker]) -> None:
        worker: Worker | None = None
        thread, failures = threading.current_thread(), 0
        while not self._closed.is_set():
            start_error = ""
            try:
                worker = worker or self._start_worker(factory)
                worker.ready()
                self._without_worker.discard(thread)
                failures = 0
            except WorkerLost as lost:
                self._discard(worker)
                worker, start_error, failures = None, str(lost), failures + 1
                if thread not in self._without_worker and not self._closed.is_set():
                    log.warning("a worker cannot be started: %s", lost)
                self._without_worker.add(thread)
                if self._others_available:
                    if failures >= MAX_START_ATTEMPTS:
                        log.warning("a worker is given up after %d failed starts: %s", failures, lost)
                        self._given_up.add(thread)
                        return
                    self._closed.wait(RESTART_DELAY)
                    continue
            if (queued := self._queue.get()) is None:
                break
            if worker is None and self._others_available:  # another worker has started in the meantime
                self._queue.put(queued)
                continue
            if not (queued.started or queued.future.set_running_or_notify_cancel()):
                continue
            queued = replace(queued, started=True)
            if worker is None:
                self._retry_or_fail(queued, start_error)
            elif not self._run_job(queued, worker):
                self._discard(worker)
                worker = None
        self._discard(worker)

    @property
    def _others_available(self) -> bool:
        """Whether any thread has a worker that has started or is still starting."""
        return len(self._without_worker) < len(self.factories)

    def _run_job(self, queued: _QueuedJob, worker: Worker) -> bool:
        """Run a job on the worker, and set its future or queue it again; returns whether the worker can be used
        again."""
        timed_out = threading.Event()
        try:
            with _kill_after(worker, queued.deadline.left + grace(queued.job.seconds), timed_out):
                job = replace(queued.job, seconds=queued.deadline.left)
                queued.future.set_result(worker.run(job, queued.each_epoch))
                return True
        except WorkerLost as lost:
            if timed_out.is_set():
                limit = f"the job's limit of {queued.job.seconds:.3g} s"
                self._fail(queued, f"no result within {limit}: the worker hung and was killed ({lost})")
            else:
                self._retry_or_fail(queued, str(lost), received=not isinstance(lost, JobNotReceived))
        except Exception:  # of each_epoch, or the job cannot be serialised; the worker's state is unknown
            self._fail(queued, traceback.format_exc()[-4000:])
        return False

    def _retry_or_fail(self, queued: _QueuedJob, error: str, received: bool = True) -> None:
        """Queue a job again whose worker was lost; or set its future to a failure if it has no attempt or time left, or
        `stop` or `shutdown` was called after it was submitted.

        received: whether the worker had received the job, which may then be the cause; only this counts as an attempt.
        """
        attempt = queued.attempt + received
        ending = self._closed.is_set() or self._stops > queued.stops
        if attempt <= self.retries and not queued.deadline.passed and not ending:
            self._queue.put(replace(queued, attempt=attempt))
        else:
            self._fail(queued, error)

    @staticmethod
    def _fail(queued: _QueuedJob, error: str) -> None:
        queued.future.set_result((Outcome("failed", error=error), None))

    def _start_worker(self, factory: Callable[[], Worker]) -> Worker:
        with self._lock:
            if self._closed.is_set():
                raise WorkerLost("the executor was shut down")
            try:
                worker = factory()
            except Exception as error:
                raise WorkerLost(f"no worker could be started: {type(error).__name__}: {error}") from error
            self._alive.append(worker)
            return worker

    def _discard(self, worker: Worker | None) -> None:
        if worker:
            with self._lock:
                self._alive.remove(worker)
            worker.close()


@contextlib.contextmanager
def _kill_after(worker: Worker, seconds: float, timed_out: threading.Event) -> Iterator[None]:
    """Set the event and kill the worker if the body takes longer than `seconds`."""

    def on_timeout() -> None:
        timed_out.set()
        worker.kill()

    timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), on_timeout)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def process_executor(
    task: Task, devices: Sequence[torch.device], threads: int = 1, folder: str | os.PathLike[str] | None = None
) -> SupervisedExecutor:
    """An executor with one worker process for each entry of `devices`, which may repeat a device.

    threads: of each process. folder: where the examples are written to a file that all processes memory-map, removed
    at shutdown; None: the system's temporary folder. Scripts need no `__main__` guard, since worker processes import
    the package, not the script. OSError if the examples cannot be written.
    """
    task_folder = Path(tempfile.mkdtemp(prefix="morphnas-", dir=folder))
    try:
        write_task(task_folder / "task.pt", task)
    except BaseException as error:
        shutil.rmtree(task_folder, ignore_errors=True)
        if isinstance(error, (OSError, RuntimeError)):  # torch raises RuntimeError if the disk is full
            raise OSError(
                f"the examples for the worker processes cannot be written to {task_folder.parent}: {error}"
            ) from error
        raise
    factories = [lambda device=device: _Process(task_folder, device, threads) for device in devices]
    ahead = len(devices) > 1 or any(device.type != "cpu" for device in devices)
    return SupervisedExecutor(factories, ahead, on_shutdown=lambda: shutil.rmtree(task_folder, ignore_errors=True))


class _Process:
    """A worker process, which runs `worker.py` and ends when this process does."""

    def __init__(self, task_folder: Path, device: torch.device, threads: int) -> None:
        paths = [*STANDARD_LIBRARY, *(path or os.getcwd() for path in sys.path)]  # noqa: PTH109
        code = f"import sys; sys.path[:] = {paths!r}; import morphnas.run.worker; morphnas.run.worker.main()"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed in `close`
        self._ready = False
        self._sending = threading.Lock()
        read_end, write_end = os.pipe()
        self._messages = os.fdopen(read_end, "rb")
        try:
            self._process = subprocess.Popen(  # noqa: S603  # this interpreter, with our own arguments
                [sys.executable, "-P", "-c", code, str(task_folder), str(device), str(threads), str(write_end)],
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=self._log,
                pass_fds=[write_end],
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
                start_new_session=True,  # Ctrl-C reaches this process only, which then stops its workers
            )
        finally:
            os.close(write_end)

    def ready(self) -> None:
        if not self._ready:
            self._receive()
            self._ready = True

    def run(self, job: Job, each_epoch: EachEpoch | None) -> Result:
        self._send(serialise_job(job))
        while isinstance(message := self._receive(), Outcome):
            if each_epoch:
                each_epoch(message)
        return deserialise_result(message)

    def stop(self) -> None:
        if not self._sending.acquire(timeout=STOP_TIMEOUT):  # the worker does not even read its job
            self.kill()
            return
        try:
            with contextlib.suppress(WorkerLost):
                self._write(None)
        finally:
            self._sending.release()

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in filter(None, (self._process.stdin, self._messages, self._log)):
            with contextlib.suppress(OSError):  # closing flushes what was still to be written
                pipe.close()

    def _send(self, job: bytes) -> None:
        with self._sending:
            self._write(job)

    def _write(self, data: bytes | None) -> None:
        assert self._process.stdin is not None
        try:
            pickle.dump(data, self._process.stdin)
            self._process.stdin.flush()
        except (OSError, ValueError) as error:
            raise JobNotReceived(self._describe_end()) from error

    def _receive(self) -> Message:
        try:
            message: Message = pickle.load(self._messages)  # noqa: S301  # our own process
        except Exception as error:
            raise WorkerLost(self._describe_end()) from error
        return message

    def _describe_end(self) -> str:
        """How the process ended, and the end of its output."""
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return "the worker closed its pipe, or sent a message that cannot be read"
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - 3000))
        output = self._log.read().decode(errors="replace").strip()
        how = f"ended with exit code {code}"
        if code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
            how += ", as the system does when memory runs out" if code == -signal.SIGKILL else ""
        return f"the worker {how}" + (f"; its last output: {output}" if output else "")
