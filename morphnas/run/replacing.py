"""Whether the existing model is replaced by that of a new final training."""

from __future__ import annotations

import logging

from morphnas.run.files import RunError
from morphnas.run.store import Store
from morphnas.search.trial import Trial, lineage
from morphnas.train.data import Examples, Task

log = logging.getLogger("morphnas")

MIN_TRAINING_RATIO = 0.5
"""Number of examples that the final trainings of another network have seen, relative to those of the existing model,
from which on it replaces that model."""


def model_to_keep(
    store: Store, best: Trial, final: Trial, task: Task, all_examples: Examples | None, data: str | None
) -> tuple[Trial, Trial]:
    """The winner of the search and the trial of the final model: `best` and `final`, or those of the existing model.

    A model of the same data is kept if its final trainings have seen more examples than those of the new one: of the
    same network at all, of another network more than 1 / `MIN_TRAINING_RATIO` times as many. A model of other data is
    kept only if there was no final training on the new data. A model whose weights cannot be read is replaced. data:
    name of the new data, see `data_id`; None: they count as other data.
    """
    known = {trial.id: trial for trial in store.trials}
    old_final, old_best = (known.get(store.about.get(name, -1)) for name in ("final", "best"))
    if old_final is None or old_best is None or old_final.id == final.id or not (old_final.final and old_final.kept):
        return best, final
    sizes = len(task.train), len(all_examples or task.train)
    old_seen, new_seen = (_examples_seen(store, trial, sizes) for trial in (old_final, final))
    required = 1.0
    if data is not None and _same_examples(old_final.proposal.why.get("data"), data):
        required = old_seen * (1.0 if old_final.graph.key == final.graph.key else MIN_TRAINING_RATIO)
    if new_seen >= required:
        return best, final
    try:
        store.network(old_final.id)
    except RunError:
        return best, final
    message = "trial %d stays the model: it was trained on %d examples, trial %d on %d"
    log.warning(message, old_final.id, old_seen, final.id, new_seen)
    return old_best, old_final


def _same_examples(name: object, other: str) -> bool:
    """Whether two names of data are of the same training data, whatever is held out, see `data_id`."""
    return isinstance(name, str) and name.partition(", ")[0] == other.partition(", ")[0]


def _examples_seen(store: Store, trial: Trial, sizes: tuple[int, int]) -> int:
    """Examples that the final trainings of a trial and its ancestors have seen, repetitions counted.

    sizes: numbers of training examples and of all examples.
    """
    seen = 0
    for ancestor in lineage(store.trials, trial):
        if ancestor.final and ancestor.outcome is not None:
            n = sizes[ancestor.proposal.why["final"] == "everything"]
            seen += ancestor.outcome.epochs * min(ancestor.proposal.recipe.examples or n, n)
    return seen
