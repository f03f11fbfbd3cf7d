r"""Learning rate, first convolution, depth and augmentation by number of examples and epochs, in complete trainings.

    python benchmarks/rates.py --data cifar10.npz --examples 50000 --epochs 6 --seeds 2 [--flip] [--only "whole, half"]
    python benchmarks/rates.py --data cifar10.npz --examples 20000 --epochs 8 --flip --only \
        "whole, eased" "short, eased"

A residual network works at full resolution ("whole", of --width), pools after its first convolution ("pooled", twice as
wide, which costs as many FLOPs), or has full resolution but lacks its last residual block ("short"). It is trained with
the usual learning rate of short trainings ("full"), with half of it ("half"), or as `fit` does ("eased", see
`Recipe.lr_examples`). Images are shifted by a pixel of 32; "farther": by two, with a cutout of a quarter of their
sides; "far": by four, with the same cutout, the strong augmentation that `fit` uses if training images are memorised.
--data: an .npz with x_train, y_train, x_test, y_test, of which --examples random training images are used, another draw
for each seed, and 5,000 test images. Appends to results/rates.json the test accuracy and log loss of each, predicted as
by the final model (with test-time augmentation if there are flips), and the training time in seconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from unittest.mock import patch

import torch
from ablation_recipe import task
from machine import append, npz
from torch.nn.functional import nll_loss

from morphnas.graph import Graph, resnet, starters
from morphnas.run.final import STRONG_CUTOUT, STRONG_SHIFT
from morphnas.run.jobs import Job
from morphnas.run.plan import default_recipe, measure
from morphnas.run.work import grow_network
from morphnas.train.deadline import NEVER
from morphnas.train.predict import predict
from morphnas.train.recipe import DEFAULT_SHIFT, Augment
from morphnas.train.trainer import load_optimizers, train

RESULTS = Path(__file__).parent / "results" / "rates.json"
CHANGES = {
    "": Augment(shift=DEFAULT_SHIFT),
    "farther": Augment(shift=0.0625, cutout=STRONG_CUTOUT),
    "far": Augment(shift=STRONG_SHIFT, cutout=STRONG_CUTOUT),
}
STEMS, RATES = ("whole", "pooled", "short"), ("full", "half", "eased")
WAYS = tuple(", ".join(filter(None, way)) for way in product(STEMS, RATES, CHANGES))


def without_last(graph: Graph) -> Graph:
    """A residual network without its last residual block."""
    names = [node.name for node in graph.nodes]
    last = next(node for node in reversed(graph.nodes) if node.op.tag == "add")
    start = last.inputs[1]
    after = [
        replace(node, inputs=tuple(start if name == last.name else name for name in node.inputs))
        for node in graph.nodes[names.index(last.name) + 1 :]
    ]
    return Graph((*graph.nodes[: names.index(start) + 1], *after))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=npz)
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--flip", action="store_true", help="mirrored images keep their label")
    parser.add_argument("--only", nargs="*", choices=WAYS, default=[way for way in WAYS if "far" not in way])
    parser.add_argument("--smoke", action="store_true", help="a moment each, nothing written")
    args = parser.parse_args()
    if args.smoke:
        args.examples, args.epochs, args.seeds, args.width = 200, 1, 1, 2
    torch.set_num_threads(1)
    load_optimizers()
    accuracies: dict[str, list[float]] = {way: [] for way in args.only}
    losses: dict[str, list[float]] = {way: [] for way in args.only}
    seconds: dict[str, list[float]] = {way: [] for way in args.only}
    for seed in range(args.seeds):
        problem = task(args, seed)
        assert problem.valid is not None
        shape, n = tuple(problem.train.x.shape[1:]), len(problem.train)
        recipe = default_recipe(n, problem.device, None, shape)
        pace = measure(problem, 0.4, recipe)
        recipe = replace(recipe, precision=pace.precision, epochs=args.epochs)
        rates = {"full": {"lr_examples": None}, "half": {"lr_examples": None, "lr": recipe.lr / 2}, "eased": {}}
        for way in args.only:
            stem, rate, *shifts = way.split(", ")
            change = replace(CHANGES[shifts[0] if shifts else ""], flip=args.flip)
            with patch.object(starters, "MIN_SIZE_FOR_POOLED_STEM", 1 if stem == "pooled" else 1024):
                graph = resnet(shape, problem.goal.outputs, width=args.width * (1 + (stem == "pooled")))
            graph = without_last(graph) if stem == "short" else graph
            way_recipe = replace(recipe, augment=change, **rates[rate])  # type: ignore[arg-type]
            module, _ = grow_network(Job(graph, (), way_recipe, 1e9, seed), problem)
            torch.manual_seed(seed)
            started = time.perf_counter()
            train(module, problem, way_recipe, NEVER, torch.Generator().manual_seed(seed), scored=False)
            seconds[way].append(time.perf_counter() - started)
            x, y = problem.valid.x, problem.valid.y
            probabilities = predict(module, x, problem, 512, NEVER).softmax(1)
            if args.flip:
                probabilities = (probabilities + predict(module, x.flip(-1), problem, 512, NEVER).softmax(1)) / 2
            accuracies[way].append((probabilities.argmax(1) == y).double().mean().item())
            losses[way].append(nll_loss(probabilities.clamp(min=1e-7).log(), y.long()).item())
            message = f"{accuracies[way][-1]:.4f}, log loss {losses[way][-1]:.4f}, after {seconds[way][-1]:.0f} s"
            print(f"{way}: {message}, {graph.flops / 1e6:.0f} MFLOPs", flush=True)
    result = {
        "data": None if args.data is None else args.data.stem,
        "examples": args.examples,
        "epochs": args.epochs,
        "n": args.seeds,
        "width": args.width,
        "accuracies": accuracies,
        "mean_test_accuracy": {way: statistics.mean(values) for way, values in accuracies.items()},
        "mean_log_loss": {way: statistics.mean(values) for way, values in losses.items()},
        "seconds": {way: statistics.mean(values) for way, values in seconds.items()},
    }
    if not args.smoke:
        append(RESULTS, result)


if __name__ == "__main__":
    main()
