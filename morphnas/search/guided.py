"""Maximisation of an acquisition function over the tree of morphs: Jin, Song and Hu 2018, Auto-Keras
(arXiv:1806.10282), algorithm 1."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from morphnas.graph import Graph
from morphnas.search.candidates import Candidate, Rules, budget_to_json, children, may_grow, possible_parents
from morphnas.search.distance import SKIP_COST, Array, distances, sketch
from morphnas.search.network_surrogate import INHERITED_EPOCH_WEIGHT, NetworkSurrogate, fidelities
from morphnas.search.starts import StartsFirst
from morphnas.search.trial import Proposal, Trial, check_numbers


@dataclass(frozen=True)
class Acquisition:
    """An acquisition function. name: recorded in the proposals. evaluate: maps k networks and the posterior means (k,)
    and standard deviations (k,) of their scores to acquisition values (k,)."""

    name: str
    evaluate: Callable[[Sequence[Graph], Array, Array], Array]


@dataclass(frozen=True)
class Guided(StartsFirst):
    """Base of searchers that propose the network with the highest acquisition value within a few morphs of a trial
    whose weights are kept. `acquisition` gives the acquisition function.

    startup: number of trials with a score that the surrogate needs. Before, proposals alternate between the neighbour
        of the best network that has the most parameters and a chain of up to `far` random morphs.
    explore: until so many trials have a score, proposals are up to `far` morphs from their parent, later up to `near`.
    candidates: new networks whose acquisition is evaluated for one proposal. breadth: neighbours of a network that are
        evaluated at a time.
    temperature, cooling: simulated annealing: a network below the best value by `gap` is expanded with probability
        exp(-gap / T). T is in standard deviations of all values so far, and is multiplied by `cooling` after every
        expansion that evaluates networks.
    skip_weight: cost of a skip in the edit distance, relative to a layer.

    Networks are compared at the same number of epochs: the search is for networks, not for longer trainings.
    """

    startup: int = 6
    explore: int = 12
    far: int = 4
    near: int = 2
    candidates: int = 128
    breadth: int = 16
    temperature: float = 1.0
    cooling: float = 0.9
    skip_weight: float = SKIP_COST

    def __post_init__(self) -> None:
        check_numbers(self, "startup", "explore")

    def acquisition(self, scored: Sequence[Trial], mean: Array, exploring: bool) -> Acquisition:
        """The acquisition function. mean: posterior means (n,) of the trials with a score. exploring: whether there are
        still fewer than `explore` of them."""
        raise NotImplementedError

    def guided(self, trials: Sequence[Trial], rules: Rules, rng: np.random.Generator) -> Proposal | None:
        """The next proposal once the first networks have been proposed."""
        parents = {t.id for t in possible_parents(trials)}
        if not parents:
            return None
        scored = [t for t in trials if t.score is not None]
        if len(scored) < self.startup:
            roots = [t for t in scored if t.id in parents]
            turn = (len(trials) - len(self.space.starts)) % 2
            if turn == 0 and (larger := self._largest(roots, rules, rng)):
                return larger.propose(self.recipe, reason="larger", budget=budget_to_json(rules.budget))
            return self.chain("random", roots, rules, rng, self.far)
        exploring = len(scored) < self.explore
        surrogate = NetworkSurrogate.of(trials, self.skip_weight)
        fidelity = self.recipe.epochs * (1 + INHERITED_EPOCH_WEIGHT)
        observed = surrogate.predict_observed(fidelity)
        acquisition = self.acquisition(scored, observed[0], exploring)

        def evaluate(candidates: Sequence[Candidate]) -> Array:
            """Acquisition values (k,) of networks that are trained with the recipes of their roots."""
            recipes = [candidate.root.proposal.recipe for candidate in candidates]
            predicted = surrogate.predict([sketch(candidate.graph) for candidate in candidates], fidelity, recipes)
            return acquisition.evaluate([candidate.graph for candidate in candidates], *predicted)

        values = acquisition.evaluate([t.graph for t in scored], *observed)
        valued = [(t, float(value)) for t, value in zip(scored, values, strict=True) if t.id in parents]
        result = self._best_first_search(valued, rules, evaluate, self.far if exploring else self.near, rng)
        if result is None:
            return None
        best, value, evaluated = result
        best_sketch = [sketch(best.graph)]
        epochs = self.recipe.epochs + INHERITED_EPOCH_WEIGHT * fidelities(trials)[best.root.id]
        mean, sd = surrogate.predict(best_sketch, epochs, [best.root.proposal.recipe])
        to_scored = distances(best_sketch, [t.sketch for t in scored], self.skip_weight)[0]
        return best.propose(
            self.recipe,
            reason="acquisition",
            acquisition=acquisition.name,
            value=value,
            mean=float(mean[0]),
            sd=float(sd[0]),
            nearest=[[scored[i].id, float(to_scored[i])] for i in np.argsort(to_scored, kind="stable")[:3]],
            candidates=evaluated,
            budget=budget_to_json(rules.budget),
        )

    def _largest(self, roots: Sequence[Trial], rules: Rules, rng: np.random.Generator) -> Candidate | None:
        """Of the best root's neighbours that may be trained the one with the most parameters; None if it has no more
        parameters than the root."""
        best = max(roots, key=lambda t: (t.score, -t.id))
        neighbours = children(self.space, self.limits, best.graph, rng)
        new = [Candidate(best, (morph,), g) for morph, g in neighbours if rules.new(g) and rules.fits(g)]
        largest = max(new, key=lambda candidate: candidate.graph.parameters, default=None)
        return None if largest is None or largest.graph.parameters <= best.graph.parameters else largest

    def _best_first_search(
        self,
        roots: Sequence[tuple[Trial, float]],
        rules: Rules,
        evaluate: Callable[[Sequence[Candidate]], Array],
        longest: int,
        rng: np.random.Generator,
    ) -> tuple[Candidate, float, int] | None:
        """The network of the highest acquisition value found that may be trained, its value, and how many that may be
        trained were evaluated.

        Best-first search over the tree of morphs, up to `longest` deep below the roots, which are given with their
        values. Networks that may not be trained again are expanded; those that do not fit are not. None only if the
        tree holds nothing new.
        """
        order = itertools.count()
        queue = [
            (0, -value, next(order), Candidate(t, (), t.graph), children(self.space, self.limits, t.graph, rng))
            for t, value in roots
            if may_grow(self.space, t.graph, rules)
        ]
        heapq.heapify(queue)  # fewest visits first; networks with further neighbours are queued again
        seen = {t.graph.key for t, _ in roots}
        all_values = [value for _, value in roots]
        best, best_value, temperature, evaluated, generated = None, -math.inf, self.temperature, 0, 0
        while queue and evaluated < self.candidates and (best is None or generated < 4 * self.candidates):
            visits, minus, number, parent, rest = heapq.heappop(queue)
            neighbours = list(itertools.islice(rest, self.breadth))
            if len(neighbours) == self.breadth:
                heapq.heappush(queue, (visits + 1, minus, number, parent, rest))
            generated += len(neighbours)
            fitting = []
            for morph, graph in neighbours:
                if graph.key not in seen and rules.fits(graph):
                    seen.add(graph.key)
                    fitting.append(Candidate(parent.root, (*parent.morphs, morph), graph))
            if not fitting:
                continue
            values = evaluate(fitting).tolist()
            all_values.extend(values)
            scale = float(np.std(all_values)) * temperature
            for child, value in zip(fitting, values, strict=True):
                new = rules.new(child.graph)
                evaluated += new
                gap = best_value - value
                if new and (best is None or gap < 0):
                    best, best_value, gap = child, value, 0.0
                expand = len(child.morphs) < longest and (
                    not new or gap <= 0 or rng.random() < _acceptance_probability(gap, scale)
                )
                if expand:
                    further = children(self.space, self.limits, child.graph, rng)
                    heapq.heappush(queue, (0, -value, next(order), child, further))
            temperature *= self.cooling
        return None if best is None else (best, best_value, evaluated)


def _acceptance_probability(gap: float, temperature: float) -> float:
    """Probability of expanding a network whose value is lower by `gap` (Metropolis et al. 1953)."""
    return math.exp(-gap / temperature) if temperature > 0 else 0.0
