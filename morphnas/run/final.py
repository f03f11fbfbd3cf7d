"""The final model: the winner trained longer, from its own and from fresh weights, and then on all examples.

The training on all examples comes last: a whole learning rate schedule that starts from the weights of the best network
so far, and also uses the validation and the selection examples. Comparing costs trainings whose networks are not used,
so it gets only the time that the last training does not need, at most half.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace

import torch
from torch import Tensor

from morphnas.graph import Graph
from morphnas.run.files import RunError
from morphnas.run.jobs import Executor
from morphnas.run.observers import Observer
from morphnas.run.plan import is_colour
from morphnas.run.predictions import chunk_size, load_module, trial_outputs
from morphnas.run.pruning import is_pending_final
from morphnas.run.store import Store, data_id
from morphnas.run.trainings import Trainings
from morphnas.search.trial import STOPPED, Proposal, Trial, lineage
from morphnas.train.data import Examples, Task
from morphnas.train.deadline import Deadline, OutOfTime
from morphnas.train.goal import UndefinedMetric
from morphnas.train.predict import predict
from morphnas.train.recipe import (
    DEFAULT_SHIFT,
    LAST_LAYER_EPOCHS,
    MIN_LEARNING_RATE,
    Outcome,
    Recipe,
)
from morphnas.train.trainer import MAX_EPOCHS_WITHOUT_PATIENCE

log = logging.getLogger("morphnas")

MAX_FINAL_EPOCHS, MAX_FINAL_EPOCHS_STRONG = 60, 240
"""Maximum epochs of a final training, and of one with strong augmentation. More than 120 of the latter are an
assumption about GPUs that have the time for them, not measured."""
MAX_FINE_TUNING_EPOCHS, MIN_FINE_TUNING_STEPS = 20, 50
"""Maximum epochs of a final training that fine-tunes a network, and the steps from which on it is fine-tuned on all
examples although no training of all its layers has a better score than that of the last one; both are assumptions."""
FEW_EXAMPLES = 1000
"""Number of training examples below which final trainings have more epochs, inversely proportional to it, up to
`MAX_FINAL_EPOCHS_STRONG` (`benchmarks/few.py`, on sequences); not on tabular data, for which it was not measured."""
MAX_COMPARED_SHARE = 0.5
"""Largest share of the time for trainings that are compared, if a training on all examples follows."""
MIN_COMPARED_EPOCHS = MAX_EPOCHS_WITHOUT_PATIENCE + 1
"""Epochs that each of at least two compared trainings must have time for, or of one where a score is needed (see
`Final`); otherwise all time goes into the training on all examples."""
RESTART_RATIO = 2
"""An interrupted training is not continued if there is now time for one more than this many times as long."""
PLANNED_SPEEDUP = 1.25
"""Trainings are planned for this many times the epochs that the measured speed allows, in case they are faster. The
deadline cuts those that are too long, and the learning rate follows it; shorter ones would leave time unused."""
CHECK_PASSES = 2.5
"""Time that is kept for the last check, whether training on all examples has made the network worse, in passes over
the validation set: two networks are evaluated, the rest is a margin."""
MAX_CHECK_SHARE = 0.1
"""Largest share of the time left that is kept for that check."""
FULL_RATE_PASSES = 10
"""Passes from which on a training on all examples peaks at the full learning rate; with fewer, at a share of it, except
for fine-tuning, whose rate is low already."""
MEMORISED_ERROR_RATIO = 0.5
"""Training examples count as memorised if the error on them is below this share of the error on held-out ones. Colour
images then get strong augmentation; on grey ones it costs accuracy (`benchmarks/ablation_recipe.py`)."""
STRONG_PASSES = 40
"""Passes from which on the training on all examples has strong augmentation if nothing was compared before it: 5,000
images lose nothing by then (`benchmarks/rates.py`), and 1,000 gain (`benchmarks/ablation_recipe.py`)."""
STRONG_SHIFT, STRONG_CUTOUT = 0.125, 0.25
"""Shift and cutout of strong augmentation; a recipe with a larger value keeps it."""

WORSE_STANDARD_ERRORS = 1.64
"""The last training is no longer than the winner's own if the loss of each longer training is higher than the winner's
by more than this many standard errors (5 %, one-sided)."""

USABLE_STATUSES = ("finished", "truncated")
"""Statuses of trainings whose network can be used."""
NO_SHIFT, STRONG = ", unmoved", ", changed more"
"""Suffixes of a variant's name, without shifts and with strong augmentation."""
Variant = tuple[str, Graph | int, Recipe]
"""A final training to compare: its name, its start (see `Proposal`) and its recipe."""


