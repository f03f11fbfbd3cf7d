"""Regularised evolution: Real et al. 2018 (arXiv:1802.01548), algorithm 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from morphnas.search.candidates import Rules, possible_parents
from morphnas.search.starts import StartsFirst
from morphnas.search.trial import Proposal, Trial


@dataclass(frozen=True)
class EvolutionSearcher(StartsFirst):
    """Trains the space's starts first, then random chains of morphs until the population is full; from then on one
    random morph of the winner of a tournament. The oldest networks leave the population.

    population: size of the population, the newest networks whose weights are kept; promotion to a longer training does
        not change a network's age.
    sample: networks drawn for a tournament. longest: maximum length of the chains at the beginning.
    """

    population: int = 20
    sample: int = 5
    longest: int = 4

    def propose_next(self, trials: Sequence[Trial], rules: Rules, rng: np.random.Generator) -> Proposal | None:
        parents, first_trial = possible_parents(trials), dict[str, int]()
        for trial in trials:
            first_trial.setdefault(trial.graph.key, trial.id)
        population = sorted(parents, key=lambda t: first_trial[t.graph.key])[-self.population :]
        if len(population) == self.population:
            drawn = [population[i] for i in rng.permutation(len(population))[: self.sample]]
            parent = max(drawn, key=lambda t: (t.score, t.id))
            if proposal := self.chain("tournament", [parent], rules, rng, 1, drawn=[t.id for t in drawn]):
                return proposal
        return self.chain("random", parents, rules, rng, self.longest)
