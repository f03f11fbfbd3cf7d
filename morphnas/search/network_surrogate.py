"""What a history says about networks: scores to expect, and which trial has won."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from morphnas.search.distance import SKIP, Array, Gauge, Sketch
from morphnas.search.surrogate import Posterior, fit, spread_landmarks
from morphnas.search.trial import Trial
from morphnas.train.recipe import Optimizer, Recipe

INHERITED = 0.5
"""What an epoch that went into the inherited weights counts, against one of the trial's own."""

OWN = 0.5
"""Share of what the surrogate takes for noise that is a network's own: it is smooth, and networks are not quite."""

_ENOUGH = 8
"""With fewer trials to learn from the best score is the better guess."""


def fidelities(trials: Sequence[Trial]) -> dict[int, float]:
    """By id, for how many epochs a trial counts as trained: its own and, discounted per generation, the inherited.

    Own epochs are those planned, for a schedule that ends early has done its work; those begun if it was cut off.
    """
    found: dict[int, float] = {}
    for trial in trials:
        cut = trial.outcome is not None and trial.outcome.status != "finished"
        own = trial.outcome.epochs if cut and trial.outcome is not None else trial.epochs
        found[trial.id] = own + INHERITED * (0.0 if trial.parent is None else found.get(trial.parent, 0.0))
    return found


def coordinates(recipe: Recipe) -> Array:
    """A recipe as a point, (s,): about as far from another one, in units, as it trains otherwise.

    Without what says how long a network is trained, and with mirroring left out, which is found out for all of a run.
    """
    change = recipe.augment
    return np.array([
        math.log(recipe.lr, 4), math.log(recipe.batch_size, 4), math.log10(recipe.weight_decay + 1e-6),
        4 * recipe.dropout, 5 * recipe.label_smoothing, -math.log10(1 - recipe.momentum), math.log(recipe.bias_rate, 8),
        math.log2(1 + recipe.average), 2 * recipe.warmup, float(recipe.whiten),
        *(float(recipe.optimizer == name) for name in get_args(Optimizer)),
        10 * (change.shift or 0.0), 4 * change.cutout, change.rotate / 15, float(change.flip_vertical),
        5 * change.zoom, 2 * change.brightness, 2 * change.contrast,
    ])  # fmt: skip


@dataclass(frozen=True)
class NetworkSurrogate:
    """The surrogate, together with what it measures networks against.

    measured: (trials with a score, landmarks), the distances that it has learnt from. settings: (those, s), of their
    recipes. varied: (s,), which of them differ among all trials.
    """

    landmarks: Gauge
    measured: Array
    settings: Array
    varied: NDArray[np.bool_]
    posterior: Posterior

    @staticmethod
    def of(trials: Sequence[Trial], skip_weight: float = SKIP) -> NetworkSurrogate:
        """Learnt from all trials with a score. Running ones count as if they had come out as predicted."""
        epochs = fidelities(trials)
        scored = [t for t in trials if t.score is not None]
        distinct = list({t.graph.key: t for t in sorted(scored, key=lambda t: (t.score, -t.id))}.values())
        chosen = spread_landmarks(np.array([t.score for t in distinct], dtype=np.float64))
        landmarks = Gauge.of([distinct[i].sketch for i in chosen], skip_weight)
        measured = landmarks.distances([t.sketch for t in scored])
        points = _points([t.proposal.recipe for t in scored])
        varied = np.ptp(points, axis=0) > 0 if len(points) else np.zeros(points.shape[1], dtype=bool)
        posterior = fit(
            measured,
            np.array([epochs[t.id] for t in scored], dtype=np.float64),
            np.array([t.score for t in scored], dtype=np.float64),
            points[:, varied],
        )
        running = [t for t in trials if t.outcome is None]
        posterior = posterior.believe(
            landmarks.distances([t.sketch for t in running]),
            np.array([epochs[t.id] for t in running], dtype=np.float64),
            _points([t.proposal.recipe for t in running])[:, varied],
        )
        return NetworkSurrogate(landmarks, measured, points, varied, posterior)

    def predict(
        self, sketches: Sequence[Sketch], epochs: Sequence[float] | float, recipes: Sequence[Recipe]
    ) -> tuple[Array, Array]:
        """Mean and standard deviation of the score of every network after so many epochs, inherited ones discounted."""
        return self._predict(self.landmarks.distances(sketches), epochs, _points(recipes))

    def review(self, epochs: Sequence[float] | float) -> tuple[Array, Array]:
        """The same of the trials with a score, in their order."""
        return self._predict(self.measured, epochs, self.settings)

    def _predict(self, measured: Array, epochs: Sequence[float] | float, points: Array) -> tuple[Array, Array]:
        long = np.broadcast_to(np.asarray(epochs, np.float64), len(measured))
        return self.posterior.predict(measured, long, points[:, self.varied])


def _points(recipes: Sequence[Recipe]) -> Array:
    """Those of the recipes, (n, s)."""
    rows = [coordinates(recipe) for recipe in recipes]
    return np.array(rows) if rows else np.empty((0, len(coordinates(Recipe()))))


def winner(trials: Sequence[Trial]) -> Trial | None:
    """The trial whose network to use; None when none has a score.

    The highest posterior mean, for the best of many noisy scores is mostly lucky; with fewer than 8 to choose from, the
    best score. The mean is that of the trial's own network: with score = f + own + noise, f the surrogate, it is
    f + OWN (score - f). Trials are judged by what is expected of them after the epochs that they had: where longer
    training helps, the belief has learnt it and the longest trained win, but a bad network does not win for having been
    trained longest. Ties go to the longer trained, then to the earlier trial. Only trials that finished and whose
    weights are kept are looked at, unless there are none; then those with weights, then those that finished, then any
    with a score. Networks that turned out too slow are not, unless all did: then it is the fastest.
    """
    scored = [t for t in trials if t.score is not None]
    finished = [t for t in scored if t.outcome is not None and t.outcome.status == "finished"]
    quick = _quick(scored)
    tiers = ([t for t in finished if t.kept], [t for t in scored if t.kept], finished, scored)
    pool = next((found for tier in tiers if (found := [t for t in tier if t.id in quick])), None)
    if pool is None:
        return None
    epochs = fidelities(trials)
    promise = {t.id: t.score for t in trials if t.score is not None}
    if len(finished or scored) >= _ENOUGH:
        expected, _ = NetworkSurrogate.of(trials).review([epochs[t.id] for t in scored])
        promise = {t.id: f + OWN * (promise[t.id] - f) for t, f in zip(scored, expected.tolist(), strict=True)}
    return max(pool, key=lambda t: (promise[t.id], epochs[t.id], -t.id))


def _quick(scored: Sequence[Trial]) -> set[int]:
    """Ids of the networks that are not too slow; of the fastest, where all are."""
    latencies = {t.id: t.outcome.latency or math.inf for t in scored if t.outcome is not None}
    quick = {t.id for t in scored if not t.slow}
    return quick or {id for id, seconds in latencies.items() if seconds == min(latencies.values())}
