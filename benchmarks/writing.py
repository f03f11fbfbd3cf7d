"""The time to write large networks: a checkpoint of a training, and all that follows the final training.

    python benchmarks/writing.py [--widths 1024 2048 4096] [--repeats 5] [--smoke]

Networks of two dense layers of --widths. "checkpoint": from the training's tensors to the file (weights, their
average, the best weights so far and the optimizer state). "last": the weights are written, read four times, as for the
comparison with the previous network and for the temperature, and written as the model. Writes results/writing.json:
seconds per byte of weights, medians and quartiles.
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
from morphnas.run.checkpoints import CheckpointWriter
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
    """Seconds of each checkpoint."""
    generator, times = torch.Generator().manual_seed(0), list[float]()
    part = Examples(torch.randn(64, width, generator=generator), torch.arange(64) % 2)
    graph = mlp((width,), 2, width=width)
    keeper = CheckpointWriter(folder / "checkpoint", {}, weights=0)

    def keep(make: Callable[[], Checkpoint]) -> None:
        keeper._next = 0.0  # noqa: SLF001  # a checkpoint is due
        start = time.perf_counter()
        keeper(make)
        times.append(time.perf_counter() - start)

    recipe = Recipe(epochs=repeats + 1, batch_size=16)
    task = Task.of(part, part, Classification(2))
    train(to_module(graph, fresh_weights(graph)), task, recipe, NEVER, generator, keep=keep)
    assert (folder / "checkpoint").exists()
    return times


def last(width: int, repeats: int, folder: Path) -> list[float]:
    """Seconds of each repetition."""
    graph, times = mlp((width,), 2, width=width), list[float]()
    weights, store = fresh_weights(graph), Store.create(folder / "run", {})
    for _ in range(repeats):
        trial = store.claim(Proposal(graph, (), Recipe()))
        start = time.perf_counter()
        store.finish(trial.id, Outcome("finished", 0.5, epochs=1), weights)
        networks = [store.network(trial.id) for _ in range(4)]
        store.write_model(networks[-1], {})
        times.append(time.perf_counter() - start)
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
    results: dict[str, Any] = {
        "repeats": args.repeats,
        "assumed": {"checkpoint": checkpoints.SECONDS_PER_BYTE, "last": fitting.SAVING},
        "widths": {},
    }
    for width in args.widths:
        size = 4 * mlp((width,), 2, width=width).parameters
        with tempfile.TemporaryDirectory() as folder:
            ways = {
                "checkpoint": checkpoint(width, args.repeats, Path(folder)),
                "last": last(width, args.repeats, Path(folder)),
            }
        quartiles = {name: [q / size for q in statistics.quantiles(times, n=4)] for name, times in ways.items()}
        results["widths"][width] = {"bytes": size} | {
            name: {"median": f"{median:.2g}", "quartiles": [f"{low:.2g}", f"{high:.2g}"]}
            for name, (low, median, high) in quartiles.items()
        }
        print(width, results["widths"][width], flush=True)
    if not args.smoke:
        RESULTS.write_text(json.dumps(describe() | results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
