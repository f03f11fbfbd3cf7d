"""What the networks of a run say of examples."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from torch import Tensor, nn

from morphnas.run.files import RunError
from morphnas.run.store import Store
from morphnas.search.trial import Trial
from morphnas.train.data import Task
from morphnas.train.deadline import Deadline
from morphnas.train.predict import chunk, predict
from morphnas.train.step import is_out_of_memory

log = logging.getLogger("morphnas")


def at_once(trial: Trial) -> int:
    """Examples to pass through a trial's network at once."""
    return chunk(None if trial.outcome is None else trial.outcome.micro_batch)


def module_of(store: Store, trial: Trial, task: Task) -> nn.Module | None:
    """A trial's network on the task's device; None where it cannot be read, or has no room there."""
    try:
        return store.network(trial.id).to_module().to(task.device)
    except Exception as error:
        if not (isinstance(error, RunError) or is_out_of_memory(error)):
            raise
        log.warning("trial %d cannot be evaluated: %s", trial.id, error)
        return None


def outputs_of(
    store: Store, trials: Iterable[Trial], x: Tensor, task: Task, deadline: Deadline, mirrors: bool = False
) -> dict[int, Tensor]:
    """The outputs (n, outputs) of raw examples (n, *shape) by the trials' networks, by id: of those that can be read,
    from the first on, while there is time to ask about all examples.
    """
    found = {}
    for trial in trials:
        if (module := module_of(store, trial, task)) is None:
            continue
        outputs = predict(module, x, task, at_once(trial), deadline, mirrors)
        if len(outputs) < len(x):
            break
        found[trial.id] = outputs
    return found
