"""Tests of `Pretrained`: which recipes networks with given weights, and their descendants, get."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from morphnas.graph import Conv, GlobalPool, Graph, Wider, cnn, mlp
from morphnas.report.words import trial_words
from morphnas.search import Budget, Pretrained, Proposal, Trial
from morphnas.search.pretrained import FINE_TUNING_RATE
from morphnas.search.promote import is_promotion, rungs
from morphnas.train.recipe import LAST_LAYER_EPOCHS, Outcome, Recipe, default_learning_rate
from tests.run.doubles import ScriptedSearcher
from tests.strategies import sequential
from tests.table import running_trial

GIVEN, OTHER = cnn((1, 8, 8), 3, width=4), mlp((1, 8, 8), 3)
RECIPE = Recipe(epochs=5, examples=200, batch_size=256, optimizer="muon", lr=0.2, lr_examples=75_000, whiten=True)
AMPLE = Budget(math.inf)


def proposed(
    proposals: Sequence[Proposal],
    fixed: Sequence[str] = (),
    usual: Recipe = RECIPE,
    given: Graph = GIVEN,
    scores: Callable[[Recipe], float | None] = lambda recipe: -1.0,
) -> list[Trial]:
    """The trials of a search whose searcher makes these proposals, one after the other."""
    searcher = Pretrained(ScriptedSearcher([]), frozenset({given.key}), usual, frozenset(fixed))
    trials: list[Trial] = []
    while True:
        ways = [trial for trial in trials if trial.proposal.why.get("reason") == "rates"]
        script = ScriptedSearcher([None] * len(ways) + [*proposals])  # as if these trials did not count
        proposal = replace(searcher, searcher=script).ask(trials, AMPLE)
        if proposal is None:
            return trials
        outcome = Outcome("finished", scores(proposal.recipe))
        trials.append(replace(running_trial(trials, proposal), outcome=outcome, kept=True))


GENTLE: dict[str, Any] = {
    "optimizer": "adamw", "lr": FINE_TUNING_RATE * default_learning_rate("adamw", 256), "lr_examples": None,
    "whiten": False, "freeze_norms": True,
}  # fmt: skip


@pytest.mark.parametrize(("usual", "better"), [(-2.0, GENTLE), (None, GENTLE), (-0.5, {})])
def test_first_the_last_layer_then_all_in_both_ways_then_in_the_better_one(
    usual: float | None, better: dict[str, Any]
) -> None:
    """usual: the score at the usual rates; that of fine-tuning is -1."""
    trials = proposed(
        [
            Proposal(GIVEN, (), RECIPE),
            Proposal(0, (Wider("conv_1", 8),), RECIPE),
            Proposal(3, (), replace(RECIPE, epochs=20)),
        ],
        scores=lambda recipe: -1.0 if recipe.freeze_norms else usual,
    )
    assert [trial.parent for trial in trials] == [None, 0, 0, 0, 3]
    last_layer = replace(RECIPE, **GENTLE, layers="last", epochs=LAST_LAYER_EPOCHS)
    ways = [replace(RECIPE, **GENTLE), RECIPE]
    assert [trial.proposal.recipe for trial in trials] == [
        last_layer, *ways, replace(RECIPE, **better), replace(RECIPE, **better, epochs=20),
    ]  # fmt: skip
    assert [trial_words(trial) for trial in trials[:3]] == [
        "start", "all layers, fine-tuned", "all layers, at the usual rates"
    ]  # fmt: skip


@pytest.mark.parametrize(("usual", "expected"), [(-2.0, GENTLE), (-0.5, {})])
def test_promotion_of_the_last_layer_trains_all_layers(usual: float, expected: dict[str, Any]) -> None:
    last = proposed([Proposal(GIVEN, (), RECIPE)])[0].proposal.recipe
    trials = proposed(
        [
            Proposal(GIVEN, (), RECIPE),
            Proposal(0, (), replace(last, epochs=24)),
            Proposal(1, (), replace(RECIPE, **GENTLE, epochs=20)),
            Proposal(2, (), replace(RECIPE, epochs=20)),
        ],
        scores=lambda recipe: -1.0 if recipe.freeze_norms else usual,
    )
    assert [trial.proposal.recipe for trial in trials[3:]] == [
        replace(RECIPE, **expected, epochs=24), replace(RECIPE, **GENTLE, epochs=20),
        replace(RECIPE, epochs=20),
    ]  # fmt: skip


def test_last_layer_that_has_no_score_is_not_trained_on() -> None:
    trials = proposed([Proposal(GIVEN, (), RECIPE)], scores=lambda _: None)
    assert len(trials) == 1


def test_ways_that_do_not_fit_the_time_are_left_out() -> None:
    first = proposed([Proposal(GIVEN, (), RECIPE)])[0]
    child = Proposal(0, (Wider("conv_1", 8),), replace(RECIPE, epochs=1))
    searcher = Pretrained(ScriptedSearcher([None, child]), frozenset({GIVEN.key}), RECIPE)
    for share, morphs in ((0.9, 1), (1.1, 0)):
        proposal = searcher.ask([first], Budget(share * RECIPE.epochs * GIVEN.work, seconds_per_flop=1.0))
        assert proposal is not None
        assert len(proposal.morphs) == morphs


def test_other_networks_keep_their_recipe() -> None:
    proposals = [Proposal(OTHER, (), RECIPE), Proposal(0, (Wider("dense_2", 600),), RECIPE), Proposal(0, (), RECIPE)]
    assert [trial.proposal for trial in proposed(proposals)] == proposals


def test_network_without_dense_last_layer_is_fine_tuned_at_once() -> None:
    graph = sequential(Conv(3), GlobalPool(), shape=(1, 8, 8))
    (trial,) = proposed([Proposal(graph, (), RECIPE)], given=graph)
    assert trial.proposal.recipe.layers == "all"
    assert trial.proposal.recipe.freeze_norms
    assert trial.epochs == 5


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"lr": 0.3, "optimizer": "sgd"}, {"lr": 0.3, "optimizer": "sgd", "freeze_norms": True}),
        ({"lr": 0.3}, {"lr": 0.3, "optimizer": "muon", "freeze_norms": True}),
        ({"optimizer": "sgd"}, {"optimizer": "sgd", "lr": FINE_TUNING_RATE * default_learning_rate("sgd", 256)}),
        ({"freeze_norms": False, "whiten": True}, {"freeze_norms": False, "whiten": True}),
        ({"epochs": 5}, {"epochs": LAST_LAYER_EPOCHS}),
        ({"layers": "all"}, {"layers": "all", "epochs": 5, "examples": 200}),
    ],
)
def test_settings_of_the_user_hold(settings: dict[str, Any], expected: dict[str, Any]) -> None:
    usual = replace(RECIPE, **settings)
    trial = proposed([Proposal(GIVEN, (), usual)], [*settings], usual)[0]
    assert {name: getattr(trial.proposal.recipe, name) for name in expected} == expected


def test_last_layer_alone_on_request() -> None:
    recipe = replace(RECIPE, layers="last")
    trials = proposed([Proposal(GIVEN, (), recipe), Proposal(0, (Wider("conv_1", 8),), recipe)], ["layers"], recipe)
    assert [(trial.proposal.recipe.layers, trial.epochs) for trial in trials] == [("last", LAST_LAYER_EPOCHS)] * 2


def test_failed_way_is_not_chosen() -> None:
    trials = proposed(
        [Proposal(GIVEN, (), RECIPE), Proposal(0, (Wider("conv_1", 8),), RECIPE)],
        scores=lambda recipe: None if recipe.freeze_norms and recipe.layers == "all" else -1.0,
    )
    assert trials[3].proposal.recipe == RECIPE


def test_ways_are_compared_before_other_networks_from_fresh_weights() -> None:
    """As searches propose that train every network from the start."""
    again = Proposal(GIVEN, (Wider("conv_1", 8),), RECIPE, {"reason": "grid"})
    trials = proposed([Proposal(GIVEN, (), RECIPE), Proposal(OTHER, (), RECIPE, {"reason": "grid"}), again])
    assert [trial.proposal.why.get("reason") for trial in trials] == [None, "rates", "rates", "grid", "grid"]


def test_settings_of_the_searcher_hold() -> None:
    """Those that are its own, and those that are searched."""
    own = replace(RECIPE, optimizer="sgd", lr=1e-5, weight_decay=0.3)
    trials = proposed([Proposal(GIVEN, (), RECIPE), Proposal(0, (Wider("conv_1", 8),), own), Proposal(0, (), own)])
    assert [trial.proposal.recipe for trial in trials[3:]] == [own, own]
    searched = Proposal(0, (Wider("conv_1", 8),), replace(RECIPE, lr=0.07), {"recipe": {"lr": 0.07}})
    trials = proposed([Proposal(GIVEN, (), RECIPE), searched], scores=lambda r: -1.0 if r.freeze_norms else -2.0)
    expected = replace(RECIPE, lr=0.07, lr_examples=None, whiten=False, freeze_norms=True)
    assert trials[3].proposal.recipe == expected


def test_ways_are_no_promotions() -> None:
    trials = proposed([Proposal(GIVEN, (), RECIPE)])
    assert [is_promotion(trial) for trial in trials] == [False] * 3
    assert set(rungs(trials).values()) == {0}


def test_orphans_are_left_alone() -> None:
    """An ancestor may be missing in a damaged run, and then nothing tells whether it had weights."""
    orphan = Trial(7, Proposal(3, (Wider("conv_1", 8),), RECIPE), GIVEN, Outcome("finished", -1.0))
    proposal = Proposal(7, (), RECIPE)
    searcher = Pretrained(ScriptedSearcher([None, proposal]), frozenset({GIVEN.key}), RECIPE)
    assert searcher.ask([orphan], AMPLE) == proposal
    assert searcher.ask([], AMPLE) is None
