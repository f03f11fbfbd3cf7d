"""Whether searching pays off: `ImageClassifier.fit` with each searcher and without a search, for the same time.

    python benchmarks/search_pays.py --data fashion_mnist.npz --examples 6000 --time-limit 60 --seeds 3
    python benchmarks/search_pays.py --time-limit 60 --seeds 3
    python benchmarks/search_pays.py --between bayesian small

Without a search ("none") the starters, as large as the time allows, are trained like children, and the best
one gets all of the remaining time: the default of `fit` if the limit has no room for a search. "as it is" is the
default of `fit`. All other ways start from starters of width 8 (or --width), which leave time for a search: "small"
without one, searchers by name, and the Bayesian search with one change: "fresh weights" for children, "no promotion",
"3 epochs" or "12 epochs" for a child, or the "best score" as the winner instead of the best posterior mean. "judged" is
"none" with half of the final training's time for comparing ways to train before it. "by hand" is the network of
`handwritten.py`.

--data: an .npz with x_train, y_train, x_test and y_test, of which --examples random training images (another draw for
each seed) and all test images are used; without it scikit-learn's digits, a stratified fifth held out. The ways take
turns within a seed, so that other load on the machine affects all of them. Appends to results/search_pays.json the test
accuracy of every fit, and for every way the mean, and the mean and the standard error over seeds of its difference from
"none". With --ensemble also that of an ensemble of at most so many networks of the same fit: "ensemble_gain" is
relative to the fit's final network, "ensemble_gain_over_none" to the ensemble of "none".
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import handwritten
import numpy as np
from images import digits
from machine import append, npz

import morphnas
from morphnas.estimators import fitting as module
from morphnas.graph import Graph
from morphnas.run.final import Final
from morphnas.search import BayesianSearcher, Budget, Promote, Proposal, Searcher, Trial, lineage, winner

RESULTS = Path(__file__).parent / "results" / "search_pays.json"
STARTERS = 2
"""Number of starters of a search on images."""


@dataclass(frozen=True)
class Fresh:
    """A searcher whose proposals are trained from fresh weights."""

    searcher: Searcher

    def ask(self, trials: Sequence[Trial], budget: Budget) -> Proposal | None:
        proposal = self.searcher.ask(trials, budget)
        if proposal is None or isinstance(proposal.start, Graph) or not proposal.morphs:
            return proposal
        graph = next(trial.graph for trial in trials if trial.id == proposal.start)
        for morph in proposal.morphs:
            graph = morph.grow(graph)
        return replace(proposal, start=graph, morphs=())


def fresh(*args: Any, **settings: Any) -> Promote:
    return Promote(Fresh(BayesianSearcher(*args, **settings)))


def luckiest(trials: Sequence[Trial]) -> Trial | None:
    """The trial with the best score."""
    return max((t for t in trials if t.kept and t.score is not None), key=lambda t: t.score or 0.0, default=None)


def judged(*args: Any, **settings: Any) -> Final:
    return Final(*args, **settings | {"needs_score": True})


CHANGES: dict[str, dict[str, Any]] = {
    "none": {"max_trials": STARTERS},
    "as it is": {},
    "judged": {"max_trials": STARTERS},
    "small": {"max_trials": STARTERS},
    "fresh weights": {"search_type": fresh},
    "best score": {},
    "no promotion": {"search_type": BayesianSearcher},
    "3 epochs": {"searcher_args": {"trainer_args": {"epochs": 3}}},
    "12 epochs": {"searcher_args": {"trainer_args": {"epochs": 12}}},
}


WAYS = ["as it is", "small", "bayesian", "random", "evolution", "climbing", "by hand"]


def part(args: argparse.Namespace, seed: int) -> tuple[Any, Any, Any, Any]:
    """x_train, x_test, y_train, y_test."""
    if args.data is None:
        return digits(seed)
    rng = np.random.default_rng(seed)
    with np.load(args.data, allow_pickle=False) as file:
        x_train, x_test, y_train, y_test = (file[name] for name in ("x_train", "x_test", "y_train", "y_test"))
    if args.products:
        (x_train, y_train), (x_test, y_test) = (
            products(x, y, n, rng) for x, y, n in ((x_train, y_train, args.examples), (x_test, y_test, len(y_test)))
        )
    indices = rng.permutation(len(y_train))[: args.examples]
    if args.rows:
        x_train, x_test = (x.reshape(len(x), -1) for x in (x_train, x_test))
    return x_train[indices], x_test, y_train[indices], y_test


def products(x: Any, y: Any, n: int, rng: np.random.Generator) -> tuple[Any, Any]:
    """Images (n, height, width, 3) whose channels are grey images, labelled by the last digit of the product of labels.

    Like MultNIST (Geada et al. 2024, "Insights from the use of previously unseen neural architecture search datasets",
    CVPR), on which networks designed for photographs are not necessarily good.
    """
    three = rng.integers(len(x), size=(n, 3))
    return np.moveaxis(x[three], 1, -1), y[three].prod(1) % 10


def fit(way: str, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Run a fit in one of the ways, and report its results."""
    x_train, x_test, y_train, y_test = part(args, seed)
    if way == "by hand":
        trained = handwritten.fit(x_train, y_train, args.time_limit, args.flip, seed)
        return {"test_accuracy": round(handwritten.accuracy(*trained, x_test, y_test), 5)}
    with tempfile.TemporaryDirectory() as folder:
        settings = dict(CHANGES.get(way, {"search_type": way}))
        if way not in ("none", "as it is", "judged"):
            settings["searcher_args"] = {"default_model_width": args.width} | settings.get("searcher_args", {})
        settings |= {"random_state": seed, "device": "cpu", "ensemble": args.ensemble}
        settings |= {} if args.max_params is None else {"limits": {"max_params": args.max_params}}
        classifier = morphnas.ImageClassifier(Path(folder) / "run", **settings)
        chosen = luckiest if way == "best score" else winner
        with patch.multiple(module, winner=chosen, Final=judged if way == "judged" else Final):
            classifier.fit(x_train, y_train, time_limit=args.time_limit)
        run = classifier.load_searcher()
        trials = run.trials
        ensemble_accuracy = round(classifier.evaluate(x_test, y_test), 5)
        classifier.network_ = run.load_model_by_id(classifier.final_trial_)
        searched = [trial for trial in trials if not trial.final]
        best = next(trial for trial in trials if trial.id == classifier.best_trial_)
        return {
            "test_accuracy": round(classifier.evaluate(x_test, y_test), 5),
            "networks": len(searched),
            "morphs_of_winner": sum(len(trial.proposal.morphs) for trial in lineage(trials, best)),
            "winner_parameters": best.graph.parameters,
        } | ({"ensemble_accuracy": ensemble_accuracy, "members": len(classifier.members_)} if args.ensemble > 1 else {})


