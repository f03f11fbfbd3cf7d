"""The final model: the winner trained longer, from its own and from fresh weights, then on everything.

The last training is a whole schedule from the weights of the one before, on the examples that stopped, scored and chose
as well. Comparing takes trainings that nobody uses: it has the time that this one does not need, half of it at most.
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
from morphnas.run.predictions import at_once, module_of, outputs_of
from morphnas.run.pruning import unsettled
from morphnas.run.store import Store, data_name
from morphnas.run.trainings import Trainings
from morphnas.search.trial import STOPPED, Proposal, Trial, lineage
from morphnas.train.data import Examples, Task
from morphnas.train.deadline import Deadline, OutOfTime
from morphnas.train.goal import UndefinedMetric
from morphnas.train.predict import predict
from morphnas.train.recipe import LEAST_RATE, SHIFT, Outcome, Recipe
from morphnas.train.trainer import SHORT

log = logging.getLogger("morphnas")

LONGEST, LONGEST_CHANGED = 60, 240
"""Epochs of a final training, at most, and where images are changed more: there more than 120 is reasoned, for a GPU
that has time for them, not measured."""
JUDGED = 0.5
"""Share of the time for trainings that are judged, at most, where one on everything comes after them."""
WORTH_JUDGING = SHORT + 1
"""Epochs that each of two judged trainings must have time for; with less, all goes into the one on everything."""
LONGER = 2
"""Times as long that a training must be able to be now for one that was interrupted to be begun anew."""
HOPED = 1.25
"""How much faster a training may turn out to be than the winner's was: it is planned for so much, and cut by the clock,
which the rate follows, rather than over before its time."""
ASKING = 2.5
"""Times that the examples which stop could be scored in the time kept for asking, at last, whether the training on
everything has spoilt the network: twice, and some room."""
MOST_ASKING = 0.1
"""Share of the time left that is kept for it at most."""
FULL_RATE = 10
"""Epochs from which on a training on everything goes up to the full learning rate; a shorter one stays below."""
BY_HEART = 0.5
"""Share of the errors on held-out examples below which those on examples that were trained on show that these are known
by heart: coloured images are to be changed more then, on grey ones that costs (`benchmarks/ablation_recipe.py`)."""
OFTEN = 40
"""Passes of the training on everything from which on they are, too, where nothing was compared before it: 5,000 images
lose nothing by then (`benchmarks/rates.py`), and 1,000 gain (`benchmarks/ablation_recipe.py`)."""
SHIFT_MORE, CUTOUT_MORE = 0.125, 0.25
"""How much: as much as that, unless they are changed more already."""

CLEARLY = 1.64
"""Standard errors by which longer trainings must be worse, each of them, to be given up: 5 %, one-sided."""

USABLE = ("finished", "truncated")
"""What comes of a training that is of use."""
UNMOVED, MORE = ", unmoved", ", changed more"
"""What the name of a way ends with in which images are not shifted, and in which they are changed more."""
Way = tuple[str, Graph | int, Recipe]
"""A final training: its name, its start and its recipe."""


@dataclass(eq=False)
class Final:
    """The final trainings: `run` trains the winner longer, one training after the other.

    executor: made for the task and `everything`. task: its training part trains, its validation part stops. chooser:
    examples that chose and stopped nothing, which choose among the results and the winner (None: the validation part
    does). everything: what the chosen one is trained on at last (None: not at all). retrain: from fresh weights only.
    judged: whether something must say how good the last one is, though that takes half of its time. epochs: of each
    training, instead of what there is time for. guess: seconds per FLOP of an epoch of the search, where the winner has
    none of its own that tells. max_memory: bytes that a training should take at most. data: a name of the examples.
    """

    store: Store
    winner: Trial
    executor: Executor
    task: Task
    recipe: Recipe
    deadline: Deadline
    _: KW_ONLY
    chooser: Examples | None = None
    everything: Examples | None = None
    seed: int = 0
    retrain: bool = False
    judged: bool = False
    epochs: int | None = None
    guess: float = 0.0
    max_memory: int | None = None
    data: str = ""
    observer: Observer | None = None

    def __post_init__(self) -> None:
        self._per_example, self._scoring = _costs(self.winner, self.task, self.guess)
        self._about = {"of": self.winner.id, "data": self.data}

    def run(self) -> Trial:
        """The trial whose weights are to be used, which may be the winner itself.

        Each training is a new trial; none that is finished is changed. Trainings that a driver before this one began on
        the same data and did not come to use are taken up, those done as they are and those interrupted from their
        checkpoint, unless there is now time for much longer ones; those stay open until `close_open_finals`.
        """
        if self.winner.outcome is None:
            return self.winner
        if self.everything is not None and (begun := self._interrupted(self.everything)):
            return self._last(begun.proposal, self.store.trial(begun.scored_by), self.everything)
        compared = self._compared(*self._planned())
        # of other examples than those that are held out here, the winner's score says nothing
        apart = self.retrain or (self.everything is None and may_have_seen(self.store, self.winner, self.data))
        results = compared if apart else [self.winner, *compared]
        results = [trial for trial in results if trial.kept and trial.score is not None] or [self.winner]
        chosen, scores = _chosen(self.store, results, self.task, self.chooser, self.deadline)
        if chosen is self.winner and apart:
            return chosen
        longer = [trial for trial in results if trial is not self.winner]
        final = chosen if self.everything is None else self._on_everything(chosen, self.everything, longer)
        if scores:
            held_out = {"examples": len(self.chooser or self.task.evaluation_set), "stopped": self.chooser is None}
            told = {**dict(self.store.about.get("chosen") or {}), str(final.id): {**held_out, "scores": scores}}
            self.store.note(chosen=told)
        return final

    # -- trainings that are compared

    def _planned(self) -> tuple[list[Way], float]:
        """What to train and compare, and the share of the time that this has."""
        longest = self.epochs or _longest(self.recipe)
        if self.everything is None:
            share = 1.0
        elif self.judged or self.retrain:
            share = JUDGED
        else:
            used = longest / max(longest, self._passes(self.deadline.left, self.everything, scored=False))
            share = min(JUDGED, 1 - used)
        ways = _ways(self.winner, replace(self.recipe, epochs=longest), self.retrain)
        while len(ways) > 1:
            each = self._passes(share / len(ways) * self.deadline.left, self.task.train)
            if each >= min(WORTH_JUDGING, longest):
                break
            ways = ways[:-1]
        alone = len(ways) == 1
        if alone and self.judged:  # one suffices to say how good the last one is
            alone = self._passes(share * self.deadline.left, self.task.train) < min(WORTH_JUDGING, longest)
        alone = alone or may_have_seen(self.store, self.winner, self.data)
        return ([] if alone and self.everything is not None and not self.retrain else ways), share

    def _compared(self, ways: list[Way], share: float) -> list[Trial]:
        """The trainings, of which each has as much of that share of the time, as far as there is time for them."""
        done: list[Trial] = []
        count = len(ways)
        while ways:
            part = share / (count - len(done) * share)  # of what is left, so that every way gets the same
            way, start, settings = ways.pop(0)
            seen = HOPED * self._passes(part * self.deadline.left, self.task.train)
            long = _sized(settings, seen, len(self.task.train), self.epochs)
            if long is None:
                break
            proposal = Proposal(start, (), long, {"final": way, **self._about})
            end = self.deadline.earlier(self.deadline.left * (1 - part))
            last = self._trained(proposal, end, self.task.train, scored=True)
            done.append(last)
            outcome = last.outcome
            if outcome and outcome.epochs and outcome.status in USABLE:  # here, and not where the search was
                self._per_example, self._scoring = _costs(last, self.task, self.guess)
            unmoved = bool(ways) and ways[0][0].endswith(UNMOVED)
            if unmoved and self._open and _by_heart(self.store, last, self.task, self.deadline):
                ways = [
                    (name.removesuffix(UNMOVED) + MORE, start, _more_changed(recipe)) for name, start, recipe in ways
                ]
        return done

    # -- the one on everything

    def _on_everything(self, chosen: Trial, everything: Examples, longer: Sequence[Trial]) -> Trial:
        """The chosen network trained on all examples; as it is, where that comes to nothing. longer: trainings as long
        as they may be, among which it was chosen."""
        base = chosen.outcome
        if base is None or (base.score is None and base.status == "diverged"):
            return chosen
        if base.best_epoch < 1 and (base.epochs or chosen is not self.winner):
            return chosen
        more = self._passes(self.deadline.left, everything, scored=False)
        sized = self._last_recipe(chosen, base, more, len(everything), longer)
        if sized is None:
            return chosen
        why = {"final": "everything", **self._about, "score_of": chosen.id}
        return self._last(Proposal(chosen.id, (), sized, why), chosen, everything)

    def _last(self, proposal: Proposal, chosen: Trial, everything: Examples) -> Trial:
        """The trial of the training on everything, or the chosen one, where that comes to less."""
        valid = self.task.valid
        asking = 0.0 if valid is None else min(ASKING * self._scoring, MOST_ASKING * self.deadline.left)
        last = self._trained(proposal, self.deadline.earlier(asking), everything, scored=False)
        good = last.kept and last.outcome is not None and last.outcome.status in USABLE
        cut = last.outcome is None or last.outcome.status != "finished"
        if not good or (cut and self.deadline.stopped):  # then its rate has not come down
            return chosen
        return chosen if _spoilt(self.store, chosen, last, self.task, self.deadline) else last

    def _interrupted(self, everything: Examples) -> Trial | None:
        """A training on everything that an earlier driver had come to: it is gone on with before anything else is
        compared, unless there is time now for one more than `LONGER` times as long."""
        if self.retrain or self.epochs is not None:
            return None
        kept, n = {trial.id for trial in self.store.trials if trial.kept}, len(everything)
        passes = HOPED * self._passes(self.deadline.left, everything, scored=False)
        for trial in reversed(self.store.trials):
            why, recipe = trial.proposal.why, trial.proposal.recipe
            known = why.get("final") == "everything" and {**why, **self._about} == why and trial.parent in kept
            if known and trial.outcome is None and trial.scored_by in kept and unsettled(trial, self.store.about):
                begun = recipe.epochs * (recipe.examples or n)
                return trial if LONGER * begun >= n * min(passes, _longest(recipe)) else None
        return None

    def _last_recipe(
        self, chosen: Trial, base: Outcome, passes: float, n: int, longer: Sequence[Trial]
    ) -> Recipe | None:
        """The recipe of the training on all n examples, which there is time to see so often; None: for no batch."""
        before = chosen.proposal.recipe
        settings = replace(self.recipe, augment=before.augment if chosen.final else self.recipe.augment)
        if not longer and self._open and passes >= OFTEN:
            settings = _more_changed(settings)
        most = self.epochs or _longest(settings)
        if 2 * base.best_epoch < base.epochs and before.examples is None:  # it has become worse by training for longer
            most = min(most, base.best_epoch)
        if longer and not chosen.final and self.epochs is None and self._all_worse(longer, chosen):
            most = min(most, base.epochs)
        sized = _sized(settings, min(HOPED * passes, most), n, self.epochs)
        if sized is None:
            return None
        rate = self.recipe.lr * min(1.0, min(passes, most) / FULL_RATE)
        return replace(sized, lr=max(LEAST_RATE, rate), patience=None)

    def _all_worse(self, longer: Sequence[Trial], chosen: Trial) -> bool:
        """Whether the losses of all longer trainings are higher than those of the one that was chosen, by `CLEARLY`
        standard errors of their difference on the examples that chose."""
        examples = self.chooser or self.task.valid
        if examples is None:
            return False
        losses = _losses(self.store, [chosen, *longer], examples, self.task, self.deadline)
        if len(losses) <= len(longer) or len(examples) < 2:
            return False
        more = [losses[trial.id] - losses[chosen.id] for trial in longer]
        return all(each.mean() > CLEARLY * each.std() / math.sqrt(len(each)) for each in more)

    # -- any of them

    @property
    def _open(self) -> bool:
        """Whether images may be changed more than usual: coloured ones, where nobody has said how much."""
        return self.recipe.augment.shift is None and is_colour(tuple(self.task.train.x.shape[1:]))

    def _passes(self, seconds: float, examples: Examples, scored: bool = True) -> float:
        """How often the examples can be seen in that time, scored after each or not."""
        one = self._per_example * len(examples) + (self._scoring if scored else 0.0)
        return seconds / one if one else math.inf

    def _trained(self, proposal: Proposal, end: Deadline, examples: Examples, scored: bool) -> Trial:
        """The trial of a training, done or taken up; still open where it was stopped and nobody answers."""
        begun = _begun(self.store, proposal, len(examples))
        trial = begun or self.store.claim(proposal)
        if trial.outcome is not None:
            return trial
        start = trial.proposal.start
        trainings = Trainings(
            self.store, self.executor, end, seed=self.seed, max_memory=self.max_memory, observer=self.observer
        )
        network = start if isinstance(start, Graph) else self.store.network(start)
        trainings.begin(trial, network, again=begun is not None, scored=scored)
        while trainings.hear():
            pass
        return self.store.trial(trial.id)


def may_have_seen(store: Store, winner: Trial, data: str) -> bool:
    """Whether a network may have been trained on examples that are held out of these data: its run was on others, or
    held out others, or it comes from a training on everything. Then nothing that goes on from it can be compared.
    """
    line = lineage(store.trials, winner)
    other = data_name(store.about.get("data")) != data
    return other or any(one.proposal.why.get("final") == "everything" for one in line)


def close_open_finals(store: Store) -> None:
    """Close the final trainings that are open: nobody will go on with them."""
    for trial in store.trials:
        if trial.outcome is None and trial.final:
            store.finish(trial.id, Outcome("failed", error="interrupted, and then no longer needed"), None)


def _costs(trial: Trial, task: Task, guess: float) -> tuple[float, float]:
    """Seconds that training takes per example, and scoring per epoch, as a network's own training showed.

    guess: seconds per FLOP of an epoch, for one that came to none.
    """
    outcome = trial.outcome
    seen = min(trial.proposal.recipe.examples or len(task.train), len(task.train))
    if outcome is None or not outcome.epochs:
        return guess * trial.graph.work / seen, 0.0
    epoch = outcome.seconds / max(1, len(outcome.curve) or outcome.epochs)
    training = min(epoch, seen / outcome.images_per_second) if outcome.images_per_second else epoch
    return training / seen, epoch - training


def _sized(recipe: Recipe, passes: float, n: int, epochs: int | None) -> Recipe | None:
    """The recipe for so many passes over n examples, at most `_longest`: in equal parts, none of them more than a pass.

    epochs: instead, as many of them as there is time for. Images are shifted, where that is open, if the training is
    long enough. None where not even a batch can be trained on.
    """
    if passes * n < min(n, recipe.batch_size):
        return None
    longest = epochs or _longest(recipe)
    most = min(passes, longest)
    if most >= longest or epochs:
        return _decided(replace(recipe, epochs=max(1, int(most)), examples=None))
    parts = math.ceil(most)
    return _decided(replace(recipe, epochs=parts, examples=min(n, max(recipe.batch_size, int(most * n / parts)))))


def _longest(recipe: Recipe) -> int:
    much = recipe.augment.cutout >= CUTOUT_MORE and (recipe.augment.shift or 0.0) >= SHIFT_MORE
    return LONGEST_CHANGED if much else LONGEST


def _ways(winner: Trial, recipe: Recipe, retrain: bool) -> list[Way]:
    """What to train and compare, the most important first: a name, a start, and a recipe.

    Whether images are to be shifted is asked where it is open; then, whether from the winner's or from fresh weights.
    """
    start: Graph | int = winner.graph if retrain else winner.id
    ways = [("fresh" if retrain else "inherited", start, recipe)]
    if _decided(recipe).augment != recipe.augment and recipe.epochs > SHORT:
        still = replace(recipe, augment=replace(recipe.augment, shift=0.0))
        ways.append((ways[0][0] + UNMOVED, start, still))
    return ways if retrain else [*ways, ("fresh", winner.graph, recipe)]


def _more_changed(recipe: Recipe) -> Recipe:
    """The recipe with images that are changed more."""
    was = recipe.augment
    shift, cutout = max(SHIFT_MORE, was.shift or 0.0), max(CUTOUT_MORE, was.cutout)
    return replace(recipe, augment=replace(was, shift=shift, cutout=cutout))


def _by_heart(store: Store, trial: Trial, task: Task, deadline: Deadline) -> bool:
    """Whether a network is less than `BY_HEART` as wrong on examples that it was trained on as on held-out ones."""
    if task.valid is None or not trial.kept:
        return False
    some = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(0))[: len(task.valid)]
    known, held_out = task.train[some], task.valid
    asked = torch.cat([known.x.to(held_out.x.device), held_out.x])
    said = outputs_of(store, [trial], asked, task, deadline).get(trial.id)
    if said is None:
        return False
    inside, outside = said.split([len(known), len(held_out)])
    wrong = [task.goal.errors(*each).mean().item() for each in ((inside, known.y), (outside, held_out.y))]
    return wrong[0] < BY_HEART * wrong[1]


def _decided(recipe: Recipe) -> Recipe:
    """The recipe with images shifted, if that is open, where the schedule is long enough to gain by it."""
    if recipe.augment.shift is not None:
        return recipe
    shift = SHIFT if recipe.epochs > SHORT else 0.0
    return replace(recipe, augment=replace(recipe.augment, shift=shift))


def _begun(store: Store, proposal: Proposal, n: int) -> Trial | None:
    """The same training on n examples, where an earlier driver has begun it and no fit has come to use it; None: there
    is none that can be read, or the time is now for one more than `LONGER` times as long."""

    def amount(recipe: Recipe) -> int:
        return recipe.epochs * (recipe.examples or n)

    def settings(recipe: Recipe) -> Recipe:
        lr = 1.0 if proposal.why["final"] == "everything" else recipe.lr  # which follows from the length
        return replace(recipe, epochs=1, examples=None, lr=lr, augment=replace(recipe.augment, shift=0.0))

    for trial in reversed(store.trials):
        before, outcome = trial.proposal, trial.outcome
        same = trial.final and unsettled(trial, store.about) and before.why == proposal.why
        if not same or before.start != proposal.start or settings(before.recipe) != settings(proposal.recipe):
            continue
        if outcome is not None and not (outcome.status in USABLE and trial.kept and outcome.error != STOPPED):
            continue
        done = before.recipe if outcome is None else replace(before.recipe, epochs=max(1, outcome.epochs))
        if LONGER * amount(done) < amount(proposal.recipe):
            log.info("trial %d is not continued: there is time for a much longer training now", trial.id)
            continue
        try:
            if outcome is not None:
                store.network(trial.id)
        except RunError as error:
            log.warning("the final training of trial %d is repeated, because its weights are lost: %s", trial.id, error)
            store.forget_weights(trial.id)
            continue
        said = "the interrupted final training of trial %d continues"
        log.info(said if outcome is None else "the final training of trial %d is used: it had ended", trial.id)
        return trial
    return None


def _chosen(
    store: Store, results: list[Trial], task: Task, chooser: Examples | None, deadline: Deadline
) -> tuple[Trial, dict[str, float]]:
    """The trial that is best on the examples that choose, by its score, as it is, where there are none, or no time for
    them; and the scores on these examples, by id, where they were asked.

    They are asked as networks are used: at the temperature that the examples which stop say, since one that is trained
    for longer, or on images that are changed less, is surer of itself, and by its log loss alone worse for it.
    """

    nothing = -math.inf, -math.inf
    aims = {trial.outcome.objective for trial in results if trial.outcome is not None}
    if chooser is None and aims != {task.goal.objective}:  # scores of different kinds say nothing
        chooser = task.evaluation_set

    def judged(trial: Trial) -> tuple[float, float]:
        """Higher is better: the score, of equals minus the loss, or the one that was trained last."""
        if chooser is None or trial.score is None or len(results) == 1:
            return nothing if trial.score is None else (trial.score, trial.id)
        if (module := module_of(store, trial, task)) is None:
            return nothing

        def said(examples: Examples) -> Tensor:
            outputs = predict(module, examples.x, task, at_once(trial), deadline)
            if len(outputs) < len(examples):
                raise OutOfTime("the deadline came before all networks were asked")
            return outputs

        outputs, temperature = said(chooser), 1.0
        if not outputs.isfinite().all():
            return nothing
        if task.valid is not None:
            temperature = task.goal.temperature(said(task.valid), task.valid.y, task.valid.weights)
        asked = outputs / temperature, chooser.y, chooser.weights
        try:
            return task.goal.score_and_metric(*asked)[0], -task.goal.loss(*asked).item()
        except UndefinedMetric:
            return nothing

    try:
        goodness = {trial.id: judged(trial) for trial in results}
    except OutOfTime:
        return max(results, key=lambda trial: -math.inf if trial.score is None else trial.score), {}
    asked = chooser is not None and len(results) > 1
    scores = {str(id): score for id, (score, _) in goodness.items() if asked and math.isfinite(score)}
    return max(results, key=lambda trial: goodness[trial.id]), scores


def _losses(
    store: Store, trials: Sequence[Trial], examples: Examples, task: Task, deadline: Deadline
) -> dict[int, Tensor]:
    """The loss on each example, (n), of the networks as they are used, by id; those there is no time for are left
    out."""
    found: dict[int, Tensor] = {}
    for id, outputs in outputs_of(store, trials, examples.x, task, deadline).items():
        temperature = task.goal.temperature(outputs, examples.y, examples.weights)
        losses = [
            task.goal.loss(*one).item()
            for one in zip((outputs / temperature).split(1), examples.y.split(1), strict=True)
        ]
        found[id] = torch.tensor(losses, dtype=torch.float64)
    return found


def _spoilt(store: Store, before: Trial, after: Trial, task: Task, deadline: Deadline) -> bool:
    """Whether training on everything has clearly spoilt a network: of the examples that it has seen only since, it is
    worse on more than it is better on, by two standard deviations (McNemar 1947, Psychometrika 12, 153-157). False
    where nobody can tell.

    Then something among all the examples is not as it was among those trained on before, or the training went wrong.
    """
    if task.valid is None:
        return False
    said = outputs_of(store, (before, after), task.valid.x, task, deadline)
    if len(said) < 2:
        return False
    was, now = (task.goal.objective_errors(outputs, task.valid.y) for outputs in said.values())
    lost, won = int((now > was).sum()), int((now < was).sum())
    if spoilt := lost - won > 2 * math.sqrt(lost + won):
        log.warning(
            "trained on all examples, trial %d is worse on %d and better on %d of the %d that were held out before: "
            "trial %d, which has not seen these, is used instead",
            after.id, lost, won, len(task.valid), before.id,
        )  # fmt: skip
    return spoilt
