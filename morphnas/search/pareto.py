"""The best networks for every cost: Bayesian optimisation of score and cost (Pareto front)."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from morphnas.graph import Graph, narrowed
from morphnas.search.candidates import Rules, budget_to_json, fit_latency_model
from morphnas.search.distance import Array
from morphnas.search.guided import Acquisition, Guided
from morphnas.search.surrogate import hypervolume_improvement
from morphnas.search.trial import Proposal, Trial

COSTS: dict[str, Callable[[Trial], float | None]] = {
    "parameters": lambda trial: float(trial.graph.parameters),
    "flops": lambda trial: float(trial.graph.flops),
    "latency": lambda trial: trial.outcome.latency if trial.outcome else None,
}
"""The cost of a trial's network: parameters, FLOPs, or latency in seconds for one example (None: not measured)."""


@dataclass(frozen=True)
class ParetoSearcher(Guided):
    """Trains the space's starts first, then these with all widths divided by each number of `narrower`; then maximises
    the expected hypervolume improvement of score and log2 of the cost.

    cost: one of `COSTS`, to be minimised. The latency of a candidate is predicted by `fit_latency_model`.
    """

    cost: str = "flops"
    narrower: tuple[int, ...] = (2, 4)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_cost(self.cost)

    def acquisition(self, scored: Sequence[Trial], mean: Array, exploring: bool) -> Acquisition:
        limits = fit_latency_model(self.limits, scored)

        def log2_costs(graphs: Sequence[Graph]) -> Array:
            costs = [limits.latency(g) if self.cost == "latency" else getattr(g, self.cost) for g in graphs]
            return np.log2(np.maximum(costs, sys.float_info.min))

        costs = log2_costs([trial.graph for trial in scored])

        def evaluate(graphs: Sequence[Graph], means: Array, sds: Array) -> Array:
            return hypervolume_improvement(means, sds, log2_costs(graphs), mean, costs)

        return Acquisition("ehvi", evaluate)

    def propose_next(self, trials: Sequence[Trial], rules: Rules, rng: np.random.Generator) -> Proposal | None:
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
    """The cost if it is a key of `COSTS`; ValueError otherwise."""
    if not (isinstance(cost, str) and cost in COSTS):
        raise ValueError(f"cost must be one of {', '.join(COSTS)}, not {cost!r:.100}")
    return cost


def front(
    trials: Sequence[Trial], cost: Callable[[Trial], float | None], value: Callable[[Trial], float | None]
) -> list[Trial]:
    """The Pareto front, the cheapest trial first: trials with a higher value than all others of the same or lower cost;
    of several with equal cost and value the first. Trials of which either is None are left out."""
    all_figures = [(cost(trial), value(trial), trial) for trial in trials]
    figures = [(price, -worth, trial) for price, worth, trial in all_figures if price is not None and worth is not None]
    best, result = math.inf, list[Trial]()
    for _, minus, trial in sorted(figures, key=lambda item: (*item[:2], item[2].id)):
        if minus < best:
            result.append(trial)
            best = minus
    return result
