"""Random search: the baseline that every other searcher must beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from morphnas.graph import Limits
from morphnas.search.candidates import Rules, first_start, random_candidate, usable, what_is_left
from morphnas.search.trial import Left, Proposal, Space, Trial, check_numbers
from morphnas.train.recipe import Recipe


@dataclass(frozen=True)
class RandomSearcher:
    """The space's starts first; then a chain of 1 to `longest` random morphs from a random trial with weights."""

    space: Space
    recipe: Recipe = field(default_factory=Recipe)
    limits: Limits = field(default_factory=Limits)
    seed: int = 0
    longest: int = 4

    def __post_init__(self) -> None:
        check_numbers(self)

    def ask(self, trials: Sequence[Trial], left: Left) -> Proposal | None:
        """See `Searcher`. None, too, while the starts run and there are no weights yet to go on from."""
        rules = Rules.of(trials, self.limits, left, self.recipe.epochs)
        if rules.over:
            return None
        roots = usable(trials)
        if (start := first_start(self.space, self.recipe, rules)) is not None or not roots:
            return start
        rng = np.random.default_rng((self.seed, len(trials)))
        found = random_candidate(self.space, roots, rules, rng, self.longest)
        return None if found is None else found.propose(self.recipe, reason="random", left=what_is_left(left))
