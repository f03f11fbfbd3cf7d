"""How well surrogates rank unseen networks after observing n of the 6,561 of NAS-Bench-Macro, or n of a run.

    PYTHONPATH=. python benchmarks/surrogate.py [--seeds 40] [--ablation] [--smoke]
    PYTHONPATH=. python benchmarks/surrogate.py --train 300 [--data cifar10.npz --examples 2000]

All surrogates are fitted to the scores of the same n random networks (one of the three trainings each, drawn by the
seed) and predict 300 others, from the same distances to the observed ones. With --train a random search without
promotions trains so many networks on scikit-learn's digits, or on --data, from starters of width 8; then the others are
all that it trained besides the n, and the truth is their only score. The surrogates are:

* the library's: a Gaussian process, Matern 5/2, on the distances to landmarks (`morphnas/search/surrogate.py`),
* a Gaussian process with kernel `exp(-d / l)`, its spectrum clipped: K = Q L Q' of the n networks without the negative
  part of L, extended to others by phi(x) = L^(-1/2) Q' k(x), k(x, y) = phi(x) . phi(y), with the difference to 1 added
  to the variance; l in median(d) x 1/8 .. 4 and noise in .001 .. .3 by marginal likelihood,
* the mean of the 5 nearest networks.

Writes results/surrogate.json, or adds to results/surrogate_runs.json: Spearman's rank correlation with the mean
accuracy of the three trainings, and the log likelihood of the scores of another training of the 300 under the predicted
normal distributions, noise included, in nats; means over seeds and their standard errors. --ablation adds variants of
the library's surrogate.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
from machine import append, describe, npz
from numpy.typing import NDArray
from scipy.stats import norm, spearmanr
from search_pays import part

import morphnas
from morphnas.graph import Graph
from morphnas.search import RandomSearcher
from morphnas.search.distance import SKIP_COST, Sketch, Token, distances, sketch
from morphnas.search.network_surrogate import fidelities
from morphnas.search.surrogate import fit, spread_landmarks, standardise
from tests.table import accuracy, table_network, table_outcome

RESULTS = Path(__file__).parent / "results" / "surrogate.json"
RUNS = RESULTS.with_name("surrogate_runs.json")
KEYS = ["".join(digits) for digits in product("012", repeat=8)]
HELD_OUT, EPOCHS = 300, 8.0

Array = NDArray[np.float64]
Predict = Callable[[Array, Array, Array], tuple[Array, Array]]
"""From distances (n + k, n) of all networks to the observed ones, scores (n,) of these, and epochs (n + k,) of all, to
mean and standard deviation (k,) of the others' scores, noise included."""


def ours(count: int = 64) -> Predict:
    def predict(d: Array, scores: Array, epochs: Array) -> tuple[Array, Array]:
        n, chosen = len(scores), spread_landmarks(scores, count)
        posterior = fit(d[:n, chosen], epochs[:n], scores)
        mean, sd = posterior.predict(d[n:, chosen], epochs[n:])
        return mean, np.sqrt(sd**2 + posterior.scale**2 * posterior.kernel.k2.noise_level)

    return predict


def clipped(d: Array, scores: Array, _: Array) -> tuple[Array, Array]:
    n, (targets, centre, scale) = len(scores), standardise(scores)
    apart = d[:n][np.triu_indices(n, 1)]
    best = (-math.inf, np.empty(0), np.empty(0))
    for length in np.median(apart[apart > 0]) * 2.0 ** np.arange(-3, 3):
        spectrum, q = np.linalg.eigh(np.exp(-d[:n] / length))
        kept = spectrum > 1e-9
        phi = np.exp(-d / length) @ q[:, kept] / np.sqrt(spectrum[kept])  # (n + k, features)
        rest = np.maximum(0.0, 1 - (phi**2).sum(1))
        for noise in np.geomspace(1e-3, 0.3, 6):
            k = phi[:n] @ phi[:n].T + np.diag(rest[:n] + noise)
            factor = np.linalg.cholesky(k)
            white = np.linalg.solve(factor, targets)
            amplitude = float(white @ white) / n  # of the whole kernel, its maximum likelihood estimate
            likelihood = -n / 2 * math.log(amplitude) - np.log(np.diag(factor)).sum()
            if likelihood > best[0]:
                across = np.linalg.solve(factor, phi[:n] @ phi[n:].T)
                variance = (phi[n:] ** 2).sum(1) + rest[n:] + noise - (across**2).sum(0)
                best = (likelihood, across.T @ white, np.sqrt(amplitude * np.maximum(1e-9, variance)))
    return centre + scale * best[1], scale * best[2]


def nearest(d: Array, scores: Array, _: Array) -> tuple[Array, Array]:
    five = scores[np.argsort(d[len(scores) :], axis=1, kind="stable")[:, :5]]
    return five.mean(1), np.full(len(five), max(1e-9, scores.std()))


def without_resolution(graph: Graph) -> Sketch:
    return tuple(Token(t.kind, t.sizes[:-1], t.skips, t.reach) for t in sketch(graph))


SURROGATES: dict[str, Predict] = {"landmarks": ours(), "exp(-d/l) clipped": clipped, "5 nearest": nearest}


def score(key: str, seed: int) -> float:
    value = table_outcome(key, seed).score
    assert value is not None
    return value


