"""The final model as an ensemble of what a run has trained anyway."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from morphnas.graph import Limits, Network, blend
from morphnas.graph.blend import blended
from morphnas.run.predictions import outputs_of
from morphnas.run.store import Store, data_name
from morphnas.search.trial import Trial
from morphnas.train.data import Examples, Task
from morphnas.train.deadline import Deadline
from morphnas.train.goal import UndefinedMetric

log = logging.getLogger("morphnas")

LIBRARY = 12
"""Networks that are asked whether they help, at most: the best by their scores."""
ROUNDS = 10
"""Votes that are given."""
ASKED = 2000
"""Held-out examples that they are asked on, at most."""


def asked(size: int, task: Task, chooser: Examples | None) -> int:
    """Examples that are passed through networks for `elect`, and once through the others that it elects."""
    held_out = len(task.evaluation_set) + (0 if chooser is None else len(chooser))
    return LIBRARY * min(ASKED, held_out) + (min(size, ROUNDS) - 1) * len(task.evaluation_set) if size > 1 else 0


def elect(
    store: Store,
    final: Trial,
    task: Task,
    chooser: Examples | None,
    size: int,
    mirrors: bool,
    deadline: Deadline,
    data: str = "",
    limits: Limits | None = None,
) -> dict[int, float]:
    """The shares of up to `size` of the run's networks in an ensemble around the final one, by id; they sum to 1.

    Ensemble selection (Caruana et al. 2004, "Ensemble selection from libraries of models", ICML): the final network has
    the first vote; each further one goes to the network, which may have votes already, with which the mean of the
    outputs has the best score, at the temperature that suits the mean so far, on examples that none was trained on;
    until that gets no better. `Trial.scored_by` votes for a network that was trained on them. All of it where there is
    nobody to stand in but a network of the search, hardly trained, no held-out examples, or no time.

    mirrors: whether all of them read mirror images as well. data: a name of the examples that the task was made of;
    networks trained on others, which may hold what is held out here, have no part in it. limits: of the whole ensemble;
    None: none.
    """
    if size == 1:
        return {final.id: 1.0}
    judge = store.trial(final.scored_by)
    if task.valid is None:
        return _alone(final, "no examples are held out")
    if _data(store, judge) != data:
        return _alone(final, "the final network was trained on other data, which may hold the examples held out here")
    if judge.id != final.id and not judge.final:
        return _alone(final, "there was no time to judge the final network before it was trained on all examples")
    others = [
        t for t in store.trials if t.kept and t.score is not None and _data(store, t) == data and t.id != judge.id
    ]
    others.sort(key=lambda t: (not t.final, -(t.score or 0.0), t.id))
    parts = [part[:ASKED] for part in (task.valid, chooser) if part is not None]
    x, y = torch.cat([part.x for part in parts])[:ASKED], torch.cat([part.y for part in parts])[:ASKED]
    counted = [part.weights for part in parts if part.weights is not None]
    weights = torch.cat(counted)[:ASKED] if counted else None
    said = outputs_of(store, [judge, *others][:LIBRARY], x, task, deadline, mirrors)
    votes = {id: outputs.double() for id, outputs in said.items() if outputs.isfinite().all()}
    if judge.id not in votes:
        return _alone(final, "the final network could not be asked in time")

    def lost(outputs: Tensor) -> tuple[float, float]:
        """Less is better: minus the score, of equals the loss."""
        try:
            return -task.goal.score_and_metric(outputs, y, weights)[0], task.goal.loss(outputs, y, weights).item()
        except UndefinedMetric:
            return math.inf, math.inf

    def fits(ids: Sequence[int]) -> bool:
        """Whether these networks together are within the limits."""
        return limits is None or limits.refuse(blended([store.trial(id).graph for id in ids])[0]) is None

    elected = Counter([judge.id])
    while (n := elected.total()) < ROUNDS and not deadline.passed:
        total = torch.stack([many * votes[id] for id, many in elected.items()]).sum(0)
        temperature = task.goal.temperature(total / n, y, weights)
        open_to = [id for id in votes if id in elected or (len(elected) < size and fits([*elected, id]))]
        loss, best = min((lost((total + votes[id]) / ((n + 1) * temperature)), id) for id in open_to)
        if loss >= lost(total / (n * temperature)):
            break
        elected[best] += 1
    if len(elected) == 1:
        log.info("the model is not an ensemble: none of %d other networks makes it better", len(votes) - 1)
    return {final.id if id == judge.id else id: n / elected.total() for id, n in elected.items()}


def _alone(final: Trial, why: str) -> dict[int, float]:
    log.warning("the model is not an ensemble: %s", why)
    return {final.id: 1.0}


def assembled(store: Store, shares: Mapping[int, float], instead: Mapping[int, int] | None = None) -> Network:
    """The networks with these shares as one. instead: whose place others take, by id."""
    swapped = instead or {}
    return blend([store.network(swapped.get(id, id)) for id in shares], list(shares.values()))


def _data(store: Store, trial: Trial) -> str:
    """A name of the examples that it was trained on: a search has one for all."""
    return str(trial.proposal.why.get("data", "")) if trial.final else data_name(store.about.get("data"))
