"""Regularised evolution: Real et al. 2018 (arXiv:1802.01548), algorithm 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from morphnas.graph import Limits
from morphnas.search.candidates import Rules, first_start, random_candidate, usable, what_is_left
from morphnas.search.trial import Left, Proposal, Space, Trial, check_numbers
from morphnas.train.recipe import Recipe


@dataclass(frozen=True)
class EvolutionSearcher:
    """The space's starts first, then random chains of morphs until the population is full; from then on one random
    morph of the best of a few drawn at random, and the oldest drop out.

    population: how many of the latest trials with weights are alive. sample: how many are drawn for a tournament.
    longest: of the chains at the beginning.
    """

    space: Space
    recipe: Recipe = field(default_factory=Recipe)
    limits: Limits = field(default_factory=Limits)
    seed: int = 0
    population: int = 20
    sample: int = 5
    longest: int = 4

    def __post_init__(self) -> None:
        check_numbers(self)

    def ask(self, trials: Sequence[Trial], left: Left) -> Proposal | None:
        """See `Searcher`. None, too, while the starts run and there are no weights yet to go on from."""
        rules = Rules.of(trials, self.limits, left, self.recipe.epochs)
        if rules.over:
            return None
        alive = usable(trials)[-self.population :]
        if (start := first_start(self.space, self.recipe, rules)) is not None or not alive:
            return start
        rng = np.random.default_rng((self.seed, len(trials)))
        why = {"left": what_is_left(left)}
        if len(alive) == self.population:
            drawn = [alive[i] for i in rng.permutation(len(alive))[: self.sample]]
            parent = max(drawn, key=lambda t: (t.score, t.id))
            if found := random_candidate(self.space, [parent], rules, rng, longest=1):
                return found.propose(self.recipe, reason="tournament", drawn=[t.id for t in drawn], **why)
        found = random_candidate(self.space, usable(trials), rules, rng, self.longest)
        return None if found is None else found.propose(self.recipe, reason="random", **why)
