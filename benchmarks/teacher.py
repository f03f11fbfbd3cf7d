"""The gain by knowledge distillation from a large network: `fit(x, y, teacher=classifier)`.

    python benchmarks/teacher.py --data cifar10.npz [--examples 10000] [--max-params 40000] [--time-limit 60]

For every seed a teacher is fitted to `--examples` random training images (or `--teacher-examples`, which include them)
for `--teacher` seconds, without a limit on its size. Then two fits of equal time find networks of at most
`--max-params` parameters for the images, one from y alone and one also from the teacher's predictions, which are made
before ("asked": the seconds that takes); which of the two is first alternates. All are evaluated on all test images.
Without --data, and with --smoke, scikit-learn's digits. Appends to results/teacher.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from images import digits
from machine import append, gain, npz

import morphnas
from morphnas.train.goal import DISTILLATION_TEMPERATURE
from morphnas.train.step import TEACHER_SHARE

RESULTS = Path(__file__).parent / "results" / "teacher.json"


def fitted(
    x: Any, y: Any, seconds: float, seed: int, limits: dict[str, Any] | None = None, teacher: Any = None
) -> morphnas.ImageClassifier:
    """A fitted classifier; its run is not kept."""
    with tempfile.TemporaryDirectory() as folder:
        classifier = morphnas.ImageClassifier(Path(folder) / "run", random_state=seed, limits=limits, device="cpu")
        return classifier.fit(x, y, time_limit=seconds, teacher=teacher)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=npz)
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--teacher-examples", type=int, help="that the teacher learns, instead of the same")
    parser.add_argument("--max-params", type=int, default=40_000)
    parser.add_argument("--teacher", type=float, default=180.0, help="seconds")
    parser.add_argument("--time-limit", type=float, default=60.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--smoke", action="store_true", help="digits, 4 s each, one seed, nothing written")
    args = parser.parse_args()
    if args.smoke:
        args.teacher, args.time_limit, args.max_params, args.seeds, args.data = 4.0, 4.0, 5_000, 1, None
    if args.data is None:
        x_train, x_test, y_train, y_test = digits(0)
    else:
        with np.load(args.data, allow_pickle=False) as file:
            x_train, x_test = file["x_train"], file["x_test"]
            y_train, y_test = file["y_train"].ravel(), file["y_test"].ravel()
    accuracies: dict[str, list[float]] = {"teacher": [], "alone": [], "taught": []}
    parameters: dict[str, list[int]] = {name: [] for name in accuracies}
    prediction_seconds: list[float] = []

    def note(name: str, classifier: morphnas.ImageClassifier) -> None:
        accuracies[name].append(round(classifier.evaluate(x_test, y_test), 5))
        parameters[name].append(classifier.network_.graph.parameters)
        print(name, f"{accuracies[name][-1]:.2%}, {parameters[name][-1]:,} parameters", flush=True)

    for seed in range(args.seeds):
        order = np.random.default_rng(seed).permutation(len(y_train))
        learned, indices = order[: args.teacher_examples or args.examples], order[: args.examples]
        x, y, bound = x_train[indices], y_train[indices], {"max_params": args.max_params}
        teacher = fitted(x_train[learned], y_train[learned], args.teacher, seed)
        note("teacher", teacher)
        start = time.perf_counter()
        teacher_outputs = teacher.predict_proba(x)
        prediction_seconds.append(round(time.perf_counter() - start, 2))
        for name in sorted(["alone", "taught"], reverse=seed % 2 == 1):
            outputs = teacher_outputs if name == "taught" else None
            note(name, fitted(x, y, args.time_limit, seed, limits=bound, teacher=outputs))
    result = {
        "data": args.data.stem if args.data else "digits", "examples": min(args.examples, len(y_train)),
        "max_params": args.max_params, "time_limit": args.time_limit, "teacher_seconds": args.teacher,
        "teacher_examples": min(args.teacher_examples or args.examples, len(y_train)),
        "share": TEACHER_SHARE, "cooled": DISTILLATION_TEMPERATURE, **gain(accuracies["alone"], accuracies["taught"]),
        "test_accuracies": accuracies,
        "parameters": parameters, "asked": prediction_seconds,
    }  # fmt: skip
    print(result, flush=True)
    if not args.smoke:
        append(args.results, result)


if __name__ == "__main__":
    main()
