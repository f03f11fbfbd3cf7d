"""The benefit of user-defined metrics and losses, measured by what they optimise, on held-out examples.

    python benchmarks/objectives.py [--time-limit 30] [--seeds 5] [--only imbalanced outliers quantile]

imbalanced: scikit-learn's digits of which training has 100 % of the even ones and 6 % of the odd ones; balanced
accuracy on as many of each: with nothing set, with metric="balanced_accuracy", with sample_weight="balanced", and with
both. outliers: digits rotated by -60 to 60 degrees, the target, where 15 % of the training labels are angles of other
images; mean absolute error in degrees on correct labels: with nothing set, with metric="neg_mean_absolute_error", with
loss=torch.nn.L1Loss(), and with both. quantile: 3,000 rows of 10 features (Friedman 1991, Annals of Statistics 19,
1-67, equation 60), with noise from an exponential distribution of scale 5, and the pinball loss of the 90 % quantile
(Koenker and Bassett 1978, Econometrica 46, 33-50): the share of y below the predictions, and that loss;
compared with scikit-learn's gradient boosting of the same quantile and of the mean. A fifth is held out by each seed.
Settings take turns. Appends to results/objectives.json mean and standard error of the measures, and of the differences
from the first setting, with the machine.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from amounts import angles
from machine import append
from sklearn.datasets import load_digits, make_friedman1
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.metrics import balanced_accuracy_score, mean_absolute_error, mean_pinball_loss
from sklearn.model_selection import train_test_split

import morphnas

RESULTS = Path(__file__).parent / "results" / "objectives.json"
RARE, WRONG, QUANTILE = 0.06, 0.15, 0.9
Results = dict[str, dict[str, float]]


def fitted(kind: Any, x: Any, y: Any, seconds: float, seed: int, settings: dict[str, Any]) -> Callable[[Any], Any]:
    """The predict method of a fitted estimator."""
    weight = settings.get("sample_weight")
    arguments = {name: value for name, value in settings.items() if name != "sample_weight"}
    with tempfile.TemporaryDirectory() as folder:
        estimator = kind(Path(folder) / "run", random_state=seed, device="cpu", **arguments)
        start = time.perf_counter()
        estimator.fit(x, y, time_limit=seconds, sample_weight=weight)
        assert time.perf_counter() - start < seconds + 2
        predict: Callable[[Any], Any] = estimator.predict
        return predict


def imbalanced(seconds: float, seed: int) -> Results:
    digits = load_digits()
    x, y = (digits.images * (255 / 16)).round().astype(np.uint8), digits.target
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.2, random_state=seed, stratify=y)
    few = (y_train % 2 == 0) | (np.random.default_rng(seed).random(len(y_train)) < RARE)
    results = {}
    metric: dict[str, Any] = {"metric": "balanced_accuracy"}
    weight: dict[str, Any] = {"sample_weight": "balanced"}
    for name, settings in {"as it is": {}, "metric": metric, "weights": weight, "both": metric | weight}.items():
        predict = fitted(morphnas.ImageClassifier, x_train[few], y_train[few], seconds, seed, settings)
        results[name] = {"balanced_accuracy": balanced_accuracy_score(y_test, predict(x_test))}
    return results


def outliers(seconds: float, seed: int) -> Results:
    x, y = angles(seed)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.2, random_state=seed)
    rng = np.random.default_rng(seed)
    wrong = rng.random(len(y_train)) < WRONG
    y_train = np.where(wrong, rng.permutation(y_train), y_train)
    results = {}
    metric: dict[str, Any] = {"metric": "neg_mean_absolute_error"}
    loss: dict[str, Any] = {"loss": torch.nn.L1Loss()}
    for name, settings in {"as it is": {}, "metric": metric, "loss": loss, "both": metric | loss}.items():
        predict = fitted(morphnas.ImageRegressor, x_train, y_train, seconds, seed, settings)
        results[name] = {"mean_absolute_error": mean_absolute_error(y_test, predict(x_test))}
    return results


def pinball(predicted: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.maximum(QUANTILE * (y - predicted), (1 - QUANTILE) * (predicted - y))


def quantile(seconds: float, seed: int) -> Results:
    x, y = make_friedman1(3000, 10, random_state=seed)
    y += np.random.default_rng(seed).exponential(5, len(y))
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.2, random_state=seed)
    predicts = {
        "as it is": fitted(morphnas.ImageRegressor, x_train, y_train, seconds, seed, {}),
        "loss": fitted(morphnas.ImageRegressor, x_train, y_train, seconds, seed, {"loss": pinball}),
    }
    for name, settings in {"gradient boosting": {"loss": "quantile", "quantile": QUANTILE}, "of the mean": {}}.items():
        predicts[name] = HistGradientBoostingRegressor(random_state=seed, **settings).fit(x_train, y_train).predict
    return {
        name: {
            "below": float(np.mean(y_test < predict(x_test))),
            "pinball": mean_pinball_loss(y_test, predict(x_test), alpha=QUANTILE),
        }
        for name, predict in predicts.items()
    }


TASKS: dict[str, Callable[[float, int], Results]] = {
    "imbalanced": imbalanced,
    "outliers": outliers,
    "quantile": quantile,
}


def spread(values: list[float]) -> list[float | None]:
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return [round(statistics.mean(values), 5), None if error is None else round(error, 5)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time-limit", type=float, default=30.0)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=[*TASKS], default=[*TASKS])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--smoke", action="store_true", help="one seed, 3 s each, nothing written")
    args = parser.parse_args()
    seconds, seeds = (3.0, 1) if args.smoke else (args.time_limit, args.seeds)
    for task in args.only:
        rows = []
        for seed in range(seeds):
            rows.append(TASKS[task](seconds, seed))
            print(task, seed, rows[-1], flush=True)
        first = next(iter(rows[0]))
        means = {
            name: {
                measure: {
                    "mean": spread([row[name][measure] for row in rows]),
                    "beside the first": spread([row[name][measure] - row[first][measure] for row in rows]),
                }
                for measure in rows[0][name]
            }
            for name in rows[0]
        }
        print(task, means, flush=True)
        if not args.smoke:
            append(args.results, {"task": task, "time_limit": seconds, "n": seeds, "means": means, "fits": rows})


if __name__ == "__main__":
    main()
