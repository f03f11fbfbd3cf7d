"""`ParetoSearcher` and Pareto fronts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from morphnas.graph import Limits, cnn, narrowed, resnet
from morphnas.search import Budget, MorphSpace, ParetoSearcher, Proposal, RandomSearcher, Trial
from morphnas.search.pareto import COSTS, front
from morphnas.train.recipe import Outcome, Recipe
from tests.table import TableSpace, grown, run, shortfall

STARTS = (cnn((3, 8, 8), 4, width=16), resnet((3, 8, 8), 4, width=16, depth=2))


def lacking(searches: list[list[Trial]]) -> float:
    """`shortfall` in percentage points, averaged over the searches."""
    return 100 * float(np.mean([shortfall(trials) for trials in searches]))


def test_budgets_are_served_sooner_than_by_chance() -> None:
    """On the whole table. Measured over 40 seeds: 0.3 points after 20 networks, 2.7 for random morphs."""
    space, seeds = TableSpace(shrink=True), range(2)
    random = lacking([run(RandomSearcher(space, seed=seed), 20, seed) for seed in seeds])
    found = lacking([run(ParetoSearcher(space, seed=seed, candidates=32, narrower=(1,)), 20, seed) for seed in seeds])
    assert found < random / 3


def test_begins_with_narrower_networks_too() -> None:
    trials = run_real(ParetoSearcher(MorphSpace(STARTS), candidates=16), 7)
    reasons = [trial.proposal.why["reason"] for trial in trials]
    assert reasons == ["start", "start", *["narrower"] * 4, "acquisition"]
    assert [t.graph.key for t in trials[2:6]] == [narrowed(graph, n).key for n in (2, 4) for graph in STARTS]
    assert trials[6].proposal.why["acquisition"] == "ehvi"
    small = ParetoSearcher(MorphSpace(STARTS), limits=Limits(max_flops=narrowed(STARTS[0], 2).flops))
    proposal = small.ask((), Budget(math.inf))
    assert proposal is not None
    assert proposal.start == narrowed(STARTS[0], 2), "which may be trained where the starts are too large"


@pytest.mark.parametrize("cost", COSTS)
def test_goes_on_where_a_budget_lacks_most(cost: str) -> None:
    """All networks but the cheapest have the best possible score: the next one is grown from the cheapest."""
    graphs = [narrowed(STARTS[0], 8), *(cnn((3, 8, 8), 4, width=width, depth=3) for width in (16, 18, 20, 24, 28, 32))]
    trials = [
        Trial(i, Proposal(graph, (), Recipe()), graph, ended(0.0 if i else -3.0, graph.flops), kept=True)
        for i, graph in enumerate(graphs)
    ]
    searcher = ParetoSearcher(MorphSpace((graphs[0],)), cost=cost, narrower=(1,))
    proposal = searcher.ask(trials, Budget(math.inf))
    assert proposal is not None
    assert proposal.start == 0


@pytest.mark.parametrize("cost", ["size", None, 3, ["flops"]])
def test_other_costs_are_refused(cost: Any) -> None:
    with pytest.raises(ValueError, match="cost must be one of parameters, flops, latency, not"):
        ParetoSearcher(MorphSpace(STARTS), cost=cost)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(-9, 0)), min_size=1, max_size=12))
def test_no_network_is_better_than_the_front_at_its_cost(pairs: list[tuple[int, int]]) -> None:
    trials = [Trial(i, Proposal(STARTS[0], (), Recipe()), STARTS[0]) for i in range(len(pairs))]
    found = [t.id for t in front(trials, lambda t: float(pairs[t.id][0]), lambda t: float(pairs[t.id][1]))]
    for cost, value in pairs:
        assert any(pairs[id][0] <= cost and pairs[id][1] >= value for id in found)
    for a in found:
        assert not any(c <= pairs[a][0] and v >= pairs[a][1] and (c, v) != pairs[a] for c, v in pairs)


def ended(score: float, flops: int) -> Outcome:
    return Outcome("finished", score, math.exp(score), epochs=8, best_epoch=8, latency=1e-9 * flops)


def run_real(searcher: ParetoSearcher, n: int) -> list[Trial]:
    """Trials whose scores rise with their FLOPs."""
    trials: list[Trial] = []
    while len(trials) < n and (proposal := searcher.ask(trials, Budget(math.inf))) is not None:
        graph = grown(trials, proposal.start, proposal.morphs)
        outcome = ended(-1 / math.log(graph.flops), graph.flops)
        trials.append(Trial(len(trials), proposal, graph, outcome, kept=True))
    return trials
