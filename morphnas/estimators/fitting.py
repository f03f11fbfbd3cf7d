"""A fit from its plan to the final model, within one deadline; `base.py` checks the arguments and opens the run."""

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
from morphnas.estimators.sizes import use_fastest_threads
from morphnas.graph import Network
from morphnas.report.words import error_words
from morphnas.run.ensemble import build_ensemble, count_evaluated, select_members
from morphnas.run.executors import SerialExecutor
from morphnas.run.expectation import SMALL_WIDTH, ExpectationReporter, Ladder, SearchConditions
from morphnas.run.files import RunError
from morphnas.run.final import USABLE_STATUSES, Final, close_open_finals, may_have_seen
from morphnas.run.jobs import Executor
from morphnas.run.observers import Observer
from morphnas.run.plan import Plan
from morphnas.run.replacing import model_to_keep
from morphnas.run.search import Search, decide_flip, seconds_per_flop
from morphnas.run.store import Store
from morphnas.run.warn import warn
from morphnas.run.work import measure_mirrored
from morphnas.search import Patient, Pretrained, winner
from morphnas.search.pretrained import compares_ways, recipe_for_all_layers
from morphnas.search.trial import Budget, MorphSpace, Proposal, Searcher, Trial
from morphnas.train.data import Task, batch_count
from morphnas.train.deadline import Deadline
from morphnas.train.predict import evaluation_batch_size, predict
from morphnas.train.recipe import Recipe

log = logging.getLogger("morphnas")

SAVING = 1.5e-8
"""Seconds per byte of weights for writing them twice and reading them four times at the end of a fit, with a margin
(`benchmarks/writing.py`)."""
COMPARISON_SHARE = 0.25
"""Largest share of the time for comparing the starters, if there is no search beyond them."""
MIN_STEPS, LARGE_IMAGE = 100, 64
"""Training steps below which a fit warns, and the length in pixels that all sides of the images must have for that."""


def count_networks(trials: Sequence[Trial]) -> int:
    """Number of networks tried by a search: trainings that train the same network further are not counted."""
    return sum(not (trial.final or trial.proposal.trains_on) for trial in trials)


@dataclass(frozen=True)
class StartersOnly:
    """A searcher that passes on the first `count` networks of `searcher`, and more only if all of these have failed.

    Promotions are not counted. Proposals with morphs, which the other searcher makes if there is no time for another
    starter, are dropped, unless there is no network yet; so are promotions of the last network, except the trainings by
    which `Pretrained` compares the ways to train a network with given weights.
    """

    searcher: Searcher
    count: int

    def ask(self, trials: Sequence[Trial], budget: Budget) -> Proposal | None:
        """See `Searcher`."""
        has_network = any(trial.kept or trial.outcome is None for trial in trials)
        complete = count_networks(trials) >= self.count and has_network
        if complete and not isinstance(self.searcher, Pretrained):
            return None
        proposal = self.searcher.ask(trials, budget)
        if proposal is None or (has_network and proposal.morphs) or (complete and not compares_ways(proposal)):
            return None
        return proposal


