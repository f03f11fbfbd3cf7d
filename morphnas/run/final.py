"""The final model: the winner trained longer, from its own and from fresh weights, then on everything.

The last training is a whole schedule from the weights of the one before, on the examples that stopped, scored and chose
as well. Comparing takes trainings that nobody uses: it has the time that this one does not need, half of it at most.
"""

from __future__ import annotations

import logging
import math
import threading
from concurrent.futures import wait
from contextlib import suppress
from dataclasses import replace
from queue import Empty, SimpleQueue

import torch
from torch import Tensor

from morphnas.graph import Graph
from morphnas.run.asking import at_once, outputs_of
from morphnas.run.files import RunError
from morphnas.run.jobs import DeviceGone, Executor, Job, grace, micro_batch, result_of, submitted, trial_seed
from morphnas.run.keeping import unsettled
from morphnas.run.observers import Observer
from morphnas.run.plan import coloured
from morphnas.run.store import Store, data_name
from morphnas.search.trial import Proposal, Trial, lineage
from morphnas.train.data import Examples, Task
from morphnas.train.deadline import POLL, Deadline, OutOfTime
from morphnas.train.goal import Unmeasured
from morphnas.train.predict import predict
from morphnas.train.recipe import LEAST_RATE, SHIFT, Outcome, Recipe
from morphnas.train.trainer import SHORT

log = logging.getLogger("morphnas")

LONGEST, LONGEST_CHANGED = 60, 120
"""Epochs of a final training, at most, and where images are changed more."""
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
SHIFT_MORE, CUTOUT_MORE = 0.125, 0.25
"""How much: as much as that, unless they are changed more already."""

LESS = 0.5
"""Times as much as the final model there is that another network must have been trained to become the model."""

UNMOVED = ", unmoved"
"""What the name of a way ends with in which images are not shifted."""
Way = tuple[str, Graph | int, Recipe]
"""A final training: its name, its start and its recipe."""


def finalise(
    store: Store,
    winner: Trial,
    executor: Executor,
    task: Task,
    chooser: Examples | None,
    everything: Examples | None,
    recipe: Recipe,
    deadline: Deadline,
    *,
    seed: int = 0,
    retrain: bool = False,
    judged: bool = False,
    epochs: int | None = None,
    guess: float = 0.0,
    max_memory: int | None = None,
    data: str = "",
    observer: Observer | None = None,
) -> Trial:
    """Train the winner longer and return the trial whose weights are to be used, which may be the winner itself.

    executor: runs the trainings, one after the other. It is made for the task and `everything`.
    task: its training part trains, its validation part stops. chooser: examples that chose and stopped nothing, which
    choose among the results and the winner (None: the validation part does). everything: what the chosen one is
    trained on at last (None: not at all). retrain: from fresh weights only. judged: whether something must say how good
    the last one is, though that takes half of its time. epochs: of each training, instead of what there is time for.
    guess: seconds per FLOP of an epoch of the search, where the winner has none of its own that tells.
    max_memory: bytes that a training should take at most. data: a name of the examples.

    Each training is a new trial; none that is finished is changed. Trainings that a driver before this one began on the
    same data and did not come to use are taken up, those done as they are and those interrupted from their checkpoint,
    unless there is now time for much longer ones; those stay open, until somebody says `abandon`.
    """
    if winner.outcome is None:
        return winner
    untrained = not winner.outcome.epochs
    per_example, scoring = _costs(winner, task, guess)

    def passes(seconds: float, examples: Examples, scoring: float) -> float:
        """How often the examples can be seen in that time."""
        one = per_example * len(examples) + scoring
        return seconds / one if one else math.inf

    def trained(proposal: Proposal, end: Deadline, examples: Examples, scored: bool) -> Trial:
        n = len(examples)
        return _train(store, executor, proposal, end, n, scored, seed=seed, max_memory=max_memory, observer=observer)

    longest = epochs or _longest(recipe)
    if everything is None:
        share = 1.0
    elif judged or retrain:
        share = JUDGED
    else:
        used = longest / max(longest, passes(deadline.left, everything, 0.0))
        share = min(JUDGED, 1 - used)
    ways = _ways(winner, replace(recipe, epochs=longest), retrain)
    while len(ways) > 1:
        each = passes(share / len(ways) * deadline.left, task.train, scoring)
        if each >= min(WORTH_JUDGING, longest):
            break
        ways = ways[:-1]
    if everything is not None and not retrain and (len(ways) == 1 or knows(store, winner, data)):
        ways = []
    about = {"of": winner.id, "data": data}
    results = [] if retrain else [winner]
    count = len(ways)
    while ways:
        done = count - len(ways)
        part = share / (count - done * share)  # of what is left, so that every way gets the same
        way, start, settings = ways.pop(0)
        seen = HOPED * passes(part * deadline.left, task.train, scoring)
        long = _sized(settings, seen, len(task.train), epochs)
        if long is None:
            break
        why = {"final": way, **about}
        proposal = Proposal(start, (), long, why)
        end = deadline.earlier(deadline.left * (1 - part))
        last = trained(proposal, end, task.train, scored=True)
        results.append(last)
        if last.outcome is not None and last.outcome.status == "finished":  # here, and not where the search was
            per_example, scoring = _costs(last, task, guess)
        unmoved = bool(ways) and ways[0][0].endswith(UNMOVED) and coloured(tuple(task.train.x.shape[1:]))
        if unmoved and _by_heart(store, results[-1], task, deadline):
            ways = _changed_more(ways)
    results = [trial for trial in results if trial.kept and trial.score is not None] or [winner]
    chosen = _chosen(store, results, task, chooser, deadline)
    base = chosen.outcome
    if everything is None or base is None or (base.score is None and base.status == "diverged"):
        return chosen
    if base.best_epoch < 1 and not (untrained and chosen is winner):
        return chosen
    before = chosen.proposal.recipe
    augment = before.augment if chosen.final else recipe.augment
    settings = replace(recipe, augment=augment)
    more, most = passes(deadline.left, everything, 0.0), epochs or _longest(settings)
    if 2 * base.best_epoch < base.epochs and before.examples is None:  # it has become worse by training for longer
        most = min(most, base.best_epoch)
    again = _sized(settings, min(HOPED * more, most), len(everything), epochs)
    if again is None:
        return chosen
    again = replace(again, lr=max(LEAST_RATE, recipe.lr * min(1.0, min(more, most) / FULL_RATE)), patience=None)
    why = {"final": "everything", **about, "score_of": chosen.id}
    proposal = Proposal(chosen.id, (), again, why)
    asking = 0.0 if task.valid is None else min(ASKING * scoring, MOST_ASKING * deadline.left)
    end = deadline.earlier(asking)
    last = trained(proposal, end, everything, scored=False)
    good = last.kept and last.outcome is not None and last.outcome.status in ("finished", "truncated")
    if not good or deadline.stopped:  # stopped, its rate has not come down
        return chosen
    return chosen if _spoilt(store, chosen, last, task, deadline) else last


