"""The gain by starting from a network trained on other classes: `initial_networks=[classifier.network_]`.

    python benchmarks/transfer.py --data cifar10.npz [--source 300] [--time-limit 60] [--examples 500 2000] [--seeds 3]

A classifier is fitted to all images of the classes with even numbers for `--source` seconds. Then, for every seed, two
fits of equal time get `--examples` images of the other classes, one from scratch and one starting from that network;
which of the two is first alternates. Both are evaluated on the test images of these classes. Without --data, and with
--smoke, scikit-learn's digits. Appends to results/transfer.json.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from images import digits
from machine import append, gain, npz

import morphnas

RESULTS = Path(__file__).parent / "results" / "transfer.json"


def fitted(
    x: Any, y: Any, seconds: float, seed: int, networks: list[morphnas.Network] | None
) -> morphnas.ImageClassifier:
    """A fitted classifier; its run is not kept."""
    with tempfile.TemporaryDirectory() as folder:
        classifier = morphnas.ImageClassifier(
            Path(folder) / "run", random_state=seed, initial_networks=networks, device="cpu"
        )
        return classifier.fit(x, y, time_limit=seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=npz)
    parser.add_argument("--source", type=float, default=300.0, help="seconds")
    parser.add_argument("--time-limit", type=float, default=60.0)
    parser.add_argument("--examples", type=int, nargs="+", default=[500, 2000])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--smoke", action="store_true", help="digits, 4 s each, one seed, nothing written")
    args = parser.parse_args()
    if args.smoke:
        args.source, args.time_limit, args.examples, args.seeds, args.data = 4.0, 4.0, [60], 1, None
    if args.data is None:
        x_train, x_test, y_train, y_test = digits(0)
    else:
        with np.load(args.data, allow_pickle=False) as file:
            x_train, x_test = file["x_train"], file["x_test"]
            y_train, y_test = file["y_train"].ravel(), file["y_test"].ravel()
    known, new, tested = y_train % 2 == 0, np.flatnonzero(y_train % 2 == 1), y_test % 2 == 1
    source = fitted(x_train[known], y_train[known], args.source, 0, None)
    before = source.evaluate(x_test[~tested], y_test[~tested])
    print(f"{source.network_.graph.parameters:,} parameters, {before:.2%} of the classes known before", flush=True)
    for n in args.examples:
        accuracies: dict[str, list[float]] = {"afresh": [], "transferred": []}
        for seed in range(args.seeds):
            indices = np.random.default_rng(seed).choice(new, n, replace=False)
            for name in sorted(accuracies, reverse=seed % 2 == 1):
                networks = None if name == "afresh" else [source.network_]
                classifier = fitted(x_train[indices], y_train[indices], args.time_limit, seed, networks)
                accuracies[name].append(round(classifier.evaluate(x_test[tested], y_test[tested]), 5))
                print(n, seed, name, f"{accuracies[name][-1]:.2%}", flush=True)
        result = {
            "data": args.data.stem if args.data else "digits", "examples": n, "time_limit": args.time_limit,
            "source": {"seconds": args.source, "examples": int(known.sum()), "test_accuracy": round(before, 5)},
            **gain(accuracies["afresh"], accuracies["transferred"]), "test_accuracies": accuracies,
        }  # fmt: skip
        print(result, flush=True)
        if not args.smoke:
            append(args.results, result)


if __name__ == "__main__":
    main()
