"""Behaviour of each searcher beyond the contract of all searchers."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from morphnas.graph import MIN_MICRO_BATCH, Graph, Limits, Morph, MorphError, WiderAll, cnn, mlp, resnet
from morphnas.search import (
    SEARCHERS,
    BayesianSearcher,
    Budget,
    EvolutionSearcher,
    GreedySearcher,
    GridSearcher,
    HalvingSearcher,
    HillClimbingSearcher,
    MorphSpace,
    ParetoSearcher,
    Patient,
    Promote,
    Proposal,
    RandomSearcher,
    Searcher,
    Trial,
    distances,
    sketch,
    winner,
)
from morphnas.search import trial as trial_module
from morphnas.search.candidates import LATENCY_QUANTILE, Rules, children, memory_ratio, updated_limits
from morphnas.train.recipe import Outcome, Recipe
from tests.table import (
    Swap,
    TableSpace,
    best_accuracy,
    run_search,
    running_trial,
    score,
    table_network,
    true_accuracy,
    with_score,
)

AMPLE = Budget(math.inf)
SPACE = TableSpace()


def bayesian(seed: int = 0, **settings: object) -> BayesianSearcher:
    return BayesianSearcher(SPACE, seed=seed, **{"candidates": 32, **settings})  # type: ignore[arg-type]


def ask(searcher: Searcher, trials: list[Trial], budget: Budget = AMPLE) -> Proposal:
    proposal = searcher.ask(trials, budget)
    assert proposal is not None
    return proposal


def parent_of(trial: Trial, trials: list[Trial]) -> Trial:
    assert trial.parent is not None
    return trials[trial.parent]


def mean_regret(searches: list[list[Trial]]) -> float:
    """Mean regret of the winners in true accuracy, in percentage points."""
    return 100 * float(np.mean([best_accuracy() - true_accuracy(winner(trials)) for trials in searches]))


def test_bayesian_at_40_beats_random_at_100() -> None:
    """In the whole table. Measured over 30 and 10 seeds: regret 0.35 for random, about 0.12 for Bayesian."""
    space, seeds = TableSpace(shrink=True), range(3)
    random = mean_regret([run_search(RandomSearcher(space, seed=seed), 100, seed) for seed in seeds])
    found = mean_regret([run_search(BayesianSearcher(space, seed=seed, candidates=32), 40, seed) for seed in seeds])
    assert found < random - 0.05


@pytest.mark.slow
def test_bayesian_beats_random_if_networks_only_grow() -> None:
    seeds = range(10)
    found = mean_regret([run_search(bayesian(seed), 40, seed) for seed in seeds])
    assert found < mean_regret([run_search(RandomSearcher(SPACE, seed=seed), 40, seed) for seed in seeds])


def test_seed_changes_search() -> None:
    one, other = ([t.graph.key for t in run_search(RandomSearcher(SPACE, seed=seed), 12)] for seed in (0, 1))
    assert one != other


def test_bayesian_why_holds_its_prediction() -> None:
    trials = run_search(bayesian(), 16)
    early, late = trials[BayesianSearcher.startup].proposal.why, trials[15].proposal.why
    assert early["acquisition"] == "ucb"
    assert late["acquisition"] == "ei"
    for why in (early, late):
        assert why["sd"] > 0
        assert why["candidates"] > 0
        assert [d for _, d in why["nearest"]] == sorted(d for _, d in why["nearest"])
        assert all(isinstance(trial, int) for trial, _ in why["nearest"])
    assert late["budget"]["trials"] == 1
    assert abs(late["mean"] - score(trials[15])) < 0.3


def test_bayesian_starts_up_with_larger_and_random_networks() -> None:
    """`startup` counts networks with a score, so that failed ones do not use it up."""
    trials = run_search(bayesian(), 10)
    starts = [t.id for t in trials if t.proposal.why["reason"] == "start"]
    early = [t for t in trials[: BayesianSearcher.startup] if t.id not in starts]
    assert [t.proposal.why["reason"] for t in early] == ["larger", "random"]
    assert {t.proposal.why["reason"] for t in trials[BayesianSearcher.startup :]} == {"acquisition"}
    failed = [replace(t, outcome=Outcome("failed"), kept=False) if t in early else t for t in trials]
    assert ask(bayesian(), failed[: BayesianSearcher.startup]).why["reason"] == "larger"


def test_bayesian_first_widens_best_start_within_limits() -> None:
    starts = (cnn((3, 8, 8), 4, width=4), resnet((3, 8, 8), 4, width=4, depth=2))
    trials = [
        Trial(i, Proposal(graph, (), Recipe()), graph, Outcome("finished", -0.5 - i, epochs=8), kept=True)
        for i, graph in enumerate(starts)
    ]
    searcher = BayesianSearcher(MorphSpace(starts))
    first = ask(searcher, trials)
    assert (first.start, first.morphs) == (0, (WiderAll(200),))
    limits = Limits(max_params=WiderAll(150).grow(starts[0]).parameters)
    assert ask(replace(searcher, limits=limits), trials).morphs == (WiderAll(150),)


def test_bayesian_proposes_longer_chains_at_first() -> None:
    jumps = [len(t.proposal.morphs) for t in run_search(bayesian(), 24)]
    assert 2 < max(jumps[4:12]) <= 4
    assert max(jumps[12:]) <= 2


def test_bayesian_avoids_networks_near_a_running_one() -> None:
    """The next network is farther from a running one than from the same one if its training has failed."""
    edit_distances: dict[str, list[float]] = {"running": [], "failed": []}
    for seed in range(6):
        searcher = bayesian(seed)
        trials = run_search(searcher, 10, seed)
        running = running_trial(trials, ask(searcher, trials))
        for status, last in (("running", running), ("failed", replace(running, outcome=Outcome("failed")))):
            graph = running_trial(trials, ask(searcher, [*trials, last])).graph
            edit_distances[status].append(float(distances([sketch(graph)], [running.sketch])[0, 0]))
    assert np.mean(edit_distances["running"]) > 1.5 * np.mean(edit_distances["failed"])


def test_bayesian_improves_real_networks() -> None:
    space = MorphSpace((cnn((3, 8, 8), 4, width=4), resnet((3, 8, 8), 4, width=4, depth=2)))
    searcher = BayesianSearcher(space, candidates=24)
    trials: list[Trial] = []
    for _ in range(16):
        trial = running_trial(trials, ask(searcher, trials))
        outcome = Outcome("finished", math.log(trial.graph.parameters), epochs=8)
        trials.append(replace(trial, outcome=outcome, kept=True))
    assert max(t.graph.parameters for t in trials) > 3 * space.starts[1].parameters


def test_evolution_mutates_best_of_sample() -> None:
    trials = run_search(EvolutionSearcher(SPACE, population=6, sample=3), 20)
    for trial in trials[8:]:
        drawn = trial.proposal.why.get("drawn")
        if drawn is not None:
            assert len(drawn) == 3
            assert min(drawn) >= trial.id - 6
            assert trial.parent in drawn
            assert len(trial.proposal.morphs) == 1
            assert score(parent_of(trial, trials)) == max(score(trials[i]) for i in drawn)
    assert any("drawn" in t.proposal.why for t in trials)


def test_evolution_promotion_does_not_change_age() -> None:
    trials = run_search(EvolutionSearcher(SPACE, population=6, sample=6), 12)
    old = trials[2]
    proposal = Proposal(old.id, (), replace(old.proposal.recipe, epochs=99))
    promoted = replace(with_score(old, 10.0), id=12, proposal=proposal)
    drawn: set[int] = set()
    for seed in range(9):
        searcher = EvolutionSearcher(SPACE, population=6, sample=2, seed=seed)
        drawn.update(ask(searcher, [*trials, promoted]).why.get("drawn", ()))
    assert drawn
    assert not drawn & {old.id, promoted.id}


def test_greedy_grows_best_network_with_new_neighbours() -> None:
    trials = run_search(GreedySearcher(SPACE), 20)
    for trial in trials[4:]:
        place, ranked = trial.proposal.why["place"], sorted(trials[: trial.id], key=lambda t: (-score(t), t.id))
        assert trial.parent == ranked[place - 1].id
        assert len(trial.proposal.morphs) == 1
        for better in ranked[: place - 1]:
            neighbours = {morph.grow(better.graph).key for morph in SPACE.neighbours(better.graph)}
            assert neighbours <= {t.graph.key for t in trials[: trial.id]}
    assert len({t.proposal.why["place"] for t in trials[4:]}) > 1


def test_hill_climbing_moves_to_best_of_enough_children() -> None:
    trials = run_search(HillClimbingSearcher(TableSpace(shrink=True), children=3), 30)
    climbs = [t for t in trials if t.proposal.why["reason"] == "climbing"]
    positions = list(dict.fromkeys(parent_of(t, trials).id for t in climbs))
    assert positions[0] == max(trials[:4], key=score).id
    assert len(positions) > 2
    for before, after in itertools.pairwise(positions):
        children = [t for t in climbs if t.parent == before]
        assert len(children) >= 3
        assert after == max(children, key=score).id
        assert score(trials[after]) > score(trials[before])
        assert all(score(t) <= score(trials[before]) for t in children[2:-1])
    assert max(len(t.proposal.morphs) for t in climbs) > 1


def test_grid_proposes_every_size_once() -> None:
    searcher = GridSearcher(MorphSpace((cnn((3, 8, 8), 4, width=5),)), widths=(4, 8), depths=(1, 2, 3))
    trials: list[Trial] = []
    while (proposal := searcher.ask(trials, AMPLE)) is not None:
        trials.append(replace(running_trial(trials, proposal), outcome=Outcome("finished", 0.0), kept=True))
    expected = {cnn((3, 8, 8), 4, width=width, depth=depth).key for width in (4, 8) for depth in (1, 2, 3)}
    assert {t.graph.key for t in trials[1:]} == expected
    assert len(trials) == 7
    assert [t.graph.work for t in trials[1:]] == sorted(t.graph.work for t in trials[1:])
    flat = GridSearcher(MorphSpace((mlp((5,), 2),)), widths=(3,), depths=(1,))
    start = ask(flat, [ended_trial(mlp((5,), 2), Outcome("finished", 0.0))]).start
    assert isinstance(start, Graph)
    assert start.key == mlp((5,), 2, width=3, depth=1).key


def test_halving_promotes_a_third_of_each_rung() -> None:
    trials = run_search(HalvingSearcher(SPACE, Recipe(epochs=1)), 40)
    counts = [sum(t.epochs == epochs for t in trials) for epochs in (1, 3, 9, 27)]
    assert counts[1:] == [count // 3 for count in counts[:3]]


def test_children_skip_unfit_morphs_and_alternate_kinds() -> None:
    class SpaceWithUnfitMorph(TableSpace):
        def neighbours(self, graph):
            yield Swap(0, "2", "1")
            yield from super().neighbours(graph)

    graph = table_network("01011111")
    with pytest.raises(MorphError):
        Swap(0, "2", "1").grow(graph)
    found = list(children(SpaceWithUnfitMorph(), RandomSearcher(SPACE).limits, graph, np.random.default_rng(0)))
    assert len(found) == 8
    assert {morph.tag for morph, _ in found[:2]} == {"deeper", "wider"}


@pytest.mark.parametrize("make", [RandomSearcher, GreedySearcher, EvolutionSearcher, HillClimbingSearcher])
def test_network_without_fitting_children_is_not_reexpanded(make: type[RandomSearcher]) -> None:
    class RecordingSpace(TableSpace):
        def neighbours(self, graph):
            expanded.append(graph.key)
            return super().neighbours(graph)

    expanded: list[str] = []
    trials = run_search(RandomSearcher(SPACE), 25)
    budget = Budget(trials[0].epochs * min(t.graph.work for t in trials), None, 1.0)
    assert make(RecordingSpace()).ask(trials, budget) is None
    max_count = {RandomSearcher: 1, GreedySearcher: 1}.get(make, 2)  # others expand the best trials first
    assert max(expanded.count(key) for key in expanded) == max_count
    assert {t.graph.key for t in trials} == set(expanded)


@pytest.mark.parametrize("make", (SEARCHERS | {"pareto": partial(ParetoSearcher, narrower=(1,))}).values())
def test_network_that_does_not_fit_is_not_expanded(
    make: Callable[..., Searcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = tuple(cnn((3, 8, 8), 3, width=width, depth=1) for width in range(2, 14))
    trials = [ended_trial(graph, Outcome("finished", -0.5 - i, epochs=8), i) for i, graph in enumerate(starts)]
    expanded: list[str] = []

    def no_candidates(graph: Graph, _: object) -> list[Morph]:
        expanded.append(graph.key)
        return []

    monkeypatch.setattr(trial_module, "candidates", no_candidates)
    assert make(MorphSpace(starts)).ask(trials, Budget(starts[2].work * 8, None, 1.0)) is None
    assert set(expanded) <= {graph.key for graph in starts[:3]}


# -- settings


@pytest.mark.parametrize(
    ("make", "setting", "value"),
    [
        (GridSearcher, "depths", 3), (GridSearcher, "widths", np.int64(8)), (GridSearcher, "widths", "8"),
        (GridSearcher, "depths", {2, 3}), (GridSearcher, "depths", [2, 3.0]),
        (HalvingSearcher, "factor", np.float64(3)), (HalvingSearcher, "factor", np.True_),
        (HalvingSearcher, "factor", [3]),
    ],
)  # fmt: skip
def test_setting_of_wrong_type_is_refused(make: Callable[..., Searcher], setting: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{setting} must be (a )?whole numbers? of at least 1, not"):
        make(SPACE, **{setting: value})


def test_numpy_settings_become_python_numbers() -> None:
    first = ended_trial(cnn((3, 8, 8), 4, width=4), Outcome("finished", -0.5, epochs=8))
    sizes: dict[str, Any] = {"depths": [np.int64(2)], "widths": (np.int32(8),)}
    grid = GridSearcher(MorphSpace((first.graph,)), **sizes)
    assert (grid.depths, grid.widths) == ((2,), (8,))
    assert json.dumps(ask(grid, [first]).why["width"]) == "8"
    factor: Any = np.int64(3)
    halving = HalvingSearcher(SPACE, factor=factor)
    assert type(halving.factor) is int
    assert type(ask(halving, run_search(halving, 3)).recipe.epochs) is int
    assert type(bayesian(cooling=np.float32(0.5)).cooling) is float


# -- promotion


def test_promotion_respects_maximum_epochs() -> None:
    trials = run_search(RandomSearcher(SPACE, Recipe(epochs=200)), 8)
    for factor, epochs in ((500, 100_000), (501, 200)):
        assert ask(Promote(RandomSearcher(SPACE, Recipe(epochs=200)), factor), trials).recipe.epochs == epochs


def test_promotion_trains_best_quarter_for_longer() -> None:
    searcher = Promote(RandomSearcher(SPACE, Recipe(epochs=2)))
    trials = run_search(searcher, 45)
    promoted = [t for t in trials if t.proposal.why["reason"] == "promotion"]
    assert {t.epochs for t in promoted} == {8, 32}
    for trial in promoted:
        parent = parent_of(trial, trials)
        assert trial.epochs == 4 * parent.epochs
        assert not trial.proposal.morphs
        assert trial.graph == parent.graph
        earlier = [score(t) for t in trials[: trial.id] if t.epochs == parent.epochs]
        assert sum(value > score(parent) for value in earlier) < len(earlier) / 4
    short, longer, longest = (sum(t.epochs == epochs for t in trials) for epochs in (2, 8, 32))
    assert longer == short // 4
    assert longest == longer // 4


def test_promotion_needs_time_and_kept_weights() -> None:
    searcher = Promote(RandomSearcher(SPACE))
    trials = run_search(RandomSearcher(SPACE), 8)
    first, second = sorted(trials, key=score, reverse=True)[:2]
    proposal = ask(searcher, trials)
    assert (proposal.start, proposal.recipe.epochs) == (first.id, 32)
    not_kept = [replace(t, kept=t.id != first.id) for t in trials]
    assert ask(searcher, not_kept).start == second.id
    short = Budget(31 * min(first.graph.flops, second.graph.flops), None, 1.0)
    assert ask(searcher, trials, short).recipe.epochs == 8
    assert ask(searcher, [*trials, running_trial(trials, proposal)]).start == second.id
    truncated = [with_score(t, score(t), status="truncated") for t in trials]
    assert ask(searcher, truncated).recipe.epochs == 8


def test_searcher_proposes_if_nothing_is_promoted() -> None:
    inner = RandomSearcher(SPACE, Recipe(epochs=2))
    trials = run_search(inner, 3)
    assert Promote(inner).ask(trials, AMPLE) == inner.ask(trials, AMPLE)


@given(scores=st.lists(st.none() | st.integers(0, 3), max_size=12), patience=st.integers(1, 5))
def test_patience_ends_search_without_improvement(scores: list[int | None], patience: int) -> None:
    """A score of None is a failed trial. Final and running trials do not count; too slow ones count as no better."""
    graph, inner = SPACE.starts[0], RandomSearcher(SPACE)
    trials = [
        Trial(i, Proposal(graph, (), Recipe()), graph, Outcome("failed" if s is None else "finished", s), True)
        for i, s in enumerate(scores)
    ]
    values = [(-1 if s is None else s) for s in scores]
    best = max(values, default=-1)
    since_best = len(values) - 1 - values.index(best) if best >= 0 else 0
    slow = Trial(90, Proposal(graph, (), Recipe()), graph, Outcome("finished", 9.0, slow=True), True)
    final = Trial(91, Proposal(graph, (), Recipe(), {"final": "fresh"}), graph, Outcome("finished", 9.0), True)
    running = Trial(92, Proposal(graph, (), Recipe()), graph)
    for further, counted in ([], 0), ([final, running], 0), ([slow], best >= 0):
        proposal = Patient(inner, patience).ask([*trials, *further], AMPLE)
        assert proposal == (None if since_best + counted >= patience else inner.ask([*trials, *further], AMPLE))


def test_child_of_promoted_trial_is_on_first_rung() -> None:
    trials = run_search(Promote(RandomSearcher(SPACE, Recipe(epochs=2))), 60)
    children_of_promoted = [t for t in trials if t.proposal.morphs and parent_of(t, trials).epochs > 2]
    assert {t.epochs for t in children_of_promoted} == {2}
    assert all(t.graph != parent_of(t, trials).graph for t in children_of_promoted)


@pytest.mark.parametrize("inner", [RandomSearcher(SPACE), EvolutionSearcher(SPACE, population=4), bayesian()])
def test_children_inherit_best_weights_of_a_network(inner: Searcher) -> None:
    trials = run_search(RandomSearcher(SPACE), 12)
    top = max(trials, key=score)
    trials.append(replace(with_score(top, score(top) + 0.1), id=12, proposal=Proposal(top.id, (), Recipe(epochs=32))))
    for _ in range(6):
        trials.append(running_trial(trials, ask(inner, trials)))
        assert trials[-1].parent != top.id


# -- memory


def ended_trial(graph: Graph, outcome: Outcome, id: int = 0) -> Trial:
    """A trial with this outcome; its weights are kept unless it ran out of memory."""
    return Trial(id, Proposal(graph, (), Recipe()), graph, outcome, outcome.status != "oom")


def test_networks_as_large_as_an_oom_one_do_not_fit() -> None:
    small, large, larger = (cnn((3, 8, 8), 3, width=width, depth=2) for width in (8, 16, 32))
    failed = ended_trial(large, Outcome("oom"))
    rules = Rules.of([failed], Limits(), AMPLE, 6)
    assert [rules.fits(graph) for graph in (small, large, larger)] == [True, False, False]
    assert all(Rules.of([], Limits(), AMPLE, 6).fits(graph) for graph in (small, large, larger))
    assert updated_limits(Limits(max_params=9), []) == Limits(max_params=9)
    both = updated_limits(Limits(), [failed, ended_trial(larger, Outcome("oom"), 1)])
    assert both.max_memory == large.peak_bytes(MIN_MICRO_BATCH) - 1


@pytest.mark.parametrize("make", [RandomSearcher, EvolutionSearcher, BayesianSearcher])
def test_proposed_network_is_smaller_than_an_oom_one(make: type[RandomSearcher]) -> None:
    starts = tuple(cnn((3, 8, 8), 3, width=width, depth=2) for width in (4, 16))
    trials = [ended_trial(starts[0], Outcome("finished", -0.5, 0.8)), ended_trial(starts[1], Outcome("oom"), 1)]
    trials = [replace(trial, proposal=replace(trial.proposal, recipe=Recipe(epochs=6))) for trial in trials]
    for seed in range(3):
        trial = running_trial(trials, ask(make(MorphSpace(starts), Recipe(epochs=6), Limits(), seed), trials))
        assert trial.parent == 0
        assert trial.graph.peak_bytes(MIN_MICRO_BATCH) < starts[1].peak_bytes(MIN_MICRO_BATCH)


def test_memory_estimates_are_corrected_by_measurements() -> None:
    graph = cnn((3, 8, 8), 3, width=8, depth=2)
    assert memory_ratio([ended_trial(graph, Outcome("finished", micro_batch=16))]) == 1  # not measured, as on a CPU
    sizes = [(16, 0.5), (64, 1.5), (8, 9.0)]
    trials = [
        ended_trial(graph, Outcome("finished", peak_bytes=int(ratio * graph.peak_bytes(n)), micro_batch=n), i)
        for i, (n, ratio) in enumerate(sizes)
    ]
    assert memory_ratio(trials) == pytest.approx(1.5, rel=1e-3)
    estimate = graph.peak_bytes(MIN_MICRO_BATCH)
    assert not Rules.of(trials, Limits(max_memory=int(1.4 * estimate)), AMPLE, 6).fits(graph)
    assert Rules.of(trials, Limits(max_memory=int(1.6 * estimate)), AMPLE, 6).fits(graph)


# -- latency


def timed(graph: Graph, seconds: float, id: int = 0, slow: bool = False) -> Trial:
    """A trial whose network has this latency."""
    trial = ended_trial(graph, Outcome("finished", -0.5, 0.8, latency=seconds, slow=slow), id)
    return replace(trial, proposal=replace(trial.proposal, recipe=Recipe(epochs=6)))


def slower_than_predicted(limits: Limits, trials: list[Trial]) -> int:
    """How many of the trials' networks are slower than predicted."""
    return sum(limits.latency(t.graph) * (1 + 1e-9) < t.outcome.latency for t in trials)  # type: ignore[operator, union-attr]