@dataclass(eq=False)
class Final:
    """The final trainings: `run` trains the winner longer, one training after the other.

    executor: made for `task` and `all_examples`. task: its validation set is for scores and early stopping.
    selection_set: held-out examples that were used for neither so far, to choose among the winner and the compared
    trainings (None: the validation set chooses). all_examples: for the last training (None: there is none). retrain:
    only from fresh weights. needs_score: whether a score is needed for the network that the last training starts from,
    although getting it takes up to half of the time. epochs: maximum of each training, in whole passes, instead of
    `MAX_FINAL_EPOCHS`. guess: seconds per FLOP of an epoch of the search, used if the winner has no epoch. max_memory:
    bytes that a training may take. data: name of the data, see `data_id`.
    """

    store: Store
    winner: Trial
    executor: Executor
    task: Task
    recipe: Recipe
    deadline: Deadline
    _: KW_ONLY
    selection_set: Examples | None = None
    all_examples: Examples | None = None
    seed: int = 0
    retrain: bool = False
    needs_score: bool = False
    epochs: int | None = None
    guess: float = 0.0
    max_memory: int | None = None
    data: str = ""
    observer: Observer | None = None

    def __post_init__(self) -> None:
        self._per_example, self._scoring = _costs(self.winner, self.task, self.guess)
        self._about = {"of": self.winner.id, "data": self.data}

    def run(self) -> Trial:
        """Train, and return the trial whose weights are to be used, which may be the winner itself.

        Each training is a new trial; none that is finished is changed. Trainings on the same data that an earlier
        driver started and no fit has used are taken up, finished ones as they are and interrupted ones from their
        checkpoint, unless there is now time for a much longer training. Interrupted ones that are not taken up stay
        open until `close_open_finals`.
        """
        if self.winner.outcome is None:
            return self.winner
        if self.all_examples is not None and (interrupted := self._find_interrupted(self.all_examples)):
            return self._train_last(interrupted.proposal, self.store.trial(interrupted.scored_by), self.all_examples)
        compared = self._compare(*self._plan_variants())
        # the winner's score cannot be compared if it may have been trained on the examples that are held out here
        without_winner = self.retrain or (
            self.all_examples is None and may_have_seen(self.store, self.winner, self.data)
        )
        results = compared if without_winner else [self.winner, *compared]
        results = [trial for trial in results if trial.kept and trial.score is not None] or [self.winner]
        chosen, scores = _choose(self.store, results, self.task, self.selection_set, self.deadline)
        if chosen is self.winner and without_winner:
            return chosen
        longer = [trial for trial in results if trial is not self.winner]
        final = chosen if self.all_examples is None else self._train_on_all(chosen, self.all_examples, longer)
        if scores:
            held_out = {
                "examples": len(self.selection_set or self.task.evaluation_set),
                "stopped": self.selection_set is None,
            }
            notes = {**dict(self.store.about.get("chosen") or {}), str(final.id): {**held_out, "scores": scores}}
            self.store.update_about(chosen=notes)
        return final

    # -- trainings that are compared

    def _plan_variants(self) -> tuple[list[Variant], float]:
        """The variants to train and compare, and the share of the time left that they get together."""
        longest = self._longest(self.recipe, len(self.task.train))
        if self.all_examples is None:
            share = 1.0
        elif self.needs_score or self.retrain:
            share = MAX_COMPARED_SHARE
        else:
            needed = longest / max(longest, self._passes(self.deadline.left, self.all_examples, scored=False))
            share = min(MAX_COMPARED_SHARE, 1 - needed)
        variants = _variants(self.winner, replace(self.recipe, epochs=longest), self.retrain)
        if self.recipe.layers == "last":
            done = self.winner.proposal.recipe.layers == "last"
            return ([] if done else variants[:1]), MAX_COMPARED_SHARE
        if self.task.valid is None:  # scores on training examples prefer whatever memorises them sooner
            variants = variants[:1]
        while len(variants) > 1:
            passes = self._passes(share / len(variants) * self.deadline.left, self.task.train)
            if passes >= min(MIN_COMPARED_EPOCHS, longest):
                break
            variants = variants[:-1]
        skip = len(variants) == 1
        # one is enough for a score, and to find out whether a network should be fine-tuned
        if skip and (self.needs_score or self.winner.proposal.recipe.layers == "last"):
            skip = self._passes(share * self.deadline.left, self.task.train) < min(MIN_COMPARED_EPOCHS, longest)
        skip = skip or may_have_seen(self.store, self.winner, self.data)
        return ([] if skip and self.all_examples is not None and not self.retrain else variants), share

    def _compare(self, variants: list[Variant], share: float) -> list[Trial]:
        """Train the variants, as many as there is time for, each in an equal part of that share of the time.

        If the shift is undecided and the first training has memorised its examples, which are colour images, those
        after it get strong augmentation.
        """
        done: list[Trial] = []
        count = len(variants)
        while variants:
            part = share / (count - len(done) * share)  # of the time left, so that all variants get the same time
            name, start, settings = variants.pop(0)
            passes = PLANNED_SPEEDUP * self._passes(part * self.deadline.left, self.task.train)
            n = len(self.task.train)
            sized = _sized(settings, passes, n, self._longest(settings, n), whole=self.epochs is not None)
            if sized is None:
                break
            proposal = Proposal(start, (), sized, {"final": name, **self._about})
            end = self.deadline.earlier(self.deadline.left * (1 - part))
            trial = self._train(proposal, end, self.task.train, scored=True)
            done.append(trial)
            outcome = trial.outcome
            # measured anew, as the winner may have been trained by another worker
            if outcome and outcome.epochs and outcome.status in USABLE_STATUSES:
                self._per_example, self._scoring = _costs(trial, self.task, self.guess)
            augmentable = self._strong_allowed and bool(variants) and variants[0][0].endswith(NO_SHIFT)
            if augmentable and _has_memorised(self.store, trial, self.task, self.deadline):
                variants = [
                    (name.removesuffix(NO_SHIFT) + STRONG, start, _strongly_augmented(recipe))
                    for name, start, recipe in variants
                ]
        return done

    # -- the training on all examples

    def _train_on_all(self, chosen: Trial, all_examples: Examples, longer: Sequence[Trial]) -> Trial:
        """The trial of the chosen network trained on all examples, or the chosen trial if that fails or is no use.

        longer: the longer trainings among which it was chosen.
        """
        base = chosen.outcome
        if base is None or (base.score is None and base.status == "diverged"):
            return chosen
        if base.best_epoch < 1 and (base.epochs or chosen is not self.winner):
            return chosen
        passes = self._passes(self.deadline.left, all_examples, scored=False)
        recipe = self._last_recipe(chosen, base, passes, len(all_examples), longer)
        if recipe is None:
            return chosen
        why = {"final": "everything", **self._about, "score_of": chosen.id}
        return self._train_last(Proposal(chosen.id, (), recipe, why), chosen, all_examples)

    def _train_last(self, proposal: Proposal, chosen: Trial, all_examples: Examples) -> Trial:
        """The trial of the training on all examples, or the chosen one if it fails, is stopped, or has made the network
        worse."""
        valid = self.task.valid
        check = 0.0 if valid is None else min(CHECK_PASSES * self._scoring, MAX_CHECK_SHARE * self.deadline.left)
        last = self._train(proposal, self.deadline.earlier(check), all_examples, scored=False)
        usable = last.kept and last.outcome is not None and last.outcome.status in USABLE_STATUSES
        cut = last.outcome is None or last.outcome.status != "finished"
        if not usable or (cut and self.deadline.stopped):  # after a stop its learning rate has not decayed
            return chosen
        return chosen if _has_degraded(self.store, chosen, last, self.task, self.deadline) else last

    def _find_interrupted(self, all_examples: Examples) -> Trial | None:
        """A training on all examples that an earlier driver had started, to be continued before anything is compared.

        None if there is none that can be used, or if there is time now for one more than `RESTART_RATIO` times as long.
        """
        if self.retrain or self.epochs is not None:
            return None
        kept, n = {trial.id for trial in self.store.trials if trial.kept}, len(all_examples)
        passes = PLANNED_SPEEDUP * self._passes(self.deadline.left, all_examples, scored=False)
        for trial in reversed(self.store.trials):
            why, recipe = trial.proposal.why, trial.proposal.recipe
            same = why.get("final") == "everything" and {**why, **self._about} == why and trial.parent in kept
            if same and trial.outcome is None and trial.scored_by in kept and is_pending_final(trial, self.store.about):
                planned = recipe.epochs * (recipe.examples or n)
                return trial if RESTART_RATIO * planned >= n * min(passes, self._longest(recipe, n)) else None
        return None

    def _last_recipe(
        self, chosen: Trial, base: Outcome, passes: float, n: int, longer: Sequence[Trial]
    ) -> Recipe | None:
        """The recipe of the training on all n examples, with time for that many passes; None: not even for a batch."""
        before = chosen.proposal.recipe
        if before.layers == "last":
            too_short = self.epochs is None and passes * n < MIN_FINE_TUNING_STEPS * self.recipe.batch_size
            if longer or too_short or self.recipe.layers == "last":
                return replace(before, epochs=base.best_epoch or LAST_LAYER_EPOCHS // 2)
        settings = before if chosen.final else self.recipe
        if settings.layers == "last":  # it has made the network worse
            return None
        if not longer and self._strong_allowed and passes >= STRONG_PASSES:
            settings = _strongly_augmented(settings)
        most = longest = self._longest(settings, n)
        # training for longer has made it worse
        if 2 * base.best_epoch < base.epochs and before.examples is None and before.layers == "all":
            most = min(most, base.best_epoch)
        if longer and not chosen.final and self.epochs is None and self._all_worse(longer, chosen):
            most = min(most, base.epochs)
        sized = _sized(settings, min(PLANNED_SPEEDUP * passes, most), n, longest, whole=self.epochs is not None)
        if sized is None:
            return None
        lr = settings.lr * (1.0 if settings.freeze_norms else min(1.0, min(passes, most) / FULL_RATE_PASSES))
        return replace(sized, lr=max(MIN_LEARNING_RATE, lr), patience=None)

    def _all_worse(self, longer: Sequence[Trial], chosen: Trial) -> bool:
        """Whether the mean loss of each longer training exceeds that of the chosen trial by more than
        `WORSE_STANDARD_ERRORS` standard errors of the difference, on the selection set, or else the validation set.
        False if that cannot be evaluated."""
        examples = self.selection_set or self.task.valid
        if examples is None:
            return False
        losses = _losses(self.store, [chosen, *longer], examples, self.task, self.deadline)
        if len(losses) <= len(longer) or len(examples) < 2:
            return False
        differences = [losses[trial.id] - losses[chosen.id] for trial in longer]
        return all(d.mean() > WORSE_STANDARD_ERRORS * d.std() / math.sqrt(len(d)) for d in differences)

    # -- all trainings

    @property
    def _strong_allowed(self) -> bool:
        """Whether strong augmentation may be used: for colour images, if the user has not set the shift."""
        return self.recipe.augment.shift is None and is_colour(tuple(self.task.train.x.shape[1:]))

    def _longest(self, recipe: Recipe, n: int) -> int:
        """Maximum epochs of a final training on n examples, see `MAX_FINAL_EPOCHS` and `FEW_EXAMPLES`."""
        if self.epochs is not None:
            return self.epochs
        few = max(1.0, FEW_EXAMPLES / n)
        if recipe.freeze_norms:
            return int(min(MAX_FINAL_EPOCHS_STRONG, MAX_FINE_TUNING_EPOCHS * few))
        if recipe.augment.cutout >= STRONG_CUTOUT and (recipe.augment.shift or 0.0) >= STRONG_SHIFT:
            return MAX_FINAL_EPOCHS_STRONG
        tabular = self.task.train.x.ndim == 2
        return int(min(MAX_FINAL_EPOCHS_STRONG, MAX_FINAL_EPOCHS * (1 if tabular else few)))

    def _passes(self, seconds: float, examples: Examples, scored: bool = True) -> float:
        """How many passes over the examples fit into that time, with or without scoring after each."""
        per_pass = self._per_example * len(examples) + (self._scoring if scored else 0.0)
        return seconds / per_pass if per_pass else math.inf

    def _train(self, proposal: Proposal, end: Deadline, examples: Examples, scored: bool) -> Trial:
        """The trial of a training until `end`, carried out now or taken up; still open if it was stopped and has no
        result."""
        started = _find_started(self.store, proposal, len(examples))
        trial = started or self.store.claim(proposal)
        if trial.outcome is not None:
            return trial
        start = trial.proposal.start
        trainings = Trainings(
            self.store, self.executor, end, seed=self.seed, max_memory=self.max_memory, observer=self.observer
        )
        network = start if isinstance(start, Graph) else self.store.network(start)
        trainings.submit(trial, network, resumed=started is not None, scored=scored)
        while trainings.wait():
            pass
        return self.store.trial(trial.id)


def may_have_seen(store: Store, winner: Trial, data: str) -> bool:
    """Whether a network may have been trained on examples that are held out of these data.

    That is so if its run was on other data or held out other examples, or if it or an ancestor was trained on all
    examples. Trainings that start from its weights cannot be compared then.
    """
    ancestors = lineage(store.trials, winner)
    other = data_id(store.about.get("data")) != data
    return other or any(trial.proposal.why.get("final") == "everything" for trial in ancestors)


def close_open_finals(store: Store) -> None:
    """Mark the final trainings that are still open as failed: they will not be continued."""
    for trial in store.trials:
        if trial.outcome is None and trial.final:
            store.finish(trial.id, Outcome("failed", error="interrupted, and then no longer needed"), None)


def _costs(trial: Trial, task: Task, guess: float) -> tuple[float, float]:
    """Seconds of training per example and of scoring per epoch, as measured in the trial.

    guess: seconds per FLOP of an epoch, used if the trial has no epoch in which all layers are trained.
    """
    outcome = trial.outcome
    seen = min(trial.proposal.recipe.examples or len(task.train), len(task.train))
    if outcome is None or not outcome.epochs or trial.proposal.recipe.layers == "last":
        return guess * trial.graph.work / seen, 0.0
    epoch = outcome.seconds / max(1, len(outcome.curve) or outcome.epochs)
    training = min(epoch, seen / outcome.images_per_second) if outcome.images_per_second else epoch
    return training / seen, epoch - training


def _sized(recipe: Recipe, passes: float, n: int, longest: int, whole: bool = False) -> Recipe | None:
    """The recipe for so many passes over n examples, at most `longest`, in equal epochs of at most a pass each.

    whole: all epochs are whole passes. An undecided shift is decided by the length. None if there is not even time for
    a batch. A training of the last layer alone always has all its epochs.
    """
    if recipe.layers == "last":
        return replace(recipe, epochs=LAST_LAYER_EPOCHS, examples=None)
    if passes * n < min(n, recipe.batch_size):
        return None
    passes = min(passes, longest)
    if passes >= longest or whole:
        return _with_shift_decided(replace(recipe, epochs=max(1, int(passes)), examples=None))
    count = math.ceil(passes)
    examples = min(n, max(recipe.batch_size, int(passes * n / count)))
    return _with_shift_decided(replace(recipe, epochs=count, examples=examples))


def _variants(winner: Trial, recipe: Recipe, retrain: bool) -> list[Variant]:
    """The variants to compare, the most important first.

    From the winner's weights (with `retrain`: from fresh ones); the same without shift, if that is undecided and the
    schedule long enough for shifts; and from fresh weights, unless all are, or the network is fine-tuned.
    """
    start: Graph | int = winner.graph if retrain else winner.id
    variants = [("fresh" if retrain else "inherited", start, recipe)]
    if _with_shift_decided(recipe).augment != recipe.augment and recipe.epochs > MAX_EPOCHS_WITHOUT_PATIENCE:
        no_shift = replace(recipe, augment=replace(recipe.augment, shift=0.0))
        variants.append((variants[0][0] + NO_SHIFT, start, no_shift))
    return variants if retrain or recipe.freeze_norms else [*variants, ("fresh", winner.graph, recipe)]


def _strongly_augmented(recipe: Recipe) -> Recipe:
    """The recipe with strong augmentation."""
    augment = recipe.augment
    shift, cutout = max(STRONG_SHIFT, augment.shift or 0.0), max(STRONG_CUTOUT, augment.cutout)
    return replace(recipe, augment=replace(augment, shift=shift, cutout=cutout))


def _has_memorised(store: Store, trial: Trial, task: Task, deadline: Deadline) -> bool:
    """Whether a network's error on training examples is below `MEMORISED_ERROR_RATIO` of that on held-out ones.

    It is estimated on at most as many training examples as there are held-out ones. False if it cannot be.
    """
    if task.valid is None or not trial.kept:
        return False
    index = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(0))[: len(task.valid)]
    trained_on, held_out = task.train[index], task.valid
    x = torch.cat([trained_on.x.to(held_out.x.device), held_out.x])
    outputs = trial_outputs(store, [trial], x, task, deadline).get(trial.id)
    if outputs is None:
        return False
    parts = zip(outputs.split([len(trained_on), len(held_out)]), (trained_on, held_out), strict=True)
    training_error, held_out_error = (task.goal.errors(part, examples.y).mean().item() for part, examples in parts)
    return training_error < MEMORISED_ERROR_RATIO * held_out_error


