"""What is believed about scores: a Gaussian process over distances to landmarks, and acquisition functions.

A network is seen through its distances to m landmark networks, phi(a) = (d(a, x_1), ..., d(a, x_m)) / sqrt(m), and a
stock kernel works on those vectors: positive definite whatever the distance, and one kernel fits and predicts. How long
a network was trained is one more coordinate, so that short and long trainings inform each other, and the settings that
it was trained with are further ones.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist
from scipy.special import ndtr

if TYPE_CHECKING:  # scikit-learn takes seconds to load, and workers, who load this, do not search
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import Kernel

Array = NDArray[np.float64]

LANDMARKS = 64
"""More landmarks than these cost time and tell no more."""

_FULL = 200
"""Length scales and noise are found on at most this many observations; all of them are conditioned on."""

_FEW = 5
"""With fewer observations the kernel stays as it starts: the likelihood has nothing to say yet."""

_DIVERGED = 60
"""The lower quartile is taken to be of diverged networks where it is so many times as far from the median as the upper
one. Much less would pull in networks that have learned little, which says something about the others."""

_EPOCH_WEIGHTS = (0.3, 0.1, 1.0)
"""A doubling of the epochs is as far as this share of the median distance between networks. The kernel is fitted with
the first; then the likeliest is taken."""

_SETTING_WEIGHTS = (1.0, 0.3, 3.0)
"""The same of a setting's unit, see `morphnas.search.network_surrogate.coordinates`."""


@dataclass(frozen=True)
class Scales:
    """How trainings become what the kernel sees.

    unit: median distance between the observed networks. epochs, settings: what a doubling of the epochs, and a unit of
    a setting, is as far as, in such units.
    """

    unit: float
    epochs: float = _EPOCH_WEIGHTS[0]
    settings: float = _SETTING_WEIGHTS[0]

    def features(self, distances: Array, epochs: Array, settings: Array) -> Array:
        """Scaled distances to the landmarks, the logarithm of the epochs, and the settings: (n, m + 1 + s)."""
        phi = distances / (self.unit * math.sqrt(max(1, distances.shape[1])))
        return np.column_stack([phi, self.epochs * np.log2(1 + epochs), self.settings * settings])


@dataclass(frozen=True)
class Posterior:
    """Beliefs about scores after some observations; `fit` makes it.

    centre, scale: of the scores, in their unit. kernel: fitted, noise included. model: of the features and the
    standardised scores; None without any.
    """

    centre: float
    scale: float
    scales: Scales
    kernel: Kernel
    model: GaussianProcessRegressor | None

    def predict(self, distances: Array, epochs: Array, settings: Array | None = None) -> tuple[Array, Array]:
        """Mean and standard deviation (k,) of the scores without noise, in the scores' unit.

        distances: (k, m) to the landmarks. epochs: (k,). settings: (k, s), as those of the observations.
        """
        if self.model is None:
            return np.full(len(epochs), self.centre), np.full(len(epochs), self.scale)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a variance that rounding made negative is set to 0
            features = self.scales.features(distances, epochs, _settings(settings, epochs))
            mean, sd = self.model.predict(features, return_std=True)
        variance = np.maximum(0.0, sd**2 - self.kernel.k2.noise_level)
        return self.centre + self.scale * mean, self.scale * np.sqrt(variance)

    def believe(self, distances: Array, epochs: Array, settings: Array | None = None) -> Posterior:
        """The posterior if what is predicted for these, (k, m), (k,) and (k, s), were observed: the kriging believer.

        After Ginsbourger, Le Riche and Carraro 2010, "Kriging is well-suited to parallelize optimization", section 4.
        """
        if self.model is None or not len(epochs):
            return self
        features = self.scales.features(distances, epochs, _settings(settings, epochs))
        mean = (self.predict(distances, epochs, settings)[0] - self.centre) / self.scale
        features, targets = np.concatenate([self.model.X_train_, features]), np.concatenate([self.model.y_train_, mean])
        return replace(self, model=_regressor(self.kernel, None).fit(features, targets))


