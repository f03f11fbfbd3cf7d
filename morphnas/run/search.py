"""Carrying a search out: ask, hand out work, and write down what comes back."""

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

TRIES = 9
"""Trainings that must have failed before a search without any network is given up."""
REFUSED = 50
"""Networks beyond the limits, one after the other, after which no more are asked for."""
AGAIN = ("failed", "diverged")
"""What may come of a training by chance: where there is nothing else, its network is tried once more."""
DROP = 0.03
"""What mirrored images may cost a network that was trained without them, of its accuracy or R2, if they are to help."""
UNLIMITED = Limits()


def decide_flip(recipe: Recipe, trials: Sequence[Trial], chance: float) -> Recipe:
    """The recipe with `flip` decided, once a network knows: unless mirrored images cost it more than `DROP`, clearly.

    Clearly is by 1.64 standard errors (5 %, one-sided) of the difference of two shares of the same examples, at most.
    Until a network is at least 30 points above `chance`, or half of what is left above it, networks are trained without
    flips and asked.
    """
    if recipe.augment.flip is not None:
        return recipe
    for trial in trials:
        outcome = trial.outcome
        if outcome is None or outcome.upright is None or outcome.mirrored is None:
            continue
        if outcome.upright >= min(chance + 0.3, (1 + chance) / 2):
            differing = min(1.0, 2 - outcome.upright - outcome.mirrored)
            error = math.sqrt(max(0.0, differing) / max(1, outcome.examples))
            flip = outcome.upright - outcome.mirrored < DROP + 1.64 * error
            return replace(recipe, augment=replace(recipe.augment, flip=flip))
    return recipe


def seconds_per_flop(trials: Sequence[Trial], guess: float) -> float:
    """Seconds an epoch takes for every FLOP of a network's `work`: the median of the search's last trials."""
    seen = [
        outcome.seconds / outcome.epochs / trial.graph.work
        for trial in trials
        if (outcome := trial.outcome) is not None
        and outcome.status == "finished"
        and outcome.epochs
        and not trial.final
    ]
    return statistics.median(seen[-9:]) if seen else guess


