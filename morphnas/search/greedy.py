"""Greedy search: White, Nolen and Savani 2020, local search (arXiv:2005.02960), one neighbour at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from morphnas.search.candidates import Rules, usable
from morphnas.search.starts import StartsFirst
from morphnas.search.trial import Proposal, Trial


@dataclass(frozen=True)
class GreedySearcher(StartsFirst):
    """The space's starts first; then a random neighbour of the best trial, or of the next best once it has none left.

    Unlike in the paper a search goes on from an improvement at once, without the rest of the neighbours, of which there
    are hundreds; and where there is none, from the next best instead of from a random network.
    """

    def further(self, trials: Sequence[Trial], rules: Rules, rng: np.random.Generator) -> Proposal | None:
        for place, root in enumerate(sorted(usable(trials), key=lambda t: (-(t.score or 0.0), t.id)), start=1):
            if found := self.chain("greedy", [root], rules, rng, 1, place=place):
                return found
        return None
