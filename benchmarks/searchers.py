"""How soon searchers find good networks among the 6,561 of NAS-Bench-Macro, a table of trained networks.

    PYTHONPATH=. python benchmarks/searchers.py [--seeds 40] [--networks 100] [--ablation] [--smoke]

Every search starts with the same four networks and may add, remove, grow and shrink blocks (`tests/table.py`). Its
scores are those of one of a network's three trainings, drawn by the seed. Regret: difference to the best mean accuracy
of the table, in points, `chosen` for the network that the library would then choose (`winner`), `trained` for the best
of those trained so far. The former cannot fall much below .08, since single trainings differ by more than the best
networks.

Writes docs/img/regret.svg and results/searchers.json: the mean regrets after every fifth network, their standard errors
over seeds, and how many networks the Bayesian search needs to reach the final regret of each other searcher. Grid
search and successive halving are left out, since the table has no such networks and only one length of training.
--ablation instead varies one setting of the Bayesian search at a time, and writes results/searchers_ablation.json;
--networks 50 is enough there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from machine import describe
from sklearn.gaussian_process import kernels
from sklearn.gaussian_process.kernels import Matern, WhiteKernel
from surrogate import without_resolution

from morphnas.search import (
    BayesianSearcher,
    EvolutionSearcher,
    GreedySearcher,
    HillClimbingSearcher,
    RandomSearcher,
    Searcher,
    guided,
    surrogate,
    trial,
    winner,
)
from tests.table import TableSpace, best_accuracy, run_search, true_accuracy

RESULTS = Path(__file__).parent / "results"
PICTURE = Path(__file__).parent.parent / "docs" / "img" / "regret.svg"
SPACE = TableSpace(shrink=True)
EVERY = 5

Make = Callable[[int], Searcher]
"""A searcher from a seed."""

Change = Callable[[], AbstractContextManager[object]]
"""Makes a context in which the library is modified."""

SEARCHERS: dict[str, Callable[..., Searcher]] = {
    "bayesian": BayesianSearcher,
    "evolution": EvolutionSearcher,
    "climbing": HillClimbingSearcher,
    "greedy": GreedySearcher,
    "random": RandomSearcher,
}


def of(kind: Callable[..., Searcher], **settings: object) -> Make:
    return lambda seed: kind(SPACE, seed=seed, **settings)


def replaced(module: ModuleType, **values: Any) -> Change:
    return lambda: mock.patch.multiple(module, **values)


def variants(candidates: int) -> dict[str, tuple[Make, Change]]:
    """The Bayesian search, and variants that differ from it in one setting, by name."""

    def changed(**settings: object) -> tuple[Make, Change]:
        return of(BayesianSearcher, **{"candidates": candidates} | settings), nullcontext

    def with_changes(*changes: Change) -> tuple[Make, Change]:
        def apply_all() -> AbstractContextManager[object]:
            stack = contextlib.ExitStack()
            for change in changes:
                stack.enter_context(change())
            return stack

        return changed()[0], apply_all

    def kernel(nu: float) -> Change:
        return replaced(kernels, Matern=lambda *args, **_: Matern(*args, nu=nu))

    blind = {"sketch": without_resolution}
    return {
        "base": changed(),
        "kernel: Matern 1/2": with_changes(kernel(0.5)),
        "kernel: squared exponential": with_changes(kernel(math.inf)),
        "noise fixed at .001": with_changes(replaced(kernels, WhiteKernel=lambda *_: WhiteKernel(1e-3, "fixed"))),
        "no standardisation": with_changes(replaced(surrogate, standardise=lambda scores: (scores, 0.0, 1.0))),
        "no resolution in the tokens": with_changes(replaced(trial, **blind), replaced(guided, **blind)),
        "skip_weight .25": changed(skip_weight=0.25),
        "predictions from the start": changed(startup=0),
        "expected improvement from the start": changed(explore=0),
        "upper confidence bound to the end": changed(explore=1_000),
        "jumps of 1": changed(far=1, near=1),
        "jumps of up to 4 to the end": changed(near=4),
        f"{4 * candidates} candidates": changed(candidates=4 * candidates),
    }


Curves = dict[str, dict[str, list[float]]]
"""By "chosen" and "trained": mean and standard error of the regret after every EVERY networks."""


def objective_errors(make: Make, seed: int, networks: int, change: Change) -> list[tuple[float, float]]:
    """Regrets of the network chosen and of the best trained, after every EVERY networks."""
    with change():
        trials = run_search(make(seed), networks, seed)
    errors = []
    for n in range(EVERY, networks + 1, EVERY):
        top = max(map(true_accuracy, trials[:n]))
        errors.append((100 * (best_accuracy() - true_accuracy(winner(trials[:n]))), 100 * (best_accuracy() - top)))
    return errors


def curves(name: str, make: Make, seeds: int, networks: int, change: Change = nullcontext) -> Curves:
    start = time.perf_counter()
    searches = [objective_errors(make, seed, networks, change) for seed in range(seeds)]
    seconds = (time.perf_counter() - start) / seeds
    result = {}
    for i, kind in enumerate(("chosen", "trained")):
        columns = [[search[step][i] for search in searches] for step in range(len(searches[0]))]
        result[kind] = {
            "mean": [round(statistics.mean(values), 4) for values in columns],
            "standard_error": [round(statistics.stdev(values) / math.sqrt(seeds), 4) for values in columns],
        }
    summary = [
        f"{kind} {half['mean'][len(searches[0]) // 2 - 1]:.3f} halfway, {half['mean'][-1]:.3f} +- "
        f"{half['standard_error'][-1]:.3f}" for kind, half in result.items()
    ]  # fmt: skip
    print(f"{name:36s} {'  '.join(summary)}  {seconds:.1f} s a search", flush=True)
    return result


def first_as_good(regrets: Mapping[str, Curves], name: str, kind: str) -> int | None:
    """Number of networks after which the Bayesian search reaches the final mean regret of another searcher."""
    enough = regrets[name][kind]["mean"][-1]
    means = enumerate(regrets["bayesian"][kind]["mean"], start=1)
    return next((EVERY * i for i, mean in means if mean <= enough), None)


COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#666666")


def picture(regrets: Mapping[str, Curves], seeds: int) -> str:
    """An SVG plot of regret by networks trained: `chosen` with bands of a standard error, and `trained`, dashed."""
    wide, high, left, bottom, right, top = 640, 400, 60, 350, 540, 20
    n = len(next(iter(regrets.values()))["chosen"]["mean"])
    low, most = 0.01, 3.0  # of the logarithmic axis

    def at(i: int, regret: float) -> str:
        share = (math.log(max(low, min(most, regret))) - math.log(low)) / (math.log(most) - math.log(low))
        return f"{left + (i + 1) / n * (right - left):.1f},{bottom - share * (bottom - top):.1f}"

    def line(values: list[float], look: str) -> str:
        return f'<polyline points="{" ".join(at(i, m) for i, m in enumerate(values))}" fill="none" {look}/>'

    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" font-family="sans-serif" font-size="13">',
        f'<rect width="{wide}" height="{high}" fill="white"/>',
        f'<text x="{(left + right) / 2}" y="{high - 12}" text-anchor="middle">networks trained</text>',
        f'<g transform="translate(16 {(top + bottom) / 2}) rotate(-90)">',
        f'<text text-anchor="middle">regret, points of accuracy (mean of {seeds})</text></g>',
    ]
    for value in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0):
        y = at(0, value).split(",")[1]
        drawn.append(f'<path d="M{left} {y}H{right}" stroke="#ddd"/>')
        drawn.append(f'<text x="{left - 6}" y="{y}" dy="4" text-anchor="end">{value:g}</text>')
    for i in range(3, n, 4):
        x = at(i, low).split(",")[0]
        drawn.append(f'<text x="{x}" y="{bottom + 18}" text-anchor="middle">{EVERY * (i + 1)}</text>')
    for place, ((name, both), colour) in enumerate(zip(regrets.items(), COLOURS, strict=True)):
        chosen = both["chosen"]
        pairs = list(enumerate(zip(chosen["mean"], chosen["standard_error"], strict=True)))
        band = [at(i, m + e) for i, (m, e) in pairs] + [at(i, m - e) for i, (m, e) in reversed(pairs)]
        drawn.append(f'<polygon points="{" ".join(band)}" fill="{colour}" opacity="0.15"/>')
        drawn.append(line(chosen["mean"], f'stroke="{colour}" stroke-width="2"'))
        drawn.append(line(both["trained"]["mean"], f'stroke="{colour}" stroke-dasharray="4 3"'))
        drawn.append(f'<text x="{right + 8}" y="{top + 20 + 20 * place}" fill="{colour}">{name}</text>')
    drawn.append(f'<text x="{right + 8}" y="{top + 140}" fill="#333">solid: chosen</text>')
    drawn.append(f'<text x="{right + 8}" y="{top + 160}" fill="#333">dashed: trained</text>')
    return "\n".join([*drawn, "</svg>"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--networks", type=int, default=100)
    parser.add_argument("--candidates", type=int, default=32, help="of the base of the ablation")
    parser.add_argument("--ablation", action="store_true", help="variants of the Bayesian search")
    parser.add_argument("--smoke", action="store_true", help="two searches for 10 networks, nothing written")
    args = parser.parse_args()
    seeds, networks = (2, 10) if args.smoke else (args.seeds, args.networks)
    about = describe() | {"seeds": seeds, "networks": networks, "every": EVERY, "table": "NAS-Bench-Macro, CIFAR-10"}
    if args.ablation:
        regrets = {
            name: curves(name, make, seeds, networks, change)
            for name, (make, change) in variants(args.candidates).items()
        }
        written = {"searchers_ablation.json": about | {"candidates": args.candidates, "regret": regrets}}
    else:
        regrets = {name: curves(name, of(kind), seeds, networks) for name, kind in SEARCHERS.items()}
        needed = {
            name: {kind: first_as_good(regrets, name, kind) for kind in ("chosen", "trained")}
            for name in regrets if name != "bayesian"
        }  # fmt: skip
        print(f"networks until the Bayesian search is as good as the others after {networks}: {needed}")
        written = {"searchers.json": about | {"regret": regrets, "bayesian_needs": needed}}
    if args.smoke:
        return
    for name, result in written.items():
        (RESULTS / name).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if not args.ablation:
        PICTURE.write_text(picture(regrets, seeds), encoding="utf-8")


if __name__ == "__main__":
    main()
