"""What it takes to write large networks down: a checkpoint of a training, and all that follows the last training.

    python benchmarks/writing.py [--widths 1024 2048 4096] [--repeats 5] [--smoke]

Networks of two dense layers as wide as given. "checkpoint": from the training's tensors to the file (a network, the
mean of it, the best so far and the optimizer's). "last": the weights written, read four times, as by the comparison
with the network before and by what finds the temperature, and written as the model. Writes results/writing.json:
seconds for each byte of weights, medians and quartiles.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import describe

from morphnas.estimators import fitting
from morphnas.graph import fresh_weights, mlp, to_module
from morphnas.run import checkpoints
from morphnas.run.checkpoints import Keeper
from morphnas.run.store import Store
from morphnas.search import Proposal
from morphnas.train.checkpoint import Checkpoint
from morphnas.train.data import Examples, Task
from morphnas.train.deadline import NEVER
from morphnas.train.goal import Classification
from morphnas.train.recipe import Outcome, Recipe
from morphnas.train.trainer import train

RESULTS = Path(__file__).parent / "results" / "writing.json"


def checkpoint(width: int, repeats: int, folder: Path) -> list[float]:
    """Seconds of each."""
    generator, times = torch.Generator().manual_seed(0), list[float]()
    part = Examples(torch.randn(64, width, generator=generator), torch.arange(64) % 2)
    graph = mlp((width,), 2, width=width)
    keeper = Keeper(folder / "checkpoint", {}, weights=0)

    def keep(make: Callable[[], Checkpoint]) -> None:
        keeper._next = 0.0  # noqa: SLF001  # it is time for one
        begun = time.perf_counter()
        keeper(make)
        times.append(time.perf_counter() - begun)

    recipe = Recipe(epochs=repeats + 1, batch_size=16)
    task = Task.of(part, part, Classification(2))
    train(to_module(graph, fresh_weights(graph)), task, recipe, NEVER, generator, keep=keep)
    assert (folder / "checkpoint").exists()
    return times


def last(width: int, repeats: int, folder: Path) -> list[float]:
    """Seconds of each."""
    graph, times = mlp((width,), 2, width=width), list[float]()
    weights, store = fresh_weights(graph), Store.create(folder / "run", {})
    for _ in range(repeats):
        trial = store.claim(Proposal(graph, (), Recipe()))
        begun = time.perf_counter()
        store.finish(trial.id, Outcome("finished", 0.5, epochs=1), weights)
        networks = [store.network(trial.id) for _ in range(4)]
        store.write_model(networks[-1], {})
        times.append(time.perf_counter() - begun)
    store.close()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="a small network, nothing written")
    args = parser.parse_args()
    if args.smoke:
        args.widths, args.repeats = [64], 2
    found: dict[str, Any] = {
        "repeats": args.repeats,
        "assumed": {"checkpoint": checkpoints.WRITING, "last": fitting.SAVING},
        "widths": {},
    }
    for width in args.widths:
        size = 4 * mlp((width,), 2, width=width).parameters
        with tempfile.TemporaryDirectory() as folder:
            ways = {
                "checkpoint": checkpoint(width, args.repeats, Path(folder)),
                "last": last(width, args.repeats, Path(folder)),
            }
        told = {name: [q / size for q in statistics.quantiles(times, n=4)] for name, times in ways.items()}
        found["widths"][width] = {"bytes": size} | {
            name: {"median": f"{median:.2g}", "quartiles": [f"{low:.2g}", f"{high:.2g}"]}
            for name, (low, median, high) in told.items()
        }
        print(width, found["widths"][width], flush=True)
    if not args.smoke:
        RESULTS.write_text(json.dumps(describe() | found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
