"""Which networks may be proposed, and how to enumerate or draw them: helpers that all searchers share."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from morphnas.graph import MIN_MICRO_BATCH, Graph, Limits, Morph, MorphError
from morphnas.search.trial import Budget, MorphSpace, Proposal, Space, Trial
from morphnas.train.recipe import Recipe

MIN_NETWORKS_TO_FIT_LATENCY = 5
"""Timed networks from which on the coefficients of the latency model are fitted; with fewer they are only rescaled."""
LATENCY_QUANTILE = 0.75
"""Share of the timed networks that must not be slower than their predicted latency."""


@dataclass(frozen=True)
class Candidate:
    """A network that may be proposed, the trial whose weights it would inherit, and the morphs from there to it."""

    root: Trial
    morphs: tuple[Morph, ...]
    graph: Graph

    def propose(self, recipe: Recipe, **why: Any) -> Proposal:
        return Proposal(self.root.id, self.morphs, recipe, why)


@dataclass(frozen=True)
class Rules:
    """Whether a network may be trained now for `epochs` epochs: not a second time, only within the limits, and only if
    the training is predicted to finish in the time left.

    taken: keys of the networks that have been, or are being, trained for as many epochs, or of which the last layer is.
    """

    limits: Limits
    budget: Budget
    epochs: int
    taken: frozenset[str]

    @staticmethod
    def of(trials: Sequence[Trial], limits: Limits, budget: Budget, epochs: int) -> Rules:
        taken = frozenset(t.graph.key for t in trials if t.epochs == epochs or t.proposal.recipe.layers == "last")
        return Rules(updated_limits(limits, trials), budget, epochs, taken)

    def fits(self, graph: Graph) -> bool:
        """Whether the network is within the limits and is predicted to be trained in the time left."""
        return self.limits.violation(graph) is None and self.budget.predict(graph, self.epochs) <= self.budget.seconds

    def new(self, graph: Graph) -> bool:
        return graph.key not in self.taken


def updated_limits(limits: Limits, trials: Sequence[Trial]) -> Limits:
    """The limits, corrected by measurements of the trials: the latency model is fitted to the measured latencies, and
    `max_memory` is divided by the ratio of measured to estimated memory and kept below the networks that ran out of
    memory."""
    if limits.max_latency_ms is not None:
        limits = fit_latency_model(limits, trials)
    caps = [] if limits.max_memory is None else [int(limits.max_memory / memory_ratio(trials))]
    caps += [
        t.graph.peak_bytes(MIN_MICRO_BATCH) - 1 for t in trials if t.outcome is not None and t.outcome.status == "oom"
    ]
    return replace(limits, max_memory=max(1, min(caps))) if caps else limits


def memory_ratio(trials: Sequence[Trial]) -> float:
    """Median ratio of the measured peak memory of a training to `Graph.peak_bytes`; 1 if nothing was measured."""
    ratios = [
        outcome.peak_bytes / trial.graph.peak_bytes(outcome.micro_batch)
        for trial in trials
        if (outcome := trial.outcome) is not None and outcome.peak_bytes and outcome.micro_batch
    ]
    return statistics.median(ratios) if ratios else 1.0


def fit_latency_model(limits: Limits, trials: Sequence[Trial]) -> Limits:
    """The limits with `pace`, the seconds per node, per FLOP and per parameter, fitted to the measured latencies.

    By non-negative least squares of the relative errors if at least `MIN_NETWORKS_TO_FIT_LATENCY` networks were timed,
    otherwise the proportions of the three stay. Then all are scaled so that at least a share of `LATENCY_QUANTILE` of
    the timed networks is no slower than predicted. Unchanged if none was timed, or the prediction for one of them is 0.
    """
    timed = {t.graph.key: (t.graph, t.outcome.latency) for t in trials if t.outcome is not None and t.outcome.latency}
    if not timed:
        return limits
    sizes = np.array([(len(graph.nodes), graph.flops, graph.parameters) for graph, _ in timed.values()], dtype=float)
    relative = sizes / np.array([[seconds] for _, seconds in timed.values()])
    pace = np.array(limits.pace)
    if len(timed) >= MIN_NETWORKS_TO_FIT_LATENCY:
        from scipy.optimize import nnls  # slow to import, and not needed in workers

        scale = relative.max(0)
        pace = nnls(relative / scale, np.ones(len(timed)))[0] / scale
    ratios = relative @ pace  # predicted to measured
    if not ratios.min() > 0:
        return limits
    node, flop, parameter = (pace * np.quantile(1 / ratios, LATENCY_QUANTILE, method="higher")).tolist()
    return replace(limits, pace=(node, flop, parameter))


def possible_parents(trials: Sequence[Trial]) -> list[Trial]:
    """The trials with a score whose weights are kept; of several with the same network the one with the best score."""
    ranked = sorted((t for t in trials if t.kept and t.score is not None), key=lambda t: (t.score, t.id))
    return sorted({t.graph.key: t for t in ranked}.values(), key=lambda t: t.id)


def children(space: Space, limits: Limits, graph: Graph, rng: np.random.Generator) -> Iterator[tuple[Morph, Graph]]:
    """The graph's neighbours in random order. The kinds of morph take turns, as there are many more skips than others.

    Kinds of the library that are not among `limits.morphs` are left out.
    """
    excluded = set(Limits.morphs) - set(limits.morphs)
    kinds: dict[str, list[Morph]] = {}
    for morph in space.neighbours(graph):
        if morph.tag not in excluded:
            kinds.setdefault(morph.tag, []).append(morph)
    queues = [[kind[i] for i in rng.permutation(len(kind))] for _, kind in sorted(kinds.items())]
    while queues := [queue for queue in queues if queue]:
        for i in rng.permutation(len(queues)):
            morph = queues[i].pop()
            try:
                yield morph, morph.grow(graph)
            except MorphError:
                continue


def may_grow(space: Space, graph: Graph, rules: Rules) -> bool:
    """Whether a descendant of the graph may fit. With the morphs of the library, which make nothing smaller, only if
    the graph itself does."""
    user_defined = type(space) is not MorphSpace or not set(Limits.morphs).issuperset(space.morphs)
    return user_defined or rules.fits(graph)


def random_candidate(
    space: Space, roots: Sequence[Trial], rules: Rules, rng: np.random.Generator, longest: int, tries: int = 32
) -> Candidate | None:
    """A network that may be trained, by a random chain of up to `longest` morphs from a random root.

    Roots without descendants that fit are left out. If none of `tries` chains ends in a network that may be trained,
    it is the first of `reachable_candidates`; None if there are none.
    """
    roots = [root for root in roots if may_grow(space, root.graph, rules)]
    for _ in range(tries):
        if not roots:
            return None
        root = roots[int(rng.integers(len(roots)))]
        candidate = Candidate(root, (), root.graph)
        for _ in range(rng.integers(1, longest + 1)):
            step = next((s for s in children(space, rules.limits, candidate.graph, rng) if rules.fits(s[1])), None)
            if step is None:
                break
            candidate = Candidate(root, (*candidate.morphs, step[0]), step[1])
        if not candidate.morphs:
            roots.remove(root)
        elif rules.new(candidate.graph):
            return candidate
    return next(reachable_candidates(space, roots, rules, rng, longest), None)


def reachable_candidates(
    space: Space, roots: Sequence[Trial], rules: Rules, rng: np.random.Generator, longest: int
) -> Iterator[Candidate]:
    """Every network that may be trained and is at most `longest` morphs from a root, breadth first, in random order."""
    level = [Candidate(roots[i], (), roots[i].graph) for i in rng.permutation(len(roots))]
    seen = {candidate.graph.key for candidate in level}
    for _ in range(longest):
        next_level = []
        for parent in level:
            for morph, graph in children(space, rules.limits, parent.graph, rng):
                if graph.key not in seen and rules.fits(graph):
                    seen.add(graph.key)
                    next_level.append(Candidate(parent.root, (*parent.morphs, morph), graph))
                    if rules.new(graph):
                        yield next_level[-1]
        level = next_level


def budget_to_json(budget: Budget) -> dict[str, Any]:
    """The budget as JSON values; the seconds are None if they are not limited."""
    seconds = budget.seconds if math.isfinite(budget.seconds) else None
    return {"seconds": seconds, "trials": budget.trials, "seconds_per_flop": budget.seconds_per_flop}
