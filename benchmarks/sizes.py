"""The best size of a network for a given time: networks of several sizes, each trained for the same time.

    python benchmarks/sizes.py --data cifar10.npz --examples 6000 --seconds 36 --seeds 2 [--flip --shift 0.03]
    python benchmarks/sizes.py --data cifar10.npz --seconds 200 --seeds 2 --flip --shift 0.03 --only "cnn, width 48" +
    python benchmarks/sizes.py --data cifar10.npz --examples 2000 --side 20 --seconds 20 --widths 12 24 48 --only \
        "pooled: cnn" "whole: cnn" "pooled: res" "whole: res"

Names with "+" are networks made from a plain one by morphs, to measure the effect of shape at equal time. --side:
images are reduced to this side by area averaging; then starters named "pooled" pool after their first convolution, and
those named "whole" do not, see `MIN_SIZE_FOR_POOLED_STEM` in `morphnas.graph.starters`. The final trainings of a run
take about as long as these: `morphnas.run.plan` sizes starters by these results. --data: an .npz with x_train, y_train,
x_test, y_test, see `ablation_recipe.py`, whose splits and recipe these are; without it scikit-learn's digits. The
networks take turns within a seed. Appends to results/sizes.json the epochs and the test accuracies of every network.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from ablation_recipe import task
from machine import append, npz
from torch.nn import functional as F

from morphnas.graph import (
    AddSkip,
    ConcatSkip,
    Conv,
    Deeper,
    Graph,
    ReLU,
    Shape,
    Wider,
    cnn,
    densenet,
    resnet,
    starters,
)
from morphnas.run.jobs import Job
from morphnas.run.plan import default_recipe, measure
from morphnas.run.work import grow_network
from morphnas.train.data import Examples, Task
from morphnas.train.deadline import Deadline
from morphnas.train.predict import predict
from morphnas.train.recipe import Augment
from morphnas.train.trainer import load_optimizers, train

RESULTS = Path(__file__).parent / "results" / "sizes.json"


def networks(shape: Shape, n_classes: int, widths: Sequence[int], both: bool) -> dict[str, Graph]:
    """Starters by name. both: variants with and without pooling after the first convolution."""
    if not both:
        return starters_of(shape, n_classes, widths)
    graphs: dict[str, Graph] = {}
    for words, least in (("pooled", 1), ("whole", 1 + min(shape[1:]))):
        with patch.object(starters, "MIN_SIZE_FOR_POOLED_STEM", least):
            graphs |= {f"{words}: {name}": graph for name, graph in starters_of(shape, n_classes, widths).items()}
    return graphs


def starters_of(shape: Shape, n_classes: int, widths: Sequence[int]) -> dict[str, Graph]:
    graphs = {f"cnn, width {w}": cnn(shape, n_classes, width=w, depth=4) for w in widths or (8, 16, 24, 32, 48, 64)}
    return graphs | {
        **{f"resnet, width {w}": resnet(shape, n_classes, width=w, depth=2) for w in widths or (16, 24, 32, 48)},
        **{f"densenet, width {w}": densenet(shape, n_classes, width=w, depth=6) for w in widths or (16, 32, 48)},
    }


def morphed(shape: Shape, n_classes: int) -> dict[str, Graph]:
    """Networks that a search could reach from plain networks of width 32 and 24, by name."""
    plain, narrow = (cnn(shape, n_classes, width=w, depth=4) for w in (32, 24))
    first, second, third, last = (node.name for node in plain.nodes if isinstance(node.op, ReLU))
    deeper, skips, residual, wide = plain, plain, plain, narrow
    for name in (second, third, last):
        deeper = Deeper(name).grow(deeper)
    for name in (first, second):
        skips = ConcatSkip(name, last).grow(skips)
    for name in (second, third):
        end = name
        for _ in range(2):
            morph, before = Deeper(end), residual
            residual = morph.grow(before)
            end = next(n.name for n in residual.nodes if n.name not in before and isinstance(n.op, ReLU))
        residual = AddSkip(name, end).grow(residual)
    *_, late, final = (node.name for node in narrow.nodes if isinstance(node.op, Conv))
    for name, width in ((late, 192), (final, 384)):
        wide = Wider(name, width).grow(wide)
    short = ConcatSkip(second, last).grow(Deeper(third).grow(wide))
    return {
        "+ 3 deeper": deeper,
        "+ 2 concatenating skips to the end": skips,
        "+ 2 residual pairs": residual,
        "+ wider at the end": wide,
        "+ wider at the end, deeper, concatenating skip": short,
    }


def reduced(problem: Task, side: int) -> Task:
    def smaller(part: Examples) -> Examples:
        return Examples(F.interpolate(part.x.float(), size=(side, side), mode="area").round().to(part.x.dtype), part.y)

    return Task.of(smaller(problem.train), smaller(problem.evaluation_set), problem.goal)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=npz)
    parser.add_argument("--examples", type=int, default=6000)
    parser.add_argument("--seconds", type=float, default=36.0)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--side", type=int, help="reduce images to so many pixels")
    parser.add_argument("--flip", action="store_true", help="mirrored images keep their label")
    parser.add_argument("--shift", type=float, default=0.0, help="how far images are moved, as a share of their size")
    parser.add_argument("--widths", nargs="*", type=int, default=[], help="instead of some from 8 to 64")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--only", nargs="*", default=[""], help="networks whose names begin so")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--smoke", action="store_true", help="half a second each, nothing written")
    args = parser.parse_args()
    example = networks((3, 32, 32), 10, args.widths, args.side is not None) | morphed((3, 32, 32), 10)
    if not any(name.startswith(tuple(args.only)) for name in example):
        parser.error(f"no network's name begins with {' or '.join(args.only)}")
    if args.side is not None and args.side < 1:
        parser.error(f"--side must be at least a pixel, not {args.side}")
    if args.smoke:
        args.seconds, args.seeds = 0.5, 1
    load_optimizers()
    results: dict[str, dict[str, Any]] = {}
    for seed in range(args.seeds):
        problem = task(args, seed)
        if args.side is not None:
            problem = reduced(problem, args.side)
        problem = problem.to(args.device)
        shape = tuple(problem.train.x.shape[1:])
        default = default_recipe(len(problem.train), args.device, None, shape)
        pace = measure(problem, 0.4 if args.device.type == "cpu" else 20.0, default)
        measured_recipe = replace(default, precision=pace.precision, cuda_graphs=pace.cuda_graphs)
        recipe = replace(measured_recipe, epochs=100_000, augment=Augment(args.shift, args.flip))
        graphs = networks(shape, problem.goal.outputs, args.widths, args.side is not None) | morphed(
            shape, problem.goal.outputs
        )
        for name, graph in graphs.items():
            if not name.startswith(tuple(args.only)):
                continue
            deadline, generator = Deadline.after(args.seconds), torch.Generator().manual_seed(seed)
            module, _ = grow_network(Job(graph, (), recipe, args.seconds, seed), problem, deadline)
            outcome = train(module, problem, recipe, deadline, generator, scored=False)
            right = (
                predict(module, problem.evaluation_set.x, problem, mirrored=args.flip).argmax(1)
                == problem.evaluation_set.y
            )
            about = {"parameters": graph.parameters, "work": graph.work, "passes": [], "test_accuracy": []}
            row = results.setdefault(name, about)
            row["passes"].append(round(outcome.images_per_second * outcome.seconds / len(problem.train), 1))
            row["test_accuracy"].append(round(right.double().mean().item(), 5))
            print(seed, name, row["passes"][-1], row["test_accuracy"][-1], flush=True)
    for name, row in results.items():
        print(f"{name:28s} {row['parameters']:>9,} parameters {statistics.mean(row['test_accuracy']):.4f}")
    if not args.smoke:
        settings = {
            "data": "digits" if args.data is None else args.data.stem, "examples": len(problem.train),
            "side": args.side, "seconds": args.seconds, "flip": args.flip, "shift": args.shift, "n": args.seeds,
        }  # fmt: skip
        append(args.results, settings | {"networks": results})


if __name__ == "__main__":
    main()
