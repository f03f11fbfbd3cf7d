"""How most searchers begin. Annotations are types here, not texts: those who inherit these fields lack their names."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from morphnas.graph import Limits
from morphnas.search.candidates import Rules, budget_to_json, random_candidate
from morphnas.search.trial import Budget, Proposal, Space, Trial, check_numbers
from morphnas.train.recipe import Recipe


@dataclass(frozen=True)
class StartsFirst:
    """A searcher that has the space's starts trained first; `further` says what comes after them."""

    space: Space
    recipe: Recipe = field(default_factory=Recipe)
    limits: Limits = field(default_factory=Limits)
    seed: int = 0

    def __post_init__(self) -> None:
        check_numbers(self)

    def ask(self, trials: Sequence[Trial], budget: Budget) -> Proposal | None:
        """See `Searcher`. None, too, while the starts run and there are no weights yet to go on from."""
        rules = Rules.of(trials, self.limits, budget, self.recipe.epochs)
        if budget.over:
            return None
        for number, graph in enumerate(self.space.starts):
            if rules.new(graph) and rules.fits(graph):
                return Proposal(
                    graph, (), self.recipe, {"reason": "start", "start": number, "budget": budget_to_json(budget)}
                )
        return self.further(trials, rules, np.random.default_rng((self.seed, len(trials))))

    def further(self, trials: Sequence[Trial], rules: Rules, rng: np.random.Generator) -> Proposal | None:
        """What to train when no start is left that may be."""
        raise NotImplementedError

    def chain(
        self, reason: str, roots: Sequence[Trial], rules: Rules, rng: np.random.Generator, longest: int, **why: Any
    ) -> Proposal | None:
        """A random chain of up to `longest` morphs from one of the roots, see `random_candidate`."""
        found = random_candidate(self.space, roots, rules, rng, longest)
        why = {"reason": reason, **why, "budget": budget_to_json(rules.budget)}
        return None if found is None else found.propose(self.recipe, **why)
