"""Tests of pruning: the best weights are kept, and all that something may still start from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from morphnas.graph import Graph, mlp
from morphnas.run.pruning import prune, trials_to_keep
from morphnas.run.store import Store, load_run
from morphnas.search import HillClimbingSearcher, MorphSpace, Promote, RandomSearcher
from morphnas.search.trial import Budget, Proposal, Trial
from tests.run.doubles import FINISHED, GRAPH, RECIPE, resumed_store, weights

BUDGET = Budget(1e9, 100)


def trial(id: int, score: float | None, start: Graph | int = GRAPH, **settings: Any) -> Trial:
    graph = mlp((4,), 2, width=3 + id, depth=1)
    recipe = replace(RECIPE, epochs=settings.get("epochs", 2))
    start = graph if start is GRAPH else start
    proposal = Proposal(start, settings.get("morphs", ()), recipe, settings.get("why", {}))
    return Trial(
        id, proposal, graph, settings.get("outcome", replace(FINISHED, score=score)), settings.get("kept", True)
    )


def test_best_trials_are_kept() -> None:
    trials = [trial(i, -1.0 - i % 5) for i in range(7)]
    assert trials_to_keep(trials, 3, {}) == {0, 5, 1}


def test_trials_that_others_start_from_are_kept() -> None:
    trials = [trial(i, -float(i)) for i in range(6)]
    running = trial(6, None, 4, outcome=None, kept=False)
    assert trials_to_keep([*trials, running], 1, {}) == {0, 4}
    final = trial(6, None, 3, why={"final": "everything", "score_of": 3})
    assert trials_to_keep([*trials, final], 1, {"best": 2, "final": 6}) == {0, 2, 3, 6}
    assert trials_to_keep([*trials, final], 1, {"best": "x", "final": None}) == {0}


def test_next_network_to_promote_is_kept() -> None:
    """All promoted networks are better, and the next one to be promoted is among the others."""
    short = [trial(i, -2.0 - i) for i in range(8)]
    promoted = [trial(8, -0.1, 0, epochs=8), trial(9, -0.2, 1, epochs=8)]
    keep = trials_to_keep([*short, *promoted], 1, {})
    assert {8, 2} <= keep
    assert len(keep) <= 4
    new = [trial(10 + i, -5.0 - i) for i in range(4)]
    pruned = [replace(t, kept=t.id in keep or t.id >= 10) for t in (*short, *promoted, *new)]
    proposal = Promote(RandomSearcher(MorphSpace((GRAPH,)), RECIPE)).ask(pruned, BUDGET)
    assert proposal is not None
    assert proposal.start == 2


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.create(tmp_path / "run", {})
    for i in range(5):
        claimed = store.claim(Proposal(mlp((4,), 2, width=3 + i, depth=1), (), RECIPE))
        store.finish(i, replace(FINISHED, score=-float(5 - i)), weights(i, claimed.graph))
    yield store
    store.close()


def test_prune_removes_weight_files_for_good(store: Store) -> None:
    prune(store, None)
    assert all(t.kept for t in store.trials)
    prune(store, 2)
    kept = [t.kept for t in store.trials]
    assert kept == [False, False, False, True, True]
    assert [(store.path / f"trials/{i:05d}/weights.safetensors").exists() for i in range(5)] == kept
    assert [t.kept for t in load_run(store.path).trials] == kept
    store.close()
    with resumed_store(store.path) as again:
        assert again.trials == store.trials


def test_nothing_is_pruned_without_a_score(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "run", {})
    try:
        claimed = store.claim(Proposal(GRAPH, (), RECIPE))
        store.finish(claimed.id, replace(FINISHED, status="truncated", score=None, metric=None), weights())
        prune(store, 1)
        assert store.trials[0].kept
    finally:
        store.close()


def test_final_trainings_of_unfinished_fit_are_kept(store: Store) -> None:
    for i in (5, 6):
        claimed = store.claim(Proposal(0, (), RECIPE, {"final": "inherited", "of": 0}))
        store.finish(i, replace(FINISHED, score=-9.0), weights(i, claimed.graph))
    store.update_about(settled=5)
    prune(store, 1)
    assert [t.id for t in store.trials if t.kept] == [4, 6]


def test_hill_climbing_continues_from_kept_network() -> None:
    """Its position is the last network on its path whose weights are kept."""
    space = MorphSpace((GRAPH,))
    start = Trial(0, Proposal(GRAPH, (), RECIPE), GRAPH, replace(FINISHED, score=-3.0), True)
    morph = next(iter(space.neighbours(GRAPH)))
    children = [trial(1 + i, -2.0 + 0.1 * i, 0, morphs=(morph,), kept=i == 7) for i in range(8)]
    searcher = HillClimbingSearcher(space, RECIPE)
    assert [t.id for t in searcher._current([start, *children])] == [8]
    pruned = [replace(child, kept=False) for child in children]
    assert [t.id for t in searcher._current([start, *pruned])] == [0]
    assert searcher._current([replace(start, kept=False), *pruned]) == []


def test_best_network_small_enough_to_grow_is_kept() -> None:
    """If the best network is as large as allowed, it has no children, and the search would end."""
    graphs = [mlp((4,), 2, width=1000 * (i + 1), depth=1) for i in range(10)]
    trials = [replace(trial(i, float(i)), graph=graph) for i, graph in enumerate(graphs)]
    small = [i for i, graph in enumerate(graphs) if 2 * graph.work <= graphs[-1].work]
    assert {9, max(small)} <= trials_to_keep(trials, 1, {})