def metrics(mean: Array, sd: Array, truth: list[float], scores: list[float]) -> tuple[float, float]:
    """Spearman's rank correlation with the truth, and mean log likelihood of the scores."""
    rank = float(spearmanr(mean, truth)[0])
    return rank if math.isfinite(rank) else 0.0, float(norm.logpdf(scores, mean, sd).mean())


def measured(predict: Predict, d: Array, keys: list[str], n: int, seed: int) -> tuple[float, float]:
    scores = np.array([score(key, seed) for key in keys[:n]])
    again = [score(key, seed + 1_000) for key in keys[n:]]
    return metrics(*predict(d, scores, np.full(len(keys), EPOCHS)), [accuracy(key) for key in keys[n:]], again)


def trials(n: int, seed: int, ablation: bool) -> Iterator[tuple[str, tuple[float, float]]]:
    """The two metrics of every surrogate for one seed."""
    rng = np.random.default_rng(seed)
    keys = [KEYS[i] for i in rng.choice(len(KEYS), n + HELD_OUT, replace=False)]
    sketches = [sketch(table_network(key)) for key in keys]
    d = distances(sketches, sketches[:n])
    for name, predict in SURROGATES.items():
        yield name, measured(predict, d, keys, n, seed)
    if ablation:
        for count in (8, 16, 32):
            yield f"{count} landmarks", measured(ours(count), d, keys, n, seed)
        for weight in (0.0, 0.25, 0.5):
            yield f"skip_weight {weight}", measured(ours(), distances(sketches, sketches[:n], weight), keys, n, seed)
        blind = [without_resolution(table_network(key)) for key in keys]
        yield "without resolution", measured(ours(), distances(blind, blind[:n]), keys, n, seed)


def trained(args: argparse.Namespace) -> list[tuple[Sketch, float, float]]:
    """Sketch, score and fidelity in epochs of the networks that a random search has trained."""
    x, _, y, _ = part(args, 0)
    with tempfile.TemporaryDirectory() as folder:
        classifier = morphnas.ImageClassifier(
            Path(folder) / "run",
            search_type=RandomSearcher,
            searcher_args={"default_model_width": 8},
            max_trials=args.train,
            refit=False,
            random_state=0,
            device="cpu",
        )
        run_trials = classifier.fit(x, y, time_limit=10.0 * args.train).load_searcher().trials
    epochs = fidelities(run_trials)
    finished = [t for t in run_trials if t.outcome is not None and t.outcome.status == "finished"]
    return [(t.sketch, t.score, epochs[t.id]) for t in finished if t.score is not None]


def of_run(known: list[tuple[Sketch, float, float]], n: int, seed: int) -> Iterator[tuple[str, tuple[float, float]]]:
    """The two metrics of every surrogate after n networks of a run, for one seed."""
    mixed = [known[i] for i in np.random.default_rng(seed).permutation(len(known))]
    sketches = [one for one, _, _ in mixed]
    scores, epochs = ([one[i] for one in mixed] for i in (1, 2))
    d = distances(sketches, sketches[:n])
    for name, predict in SURROGATES.items():
        yield name, metrics(*predict(d, np.array(scores[:n]), np.array(epochs)), scores[n:], scores[n:])


def spread(values: list[float]) -> dict[str, float]:
    return {
        "mean": round(statistics.mean(values), 4),
        "standard_error": round(statistics.stdev(values) / math.sqrt(len(values)), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--ablation", action="store_true", help="variants of the library's, too")
    parser.add_argument("--train", type=int, help="networks of a run of our own")
    parser.add_argument("--data", type=npz)
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--smoke", action="store_true", help="two seeds of few networks, nothing written")
    parser.set_defaults(rows=False, products=False)
    args = parser.parse_args()
    if args.train is not None and args.train < 15:
        parser.error("--train takes 15 networks or more, of which 10 are learnt from")
    if args.ablation and args.train:
        parser.error("--ablation is of the table")
    seeds, requested = (2, [10, 20]) if args.smoke else (args.seeds, [10, 20, 50, 100, 200])
    known = trained(args) if args.train else []
    sizes = tuple(n for n in requested if not known or n <= 0.8 * len(known))
    results: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for n in sizes:
        figures: dict[str, list[tuple[float, float]]] = {}
        for seed in range(seeds):
            for name, pair in of_run(known, n, seed) if known else trials(n, seed, args.ablation):
                figures.setdefault(name, []).append(pair)
        for name, pairs in figures.items():
            ranks, likelihoods = (spread([pair[i] for pair in pairs]) for i in (0, 1))
            results.setdefault(name, {})[str(n)] = {"rank_correlation": ranks, "log_likelihood": likelihoods}
            print(f"n {n:3d}  {name:20s} rank {ranks['mean']:.3f} +- {ranks['standard_error']:.3f}", end="  ")
            print(f"log likelihood {likelihoods['mean']:.3f} +- {likelihoods['standard_error']:.3f}", flush=True)
    if not args.smoke and known:
        of = {"data": "digits"} if args.data is None else {"data": args.data.stem, "examples": args.examples}
        append(RUNS, of | {"seeds": seeds, "networks": len(known), "skip_weight": SKIP_COST, "surrogates": results})
    elif not args.smoke:
        about = {"seeds": seeds, "held_out": HELD_OUT, "skip_weight": SKIP_COST, "table": "NAS-Bench-Macro, CIFAR-10"}
        RESULTS.write_text(json.dumps(describe() | about | {"surrogates": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
