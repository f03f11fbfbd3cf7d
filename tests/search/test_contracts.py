"""Contracts of all spaces and searchers."""

from __future__ import annotations

import pytest

from morphnas.graph import Limits, cnn, densenet, mlp, resnet
from morphnas.search import (
    SEARCHERS,
    BayesianSearcher,
    EvolutionSearcher,
    HalvingSearcher,
    MorphSpace,
    ParetoSearcher,
    Patient,
    Pretrained,
    Promote,
    Searcher,
    Space,
    Tuned,
    ranges_of,
)
from morphnas.train.recipe import Recipe
from tests.contracts import MorphingContract, SearcherContract, SearcherFactory, SpaceContract
from tests.table import TableSpace


def bayesian(space: Space, limits: Limits, seed: int) -> Searcher:
    return BayesianSearcher(space, limits=limits, seed=seed, candidates=16, breadth=8)


def registered(name: str) -> SearcherFactory:
    return lambda space, limits, seed: SEARCHERS[name](space, limits=limits, seed=seed)


def evolution(space: Space, limits: Limits, seed: int) -> Searcher:
    return EvolutionSearcher(space, limits=limits, seed=seed, population=8, sample=3)


def halving(space: Space, limits: Limits, seed: int) -> Searcher:
    return HalvingSearcher(space, limits=limits, seed=seed, factor=4)


def pareto(space: Space, limits: Limits, seed: int) -> Searcher:
    return ParetoSearcher(space, limits=limits, seed=seed, candidates=16, breadth=8, narrower=(1,))


def promoted_bayesian(space: Space, limits: Limits, seed: int) -> Searcher:
    return Promote(bayesian(space, limits, seed))


def patient(space: Space, limits: Limits, seed: int) -> Searcher:
    return Patient(promoted_evolution(space, limits, seed), 1000)


def pretrained(space: Space, limits: Limits, seed: int) -> Searcher:
    return Pretrained(promoted_bayesian(space, limits, seed), frozenset(start.key for start in space.starts), Recipe())


def promoted_evolution(space: Space, limits: Limits, seed: int) -> Searcher:
    return Promote(evolution(space, limits, seed))


def tuned(space: Space, limits: Limits, seed: int) -> Searcher:
    ranges = ranges_of({"lr": (0.01, 1.0), "optimizer": ["sgd", "adamw"]})
    return Promote(Tuned(bayesian(space, limits, seed), ranges, limits=limits, seed=seed, candidates=8))


class TestSpaces(SpaceContract):
    @pytest.fixture(params=["table", "shrinking table", "morphs", "flat", "some morphs"])
    def space(self, request: pytest.FixtureRequest) -> Space:
        images = tuple(start((2, 8, 8), 3, width=4) for start in (cnn, resnet, densenet, mlp))
        spaces: dict[str, Space] = {
            "table": TableSpace(),
            "shrinking table": TableSpace(shrink=True),
            "morphs": MorphSpace(images),
            "flat": MorphSpace((mlp((5,), 2),)),
            "some morphs": MorphSpace(images, ("deeper", "wider")),
        }
        return spaces[request.param]


FACTORIES: dict[str, SearcherFactory] = {name: registered(name) for name in SEARCHERS} | {
    "bayesian": bayesian,
    "evolution": evolution,
    "halving": halving,
    "pareto": pareto,
    "promoted bayesian": promoted_bayesian,
    "promoted evolution": promoted_evolution,
    "patient": patient,
    "pretrained": pretrained,
    "tuned": tuned,
}


class TestSearchers(SearcherContract):
    @pytest.fixture(params=FACTORIES)
    def make(self, request: pytest.FixtureRequest) -> SearcherFactory:
        return FACTORIES[request.param]


class TestMorphing(MorphingContract):
    @pytest.fixture(params=[name for name in FACTORIES if name not in ("grid", "tuned")])
    def make(self, request: pytest.FixtureRequest) -> SearcherFactory:
        return FACTORIES[request.param]