def fit(distances: Array, epochs: Array, scores: Array, settings: Array | None = None) -> Posterior:
    """Beliefs from observations: distances to the landmarks (n, m), epochs (n,), scores (n,) and, where networks were
    trained with several, settings (n, s), to be compared as they are; n may be 0.

    Length scale, amplitude and noise maximise the marginal likelihood (Rasmussen and Williams 2006, eq. 5.8).
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    targets, centre, scale = standardise(scores)
    settings = _settings(settings, epochs)
    unit = median_distance(Scales(1.0, 0.0, 0.0).features(distances, epochs, settings))
    kernel = ConstantKernel(1.0, (0.1, 100.0)) * Matern(2.0, (1 / 8, 8.0), nu=2.5) + WhiteKernel(0.05, (1e-3, 1.0))
    if not len(targets):
        return Posterior(centre, scale, Scales(unit), kernel, None)
    some = np.unique(np.linspace(0, len(targets) - 1, _FULL).astype(int))
    optimizer = "fmin_l_bfgs_b" if len(targets) >= _FEW else None
    fitted: list[tuple[float, Scales, GaussianProcessRegressor]] = []
    several = (_EPOCH_WEIGHTS, np.ptp(epochs) > 0), (_SETTING_WEIGHTS, settings.shape[1] > 0)
    for weights in product(*(weights if vary else weights[:1] for weights, vary in several)):
        scales = Scales(unit, *weights)
        model = _regressor(kernel, optimizer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a parameter at its bound is an answer, too
            model.fit(scales.features(distances[some], epochs[some], settings[some]), targets[some])
        fitted.append((float(model.log_marginal_likelihood_value_), scales, model))
        kernel, optimizer = model.kernel_, None
    _, scales, model = max(fitted, key=lambda one: one[0])
    if len(some) < len(targets):
        model = _regressor(kernel, None).fit(scales.features(distances, epochs, settings), targets)
    return Posterior(centre, scale, scales, kernel, model)


def _settings(settings: Array | None, epochs: Array) -> Array:
    """Those given, or none."""
    return np.empty((len(epochs), 0)) if settings is None else settings


def _regressor(kernel: Kernel, optimizer: str | None) -> GaussianProcessRegressor:
    from sklearn.gaussian_process import GaussianProcessRegressor

    return GaussianProcessRegressor(kernel, alpha=1e-8, optimizer=optimizer)


def median_distance(features: Array) -> float:
    """Median distance between different rows; 1 when there are none."""
    apart = pdist(features) if len(features) > 1 else np.empty(0)
    apart = apart[apart > 0]
    return float(np.median(apart)) if len(apart) else 1.0


def standardise(scores: Array) -> tuple[Array, float, float]:
    """Scores (n,) with mean 0 and standard deviation 1, and the mean and deviation that were taken out.

    Scores far below the others are pulled in first: how bad a diverged network is says nothing about the good ones.
    These are told by their quartiles, or where a quarter or more has diverged by their upper half alone.
    """
    if not len(scores):
        return scores, 0.0, 1.0
    low, mid, high = np.quantile(scores, [0.25, 0.5, 0.75])
    many = 0 < _DIVERGED * (high - mid) < mid - low
    lowest = mid - 7 * (high - mid) if many else low - 3 * (high - low)  # the same of scores that are symmetric
    scores = np.maximum(scores, lowest) if len(scores) > 3 else scores
    centre, scale = float(scores.mean()), float(scores.std())
    scale = scale if scale > 1e-12 * abs(centre) else 1.0  # in whatever unit they are
    return (scores - centre) / scale, centre, scale


def spread_landmarks(scores: Array, count: int = LANDMARKS) -> NDArray[np.intp]:
    """Which of n networks to measure distances from: the best, and others evenly down the ranking, (<= count,)."""
    ranking = np.argsort(-scores, kind="stable")
    return np.sort(ranking[np.unique(np.linspace(0, len(scores) - 1, min(count, len(scores))).astype(int))])


# -- acquisition: how much a trial promises, from the mean and the standard deviation of its score


def upper_confidence_bound(mean: Array, sd: Array, beta: float = 2.576) -> Array:
    """mean + beta sd (Auer 2002, JMLR 3; Srinivas et al. 2010, arXiv:0912.3995, eq. 6)."""
    return mean + beta * sd


def expected_improvement(mean: Array, sd: Array, incumbent: float | Array) -> Array:
    """E max(0, score - incumbent) (Jones, Schonlau and Welch 1998, J. Global Optimization 13, eq. 15)."""
    gain, safe = mean - incumbent, np.where(sd > 0, sd, 1.0)
    z = gain / safe
    improvement = gain * ndtr(z) + safe * np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    return np.where(sd > 0, np.maximum(0.0, improvement), np.maximum(0.0, gain))


def hypervolume_improvement(mean: Array, sd: Array, cost: Array, scores: Array, costs: Array) -> Array:
    """How much each of k networks is expected to raise the area under the best score of every budget, (k,).

    mean, sd, cost: (k,); scores, costs: (n,) of the networks known. Budgets go up to one above the largest of these
    costs; what can be had for less than the smallest is the worst score. As costs are known, it is the expected
    improvement over each budget's best score, summed over the budgets that are enough (Emmerich, Giannakoglou and
    Naujoks 2006, IEEE Trans. Evolutionary Computation 10, with one objective that is certain).
    """
    order = np.argsort(costs, kind="stable")
    budgets = np.concatenate([[-math.inf], costs[order], [costs.max() + 1]])
    best = np.maximum.accumulate(np.append(scores.min(), scores[order]))
    lengths = np.maximum(0.0, budgets[1:] - np.maximum(budgets[:-1], cost[:, None]))  # (k, n + 1)
    return np.asarray((lengths * expected_improvement(mean[:, None], sd[:, None], best)).sum(1))
