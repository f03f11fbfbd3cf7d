"""Ablation of the training recipe: one network, trained for the same time with and without each part of it.

    python benchmarks/ablation_recipe.py --data mnist.npz --examples 6000 --seconds 20 --seeds 5 [--only average]

The network is a starter, `cnn` of --width; --data is an .npz with x_train, y_train, x_test, y_test, of which --examples
random training images (another draw for each seed) and up to 5,000 random test images are used; without --data
scikit-learn's digits, a stratified fifth held out. The variants take turns within a seed, so that other load on the
machine affects all of them. Appends to results/ablation_recipe.json the mean test accuracy of every variant, and the
mean and the standard error of its difference from the base over seeds.
"""

from __future__ import annotations

import argparse
import math
import statistics
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from handwritten import channels_first
from images import digits
from machine import append, npz

from morphnas.graph import cnn
from morphnas.run.final import STRONG_CUTOUT, STRONG_SHIFT
from morphnas.run.jobs import Job
from morphnas.run.plan import Pace, default_recipe, measure
from morphnas.run.work import grow_network
from morphnas.train import step
from morphnas.train.data import Examples, Task
from morphnas.train.deadline import Deadline
from morphnas.train.goal import Classification
from morphnas.train.predict import predict
from morphnas.train.recipe import Augment, Recipe, default_learning_rate
from morphnas.train.trainer import load_optimizers, train

FULL_RATE_FAN_IN = {f"full rate of dense layers of up to {wide} inputs": wide for wide in (64, 1024, math.inf)}
"""Variants of the constant `morphnas.train.step.FULL_RATE_FAN_IN`."""
LARGE = "convolutions begin 2.5 times as large"
CHANGED = "shifted farther, and a part cut out"
"""The strong augmentation that `morphnas.run.final` uses if a network has memorised its training images."""
MIRRORED = "mirror images are read as well"
RESULTS = Path(__file__).parent / "results" / "ablation_recipe.json"


def task(args: argparse.Namespace, seed: int) -> Task:
    """The training examples, with the test examples as validation set; they are used once, at the end."""
    if args.data is None:
        x, x_test, y, y_test = digits(seed)
    else:
        rng = np.random.default_rng(seed)
        with np.load(args.data, allow_pickle=False) as file:
            indices = rng.permutation(len(file["y_train"]))[: args.examples]
            x, y = file["x_train"][indices], file["y_train"][indices]
            test_indices = rng.permutation(len(file["y_test"]))[:5000]
            x_test, y_test = file["x_test"][test_indices], file["y_test"][test_indices]
    train_part, test_part = (
        Examples(channels_first(a), torch.from_numpy(b.astype(np.int64))) for a, b in ((x, y), (x_test, y_test))
    )
    return Task.of(train_part, test_part, Classification(int(y.max()) + 1))


