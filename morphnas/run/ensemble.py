"""The final model as an ensemble of networks that a run has trained anyway."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from morphnas.graph import Limits, Network, blend
from morphnas.graph.blend import blend_graphs
from morphnas.run.predictions import trial_outputs
from morphnas.run.store import Store, data_id
from morphnas.search.trial import Trial
from morphnas.train.data import Examples, Task
from morphnas.train.deadline import Deadline
from morphnas.train.goal import UndefinedMetric

log = logging.getLogger("morphnas")

LIBRARY_SIZE = 12
"""Maximum number of networks that members are selected from: the final network, then other final trainings, then
networks of the search; both by their scores, the best first."""
ROUNDS = 10
"""Maximum number of votes, one of which is given in each round."""
MAX_EXAMPLES = 2000
"""Maximum number of held-out examples that they are evaluated on."""


def count_evaluated(size: int, task: Task, selection_set: Examples | None) -> int:
    """Maximum number of examples that are predicted for an ensemble of up to `size` networks: by `select_members`, and
    then one pass over the evaluation set for each member beyond the first."""
    if size <= 1:
        return 0
    held_out = len(task.evaluation_set) + (0 if selection_set is None else len(selection_set))
    return LIBRARY_SIZE * min(MAX_EXAMPLES, held_out) + (min(size, ROUNDS) - 1) * len(task.evaluation_set)


def select_members(
    store: Store,
    final: Trial,
    task: Task,
    selection_set: Examples | None,
    size: int,
    mirrors: bool,
    deadline: Deadline,
    data: str = "",
    limits: Limits | None = None,
) -> dict[int, float]:
    """The shares of up to `size` of the run's networks in an ensemble around the final one, by id; they sum to 1.

    Ensemble selection (Caruana et al. 2004, "Ensemble selection from libraries of models", ICML): the final network has
    the first vote. Each further vote goes to the network, selected before or not, with which the mean of the outputs
    has the best score on held-out examples, at the calibration temperature of the mean so far; until the score no
    longer improves. If the final network was trained on these examples, `Trial.scored_by` stands in for it. The final
    network is alone if only a network of the search, which is hardly trained, could stand in, if it was trained on
    other data, or if there are no held-out examples, or no time.

    mirrors: whether outputs are with test-time augmentation by horizontal flips. data: name of the task's data, see
    `data_id`; networks trained on other data, which may contain the examples held out here, are left out. limits: of
    the whole ensemble; None: none.
    """
    if size == 1:
        return {final.id: 1.0}
    scored = store.trial(final.scored_by)
    if task.valid is None:
        return _single(final, "no examples are held out")
    if _data(store, scored) != data:
        return _single(final, "the final network was trained on other data, which may hold the examples held out here")
    if scored.id != final.id and not scored.final:
        return _single(final, "there was no time to score the final network before it was trained on all examples")
    others = [
        t for t in store.trials if t.kept and t.score is not None and _data(store, t) == data and t.id != scored.id
    ]
    others.sort(key=lambda t: (not t.final, -(t.score or 0.0), t.id))
    parts = [part[:MAX_EXAMPLES] for part in (task.valid, selection_set) if part is not None]
    x, y = (torch.cat(tensors)[:MAX_EXAMPLES] for tensors in ([part.x for part in parts], [part.y for part in parts]))
    part_weights = [part.weights for part in parts if part.weights is not None]
    weights = torch.cat(part_weights)[:MAX_EXAMPLES] if part_weights else None
    library = [scored, *others][:LIBRARY_SIZE]
    predictions = {
        id: outputs.double()
        for id, outputs in trial_outputs(store, library, x, task, deadline, mirrors).items()
        if outputs.isfinite().all()
    }
    if scored.id not in predictions:
        return _single(final, "the final network could not be evaluated in time")

    def cost(outputs: Tensor) -> tuple[float, float]:
        """Lower is better: minus the score, and for equal scores the loss."""
        try:
            return -task.goal.score_and_metric(outputs, y, weights)[0], task.goal.loss(outputs, y, weights).item()
        except UndefinedMetric:
            return math.inf, math.inf

    def fits(ids: Sequence[int]) -> bool:
        """Whether these networks together are within the limits."""
        return limits is None or limits.violation(blend_graphs([store.trial(id).graph for id in ids])[0]) is None

    votes = Counter([scored.id])
    while (n := votes.total()) < ROUNDS and not deadline.passed:
        total = torch.stack([count * predictions[id] for id, count in votes.items()]).sum(0)
        temperature = task.goal.temperature(total / n, y, weights)
        candidates = [id for id in predictions if id in votes or (len(votes) < size and fits([*votes, id]))]
        lowest, best = min((cost((total + predictions[id]) / ((n + 1) * temperature)), id) for id in candidates)
        if lowest >= cost(total / (n * temperature)):
            break
        votes[best] += 1
    if len(votes) == 1:
        log.info("the model is not an ensemble: none of %d other networks makes it better", len(predictions) - 1)
    return {final.id if id == scored.id else id: n / votes.total() for id, n in votes.items()}


def _single(final: Trial, reason: str) -> dict[int, float]:
    log.warning("the model is not an ensemble: %s", reason)
    return {final.id: 1.0}


def build_ensemble(store: Store, shares: Mapping[int, float], instead: Mapping[int, int] | None = None) -> Network:
    """The ensemble of networks with these shares, as one network. instead: ids to use in place of others."""
    replacements = instead or {}
    return blend([store.network(replacements.get(id, id)) for id in shares], list(shares.values()))


def _data(store: Store, trial: Trial) -> str:
    """The name of the data that a trial was trained on, which is the same for all trials of a search."""
    return str(trial.proposal.why.get("data", "")) if trial.final else data_id(store.about.get("data"))
