"""Evaluate `morphnas.examine`: defects planted in real data at several rates, and false alarms on unmodified data.

    python benchmarks/data_checks.py --data digits.npz mnist.npz fashion_mnist.npz cifar10.npz

--data: .npz files with x_train, y_train, x_test, y_test. A defect counts as warned of when a finding of its kind warns,
and as told of when there is one that does not; other warnings are listed with it. The unmodified data, and random
subsets of them, are checked too: each warning there is a false alarm, or a property of the data. --smoke:
scikit-learn's digits, the highest rates, nothing written. Appends to results/data_checks.json the findings, and the
duration of the checks.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from machine import append, npz
from numpy.typing import NDArray
from sklearn.datasets import load_digits

import morphnas

RESULTS = Path(__file__).parent / "results" / "data_checks.json"
RATES = (0.001, 0.01, 0.1, 0.5)

Array = NDArray[Any]
Pair = tuple[Array, Array]
Data = tuple[Pair, Pair]
Defect = Callable[[Data, float, np.random.Generator], Data]


def picked(n: int, rate: float, rng: np.random.Generator) -> Array:
    """Random indices of a share `rate` of n, at least one."""
    return rng.choice(n, max(1, round(rate * n)), replace=False)


def leak(data: Data, rate: float, rng: np.random.Generator) -> Data:
    (x, y), (v, w) = data
    v, w, where = v.copy(), w.copy(), picked(len(v), rate, rng)
    source = rng.choice(len(x), len(where), replace=False)
    v[where], w[where] = x[source], y[source]
    return (x, y), (v, w)


def duplicates(data: Data, rate: float, rng: np.random.Generator) -> Data:
    (x, y), held = data
    where = picked(len(x), rate, rng)
    return (np.concatenate([x, x[where]]), np.concatenate([y, y[where]])), held


def contradictory(data: Data, rate: float, rng: np.random.Generator) -> Data:
    (x, y), held = data
    where = picked(len(x), rate, rng)
    return (np.concatenate([x, x[where]]), np.concatenate([y, (y[where] + 1) % 10])), held


def constant(data: Data, rate: float, rng: np.random.Generator) -> Data:
    (x, y), held = data
    x = x.copy()
    x[picked(len(x), rate, rng)] = 128
    return (x, y), held


def range_(data: Data, rate: float, rng: np.random.Generator) -> Data:
    """A share of the images is scaled to 0 to 1."""
    (x, y), held = data
    x = x.astype(np.float32)
    x[picked(len(x), rate, rng)] /= 255
    return (x, y), held


def signal(data: Data, rate: float, rng: np.random.Generator) -> Data:
    """A share of the labels is permuted; all at rate 1."""
    (x, y), (v, w) = data
    y, where = y.copy(), picked(len(y), rate, rng)
    y[where] = y[rng.permutation(where)]
    return (x, y), (v, w)


def imbalance(data: Data, rate: float, rng: np.random.Generator) -> Data:
    """One class makes up a share `rate` of the data."""
    x, y = data[0]
    one, others = np.flatnonzero(y == 3), np.flatnonzero(y != 3)
    n = min(len(x) // 2, int(len(one) / rate))
    kept = np.concatenate([one[: int(rate * n)], rng.permutation(others)[: n - int(rate * n)]])
    return (x[kept], y[kept]), (x[:0], y[:0])


def unjudged(data: Data, rate: float, _: np.random.Generator) -> Data:
    """validation_data without a share of the ten classes, at least one."""
    (x, y), (v, w) = data
    kept = w >= max(1, round(10 * rate))
    return (x, y), (v[kept], w[kept])


def mixture(data: Data, rate: float, rng: np.random.Generator) -> Data:
    """A share of validation_data comes from data sorted by class."""
    (x, y), (v, w) = data
    order = np.argsort(w, kind="stable")
    half = len(w) // 2
    where = np.concatenate([order[-round(rate * half) :], rng.permutation(len(w))[: half - round(rate * half)]])
    return (x, y), (v[where], w[where])


def preparation(data: Data, rate: float, rng: np.random.Generator) -> Data:
    """A share of validation_data is scaled to 0 to 1."""
    (x, y), (v, w) = data
    v = v.astype(np.float32)
    v[picked(len(v), rate, rng)] /= 255
    return (x, y), (v, w)


def axes(data: Data, rate: float, rng: np.random.Generator) -> Data:
    """A share of the colour images is stored channels first, but read as channels last."""
    (x, y), (v, w) = data
    x = x.copy()
    where = picked(len(x), rate, rng)
    x[where] = np.moveaxis(x[where], -1, 1).reshape(len(where), *x.shape[1:])
    return (x, y), (v, w)


def labels(data: Data, rate: float, rng: np.random.Generator) -> Data:
    """Labels like regression targets: `rate` distinct values per example."""
    (x, y), _ = data
    y = rng.integers(0, max(2, round(rate * len(y))), len(y))
    return (x, y), (x[:0], y[:0])


DEFECTS: dict[str, tuple[Defect, tuple[float, ...]]] = {
    "leak": (leak, RATES),
    "duplicates": (duplicates, RATES),
    "contradictory": (contradictory, RATES),
    "constant": (constant, RATES),
    "range": (range_, RATES),
    "preparation": (preparation, (0.1, 0.6, 1.0)),
    "signal": (signal, (0.5, 0.9, 1.0)),
    "imbalance": (imbalance, (0.01, 0.5, 0.95)),
    "unjudged": (unjudged, (0.1, 0.5)),
    "mixture": (mixture, (0.1, 0.5, 1.0)),
    "axes": (axes, (0.1, 0.5, 1.0)),
    "labels": (labels, (0.1, 0.5, 2.0)),
}


def load(file: Path | None) -> Data:
    if file is None:
        digits = load_digits()
        x, y = (digits.images * (255 / 16)).round().astype(np.uint8), digits.target
        return (x[:1437], y[:1437]), (x[1437:], y[1437:])
    with np.load(file, allow_pickle=False) as held:
        return (held["x_train"], held["y_train"].astype(int)), (held["x_test"], held["y_test"].astype(int))


def examined(data: Data, seed: int = 0) -> morphnas.Findings:
    (x, y), (v, w) = data
    return morphnas.examine(x, y, (v, w) if len(w) else None, random_state=seed)


def planted(data: Data, rng: np.random.Generator, most: int) -> dict[str, Any]:
    """The findings for every defect at every rate."""
    results: dict[str, Any] = {}
    for kind, (defect, rates) in DEFECTS.items():
        if kind == "axes" and data[0][0].ndim < 4:
            continue
        for rate in rates[-most:]:
            findings = examined(defect(data, rate, rng))
            of_kind = [finding for finding in findings.found if finding.kind == kind]
            verdict = "warned" if any(f.warns for f in of_kind) else "told" if of_kind else "missed"
            others = sorted({f.kind for f in findings.found if f.warns} - {kind})
            results.setdefault(kind, {})[str(rate)] = verdict if not others else [verdict, *others]
    return results


def left_alone(data: Data, rng: np.random.Generator, repeats: int) -> dict[str, Any]:
    """Findings for the unmodified data: all of it, with validation_data, and random subsets."""
    x, y = data[0]
    empty = (x[:0], y[:0])
    whole = [examined(((x, y), empty)), examined(data)]
    parts: dict[str, Any] = {}
    for n in (60, 200, 1000, 5000):
        if n > len(x):
            continue
        warned: Counter[str] = Counter()
        for i in range(repeats):
            where = rng.permutation(len(x))[:n]
            parted = ((x[where], y[where]), empty)
            warned.update({finding.kind for finding in examined(parted, i).warnings})
        parts[str(n)] = {"looks": repeats, "warnings": dict(warned)}
    seconds = [examined(((x, y), empty)).seconds for _ in range(3 if repeats > 2 else 1)]
    return {
        "examples": len(x),
        "found": [str(finding) for findings in whole for finding in findings.found],
        "seconds": [round(value, 3) for value in seconds],
        "median_seconds": round(statistics.median(seconds), 3),
        "parts": parts,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=npz, nargs="*", default=[])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--smoke", action="store_true", help="digits, the highest rates, nothing written")
    args = parser.parse_args()
    results: dict[str, Any] = {}
    for file in [None] if args.smoke or not args.data else args.data:
        rng = np.random.default_rng(0)
        data, name = load(file), "digits" if file is None else file.stem
        clean = left_alone(data, rng, 2 if args.smoke else args.repeats)
        results[name] = {"as_they_are": clean, "planted": planted(data, rng, 1 if args.smoke else len(RATES))}
        print(name, clean, flush=True)
        for kind, verdicts in results[name]["planted"].items():
            print(f"  {kind:14s} {verdicts}", flush=True)
    if not args.smoke:
        append(RESULTS, {"data": results})


if __name__ == "__main__":
    main()