def variants(base: Recipe, flip: bool) -> dict[str, Recipe]:
    """The base recipe, and recipes that differ from it in one setting, by name."""
    change = base.augment
    recipes = {
        "base": base,
        "float32": replace(base, precision="float32"),
        "eager": replace(base, cuda_graphs=False),
        "sgd": replace(base, optimizer="sgd"),
        **{
            f"adamw{words}": replace(
                base, optimizer="adamw", lr=factor * default_learning_rate("adamw", base.batch_size)
            )
            for words, factor in (
                ("", 1.0),
                (" at half its rate", 0.5),
                (" at twice its rate", 2.0),
                (" at a tenth of its rate", 0.1),
            )
        },
        "shift 0.03": replace(base, augment=replace(change, shift=0.03)),
        "shift 0.1": replace(base, augment=replace(change, shift=0.1)),
        CHANGED: replace(base, augment=replace(change, shift=STRONG_SHIFT, cutout=STRONG_CUTOUT)),
        "rotate 10": replace(base, augment=replace(change, rotate=10.0)),
        "zoom 0.1": replace(base, augment=replace(change, zoom=0.1)),
        "brightness 0.2": replace(base, augment=replace(change, brightness=0.2)),
        "contrast 0.2": replace(base, augment=replace(change, contrast=0.2)),
        "upside down": replace(base, augment=replace(change, flip_vertical=True)),
        "cutout 0.25": replace(base, augment=replace(change, cutout=0.25)),
        "no label smoothing": replace(base, label_smoothing=0.0),
        "bias_rate 8": replace(base, bias_rate=8.0),
        "bias_rate 64": replace(base, bias_rate=64.0),
        "average 1": replace(base, average=1.0),
        "half the rate": replace(base, lr=base.lr / 2),
        "twice the rate": replace(base, lr=base.lr * 2),
        LARGE: base,
        **dict.fromkeys(FULL_RATE_FAN_IN, base),
        "trained first filters" if base.whiten else "whitening first filters": replace(base, whiten=not base.whiten),
        "half the batch": replace(base, batch_size=max(1, base.batch_size // 2), lr=base.lr / 2**0.5),
        "twice the batch": replace(base, batch_size=base.batch_size * 2, lr=base.lr * 2**0.5),
        "no weight decay": replace(base, weight_decay=0.0),
    }
    return recipes | ({"no flip": replace(base, augment=replace(change, flip=False)), MIRRORED: base} if flip else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=npz)
    parser.add_argument("--examples", type=int, default=6000)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--flip", action="store_true", help="mirrored images keep their label")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--only", nargs="*", help="variants whose names begin so")
    parser.add_argument("--smoke", action="store_true", help="a second each, nothing written")
    args = parser.parse_args()
    if args.smoke:
        args.seconds, args.seeds = 0.5, 1
    load_optimizers()
    accuracies: dict[str, list[float]] = {}
    epochs: dict[str, list[int]] = {}
    pace: Pace | None = None
    for seed in range(args.seeds):
        problem = task(args, seed).to(args.device)
        n = len(problem.train)
        recipe = default_recipe(n, args.device, None, tuple(problem.train.x.shape[1:]))
        pace = pace or measure(problem, 0.4 if args.device.type == "cpu" else 20.0, recipe)
        measured_recipe = replace(recipe, precision=pace.precision, cuda_graphs=pace.cuda_graphs)
        base = replace(measured_recipe, epochs=100_000, augment=Augment(flip=args.flip))
        graph = cnn(tuple(problem.train.x.shape[1:]), problem.goal.outputs, width=args.width, depth=4)
        for name, variant in variants(base, args.flip).items():
            if args.only and name != "base" and not name.startswith(tuple(args.only)):
                continue
            deadline = Deadline.after(args.seconds)
            module, _ = grow_network(Job(graph, (), variant, args.seconds, seed), problem, deadline)
            if name == LARGE:
                with torch.no_grad():
                    for weight in module.parameters():
                        weight.mul_(2.5 if weight.ndim > 2 else 1.0)
            generator = torch.Generator().manual_seed(seed)
            torch.manual_seed(seed)
            with patch.object(step, "FULL_RATE_FAN_IN", FULL_RATE_FAN_IN.get(name, step.FULL_RATE_FAN_IN)):
                outcome = train(module, problem, variant, deadline, generator, scored=False)
            logits = predict(module, problem.evaluation_set.x, problem, mirrored=name == MIRRORED)
            accuracies.setdefault(name, []).append(
                (logits.argmax(1) == problem.evaluation_set.y).double().mean().item()
            )
            epochs.setdefault(name, []).append(outcome.epochs)
    figures = {}
    for name, values in accuracies.items():
        gains = [value - base for value, base in zip(values, accuracies["base"], strict=True)]
        error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else None
        figures[name] = {
            "mean_test_accuracy": round(statistics.mean(values), 5),
            "gain": round(statistics.mean(gains), 5),
            "standard_error_of_gain": None if error is None else round(error, 5),
            "epochs": epochs[name],
        }
        print(f"{name:20s} {figures[name]}", flush=True)
    if not args.smoke:
        settings = {
            "data": "digits" if args.data is None else args.data.stem, "examples": n, "seconds": args.seconds,
            "n": args.seeds, "network": f"cnn, width {args.width}, depth 4", "base": base.to_json(),
        }  # fmt: skip
        append(RESULTS, settings | {"variants": figures})


if __name__ == "__main__":
    main()