@dataclass(eq=False)
class Search:
    """A search: `run` asks, trains and writes down until the deadline, `max_trials` or the searcher ends it.

    Final trainings that there are do not count, and searchers do not know of them.
    Trials that an earlier driver claimed and did not finish, or that a stop cut short, are run first, under their ids,
    but for final trainings, which wait for `morphnas.run.final`. Where there is no network yet, at least one trial is
    begun, however short the time, so that there is one at the end. A worker gets its next job as soon as it is free.

    guess: seconds per FLOP, before any is measured. limits: beyond which networks fail untrained, whoever proposes
    them. The other settings, and what becomes of what runs at the end: see `Trainings`.
    """

    store: Store
    searcher: Searcher
    executor: Executor
    deadline: Deadline
    _: KW_ONLY
    seed: int = 0
    max_trials: int | None = None
    chance: float = 0.0
    guess: float = 0.0
    limits: Limits = UNLIMITED
    max_memory: int | None = None
    max_latency: float | None = None
    keep: int | None = None
    observer: Observer | None = None

    def __post_init__(self) -> None:
        started = {trial.parent for trial in self.store.trials}
        for trial in self.store.trials:
            if trial.cut_short and trial.id not in started:
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
        self._asker = Asker(self.searcher, self.store, self.executor.ahead, self.deadline.clock)
        self._begun, self._refused = False, 0

    def run(self) -> None:
        """Raises what ends the store; what goes wrong in a trial is its outcome.

        SearcherError if the searcher fails before any network is trained; later that ends the search, with a warning.
        """
        prune(self.store, self.keep)  # as it would have been, had the driver not been interrupted
        failed: SearcherError | None = None
        with self._asker:
            while True:
                try:
                    while not (failed or self._trainings.full) and (following := self._next()) is not None:
                        self._begin(*following)
                except SearcherError as error:
                    failed = error
                if not self._trainings.hear():
                    break
        self.store.put_back()
        self.store.written()
        if failed is None:
            return
        if not any(trial.kept for trial in self.store.trials):
            raise failed
        log.error("the search ends: %s", failed, exc_info=failed.__cause__)
        warn(f"the search ends, with resume=True it can go on: {failed}")

    # -- what to do next

    def _tried(self) -> list[Trial]:
        """What searchers know of: final trainings may have been on examples that networks are scored on."""
        return [trial for trial in self.store.trials if not trial.final]

    def _budget(self, trials: Sequence[Trial], seconds: float = 0.0) -> Budget:
        """What is left in so many seconds."""
        more = None if self.max_trials is None else self.max_trials - len(trials)
        return Budget(max(0.0, self.deadline.left - seconds), more, seconds_per_flop(trials, self.guess))

    def _enough(self, trials: Sequence[Trial]) -> bool:
        return self.max_trials is not None and len(trials) >= self.max_trials

    def _kept(self, id: int) -> bool:
        return any(trial.id == id and trial.kept for trial in self.store.trials)

    def _next(self) -> tuple[Trial, Network | None] | None:
        """What a worker is to do, and the network that it starts from, where that was read ahead."""
        trials, deadline, asker = self._tried(), self.deadline, self._asker
        needed = not self._begun and not any(trial.kept for trial in trials)
        if self._waiting and not (deadline.passed and any(trial.outcome for trial in trials)):
            return self._waiting.pop(0), None
        if self._enough(trials) or (deadline.passed and not needed) or self._refused >= REFUSED:
            return None
        proposal, network = asker.taken(deadline)
        if deadline.passed and not needed:
            return None
        if proposal and proposal.parent is not None and not self._kept(proposal.parent):
            proposal = network = None  # its start's weights were removed since
        if proposal is None and not needed and deadline.left < asker.seconds:
            return None  # it would come too late
        if proposal is None:
            proposal = asker.now(trials, self._budget(trials))
        if proposal is None and needed:  # nothing can finish in time: better a network cut short than none
            proposal = asker.now((), replace(self._budget(trials), seconds=math.inf))
        if proposal is None and not self._trainings and len(trials) < TRIES and not any(map(_usable, trials)):
            others = [trial for trial in trials if trial.outcome is None or trial.outcome.status not in AGAIN]
            proposal = asker.now(others, self._budget(trials))  # the failed ones once more
        if proposal is None or (deadline.passed and not needed):
            return None
        given = {"weights": "given"} if self.store.gives(proposal.start) else {}
        recipe, why = decide_flip(proposal.recipe, trials, self.chance), {**proposal.why, **given}
        return self.store.claim(replace(proposal, recipe=recipe, why=why)), network

    def _ask_ahead(self, trial: Trial) -> None:
        """Ask for what comes after this trial, of which nothing is known yet, and the others that run."""
        trials = self._tried()
        if not (self._waiting or self.deadline.passed or self._enough(trials)):
            seconds = self._budget(trials).predict(trial.graph, trial.proposal.recipe.epochs) / self.executor.workers
            self._asker.ahead(trials, self._budget(trials, seconds))

    def _begin(self, trial: Trial, network: Graph | Network | None) -> None:
        self._begun = True
        if (refused := self.limits.refuse(trial.graph)) is not None:
            self._trainings.fail(trial, f"the searcher exceeds the limits: {refused}")
            self._refused += 1
            if self._refused == REFUSED:
                log.warning("the search ends: its last %d networks exceeded the limits, with %s", REFUSED, refused)
            return
        self._refused = 0
        try:
            network = network or self.store.start(trial.proposal.start)
        except RunError as error:  # the weights of the start: nothing can be begun from it any more
            self.store.forget_weights(trial.parent)
            self._trainings.fail(trial, str(error))
            return
        if len(self._trainings) + 1 == self.executor.workers:
            self._ask_ahead(trial)
        self._trainings.begin(trial, network, again=trial.id in self._interrupted)


def _usable(trial: Trial) -> bool:
    return trial.kept and not (trial.score is None and trial.outcome and trial.outcome.status in AGAIN)
