"""The best networks for every budget: Bayesian optimisation of the score against what a network costs."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from morphnas.graph import Graph, narrowed
from morphnas.search.candidates import Rules, budget_to_json, paced
from morphnas.search.distance import Array
from morphnas.search.guided import Aim, Guided
from morphnas.search.surrogate import hypervolume_improvement
from morphnas.search.trial import Proposal, Trial

COSTS: dict[str, Callable[[Trial], float | None]] = {
    "parameters": lambda trial: float(trial.graph.parameters),
    "flops": lambda trial: float(trial.graph.flops),
    "latency": lambda trial: trial.outcome.latency if trial.outcome else None,
}
"""What the network of a trial costs: parameters, FLOPs and seconds from one example to its outputs; None: not timed."""


@dataclass(frozen=True)
class ParetoSearcher(Guided):
    """The space's starts first, then these with all widths divided by each number of `narrower`; then what is guided by
    how much it would raise the best score of all budgets, where a doubling of the cost counts alike wherever it is.

    cost: what is to be little, one of COSTS; a latency as those timed let expect it.
    """

    cost: str = "flops"
    narrower: tuple[int, ...] = (2, 4)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_cost(self.cost)

    def aim(self, scored: Sequence[Trial], mean: Array, exploring: bool) -> Aim:
        limits = paced(self.limits, scored)

        def doublings(graphs: Sequence[Graph]) -> Array:
            costs = [limits.latency(g) if self.cost == "latency" else getattr(g, self.cost) for g in graphs]
            return np.log2(np.maximum(costs, sys.float_info.min))

        known = doublings([trial.graph for trial in scored])
        return Aim("ehvi", lambda graphs, m, sd: hypervolume_improvement(m, sd, doublings(graphs), mean, known))

    def further(self, trials: Sequence[Trial], rules: Rules, rng: np.random.Generator) -> Proposal | None:
        for times in self.narrower:
            for number, start in enumerate(self.space.starts):
                graph = narrowed(start, times)
                if rules.new(graph) and rules.fits(graph):
                    why = {
                        "reason": "narrower",
                        "start": number,
                        "times": times,
                        "budget": budget_to_json(rules.budget),
                    }
                    return Proposal(graph, (), self.recipe, why)
        return self.guided(trials, rules, rng)


def check_cost(cost: object) -> str:
    """The name of one of COSTS; ValueError for anything else."""
    if not (isinstance(cost, str) and cost in COSTS):
        raise ValueError(f"cost must be one of {', '.join(COSTS)}, not {cost!r:.100}")
    return cost


def front(
    trials: Sequence[Trial], cost: Callable[[Trial], float | None], value: Callable[[Trial], float | None]
) -> list[Trial]:
    """Those that none is better than at the same cost or less, the cheapest first."""
    figures = [(cost(trial), value(trial), trial) for trial in trials]
    valued = [(price, -found, trial) for price, found, trial in figures if price is not None and found is not None]
    best, kept = math.inf, list[Trial]()
    for _, minus, trial in sorted(valued, key=lambda one: (*one[:2], one[2].id)):
        if minus < best:
            kept.append(trial)
            best = minus
    return kept
