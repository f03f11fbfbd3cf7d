"""The forecast that a fit makes after its first networks, compared with the outcome: networks, disk and memory.

    python benchmarks/expectation.py --data digits.npz fashion_mnist.npz [--seeds 2 3]

--data: .npz files with x_train and y_train. Real fits of 20 to 60 s, with networks as large as the time allows and with
small ones, each in its own process, whose memory is measured. Appends to results/expectation.json the ratio of forecast
to outcome for every fit. --smoke: scikit-learn's digits for 8 s, nothing written.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from machine import append, npz
from sklearn.datasets import load_digits

import morphnas
from morphnas.estimators import fitting
from morphnas.run.expectation import ExpectationReporter, peak_memory

RESULTS = Path(__file__).parent / "results" / "expectation.json"
FITS = (
    ("small", 1437, 20.0, 8), ("sized", 1437, 60.0, 0), ("small", 1000, 60.0, 8), ("small", 3000, 40.0, 8),
    ("sized", 6000, 60.0, 0),
)  # fmt: skip
"""Name, maximum number of examples, seconds, width of the starters (0: as large as the time allows)."""


def run_fit(data: str, n: int, seconds: float, width: int, seed: int) -> dict[str, Any]:
    """Run a fit; its first forecast and its outcome."""
    if data:
        with np.load(data, allow_pickle=False) as held:
            x, y = held["x_train"][:n], held["y_train"][:n]
    else:
        digits = load_digits()
        x, y = digits.images[:n], digits.target[:n]
    forecasts: list[dict[str, Any]] = []

    class RecordedForecast(ExpectationReporter):
        def _note(self, found: Any) -> None:
            forecasts.append(found.to_json())
            super()._note(found)

    with tempfile.TemporaryDirectory() as folder, patch.object(fitting, "ExpectationReporter", RecordedForecast):
        args = {"default_model_width": width} if width else None
        classifier = morphnas.ImageClassifier(Path(folder) / "run", random_state=seed, device="cpu", searcher_args=args)
        classifier.fit(x, y, time_limit=seconds)
        networks = sum(not trial.final for trial in morphnas.load_run(classifier.path_).trials)
        disk = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    actual = {"networks": networks, "disk": disk, "memory": peak_memory()}
    first = forecasts[0]
    return {
        "data": Path(data).stem or "digits",
        "examples": len(x),
        "seconds": seconds,
        "width": width or None,
        "seed": seed,
        "came": actual,
        "told": {name: first[name] for name in (*actual, "fewest", "most", "measured")},
        "ratio": {name: round(first[name] / value, 2) for name, value in actual.items()},
        "in_range": first["fewest"] <= networks <= first["most"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=npz, nargs="*", default=[])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--smoke", action="store_true", help="one fit of 8 s, nothing written")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run_fit(*json.loads(args.one))))
        return
    fits: list[tuple[Any, ...]] = [("", 1437, 8.0, 8, 0)]
    if not args.smoke:
        every = [str(file) for file in args.data] or [""]
        fits = [(data, *fit[1:], seed) for seed in args.seeds for data in every for fit in FITS]
    results: list[dict[str, Any]] = []
    for fit in dict.fromkeys(fits):
        command = [sys.executable, __file__, "--one", json.dumps(fit)]
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        results.append(json.loads(answer.splitlines()[-1]))
        print(results[-1], flush=True)
    median = {name: statistics.median(fit["ratio"][name] for fit in results) for name in results[0]["ratio"]}
    share = statistics.mean(fit["in_range"] for fit in results)
    print("median ratios, told to came:", median, "in range:", share)
    if not args.smoke:
        append(RESULTS, {"n": len(results), "median_ratio": median, "in_range": share, "fits": results})


if __name__ == "__main__":
    main()
