"""Hill climbing by network morphisms: Elsken, Metzen and Hutter 2017, NASH (arXiv:1711.04528), algorithm 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from morphnas.search.candidates import Rules, usable
from morphnas.search.starts import StartsFirst
from morphnas.search.trial import Proposal, Trial


@dataclass(frozen=True)
class HillClimbingSearcher(StartsFirst):
    """The space's starts first, the best of which it stands on; then children of where it stands, each by a chain of 1
    to `longest` random morphs. Once there are as many as `children`, it moves to the best child if that is better.

    Where no child is, children are made until one is; when there are no others, random chains from any trial follow.
    """

    children: int = 8
    longest: int = 5

    def further(self, trials: Sequence[Trial], rules: Rules, rng: np.random.Generator) -> Proposal | None:
        found = self.chain("climbing", self._standing(trials), rules, rng, self.longest)
        return found or self.chain("random", usable(trials), rules, rng, self.longest)

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
