"""R2 of `ImageRegressor.fit` on held-out examples within a time limit, compared with other regressors.

    python benchmarks/amounts.py [--time-limit 30] [--seeds 5] [--only angles friedman diabetes]
    python benchmarks/amounts.py --steep 1 0.125 0.03125 --time-limit 10 --seeds 3

angles: scikit-learn's digits, each rotated by -60 to 60 degrees, the target; compared with the network of
`handwritten.py`, trained with Adam for the same time. friedman: 3,000 rows of 10 features (Friedman 1991, Annals of
Statistics 19, 1-67, equation 60, with noise of deviation 1), diabetes: the 442 rows of scikit-learn's; compared with
scikit-learn's gradient boosting, multi-layer perceptron and ridge regression with default settings. A fifth is held out
for each seed. --steep: only morphnas, with other values of `SQUARED_ERROR_SCALE`: how many trainings diverged, or did
before they were repeated at a lower learning rate. Appends to results/amounts.json R2 on the test part, mean and
standard error, with the machine.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import handwritten
import numpy as np
import torch
from machine import append
from scipy.ndimage import rotate
from sklearn.datasets import load_diabetes, load_digits, make_friedman1
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import morphnas
from morphnas.train import goal

RESULTS = Path(__file__).parent / "results" / "amounts.json"
Data = tuple[Any, Any]


def angles(seed: int) -> Data:
    """Rotated digits (n, 8, 8) uint8, and their angles in degrees."""
    images = load_digits().images
    turned = np.random.default_rng(seed).uniform(-60, 60, len(images))
    x = np.stack([rotate(image, angle, reshape=False, order=1) for image, angle in zip(images, turned, strict=True)])
    return (x.clip(0, 16) * (255 / 16)).round().astype(np.uint8), turned


def friedman(seed: int) -> Data:
    x, y = make_friedman1(3000, 10, noise=1.0, random_state=seed)
    return x, y


def diabetes(_: int) -> Data:
    data = load_diabetes()
    return data.data, data.target


TASKS: dict[str, Callable[[int], Data]] = {"angles": angles, "friedman": friedman, "diabetes": diabetes}


def by_hand(x: Any, y: Any, seconds: float, seed: int) -> Callable[[Any], Any]:
    centre, unit = y.mean(), y.std()
    model, mean, std = handwritten.fit(x, (y - centre) / unit, seconds, False, seed, amounts=True)

    @torch.no_grad()
    def predict(images: Any) -> Any:
        outputs = model.eval()((handwritten.channels_first(images).float() - mean) / std)
        return outputs[:, 0].numpy() * unit + centre

    return predict


def others(x: Any, y: Any, seconds: float, seed: int) -> dict[str, Callable[[Any], Any]]:
    """The predict functions of the other regressors, by name."""
    if x.ndim > 2:
        return {"by hand": by_hand(x, y, seconds, seed)}
    models = {
        "gradient boosting": HistGradientBoostingRegressor(random_state=seed),
        "scikit-learn's network": make_pipeline(StandardScaler(), MLPRegressor(random_state=seed)),
        "ridge": make_pipeline(StandardScaler(), RidgeCV(np.logspace(-3, 3, 13))),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the perceptron, which has not converged
        return {name: model.fit(x, y).predict for name, model in models.items()}


def run_fit(task: str, seconds: float, seed: int, alone: bool) -> dict[str, Any]:
    x, y = TASKS[task](seed)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.2, random_state=seed)
    with tempfile.TemporaryDirectory() as folder:
        regressor = morphnas.ImageRegressor(Path(folder) / "run", random_state=seed, device="cpu")
        start = time.perf_counter()
        regressor.fit(x_train, y_train, time_limit=seconds)
        used = time.perf_counter() - start
        outcomes = [trial.outcome for trial in regressor.load_searcher().trials if trial.outcome is not None]
        row: dict[str, Any] = {"seed": seed, "seconds": round(used, 2), "steep": goal.SQUARED_ERROR_SCALE}
        row["statuses"] = [outcome.status for outcome in outcomes]
        row["diverged"] = sum(outcome.retries > 0 or outcome.status == "diverged" for outcome in outcomes)
        row["r2"] = {"morphnas": round(regressor.score(x_test, y_test), 5)}
    for name, predict in ({} if alone else others(x_train, y_train, seconds, seed)).items():
        row["r2"][name] = round(r2_score(y_test, predict(x_test)), 5)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time-limit", type=float, default=30.0)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=[*TASKS], default=[*TASKS])
    parser.add_argument("--steep", type=float, nargs="+")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--smoke", action="store_true", help="one seed, 4 s each, nothing written")
    args = parser.parse_args()
    seconds, seeds = (4.0, 1) if args.smoke else (args.time_limit, args.seeds)
    for task in args.only:
        for steep in args.steep or [goal.SQUARED_ERROR_SCALE]:
            goal.SQUARED_ERROR_SCALE = steep
            rows = []
            for seed in range(seeds):
                rows.append(run_fit(task, seconds, seed, alone=bool(args.steep)))
                print(task, rows[-1], flush=True)
            means = {}
            for name in rows[0]["r2"]:
                values = [row["r2"][name] for row in rows]
                error = None if len(values) < 2 else round(statistics.stdev(values) / math.sqrt(len(values)), 5)
                means[name] = {"r2": round(statistics.mean(values), 5), "standard_error": error}
            counts = {"diverged": sum(r["diverged"] for r in rows), "trainings": sum(len(r["statuses"]) for r in rows)}
            print(task, steep, counts, means, flush=True)
            if not args.smoke:
                how = {"task": task, "time_limit": seconds, "n": seeds, "steep": steep}
                append(args.results, how | counts | {"means": means, "fits": rows})


if __name__ == "__main__":
    main()