def _with_shift_decided(recipe: Recipe) -> Recipe:
    """The recipe with an undecided shift set: to `DEFAULT_SHIFT` if the schedule is long enough for it, else 0."""
    if recipe.augment.shift is not None:
        return recipe
    shift = DEFAULT_SHIFT if recipe.epochs > MAX_EPOCHS_WITHOUT_PATIENCE else 0.0
    return replace(recipe, augment=replace(recipe.augment, shift=shift))


def _find_started(store: Store, proposal: Proposal, n: int) -> Trial | None:
    """The same training on n examples, of whatever length, if an earlier driver started it and no fit has used it yet.

    None if there is none that can be read, or if there is time now for one more than `RESTART_RATIO` times as long.
    """

    def examples_seen(recipe: Recipe) -> int:
        return recipe.epochs * (recipe.examples or n)

    def without_length(recipe: Recipe) -> Recipe:
        lr = 1.0 if proposal.why["final"] == "everything" else recipe.lr  # there it depends on the length
        return replace(recipe, epochs=1, examples=None, lr=lr, augment=replace(recipe.augment, shift=0.0))

    for trial in reversed(store.trials):
        before, outcome = trial.proposal, trial.outcome
        same = trial.final and is_pending_final(trial, store.about) and before.why == proposal.why
        same = same and before.start == proposal.start
        if not same or without_length(before.recipe) != without_length(proposal.recipe):
            continue
        if outcome is not None and not (outcome.status in USABLE_STATUSES and trial.kept and outcome.error != STOPPED):
            continue
        done = before.recipe if outcome is None else replace(before.recipe, epochs=max(1, outcome.epochs))
        if RESTART_RATIO * examples_seen(done) < examples_seen(proposal.recipe):
            log.info("trial %d is not continued: there is time for a much longer training now", trial.id)
            continue
        try:
            if outcome is not None:
                store.network(trial.id)
        except RunError as error:
            log.warning("the final training of trial %d is repeated, because its weights are lost: %s", trial.id, error)
            store.forget_weights(trial.id)
            continue
        message = "the interrupted final training of trial %d continues"
        log.info(message if outcome is None else "the final training of trial %d is used: it had ended", trial.id)
        return trial
    return None


