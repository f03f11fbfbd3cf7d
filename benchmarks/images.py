"""What `ImageClassifier.fit` reaches on held-out images within a time limit, and whether it keeps to the limit.

    python benchmarks/images.py --data mnist.npz --time-limit 300 [--seeds 3] [--device cpu]
    python benchmarks/images.py --digits --time-limit 45 --seeds 5

--data: an .npz with x_train, y_train, x_test, y_test; the test part is looked at once per seed, after the fit.
--digits: scikit-learn's digits, a stratified fifth held out by each seed (random_state = seed). Results are appended to
results/images.json, with the machine, the mean and the spread over seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import morphnas
from morphnas.run.search import is_final
from morphnas.search import lineage

RESULTS = Path(__file__).parent / "results" / "images.json"


def data(args: argparse.Namespace, seed: int) -> tuple[Any, Any, Any, Any]:
    """x_train, x_test, y_train, y_test."""
    if args.digits:
        digits = load_digits()
        images = (digits.images * (255 / 16)).round().astype(np.uint8)
        x_train, x_test, y_train, y_test = train_test_split(
            images, digits.target, test_size=0.2, stratify=digits.target, random_state=seed
        )
        return x_train, x_test, y_train, y_test
    with np.load(args.data, allow_pickle=False) as file:
        return file["x_train"], file["x_test"], file["y_train"], file["y_test"]


def one(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """A fit and what came of it."""
    x_train, x_test, y_train, y_test = data(args, seed)
    with tempfile.TemporaryDirectory() as folder:
        classifier = morphnas.ImageClassifier(
            Path(folder) / "run", random_state=seed, device=args.device, search_type=args.search
        )
        begun = time.perf_counter()
        classifier.fit(x_train, y_train, time_limit=args.time_limit)
        seconds = time.perf_counter() - begun
        trials = classifier.load_searcher().trials
        searched = [trial for trial in trials if not is_final(trial)]
        best = next(trial for trial in trials if trial.id == classifier.best_trial_)
        outcomes = [trial.outcome for trial in trials if trial.outcome is not None]
        return {
            "seed": seed,
            "test_accuracy": round(classifier.evaluate(x_test, y_test), 5),
            "seconds": round(seconds, 2),
            "overrun_seconds": round(max(0.0, seconds - args.time_limit), 2),
            "networks_searched": len(searched),
            "morphed": sum(bool(trial.proposal.morphs) for trial in searched),
            "winner_is_morphed": any(t.proposal.morphs for t in lineage(trials, best)),
            "winner_parameters": best.graph.parameters,
            "training_share": round(sum(outcome.seconds for outcome in outcomes) / seconds, 3),
            "images_per_second": round(statistics.median(outcome.images_per_second for outcome in outcomes)),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", type=Path)
    what.add_argument("--digits", action="store_true")
    parser.add_argument("--time-limit", type=float, default=300)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--search", default="bayesian")
    args = parser.parse_args()

    fits = []
    for seed in range(args.seeds):
        fits.append(one(args, seed))
        print(fits[-1], flush=True)
    accuracies = [fit["test_accuracy"] for fit in fits]
    result = describe() | {
        "data": "digits" if args.digits else args.data.stem,
        "time_limit": args.time_limit,
        "search": args.search,
        "n": len(fits),
        "mean_test_accuracy": round(statistics.mean(accuracies), 5),
        "sd_test_accuracy": round(statistics.stdev(accuracies), 5) if len(fits) > 1 else None,
        "fits": fits,
    }
    earlier = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    RESULTS.write_text(json.dumps([*earlier, result], indent=1) + "\n", encoding="utf-8")
    print(f"mean {result['mean_test_accuracy']:.4f}, standard deviation {result['sd_test_accuracy']}, n = {len(fits)}")


if __name__ == "__main__":
    main()
