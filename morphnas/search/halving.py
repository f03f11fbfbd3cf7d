"""Asynchronous successive halving of random networks: Jamieson and Talwalkar 2015 (arXiv:1502.07943)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from morphnas.graph import Limits
from morphnas.search.promote import Promote
from morphnas.search.random import RandomSearcher
from morphnas.search.trial import Budget, Proposal, Space, Trial, check_numbers
from morphnas.train.recipe import Recipe


@dataclass(frozen=True)
class HalvingSearcher:
    """Proposes networks by random morphs and promotes the best 1 in `factor` to `factor` times the epochs, up to
    `rungs` times."""

    space: Space
    recipe: Recipe = field(default_factory=Recipe)
    limits: Limits = field(default_factory=Limits)
    seed: int = 0
    factor: int = 3
    rungs: int = 3

    def __post_init__(self) -> None:
        check_numbers(self, "rungs")

    def ask(self, trials: Sequence[Trial], budget: Budget) -> Proposal | None:
        """See `Searcher`."""
        searcher = RandomSearcher(self.space, self.recipe, self.limits, self.seed)
        return Promote(searcher, self.factor, self.factor, self.rungs).ask(trials, budget)
