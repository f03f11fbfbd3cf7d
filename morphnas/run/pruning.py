"""Removing weights of trials that a run does not need to keep (the argument `keep`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from morphnas.run.store import Store
from morphnas.search import winner
from morphnas.search.promote import is_promotion, rungs
from morphnas.search.trial import Trial


def trials_to_keep(trials: Sequence[Trial], k: int, about: Mapping[str, Any]) -> set[int]:
    """Ids of the trials whose weights are kept: the k best, and all that something may still start from.

    The latter are the parents of running trials, the current winner, the best network trained from fresh weights, the k
    best of each rung that were not promoted yet, the k best of at most half the work of the largest, and the last fit's
    result as noted in run.json (`about`).
    """
    searched = sorted(
        (t for t in trials if t.kept and t.score is not None and not t.final),
        key=lambda t: (-(t.score or 0.0), t.id),
    )
    rung = rungs(trials)
    promoted = {t.parent for t in trials if is_promotion(t)}
    keep = {t.id for t in [*searched[:k], *[t for t in searched if t.parent is None][:1]]}
    max_work = max((t.graph.work for t in searched), default=0)
    keep |= {t.id for t in [t for t in searched if 2 * t.graph.work <= max_work][:k]}  # larger ones may not grow
    for level in set(rung.values()):
        keep |= {t.id for t in [t for t in searched if rung[t.id] == level and t.id not in promoted][:k]}
    keep |= {t.parent for t in trials if t.parent is not None and (t.outcome is None or t.cut_short)}
    best = winner([t for t in trials if not t.final])
    keep |= set() if best is None else {best.id}
    final = about.get("final")
    noted = [about.get("best"), final, *(t.proposal.why.get("score_of") for t in trials if t.id == final)]
    return keep | {id for id in noted if isinstance(id, int)}


def prune(store: Store, k: int | None) -> None:
    """Remove the weights that `trials_to_keep` does not list, except those of final trainings that a fit may still use.
    Remove none if k is None, or if no trial with weights has a score."""
    kept = [t for t in store.trials if t.kept]
    if k is None or not any(t.score is not None for t in kept):
        return
    keep = trials_to_keep(store.trials, k, store.about)
    for trial in kept:
        if trial.id not in keep and not is_pending_final(trial, store.about):
            store.drop_weights(trial.id)


def is_pending_final(trial: Trial, about: Mapping[str, Any]) -> bool:
    """Whether it is a final training that a fit may still use, since no fit has been completed after it."""
    settled = about.get("settled")
    return trial.final and not (isinstance(settled, int) and trial.id <= settled)
