"""What may be proposed: the bits that every searcher needs, whatever its strategy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from morphnas.graph import SMALLEST, Graph, Limits, Morph, MorphError
from morphnas.search.trial import Budget, MorphSpace, Proposal, Space, Trial
from morphnas.train.recipe import Recipe

ENOUGH_TIMED = 5
"""Networks whose latencies say more than what was measured before there were any."""
CAUTION = 0.75
"""Share of the networks timed that are to be no slower than what is predicted of them."""


@dataclass(frozen=True)
class Candidate:
    """A network within reach: the trial whose weights it would inherit, and the morphs on the way."""

    root: Trial
    morphs: tuple[Morph, ...]
    graph: Graph

    def propose(self, recipe: Recipe, **why: Any) -> Proposal:
        return Proposal(self.root.id, self.morphs, recipe, why)


@dataclass(frozen=True)
class Rules:
    """What may be trained now for so many epochs: nothing twice, nothing too large, nothing that cannot finish."""

    limits: Limits
    budget: Budget
    epochs: int
    taken: frozenset[str]
    """Keys of the networks that have been, or are being, trained for as many epochs."""

    @staticmethod
    def of(trials: Sequence[Trial], limits: Limits, budget: Budget, epochs: int) -> Rules:
        taken = frozenset(t.graph.key for t in trials if t.epochs == epochs)
        return Rules(updated_limits(limits, trials), budget, epochs, taken)

    def fits(self, graph: Graph) -> bool:
        """Whether the network is within the limits and can be trained in the time left."""
        return self.limits.refuse(graph) is None and self.budget.predict(graph, self.epochs) <= self.budget.seconds

    def new(self, graph: Graph) -> bool:
        return graph.key not in self.taken


def updated_limits(limits: Limits, trials: Sequence[Trial]) -> Limits:
    """The limits with what trials have shown: what estimates of memory and of latency are worth, and which network was
    too large.
    """
    if limits.max_latency_ms is not None:
        limits = paced(limits, trials)
    caps = [] if limits.max_memory is None else [int(limits.max_memory / measured_memory(trials))]
    caps += [t.graph.peak_bytes(SMALLEST) - 1 for t in trials if t.outcome is not None and t.outcome.status == "oom"]
    return replace(limits, max_memory=max(1, min(caps))) if caps else limits


def measured_memory(trials: Sequence[Trial]) -> float:
    """What trainings took of memory, relative to `Graph.peak_bytes`: the median; 1 where nothing was measured."""
    seen = [
        outcome.peak_bytes / trial.graph.peak_bytes(outcome.micro_batch)
        for trial in trials
        if (outcome := trial.outcome) is not None and outcome.peak_bytes and outcome.micro_batch
    ]
    return statistics.median(seen) if seen else 1.0


def paced(limits: Limits, trials: Sequence[Trial]) -> Limits:
    """The limits with seconds per node, per FLOP and per parameter that fit to the latencies of the trials' networks.

    By least squares of relative errors where `ENOUGH_TIMED` networks were timed, else in the proportions that they had;
    so that a share of `CAUTION` of the networks is no slower than predicted.
    """
    timed = {t.graph.key: (t.graph, t.outcome.latency) for t in trials if t.outcome is not None and t.outcome.latency}
    if not timed:
        return limits
    sizes = np.array([(len(graph.nodes), graph.flops, graph.parameters) for graph, _ in timed.values()], dtype=float)
    relative = sizes / np.array([[seconds] for _, seconds in timed.values()])
    pace = np.array(limits.pace)
    if len(timed) >= ENOUGH_TIMED:
        from scipy.optimize import nnls  # slow to load, and workers do without

        scale = relative.max(0)
        pace = nnls(relative / scale, np.ones(len(timed)))[0] / scale
    expected = relative @ pace
    if not expected.min() > 0:
        return limits
    node, flop, parameter = (pace * np.quantile(1 / expected, CAUTION, method="higher")).tolist()
    return replace(limits, pace=(node, flop, parameter))


def usable(trials: Sequence[Trial]) -> list[Trial]:
    """The trials whose weights can be inherited and whose score says whether to; the best one of every network."""
    ranked = sorted((t for t in trials if t.kept and t.score is not None), key=lambda t: (t.score, t.id))
    return sorted({t.graph.key: t for t in ranked}.values(), key=lambda t: t.id)


def children(space: Space, limits: Limits, graph: Graph, rng: np.random.Generator) -> Iterator[tuple[Morph, Graph]]:
    """The graph's neighbours in random order. The kinds of morph take turns: there are many more skips than the rest.

    Kinds that `limits` leaves out of the library's are left out here, too.
    """
    barred = set(Limits.morphs) - set(limits.morphs)
    kinds: dict[str, list[Morph]] = {}
    for morph in space.neighbours(graph):
        if morph.tag not in barred:
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
    """Whether a network below the graph may fit: of morphs of the library only where the graph does, for they make
    nothing smaller."""
    own = type(space) is not MorphSpace or not set(Limits.morphs).issuperset(space.morphs)
    return own or rules.fits(graph)


def random_candidate(
    space: Space, roots: Sequence[Trial], rules: Rules, rng: np.random.Generator, longest: int, tries: int = 32
) -> Candidate | None:
    """A random chain of up to `longest` morphs from a random root, that may be trained.

    Roots below which nothing fits are left out. After `tries` chains in vain the networks within reach are gone through
    one by one; None when none may be trained.
    """
    roots = [root for root in roots if may_grow(space, root.graph, rules)]
    for _ in range(tries):
        if not roots:
            return None
        root = roots[int(rng.integers(len(roots)))]
        found = Candidate(root, (), root.graph)
        for _ in range(rng.integers(1, longest + 1)):
            step = next((s for s in children(space, rules.limits, found.graph, rng) if rules.fits(s[1])), None)
            if step is None:
                break
            found = Candidate(root, (*found.morphs, step[0]), step[1])
        if not found.morphs:
            roots.remove(root)
        elif rules.new(found.graph):
            return found
    return next(within_reach(space, roots, rules, rng, longest), None)


def within_reach(
    space: Space, roots: Sequence[Trial], rules: Rules, rng: np.random.Generator, longest: int
) -> Iterator[Candidate]:
    """Every network that may be trained, at most `longest` morphs from a root, the nearest first, in random order."""
    level = [Candidate(roots[i], (), roots[i].graph) for i in rng.permutation(len(roots))]
    seen = {one.graph.key for one in level}
    for _ in range(longest):
        beyond = []
        for one in level:
            for morph, graph in children(space, rules.limits, one.graph, rng):
                if graph.key not in seen and rules.fits(graph):
                    seen.add(graph.key)
                    beyond.append(Candidate(one.root, (*one.morphs, morph), graph))
                    if rules.new(graph):
                        yield beyond[-1]
        level = beyond


def budget_to_json(budget: Budget) -> dict[str, Any]:
    """The budget as JSON values; None for seconds without end."""
    seconds = budget.seconds if math.isfinite(budget.seconds) else None
    return {"seconds": seconds, "trials": budget.trials, "seconds_per_flop": budget.seconds_per_flop}
