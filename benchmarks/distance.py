"""The cost of distances between networks of about 60 layers, and of the next proposal.

    PYTHONPATH=. python benchmarks/distance.py [--repeats 7] [--smoke]

The histories are synthetic: three starters (convolutional, residual, dense) grown to 60 layers by random morphs, then
trials that are one or two random morphs of an earlier one. Writes results/distance.json, all from the same run:
milliseconds for the distances of one candidate to n = 100 and 1,000 networks, alone, for 16 children of one parent at
once, as in the search (`child`, per candidate), and by the reference implementation (`tests/reference.py`); the ratios;
the other costs of a candidate (growing, key, work, sketch); and seconds for one `ask` of the Bayesian searcher after n
trials, the first time, when nothing is cached, and later. Medians and quartiles over the repeats.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from machine import describe

from morphnas.graph import Graph, Limits, cnn, densenet, resnet
from morphnas.search import BayesianSearcher, Budget, MorphSpace, Proposal, Trial, distances, sketch
from morphnas.search.candidates import children
from morphnas.search.distance import ReferenceNetworks
from morphnas.train.recipe import Outcome, Recipe
from tests.reference import distance

RESULTS = Path(__file__).parent / "results" / "distance.json"
LAYERS, SIBLINGS = 60, 16
SHAPE = (3, 32, 32)
MORPHS = tuple(morph for morph in Limits.morphs if morph != "wider_all")
"""Morphs of the histories, without the one that doubles all widths, which would grow without limit."""
MORPHED = MorphSpace((), MORPHS)


def grown(graph: Graph, layers: int, rng: np.random.Generator) -> Graph:
    while len(sketch(graph)) <= layers:  # includes the input
        _, graph = next(children(MORPHED, Limits(), graph, rng))
    return graph


def history(n: int, layers: int) -> tuple[MorphSpace, list[Trial]]:
    rng = np.random.default_rng(0)
    made = (cnn(SHAPE, 10, 16, 4), resnet(SHAPE, 10, 16, layers // 5), densenet(SHAPE, 10, 12, layers // 3))
    space = MorphSpace(tuple(grown(graph, layers, rng) for graph in made), MORPHS)
    trials: list[Trial] = []
    for i in range(n):
        proposal = Proposal(space.starts[i % 3], (), Recipe(epochs=6))
        graph, morphs = space.starts[i % 3], []
        if i >= 3:
            parent = trials[rng.integers(i)]
            graph = parent.graph
            for _ in range(rng.integers(1, 3)):
                morph, graph = next(children(space, Limits(), graph, rng))
                morphs.append(morph)
            proposal = Proposal(parent.id, tuple(morphs), Recipe(epochs=6))
        score = 0.1 * math.log(graph.parameters) + 0.02 * rng.normal()
        trials.append(Trial(i, proposal, graph, Outcome("finished", score, epochs=6), kept=True))
    return space, trials


def seconds(work: Callable[[], object], repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times


def middle(times: list[float], unit: float = 1.0, digits: int = 3) -> dict[str, object]:
    low, median, high = statistics.quantiles([unit * t for t in times], n=4)
    return {"median": round(median, digits), "quartiles": [round(low, digits), round(high, digits)]}


def candidates(trials: list[Trial], n: int, repeats: int) -> dict[str, object]:
    """Milliseconds for the distances of one candidate to n networks."""
    parent, rng = trials[n // 2].graph, np.random.default_rng(1)
    siblings = [graph for _, graph in itertools.islice(children(MORPHED, Limits(), parent, rng), SIBLINGS)]
    columns, rows = [t.sketch for t in trials[:n]], [sketch(graph) for graph in siblings]
    gauge = ReferenceNetworks.of(columns)
    assert np.array_equal(gauge.distances(rows[:1])[0], [distance(rows[0], column) for column in columns])
    alone = seconds(lambda: distances(rows[:1], columns), repeats)
    child = [t / SIBLINGS for t in seconds(lambda: gauge.distances(rows), repeats)]
    plain = seconds(lambda: [distance(rows[0], column) for column in columns], max(2, repeats // 2))
    return {
        "n": n,
        "milliseconds": {"alone": middle(alone, 1e3), "child": middle(child, 1e3), "plain": middle(plain, 1e3, 0)},
        "ratio": {
            name: round(statistics.median(plain) / statistics.median(times))
            for name, times in (("plain / alone", alone), ("plain / child", child))
        },
    }


def building(trials: list[Trial], repeats: int) -> dict[str, object]:
    """Milliseconds for the other steps of evaluating a candidate."""
    parent = trials[len(trials) // 2].graph
    morphs = [morph for morph, _ in itertools.islice(
        children(MORPHED, Limits(), parent, np.random.default_rng(1)), SIBLINGS
    )]  # fmt: skip
    steps: dict[str, Callable[[Graph], object]] = {
        "key": lambda graph: graph.key, "work": lambda graph: graph.work, "sketch": sketch,
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in ("grow", *steps)}
    for _ in range(repeats):
        start = time.perf_counter()
        graphs = [morph.grow(parent) for morph in morphs]
        times["grow"].append((time.perf_counter() - start) / SIBLINGS)
        for name, step in steps.items():
            start = time.perf_counter()
            for graph in graphs:
                step(graph)
            times[name].append((time.perf_counter() - start) / SIBLINGS)
    return {name: middle(values, 1e3) for name, values in times.items()}


def asking(space: MorphSpace, trials: list[Trial], repeats: int) -> dict[str, object]:
    """Seconds for one proposal after these trials."""
    searcher = BayesianSearcher(space, Recipe(epochs=6))
    histories = [[replace(t, graph=Graph(t.graph.nodes)) for t in trials] for _ in range(max(2, repeats // 2))]
    budget = Budget(math.inf)
    first = [seconds(partial(searcher.ask, copies, budget), 1)[0] for copies in histories]
    later = seconds(partial(searcher.ask, histories[0], budget), repeats)
    return {"n": len(trials), "candidates": searcher.candidates, "first": middle(first), "later": middle(later)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--smoke", action="store_true", help="small networks and few trials, nothing written")
    args = parser.parse_args()
    layers, sizes, repeats = (12, (10, 20), 2) if args.smoke else (LAYERS, (100, 1_000), args.repeats)
    space, trials = history(sizes[-1], layers)
    counts = [len(t.sketch) - 1 for t in trials], [sum(sum(token.skips) for token in t.sketch) for t in trials]
    results = {
        "repeats": repeats,
        "networks": {
            name: [min(values), round(statistics.median(values)), max(values)]
            for name, values in zip(
                ("layers", "skips", "nodes"), (*counts, [len(t.graph.nodes) for t in trials]), strict=True
            )
        },
        "distance": [candidates(trials, n, repeats) for n in sizes],
        "milliseconds_of_a_candidate": building(trials, repeats),
        "seconds_of_ask": [asking(space, trials[:n], repeats) for n in sizes],
    }
    print(json.dumps(results, indent=1))
    if not args.smoke:
        RESULTS.write_text(json.dumps(describe() | results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
