"""Which of two final trainings is the model: the one that there is, or the new one."""

from __future__ import annotations

import logging

from morphnas.run.files import RunError
from morphnas.run.store import Store
from morphnas.search.trial import Trial, lineage
from morphnas.train.data import Examples, Task

log = logging.getLogger("morphnas")

LESS = 0.5
"""Times as much as the final model there is that another network must have been trained to become the model."""


def model_to_keep(
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
