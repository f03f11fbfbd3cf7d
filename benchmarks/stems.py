"""How whitening first filters, which are not trained, should be widened by a morph.

    python benchmarks/stems.py --data cifar10.npz [--examples 4000] [--epochs 6] [--width 8] [--seeds 5]

A plain network of --width is trained for --epochs; then `WiderAll(200)` doubles its widths, and the child is trained
for as many: with filters along further directions ("further", as `fit` does), with repeated ones ("repeated", as
Net2Net does for all layers), or with repeated ones that are trained from then on ("trained"). --data: as in `rates.py`,
with another draw of images for each seed. Appends to results/stems.json the accuracy on 5,000 test images, with
test-time augmentation by horizontal flips, and the gains over "repeated".
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from ablation_recipe import task
from machine import append, gain, npz

from morphnas.graph import Network, WiderAll, cnn, to_module
from morphnas.run import work as working
from morphnas.run.jobs import Job
from morphnas.run.plan import default_recipe, measure
from morphnas.train.data import Task
from morphnas.train.deadline import NEVER
from morphnas.train.predict import predict
from morphnas.train.recipe import Recipe
from morphnas.train.trainer import load_optimizers

RESULTS = Path(__file__).parent / "results" / "stems.json"
WAYS = ("repeated", "further", "trained")


def trained(job: Job, task: Task) -> Network:
    """Run a job; its trained network, or RuntimeError if it fails."""
    outcome, weights = working.work(job, task)
    if weights is None:
        raise RuntimeError(outcome.error)
    graph = job.start if not isinstance(job.start, Network) else job.start.graph
    for morph in job.morphs:
        graph = morph.grow(graph)
    return Network(graph, weights)


def child(parent: Network, task: Task, recipe: Recipe, way: str, seed: int) -> Network:
    def carried(morph: Any, graph: Any, weights: Any, generator: Any, *_: object) -> Any:
        return morph.carry(graph, weights, generator)

    job = Job(parent, (WiderAll(200),), replace(recipe, whiten=way != "trained"), 1e9, seed)
    if way == "further":
        return trained(job, task)
    with patch.object(working, "carry_weights", carried):
        return trained(job, task)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=npz)
    parser.add_argument("--examples", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--smoke", action="store_true", help="a moment each, nothing written")
    args = parser.parse_args()
    if args.smoke:
        args.examples, args.epochs, args.seeds, args.width = 200, 1, 1, 2
    torch.set_num_threads(1)
    load_optimizers()
    accuracies: dict[str, list[float]] = {way: [] for way in WAYS}
    for seed in range(args.seeds):
        problem = task(args, seed)
        assert problem.valid is not None
        shape = tuple(problem.train.x.shape[1:])
        recipe = default_recipe(len(problem.train), problem.device, None, shape)
        recipe = replace(recipe, precision=measure(problem, 0.4, recipe).precision, epochs=args.epochs, whiten=True)
        recipe = replace(recipe, augment=replace(recipe.augment, shift=0.0, flip=True))
        parent = trained(Job(cnn(shape, problem.goal.outputs, width=args.width), (), recipe, 1e9, seed), problem)
        for way in WAYS:
            network = child(parent, problem, recipe, way, seed)
            module, x = to_module(network.graph, network.weights), problem.valid.x
            probabilities = sum(predict(module, images, problem, 512, NEVER).softmax(1) for images in (x, x.flip(-1)))
            assert isinstance(probabilities, torch.Tensor)
            accuracies[way].append((probabilities.argmax(1) == problem.valid.y).double().mean().item())
            print(f"{way}: {accuracies[way][-1]:.4f}", flush=True)
    result = {
        "data": None if args.data is None else args.data.stem,
        "examples": args.examples,
        "epochs": args.epochs,
        "width": args.width,
        "n": args.seeds,
        "accuracies": accuracies,
        "mean_test_accuracy": {way: statistics.mean(values) for way, values in accuracies.items()},
        "gains": {way: gain(accuracies["repeated"], accuracies[way]) for way in WAYS[1:]},
    }
    print(result["gains"])
    if not args.smoke:
        append(RESULTS, result)


if __name__ == "__main__":
    main()
