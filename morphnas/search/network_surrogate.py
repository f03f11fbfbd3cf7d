"""The surrogate of networks' scores, learnt from the trials of a run, and the choice of the winner."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from morphnas.search.distance import SKIP_COST, Array, ReferenceNetworks, Sketch
from morphnas.search.surrogate import Posterior, fit, spread_landmarks
from morphnas.search.trial import Trial
from morphnas.train.recipe import Optimizer, Recipe

INHERITED_EPOCH_WEIGHT = 0.5
"""Weight of an epoch that went into the inherited weights, relative to an epoch of the trial's own."""

NETWORK_NOISE_SHARE = 0.5
"""Share of the residual of a score that is attributed to the network and not to noise: the surrogate is smoother than
the true scores of networks."""

_MIN_TRIALS_FOR_POSTERIOR = 8
"""With fewer finished trials the winner is chosen by the best score (see `winner`)."""


def fidelities(trials: Sequence[Trial]) -> dict[int, float]:
    """Fidelity of every trial by id, in epochs: its own epochs and the inherited ones, discounted per generation.

    Own epochs are the planned ones, as a schedule that ends early has done its work; the started ones if the training
    did not finish.
    """
    result: dict[int, float] = {}
    for trial in trials:
        cut = trial.outcome is not None and trial.outcome.status != "finished"
        own = trial.outcome.epochs if cut and trial.outcome is not None else trial.epochs
        inherited = 0.0 if trial.parent is None else result.get(trial.parent, 0.0)
        result[trial.id] = own + INHERITED_EPOCH_WEIGHT * inherited
    return result


def recipe_features(recipe: Recipe) -> Array:
    """A recipe as a point, (s,), scaled so that distances roughly reflect how differently networks are trained.

    Without the fields that cannot be searched (`morphnas.search.tuned.UNTUNED`), and without the horizontal flip, which
    is decided once for the whole run.
    """
    augment = recipe.augment
    return np.array([
        math.log(recipe.lr, 4), math.log(recipe.batch_size, 4), math.log10(recipe.weight_decay + 1e-6),
        4 * recipe.dropout, 5 * recipe.label_smoothing, -math.log10(1 - recipe.momentum), math.log(recipe.bias_rate, 8),
        math.log2(1 + recipe.average), 2 * recipe.warmup, float(recipe.whiten),
        *(float(recipe.optimizer == name) for name in get_args(Optimizer)),
        10 * (augment.shift or 0.0), 4 * augment.cutout, augment.rotate / 15, float(augment.flip_vertical),
        5 * augment.zoom, 2 * augment.brightness, 2 * augment.contrast,
    ])  # fmt: skip


