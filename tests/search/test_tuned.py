"""`Tuned`, which searches recipes together with networks, and its ranges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from morphnas.graph import Graph, Limits, mlp
from morphnas.search import (
    BayesianSearcher,
    Budget,
    GridSearcher,
    MorphSpace,
    Promote,
    Proposal,
    RandomSearcher,
    Range,
    Searcher,
    Trial,
    Tuned,
    ranges_of,
)
from morphnas.search.distance import sketch
from morphnas.search.network_surrogate import NetworkSurrogate, recipe_features
from morphnas.search.promote import is_promotion
from morphnas.train.recipe import Augment, Outcome, Recipe, default_learning_rate
from tests.table import TableSpace, outcome_of, running_trial, score, table_network, with_score

AMPLE = Budget(math.inf)
SPACE = TableSpace()
RANGES = ranges_of({"lr": (0.001, 1.0), "dropout": (0.0, 0.5), "optimizer": ["sgd", "adamw"]})
BEST_RATE = 0.02
"""The learning rate that gives every network its highest score."""


class NoProposals:
    """A searcher that proposes nothing."""

    def ask(self, trials: Sequence[Trial], budget: Budget) -> Proposal | None:
        return None


def lr_error(trial: Trial) -> float:
    """|log10(lr / BEST_RATE)| of a trial."""
    return abs(math.log10(trial.proposal.recipe.lr / BEST_RATE))


def finished(trial: Trial) -> Trial:
    """The trial with its outcome in the table, and a score that is lower by 0.3 times `lr_error`."""
    trial = replace(trial, outcome=outcome_of(trial.graph), kept=True)
    return with_score(trial, score(trial) - 0.3 * lr_error(trial))


def search(searcher: Searcher, n: int) -> list[Trial]:
    trials: list[Trial] = []
    while len(trials) < n and (proposal := searcher.ask(trials, AMPLE)) is not None:
        trials.append(finished(running_trial(trials, proposal)))
    return trials


def tuned(seed: int = 0, **settings: Any) -> Tuned:
    recipe = Recipe(lr=0.5)
    inner = BayesianSearcher(SPACE, recipe, seed=seed, candidates=16)
    return Tuned(inner, RANGES, recipe, seed=seed, candidates=32, **settings)


def test_decided_flip_does_not_make_a_recipe_new() -> None:
    """Each of the two augmentations is tried exactly once."""
    augmentations = [Augment(flip=None), Augment(shift=0.1, flip=None)]
    recipe, graph = Recipe(augment=augmentations[0]), mlp((4,), 2)
    searcher = Tuned(NoProposals(), ranges_of({"augment": augmentations}), recipe, candidates=16)
    trials = [Trial(0, Proposal(graph, (), recipe), graph, Outcome("finished", -0.1, epochs=8), True)]
    while (proposal := searcher.ask(trials, AMPLE)) is not None and len(trials) < 9:
        decided = replace(proposal.recipe, augment=replace(proposal.recipe.augment, flip=True))
        trial = Trial(len(trials), replace(proposal, recipe=decided), graph)
        trials.append(replace(trial, outcome=Outcome("finished", -0.2, epochs=8), kept=True))
    assert [trial.proposal.recipe.augment.shift for trial in trials] == [0.0, 0.1]


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_better_learning_rate_is_found_and_kept(seed: int) -> None:
    trials = search(tuned(seed), 30)
    fixed = search(BayesianSearcher(SPACE, Recipe(lr=0.5), seed=seed, candidates=16), 30)
    best, best_fixed = (max(ts, key=score) for ts in (trials, fixed))
    assert lr_error(best) < 0.4
    assert score(best) > score(best_fixed) + 0.15
    assert np.median([lr_error(t) for t in trials[-10:]]) < 0.4


def test_starts_and_promotions_keep_their_recipes() -> None:
    trials = search(Promote(tuned(), keep=2), 24)
    starts = [t for t in trials if t.proposal.why["reason"] == "start"]
    assert [t.proposal.recipe for t in starts] == [Recipe(lr=0.5)] * 4
    promoted = [t for t in trials if is_promotion(t)]
    assert len({t.proposal.recipe.lr for t in promoted}) > 1
    for trial in promoted:
        before = trials[trial.parent or 0].proposal.recipe
        assert trial.proposal.recipe == replace(before, epochs=trial.epochs)


def test_recipes_are_within_ranges_and_recorded_in_why() -> None:
    inner = BayesianSearcher(SPACE, Recipe(lr=5.0), candidates=16)  # outside the range
    for trial in search(Tuned(inner, RANGES, Recipe(lr=5.0), candidates=32), 25)[4:]:
        recipe = trial.proposal.recipe
        assert 0.001 <= recipe.lr <= 1.0
        assert 0 <= recipe.dropout <= 0.5
        assert recipe == replace(Recipe(), lr=recipe.lr, dropout=recipe.dropout, optimizer=recipe.optimizer)
        expected = {"lr": recipe.lr, "dropout": recipe.dropout, "optimizer": recipe.optimizer}
        assert trial.proposal.why["recipe"] == expected


def test_best_network_is_retrained_if_none_is_new() -> None:
    one_network = TableSpace(("22221111",))
    trials = search(Tuned(RandomSearcher(one_network, limits=Limits(morphs=())), RANGES), 12)
    assert {t.graph.key for t in trials} == {table_network("22221111").key}
    assert [t.proposal.why["reason"] for t in trials] == ["start", *["afresh"] * 11]
    assert all(isinstance(t.proposal.start, type(t.graph)) for t in trials)
    assert len({t.proposal.recipe for t in trials}) == 12


def test_search_ends_when_all_recipes_were_trained() -> None:
    """No recipe is trained a second time."""
    ranges, one_network = ranges_of({"optimizer": ["sgd", "adamw"]}), TableSpace(("22221111",))
    trials = search(Tuned(RandomSearcher(one_network, limits=Limits(morphs=())), ranges, startup=1), 12)
    assert sorted(t.proposal.recipe.optimizer for t in trials) == ["adamw", "sgd"]


def test_search_ends_when_all_recipes_failed() -> None:
    """Even before there are enough scores for the surrogate."""
    ranges = ranges_of({"optimizer": ["sgd", "adamw"]})
    searcher = Tuned(NoProposals(), ranges, Recipe(epochs=8), Limits(), seed=0, startup=6)
    first = Trial(
        0, Proposal(table_network("00000000"), (), Recipe(epochs=8), {"reason": "start"}), table_network("00000000")
    )
    trials = [replace(first, outcome=Outcome("finished", 0.5), kept=True)]
    while (proposal := searcher.ask(trials, AMPLE)) is not None and len(trials) < 20:
        trials.append(Trial(len(trials), proposal, table_network("00000000"), Outcome("failed", error="an error")))
    assert len(trials) == 2


def test_recipes_of_grid_networks_are_searched() -> None:
    grid = GridSearcher(MorphSpace((mlp((4,), 2, width=8, depth=1),)), depths=(1, 2), widths=(16, 32))
    trials: list[Trial] = []
    searcher = Tuned(grid, RANGES)
    while len(trials) < 6 and (proposal := searcher.ask(trials, AMPLE)) is not None:
        assert isinstance(proposal.start, Graph)
        outcome = Outcome("finished", -1.0 / (1 + len(trials)), epochs=8)
        trials.append(Trial(len(trials), proposal, proposal.start, outcome, True))
    assert [t.proposal.why["reason"] for t in trials[:5]] == ["start", *["grid"] * 4]
    assert all("recipe" in t.proposal.why for t in trials[1:])


def test_network_is_promoted_with_each_good_recipe() -> None:
    graph, trials = SPACE.starts[0], list[Trial]()

    def add_trial(lr: float, score: float, start: Any = graph, epochs: int = 2) -> None:
        proposal = Proposal(start, (), Recipe(lr=lr, epochs=epochs))
        trials.append(Trial(len(trials), proposal, graph, Outcome("finished", score, epochs=epochs), True))

    for i in range(4):
        add_trial(0.05, -0.5 - i)
    add_trial(0.05, -0.4, start=0, epochs=8)
    for i in range(8):
        add_trial(0.2, -0.1 - 0.01 * i)
    proposal = Promote(RandomSearcher(SPACE, Recipe(epochs=2))).ask(trials, AMPLE)
    assert proposal is not None
    assert (proposal.start, proposal.recipe) == (5, Recipe(lr=0.2, epochs=8))


def test_no_retraining_beyond_budget_or_limits() -> None:
    one_network = TableSpace(("22221111",))
    trials = search(Tuned(RandomSearcher(one_network, limits=Limits(morphs=())), RANGES), 5)
    searcher = Tuned(RandomSearcher(one_network, limits=Limits(morphs=())), RANGES)
    assert searcher.ask(trials, Budget(0.0)) is None
    assert searcher.ask(trials, Budget(10.0, seconds_per_flop=1.0)) is None
    assert searcher.ask(trials, Budget(10.0, 0)) is None
    small = Tuned(searcher.searcher, RANGES, limits=Limits(max_params=1))
    assert small.ask(trials, AMPLE) is None


def test_learning_rate_follows_optimizer_and_batch_size() -> None:
    recipe = Recipe(lr=2 * default_learning_rate("sgd", 128), batch_size=128)
    ranges = ranges_of({"optimizer": ["sgd", "adamw"], "batch_size": (32, 512)})
    trials = search(Tuned(RandomSearcher(SPACE, recipe), ranges, recipe), 20)
    recipes = [t.proposal.recipe for t in trials]
    assert {r.optimizer for r in recipes} == {"sgd", "adamw"}
    for r in recipes:
        assert isinstance(r.batch_size, int)
        assert r.lr == pytest.approx(2 * default_learning_rate(r.optimizer, r.batch_size))


def test_surrogate_distinguishes_recipes() -> None:
    graph = table_network("11111111")
    recipes = [Recipe(lr=float(lr)) for lr in np.geomspace(0.001, 1.0, 12)]
    trials = [finished(Trial(i, Proposal(graph, (), recipe), graph)) for i, recipe in enumerate(recipes)]
    mean, _ = NetworkSurrogate.of(trials).predict(
        [sketch(graph)] * 3, 8.0, [Recipe(lr=lr) for lr in (0.001, BEST_RATE, 1.0)]
    )
    assert mean.argmax() == 1


def test_surrogate_ignores_settings_that_do_not_vary() -> None:
    trials = search(RandomSearcher(SPACE, Recipe(lr=0.3)), 12)
    other = [replace(t, proposal=replace(t.proposal, recipe=Recipe(lr=0.01, dropout=0.2))) for t in trials]
    candidates = [sketch(table_network("22221111")), sketch(table_network("01010101"))]
    one, two = (NetworkSurrogate.of(ts).predict(candidates, 8.0, [Recipe()] * 2) for ts in (trials, other))
    assert np.array_equal(one, two)


def test_recipe_features_without_epochs_and_flip() -> None:
    assert np.array_equal(recipe_features(Recipe()), recipe_features(Recipe(epochs=99, augment=Augment(flip=True))))
    others = [Recipe(lr=0.1), Recipe(optimizer="adamw"), Recipe(dropout=0.1)]
    changes: list[dict[str, Any]] = [{name: 0.3} for name in ("cutout", "rotate", "zoom", "brightness", "contrast")]
    others += [Recipe(augment=Augment(**change)) for change in [*changes, {"flip_vertical": True}]]
    for other in others:
        assert not np.array_equal(recipe_features(Recipe()), recipe_features(other))
    extreme = Recipe(lr=1e-12, weight_decay=0.0, momentum=0.0, average=1e6, batch_size=1)
    assert np.isfinite(recipe_features(extreme)).all()


@given(st.floats(1e-9, 1e9), st.floats(1e-9, 1e9), st.booleans(), st.integers(0, 99))
def test_samples_are_within_range(one: float, other: float, logarithmic: bool, seed: int) -> None:
    low, high = sorted((one, other))
    if not high > low * 1.01:
        high = 2 * low
    values, rng = Range(low, high, logarithmic), np.random.default_rng(seed)
    for near in (None, low, high, 10 * high):
        drawn = values.sample(rng, near)
        assert low <= drawn <= high


def test_integer_setting_has_integer_samples() -> None:
    rng = np.random.default_rng(0)
    assert {ranges_of({"batch_size": (32, 34)})["batch_size"].sample(rng, None) for _ in range(50)} == {32, 33, 34}


def test_rounded_samples_are_within_range() -> None:
    rng = np.random.default_rng(0)
    ranges = ranges_of({"momentum": (0.99, 0.9999), "lr": (1e-3, 1e3)})
    for _ in range(300):
        found: dict[str, Any] = {name: values.sample(rng, None) for name, values in ranges.items()}
        assert 0.99 <= replace(Recipe(), **found).momentum <= 0.9999
        assert 1e-3 <= found["lr"] <= 1e3


def test_float_setting_with_integer_bounds_has_float_samples() -> None:
    rng, (values,) = np.random.default_rng(0), ranges_of({"warmup": (0, 1)}).values()
    assert any(0 < values.sample(rng, None) < 1 for _ in range(9))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lr": (0.1,)}, "lr: a range is two numbers, not 1"),
        ({"lr": (0.1, 0.2, 0.3)}, "lr: a range is two numbers, not 3"),
        ({"lr": (0.1, 0.01)}, "lr: a range is two finite numbers, the smaller one first"),
        ({"lr": (0.1, math.inf)}, "lr: a range"),
        ({"lr": ("a", "b")}, "lr: a range"),
        ({"lr": (0.0, 1.0)}, "lr must be from"),
        ({"dropout": (0.0, 1.5)}, "dropout must be from"),
        ({"optimizer": ["sgd", "lamb"]}, "optimizer must be"),
        ({"optimizer": ["sgd"]}, "a choice is of two values at least"),
        ({"optimizer": []}, "a choice is of two"),
        ({"augment": [Augment(), 3]}, "augment must be an Augment"),
        ({"epochs": (3, 9)}, "epochs is not searched"),
        ({"lr_examples": (10_000, 100_000)}, "lr_examples is not searched"),
        ({"layers": ["all", "last"]}, "layers is not searched"),
        ({"freeze_norms": [True, False]}, "freeze_norms is not searched"),
        ({"precision": ["float32", "bfloat16"]}, "precision is not searched"),
        ({"speed": (1, 2)}, "speed: "),
    ],
)
def test_invalid_range_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ranges_of(given)


def test_numpy_bounds_become_python_numbers() -> None:
    assert ranges_of({"lr": (np.float64(0.1), np.float32(0.5)), "momentum": 0.9}) == {"lr": Range(0.1, 0.5, True)}


def test_seed_changes_recipes() -> None:
    """Although the networks that are proposed are the same."""
    trials = search(tuned(), 8)
    one, same_seed, other = (replace(tuned(), seed=seed).ask(trials, AMPLE) for seed in (3, 3, 4))
    assert one is not None
    assert other is not None
    assert one == same_seed
    assert one.recipe != other.recipe
