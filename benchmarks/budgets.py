"""A search for the Pareto front, compared with searches for the best network and with a search for each budget.

    PYTHONPATH=. python benchmarks/budgets.py table [--seeds 40] [--networks 50]
    PYTHONPATH=. python benchmarks/budgets.py images --data mnist.npz [--examples 6000] [--time-limit 90] [--seeds 3]

table: on the 6,561 networks of NAS-Bench-Macro (simulated as in `searchers.py`), for FLOPs and for parameters: the
difference in mean accuracy, in points, between the best network of the table within a budget and the best one trained,
averaged over budgets that double from the cheapest network of the table to the most expensive, after every tenth
network; also for a local search that trains a random neighbour of a random network of the front.

images: `fit(search_type="pareto", refit=False)` for a time limit, and `final_fit(trial=...)` for a third of it of the
network with the best score within each of three budgets: the FLOPs of the largest starter, a quarter, and a sixteenth;
compared with `fit(limits={"max_flops": ...})` for each budget, for two thirds of the limit, which takes as long in
total. Accuracy on the test part; both methods take turns.

Both append to results/budgets.json.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from machine import append, gain, npz
from sklearn.model_selection import train_test_split

import morphnas
from morphnas.search import SEARCHERS, ParetoSearcher, Proposal, Searcher, Trial
from morphnas.search.candidates import Rules
from morphnas.search.pareto import COSTS, front
from morphnas.search.starts import StartsFirst
from tests.table import TableSpace, run_search, shortfall

RESULTS = Path(__file__).parent / "results" / "budgets.json"
SPACE = TableSpace(shrink=True)
EVERY = 10
SHARES = (1, 4, 16)
Make = Callable[[int], Searcher]
"""A searcher from a seed."""


@dataclass(frozen=True)
class LocalSearcher(StartsFirst):
    """The starters first; then a random neighbour of a random network of the front, or of any network once those of the
    front have none left."""

    cost: str = "flops"

    def propose_next(self, trials: Sequence[Trial], rules: Rules, rng: np.random.Generator) -> Proposal | None:
        best = front(trials, COSTS[self.cost], lambda trial: trial.score)
        return self.chain("front", best, rules, rng, 1) or self.chain("any", trials, rules, rng, 1)


def seeded(make: Callable[..., Searcher]) -> Make:
    return lambda seed: make(seed=seed)


def makes(cost: str) -> dict[str, Make]:
    named: dict[str, Callable[..., Searcher]] = {
        name: partial(SEARCHERS[name], SPACE) for name in ("bayesian", "evolution", "climbing", "greedy", "random")
    }
    own: dict[str, Callable[..., Searcher]] = {
        "pareto": partial(ParetoSearcher, SPACE, cost=cost, narrower=(1,)),  # there are no narrower networks
        "local": partial(LocalSearcher, SPACE, cost=cost),
    }
    return {name: seeded(make) for name, make in (own | named).items()}


def table(seeds: int, networks: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    steps = range(EVERY, networks + 1, EVERY)
    for cost in ("flops", "parameters"):
        for name, make in makes(cost).items():
            searches = [run_search(make(seed), networks, seed) for seed in range(seeds)]
            lacks = [[100 * shortfall(trials[:n], cost) for trials in searches] for n in steps]
            results.setdefault(cost, {})[name] = {
                "mean": [round(statistics.mean(values), 3) for values in lacks],
                "standard_error": [round(statistics.stdev(values) / math.sqrt(seeds), 3) for values in lacks],
            }
            print(cost, name, results[cost][name], flush=True)
    return {"what": "table", "seeds": seeds, "every": EVERY, "lacks": results}


def images(data: Path, examples: int, seconds: float, seeds: int) -> dict[str, Any]:
    with np.load(data) as file:
        x, y, x_test, y_test = (file[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    accuracies: dict[str, list[list[float]]] = {"pareto": [], "limits": []}
    sizes: dict[str, list[list[int]]] = {"pareto": [], "limits": []}
    tried: list[int] = []
    for seed in range(seeds):
        x_few, _, y_few, _ = train_test_split(x, y, train_size=examples, random_state=seed, stratify=y)
        settings: dict[str, Any] = {"random_state": seed, "device": "cpu"}
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            classifier = morphnas.ImageClassifier(f"{folder}/all", search_type="pareto", refit=False, **settings)
            classifier.fit(x_few, y_few, time_limit=seconds)
            searched = morphnas.load_run(classifier.path_)
            largest = max(t.graph.flops for t in searched.trials if t.proposal.why["reason"] == "start")
            budgets = [largest // share for share in SHARES]
            tried.append(len(searched.trials))
            reached, flops = [], []
            for budget in budgets:
                affordable = [t for t in searched.front("flops") if t.kept and t.graph.flops <= budget]
                classifier.final_fit(x_few, y_few, time_limit=seconds / len(SHARES), trial=affordable[-1].id)
                reached.append(100 * classifier.evaluate(x_test, y_test))
                flops.append(classifier.network_.graph.flops)
            accuracies["pareto"].append(reached)
            sizes["pareto"].append(flops)
            seconds_for_all = time.perf_counter() - start
            reached, flops = [], []
            for budget in budgets:
                single = morphnas.ImageClassifier(f"{folder}/{budget}", limits={"max_flops": budget}, **settings)
                single.fit(x_few, y_few, time_limit=2 * seconds / len(SHARES))
                reached.append(100 * single.evaluate(x_test, y_test))
                flops.append(single.network_.graph.flops)
            accuracies["limits"].append(reached)
            sizes["limits"].append(flops)
        print(seed, accuracies["pareto"][-1], accuracies["limits"][-1], f"{seconds_for_all:.0f} s", flush=True)
    columns = {name: list(zip(*rows, strict=True)) for name, rows in accuracies.items()}
    return {
        "what": "images",
        "data": data.stem,
        "examples": examples,
        "seconds": 2 * seconds,
        "seeds": seeds,
        "shares": SHARES,
        "networks": tried,
        "accuracy": {name: [round(statistics.mean(values), 2) for values in rows] for name, rows in columns.items()},
        "flops": sizes,
        "gain_of_pareto": [
            gain(limited, pareto) for limited, pareto in zip(columns["limits"], columns["pareto"], strict=True)
        ],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("table", "images"))
    parser.add_argument("--data", type=npz)
    parser.add_argument("--examples", type=int, default=6_000, help="trained on")
    parser.add_argument("--time-limit", type=float, default=90.0, help="seconds of the search for all budgets")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--networks", type=int, default=50)
    parser.add_argument("--smoke", action="store_true", help="searches of 10 networks in the table, nothing written")
    args = parser.parse_args()
    if args.what == "images" and args.data is None:
        parser.error("images needs --data")
    if args.smoke:
        print(table(2, EVERY))
    elif args.what == "table":
        append(RESULTS, table(args.seeds or 40, args.networks))
    else:
        append(RESULTS, images(args.data, args.examples, args.time_limit, args.seeds or 3))


if __name__ == "__main__":
    main()
