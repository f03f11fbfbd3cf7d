"""Search over the tree of morphs by what a surrogate believes: Jin, Song and Hu 2018, Auto-Keras (arXiv:1806.10282),
algorithm 1."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from morphnas.graph import Graph
from morphnas.search.candidates import Candidate, Rules, budget_to_json, children, may_grow, usable
from morphnas.search.distance import SKIP, Array, distances, sketch
from morphnas.search.network_surrogate import INHERITED, NetworkSurrogate, fidelities
from morphnas.search.starts import StartsFirst
from morphnas.search.trial import Proposal, Trial, check_numbers


@dataclass(frozen=True)
class Aim:
    """What a network is worth trying for. name: as proposals note it down. promise: that of networks (k,) of whose
    scores mean and standard deviation (k,) are believed, (k,)."""

    name: str
    promise: Callable[[Sequence[Graph], Array, Array], Array]


@dataclass(frozen=True)
class Guided(StartsFirst):
    """Larger networks and random morphs in turn; then the network that promises most, within a few morphs of a trial
    with weights. `aim` says what a network promises.

    startup: networks with a score before there is enough to predict from. Until then, in turn, the neighbour of the
        best network that has the most parameters, and a chain of up to `far` random morphs.
    explore: for so many scored trials jumps are up to `far` morphs long, later up to `near`.
    candidates: networks that are scored for one proposal. breadth: how many neighbours of one network at a time.
    temperature, cooling: a network that promises less than the best is gone on from with probability exp(-gap / T); T
        is in standard deviations of what was promised so far, and shrinks by the factor `cooling` with every network.
    skip_weight: of the distance: what a skip counts against a layer.

    Networks are compared as if all were trained equally long: the search is for networks, not for epochs.
    """

    startup: int = 6
    explore: int = 12
    far: int = 4
    near: int = 2
    candidates: int = 128
    breadth: int = 16
    temperature: float = 1.0
    cooling: float = 0.9
    skip_weight: float = SKIP

    def __post_init__(self) -> None:
        check_numbers(self, "startup", "explore")

    def aim(self, scored: Sequence[Trial], mean: Array, exploring: bool) -> Aim:
        """After the trials with a score, of whose networks these scores are believed, (n,)."""
        raise NotImplementedError

    def guided(self, trials: Sequence[Trial], rules: Rules, rng: np.random.Generator) -> Proposal | None:
        """What to train when the first networks are."""
        roots = {t.id for t in usable(trials)}
        if not roots:
            return None
        scored = [t for t in trials if t.score is not None]
        if len(scored) < self.startup:
            some = [t for t in scored if t.id in roots]
            turn = (len(trials) - len(self.space.starts)) % 2
            if turn == 0 and (larger := self._largest(some, rules, rng)):
                return larger.propose(self.recipe, reason="larger", budget=budget_to_json(rules.budget))
            return self.chain("random", some, rules, rng, self.far)
        exploring = len(scored) < self.explore
        belief = NetworkSurrogate.of(trials, self.skip_weight)
        alike = self.recipe.epochs * (1 + INHERITED)
        known = belief.review(alike)
        aim = self.aim(scored, known[0], exploring)

        def promise(some: Sequence[Candidate]) -> Array:
            """Of networks that are trained as those were from which they inherit."""
            recipes = [one.root.proposal.recipe for one in some]
            expected = belief.predict([sketch(one.graph) for one in some], alike, recipes)
            return aim.promise([one.graph for one in some], *expected)

        promised = aim.promise([t.graph for t in scored], *known)
        below = [(t, float(value)) for t, value in zip(scored, promised, strict=True) if t.id in roots]
        climbed = self._climb(below, rules, promise, self.far if exploring else self.near, rng)
        if climbed is None:
            return None
        best, value, looked = climbed
        mine = [sketch(best.graph)]
        epochs = self.recipe.epochs + INHERITED * fidelities(trials)[best.root.id]
        mean, sd = belief.predict(mine, epochs, [best.root.proposal.recipe])
        apart = distances(mine, [t.sketch for t in scored], self.skip_weight)[0]
        return best.propose(
            self.recipe,
            reason="acquisition",
            acquisition=aim.name,
            value=value,
            mean=float(mean[0]),
            sd=float(sd[0]),
            nearest=[[scored[i].id, float(apart[i])] for i in np.argsort(apart, kind="stable")[:3]],
            candidates=looked,
            budget=budget_to_json(rules.budget),
        )

    def _largest(self, roots: Sequence[Trial], rules: Rules, rng: np.random.Generator) -> Candidate | None:
        """Of the best network's neighbours that may be trained the one with the most parameters, if these are more."""
        best = max(roots, key=lambda t: (t.score, -t.id))
        grown = children(self.space, self.limits, best.graph, rng)
        new = [Candidate(best, (morph,), graph) for morph, graph in grown if rules.new(graph) and rules.fits(graph)]
        largest = max(new, key=lambda one: one.graph.parameters, default=None)
        return None if largest is None or largest.graph.parameters <= best.graph.parameters else largest

    def _climb(
        self,
        roots: Sequence[tuple[Trial, float]],
        rules: Rules,
        promise: Callable[[Sequence[Candidate]], Array],
        longest: int,
        rng: np.random.Generator,
    ) -> tuple[Candidate, float, int] | None:
        """The most promising network found that may be trained, its promise, and how many were looked at.

        A best-first search over the tree of morphs below the roots, which come with their own promise. Networks that
        may not be trained again are passed through; those that do not fit are not. None only when the tree holds
        nothing new.
        """
        order = itertools.count()
        queue = [
            (0, -value, next(order), Candidate(t, (), t.graph), children(self.space, self.limits, t.graph, rng))
            for t, value in roots
            if may_grow(self.space, t.graph, rules)
        ]
        heapq.heapify(queue)  # networks not yet visited first; those with more neighbours come again
        seen = {t.graph.key for t, _ in roots}
        promised = [value for _, value in roots]
        best, best_value, temperature, looked, grown = None, -math.inf, self.temperature, 0, 0
        while queue and looked < self.candidates and (best is None or grown < 4 * self.candidates):
            visits, minus, number, parent, rest = heapq.heappop(queue)
            some = list(itertools.islice(rest, self.breadth))
            if len(some) == self.breadth:
                heapq.heappush(queue, (visits + 1, minus, number, parent, rest))
            grown += len(some)
            fitting = []
            for morph, graph in some:
                if graph.key not in seen and rules.fits(graph):
                    seen.add(graph.key)
                    fitting.append(Candidate(parent.root, (*parent.morphs, morph), graph))
            if not fitting:
                continue
            values = promise(fitting).tolist()
            promised.extend(values)
            scale = float(np.std(promised)) * temperature
            for one, value in zip(fitting, values, strict=True):
                new = rules.new(one.graph)
                looked += new
                gap = best_value - value
                if new and (best is None or gap < 0):
                    best, best_value, gap = one, value, 0.0
                if len(one.morphs) < longest and (not new or gap <= 0 or rng.random() < _accepted(gap, scale)):
                    further = children(self.space, self.limits, one.graph, rng)
                    heapq.heappush(queue, (0, -value, next(order), one, further))
            temperature *= self.cooling
        return None if best is None else (best, best_value, looked)


def _accepted(gap: float, temperature: float) -> float:
    """Probability of going on from what is worse by `gap` (Metropolis et al. 1953)."""
    return math.exp(-gap / temperature) if temperature > 0 else 0.0
