"""What a search for every budget is worth, against searches for the best network and searches for one budget each.

    PYTHONPATH=. python benchmarks/budgets.py table [--seeds 40] [--networks 50]
    PYTHONPATH=. python benchmarks/budgets.py images --data mnist.npz [--examples 6000] [--time-limit 90] [--seeds 3]

table: among the 6,561 networks of NAS-Bench-Macro (`searchers.py` says how searches are played there), for FLOPs and
for parameters: points of mean accuracy that the best network trained lacks to the best of the table within the same
budget, averaged over the doublings of the budget from the cheapest network of the table to the dearest, after every
tenth network; also of a local search that trains a random neighbour of a random network of the front.

images: `fit(search_type="pareto", refit=False)` for a time limit, and `final_fit(trial=...)` for a third of it of the
network with the best score within each of three budgets: the FLOPs of the largest network that it began with, a
quarter, and a sixteenth; against `fit(limits={"max_flops": ...})` for each budget, for two thirds of the limit, which
takes as long in all. Accuracy on the test part, with the two in turns.

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
from tests.table import TableSpace, run, shortfall

RESULTS = Path(__file__).parent / "results" / "budgets.json"
SPACE = TableSpace(shrink=True)
EVERY = 10
SHARES = (1, 4, 16)
Make = Callable[[int], Searcher]
"""A searcher from a seed."""


@dataclass(frozen=True)
class LocalSearcher(StartsFirst):
    """The space's starts first; then a random neighbour of a random network of the front, or of any once these have
    none left."""

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
    found: dict[str, Any] = {}
    steps = range(EVERY, networks + 1, EVERY)
    for cost in ("flops", "parameters"):
        for name, make in makes(cost).items():
            searches = [run(make(seed), networks, seed) for seed in range(seeds)]
            lacks = [[100 * shortfall(trials[:n], cost) for trials in searches] for n in steps]
            found.setdefault(cost, {})[name] = {
                "mean": [round(statistics.mean(each), 3) for each in lacks],
                "standard_error": [round(statistics.stdev(each) / math.sqrt(seeds), 3) for each in lacks],
            }
            print(cost, name, found[cost][name], flush=True)
    return {"what": "table", "seeds": seeds, "every": EVERY, "lacks": found}


def images(data: Path, examples: int, seconds: float, seeds: int) -> dict[str, Any]:
    with np.load(data) as file:
        x, y, x_test, y_test = (file[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    accuracies: dict[str, list[list[float]]] = {"pareto": [], "limits": []}
    sizes: dict[str, list[list[int]]] = {"pareto": [], "limits": []}
    tried: list[int] = []
    for seed in range(seeds):
        x_few, _, y_few, _ = train_test_split(x, y, train_size=examples, random_state=seed, stratify=y)
        given: dict[str, Any] = {"random_state": seed, "device": "cpu"}
        with tempfile.TemporaryDirectory() as folder:
            begun = time.perf_counter()
            found = morphnas.ImageClassifier(f"{folder}/all", search_type="pareto", refit=False, **given)
            found.fit(x_few, y_few, time_limit=seconds)
            searched = morphnas.load_run(found.path_)
            largest = max(t.graph.flops for t in searched.trials if t.proposal.why["reason"] == "start")
            budgets = [largest // share for share in SHARES]
            tried.append(len(searched.trials))
            reached, took = [], []
            for budget in budgets:
                affordable = [t for t in searched.front("flops") if t.kept and t.graph.flops <= budget]
                found.final_fit(x_few, y_few, time_limit=seconds / len(SHARES), trial=affordable[-1].id)
                reached.append(100 * found.evaluate(x_test, y_test))
                took.append(found.network_.graph.flops)
            accuracies["pareto"].append(reached)
            sizes["pareto"].append(took)
            one = time.perf_counter() - begun
            reached, took = [], []
            for budget in budgets:
                alone = morphnas.ImageClassifier(f"{folder}/{budget}", limits={"max_flops": budget}, **given)
                alone.fit(x_few, y_few, time_limit=2 * seconds / len(SHARES))
                reached.append(100 * alone.evaluate(x_test, y_test))
                took.append(alone.network_.graph.flops)
            accuracies["limits"].append(reached)
            sizes["limits"].append(took)
        print(seed, accuracies["pareto"][-1], accuracies["limits"][-1], f"{one:.0f} s", flush=True)
    columns = {name: list(zip(*rows, strict=True)) for name, rows in accuracies.items()}
    return {
        "what": "images",
        "data": data.stem,
        "examples": examples,
        "seconds": 2 * seconds,
        "seeds": seeds,
        "shares": SHARES,
        "networks": tried,
        "accuracy": {name: [round(statistics.mean(each), 2) for each in rows] for name, rows in columns.items()},
        "flops": sizes,
        "gain_of_pareto": [
            gain(one, other) for one, other in zip(columns["limits"], columns["pareto"], strict=True)
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
