"""Hill climbing by network morphisms: Elsken, Metzen and Hutter 2017, NASH (arXiv:1711.04528), algorithm 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from morphnas.search.candidates import Rules, possible_parents
from morphnas.search.starts import StartsFirst
from morphnas.search.trial import Proposal, Trial


@dataclass(frozen=True)
class HillClimbingSearcher(StartsFirst):
    """Trains the space's starts first, the best of which is the current network; then children of the current network,
    each by a chain of 1 to `longest` random morphs. Once at least `children` of them have a score, the best one becomes
    the current network if it is better.

    As long as none is better, further children are proposed; once none is left, random chains of morphs from any trial.
    """

    children: int = 8
    longest: int = 5

    def propose_next(self, trials: Sequence[Trial], rules: Rules, rng: np.random.Generator) -> Proposal | None:
        proposal = self.chain("climbing", self._current(trials), rules, rng, self.longest)
        return proposal or self.chain("random", possible_parents(trials), rules, rng, self.longest)

    def _current(self, trials: Sequence[Trial]) -> list[Trial]:
        """The trial of the current network or, if its weights are not kept, the last trial before it on the path from
        the start whose weights are; empty before any start has a score."""
        scored = [t for t in trials if t.score is not None]

        def best(candidates: Sequence[Trial]) -> Trial:
            return max(candidates, key=lambda t: (t.score, -t.id))

        starts = [t for t in scored if t.parent is None]
        current, path = best(starts) if starts else None, []
        while current is not None:
            path.append(current)
            below = [t for t in scored if t.parent == current.id and t.proposal.morphs]
            if len(below) < self.children or best([current, *below]) is current:
                break
            current = best(below)
        return [t for t in path if t.kept][-1:]
