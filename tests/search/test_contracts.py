"""Every space and every searcher against its contract."""

from __future__ import annotations

import pytest

from morphnas.graph import Limits, cnn, densenet, mlp, resnet
from morphnas.search import BayesianSearcher, EvolutionSearcher, MorphSpace, Promote, RandomSearcher, Searcher, Space
from tests.contracts import Make, SearcherContract, SpaceContract
from tests.table import TableSpace


def bayesian(space: Space, limits: Limits, seed: int) -> Searcher:
    return BayesianSearcher(space, limits=limits, seed=seed, candidates=16, breadth=8)


def random(space: Space, limits: Limits, seed: int) -> Searcher:
    return RandomSearcher(space, limits=limits, seed=seed)


def evolution(space: Space, limits: Limits, seed: int) -> Searcher:
    return EvolutionSearcher(space, limits=limits, seed=seed, population=8, sample=3)


def promoted_bayesian(space: Space, limits: Limits, seed: int) -> Searcher:
    return Promote(bayesian(space, limits, seed))


def promoted_evolution(space: Space, limits: Limits, seed: int) -> Searcher:
    return Promote(evolution(space, limits, seed))


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


class TestSearchers(SearcherContract):
    @pytest.fixture(params=[bayesian, random, evolution, promoted_bayesian, promoted_evolution])
    def make(self, request: pytest.FixtureRequest) -> Make:
        make: Make = request.param
        return make
