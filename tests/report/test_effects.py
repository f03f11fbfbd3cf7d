"""Tests of gains by kind of morph and of varied settings, on histories small enough to be checked by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from morphnas.graph import Deeper, Wider
from morphnas.report.effects import SEVERAL, TRAINED_LONGER, gains_by_kind, kind, varied_settings
from morphnas.search.trial import Trial
from morphnas.train.recipe import Augment, Outcome, Recipe
from tests.report.history import LARGE, history, trial


def outcome_of(score: float) -> Outcome:
    return Outcome("finished", score, 0.5, 1.0, 4, 4)


def with_recipe(one: Trial, **settings: Any) -> Trial:
    return replace(one, proposal=replace(one.proposal, recipe=replace(one.proposal.recipe, **settings)))


def test_gains_by_kind_are_over_the_parent_and_sorted() -> None:
    first = trial(0, LARGE, outcome=outcome_of(-1.0))
    wider = trial(1, first, Wider("conv_1", 12), outcome=outcome_of(-0.5))
    both = trial(2, wider, Wider("conv_1", 16), Deeper("relu_3"), outcome=outcome_of(-0.75))
    deeper = [trial(3 + i, first, Deeper(f"relu_{3 + 4 * i}"), outcome=outcome_of(-2.0)) for i in range(2)]
    longer, failed = trial(5, wider, outcome=outcome_of(-0.25)), trial(6, wider, outcome=Outcome("failed"))
    final = trial(7, wider, outcome=outcome_of(0.0))
    final = replace(final, proposal=replace(final.proposal, why={"final": "inherited"}))
    trials = [first, wider, both, *deeper, longer, failed, final]
    assert gains_by_kind(trials) == {
        "deeper": [-1.0, -1.0], "wider": [0.5], SEVERAL: [-0.25], TRAINED_LONGER: [0.25],
    }  # fmt: skip
    assert list(gains_by_kind(trials)) == ["deeper", "wider", SEVERAL, TRAINED_LONGER]
    assert (kind(first), kind(both), kind(failed)) == (None, SEVERAL, TRAINED_LONGER)
    assert gains_by_kind(trials[:1]) == gains_by_kind([]) == {}


def test_varied_settings() -> None:
    assert varied_settings(history()) == varied_settings([]) == [], "the length of a training does not count"
    a, b, c = (trial(i, LARGE) for i in range(3))
    settings = varied_settings([
        with_recipe(a, lr=0.01, optimizer="adamw", augment=Augment(cutout=0.25), examples=None),
        with_recipe(b, lr=0.5, weight_decay=0.0, augment=Augment(shift=0.1), examples=20),
        c,
    ])  # fmt: skip
    by_name = {setting.name: setting for setting in settings}
    usual = Recipe()
    assert by_name.keys() == {"lr", "optimizer", "weight_decay", "cutout"}
    assert by_name["lr"].values == {0: 0.01, 1: 0.5, 2: usual.lr}
    assert by_name["lr"].logarithmic
    assert not by_name["weight_decay"].logarithmic, "it may be 0"
    assert by_name["optimizer"].options == ("adamw", "sgd")
    assert by_name["optimizer"].values == {0: "adamw", 1: "sgd", 2: "sgd"}
    assert not by_name["cutout"].options
