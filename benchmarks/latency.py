"""Whether networks are as fast as a limit says, and what that costs: `limits={"max_latency_ms": ...}`.

    python benchmarks/latency.py [--limits 0.5 0.3 0.2] [--time-limit 30] [--seeds 3]

Fits on scikit-learn's digits, a stratified fifth held out by each seed. For every limit: the accuracy on the test part;
the winner's latency as the run has it, and as it is measured anew after the fit, of the module that is handed over, one
example at a time; how many networks were tried, and how many of them turned out too slow; and the ratio of what was
predicted of a network, by those before it, to what was measured. Appends to results/latency.json.
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


def anew(module: torch.nn.Module, x: Any) -> float:
    """Milliseconds for one example, raw values in and outputs out, the median of 200."""
    times = []
    with torch.no_grad():
        for i in range(200):
            example = x[i % len(x)][None]
            begun = time.perf_counter()
            module(example)
            times.append(1000 * (time.perf_counter() - begun))
    return statistics.median(times)


def predictions(trials: Sequence[Trial], limits: morphnas.Limits) -> list[float]:
    """Predicted over measured latencies of networks that were proposed with some before them."""
    found = []
    for i, trial in enumerate(trials):
        if trial.outcome is not None and trial.outcome.latency and trial.proposal.morphs:
            found.append(updated_limits(limits, trials[:i]).latency(trial.graph) / trial.outcome.latency)
    return found


def one(most: float, seconds: float, seed: int) -> dict[str, Any]:
    x_train, x_test, y_train, y_test = digits(seed)
    with tempfile.TemporaryDirectory() as folder:
        found = morphnas.ImageClassifier(
            Path(folder) / "run", limits={"max_latency_ms": most}, random_state=seed, device="cpu"
        ).fit(x_train, y_train, time_limit=seconds)
        run = found.load_searcher()
        trials = [t for t in run.trials if not t.final]
        best = run.trial(found.best_trial_)
        limits = morphnas.Limits(**run.about["plan"]["limits"])
    assert best.outcome is not None
    return {
        "seed": seed, "test_accuracy": round(found.evaluate(x_test, y_test), 5),
        "parameters": best.graph.parameters, "networks": len(trials),
        "too_slow": sum(t.outcome is not None and t.outcome.slow for t in trials),
        "latency_ms": round(1000 * (best.outcome.latency or 0.0), 4),
        "latency_anew_ms": round(anew(found.to_module(), torch.from_numpy(x_test)[:, None]), 4),
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
    for most in limits:
        fits, refused = [], []
        for seed in range(seeds):
            try:
                fits.append(one(most, seconds, seed))
                print(most, fits[-1], flush=True)
            except ValueError as error:  # no first network is so fast
                refused.append(str(error))
                print(most, error, flush=True)
        if not fits:
            if not args.smoke:
                append(args.results, {"max_latency_ms": most, "time_limit": seconds, "n": 0, "refused": refused})
            continue
        ratios = [ratio for fit in fits for ratio in fit["predicted_over_measured"]]
        result = {
            "max_latency_ms": most, "time_limit": seconds, "n": len(fits), "refused": refused,
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