def gain(name: str, differences: Sequence[float]) -> dict[str, float | None]:
    """The mean of the differences, under `name`, and its standard error."""
    error = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else None
    return {
        name: round(statistics.mean(differences), 5),
        f"standard_error_of_{name}": None if error is None else round(error, 5),
    }


def between(results: Path, way: str, other: str) -> None:
    """Print the gain of one way over another on all data with results of both, from the latest fit of every seed."""
    accuracies: dict[tuple[Any, ...], dict[int, tuple[float, float]]] = {}
    for entry in json.loads(results.read_text(encoding="utf-8")):
        if way in entry["ways"] and other in entry["ways"]:
            about = ("data", "examples", "time_limit", "rows", "products", "max_params")
            kind = tuple(entry.get(name) for name in about)
            pairs = zip(*(entry["ways"][name]["fits"] for name in (way, other)), strict=True)
            for seed, pair in enumerate(pairs, start=entry.get("first_seed", 0)):
                one, two = (fit["test_accuracy"] for fit in pair)
                accuracies.setdefault(kind, {})[seed] = one, two
    for kind, by_seed in accuracies.items():
        ones, twos = zip(*by_seed.values(), strict=True)
        means = {way: round(statistics.mean(ones), 5), other: round(statistics.mean(twos), 5)}
        print(kind, means, gain("gain", [a - b for a, b in by_seed.values()]), f"n = {len(by_seed)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=npz)
    parser.add_argument("--examples", type=int, default=6000)
    parser.add_argument("--time-limit", type=float, default=60.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0, help="to go on from other runs")
    parser.add_argument("--ways", nargs="*", default=WAYS)
    parser.add_argument("--width", type=int, default=8, help="of first networks that leave time for a search")
    parser.add_argument("--max-params", type=int, help="that networks may have: the limits of the fit")
    parser.add_argument("--ensemble", type=int, default=1, help="networks that are read together, at most")
    parser.add_argument("--products", action="store_true", help="grey images by three, see `products`")
    parser.add_argument("--rows", action="store_true", help="images are given as rows of features")
    parser.add_argument("--flip", action="store_true", help="the network by hand is to mirror images")
    parser.add_argument("--between", nargs=2, metavar="WAY", help="nothing is fitted: what one gained over the other")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--smoke", action="store_true", help="two ways, 4 s each, nothing written")
    args = parser.parse_args()
    if args.between:
        between(args.results, *args.between)
        return
    if args.smoke:
        args.time_limit, args.seeds, args.ways, args.ensemble = 4.0, 1, ["bayesian"], 3
    fits: dict[str, list[dict[str, Any]]] = {}
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for way in dict.fromkeys(("none", *args.ways)):
            fits.setdefault(way, []).append(fit(way, args, seed))
            print(seed, way, fits[way][-1], flush=True)
    summary = {}
    for way, values in fits.items():
        pairs = zip(values, fits["none"], strict=True)
        summary[way] = {
            "mean_test_accuracy": round(statistics.mean(one["test_accuracy"] for one in values), 5),
            **gain("gain", [one["test_accuracy"] - none["test_accuracy"] for one, none in pairs]),
        }
        if "ensemble_accuracy" in values[0]:
            pairs = zip(values, fits["none"], strict=True)
            over_none = [one["ensemble_accuracy"] - none["ensemble_accuracy"] for one, none in pairs]
            summary[way] |= gain("ensemble_gain", [one["ensemble_accuracy"] - one["test_accuracy"] for one in values])
            summary[way] |= gain("ensemble_gain_over_none", over_none)
        summary[way]["fits"] = values
        print(f"{way:12s} { ({name: value for name, value in summary[way].items() if name != 'fits'}) }", flush=True)
    if not args.smoke:
        about = {
            "data": "digits" if args.data is None else args.data.stem, "time_limit": args.time_limit, "n": args.seeds,
            "first_seed": args.first_seed, "ensemble": args.ensemble, "width": args.width,
            "examples": None if args.data is None else args.examples, "rows": args.rows, "products": args.products,
            **({} if args.max_params is None else {"max_params": args.max_params}),
        }  # fmt: skip
        append(args.results, about | {"ways": summary})


if __name__ == "__main__":
    main()