def knows(store: Store, winner: Trial, data: str) -> bool:
    """Whether a network may have been trained on examples that are held out of these data: its run was on others, or
    held out others, or it comes from a training on everything. Then nothing that goes on from it can be compared.
    """
    line = lineage(store.trials, winner)
    other = data_name(store.about.get("data")) != data
    return other or any(one.proposal.why.get("final") == "everything" for one in line)


def lasting(
    store: Store, best: Trial, final: Trial, task: Task, everything: Examples | None, data: str | None
) -> tuple[Trial, Trial]:
    """The search's winner and the final model's trial, or those of the model that there is, where that has seen more.

    What was trained for longer on the same data is not given up for less: of the same network for any less, of another
    one for less than `LESS`. A model of other data stays only where nothing was trained on these. data: their name;
    None: as if they were others.
    """
    known = {trial.id: trial for trial in store.trials}
    was, of = (known.get(store.about.get(name, -1)) for name in ("final", "best"))
    if was is None or of is None or was.id == final.id or not (was.final and was.kept):
        return best, final
    sizes = len(task.train), len(everything or task.train)
    before, now = (_seen(store, trial, sizes) for trial in (was, final))
    least = 1.0
    if data is not None and _same_examples(was.proposal.why.get("data"), data):
        least = before * (1.0 if was.graph.key == final.graph.key else LESS)
    if now >= least:
        return best, final
    try:
        store.network(was.id)
    except RunError:
        return best, final
    log.warning(
        "trial %d stays the model: it was trained on %d examples, trial %d on %d", was.id, before, final.id, now
    )
    return of, was


def _same_examples(name: object, other: str) -> bool:
    """Whether two names of data are of the same examples to train on, whatever is held out: see `data_name`."""
    return isinstance(name, str) and name.partition(", ")[0] == other.partition(", ")[0]


def _seen(store: Store, trial: Trial, sizes: tuple[int, int]) -> int:
    """Examples that the final trainings of a trial's lineage have seen, each as often as it came."""
    seen = 0
    for one in lineage(store.trials, trial):
        if one.final and one.outcome is not None:
            n = sizes[one.proposal.why["final"] == "everything"]
            seen += one.outcome.epochs * min(one.proposal.recipe.examples or n, n)
    return seen


def abandon(store: Store) -> None:
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
    if passes * n < recipe.batch_size:
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


def _changed_more(ways: list[Way]) -> list[Way]:
    """Those ways with images that are changed more."""
    more = []
    for name, start, recipe in ways:
        was = recipe.augment
        shift, cutout = max(SHIFT_MORE, was.shift or 0.0), max(CUTOUT_MORE, was.cutout)
        changed = replace(recipe, augment=replace(was, shift=shift, cutout=cutout))
        more.append((name.removesuffix(UNMOVED) + ", changed more", start, changed))
    return more


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


