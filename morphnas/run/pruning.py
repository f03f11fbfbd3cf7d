"""Whose weights a run keeps, where it is not to keep all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from morphnas.run.store import Store
from morphnas.search import winner
from morphnas.search.promote import is_promotion, rungs
from morphnas.search.trial import Trial


def needed(trials: Sequence[Trial], k: int, about: Mapping[str, Any]) -> set[int]:
    """Ids of the trials whose weights stay: those of the k best, and all that something may still start from.

    That are the starts of trials that run, the winner as it stands, the best network trained from fresh weights, the k
    best of every length of training that were not promoted yet, the k best of those that are small enough to grow, and
    what run.json names as the last fit's result.
    """
    searched = sorted(
        (t for t in trials if t.kept and t.score is not None and not t.final),
        key=lambda t: (-(t.score or 0.0), t.id),
    )
    rung = rungs(trials)
    promoted = {t.parent for t in trials if is_promotion(t)}
    stay = {t.id for t in [*searched[:k], *[t for t in searched if t.parent is None][:1]]}
    dearest = max((t.graph.work for t in searched), default=0)
    stay |= {t.id for t in [t for t in searched if 2 * t.graph.work <= dearest][:k]}  # the others may have no child
    for level in set(rung.values()):
        stay |= {t.id for t in [t for t in searched if rung[t.id] == level and t.id not in promoted][:k]}
    stay |= {t.parent for t in trials if t.parent is not None and (t.outcome is None or t.cut_short)}
    best = winner([t for t in trials if not t.final])
    stay |= set() if best is None else {best.id}
    final = about.get("final")
    named = [about.get("best"), final, *(t.proposal.why.get("score_of") for t in trials if t.id == final)]
    return stay | {id for id in named if isinstance(id, int)}


def prune(store: Store, k: int | None) -> None:
    """Remove the weights that need not stay; None: all stay. Those without a score do if there are no others."""
    kept = [t for t in store.trials if t.kept]
    if k is None or not any(t.score is not None for t in kept):
        return
    stay = needed(store.trials, k, store.about)
    for trial in kept:
        if trial.id not in stay and not unsettled(trial, store.about):
            store.drop_weights(trial.id)


def unsettled(trial: Trial, about: Mapping[str, Any]) -> bool:
    """Whether it is a final training that a fit may still use: none has come to its end since."""
    settled = about.get("settled")
    return trial.final and not (isinstance(settled, int) and trial.id <= settled)
