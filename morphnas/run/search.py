"""The loop of a search: ask the searcher, submit trainings to workers, and store their results."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace

from morphnas.graph import Graph, Limits, Network
from morphnas.run.files import RunError
from morphnas.run.jobs import Executor
from morphnas.run.observers import Observer
from morphnas.run.proposing import Asker, SearcherError
from morphnas.run.pruning import prune
from morphnas.run.store import Store
from morphnas.run.trainings import Trainings
from morphnas.run.warn import warn
from morphnas.search.trial import Budget, Searcher, Trial
from morphnas.train.deadline import Deadline
from morphnas.train.recipe import Recipe

log = logging.getLogger("morphnas")

MAX_FAILED_TRIALS = 9
"""Number of trials from which on failed ones are not repeated any more, although there is no usable network."""
MAX_REFUSED = 50
"""Consecutive proposals beyond the limits after which the search ends."""
RETRIED_STATUSES = ("failed", "diverged")
"""Outcomes that may be due to chance: if there is no usable network at all, the same ones may be proposed again."""
MAX_FLIP_DROP = 0.03
"""Flips are used unless a network trained without them loses more of its accuracy or R2 on mirrored images."""
MAX_FLIP_SLACK = 0.1
"""The most that is added to this for the uncertainty of few validation examples (`benchmarks/few.py`)."""
UNLIMITED = Limits()


def decide_flip(recipe: Recipe, trials: Sequence[Trial], baseline_metric: float) -> Recipe:
    """The recipe with `flip` decided by the first network that is good enough, or unchanged if there is none.

    Flips are used unless its metric drops on mirrored images by more than `MAX_FLIP_DROP` plus 1.64 standard errors
    (5 %, one-sided; an upper bound on the error of a difference of two shares of the held-out examples), but at most
    plus `MAX_FLIP_SLACK`. It is good enough with a metric of at least 30 points above `baseline_metric`, or half of the
    way from it to 1. Until then networks are trained without flips, and evaluated on mirrored images.
    """
    if recipe.augment.flip is not None:
        return recipe
    for trial in trials:
        outcome = trial.outcome
        if outcome is None or outcome.upright is None or outcome.mirrored is None:
            continue
        if outcome.upright >= min(baseline_metric + 0.3, (1 + baseline_metric) / 2):
            differing = min(1.0, 2 - outcome.upright - outcome.mirrored)
            error = math.sqrt(max(0.0, differing) / max(1, outcome.examples))
            flip = outcome.upright - outcome.mirrored < MAX_FLIP_DROP + min(MAX_FLIP_SLACK, 1.64 * error)
            return replace(recipe, augment=replace(recipe.augment, flip=flip))
    return recipe


def seconds_per_flop(trials: Sequence[Trial], guess: float) -> float:
    """Seconds of an epoch per FLOP of `Graph.work`: the median of the last 9 finished trials, or else `guess`."""
    measured = [
        outcome.seconds / outcome.epochs / trial.graph.work
        for trial in trials
        if (outcome := trial.outcome) is not None
        and outcome.status == "finished"
        and outcome.epochs
        and not trial.final
        and trial.proposal.recipe.layers == "all"
    ]
    return statistics.median(measured[-9:]) if measured else guess


@dataclass(eq=False)
class Search:
    """A search: `run` asks for proposals and trains them until the deadline, `max_trials` or the searcher ends it.

    Final trainings do not count as trials of the search, and are not passed to searchers.
    Trials that an earlier driver claimed and did not finish, or that a stop cut short (unless others start from them),
    run first, under their ids, except final trainings, which are left to `morphnas.run.final`. If there is no network
    yet, at least one trial is started, however short the time, so that there is one at the end. A worker gets its next
    job as soon as it is free.

    baseline_metric: see `decide_flip`. guess: seconds per FLOP, until some are measured. limits: networks beyond these
    fail without training, whoever proposes them. For the other settings, and trials that run at the end, see
    `Trainings`.
    """

    store: Store
    searcher: Searcher
    executor: Executor
    deadline: Deadline
    _: KW_ONLY
    seed: int = 0
    max_trials: int | None = None
    baseline_metric: float = 0.0
    guess: float = 0.0
    limits: Limits = UNLIMITED
    max_memory: int | None = None
    max_latency: float | None = None
    keep: int | None = None
    observer: Observer | None = None

    def __post_init__(self) -> None:
        parents = {trial.parent for trial in self.store.trials}
        for trial in self.store.trials:
            if trial.cut_short and trial.id not in parents:
                self.store.reopen(trial.id)
        self._waiting = [trial for trial in self.store.trials if trial.outcome is None and not trial.final]
        self._interrupted = {trial.id for trial in self._waiting}
        self._trainings = Trainings(
            self.store,
            self.executor,
            self.deadline,
            seed=self.seed,
            max_memory=self.max_memory,
            max_latency=self.max_latency,
            keep=self.keep,
            observer=self.observer,
        )
        self._asker = Asker(self.searcher, self.store, self.executor.asks_ahead, self.deadline.clock)
        self._started, self._refused = False, 0

    def run(self) -> None:
        """Run the search. Errors of the store, and `DeviceLost`, are raised; those in a trial are its outcome.

        SearcherError if the searcher fails before any network is trained; later this ends the search with a warning.
        """
        prune(self.store, self.keep)  # in case an earlier driver was interrupted before it did
        failed: SearcherError | None = None
        with self._asker:
            while True:
                try:
                    while not (failed or self._trainings.full) and (job := self._next()) is not None:
                        self._begin(*job)
                except SearcherError as error:
                    failed = error
                if not self._trainings.wait():
                    break
        self.store.restore_reopened()
        self.store.wait_for_writes()
        if failed is None:
            return
        if not any(trial.kept for trial in self.store.trials):
            raise failed
        log.error("the search ends: %s", failed, exc_info=failed.__cause__)
        warn(f"the search ends, and can be continued with resume=True: {failed}")

    # -- what to do next

    def _searched(self) -> list[Trial]:
        """The trials that searchers see. Final trainings may have used the examples that networks are scored on."""
        return [trial for trial in self.store.trials if not trial.final]

    def _budget(self, trials: Sequence[Trial], seconds: float = 0.0) -> Budget:
        """The budget that is left after so many seconds."""
        trials_left = None if self.max_trials is None else self.max_trials - len(trials)
        return Budget(max(0.0, self.deadline.left - seconds), trials_left, seconds_per_flop(trials, self.guess))

    def _all_tried(self, trials: Sequence[Trial]) -> bool:
        return self.max_trials is not None and len(trials) >= self.max_trials

    def _all_failed(self, trials: Sequence[Trial]) -> bool:
        """Whether no trial is usable and none runs, of fewer than `MAX_FAILED_TRIALS`."""
        return not self._trainings and len(trials) < MAX_FAILED_TRIALS and not any(map(_usable, trials))

    def _kept(self, id: int) -> bool:
        return any(trial.id == id and trial.kept for trial in self.store.trials)

    def _next(self) -> tuple[Trial, Network | None] | None:
        """The next trial for a worker, and the network that it starts from, if that was read ahead."""
        trials, deadline, asker = self._searched(), self.deadline, self._asker
        needed = not self._started and not any(trial.kept for trial in trials)
        if self._waiting and not (deadline.passed and any(trial.outcome for trial in trials)):
            return self._waiting.pop(0), None
        if self._all_tried(trials) or (deadline.passed and not needed) or self._refused >= MAX_REFUSED:
            return None
        proposal, network = asker.take(deadline)
        if deadline.passed and not needed:
            return None
        if proposal and proposal.parent is not None and not self._kept(proposal.parent):
            proposal = network = None  # the weights of its parent have been removed since
        if proposal is None and not needed and deadline.left < asker.seconds:
            return None  # the answer would come too late
        if proposal is None:
            proposal = asker.ask_now(trials, self._budget(trials))
        if proposal is None and needed:  # none can finish in time, but a network that is cut short is better than none
            proposal = asker.ask_now((), replace(self._budget(trials), seconds=math.inf))
        if proposal is None and self._all_failed(trials):
            others = [t for t in trials if t.outcome is None or t.outcome.status not in RETRIED_STATUSES]
            proposal = asker.ask_now(others, self._budget(trials))  # may propose the failed ones again
        if proposal is None or (deadline.passed and not needed):
            return None
        given = {"weights": "given"} if self.store.has_start_weights(proposal.start) else {}
        recipe, why = decide_flip(proposal.recipe, trials, self.baseline_metric), {**proposal.why, **given}
        return self.store.claim(replace(proposal, recipe=recipe, why=why)), network

    def _ask_ahead(self, trial: Trial) -> None:
        """Ask for the next proposal while this trial, which has no outcome yet, and the others run."""
        trials = self._searched()
        if not (self._waiting or self.deadline.passed or self._all_tried(trials)):
            seconds = self._budget(trials).predict(trial.graph, trial.proposal.recipe.epochs) / self.executor.workers
            self._asker.ask_ahead(trials, self._budget(trials, seconds))

    def _begin(self, trial: Trial, network: Graph | Network | None) -> None:
        self._started = True
        if (refused := self.limits.violation(trial.graph)) is not None:
            self._trainings.fail(trial, f"the proposed network exceeds the limits: {refused}")
            self._refused += 1
            if self._refused == MAX_REFUSED:
                log.warning("the search ends: its last %d networks exceeded the limits, with %s", MAX_REFUSED, refused)
            return
        self._refused = 0
        try:
            network = network or self.store.start(trial.proposal.start)
        except RunError as error:  # the parent's weights cannot be read, so nothing can start from it any more
            self.store.forget_weights(trial.parent)
            self._trainings.fail(trial, str(error))
            return
        if len(self._trainings) + 1 == self.executor.workers:
            self._ask_ahead(trial)
        self._trainings.submit(trial, network, resumed=trial.id in self._interrupted)


def _usable(trial: Trial) -> bool:
    return trial.kept and not (trial.score is None and trial.outcome and trial.outcome.status in RETRIED_STATUSES)