def _train(
    store: Store,
    executor: Executor,
    proposal: Proposal,
    deadline: Deadline,
    n: int,
    scored: bool,
    *,
    seed: int,
    max_memory: int | None,
    observer: Observer | None,
) -> Trial:
    """The trial of a training on n examples, done or taken up; still open where it was stopped and nobody answers."""
    begun = _begun(store, proposal, n)
    trial = begun or store.claim(proposal)
    if trial.outcome is not None:
        return trial
    proposal = trial.proposal
    if observer:
        observer.trial_begins(trial)
    start = proposal.start if isinstance(proposal.start, Graph) else store.network(proposal.start)
    micro = micro_batch(trial.graph, proposal.recipe.batch_size, max_memory, store.trials)
    job = Job(
        start,
        (),
        proposal.recipe,
        deadline.left,
        trial_seed(seed, trial.id),
        scored=scored,
        micro=micro,
        checkpoint=store.checkpoint(trial.id),
        stop=deadline.stop,
    )
    news: SimpleQueue[Outcome | None] = SimpleQueue()
    here = threading.get_ident()

    def epoch_done(outcome: Outcome) -> None:
        """Tell the observer, in this thread only."""
        if threading.get_ident() != here:
            news.put(outcome)
        elif observer:
            observer.epoch_done(trial, outcome)

    try:
        future = submitted(executor, job, epoch_done)
    except DeviceGone as error:
        raise error.left(store, trial, begun is not None) from error
    future.add_done_callback(lambda _: news.put(None))
    end = deadline.earlier(-grace(job.seconds) - 0.5)
    while not ((done := future.done()) and news.empty()) and (done or not end.passed):
        with suppress(Empty):
            if (outcome := news.get(timeout=min(end.left, POLL))) is not None:
                epoch_done(outcome)
    if deadline.stopped and not future.done():
        executor.stop()
        wait([future], grace(job.seconds))
    if deadline.stopped and not future.done():
        return trial  # to be gone on with
    late = Outcome("failed", error="no worker gave an answer by the deadline"), None
    ended = store.finish(trial.id, *(result_of(future) if future.done() else late))
    if observer:
        observer.trial_ends(ended)
    return ended


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
        if outcome is not None and not (outcome.status == "finished" and trial.kept):
            continue
        if LONGER * amount(before.recipe) < amount(proposal.recipe):
            log.info("trial %d is not continued: there is time for a much longer training now", trial.id)
            continue
        try:
            if outcome is not None:
                store.network(trial.id)
        except RunError as error:
            log.warning("the final training of trial %d is repeated, because its weights are lost: %s", trial.id, error)
            store.forget_weights(trial.id)
            continue
        log.info("the interrupted final training of trial %d continues", trial.id)
        return trial
    return None


def _chosen(store: Store, results: list[Trial], task: Task, chooser: Examples | None, deadline: Deadline) -> Trial:
    """The trial that is best on the examples that choose; by its score, as it is, where there are none, or no time for
    them.

    They are asked as networks are used: at the temperature that the examples which stop say, since one that is trained
    for longer, or on images that are changed less, is surer of itself, and by its log loss alone worse for it.
    """

    nothing = -math.inf, -math.inf
    aims = {trial.outcome.objective for trial in results if trial.outcome is not None}
    if chooser is None and aims != {task.goal.objective}:  # scores of different kinds say nothing
        chooser = task.judge

    def judged(trial: Trial) -> tuple[float, float]:
        """Higher is better: the score, of equals minus the loss, or the one that was trained last."""
        if chooser is None or trial.score is None or len(results) == 1:
            return nothing if trial.score is None else (trial.score, trial.id)
        try:
            module = store.network(trial.id).to_module().to(task.device)
        except RunError as error:
            log.warning("trial %d cannot be evaluated: %s", trial.id, error)
            return nothing

        def said(examples: Examples) -> Tensor:
            outputs = predict(module, examples.x, task, at_once(trial), deadline)
            if len(outputs) < len(examples):
                raise OutOfTime("the deadline came before all networks were asked")
            return outputs

        outputs, heat = said(chooser), 1.0
        if not outputs.isfinite().all():
            return nothing
        if task.valid is not None:
            heat = task.goal.heat(said(task.valid), task.valid.y, task.valid.weights)
        asked = outputs / heat, chooser.y, chooser.weights
        try:
            return task.goal.judged(*asked)[0], -task.goal.loss(*asked).item()
        except Unmeasured:
            return nothing

    try:
        return max(results, key=judged)
    except OutOfTime:
        return max(results, key=lambda trial: -math.inf if trial.score is None else trial.score)


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
    was, now = (task.goal.regrets(outputs, task.valid.y) for outputs in said.values())
    lost, won = int((now > was).sum()), int((now < was).sum())
    if spoilt := lost - won > 2 * math.sqrt(lost + won):
        log.warning(
            "trained on all examples, trial %d is worse on %d and better on %d of the %d that were held out before: "
            "trial %d, which has not seen these, is used instead",
            after.id, lost, won, len(task.valid), before.id,
        )  # fmt: skip
    return spoilt
