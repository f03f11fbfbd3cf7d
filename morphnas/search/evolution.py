"""Regularised evolution: Real et al. 2018 (arXiv:1802.01548), algorithm 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from morphnas.search.candidates import Rules, usable
from morphnas.search.starts import StartsFirst
from morphnas.search.trial import Proposal, Trial


@dataclass(frozen=True)
class EvolutionSearcher(StartsFirst):
    """The space's starts first, then random chains of morphs until the population is full; from then on one random
    morph of the best of a few drawn at random, and the oldest drop out.

    population: how many of the latest networks with weights are alive; one that is trained for longer is as old as it
    was before. sample: how many are drawn for a tournament.
    longest: longest chain at the beginning.
    """

    population: int = 20
    sample: int = 5
    longest: int = 4

    def further(self, trials: Sequence[Trial], rules: Rules, rng: np.random.Generator) -> Proposal | None:
        roots, born = usable(trials), dict[str, int]()
        for trial in trials:
            born.setdefault(trial.graph.key, trial.id)
        alive = sorted(roots, key=lambda t: born[t.graph.key])[-self.population :]
        if len(alive) == self.population:
            drawn = [alive[i] for i in rng.permutation(len(alive))[: self.sample]]
            parent = max(drawn, key=lambda t: (t.score, t.id))
            if found := self.chain("tournament", [parent], rules, rng, 1, drawn=[t.id for t in drawn]):
                return found
        return self.chain("random", roots, rules, rng, self.longest)
