"""What a driver and its workers say to each other: jobs, where they run, and what comes of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from morphnas.graph import SMALLEST, Graph, Morph, Network
from morphnas.run.checkpoints import Result
from morphnas.run.files import RunError
from morphnas.run.store import Store
from morphnas.search.candidates import memory_ratio
from morphnas.search.trial import Trial
from morphnas.train.deadline import Stop
from morphnas.train.predict import chunk
from morphnas.train.recipe import Outcome, Recipe
from morphnas.train.trainer import EachEpoch


@dataclass(frozen=True, eq=False)
class Job:
    """A proposal as a worker gets it: with the weights of its start, if that has any.

    seconds: that the work may take. scored: whether the evaluation set is scored after every epoch, see `train`.
    micro: examples to have in memory at a time; None: whole batches.
    checkpoint: the file, if it is within reach, that the work is gone on from, and can be later.
    stop: ends the work early, where it is done in this process.
    max_latency: seconds from one example to its outputs from which on a network is too slow; None: none is.
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
    def chunk(self) -> int:
        """See `morphnas.train.predict.chunk`."""
        return chunk(self.micro)


class DeviceLost(RunError):
    """The device does nothing any more for this process."""

    def left(self, store: Store, trial: Trial, again: bool) -> DeviceLost:
        """What a fit says of it. The trial stays open, to be gone on with; where it was so before it has failed."""
        if again:
            store.finish(trial.id, Outcome("failed", error=str(self)), None)
        kept = f"what was trained is kept in {store.path}, and a new process can go on with resume=True"
        return DeviceLost(f"{self}: {kept}")


class Executor(Protocol):
    """Where jobs run; it is made for one task, which it gives to its workers once.

    workers: how many jobs at a time. ahead: whether the next proposal is asked for while they run, so that no worker
    waits for it, instead of after the result.
    """

    @property
    def workers(self) -> int: ...

    @property
    def ahead(self) -> bool: ...

    def submit(self, job: Job, each_epoch: EachEpoch | None = None) -> Future[Result]:
        """Begin a job. What goes wrong with it, or with whoever does it, is an outcome. A worker that has begun it is
        waited for as long as its seconds and their `grace`. each_epoch is called in this process, from any thread.
        """
        ...

    def stop(self) -> None:
        """Have workers elsewhere end what they do with what they have. In this process the job's own stop does that."""
        ...

    def shutdown(self) -> None:
        """Give up what is running and let the workers go. May be called twice."""
        ...


class _Raised(BaseException):
    """What an observer raised in the midst of a training: no error of the network's."""


def submitted(executor: Executor, job: Job, each_epoch: EachEpoch) -> Future[Result]:
    """See `Executor.submit`; what each_epoch raises comes out here where it is called before that is back."""

    def passing(outcome: Outcome) -> None:
        try:
            each_epoch(outcome)
        except Exception as error:
            raise _Raised(error) from None

    try:
        return executor.submit(job, passing)
    except _Raised as raised:
        error: Exception = raised.args[0]
    raise error


def grace(seconds: float) -> float:
    """Seconds that an answer may come late, of work that was given so many, before nobody waits for it any more."""
    return min(10.0, max(1.0, 0.02 * seconds))


def result_of(future: Future[Result]) -> Result:
    """What came of a job that is done, also where whoever should have done it raised."""
    if future.cancelled():
        return Outcome("failed", error="no worker had started, or was free, before the deadline"), None
    if (error := future.exception()) is not None:
        return Outcome("failed", error=f"{type(error).__name__}: {error}"), None
    return future.result()


def micro_batch(graph: Graph, batch_size: int, max_memory: int | None, trials: Sequence[Trial]) -> int | None:
    """Examples to have in memory at a time, so that training takes at most `max_memory` bytes; None: whole batches.

    As far as estimates go, which are corrected by what the trials took; never fewer than a step can do with.
    """
    size = batch_size
    cap = math.inf if max_memory is None else max_memory / memory_ratio(trials)
    while size > SMALLEST and graph.peak_bytes(size) > cap:
        size = max(SMALLEST, size // 2)
    return None if size == batch_size else size


def trial_seed(seed: int, id: int) -> int:
    """The seed of a trial's weights and batches: of the run's seed and the trial's id alone."""
    return (seed * 1_000_003 + id * 7_919 + 17) % (2**63)