def _choose(
    store: Store, results: list[Trial], task: Task, selection_set: Examples | None, deadline: Deadline
) -> tuple[Trial, dict[str, float]]:
    """The best trial, and the scores on the examples that chose it, by id.

    Trials are compared on the selection set, or without one on the evaluation set if any score has another objective
    than the task. Otherwise, or if there is no time for that, they are compared by their own scores, and no scores are
    returned. Outputs are divided by the temperature that is calibrated on the validation set, as they will be in use: a
    network that is trained longer, or with weaker augmentation, is more confident, for which alone its log loss would
    be higher.
    """
    worst = -math.inf, -math.inf
    objectives = {trial.outcome.objective for trial in results if trial.outcome is not None}
    if selection_set is None and objectives != {task.goal.objective}:  # such scores are not comparable
        selection_set = task.evaluation_set

    def quality(trial: Trial) -> tuple[float, float]:
        """Higher is better: the score, and for equal scores minus the loss, or the id where nothing is evaluated."""
        if selection_set is None or trial.score is None or len(results) == 1:
            return worst if trial.score is None else (trial.score, trial.id)
        if (module := load_module(store, trial, task)) is None:
            return worst

        def outputs_on(examples: Examples) -> Tensor:
            outputs = predict(module, examples.x, task, chunk_size(trial), deadline)
            if len(outputs) < len(examples):
                raise OutOfTime("the deadline came before all networks were evaluated")
            return outputs

        outputs, temperature = outputs_on(selection_set), 1.0
        if not outputs.isfinite().all():
            return worst
        if task.valid is not None:
            temperature = task.goal.temperature(outputs_on(task.valid), task.valid.y, task.valid.weights)
        args = outputs / temperature, selection_set.y, selection_set.weights
        try:
            return task.goal.score_and_metric(*args)[0], -task.goal.loss(*args).item()
        except UndefinedMetric:
            return worst

    try:
        qualities = {trial.id: quality(trial) for trial in results}
    except OutOfTime:
        return max(results, key=lambda trial: -math.inf if trial.score is None else trial.score), {}
    evaluated = selection_set is not None and len(results) > 1
    scores = {str(id): score for id, (score, _) in qualities.items() if evaluated and math.isfinite(score)}
    return max(results, key=lambda trial: qualities[trial.id]), scores


