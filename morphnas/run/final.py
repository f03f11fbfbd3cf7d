"""The final model: the winner trained longer, from its own and from fresh weights, then on everything."""

from __future__ import annotations

import math
from dataclasses import replace

from morphnas.graph import Graph
from morphnas.run.search import Job, Observer, micro_batch, trial_seed, work
from morphnas.run.store import Store
from morphnas.search.trial import Proposal, Trial
from morphnas.train.data import Examples, Task
from morphnas.train.deadline import Deadline, OutOfTime
from morphnas.train.recipe import Recipe
from morphnas.train.trainer import Diverged, evaluate

LONGEST = 60
"""Epochs of a final training; patience ends most before."""
WORTH_FRESH = 8
"""Epochs that there must be time for before a network is also trained from fresh weights."""


def finalise(
    store: Store,
    winner: Trial,
    task: Task,
    chooser: Examples | None,
    everything: Examples | None,
    recipe: Recipe,
    deadline: Deadline,
    *,
    seed: int = 0,
    retrain: bool = False,
    epochs: int | None = None,
    max_memory: int | None = None,
    observer: Observer | None = None,
) -> Trial:
    """Train the winner longer and return the trial whose weights are to be used, which may be the winner itself.

    task: its training part trains, its validation part stops. chooser: examples that chose and stopped nothing, which
    choose among the results and the winner (None: the validation part does). everything: what the chosen one is
    trained on at last (None: not at all). retrain: from fresh weights only. epochs: of each training, instead of what
    there is time for. max_memory: bytes that a training should take at most. Each training is a new trial; none that
    exists is changed.
    """
    outcome = winner.outcome
    if outcome is None or not outcome.epochs:
        return winner
    epoch_seconds = outcome.seconds / max(1, len(outcome.curve) or outcome.epochs)
    share = 0.75 if everything is not None else 1.0

    def affordable(share: float) -> int:
        return int(share * deadline.left / epoch_seconds) if epoch_seconds else LONGEST

    wanted = epochs or LONGEST
    ways = ["fresh"] if retrain else ["inherited", "fresh"]
    if not retrain and affordable(share / 2) < min(WORTH_FRESH, wanted):
        ways = ["inherited"]
    results = [] if retrain else [winner]
    for i, way in enumerate(ways):
        part = share / (len(ways) - i * share)  # of what is left, so that every way gets the same
        planned = min(wanted, affordable(part))
        if planned < 1:
            break
        long = replace(recipe, epochs=planned, patience=recipe.patience or 8)
        start: Graph | int = winner.id if way == "inherited" else winner.graph
        proposal = Proposal(start, (), long, {"final": way, "of": winner.id})
        end = deadline.earlier(deadline.left * (1 - part))
        results.append(_train(store, proposal, task, end, seed, True, max_memory, observer))
    results = [trial for trial in results if trial.kept and trial.score is not None] or [winner]
    chosen = _chosen(store, results, task, chooser, deadline)
    base = chosen.outcome
    if everything is None or base is None or base.score is None or base.best_epoch < 1:
        return chosen
    more = min(max(1, base.best_epoch // 3), affordable(0.9))
    if more < 1:
        return chosen
    gentle = replace(recipe, epochs=more, lr=0.2 * recipe.lr, warmup=0.1, patience=None)
    why = {"final": "everything", "of": winner.id, "score_of": chosen.id}
    whole = replace(task, train=everything)
    last = _train(store, Proposal(chosen.id, (), gentle, why), whole, deadline, seed, False, max_memory, observer)
    good = last.kept and last.outcome is not None and last.outcome.status in ("finished", "truncated")
    return last if good else chosen


def _train(
    store: Store,
    proposal: Proposal,
    task: Task,
    deadline: Deadline,
    seed: int,
    scored: bool,
    max_memory: int | None,
    observer: Observer | None,
) -> Trial:
    trial = store.claim(proposal)
    if observer:
        observer.trial_begins(trial)
    start = proposal.start if isinstance(proposal.start, Graph) else store.network(proposal.start)
    micro = micro_batch(trial.graph, proposal.recipe.batch_size, max_memory, store.trials)
    job = Job(start, (), proposal.recipe, deadline.left, trial_seed(seed, trial.id), scored, micro)
    outcome, weights = work(job, task, observer.epoch_done if observer else None)
    ended = store.finish(trial.id, outcome, weights)
    if observer:
        observer.trial_ends(ended)
    return ended


def _chosen(store: Store, results: list[Trial], task: Task, chooser: Examples | None, deadline: Deadline) -> Trial:
    """The trial that is best on the examples that choose; by its score, where there is no time to ask them."""

    def judged(trial: Trial) -> float:
        if chooser is None or trial.score is None or len(results) == 1:
            return -math.inf if trial.score is None else trial.score
        module = store.network(trial.id).to_module().to(task.device)
        outcome = trial.outcome
        chunk = 4 * outcome.micro_batch if outcome is not None and outcome.micro_batch else 512
        try:
            return evaluate(module, chooser, task, min(512, chunk), deadline)[0]
        except Diverged:
            return -math.inf

    try:
        return max(results, key=judged)
    except OutOfTime:
        return max(results, key=lambda trial: -math.inf if trial.score is None else trial.score)
