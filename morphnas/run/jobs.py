"""The interface between a driver and its workers: jobs, the executors that run them, and their results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from morphnas.graph import MIN_MICRO_BATCH, Graph, Morph, Network
from morphnas.run.checkpoints import Result
from morphnas.run.files import RunError
from morphnas.run.store import Store
from morphnas.search.candidates import memory_ratio
from morphnas.search.trial import Trial
from morphnas.train.deadline import Stop
from morphnas.train.predict import evaluation_batch_size
from morphnas.train.recipe import Outcome, Recipe
from morphnas.train.trainer import EachEpoch


@dataclass(frozen=True, eq=False)
class Job:
    """A proposal as a worker gets it, with the weights of its start if that has any.

    seconds: time limit of the job. scored: whether the evaluation set is scored after every epoch, see `train`.
    micro: size of the micro-batches, which is reduced if memory runs out; None: whole batches.
    checkpoint: file that checkpoints are written to, and that an interrupted job continues from; None: none.
    stop: ends the job early if it runs in this process.
    max_latency: seconds from one example to its outputs above which a network is too slow; None: no limit.
    """

    start: Graph | Network
    morphs: tuple[Morph, ...]
    recipe: Recipe
    seconds: float
    seed: int
    scored: bool = True
    micro: int | None = None
    checkpoint: Path | None = None
    stop: Stop | None = None
    max_latency: float | None = None

    @property
    def start_graph(self) -> Graph:
        return self.start if isinstance(self.start, Graph) else self.start.graph

    @property
    def evaluation_batch_size(self) -> int:
        """See `morphnas.train.predict.evaluation_batch_size`."""
        return evaluation_batch_size(self.micro)


class DeviceLost(RunError):
    """The device is lost: it refuses all further work from this process."""

    def for_user(self, store: Store, trial: Trial, resumed: bool) -> DeviceLost:
        """The error that `fit` raises, with a hint on how to resume. The trial stays open, to be continued.

        resumed: whether an earlier driver had started the trial; if so, it is recorded as failed instead.
        """
        if resumed:
            store.finish(trial.id, Outcome("failed", error=str(self)), None)
        hint = f"the networks trained so far are kept in {store.path}; continue in a new process with resume=True"
        return DeviceLost(f"{self}: {hint}")


class Executor(Protocol):
    """Runs jobs of one task, which its workers get once.

    workers: number of jobs that run at a time. asks_ahead: whether the searcher is asked for the next proposal, and
    results are written, in other threads while jobs run, so that no worker is idle meanwhile.
    """

    @property
    def workers(self) -> int: ...

    @property
    def asks_ahead(self) -> bool: ...

    def submit(self, job: Job, each_epoch: EachEpoch | None = None) -> Future[Result]:
        """Start a job. An error of the job or its worker becomes a "failed" outcome, see `result_of`.

        A worker outside this process has to return the result within `job.seconds` of this call, plus the `grace`.
        each_epoch: called in this process, from any thread.
        """
        ...

    def stop(self) -> None:
        """Have workers in other processes end their jobs early, with the results so far.

        Jobs in this process are ended by their `Job.stop`.
        """
        ...

    def shutdown(self) -> None:
        """Abandon running jobs and end the workers. May be called twice."""
        ...


class _CallbackError(BaseException):
    """Wraps an exception of an observer, so that it does not count as a failure of the training that called it."""


def submit(executor: Executor, job: Job, each_epoch: EachEpoch) -> Future[Result]:
    """Like `executor.submit`, but if each_epoch raises before that returns, the exception is raised here."""

    def wrapped(outcome: Outcome) -> None:
        try:
            each_epoch(outcome)
        except Exception as error:
            raise _CallbackError(error) from None

    try:
        return executor.submit(job, wrapped)
    except _CallbackError as wrapper:
        error: Exception = wrapper.args[0]
    raise error


def grace(seconds: float) -> float:
    """Seconds after its time limit of `seconds` within which the result of a job is still waited for."""
    return min(10.0, max(1.0, 0.02 * seconds))


def result_of(future: Future[Result]) -> Result:
    """The result of a future that is done; a "failed" outcome if it was cancelled or holds an exception."""
    if future.cancelled():
        return Outcome("failed", error="no worker had started, or was free, before the deadline"), None
    if (error := future.exception()) is not None:
        return Outcome("failed", error=f"{type(error).__name__}: {error}"), None
    return future.result()


def micro_batch(graph: Graph, batch_size: int, max_memory: int | None, trials: Sequence[Trial]) -> int | None:
    """Size of the micro-batches with which a training takes at most `max_memory` bytes; None: whole batches.

    Based on `Graph.peak_bytes`, corrected by the memory that the trials took; at least `MIN_MICRO_BATCH`.
    """
    size = batch_size
    limit = math.inf if max_memory is None else max_memory / memory_ratio(trials)
    while size > MIN_MICRO_BATCH and graph.peak_bytes(size) > limit:
        size = max(MIN_MICRO_BATCH, size // 2)
    return None if size == batch_size else size


def trial_seed(seed: int, id: int) -> int:
    """The seed of a trial's weights and batches, a function of the run's seed and the trial's id alone."""
    return (seed * 1_000_003 + id * 7_919 + 17) % (2**63)
