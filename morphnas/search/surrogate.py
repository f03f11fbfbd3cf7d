"""A Gaussian process of scores over distances to landmark networks, and acquisition functions.

The features of a network are its distances to m landmarks, phi(a) = (d(a, x_1), ..., d(a, x_m)) / sqrt(m), and a
standard kernel on these vectors is positive definite for any distance. The epochs that a network was trained for are a
further feature, so that short and long trainings inform each other, as are the features of its recipe.
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

if TYPE_CHECKING:  # scikit-learn takes seconds to import; workers import this module, but do not search
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import Kernel

Array = NDArray[np.float64]

LANDMARKS = 64
"""Maximum number of landmarks; more cost time without better predictions."""

_MAX_OBSERVATIONS_FOR_FIT = 200
"""The kernel's parameters are fitted to at most so many observations; the posterior is conditioned on all of them."""

_MIN_OBSERVATIONS_FOR_FIT = 5
"""With fewer observations the kernel's parameters keep their initial values: the likelihood says too little."""

_DIVERGED_RATIO = 60
"""A quarter or more of the networks count as diverged if the lower quartile of the scores is more than so many times as
far from the median as the upper one. With a much smaller ratio, networks that have learned little would be clipped,
although their scores are informative about the others."""

_EPOCH_WEIGHTS = (0.3, 0.1, 1.0)
"""Candidates for the distance of a doubling of the epochs, as a share of the median distance between networks. The
kernel is fitted with the first; then the one of highest marginal likelihood is taken."""

_SETTING_WEIGHTS = (1.0, 0.3, 3.0)
"""The same for the distance of one unit of `morphnas.search.network_surrogate.recipe_features`."""


@dataclass(frozen=True)
class Scales:
    """Scales of the kernel's features.

    unit: median distance between the observed networks. epochs, settings: the distance of a doubling of the epochs and
    of one unit of a setting, in multiples of `unit`.
    """

    unit: float
    epochs: float = _EPOCH_WEIGHTS[0]
    settings: float = _SETTING_WEIGHTS[0]

    def features(self, distances: Array, epochs: Array, settings: Array) -> Array:
        """Scaled distances to the landmarks (m), logarithm of the epochs, and settings (s): (n, m + 1 + s)."""
        phi = distances / (self.unit * math.sqrt(max(1, distances.shape[1])))
        return np.column_stack([phi, self.epochs * np.log2(1 + epochs), self.settings * settings])


@dataclass(frozen=True)
class Posterior:
    """Posterior of the scores given the observations; made by `fit`.

    centre, scale: mean and standard deviation that the scores were standardised with. kernel: fitted, with its noise
    term. model: from features to standardised scores; None without observations.
    """

    centre: float
    scale: float
    scales: Scales
    kernel: Kernel
    model: GaussianProcessRegressor | None

    def predict(self, distances: Array, epochs: Array, settings: Array | None = None) -> tuple[Array, Array]:
        """Posterior mean and standard deviation of k noise-free scores, (k,) each, in the unit of the scores.

        distances: to the landmarks, (k, m). epochs: (k,). settings: (k, s), the same s as in `fit`.
        """
        if self.model is None:
            return np.full(len(epochs), self.centre), np.full(len(epochs), self.scale)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a variance that rounding made negative is set to 0
            features = self.scales.features(distances, epochs, _settings_or_empty(settings, epochs))
            mean, sd = self.model.predict(features, return_std=True)
        variance = np.maximum(0.0, sd**2 - self.kernel.k2.noise_level)
        return self.centre + self.scale * mean, self.scale * np.sqrt(variance)

    def condition_on_predictions(self, distances: Array, epochs: Array, settings: Array | None = None) -> Posterior:
        """The posterior if the posterior means at k further points were observed: the kriging believer.

        Shapes as in `predict`. After Ginsbourger, Le Riche and Carraro 2010, "Kriging is well-suited to parallelize
        optimization", section 4.
        """
        if self.model is None or not len(epochs):
            return self
        features = self.scales.features(distances, epochs, _settings_or_empty(settings, epochs))
        mean = (self.predict(distances, epochs, settings)[0] - self.centre) / self.scale
        features, targets = np.concatenate([self.model.X_train_, features]), np.concatenate([self.model.y_train_, mean])
        return replace(self, model=_regressor(self.kernel, None).fit(features, targets))


