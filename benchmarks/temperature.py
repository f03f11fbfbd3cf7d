"""The benefit of a calibration temperature from a briefly trained network for the final network.

    python benchmarks/temperature.py [--data mnist.npz fashion_mnist.npz cifar10.npz] [--time-limit 12] [--seeds 3]

In short fits of few examples, in which nothing is compared before the final training, the temperature comes from a
network of the search, which was trained briefly, since the final network has been trained on the held-out examples. On
scikit-learn's data, and on 600 and 2,000 images of each file of --data: the log loss on test examples with that
network's temperature ("full"), with the one that `fit` uses ("fit"), without one ("none"), and with the best one for
the test examples ("best"). Appends to results/temperature.json the means over seeds.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from machine import append, npz
from sklearn import datasets
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

import morphnas
from morphnas.train.goal import Classification

RESULTS = Path(__file__).parent / "results" / "temperature.json"
Parts = tuple[Any, Any, Any, Any]


def split(x: Any, y: Any, seed: int, n: int | None = None) -> Parts:
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.4, random_state=seed, stratify=y)
    return x[:n], x_test, y[:n], y_test


def of_file(path: Path, n: int, seed: int) -> Parts:
    with np.load(path) as held:
        x, y, x_test, y_test = (held[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    chosen = np.random.default_rng(seed).choice(len(x), n, replace=False)
    return x[chosen], x_test[:3000], y[chosen], y_test[:3000]


def sets(files: list[Path]) -> dict[str, Callable[[int], Parts]]:
    """Functions from a seed to the splits of a data set, by name."""
    digits, wine, cancer = datasets.load_digits(), datasets.load_wine(), datasets.load_breast_cancer()
    noisy = datasets.make_classification(800, 20, n_informative=5, flip_y=0.3, random_state=0)
    splits: dict[str, Callable[[int], Parts]] = {
        "digits, 300": lambda seed: split(digits.images, digits.target, seed, 300),
        "digits": lambda seed: split(digits.images, digits.target, seed),
        "wine": lambda seed: split(wine.data, wine.target, seed),
        "breast cancer": lambda seed: split(cancer.data, cancer.target, seed),
        "rows, 30 % of labels wrong": lambda seed: split(noisy[0], noisy[1], seed),
    }
    for path in files:
        for n in (600, 2000):
            splits[f"{path.stem}, {n}"] = partial(of_file, path, n)
    return splits


def losses(parts: Parts, seconds: float, seed: int) -> dict[str, float] | None:
    """Log losses on the test part by temperature; None if that did not come from a network of the search."""
    x, x_test, y, y_test = parts
    temperatures, original = dict[bool, float](), Classification.temperature

    def noted(*args: Any, **settings: Any) -> float:
        temperatures[settings.get("cautious", True)] = original(*args, **settings)
        return temperatures[settings.get("cautious", True)]

    with tempfile.TemporaryDirectory() as folder, patch.object(Classification, "temperature", noted):
        fitted = morphnas.ImageClassifier(Path(folder) / "run", random_state=seed, device="cpu")
        fitted.fit(x, y, time_limit=seconds)
        own = fitted._model.temperature  # noqa: SLF001
        logits = np.log(np.clip(fitted.predict_proba(x_test), 1e-12, 1)) * own
    if False not in temperatures:
        return None

    def at(temperature: float) -> float:
        likelihoods = np.exp((logits - logits.max(1, keepdims=True)) / temperature)
        return float(log_loss(y_test, likelihoods / likelihoods.sum(1, keepdims=True), labels=fitted.classes_))

    best = min(map(at, np.geomspace(0.1, 10, 100)))
    return {"full": at(temperatures[True]), "fit": at(own), "none": at(1.0), "best": best}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=npz, nargs="*", default=[])
    parser.add_argument("--time-limit", type=float, default=12.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="one fit of 4 s, nothing written")
    args = parser.parse_args()
    results: dict[str, dict[str, Any]] = {}
    for name, parts in sets(args.data).items():
        if args.smoke and name != "digits, 300":
            continue
        seeds = range(1 if args.smoke else args.seeds)
        fits = [fits for seed in seeds if (fits := losses(parts(seed), 4.0 if args.smoke else args.time_limit, seed))]
        if fits:
            results[name] = {way: round(statistics.mean(fit[way] for fit in fits), 4) for way in fits[0]} | {
                "n": len(fits),
                "fit_to_none": round(math.exp(statistics.mean(math.log(o["fit"] / o["none"]) for o in fits)), 3),
            }
            print(name, results[name], flush=True)
    if not args.smoke:
        append(RESULTS, {"seconds": args.time_limit, "log_loss": results})


if __name__ == "__main__":
    main()
