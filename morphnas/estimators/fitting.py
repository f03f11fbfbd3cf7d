"""A fit from the plan to the final model, within one deadline: `base.py` checks, opens and tells around it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

from morphnas.estimators.data_checks import range_of
from morphnas.estimators.data_memory import memory_for
from morphnas.estimators.inputs import Problem
from morphnas.estimators.model import Model
from morphnas.estimators.settings import Settings
from morphnas.estimators.sizes import take_threads
from morphnas.graph import Network
from morphnas.report.words import error_words
from morphnas.run.ensemble import asked, assembled, elect
from morphnas.run.executors import SerialExecutor
from morphnas.run.expectation import SMALL_WIDTH, Forecast, Ladder, Terms
from morphnas.run.files import RunError
from morphnas.run.final import USABLE, Final, close_open_finals, may_have_seen
from morphnas.run.jobs import Executor
from morphnas.run.observers import Observer
from morphnas.run.plan import Plan
from morphnas.run.replacing import model_to_keep
from morphnas.run.search import Search, decide_flip
from morphnas.run.store import Store
from morphnas.run.warn import warn
from morphnas.run.work import measure_mirrored
from morphnas.search import Patient, winner
from morphnas.search.promote import is_promotion
from morphnas.search.trial import Budget, MorphSpace, Proposal, Searcher, Trial
from morphnas.train.data import Task, steps
from morphnas.train.deadline import Deadline
from morphnas.train.predict import chunk, predict
from morphnas.train.recipe import Recipe

log = logging.getLogger("morphnas")

SAVING = 1.5e-8
"""Seconds for each byte of weights that writing them down twice at last, and reading them four times, takes, with some
room (`benchmarks/writing.py`)."""
COMPARED = 0.25
"""Share of the time that comparing the first networks may take, where nothing else is searched."""


def tried(trials: Sequence[Trial]) -> int:
    """Networks that a search has tried: one that was trained on is the same."""
    return sum(not (trial.final or is_promotion(trial)) for trial in trials)


FEW_STEPS, LARGE = 100, 64
"""Training steps below which a fit tells that there are few, and the sides of images, in pixels, from which on."""


@dataclass(frozen=True)
class Firsts:
    """A searcher's first networks: so many, and one of them with weights. Those trained on count once; what is grown
    from one, where there is no time for another, does not take its place."""

    searcher: Searcher
    networks: int

    def ask(self, trials: Sequence[Trial], budget: Budget) -> Proposal | None:
        """See `Searcher`."""
        there = any(trial.kept or trial.outcome is None for trial in trials)
        if tried(trials) >= self.networks and there:
            return None
        proposal = self.searcher.ask(trials, budget)
        return None if proposal and proposal.morphs and there else proposal


@dataclass(frozen=True, eq=False)
class Fitting:
    """A run that is being fitted until `deadline`. refit: whether its winner is trained longer."""

    store: Store
    problem: Problem
    planned: Plan
    settings: Settings
    seed: int
    deadline: Deadline
    refit: bool

    @cached_property
    def searcher(self) -> Searcher:
        planned = self.planned
        space = MorphSpace(planned.starts, planned.limits.morphs)
        searcher = self.settings.searcher(space, recipe=planned.recipe, limits=planned.limits, seed=self.seed)
        if self.compares:
            return Firsts(searcher, len(planned.starts))
        patience = self.settings.search_patience
        return searcher if patience is None else Patient(searcher, patience)

    @cached_property
    def compares(self) -> bool:
        """Whether nothing is searched: the first networks are compared, and the best has the rest of the time."""
        return self.refit and not self.planned.searches

    def warn_of_settings(self) -> None:
        """Where the user has set how to search, and nothing is searched."""
        if not (self.compares and (asked := self.settings.of_searches)):
            return
        words = f"there is no time to search, so there is no effect of {asked}: allow more"
        if self.settings.width is None or self.settings.width > SMALL_WIDTH:
            words += f", or make the first networks small: searcher_args={ {'default_model_width': SMALL_WIDTH} }"
        warn(words)

    def warn_of_large_images(self) -> None:
        """Where large images leave time for so few training steps that hardly anything can be learnt."""
        planned, shape = self.planned, self.problem.preprocessing.shape
        if len(shape) < 3 or min(shape[1:]) < LARGE or not planned.seconds_per_flop:
            return
        n = min(planned.recipe.examples or len(self.problem.task.train), len(self.problem.task.train))
        epoch = planned.seconds_per_flop * min(graph.work for graph in planned.starts)
        count = int(self.deadline.left / epoch * steps(n, planned.recipe.batch_size))
        if count < FEW_STEPS:
            size = "x".join(map(str, shape[1:]))
            words = f"there is time for about {count} training steps on images of {size}, which hardly train a network"
            log.warning("%s: smaller images (image_size=), or a longer time_limit, allow more", words)

    def search_end(self) -> Deadline:
        """When the final trainings begin at the latest.

        First networks that are only compared may take longer than the plan says: all of them are to be trained on a
        machine that is slower than it seemed.
        """
        if not self.refit:
            return self.deadline.earlier(0.02 * min(self.deadline.left, 25))
        share = COMPARED if self.compares else self.planned.search_share
        return self.deadline.earlier((1 - share) * self.deadline.left)  # of little time, preparing has taken much

    @cached_property
    def max_memory(self) -> int | None:
        """See `memory_for`: of a search's training."""
        return memory_for(self.planned.limits.max_memory, self.settings.device, self.settings.place.at_a_time)

    @property
    def scored(self) -> bool:
        """Whether any network can be used."""
        return any(trial.kept and trial.score is not None for trial in self.store.trials)

    def forecast(
        self,
        end: Deadline,
        tell: Callable[[str], None],
        max_trials: int | None,
        for_search: float | None,
        small: bool,
    ) -> Forecast:
        """The observer that says what a search until `end` comes to. for_search, small: see `Expectation`."""
        place = self.settings.place
        terms = Terms(
            max_trials=self.planned.most(max_trials) if self.compares else max_trials,
            finals=self.refit,
            workers=place.at_a_time,
            apart=place.apart,
            ladder=Ladder.of(self.searcher),
            keep=self.settings.keep,
            data=self.problem.bytes_in_memory,
            for_search=for_search,
            small=small,
        )
        gpu = self.settings.device.type == "cuda"
        return Forecast(self.store, self.planned, lambda: end.left, terms, tell, gpu)

    @contextlib.contextmanager
    def searched(
        self, end: Deadline, observer: Observer, all_threads: int, max_trials: int | None = None
    ) -> Iterator[Executor]:
        """Search until `end`; what is given is what runs the final trainings, with `all_threads` of this process."""
        store, planned, place = self.store, self.planned, self.settings.place
        slowest = planned.limits.max_latency_ms
        searching = partial(
            Search,
            store,
            self.searcher,
            seed=self.seed,
            chance=self.problem.chance,
            guess=planned.seconds_per_flop,
            limits=self.settings.limits,
            max_memory=self.max_memory,
            max_latency=None if slowest is None else slowest / 1000,
            keep=self.settings.keep,
            observer=observer,
        )
        threads = min(planned.threads, place.threads or planned.threads)
        task, everything = self.problem.task, self.problem.everything
        executor = place.executor(task, everything, threads, store.path)
        try:
            searching(executor, end, max_trials=max_trials).run()
            missed = len(planned.starts) - tried(store.trials) if self.compares else 0
            if missed > 0 and max_trials is None and not end.stopped:
                level = logging.WARNING if self.settings.initial else logging.INFO
                log.log(level, "%d of the %d first networks did not fit into the time", missed, len(planned.starts))
            alone = SerialExecutor(task, everything)
            nothing = not (self.deadline.stopped or any(trial.kept for trial in store.trials))
            if nothing and not isinstance(executor, SerialExecutor):  # no worker came in time
                half = self.deadline.earlier(0.5 * self.deadline.left)
                tries = sum(not trial.final for trial in store.trials)
                searching(alone, half, max_trials=tries + 1).run()
            if place.workers:  # the final trainings have this machine for themselves
                executor.shutdown()
                executor = alone
                take_threads(task, planned.recipe, all_threads, self.deadline.left)
            yield executor
        finally:
            executor.shutdown()

    def finished(self, executor: Executor, observer: Observer) -> tuple[Trial, Trial]:
        """The search's winner, and the final model's trial: the winner's own without `refit`.

        RunError where no network could be trained.
        """
        best, searched = self._winner()
        self._warn_of_failures(searched)
        final, problem = best, self.problem
        if self.refit:
            final = self.final(best, self.recipe_of(best, searched), executor, observer)
        best, final = model_to_keep(self.store, best, final, problem.task, problem.everything, problem.name)
        if best.score is None and self.store.trial(final.scored_by).score is None:
            said = None if best.outcome is None else best.outcome.error
            why = "the time limit was too short to score a network"
            why = why if said is None else f"no network has a score: {said}"
            what = "the model is hardly trained" if final.id == best.id else "how good the model is, is unknown"
            warn(f"{why}: {what}")
        told = [t.outcome.metric for t in self.store.trials if t.outcome is not None and t.outcome.metric is not None]
        goal, chance = problem.task.goal, problem.chance
        if told and goal.measure == goal.standard.measure and max(told) <= chance and problem.task.valid is not None:
            words = f"no network is better than always the same answer, which has {goal.measure} {chance:.4g}"
            log.warning("%s (the best of them: %.4g): is there anything about y in x?", words, max(told))
        return best, final

    def recipe_of(self, best: Trial, trials: Sequence[Trial]) -> Recipe:
        """The network's recipe, with `flip` decided: by it, where no training of these trials had the time to ask."""
        store, problem = self.store, self.problem
        recipe, outcome = decide_flip(best.proposal.recipe, trials, problem.chance), best.outcome
        if recipe.augment.flip is not None or not best.kept or outcome is None or outcome.metric is None:
            return recipe
        module = store.network(best.id).to_module().to(problem.task.device)
        told = measure_mirrored(outcome, module, problem.task, chunk(outcome.micro_batch), self.deadline)
        return decide_flip(recipe, [replace(best, outcome=told)], problem.chance)

    def final(
        self,
        best: Trial,
        recipe: Recipe,
        executor: Executor,
        observer: Observer,
        *,
        retrain: bool = False,
        epochs: int | None = None,
        tested: int = 0,
    ) -> Trial:
        """The trial of the final network, see `Final`. tested: examples that it is asked about after everything."""
        problem, planned = self.problem, self.planned
        before = {trial.id for trial in self.store.trials}
        final = Final(
            self.store,
            best,
            executor,
            problem.task,
            recipe,
            saving(self.deadline, best, readings(problem, recipe, self.settings.ensemble, tested)),
            chooser=problem.chooser,
            everything=problem.everything,
            seed=self.seed,
            retrain=retrain,
            judged=self.settings.ensemble > 1,
            epochs=epochs,
            guess=planned.seconds_per_flop,
            max_memory=memory_for(planned.limits.max_memory, self.settings.device),
            data=problem.name,
            observer=observer,
        ).run()
        made = [t.outcome for t in self.store.trials if t.id not in before and t.outcome is not None]
        if made and all(outcome.status not in USABLE for outcome in made):
            warn(f"nothing was gained, as the training came to nothing: {error_words(made[0])}")
        elif failed := [outcome for outcome in made if outcome.status == "failed"]:
            words = f"{len(failed)} of {len(made)} final trainings failed"
            warn(f"{words}, so that the model may be worse: {error_words(failed[0])}")
        return final

    def model(self, best: Trial, final: Trial, before: Model | None = None) -> Model:
        """The model of the final trial's network, or of an ensemble around it, written down. before: the one in use.

        The run's own stays where it is that trial's, and an ensemble where one is asked for, of no more members.
        """
        store = self.store
        model = self._stored(final) or self._made(best, final, before)
        store.note(best=model.best, final=model.trial, members=model.shares)
        if not self.deadline.stopped:
            close_open_finals(store)
            store.note(settled=max(trial.id for trial in store.trials))
        return model

    def _stored(self, final: Trial) -> Model | None:
        with contextlib.suppress(RunError):
            model = Model.stored(self.store.path) if final.id == self.store.about.get("final") else None
            if model and model.trial == final.id and self.settings.allows(len(model.members)):
                return model
        return None

    def _made(self, best: Trial, final: Trial, before: Model | None) -> Model:
        store, problem, limits = self.store, self.problem, self.settings.limits
        task, mirrored = problem.task, mirrors(final.proposal.recipe, problem.task)
        mirrored = mirrored and limits.max_latency_ms is None  # mirror images take as long again
        given = (problem.chooser, self.settings.ensemble, mirrored, self.deadline)
        shares = elect(store, final, task, *given, data=problem.name, limits=limits)
        judge = store.trial(final.scored_by)
        fresh = judge.final and judge.parent is None
        if (
            may_have_seen(store, best, problem.name) and not fresh
        ):  # the one before is from examples that were not known then
            temperature = 1.0 if before is None else before.temperature
        else:
            brief = None if judge.id == final.id or judge.final or judge.outcome is None else judge.outcome.epochs
            judged = assembled(store, shares, {final.id: judge.id})
            temperature = calibration_temperature(judged, task, mirrored, self.deadline.heeding(None), brief)
        model = Model(
            network=assembled(store, shares),
            target=problem.target,
            preprocessing=problem.preprocessing,
            best=best.id,
            trial=final.id,
            members=shares,
            mean=task.scale[0],
            std=task.scale[1],
            range=tuple(range_of(task.train.x) if task.train.x.ndim == 4 else ()),
            mirrors=mirrored,
            temperature=temperature,
        )
        store.write_model(model.network, model.to_json())
        return model

    @staticmethod
    def _warn_of_failures(trials: Sequence[Trial]) -> None:
        ended = [trial.outcome for trial in trials if trial.outcome is not None]
        failed = [outcome for outcome in ended if outcome.status == "failed"]
        if not failed:
            return
        words = f"{len(failed)} of the search's {len(ended)} trainings failed, the first with: {error_words(failed[0])}"
        if 2 * len(failed) >= len(ended):
            warn(words)
        else:
            log.warning("%s", words)

    def _winner(self) -> tuple[Trial, list[Trial]]:
        """The best network that can be read, and all that the search has tried."""
        while True:
            searched = [trial for trial in self.store.trials if not trial.final]
            best = winner(searched)
            if best is None or not best.kept or _readable(self.store, best):
                break
        if best is not None and best.kept:
            if best.outcome is not None and best.outcome.slow:
                most, took = self.planned.limits.max_latency_ms, 1000 * (best.outcome.latency or 0.0)
                warn(f"no network is as fast as {most:g} ms: the fastest takes {took:.3g} ms")
            return best, searched
        if (kept := next((trial for trial in searched if trial.kept), None)) is None:
            error = next((t.outcome.error for t in searched if t.outcome and t.outcome.error), "none was tried")
            raise RunError(f"no network could be trained; the run is in {self.store.path}, the first error: {error}")
        return kept, searched