GRAPHS = [cnn((3, 8, 8), 3, width=width, depth=depth) for width in (4, 16, 64, 128) for depth in (2, 3, 5)]


@given(st.floats(1e-7, 1e-3), st.floats(1e-13, 1e-8), st.floats(0, 1e-8), st.randoms(use_true_random=False))
def test_latency_model_is_recovered_from_measurements(a: float, b: float, c: float, random: Random) -> None:
    limits = Limits(max_latency_ms=1.0, pace=(a, b, c))
    graphs = random.sample(GRAPHS, 7)
    exact = [timed(graph, limits.latency(graph), i) for i, graph in enumerate(graphs)]
    found = updated_limits(Limits(max_latency_ms=1.0), exact)
    for graph in graphs:
        assert found.latency(graph) == pytest.approx(limits.latency(graph), rel=1e-3)
    assert updated_limits(limits, []) == limits
    assert updated_limits(Limits(), exact) == Limits()
    noisy = [timed(graph, limits.latency(graph) * random.uniform(0.8, 1.25), i) for i, graph in enumerate(graphs)]
    assert slower_than_predicted(updated_limits(limits, noisy), noisy) <= 2


@pytest.mark.parametrize("count", range(1, len(GRAPHS) + 1))
def test_most_networks_are_no_slower_than_predicted(count: int) -> None:
    random = Random(count)
    limits = Limits(max_latency_ms=1.0, pace=(1e-5, 1e-10, 1e-10))
    trials = [timed(g, limits.latency(g) * random.uniform(0.5, 2), i) for i, g in enumerate(GRAPHS[:count])]
    assert slower_than_predicted(updated_limits(limits, trials), trials) <= (1 - LATENCY_QUANTILE) * count