@dataclass(frozen=True)
class NetworkSurrogate:
    """A Gaussian process posterior of scores, with the landmark networks that distances are measured to.

    measured: distances from the n trials with a score to the m landmarks, (n, m). settings: features of their recipes,
    (n, s). varied: which of these features differ among the n trials, (s,).
    """

    landmarks: ReferenceNetworks
    measured: Array
    settings: Array
    varied: NDArray[np.bool_]
    posterior: Posterior

    @staticmethod
    def of(trials: Sequence[Trial], skip_weight: float = SKIP_COST) -> NetworkSurrogate:
        """The surrogate fitted to all trials with a score. Running trials count as if they had the predicted score."""
        epochs = fidelities(trials)
        scored = [t for t in trials if t.score is not None]
        distinct = list({t.graph.key: t for t in sorted(scored, key=lambda t: (t.score, -t.id))}.values())
        chosen = spread_landmarks(np.array([t.score for t in distinct], dtype=np.float64))
        landmarks = ReferenceNetworks.of([distinct[i].sketch for i in chosen], skip_weight)
        measured = landmarks.distances([t.sketch for t in scored])
        settings = _all_recipe_features([t.proposal.recipe for t in scored])
        varied = np.ptp(settings, axis=0) > 0 if len(settings) else np.zeros(settings.shape[1], dtype=bool)
        posterior = fit(
            measured,
            np.array([epochs[t.id] for t in scored], dtype=np.float64),
            np.array([t.score for t in scored], dtype=np.float64),
            settings[:, varied],
        )
        running = [t for t in trials if t.outcome is None]
        posterior = posterior.condition_on_predictions(
            landmarks.distances([t.sketch for t in running]),
            np.array([epochs[t.id] for t in running], dtype=np.float64),
            _all_recipe_features([t.proposal.recipe for t in running])[:, varied],
        )
        return NetworkSurrogate(landmarks, measured, settings, varied, posterior)

    def predict(
        self, sketches: Sequence[Sketch], epochs: Sequence[float] | float, recipes: Sequence[Recipe]
    ) -> tuple[Array, Array]:
        """Posterior mean and standard deviation of every network's score, (k,) each. epochs: fidelities as those of
        `fidelities`, with inherited epochs discounted."""
        return self._predict(self.landmarks.distances(sketches), epochs, _all_recipe_features(recipes))

    def predict_observed(self, epochs: Sequence[float] | float) -> tuple[Array, Array]:
        """The same for the networks and recipes of the trials with a score, in their order."""
        return self._predict(self.measured, epochs, self.settings)

    def _predict(self, measured: Array, epochs: Sequence[float] | float, settings: Array) -> tuple[Array, Array]:
        fidelity = np.broadcast_to(np.asarray(epochs, np.float64), len(measured))
        return self.posterior.predict(measured, fidelity, settings[:, self.varied])


def _all_recipe_features(recipes: Sequence[Recipe]) -> Array:
    """`recipe_features` of every recipe, (n, s)."""
    rows = [recipe_features(recipe) for recipe in recipes]
    return np.array(rows) if rows else np.empty((0, len(recipe_features(Recipe()))))


def winner(trials: Sequence[Trial]) -> Trial | None:
    """The trial with the best network; None if no trial has a score.

    It has the highest posterior mean, since the best of many noisy scores is mostly luck; or the best score if fewer
    than `_MIN_TRIALS_FOR_POSTERIOR` trials finished with a score (if none did: have a score). The mean is that of the
    trial's own network: with score = f + own + noise, f the surrogate, it is f + NETWORK_NOISE_SHARE (score - f).
    Trials are compared by their expected scores after the epochs that they had: where longer training helps, the
    surrogate has learnt it and the longest trained win, but a bad network does not win for having been trained longest.
    Ties go to the longer trained, then to the earlier trial.

    Only trials that finished and whose weights are kept are considered; if there are none, those whose weights are
    kept, then those that finished, then any with a score. Networks that exceed the latency limit are not considered
    unless all do: then the fastest wins.
    """
    scored = [t for t in trials if t.score is not None]
    finished = [t for t in scored if t.outcome is not None and t.outcome.status == "finished"]
    fast_enough = _fast_enough(scored)
    tiers = ([t for t in finished if t.kept], [t for t in scored if t.kept], finished, scored)
    pool = next((fast for tier in tiers if (fast := [t for t in tier if t.id in fast_enough])), None)
    if pool is None:
        return None
    epochs = fidelities(trials)
    value = {t.id: t.score for t in trials if t.score is not None}
    if len(finished or scored) >= _MIN_TRIALS_FOR_POSTERIOR:
        means, _ = NetworkSurrogate.of(trials).predict_observed([epochs[t.id] for t in scored])
        pairs = zip(scored, means.tolist(), strict=True)
        value = {t.id: mean + NETWORK_NOISE_SHARE * (value[t.id] - mean) for t, mean in pairs}
    return max(pool, key=lambda t: (value[t.id], epochs[t.id], -t.id))


def _fast_enough(scored: Sequence[Trial]) -> set[int]:
    """Ids of the trials whose networks are within the latency limit; if all exceed it, of the fastest."""
    latencies = {t.id: t.outcome.latency or math.inf for t in scored if t.outcome is not None}
    fast = {t.id for t in scored if not t.slow}
    return fast or {id for id, seconds in latencies.items() if seconds == min(latencies.values())}