def _readable(store: Store, trial: Trial) -> bool:
    """Whether a trial's weights can be read; if not, a warning says so, and they count as lost."""
    try:
        store.network(trial.id)
    except RunError as error:
        warn(f"the weights of trial {trial.id} are lost: {error}")
        store.forget_weights(trial.id)
        return False
    return True


def calibration_temperature(judged: Network, task: Task, mirrors: bool, deadline: Deadline, brief: int | None) -> float:
    """What makes outputs as sure as they may be, of a network that was not trained on the validation part.

    On as many of its examples as there is time for; 1 if these are too few to say. brief: the epochs of a network that
    stands in for one which was trained far longer. What it says counts the less the fewer they are, and that it may
    make mistakes which it did not make on a few examples is no reason to doubt the other (`benchmarks/temperature.py`).
    """
    if task.valid is None:
        return 1.0
    outputs = predict(judged.to_module().to(task.device), task.valid.x, task, deadline=deadline, mirrored=mirrors)
    if len(outputs) < min(len(task.valid), 30):
        return 1.0
    asked = task.valid[: len(outputs)]
    temperature = task.goal.temperature(outputs, asked.y, asked.weights)
    if brief is None:
        return temperature
    sure = task.goal.temperature(outputs, asked.y, asked.weights, cautious=False)
    return float(min(temperature, max(1.0, sure)) ** min(1.0, 0.5 + 0.1 * (brief - 1)))


def mirrors(recipe: Recipe, task: Task) -> bool:
    """Whether a network that was trained so reads mirror images as well: where there is an axis to mirror."""
    return recipe.augment.flip is True and task.train.x.ndim > 2


def readings(problem: Problem, recipe: Recipe, ensemble: int, more: int = 0) -> int:
    """Examples that are passed through networks after the last training: for the temperature, an ensemble, and more."""
    once = len(problem.task.evaluation_set) + asked(ensemble, problem.task, problem.chooser) + more
    return once * (1 + mirrors(recipe, problem.task))


def saving(deadline: Deadline, best: Trial, examples: int) -> Deadline:
    """The deadline less what it takes to write the model down, and to pass examples once through the best network."""
    speed = best.outcome.images_per_second if best.outcome else 0.0
    scoring = 0.5 * examples / speed if speed else 0.0
    writing = min(0.5, 0.02 * deadline.left) + min(4 * best.graph.parameters * SAVING, 0.1 * deadline.left)
    return deadline.earlier(writing + min(scoring, 0.5 * deadline.left))
