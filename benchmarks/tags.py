"""`ImageClassifier.fit` on multi-label images within a time limit, compared with a handwritten network.

    python benchmarks/tags.py [--time-limit 30] [--seeds 3] [--data mnist.npz]

Each of 4,000 images is a 2 x 2 grid whose cells contain, with probability 0.6, an image of one of ten classes, halved
in size; its labels are the classes in the grid. The images are scikit-learn's digits (not halved), a fifth of which is
used only for the 4,000 test images, or those of an .npz with x_train, y_train, x_test, y_test. The handwritten network
is that of `handwritten.py`, trained for the same time with the binary cross-entropy. Appends to results/tags.json the
share of test images with all labels right, the mean average precision and the F1 score, both averaged over labels, with
standard errors and the machine.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import handwritten
import numpy as np
import torch
from machine import append, npz
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, average_precision_score, f1_score
from sklearn.model_selection import train_test_split

import morphnas
from morphnas.graph import starters

RESULTS = Path(__file__).parent / "results" / "tags.json"
SHARE = 0.6


def pieces(data: Path | None, seed: int) -> list[tuple[Any, Any]]:
    """Images (n, h, w) uint8 and classes, for training and for testing."""
    if data is None:
        x, y = (load_digits().images * (255 / 16)).round().astype(np.uint8), load_digits().target
        parts = train_test_split(x, y, test_size=0.2, random_state=seed, stratify=y)
        return [(parts[0], parts[2]), (parts[1], parts[3])]
    with np.load(data, allow_pickle=False) as file:
        splits = [(file[f"x_{part}"], file[f"y_{part}"].ravel()) for part in ("train", "test")]
    halved = [x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).mean((2, 4, 5)) for x, _ in splits]
    return [(x.round().astype(np.uint8), y) for x, (_, y) in zip(halved, splits, strict=True)]


def composed(x: Any, y: Any, n: int, seed: int) -> tuple[Any, Any]:
    """Grids (n, 2 h, 2 w) uint8 of up to four of the images, and which classes they contain, (n, classes)."""
    rng = np.random.default_rng(seed)
    h, w = x.shape[1:]
    chosen, present = rng.integers(0, len(x), (n, 4)), rng.random((n, 4)) < SHARE
    tiles = np.where(present[:, :, None, None], x[chosen], 0).astype(np.uint8)
    images = tiles.reshape(n, 2, 2, h, w).transpose(0, 1, 3, 2, 4).reshape(n, 2 * h, 2 * w)
    tags = np.zeros((n, int(y.max()) + 1), dtype=np.int64)
    rows, places = np.nonzero(present)
    tags[rows, y[chosen[rows, places]]] = 1
    return images, tags


def measured(y: Any, probabilities: Any) -> dict[str, float]:
    predicted = (probabilities >= 0.5).astype(int)
    return {
        "all_right": round(accuracy_score(y, predicted), 5),
        "mean_average_precision": round(average_precision_score(y, probabilities), 5),
        "f1": round(f1_score(y, predicted, average="macro"), 5),
    }


def run_fit(data: Path | None, n: int, seconds: float, seed: int) -> dict[str, Any]:
    train, test = (composed(*part, n, 2 * seed + i) for i, part in enumerate(pieces(data, seed)))
    with tempfile.TemporaryDirectory() as folder:
        classifier = morphnas.ImageClassifier(Path(folder) / "run", random_state=seed, device="cpu")
        start = time.perf_counter()
        classifier.fit(*train, time_limit=seconds)
        row: dict[str, Any] = {"seed": seed, "seconds": round(time.perf_counter() - start, 2)}
        row["networks"] = len(classifier.load_searcher().trials)
        row["morphnas"] = measured(test[1], classifier.predict_proba(test[0]))
    model, mean, std = handwritten.fit(*train, seconds, False, seed)
    with torch.no_grad():
        images = (handwritten.channels_first(test[0]).float() - mean) / std
        probabilities = torch.cat([model.eval()(part).sigmoid() for part in images.split(1000)]).numpy()
    return row | {"by_hand": measured(test[1], probabilities)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time-limit", type=float, default=30.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=npz, help="an .npz of images; without, digits")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--smoke", action="store_true", help="one seed, 500 images, 4 s each, nothing written")
    args = parser.parse_args()
    seconds, seeds, n = (4.0, 1, 500) if args.smoke else (args.time_limit, args.seeds, 4000)
    rows = []
    for seed in range(seeds):
        rows.append(run_fit(args.data, n, seconds, seed))
        print(rows[-1], flush=True)
    means = dict[str, Any]()
    for name in ("morphnas", "by_hand"):
        for measure in rows[0][name]:
            values = [row[name][measure] for row in rows]
            error = None if seeds < 2 else round(statistics.stdev(values) / math.sqrt(seeds), 5)
            means.setdefault(name, {})[measure] = {"mean": round(statistics.mean(values), 5), "standard_error": error}
    print(means)
    if not args.smoke:
        what = "digits" if args.data is None else args.data.stem
        how = {"of": what, "read_whole": starters.MIN_SIZE_FOR_POOLED_STEM, "time_limit": seconds}
        append(args.results, how | {"n": seeds, "images": n, "means": means, "fits": rows})


if __name__ == "__main__":
    main()