def fit(distances: Array, epochs: Array, scores: Array, settings: Array | None = None) -> Posterior:
    """The posterior given n observations (n may be 0): distances to the landmarks (n, m), epochs (n,), scores (n,) and,
    if settings differ between trainings, settings (n, s), which are not standardised.

    Length scale, amplitude and noise maximise the marginal likelihood (Rasmussen and Williams 2006, eq. 5.8).
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    targets, centre, scale = standardise(scores)
    settings = _settings_or_empty(settings, epochs)
    unit = median_distance(Scales(1.0, 0.0, 0.0).features(distances, epochs, settings))
    kernel = ConstantKernel(1.0, (0.1, 100.0)) * Matern(2.0, (1 / 8, 8.0), nu=2.5) + WhiteKernel(0.05, (1e-3, 1.0))
    if not len(targets):
        return Posterior(centre, scale, Scales(unit), kernel, None)
    subset = np.unique(np.linspace(0, len(targets) - 1, _MAX_OBSERVATIONS_FOR_FIT).astype(int))
    optimizer = "fmin_l_bfgs_b" if len(targets) >= _MIN_OBSERVATIONS_FOR_FIT else None
    fitted: list[tuple[float, Scales, GaussianProcessRegressor]] = []
    options = (_EPOCH_WEIGHTS, np.ptp(epochs) > 0), (_SETTING_WEIGHTS, settings.shape[1] > 0)
    for weights in product(*(weights if vary else weights[:1] for weights, vary in options)):
        scales = Scales(unit, *weights)
        model = _regressor(kernel, optimizer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a parameter may end at its bound
            model.fit(scales.features(distances[subset], epochs[subset], settings[subset]), targets[subset])
        fitted.append((float(model.log_marginal_likelihood_value_), scales, model))
        kernel, optimizer = model.kernel_, None
    _, scales, model = max(fitted, key=lambda item: item[0])
    if len(subset) < len(targets):
        model = _regressor(kernel, None).fit(scales.features(distances, epochs, settings), targets)
    return Posterior(centre, scale, scales, kernel, model)


def _settings_or_empty(settings: Array | None, epochs: Array) -> Array:
    """The settings, or an array (n, 0) if there are none."""
    return np.empty((len(epochs), 0)) if settings is None else settings


def _regressor(kernel: Kernel, optimizer: str | None) -> GaussianProcessRegressor:
    from sklearn.gaussian_process import GaussianProcessRegressor

    return GaussianProcessRegressor(kernel, alpha=1e-8, optimizer=optimizer)


def median_distance(features: Array) -> float:
    """Median of the positive Euclidean distances between rows; 1 if there are none."""
    pairwise = pdist(features) if len(features) > 1 else np.empty(0)
    pairwise = pairwise[pairwise > 0]
    return float(np.median(pairwise)) if len(pairwise) else 1.0


def standardise(scores: Array) -> tuple[Array, float, float]:
    """Scores (n,) with mean 0 and standard deviation 1, and the mean and standard deviation of the clipped scores.

    If there are more than 3, scores far below the others are clipped first: how bad a diverged network is says nothing
    about the good ones. The bound comes from the quartiles or, if a quarter or more has diverged, from the median and
    the upper quartile alone.
    """
    if not len(scores):
        return scores, 0.0, 1.0
    low, mid, high = np.quantile(scores, [0.25, 0.5, 0.75])
    many_diverged = 0 < _DIVERGED_RATIO * (high - mid) < mid - low
    lowest = mid - 7 * (high - mid) if many_diverged else low - 3 * (high - low)  # equal for symmetric scores
    scores = np.maximum(scores, lowest) if len(scores) > 3 else scores
    centre, scale = float(scores.mean()), float(scores.std())
    scale = scale if scale > 1e-12 * abs(centre) else 1.0  # relative, as scores may have any unit
    return (scores - centre) / scale, centre, scale


def spread_landmarks(scores: Array, count: int = LANDMARKS) -> NDArray[np.intp]:
    """Indices of the landmarks among n networks with these scores: the best, and others evenly down the ranking, at
    most `count`."""
    ranking = np.argsort(-scores, kind="stable")
    return np.sort(ranking[np.unique(np.linspace(0, len(scores) - 1, min(count, len(scores))).astype(int))])


# -- acquisition functions of the posterior mean and standard deviation


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
    """Expected hypervolume improvement of k networks, (k,): by how much each is expected to raise the area under the
    best score as a function of the budget (the cost that a network may have).

    mean, sd, cost: of the k networks, (k,). scores, costs: of the observed networks, (n,). Budgets end at the largest
    of these costs plus 1; below the smallest of them the best score is the worst of `scores`. As costs are known, it is
    the expected improvement over each budget's best score, integrated over the budgets that are at least the network's
    cost (Emmerich, Giannakoglou and Naujoks 2006, IEEE Trans. Evolutionary Computation 10, with one objective that is
    certain).
    """
    order = np.argsort(costs, kind="stable")
    budgets = np.concatenate([[-math.inf], costs[order], [costs.max() + 1]])
    best = np.maximum.accumulate(np.append(scores.min(), scores[order]))
    lengths = np.maximum(0.0, budgets[1:] - np.maximum(budgets[:-1], cost[:, None]))  # (k, n + 1)
    return np.asarray((lengths * expected_improvement(mean[:, None], sd[:, None], best)).sum(1))
