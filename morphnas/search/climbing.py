"""Hill climbing by network morphisms: Elsken, Metzen and Hutter 2017, NASH (arXiv:1711.04528), algorithm 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from morphnas.graph import Limits
from morphnas.search.candidates import Rules, first_start, random_candidate, usable, what_is_left
from morphnas.search.trial import Left, Proposal, Space, Trial, check_numbers
from morphnas.train.recipe import Recipe


@dataclass(frozen=True)
class HillClimbingSearcher:
    """The space's starts first, the best of which it stands on; then children of where it stands, each by a chain of 1
    to `longest` random morphs. Once there are as many as `children`, it moves to the best child if that is better.

    Where no child is, children are made until one is; when there are no others, random chains from any trial follow.
    """

    space: Space
    recipe: Recipe = field(default_factory=Recipe)
    limits: Limits = field(default_factory=Limits)
    seed: int = 0
    children: int = 8
    longest: int = 5

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
        why = {"left": what_is_left(left)}
        if found := random_candidate(self.space, self._standing(trials), rules, rng, self.longest):
            return found.propose(self.recipe, reason="climbing", **why)
        found = random_candidate(self.space, roots, rules, rng, self.longest)
        return None if found is None else found.propose(self.recipe, reason="random", **why)

    def _standing(self, trials: Sequence[Trial]) -> list[Trial]:
        """The trial that it stands on, or the last on the way there whose weights are kept; none before a start is
        scored."""
        scored = [t for t in trials if t.score is not None]

        def best(some: Sequence[Trial]) -> Trial:
            return max(some, key=lambda t: (t.score, -t.id))

        below = [t for t in scored if t.parent is None]
        at, way = best(below) if below else None, []
        while at is not None:
            way.append(at)
            below = [t for t in scored if t.parent == at.id and t.proposal.morphs]
            if len(below) < self.children or best([at, *below]) is at:
                break
            at = best(below)
        return [t for t in way if t.kept][-1:]
