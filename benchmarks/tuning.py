"""The gain by searching hyperparameters along with networks: fits of equal time with and without it, in turns.

    python benchmarks/tuning.py [--time-limit 30] [--seeds 3] [--only mixture] [--data fashion=fashion_mnist.npz]

Rows of features, of which 40 % are held out for each seed. mixture: 2,500 rows of 40 features, 20 of which are
uninformative, of four classes in several clusters each, 5 % of the labels wrong (scikit-learn's make_classification).
friedman: 2,500 rows of 10 features (Friedman 1991, Annals of Statistics 19, 1-67, equation 60, with noise of deviation
1). diabetes, cancer: the 442 and 569 rows of scikit-learn's. digits: its 1,797 images as rows. NAME=FILE: 2,500 images
of an .npz with x_train, y_train, x_test, y_test, as rows. Compared with scikit-learn's gradient boosting with default
settings. "set": the defaults of `fit`; "light": a tenth of their weight decay; "searched": the ranges of WAYS. Appends
to results/tuning.json the accuracy or R2 on the held-out part, the gains over "set" with their standard errors, and how
many networks were tried.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import append, gain, npz
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, make_classification, make_friedman1
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.model_selection import train_test_split

import morphnas

RESULTS = Path(__file__).parent / "results" / "tuning.json"
WAYS: dict[str, dict[str, Any]] = {
    "set": {},
    "light": {"weight_decay": 5e-4},
    "searched": {"lr": (0.025, 0.4), "weight_decay": (5e-4, 5e-2), "dropout": (0.0, 0.5)},
}
Data = tuple[Any, Any, bool]
"""x, y, and whether y are classes."""


def mixture(seed: int) -> Data:
    how = {"n_informative": 12, "n_redundant": 8, "n_classes": 4, "flip_y": 0.05, "class_sep": 0.7}
    return *make_classification(2500, 40, **how, random_state=seed), True


def friedman(seed: int) -> Data:
    return *make_friedman1(2500, 10, noise=1.0, random_state=seed), False


ROWS: dict[str, Any] = {
    "mixture": mixture,
    "friedman": friedman,
    "diabetes": lambda _: (*load_diabetes(return_X_y=True), False),
    "cancer": lambda _: (*load_breast_cancer(return_X_y=True), True),
    "digits": lambda _: (*load_digits(return_X_y=True), True),
}


def images(path: Path, seed: int) -> Data:
    with np.load(path, allow_pickle=False) as file:
        indices = np.random.default_rng(seed).permutation(len(file["y_train"]))[:2500]
        return file["x_train"][indices].reshape(len(indices), -1), file["y_train"][indices], True


def run_fits(data: Data, seconds: float, seed: int) -> dict[str, Any]:
    x, y, classes = data
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.4, random_state=seed, stratify=y if classes else None)
    results: dict[str, Any] = {}
    for way, trainer_args in WAYS.items():
        with tempfile.TemporaryDirectory() as folder:
            kind = morphnas.ImageClassifier if classes else morphnas.ImageRegressor
            model = kind(Path(folder) / "run", random_state=seed, searcher_args={"trainer_args": trainer_args})
            start = time.perf_counter()
            model.fit(x, y, time_limit=seconds)
            took = time.perf_counter() - start
            run = model.load_searcher()
            recipe = run.trial(run.get_best_model_id()).proposal.recipe
            results[way] = {
                "score": model.score(x_test, y_test),
                "seconds": took,
                "networks": sum(not trial.final for trial in run.trials),
                "winner": {name: getattr(recipe, name) for name in ("lr", "weight_decay", "dropout")},
            }
    boosting = HistGradientBoostingClassifier if classes else HistGradientBoostingRegressor
    results["gradient boosting"] = {"score": boosting(random_state=seed).fit(x, y).score(x_test, y_test)}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time-limit", type=float, default=30.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=ROWS, default=list(ROWS))
    parser.add_argument("--data", nargs="*", default=[], metavar="NAME=FILE")
    parser.add_argument("--smoke", action="store_true", help="one seed of one, 8 s each, nothing written")
    args = parser.parse_args()
    if args.smoke:
        args.time_limit, args.seeds, args.only = 8.0, 1, args.only[:1]
    files = {name: npz(file) for name, _, file in (text.partition("=") for text in args.data)}
    sets: dict[str, Any] = {name: ROWS[name] for name in args.only}
    sets |= {name: partial(images, path) for name, path in files.items()}
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", morphnas.DataWarning)
    for name, make in sets.items():
        fits = [run_fits(make(seed), args.time_limit, seed) for seed in range(args.seeds)]
        scores = {way: [fit[way]["score"] for fit in fits] for way in fits[0]}
        for way, values in scores.items():
            print(f"{name}, {way}: {statistics.mean(values):.4f}", [fit[way] for fit in fits], flush=True)
        means = {way: statistics.mean(values) for way, values in scores.items()}
        result = {"data": name, "time_limit": args.time_limit, "n": args.seeds, "score": means}
        result |= {"searched_over_set": gain(scores["set"], scores["searched"])}
        result |= {"light_over_set": gain(scores["set"], scores["light"]), "fits": fits}
        print(result["searched_over_set"], result["light_over_set"], flush=True)
        if not args.smoke:
            append(RESULTS, result)


if __name__ == "__main__":
    main()
