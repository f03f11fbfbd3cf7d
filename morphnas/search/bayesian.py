"""Bayesian optimisation of the score: Jin, Song and Hu 2018, Auto-Keras (arXiv:1806.10282)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from morphnas.search.candidates import Rules
from morphnas.search.distance import Array
from morphnas.search.guided import Acquisition, Guided
from morphnas.search.surrogate import expected_improvement, upper_confidence_bound
from morphnas.search.trial import Proposal, Trial


@dataclass(frozen=True)
class BayesianSearcher(Guided):
    """Trains the space's starts first, then maximises an acquisition function (see `Guided`): the upper confidence
    bound until `explore` trials have a score, then the expected improvement over the highest posterior mean of the
    trials with a score."""

    def acquisition(self, scored: Sequence[Trial], mean: Array, exploring: bool) -> Acquisition:
        if exploring:
            return Acquisition("ucb", lambda _, mean, sd: upper_confidence_bound(mean, sd))
        incumbent = float(mean.max())
        return Acquisition("ei", lambda _, mean, sd: expected_improvement(mean, sd, incumbent))

    def propose_next(self, trials: Sequence[Trial], rules: Rules, rng: np.random.Generator) -> Proposal | None:
        return self.guided(trials, rules, rng)