def test_few_latencies_rescale_given_model() -> None:
    limits = Limits(max_latency_ms=1.0, pace=(1e-5, 1e-10, 0.0))
    slower = [timed(graph, 1.3 * limits.latency(graph), i) for i, graph in enumerate(GRAPHS[:3])]
    for graph in GRAPHS:
        assert updated_limits(limits, slower).latency(graph) == pytest.approx(1.3 * limits.latency(graph))
    assert updated_limits(Limits(max_latency_ms=1.0), slower) == Limits(max_latency_ms=1.0)  # `pace` is 0


@pytest.mark.parametrize("make", [RandomSearcher, EvolutionSearcher, BayesianSearcher])
def test_proposed_network_is_within_latency_limit(make: type[RandomSearcher]) -> None:
    limits = Limits(max_latency_ms=1.0, pace=(2e-5, 1e-9, 0.0))
    start = next(graph for graph in GRAPHS if limits.latency(graph) < 6e-4)
    trials = [timed(start, 6e-4)]
    for seed in range(3):
        trial = running_trial(trials, ask(make(MorphSpace((start,)), Recipe(epochs=6), limits, seed), trials))
        assert limits.latency(trial.graph) <= 1e-3


def test_slow_network_is_not_promoted() -> None:
    trials = run_search(RandomSearcher(SPACE, Recipe(epochs=2)), 12)
    searcher = Promote(RandomSearcher(SPACE, Recipe(epochs=2)))
    top = ask(searcher, trials).start
    assert isinstance(top, int)
    trials[top] = with_score(trials[top], score(trials[top]), slow=True, latency=1.0)
    assert ask(searcher, trials).start != top
