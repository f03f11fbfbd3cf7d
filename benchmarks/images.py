"""Test accuracy of `ImageClassifier.fit` within a time limit, compared with a handwritten network.

    python benchmarks/images.py --data mnist.npz --time-limit 300 [--seeds 3] [--device cpu] [--flip]
    python benchmarks/images.py --digits --time-limit 60 --seeds 5

--data: an .npz with x_train, y_train, x_test, y_test; the test part is used once per seed, after the fit.
--search: a searcher, or none: then the two starters are trained briefly, and the better one for the remaining time.
--digits: scikit-learn's digits, a stratified fifth held out by each seed (random_state = seed). The network of
`handwritten.py` is trained for the same time in the same run, right after each fit; --flip enables horizontal flips in
it only. Results are appended to results/images.json, with the machine, the mean and the spread over seeds.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import handwritten
import numpy as np
import torch
from machine import append, npz
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import morphnas
from morphnas.run import executors
from morphnas.run.work import work
from morphnas.search import Trial, lineage

RESULTS = Path(__file__).parent / "results" / "images.json"


def digits(seed: int) -> tuple[Any, Any, Any, Any]:
    """x_train, x_test, y_train, y_test of scikit-learn's digits, a stratified fifth held out."""
    data = load_digits()
    images = (data.images * (255 / 16)).round().astype(np.uint8)
    parts: tuple[Any, Any, Any, Any] = tuple(
        train_test_split(images, data.target, test_size=0.2, stratify=data.target, random_state=seed)
    )
    return parts


def data(args: argparse.Namespace, seed: int) -> tuple[Any, Any, Any, Any]:
    """x_train, x_test, y_train, y_test."""
    if args.digits:
        return digits(seed)
    with np.load(args.data, allow_pickle=False) as file:
        return file["x_train"], file["x_test"], file["y_train"], file["y_test"]


def run_fit(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Run a fit, and report its results."""
    x_train, x_test, y_train, y_test = data(args, seed)
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {"max_trials": 2} if args.search == "none" else {"search_type": args.search}
        classifier = morphnas.ImageClassifier(Path(folder) / "run", random_state=seed, device=args.device, **settings)
        worked: list[tuple[float, float]] = []
        with patch.object(executors, "work", timed(work, worked)):
            start = time.perf_counter()
            classifier.fit(x_train, y_train, time_limit=args.time_limit)
            seconds = time.perf_counter() - start
        trials = classifier.load_searcher().trials
        searched = [trial for trial in trials if not trial.final]
        best = next(trial for trial in trials if trial.id == classifier.best_trial_)
        test_accuracy, mirrors = classifier.evaluate(x_test, y_test), classifier.mirrors_
        classifier.mirrors_ = False
        outcomes = [trial.outcome for trial in trials if trial.outcome is not None]
        return {
            "seed": seed,
            "test_accuracy": round(test_accuracy, 5),
            "test_accuracy_unmirrored": round(classifier.evaluate(x_test, y_test), 5) if mirrors else None,
            "seconds": round(seconds, 2),
            "overrun_seconds": round(max(0.0, seconds - args.time_limit), 2),
            "networks_searched": len(searched),
            "morphed": sum(bool(trial.proposal.morphs) for trial in searched),
            "winner_is_morphed": any(t.proposal.morphs for t in lineage(trials, best)),
            "winner_parameters": best.graph.parameters,
            "first_trial_share": round(searched[0].outcome.seconds / args.time_limit, 3)
            if searched[0].outcome
            else None,
            "share_training": share(searched, seconds),
            "share_final": share([trial for trial in trials if trial.final], seconds),
            "share_between": between(worked[: len(searched)], seconds),
            "share_preparing": round(sum(b - a for a, b in worked) / seconds - share(trials, seconds), 3),
            "share_else": round(1 - sum(outcome.seconds for outcome in outcomes) / seconds, 3),
            "images_per_second": round(statistics.median(outcome.images_per_second for outcome in outcomes)),
        }


def timed(work: Callable[..., Any], worked: list[tuple[float, float]]) -> Callable[..., Any]:
    """A wrapper of `work` that appends the start and end of each call to `worked`."""

    def working(*args: Any, **more: Any) -> Any:
        start = time.perf_counter()
        try:
            return work(*args, **more)
        finally:
            worked.append((start, time.perf_counter()))

    return working


def between(worked: list[tuple[float, float]], seconds: float) -> float:
    """The share of the time in which the device was idle between two jobs, waiting for the next proposal."""
    return round(sum(later[0] - earlier[1] for earlier, later in pairwise(worked)) / seconds, 4)


def share(trials: Sequence[Trial], seconds: float) -> float:
    """The share of the time that training the trials took."""
    return round(math.fsum(trial.outcome.seconds for trial in trials if trial.outcome is not None) / seconds, 3)


def by_hand(args: argparse.Namespace, seed: int) -> float:
    """Test accuracy of the handwritten network, trained for the same time on the same threads."""
    x_train, x_test, y_train, y_test = data(args, seed)
    trained = handwritten.fit(x_train, y_train, args.time_limit, args.flip, seed)
    return round(handwritten.accuracy(*trained, x_test, y_test), 5)


def spread(values: list[float]) -> dict[str, float | None]:
    """Mean, standard deviation and standard error."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    error = None if deviation is None else round(deviation / len(values) ** 0.5, 5)
    return {
        "mean": round(statistics.mean(values), 5),
        "standard_deviation": None if deviation is None else round(deviation, 5),
        "standard_error": error,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", type=npz)
    what.add_argument("--digits", action="store_true")
    parser.add_argument("--time-limit", type=float, default=300)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--search", default="bayesian")
    parser.add_argument("--flip", action="store_true", help="the network by hand is to mirror images")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()

    fits, hand = [], []
    for seed in range(args.seeds):
        fits.append(run_fit(args, seed))
        print(fits[-1], flush=True)
        if args.device == "cpu":
            hand.append(by_hand(args, seed))
            print(f"by hand {hand[-1]}", flush=True)
    gains = [fit["test_accuracy"] - own for fit, own in zip(fits, hand, strict=True)] if hand else []
    result = {
        "data": "digits" if args.digits else args.data.stem,
        "time_limit": args.time_limit,
        "search": args.search,
        "threads": torch.get_num_threads(),
        "n": len(fits),
        "test_accuracy": spread([fit["test_accuracy"] for fit in fits]),
        "by_hand_test_accuracy": spread(hand) if hand else None,
        "over_by_hand": spread(gains) if gains else None,
        "by_hand": hand,
        "fits": fits,
    }
    append(args.results, result)
    print(f"found {result['test_accuracy']}, by hand {result['by_hand_test_accuracy']}, n = {len(fits)}")


if __name__ == "__main__":
    main()
