"""Whether networks keep a latency limit, and its cost in accuracy: `limits={"max_latency_ms": ...}`.

    python benchmarks/latency.py [--limits 0.5 0.3 0.2] [--time-limit 30] [--seeds 3]

Fits on scikit-learn's digits, a stratified fifth held out by each seed. For every limit: the test accuracy; the
winner's latency as recorded in the run, and as measured again after the fit with the exported module, one example at a
time; how many networks were tried, and how many of them were too slow; and the ratio of the latency predicted for a
network, from those before it, to the measured one. Appends to results/latency.json.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from images import digits
from machine import append

import morphnas
from morphnas.search.candidates import updated_limits
from morphnas.search.trial import Trial

RESULTS = Path(__file__).parent / "results" / "latency.json"


def measure_latency(module: torch.nn.Module, x: Any) -> float:
    """Milliseconds from raw values to outputs for one example, the median of 200."""
    times = []
    with torch.no_grad():
        for i in range(200):
            example = x[i % len(x)][None]
            start = time.perf_counter()
            module(example)
            times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def predictions(trials: Sequence[Trial], limits: morphnas.Limits) -> list[float]:
    """Ratios of predicted to measured latency of the morphed networks."""
    ratios = []
    for i, trial in enumerate(trials):
        if trial.outcome is not None and trial.outcome.latency and trial.proposal.morphs:
            ratios.append(updated_limits(limits, trials[:i]).latency(trial.graph) / trial.outcome.latency)
    return ratios


def run_fit(limit: float, seconds: float, seed: int) -> dict[str, Any]:
    x_train, x_test, y_train, y_test = digits(seed)
    with tempfile.TemporaryDirectory() as folder:
        classifier = morphnas.ImageClassifier(
            Path(folder) / "run", limits={"max_latency_ms": limit}, random_state=seed, device="cpu"
        ).fit(x_train, y_train, time_limit=seconds)
        run = classifier.load_searcher()
        trials = [t for t in run.trials if not t.final]
        best = run.trial(classifier.best_trial_)
        limits = morphnas.Limits(**run.about["plan"]["limits"])
    assert best.outcome is not None
    return {
        "seed": seed, "test_accuracy": round(classifier.evaluate(x_test, y_test), 5),
        "parameters": best.graph.parameters, "networks": len(trials),
        "too_slow": sum(t.outcome is not None and t.outcome.slow for t in trials),
        "latency_ms": round(1000 * (best.outcome.latency or 0.0), 4),
        "latency_anew_ms": round(measure_latency(classifier.to_module(), torch.from_numpy(x_test)[:, None]), 4),
        "predicted_over_measured": [round(ratio, 3) for ratio in predictions(trials, limits)],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limits", type=float, nargs="+", default=[0.5, 0.3, 0.2])
    parser.add_argument("--time-limit", type=float, default=30.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--smoke", action="store_true", help="one seed, one generous limit, 5 s, nothing written")
    args = parser.parse_args()
    limits, seconds, seeds = ([20.0], 5.0, 1) if args.smoke else (args.limits, args.time_limit, args.seeds)
    for limit in limits:
        fits, refused = [], []
        for seed in range(seeds):
            try:
                fits.append(run_fit(limit, seconds, seed))
                print(limit, fits[-1], flush=True)
            except ValueError as error:  # no starter is within the limit
                refused.append(str(error))
                print(limit, error, flush=True)
        if not fits:
            if not args.smoke:
                append(args.results, {"max_latency_ms": limit, "time_limit": seconds, "n": 0, "refused": refused})
            continue
        ratios = [ratio for fit in fits for ratio in fit["predicted_over_measured"]]
        result = {
            "max_latency_ms": limit, "time_limit": seconds, "n": len(fits), "refused": refused,
            "test_accuracy": round(statistics.mean(fit["test_accuracy"] for fit in fits), 5),
            "latency_ms": round(statistics.mean(fit["latency_ms"] for fit in fits), 4),
            "latency_anew_ms": round(statistics.mean(fit["latency_anew_ms"] for fit in fits), 4),
            "predicted_over_measured": round(statistics.median(ratios), 3) if ratios else None,
            "fits": fits,
        }  # fmt: skip
        print({name: value for name, value in result.items() if name != "fits"}, flush=True)
        if not args.smoke:
            append(args.results, result)


if __name__ == "__main__":
    main()
