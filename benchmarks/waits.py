"""Waiting times besides training: imports, growing a large network, and a searcher's answer when time is up.

    OMP_NUM_THREADS=1 python benchmarks/waits.py            writes results/waits.json
    python benchmarks/waits.py --smoke                      a quick pass that writes nothing

Imports are timed as whole processes; "nothing compiled" ones find no bytecode cache and write none. Growing is
`Morph.carry` in float64, for the first morph of each kind on a residual network of --width. Searchers are asked with a
history of 60 networks and one second left, in which no network can be trained. Median, minimum and maximum of --repeats
rounds, in seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from machine import describe

from morphnas.graph import cnn, fresh_weights, neighbours, resnet
from morphnas.search import SEARCHERS, Budget, MorphSpace, Proposal, Trial
from morphnas.train.recipe import Outcome, Recipe

RESULTS = Path(__file__).parent / "results" / "waits.json"
IMPORTS = {
    "torch": "import torch",
    "morphnas": "import morphnas",
    "its first name": "import morphnas; morphnas.ImageClassifier",
    "a worker": "import morphnas.run.worker",
    "the command line, for --help": "from morphnas.cli import main; main(['--help'])",
}


def nothing_compiled(empty: str) -> dict[str, str]:
    """Environment variables with which Python uses an empty folder as bytecode cache, and leaves it empty."""
    return {"PYTHONPYCACHEPREFIX": empty, "PYTHONDONTWRITEBYTECODE": "1"}


def grown(trials: int) -> list[Trial]:
    """A history: every network is one random morph away from an earlier one."""
    random, recipe = np.random.default_rng(0), Recipe(epochs=8)
    history: list[Trial] = []
    for id in range(trials):
        parent = history[int(random.integers(len(history)))] if history else None
        morphs = list(neighbours(parent.graph)) if parent else []
        morph = morphs[int(random.integers(len(morphs)))] if parent else None
        graph = morph.grow(parent.graph) if parent and morph else cnn((3, 32, 32), 10, width=16, depth=8)
        start = parent.id if parent else graph
        outcome = Outcome("finished", score=-float(random.random()), metric=0.5, seconds=8.0, epochs=8, examples=500)
        history.append(Trial(id, Proposal(start, (morph,) if morph else (), recipe, {}), graph, outcome, kept=True))
    return history


def seconds(function: Callable[[], object], repeats: int) -> dict[str, float]:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return {"median": round(statistics.median(times), 3), "least": round(min(times), 3), "most": round(max(times), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--smoke", action="store_true", help="one small round, nothing written")
    args = parser.parse_args()
    if args.smoke:
        args.repeats, args.width = 1, 8
    torch.set_num_threads(1)
    results: dict[str, Any] = {"n": args.repeats, "import": {}, "grow": {}, "ask": {}}

    def process(code: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)

    for name, code in IMPORTS.items():
        results["import"][name] = seconds(process(code), args.repeats)
    with tempfile.TemporaryDirectory() as empty, patch.dict(os.environ, nothing_compiled(empty)):
        name = "its first name"
        results["import"][f"{name}, nothing compiled"] = seconds(process(IMPORTS[name]), args.repeats)
    graph = resnet((3, 32, 32), 10, width=args.width)
    weights = {k: v.double() if v.is_floating_point() else v for k, v in fresh_weights(graph).items()}
    random = torch.Generator().manual_seed(0)
    results["parameters"] = graph.parameters
    for tag, morph in {morph.tag: morph for morph in reversed(list(neighbours(graph)))}.items():
        results["grow"][tag] = seconds(lambda morph=morph: morph.carry(graph, weights, random), args.repeats)  # type: ignore[misc]
    trials = grown(8 if args.smoke else 60)
    budget = Budget(1.0, None, 1e-6)
    for name, kind in SEARCHERS.items():
        if name != "grid":  # it proposes networks of its own
            searcher = kind(MorphSpace((trials[0].graph,)), Recipe(epochs=8))
            assert searcher.ask(trials, budget) is None
            results["ask"][name] = seconds(lambda searcher=searcher: searcher.ask(trials, budget), args.repeats)  # type: ignore[misc]
    print(json.dumps(results, indent=1))
    if not args.smoke:
        RESULTS.write_text(json.dumps(describe() | results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
