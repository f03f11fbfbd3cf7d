"""Greedy search: White, Nolen and Savani 2020, local search (arXiv:2005.02960), one neighbour at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from morphnas.search.candidates import Rules, possible_parents
from morphnas.search.starts import StartsFirst
from morphnas.search.trial import Proposal, Trial


@dataclass(frozen=True)
class GreedySearcher(StartsFirst):
    """Trains the space's starts first; then a random neighbour of the best trial, or of the next best once all of its
    neighbours have been trained.

    Unlike in the paper, a search continues from an improvement at once, without evaluating the other neighbours, of
    which there are hundreds; and from a local optimum it continues with the next best instead of a random network.
    """

    def propose_next(self, trials: Sequence[Trial], rules: Rules, rng: np.random.Generator) -> Proposal | None:
        ranking = sorted(possible_parents(trials), key=lambda t: (-(t.score or 0.0), t.id))
        for place, parent in enumerate(ranking, start=1):
            if proposal := self.chain("greedy", [parent], rules, rng, 1, place=place):
                return proposal
        return None
