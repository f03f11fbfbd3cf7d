"""Outputs of a run's networks on examples."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from torch import Tensor, nn

from morphnas.run.files import RunError
from morphnas.run.store import Store
from morphnas.search.trial import Trial
from morphnas.train.data import Task
from morphnas.train.deadline import Deadline
from morphnas.train.predict import evaluation_batch_size, predict
from morphnas.train.step import is_out_of_memory

log = logging.getLogger("morphnas")


def chunk_size(trial: Trial) -> int:
    """Examples to pass through a trial's network at a time."""
    return evaluation_batch_size(None if trial.outcome is None else trial.outcome.micro_batch)


def load_module(store: Store, trial: Trial, task: Task) -> nn.Module | None:
    """A trial's network on the task's device; None, with a warning in the log, if it cannot be read or the device has
    no memory for it."""
    try:
        return store.network(trial.id).to_module().to(task.device)
    except Exception as error:
        if not (isinstance(error, RunError) or is_out_of_memory(error)):
            raise
        log.warning("trial %d cannot be evaluated: %s", trial.id, error)
        return None


def trial_outputs(
    store: Store, trials: Iterable[Trial], x: Tensor, task: Task, deadline: Deadline, mirrors: bool = False
) -> dict[int, Tensor]:
    """The outputs (n, outputs) of the trials' networks for raw examples (n, *shape), by id.

    Networks that cannot be loaded are left out, and so are the first one that there is not enough time for and all
    after it. mirrors: whether with test-time augmentation by horizontal flips.
    """
    result = {}
    for trial in trials:
        if (module := load_module(store, trial, task)) is None:
            continue
        outputs = predict(module, x, task, chunk_size(trial), deadline, mirrors)
        if len(outputs) < len(x):
            break
        result[trial.id] = outputs
    return result
