"""Random search: the baseline that every other searcher must beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from morphnas.search.candidates import Rules, possible_parents
from morphnas.search.starts import StartsFirst
from morphnas.search.trial import Proposal, Trial


@dataclass(frozen=True)
class RandomSearcher(StartsFirst):
    """Trains the space's starts first; then a chain of 1 to `longest` random morphs from a random trial whose weights
    are kept."""

    longest: int = 4

    def propose_next(self, trials: Sequence[Trial], rules: Rules, rng: np.random.Generator) -> Proposal | None:
        return self.chain("random", possible_parents(trials), rules, rng, self.longest)
