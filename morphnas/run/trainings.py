"""Trials that workers are at: handed out, listened to, and written down."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import KW_ONLY, dataclass, replace
from queue import Empty, SimpleQueue

from morphnas.graph import Graph, Network, Weights
from morphnas.run.checkpoints import Result
from morphnas.run.jobs import DeviceLost, Executor, Job, grace, micro_batch, result_of, submitted, trial_seed
from morphnas.run.observers import Observer
from morphnas.run.pruning import prune
from morphnas.run.store import Store
from morphnas.search.trial import STOPPED, Trial
from morphnas.train.deadline import NEVER, POLL, Deadline
from morphnas.train.recipe import Outcome


@dataclass(eq=False)
class Trainings:
    """The trials that an executor's workers have: `begin` hands one out, `hear` waits for news of any of them.

    What comes back is written down, in the thread that made this, where the observer is told as well. A worker that
    does not answer soon after the deadline is not waited for: its trial has failed. When a stop is asked for, trials
    end as far as they have come, `STOPPED`, which `Store.reopen` undoes; final ones without a score, and those of
    workers that have not begun, or do not answer soon, stay open, to be gone on with.

    seed: the run's. max_memory: bytes that a training should take at most. max_latency: see `Job`. keep: see
    `morphnas.run.pruning`.
    """

    store: Store
    executor: Executor
    deadline: Deadline
    _: KW_ONLY
    seed: int = 0
    max_memory: int | None = None
    max_latency: float | None = None
    keep: int | None = None
    observer: Observer | None = None

    def __post_init__(self) -> None:
        self._running: dict[int, Future[Result]] = {}
        self._news: SimpleQueue[tuple[Trial, Outcome | Future[Result]]] = SimpleQueue()
        self._late = grace(self.deadline.left) + 0.5  # an executor that keeps to its word is earlier
        self._end, self._parting = self.deadline.earlier(-self._late), NEVER
        self._thread = threading.get_ident()

    def __len__(self) -> int:
        return len(self._running)

    @property
    def full(self) -> bool:
        return len(self) >= self.executor.workers

    def begin(self, trial: Trial, start: Graph | Network, again: bool = False, scored: bool = True) -> None:
        """Hand a trial's training to a worker. again: an earlier driver had begun it. scored: see `Job`."""
        if self.observer:
            self.observer.trial_begins(trial)
        recipe = trial.proposal.recipe
        job = Job(
            start,
            trial.proposal.morphs,
            recipe,
            self.deadline.left,
            trial_seed(self.seed, trial.id),
            scored=scored,
            micro=micro_batch(trial.graph, recipe.batch_size, self.max_memory, self.store.trials),
            checkpoint=self.store.checkpoint(trial.id),
            stop=self.deadline.stop,
            max_latency=self.max_latency,
        )
        try:
            future = submitted(self.executor, job, lambda outcome: self._epoch_done(trial, outcome))
        except DeviceLost as error:
            raise error.left(self.store, trial, again) from error
        self._running[trial.id] = future
        future.add_done_callback(lambda future: self._news.put((trial, future)))

    def fail(self, trial: Trial, error: str) -> None:
        """Write down that a trial has failed without being begun."""
        if self.observer:
            self.observer.trial_begins(trial)
        self._finish(trial, Outcome("failed", error=error), None)

    def hear(self) -> bool:
        """Wait for what workers say, for a moment at most. False where nothing that runs is waited for any more."""
        if not self._running:
            return False
        until = self._end if self.deadline.passed else self.deadline
        if self.deadline.stopped:
            if self._parting is NEVER:
                self._parting = Deadline.after(self._late, self.deadline.clock)
                self.executor.stop()
                self._cancel()
            until = self._parting
        try:
            trial, told = self._news.get(timeout=min(until.left, POLL))
        except Empty:
            return not until.passed or self._overdue()
        if isinstance(told, Outcome):
            self._epoch_done(trial, told)
            return True
        del self._running[trial.id]
        if self.deadline.stopped and told.cancelled():
            return True  # it is to be gone on with
        outcome, weights = result_of(told)
        if self.deadline.stopped and outcome.status == "truncated":
            if trial.final and outcome.score is None:
                return True  # so is this one
            outcome = replace(outcome, error=STOPPED)
        self._finish(trial, outcome, weights)
        return True

    def _epoch_done(self, trial: Trial, outcome: Outcome) -> None:
        """Tell the observer, in this thread only."""
        if threading.get_ident() != self._thread:
            self._news.put((trial, outcome))
        elif self.observer:
            self.observer.epoch_done(trial, outcome)

    def _finish(self, trial: Trial, outcome: Outcome, weights: Weights | None) -> None:
        ended = self.store.finish(trial.id, outcome, weights, behind=self.executor.ahead)
        prune(self.store, self.keep)
        if self.observer:
            self.observer.trial_ends(ended)

    def _overdue(self) -> bool:
        """What to do when no answer has come in time. Whether to wait on."""
        if self.deadline.stopped:
            return not self._parting.passed
        if not self._end.passed:
            self._cancel()
            return True
        for id in self._running:
            error = "no worker gave an answer by the deadline"
            self._finish(self.store.trial(id), Outcome("failed", error=error), None)
        self._running.clear()
        return False

    def _cancel(self) -> None:
        for future in list(self._running.values()):
            future.cancel()  # no effect where a worker has begun