@dataclass(frozen=True, eq=False)
class Fitting:
    """The search and the final trainings of a run, until `deadline`. refit: whether the winner is trained longer."""

    store: Store
    problem: Problem
    plan: Plan
    settings: Settings
    seed: int
    deadline: Deadline
    refit: bool

    @cached_property
    def searcher(self) -> Searcher:
        plan = self.plan
        space = MorphSpace(plan.starts, plan.limits.morphs)
        searcher = self.settings.searcher(space, recipe=plan.recipe, limits=plan.limits, seed=self.seed)
        if given := frozenset(network.graph.key for network in self.settings.networks):
            searcher = Pretrained(searcher, given, plan.recipe, frozenset(self.settings.trainer_args))
        if self.starters_only:
            return StartersOnly(searcher, len(plan.starts))
        patience = self.settings.search_patience
        return searcher if patience is None else Patient(searcher, patience)

    @property
    def last_layers_only(self) -> bool:
        """Whether the user has only last layers trained, for which morphs are of no use."""
        return self.settings.trainer_args.get("layers") == "last"

    @cached_property
    def starters_only(self) -> bool:
        """Whether only the starters are compared, without a search, and the best one gets the rest of the time."""
        return self.last_layers_only or (self.refit and not self.plan.searches)

    def warn_of_settings(self) -> None:
        """Warn of search settings that have no effect because there is no time for a search."""
        if self.last_layers_only or not (self.starters_only and (ignored := self.settings.search_only_settings)):
            return
        message = f"there is no time to search, so these settings have no effect: {ignored}; allow more time"
        if self.settings.width is None or self.settings.width > SMALL_WIDTH:
            message += f", or make the first networks small: searcher_args={ {'default_model_width': SMALL_WIDTH} }"
        warn(message)

    def warn_of_large_images(self) -> None:
        """Warn if large images leave time for fewer than `MIN_STEPS` training steps of the cheapest starter, unless a
        starter is trained already."""
        plan, shape = self.plan, self.problem.preprocessing.shape
        if len(shape) < 3 or min(shape[1:]) < LARGE_IMAGE or not plan.seconds_per_flop or self.settings.networks:
            return
        n = min(plan.recipe.examples or len(self.problem.task.train), len(self.problem.task.train))
        seconds_per_epoch = plan.seconds_per_flop * min(graph.work for graph in plan.starts)
        count = int(self.deadline.left / seconds_per_epoch * batch_count(n, plan.recipe.batch_size))
        if count < MIN_STEPS:
            size = "x".join(map(str, shape[1:]))
            message = f"there is time for about {count} training steps on images of {size}"
            hint = "smaller images (image_size=), or a longer time_limit, allow more"
            log.warning("%s, which hardly train a network: %s", message, hint)

    def search_end(self) -> Deadline:
        """The latest start of the final trainings.

        A comparison of the starters may take longer than planned, so that all are trained even on a machine that is
        slower than measured.
        """
        if not self.refit:
            return self.deadline.earlier(0.02 * min(self.deadline.left, 25))
        share = COMPARISON_SHARE if self.starters_only else self.plan.search_share
        # a share of the time left, as preparing the data may have taken much of a short limit
        return self.deadline.earlier((1 - share) * self.deadline.left)

    @cached_property
    def max_memory(self) -> int | None:
        """Bytes for each training of the search, see `memory_for`."""
        return memory_for(self.plan.limits.max_memory, self.settings.device, self.settings.place.parallel_trials)

    @property
    def has_scored_network(self) -> bool:
        """Whether there is a network with weights and a score."""
        return any(trial.kept and trial.score is not None for trial in self.store.trials)

    def forecast(
        self,
        end: Deadline,
        tell: Callable[[str], None],
        max_trials: int | None,
        for_search: float | None,
        small: bool,
    ) -> ExpectationReporter:
        """The observer that reports what to expect of a search until `end`. for_search, small: see `Expectation`."""
        place = self.settings.place
        conditions = SearchConditions(
            max_trials=self.plan.max_networks(max_trials) if self.starters_only else max_trials,
            finals=self.refit,
            workers=place.parallel_trials,
            separate_processes=place.uses_other_processes,
            ladder=Ladder.of(self.searcher),
            keep=self.settings.keep,
            data=self.problem.bytes_in_memory,
            for_search=for_search,
            small=small,
        )
        gpu = self.settings.device.type == "cuda"
        return ExpectationReporter(self.store, self.plan, lambda: end.left, conditions, tell, gpu)

    @contextlib.contextmanager
    def search(
        self, end: Deadline, observer: Observer, all_threads: int, max_trials: int | None = None
    ) -> Iterator[Executor]:
        """Search until `end`, then yield the executor for the final trainings.

        all_threads: number of CPU threads that these may use, once the search's workers have ended.
        """
        store, plan, place = self.store, self.plan, self.settings.place
        max_latency_ms = plan.limits.max_latency_ms
        make_search = partial(
            Search,
            store,
            self.searcher,
            seed=self.seed,
            baseline_metric=self.problem.baseline_metric,
            guess=plan.seconds_per_flop,
            limits=self.settings.limits,
            max_memory=self.max_memory,
            max_latency=None if max_latency_ms is None else max_latency_ms / 1000,
            keep=self.settings.keep,
            observer=observer,
        )
        threads = min(plan.threads, place.threads or plan.threads)
        task, all_examples = self.problem.task, self.problem.all_examples
        executor = place.executor(task, all_examples, threads, store.path)
        try:
            make_search(executor, end, max_trials=max_trials).run()
            missed = len(plan.starts) - count_networks(store.trials) if self.starters_only else 0
            if missed > 0 and max_trials is None and not end.stopped:
                level = logging.WARNING if self.settings.initial else logging.INFO
                log.log(level, "%d of the %d first networks did not fit into the time", missed, len(plan.starts))
            serial = SerialExecutor(task, all_examples)
            no_network = not (self.deadline.stopped or any(trial.kept for trial in store.trials))
            if no_network and not isinstance(executor, SerialExecutor):  # no worker started in time
                fallback_end = self.deadline.earlier(0.5 * self.deadline.left)
                n_trials = sum(not trial.final for trial in store.trials)
                make_search(serial, fallback_end, max_trials=n_trials + 1).run()
            if place.workers:  # the final trainings use this process alone
                executor.shutdown()
                executor = serial
                use_fastest_threads(task, plan.recipe, all_threads, self.deadline.left)
            yield executor
        finally:
            executor.shutdown()

    def finish(self, executor: Executor, observer: Observer) -> tuple[Trial, Trial]:
        """The winner of the search, and the trial of the final network, which without `refit` is the winner itself.

        RunError if no network could be trained.
        """
        best, search_trials = self._winner()
        self._warn_of_failures(search_trials)
        final, problem = best, self.problem
        if self.refit:
            final = self.train_final(best, self.recipe_of(best, search_trials), executor, observer)
        best, final = model_to_keep(self.store, best, final, problem.task, problem.all_examples, problem.name)
        if best.score is None and self.store.trial(final.scored_by).score is None:
            error = None if best.outcome is None else best.outcome.error
            reason = "the time limit was too short to score a network"
            reason = reason if error is None else f"no network has a score: {error}"
            effect = "the model is hardly trained" if final.id == best.id else "the quality of the model is unknown"
            warn(f"{reason}: {effect}")
        outcomes = [trial.outcome for trial in self.store.trials if trial.outcome is not None]
        metrics = [outcome.metric for outcome in outcomes if outcome.metric is not None]
        goal, baseline_metric = problem.task.goal, problem.baseline_metric
        usual_metric = goal.measure == goal.standard.measure
        if metrics and usual_metric and max(metrics) <= baseline_metric and problem.task.valid is not None:
            message = f"no network is better than a constant prediction, which has {goal.measure} {baseline_metric:.4g}"
            log.warning("%s (best network: %.4g): does x hold any information about y?", message, max(metrics))
        return best, final

    def recipe_of(self, best: Trial, trials: Sequence[Trial], retrain: bool = False) -> Recipe:
        """The recipe of a network for its final trainings.

        `flip` is decided, by `best` itself if none of these trials had time for it; and all layers are trained, unless
        the user allows only the last, see `recipe_for_all_layers`. retrain: from fresh weights, which are not
        fine-tuned.
        """
        store, problem = self.store, self.problem
        recipe = best.proposal.recipe if self.last_layers_only else recipe_for_all_layers(trials, best)
        if retrain and (recipe.freeze_norms or recipe.layers == "last"):
            recipe = replace(self.plan.recipe, layers="all", augment=recipe.augment)
        recipe, outcome = decide_flip(recipe, trials, problem.baseline_metric), best.outcome
        if recipe.augment.flip is not None or not best.kept or outcome is None or outcome.metric is None:
            return recipe
        module = store.network(best.id).to_module().to(problem.task.device)
        outcome = measure_mirrored(
            outcome, module, problem.task, evaluation_batch_size(outcome.micro_batch), self.deadline
        )
        return decide_flip(recipe, [replace(best, outcome=outcome)], problem.baseline_metric)

    def train_final(
        self,
        best: Trial,
        recipe: Recipe,
        executor: Executor,
        observer: Observer,
        *,
        retrain: bool = False,
        epochs: int | None = None,
        n_test: int = 0,
    ) -> Trial:
        """The trial of the final network, see `Final`. n_test: examples that will be predicted after all trainings."""
        problem, plan = self.problem, self.plan
        ids_before = {trial.id for trial in self.store.trials}
        n_predictions = predictions_at_end(problem, recipe, self.settings.ensemble, n_test)
        final = Final(
            self.store,
            best,
            executor,
            problem.task,
            recipe,
            deadline_before_saving(self.deadline, best, n_predictions),
            selection_set=problem.selection_set,
            all_examples=problem.all_examples,
            seed=self.seed,
            retrain=retrain,
            needs_score=self.settings.ensemble > 1,
            epochs=epochs,
            guess=seconds_per_flop(self.store.trials, plan.seconds_per_flop),
            max_memory=memory_for(plan.limits.max_memory, self.settings.device),
            data=problem.name,
            observer=observer,
        ).run()
        outcomes = [t.outcome for t in self.store.trials if t.id not in ids_before and t.outcome is not None]
        if outcomes and all(outcome.status not in USABLE_STATUSES for outcome in outcomes):
            warn(f"no final training succeeded, so that nothing was gained: {error_words(outcomes[0])}")
        elif failed := [outcome for outcome in outcomes if outcome.status == "failed"]:
            message = f"{len(failed)} of {len(outcomes)} final trainings failed"
            warn(f"{message}, so that the model may be worse: {error_words(failed[0])}")
        return final

    def model(self, best: Trial, final: Trial, previous: Model | None = None) -> Model:
        """The model of the final trial's network, or of an ensemble that contains it, written to the run folder.

        The model in the folder is kept if it is of that trial, and of as many networks as `ensemble` allows. previous:
        the model of the estimator so far.
        """
        store = self.store
        model = self._stored_model(final) or self._build_model(best, final, previous)
        store.update_about(best=model.best, final=model.trial, members=model.shares)
        if not self.deadline.stopped:
            close_open_finals(store)
            store.update_about(settled=max(trial.id for trial in store.trials))
        return model

    def _stored_model(self, final: Trial) -> Model | None:
        with contextlib.suppress(RunError):
            model = Model.stored(self.store.path) if final.id == self.store.about.get("final") else None
            if model and model.trial == final.id and self.settings.allows(len(model.members)):
                return model
        return None

    def _build_model(self, best: Trial, final: Trial, previous: Model | None) -> Model:
        store, problem, limits = self.store, self.problem, self.settings.limits
        task, mirrored = problem.task, predicts_mirrored(final.proposal.recipe, problem.task)
        mirrored = mirrored and limits.max_latency_ms is None  # mirror images double the latency
        options = (problem.selection_set, self.settings.ensemble, mirrored, self.deadline)
        shares = select_members(store, final, task, *options, data=problem.name, limits=limits)
        scorer = store.trial(final.scored_by)
        scorer_is_fresh = scorer.final and scorer.parent is None
        if may_have_seen(store, best, problem.name) and not scorer_is_fresh:
            # the previous temperature was measured on examples that the network had not seen then
            temperature = 1.0 if previous is None else previous.temperature
        else:
            is_proxy = scorer.id != final.id and not scorer.final
            proxy_epochs = scorer.outcome.epochs if is_proxy and scorer.outcome is not None else None
            network = build_ensemble(store, shares, {final.id: scorer.id})
            temperature = calibration_temperature(network, task, mirrored, self.deadline.with_stop(None), proxy_epochs)
        model = Model(
            network=build_ensemble(store, shares),
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
        outcomes = [trial.outcome for trial in trials if trial.outcome is not None]
        failed = [outcome for outcome in outcomes if outcome.status == "failed"]
        if not failed:
            return
        counts = f"{len(failed)} of the search's {len(outcomes)} trainings failed"
        message = f"{counts}, the first with: {error_words(failed[0])}"
        if 2 * len(failed) >= len(outcomes):
            warn(message)
        else:
            log.warning("%s", message)

    def _winner(self) -> tuple[Trial, list[Trial]]:
        """The best network whose weights can be read, and all trials of the search."""
        while True:
            trials = [trial for trial in self.store.trials if not trial.final]
            best = winner(trials)
            if best is None or not best.kept or _is_readable(self.store, best):
                break
        if best is not None and best.kept:
            if best.outcome is not None and best.outcome.slow:
                allowed, latency = self.plan.limits.max_latency_ms, 1000 * (best.outcome.latency or 0.0)
                warn(f"no network is as fast as {allowed:g} ms: the fastest takes {latency:.3g} ms")
            return best, trials
        if (kept := next((trial for trial in trials if trial.kept), None)) is None:
            error = next((t.outcome.error for t in trials if t.outcome and t.outcome.error), "none was tried")
            raise RunError(f"no network could be trained; the run is in {self.store.path}, the first error: {error}")
        return kept, trials


def _is_readable(store: Store, trial: Trial) -> bool:
    """Whether the weights of a trial can be read; if not, warn, and mark them as lost."""
    try:
        store.network(trial.id)
    except RunError as error:
        warn(f"the weights of trial {trial.id} are lost: {error}")
        store.forget_weights(trial.id)
        return False
    return True


def calibration_temperature(
    network: Network, task: Task, mirrors: bool, deadline: Deadline, proxy_epochs: int | None
) -> float:
    """The temperature that calibrates the outputs of a network that was not trained on the validation set.

    Measured on as many validation examples as there is time for; 1 if these are fewer than 30 and not all.

    proxy_epochs: epochs of a network that stands in for a final network trained far longer; None: it is the final
    network, or one trained as long. The temperature of a proxy has the less effect the fewer epochs it was trained for,
    and is not raised to allow for mistakes that the few examples do not show (`benchmarks/temperature.py`).
    """
    if task.valid is None:
        return 1.0
    outputs = predict(network.to_module().to(task.device), task.valid.x, task, deadline=deadline, mirrored=mirrors)
    if len(outputs) < min(len(task.valid), 30):
        return 1.0
    predicted = task.valid[: len(outputs)]
    temperature = task.goal.temperature(outputs, predicted.y, predicted.weights)
    if proxy_epochs is None:
        return temperature
    incautious = task.goal.temperature(outputs, predicted.y, predicted.weights, cautious=False)
    return float(min(temperature, max(1.0, incautious)) ** min(1.0, 0.5 + 0.1 * (proxy_epochs - 1)))


def predicts_mirrored(recipe: Recipe, task: Task) -> bool:
    """Whether predictions of a network trained by this recipe also use mirror images: if it was trained with flips."""
    return recipe.augment.flip is True and task.train.x.ndim > 2


def predictions_at_end(problem: Problem, recipe: Recipe, ensemble: int, n_test: int = 0) -> int:
    """Number of examples to predict after the last training: for calibration, for an ensemble, and `n_test` more."""
    n = len(problem.task.evaluation_set) + count_evaluated(ensemble, problem.task, problem.selection_set) + n_test
    return n * (1 + predicts_mirrored(recipe, problem.task))


def deadline_before_saving(deadline: Deadline, best: Trial, examples: int) -> Deadline:
    """The deadline less the time for writing the model, and for one pass of so many examples through `best`."""
    speed = best.outcome.images_per_second if best.outcome else 0.0
    scoring = 0.5 * examples / speed if speed else 0.0
    writing = min(0.5, 0.02 * deadline.left) + min(4 * best.graph.parameters * SAVING, 0.1 * deadline.left)
    return deadline.earlier(writing + min(scoring, 0.5 * deadline.left))