def _losses(
    store: Store, trials: Sequence[Trial], examples: Examples, task: Task, deadline: Deadline
) -> dict[int, Tensor]:
    """The loss on each example, (n,), of the trials' networks, by id; outputs are calibrated on the same examples.

    Networks that cannot be loaded, or that there is no time for, are left out.
    """
    result: dict[int, Tensor] = {}
    for id, outputs in trial_outputs(store, trials, examples.x, task, deadline).items():
        temperature = task.goal.temperature(outputs, examples.y, examples.weights)
        pairs = zip((outputs / temperature).split(1), examples.y.split(1), strict=True)
        result[id] = torch.tensor([task.goal.loss(*pair).item() for pair in pairs], dtype=torch.float64)
    return result


def _has_degraded(store: Store, before: Trial, after: Trial, task: Task, deadline: Deadline) -> bool:
    """Whether training on all examples has clearly made a network worse, on the validation examples.

    These were held out before and are trained on now. It is worse if its errors have risen on more of them than they
    have fallen on, by more than two standard deviations (McNemar 1947, Psychometrika 12, 153-157): then the examples
    that were added differ from the others, or the training went wrong. False if that cannot be evaluated.
    """
    if task.valid is None:
        return False
    outputs = trial_outputs(store, (before, after), task.valid.x, task, deadline)
    if len(outputs) < 2:
        return False
    errors_before, errors_after = (task.goal.objective_errors(each, task.valid.y) for each in outputs.values())
    worse, better = int((errors_after > errors_before).sum()), int((errors_after < errors_before).sum())
    if degraded := worse - better > 2 * math.sqrt(worse + better):
        log.warning(
            "trained on all examples, trial %d is worse on %d and better on %d of the %d that were held out before: "
            "trial %d, which has not seen these, is used instead",
            after.id, worse, better, len(task.valid), before.id,
        )  # fmt: skip
    return degraded
