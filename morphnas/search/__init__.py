"""Searchers, which propose what to train next: pure functions of the trials, the budget and a seed, without any access
to the clock, the disk or a device."""

from collections.abc import Callable

from morphnas.search.bayesian import BayesianSearcher
from morphnas.search.climbing import HillClimbingSearcher
from morphnas.search.distance import distances, sketch
from morphnas.search.evolution import EvolutionSearcher
from morphnas.search.greedy import GreedySearcher
from morphnas.search.grid import GridSearcher
from morphnas.search.halving import HalvingSearcher
from morphnas.search.network_surrogate import NetworkSurrogate, fidelities, winner
from morphnas.search.pareto import ParetoSearcher
from morphnas.search.patient import Patient
from morphnas.search.pretrained import Pretrained
from morphnas.search.promote import Promote
from morphnas.search.random import RandomSearcher
from morphnas.search.trial import (
    Budget,
    MorphSpace,
    Proposal,
    Searcher,
    Space,
    Trial,
    lineage,
)
from morphnas.search.tuned import Choice, Range, Tuned, ranges_of

SEARCHERS: dict[str, Callable[..., Searcher]] = {
    "bayesian": BayesianSearcher,
    "random": RandomSearcher,
    "evolution": EvolutionSearcher,
    "greedy": GreedySearcher,
    "climbing": HillClimbingSearcher,
    "grid": GridSearcher,
    "halving": HalvingSearcher,
    "pareto": ParetoSearcher,
}
"""The searchers by name, as in `search_type` of the estimators."""

__all__ = [
    "BayesianSearcher", "NetworkSurrogate", "Choice", "distances", "EvolutionSearcher", "fidelities", "GreedySearcher",
    "GridSearcher", "HalvingSearcher", "HillClimbingSearcher", "Budget", "lineage",
    "MorphSpace", "ParetoSearcher", "Patient", "Pretrained", "Promote", "Proposal", "RandomSearcher", "Range",
    "ranges_of", "Searcher", "SEARCHERS", "sketch", "Space", "Trial", "Tuned", "winner",
]  # fmt: skip
