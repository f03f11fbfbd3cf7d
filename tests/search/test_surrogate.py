"""The Gaussian process and the acquisition functions on numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm, spearmanr

from morphnas.search.distance import distances, sketch
from morphnas.search.surrogate import (
    LANDMARKS,
    expected_improvement,
    fit,
    hypervolume_improvement,
    spread_landmarks,
    standardise,
    upper_confidence_bound,
)
from tests.table import accuracy, table_network, table_outcome


def points_on_line(n: int, epochs: float = 8.0) -> tuple[np.ndarray, np.ndarray]:
    """n networks on a line: their distances (n, n) from each other, and epochs (n,)."""
    x = np.linspace(0, 5, n)
    return np.abs(x[:, None] - x), np.full(n, epochs)


@pytest.mark.parametrize("n", range(12))
def test_fit_to_few_observations(n: int) -> None:
    d, epochs = points_on_line(12)
    scores = np.sin(np.arange(12.0))
    posterior = fit(d[:n, :n], epochs[:n], scores[:n])
    mean, sd = posterior.predict(d[:, :n], epochs)
    assert np.isfinite(mean).all()
    assert (sd >= 0).all()
    assert (sd <= 10 * max(posterior.scale, 1e-6)).all()
    if n:
        assert sd[0] < sd[-1]
        assert abs(mean[0] - scores[0]) < 0.5
    else:
        assert (mean == 0).all()
        assert (sd == 1).all()


def test_fit_interpolates_smooth_function() -> None:
    d, epochs = points_on_line(41)
    truth = np.sin(np.linspace(0, 5, 41))
    seen = np.arange(0, 41, 4)
    mean, sd = fit(d[np.ix_(seen, seen)], epochs[seen], truth[seen]).predict(d[:, seen], epochs)
    np.testing.assert_allclose(mean, truth, atol=0.1)
    assert (sd < 0.2).all()


def test_fit_estimates_noise_level() -> None:
    d, epochs = points_on_line(60)
    noise = np.random.default_rng(0).normal(size=60)
    levels = [
        posterior.scale**2 * posterior.kernel.k2.noise_level
        for size in (0.05, 0.5)
        for posterior in [fit(d, epochs, np.sin(np.linspace(0, 5, 60)) + size * noise)]
    ]
    assert levels[0] == pytest.approx(0.05**2, rel=0.6)
    assert levels[1] == pytest.approx(0.5**2, rel=0.6)


def test_fit_to_equal_scores_and_to_equal_networks() -> None:
    d, epochs = points_on_line(10)
    mean, _ = fit(d, epochs, np.full(10, -0.3)).predict(d, epochs)
    np.testing.assert_allclose(mean, -0.3)
    mean, sd = fit(np.zeros((10, 1)), epochs, np.arange(10.0)).predict(np.zeros((2, 1)), epochs[:2])
    assert np.isfinite([*mean, *sd]).all()


def test_short_trainings_inform_about_long_ones() -> None:
    """All networks have short trainings, every fourth also a long one."""
    d, short = points_on_line(20)
    quality = np.sin(np.linspace(0, 5, 20))
    long = np.full(20, 32.0)
    rows, epochs = np.concatenate([d, d[::4]]), np.concatenate([short, long[::4]])
    scores = np.concatenate([quality, quality[::4] + 0.5])
    mean, _ = fit(rows, epochs, scores).predict(d, long)
    assert spearmanr(mean, quality)[0] > 0.9
    assert abs((mean - quality).mean() - 0.5) < 0.15


def test_conditioning_on_predictions_keeps_mean_and_lowers_sd() -> None:
    d, epochs = points_on_line(12)
    posterior = fit(d[:6], epochs[:6], np.sin(np.arange(6.0)))
    mean, sd = posterior.predict(d[9:], epochs[9:])
    new_mean, new_sd = posterior.condition_on_predictions(d[9:], epochs[9:]).predict(d[9:], epochs[9:])
    np.testing.assert_allclose(new_mean, mean, atol=0.05)
    assert (new_sd < sd).all()
    assert posterior.condition_on_predictions(d[:0], epochs[:0]) is posterior


def test_fit_is_deterministic() -> None:
    d, epochs = points_on_line(30)
    scores = np.random.default_rng(1).normal(size=30)
    one, other = (fit(d, epochs, scores).predict(d, epochs) for _ in range(2))
    np.testing.assert_array_equal(one, other)


def test_fit_to_more_observations_than_kernel_fit_uses() -> None:
    d, epochs = points_on_line(250)
    truth = np.sin(np.linspace(0, 5, 250))
    mean, _ = fit(d[:, ::10], epochs, truth).predict(d[:, ::10], epochs)
    np.testing.assert_allclose(mean, truth, atol=0.02)


def test_standardise_keeps_others_apart_despite_one_outlier() -> None:
    scores = np.array([-0.5, -0.4, -0.45, -0.42, -0.48, -1e6])
    targets, _, _ = standardise(scores)
    assert targets[1] - targets[0] > 0.1
    assert targets.argmin() == 5


@pytest.mark.parametrize("bad", range(10))
def test_standardise_keeps_others_apart_despite_many_outliers(bad: int) -> None:
    scores = np.concatenate([np.linspace(-0.6, -0.3, 20 - bad), np.full(bad, -30.0)])
    targets, centre, scale = standardise(scores)
    assert np.ptp(targets[: 20 - bad]) > 0.5
    np.testing.assert_allclose(centre + scale * targets[: 20 - bad], scores[: 20 - bad])


def test_standardise_keeps_scores_below_many_equal_ones() -> None:
    scores = np.array([-0.3] * 6 + [-0.4, -0.5, -0.6, -0.7])
    targets, centre, scale = standardise(scores)
    np.testing.assert_allclose(centre + scale * targets, scores)


def test_landmarks_are_distinct_and_include_the_best() -> None:
    scores = np.random.default_rng(0).normal(size=300)
    chosen = spread_landmarks(scores)
    assert len(set(chosen)) == len(chosen) == LANDMARKS
    assert scores.argmax() in chosen
    assert spread_landmarks(scores[:5]).tolist() == [0, 1, 2, 3, 4]
    assert spread_landmarks(scores[:0]).tolist() == []


@given(st.floats(-3, 3), st.floats(0.01, 3), st.floats(-3, 3))
def test_expected_improvement_equals_integral(mean: float, sd: float, incumbent: float) -> None:
    top = max(incumbent, mean) + 10 * sd
    integral, _ = quad(lambda y: (y - incumbent) * norm.pdf(y, mean, sd), incumbent, top, points=[max(mean, incumbent)])
    found = expected_improvement(np.array([mean]), np.array([sd]), incumbent).item()
    assert found == pytest.approx(integral, abs=1e-6)


@pytest.mark.parametrize("unit", [1e-18, 1e-13, 1e-6, 1e9])
def test_result_does_not_depend_on_unit_of_scores(unit: float) -> None:
    """Scores may be as small as squared errors of wavelengths in metres."""
    scores, d, epochs = -np.arange(1.0, 7.0), np.arange(6.0)[:, None], np.ones(6)
    expected = fit(d, epochs, scores).predict(d, epochs)
    scaled = fit(d, epochs, scores * unit).predict(d, epochs)
    assert np.allclose(np.array(scaled) / unit, expected, rtol=1e-6)
    mean, sd = np.array([-1.5]), np.array([1.0])
    gain = expected_improvement(mean * unit, sd * unit, -1.0 * unit) / unit
    assert gain == pytest.approx(expected_improvement(mean, sd, -1.0), rel=1e-9)


def test_acquisition_functions_at_special_values() -> None:
    mean = np.array([0.0, 2.0])
    assert expected_improvement(mean, np.zeros(2), 1.0).tolist() == [0.0, 1.0]
    assert upper_confidence_bound(mean, np.ones(2), 2.0).tolist() == [2.0, 4.0]
    assert math.isfinite(expected_improvement(np.array([-50.0]), np.array([1e-3]), 1.0).item())


def area_under_front(networks: Sequence[tuple[float, float]], cheapest: float, dearest: float, worst: float) -> float:
    """Area under the best score as a function of the budget, by small steps. networks: (cost, score) of each."""
    budgets = np.arange(cheapest, dearest, 0.125)
    return sum(0.125 * max([worst, *(s for c, s in networks if c <= budget)]) for budget in budgets)


eighths = st.integers(-16, 16).map(lambda n: n / 8)
networks = st.tuples(eighths, eighths)  # cost and score


@given(st.lists(networks, min_size=1, max_size=6), networks)
def test_hypervolume_improvement_equals_growth_of_area(
    known: list[tuple[float, float]], new: tuple[float, float]
) -> None:
    costs, scores = (np.array(column) for column in zip(*known, strict=True))
    ends = min(new[0], *costs), costs.max() + 1, scores.min()
    growth = area_under_front([*known, new], *ends) - area_under_front(known, *ends)
    mean, sd, cost = np.array([new[1]]), np.zeros(1), np.array([new[0]])
    assert hypervolume_improvement(mean, sd, cost, scores, costs).item() == pytest.approx(growth, abs=1e-9)


def test_hypervolume_improvement_is_expectation_over_scores() -> None:
    """Compared with the mean over 100,000 random scores, to within four standard errors."""
    scores, costs = np.array([0.0, 1.0, 0.5, 2.0]), np.array([1.0, 2.0, 2.5, 4.0])
    samples = np.random.default_rng(0).normal(0.8, 0.6, 100_000)
    values = hypervolume_improvement(samples, np.zeros_like(samples), np.full_like(samples, 1.5), scores, costs)
    found = hypervolume_improvement(np.array([0.8]), np.array([0.6]), np.array([1.5]), scores, costs).item()
    assert found == pytest.approx(values.mean(), abs=4 * values.std() / math.sqrt(len(samples)))


def test_surrogate_ranks_unseen_networks_of_table() -> None:
    """After 50 of 6,561 networks. The legacy kernel had a rank correlation of 0.08, exp(-d/l) of 0.84."""
    keys, correlations = ["".join(key) for key in product("012", repeat=8)], []
    for seed in range(3):
        drawn = [keys[i] for i in np.random.default_rng(seed).choice(len(keys), 250, replace=False)]
        sketches = [sketch(table_network(key)) for key in drawn]
        d, epochs = distances(sketches, sketches[:50]), np.full(250, 8.0)
        scores = np.array([table_outcome(key, seed).score for key in drawn[:50]])
        mean, _ = fit(d[:50], epochs[:50], scores).predict(d[50:], epochs[50:])
        correlations.append(spearmanr(mean, [accuracy(key) for key in drawn[50:]])[0])
    assert min(correlations) > 0.9
