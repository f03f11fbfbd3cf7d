"""Base of the searchers that train the space's starts first.

Annotations are not postponed in this module: subclasses in other modules do not have the names that the inherited
fields are annotated with.
"""

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
    """Base of searchers that propose the space's starts first; `propose_next` makes the proposals after them."""

    space: Space
    recipe: Recipe = field(default_factory=Recipe)
    limits: Limits = field(default_factory=Limits)
    seed: int = 0

    def __post_init__(self) -> None:
        check_numbers(self)

    def ask(self, trials: Sequence[Trial], budget: Budget) -> Proposal | None:
        """See `Searcher`. Searchers that need a trial's weights also return None as long as no trial has any."""
        rules = Rules.of(trials, self.limits, budget, self.recipe.epochs)
        if budget.over:
            return None
        for number, graph in enumerate(self.space.starts):
            if rules.new(graph) and rules.fits(graph):
                return Proposal(
                    graph, (), self.recipe, {"reason": "start", "start": number, "budget": budget_to_json(budget)}
                )
        return self.propose_next(trials, rules, np.random.default_rng((self.seed, len(trials))))

    def propose_next(self, trials: Sequence[Trial], rules: Rules, rng: np.random.Generator) -> Proposal | None:
        """The next proposal when there is no start left that may be trained."""
        raise NotImplementedError

    def chain(
        self, reason: str, roots: Sequence[Trial], rules: Rules, rng: np.random.Generator, longest: int, **why: Any
    ) -> Proposal | None:
        """Proposal of a random chain of up to `longest` morphs from one of the roots, see `random_candidate`."""
        candidate = random_candidate(self.space, roots, rules, rng, longest)
        why = {"reason": reason, **why, "budget": budget_to_json(rules.budget)}
        return None if candidate is None else candidate.propose(self.recipe, **why)
