"""Running trials: submitted to an executor, followed, and written to the store."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import KW_ONLY, dataclass, replace
from queue import Empty, SimpleQueue

from morphnas.graph import Graph, Network, Weights
from morphnas.run.checkpoints import Result
from morphnas.run.jobs import DeviceLost, Executor, Job, grace, micro_batch, result_of, submit, trial_seed
from morphnas.run.observers import Observer
from morphnas.run.pruning import prune
from morphnas.run.store import Store
from morphnas.search.trial import STOPPED, Trial
from morphnas.train.deadline import NEVER, POLL_SECONDS, Deadline
from morphnas.train.recipe import Outcome


@dataclass(eq=False)
class Trainings:
    """The trials that run on an executor: `submit` starts one, `wait` waits for the next event of any of them.

    Results are handed to the store, and the observer is called, in the thread that created this object. A worker that
    returns no result soon after the deadline is not waited for: its trial has failed. When a stop is requested,
    trials end with the result so far and the error `STOPPED`, which `Store.reopen` undoes. Trials stay open, to be
    continued, if they are final and have no score, if no worker has started them, or if it does not respond soon.

    seed: of the run. max_memory: bytes that a training should take at most. max_latency: see `Job`. keep: see
    `morphnas.run.pruning.prune`.
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
        self._events: SimpleQueue[tuple[Trial, Outcome | Future[Result]]] = SimpleQueue()
        self._grace = grace(self.deadline.left) + 0.5  # longer than the executor's own time limit of a job
        self._give_up_at, self._stop_deadline = self.deadline.earlier(-self._grace), NEVER
        self._thread = threading.get_ident()

    def __len__(self) -> int:
        return len(self._running)

    @property
    def full(self) -> bool:
        return len(self) >= self.executor.workers

    def submit(self, trial: Trial, start: Graph | Network, resumed: bool = False, scored: bool = True) -> None:
        """Submit a trial's training. resumed: an earlier driver had started it. scored: see `Job`."""
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
            future = submit(self.executor, job, lambda outcome: self._epoch_done(trial, outcome))
        except DeviceLost as error:
            raise error.for_user(self.store, trial, resumed) from error
        self._running[trial.id] = future
        future.add_done_callback(lambda future: self._events.put((trial, future)))

    def fail(self, trial: Trial, error: str) -> None:
        """Record that a trial has failed before it was submitted."""
        if self.observer:
            self.observer.trial_begins(trial)
        self._finish(trial, Outcome("failed", error=error), None)

    def wait(self) -> bool:
        """Wait for an event, for at most `POLL_SECONDS` seconds, and handle it. False if no running trial is waited
        for."""
        if not self._running:
            return False
        until = self._give_up_at if self.deadline.passed else self.deadline
        if self.deadline.stopped:
            if self._stop_deadline is NEVER:
                self._stop_deadline = Deadline.after(self._grace, self.deadline.clock)
                self.executor.stop()
                self._cancel_queued()
            until = self._stop_deadline
        try:
            trial, event = self._events.get(timeout=min(until.left, POLL_SECONDS))
        except Empty:
            return not until.passed or self._handle_overdue()
        if isinstance(event, Outcome):
            self._epoch_done(trial, event)
            return True
        del self._running[trial.id]
        if self.deadline.stopped and event.cancelled():
            return True  # the trial stays open
        outcome, weights = result_of(event)
        if self.deadline.stopped and outcome.status == "truncated":
            if trial.final and outcome.score is None:
                return True  # the trial stays open
            outcome = replace(outcome, error=STOPPED)
        self._finish(trial, outcome, weights)
        return True

    def _epoch_done(self, trial: Trial, outcome: Outcome) -> None:
        """Call the observer; from another thread, leave that to `wait`."""
        if threading.get_ident() != self._thread:
            self._events.put((trial, outcome))
        elif self.observer:
            self.observer.epoch_done(trial, outcome)

    def _finish(self, trial: Trial, outcome: Outcome, weights: Weights | None) -> None:
        ended = self.store.finish(trial.id, outcome, weights, in_background=self.executor.asks_ahead)
        prune(self.store, self.keep)
        if self.observer:
            self.observer.trial_ends(ended)

    def _handle_overdue(self) -> bool:
        """Cancel or fail the trials that are still running after the deadline; returns whether to keep waiting."""
        if self.deadline.stopped:
            return not self._stop_deadline.passed
        if not self._give_up_at.passed:
            self._cancel_queued()
            return True
        for id in self._running:
            error = "no worker returned a result before the deadline"
            self._finish(self.store.trial(id), Outcome("failed", error=error), None)
        self._running.clear()
        return False

    def _cancel_queued(self) -> None:
        for future in list(self._running.values()):
            future.cancel()  # no effect on jobs that a worker has started
