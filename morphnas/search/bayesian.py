"""Bayesian optimisation of the score: Jin, Song and Hu 2018, Auto-Keras (arXiv:1806.10282)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from morphnas.search.candidates import Rules
from morphnas.search.distance import Array
from morphnas.search.guided import Aim, Guided
from morphnas.search.surrogate import expected_improvement, upper_confidence_bound
from morphnas.search.trial import Proposal, Trial


@dataclass(frozen=True)
class BayesianSearcher(Guided):
    """The space's starts first, then Bayesian optimisation: by the upper confidence bound while `explore` lasts, later
    by the expected improvement over the best posterior mean."""

    def aim(self, scored: Sequence[Trial], mean: Array, exploring: bool) -> Aim:
        if exploring:
            return Aim("ucb", lambda _, mean, sd: upper_confidence_bound(mean, sd))
        incumbent = float(mean.max())
        return Aim("ei", lambda _, mean, sd: expected_improvement(mean, sd, incumbent))

    def further(self, trials: Sequence[Trial], rules: Rules, rng: np.random.Generator) -> Proposal | None:
        return self.guided(trials, rules, rng)
