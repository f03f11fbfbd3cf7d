"""Greedy search: White, Nolen and Savani 2020, local search (arXiv:2005.02960), one neighbour at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from morphnas.graph import Limits
from morphnas.search.candidates import Rules, first_start, random_candidate, usable, what_is_left
from morphnas.search.trial import Left, Proposal, Space, Trial, check_numbers
from morphnas.train.recipe import Recipe


@dataclass(frozen=True)
class GreedySearcher:
    """The space's starts first; then a random neighbour of the best trial, or of the next best once it has none left.

    Unlike in the paper a search goes on from an improvement at once, without the rest of the neighbours, of which there
    are hundreds; and where there is none, from the next best instead of from a random network.
    """

    space: Space
    recipe: Recipe = field(default_factory=Recipe)
    limits: Limits = field(default_factory=Limits)
    seed: int = 0

    def __post_init__(self) -> None:
        check_numbers(self)

    def ask(self, trials: Sequence[Trial], left: Left) -> Proposal | None:
        """See `Searcher`. None, too, while the starts run and there are no weights yet to go on from."""
        rules = Rules.of(trials, self.limits, left, self.recipe.epochs)
        if rules.over:
            return None
        if (start := first_start(self.space, self.recipe, rules)) is not None:
            return start
        rng = np.random.default_rng((self.seed, len(trials)))
        for place, root in enumerate(sorted(usable(trials), key=lambda t: (-(t.score or 0.0), t.id)), start=1):
            if found := random_candidate(self.space, [root], rules, rng, longest=1):
                return found.propose(self.recipe, reason="greedy", place=place, left=what_is_left(left))
        return None
