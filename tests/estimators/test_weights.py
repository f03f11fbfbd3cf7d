"""Sample weights in training, scores, normalisation and calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from morphnas import DataWarning, ImageClassifier, ImageRegressor, RunError, load_run
from morphnas.cli import main
from morphnas.estimators.fitting import calibration_temperature
from morphnas.estimators.inputs import Problem
from morphnas.estimators.targets import RegressionTarget
from morphnas.graph import Network, cnn, fresh_weights
from morphnas.run.transport import read_task, write_task
from morphnas.train.deadline import NEVER
from morphnas.train.predict import predict
from tests.estimators.conftest import stripes
from tests.train.tasks import Clock

CPU = torch.device("cpu")
X, Y = stripes(300)
SMALL: dict[str, Any] = {"default_model_width": 8, "trainer_args": {"epochs": 6}}


def infer_problem(sample_weight: Any, validation_data: Any = None, **options: Any) -> Problem:
    return Problem.infer(X, options.pop("y", Y), validation_data, None, 0, CPU, sample_weight=sample_weight, **options)


def test_weights_are_split_with_their_examples(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).uniform(0, 3, 300)
    problem = infer_problem(weights)
    parts = [problem.task.train, problem.task.valid, problem.all_examples]
    for part, order in zip(parts, (problem.order[:255], problem.order[255:], problem.order), strict=True):
        assert part is not None
        assert part.weights is not None
        assert part.weights.numpy() == pytest.approx(weights[order] / weights.mean(), rel=1e-5)
    assert problem.task.train.effective_size < 255
    write_task(tmp_path / "task.pt", problem.task)
    stored = read_task(tmp_path / "task.pt", CPU)
    assert stored.train.weights is not None
    assert problem.task.train.weights is not None
    assert torch.equal(stored.train.weights, problem.task.train.weights)


def test_equal_weights_are_dropped() -> None:
    assert infer_problem(np.full(300, 0.2)).fingerprint == infer_problem(None).fingerprint
    assert infer_problem("balanced").task.train.weights is None  # the classes are balanced
    assert infer_problem(np.arange(300)).fingerprint["hash"] != infer_problem(None).fingerprint["hash"]


def test_balanced_weights_equalise_the_classes() -> None:
    imbalanced = np.concatenate([np.flatnonzero(Y == 0), np.flatnonzero(Y == 1)[:20], np.flatnonzero(Y == 2)[:60]])
    validation_data = (X[:30], Y[:30])
    problem = Problem.infer(X[imbalanced], Y[imbalanced], validation_data, None, 0, CPU, sample_weight="balanced")
    assert problem.task.train.weights is not None
    sums = torch.bincount(problem.task.train.y, problem.task.train.weights)
    assert sums.tolist() == pytest.approx([60, 60, 60])
    assert problem.baseline_metric == pytest.approx(1 / 3)
    assert problem.task.valid is not None
    assert problem.task.valid.weights is not None
    class_weights = [problem.task.valid.weights[problem.task.valid.y == i].unique().item() for i in range(3)]
    assert class_weights == pytest.approx([0.6, 3.0, 1.0])  # the weights of the classes in x


def test_validation_data_may_have_sample_weights() -> None:
    problem = infer_problem(None, (X[:3], Y[:3], [1.0, 2.0, 3.0]))
    assert problem.task.valid is not None
    assert problem.task.valid.weights is not None
    assert problem.task.valid.weights.tolist() == [0.5, 1.0, 1.5]
    assert problem.fingerprint["validation"] != infer_problem(None, (X[:3], Y[:3])).fingerprint["validation"]


INVALID: list[tuple[Any, str]] = [
    (np.ones(299), r"must be \(300,\), a number for each example, but its shape is \(299,\)"),
    (np.ones((300, 1)), "its shape is"),
    (np.linspace(-1, 1, 300), "none negative"),
    (np.zeros(300), "none negative and not all 0"),
    (np.where(Y == 0, np.nan, 1), "finite"),
    (["much"] * 300, "must hold numbers"),
    (np.ma.masked_equal(Y, 2), "masked"),
]
INVALID_IN_FIT: list[tuple[Any, str]] = [
    *INVALID,
    ("equal", "None, numbers .* or \"balanced\", not 'equal'"),
    (np.eye(300)[0], "0 for all examples of a split"),
]


@pytest.mark.parametrize(("sample_weight", "message"), INVALID_IN_FIT)
def test_fit_rejects_invalid_sample_weight(sample_weight: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        ImageClassifier(tmp_path / "run").fit(X, Y, time_limit=5, sample_weight=sample_weight)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("sample_weight", "message"), INVALID)
def test_score_and_evaluate_reject_invalid_sample_weight(
    fitted_classifier: ImageClassifier, sample_weight: Any, message: str
) -> None:
    for method in (fitted_classifier.score, fitted_classifier.evaluate):
        with pytest.raises(ValueError, match=message):
            method(X, Y, sample_weight)


def test_balanced_weights_of_regression_are_rejected() -> None:
    with pytest.raises(ValueError, match="None or numbers"):
        infer_problem("balanced", y=Y + 0.5 * X.mean((1, 2)), read=RegressionTarget.infer)


@pytest.mark.slow
def test_examples_of_weight_zero_are_not_learnt(tmp_path: Path) -> None:
    """Two thirds of the labels are wrong and have weight 0."""
    correct = np.arange(300) // 3 % 3 == 0
    y = np.where(correct, Y, (Y + 1) % 3)
    clf = ImageClassifier(tmp_path / "run", max_trials=1, random_state=0, searcher_args=SMALL)
    clf.fit(X, y, time_limit=4, sample_weight=correct)
    x_test, y_test = stripes(90, seed=1)
    assert clf.evaluate(x_test, y_test) > 0.8
    resumed = ImageClassifier(tmp_path / "run", max_trials=1, random_state=0, searcher_args=SMALL, resume=True)
    with pytest.raises(RunError, match="sample_weight"):
        resumed.fit(X, y, time_limit=6)
    outcome = load_run(tmp_path / "run").trials[0].outcome
    assert outcome is not None
    assert outcome.examples == correct[infer_problem(correct, y=y).order[255:]].sum()
    clf.final_fit(X, y, time_limit=2, sample_weight=correct)
    assert clf.evaluate(x_test, y_test) > 0.8


def test_balanced_weights_find_a_rare_class(tmp_path: Path) -> None:
    """Without weights, the rarer of two overlapping classes is never predicted."""
    rng = np.random.default_rng(0)
    y = (np.arange(1200) % 12 == 0).astype(int)
    x = rng.normal(size=(1200, 6)) + 0.5 * y[:, None]
    options: dict[str, Any] = {"max_trials": 1, "random_state": 0, "searcher_args": SMALL, "refit": False}
    balanced = ImageClassifier(**options).fit(x, y, time_limit=10, sample_weight="balanced")
    with pytest.warns(DataWarning, match="with sample_weight='balanced' all classes count alike"):
        plain = ImageClassifier(**options).fit(x, y, time_limit=10)
    x_test = rng.normal(size=(1200, 6)) + 0.5 * y[:, None]
    assert balanced_accuracy_score(y, plain.predict(x_test)) < 0.6
    assert balanced_accuracy_score(y, balanced.predict(x_test)) > 0.65
    np.savez(tmp_path / "rare.npz", x_train=x, y_train=y)
    flags = ["--time-limit", "10", "--max-trials", "1", "--width", "8", "--seed", "0", "--quiet", "--no-refit"]
    assert main(["fit", str(tmp_path / "rare.npz"), "--balanced", *flags, "--path", str(tmp_path / "run")]) == 0
    assert balanced_accuracy_score(y, ImageClassifier.load(tmp_path / "run").predict(x_test)) > 0.65


def test_regression_with_sample_weights(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3))
    correct = np.arange(400) % 2 == 0
    y = np.where(correct, x.sum(1), 5 * rng.normal(size=400))
    regressor = ImageRegressor(tmp_path / "run", max_trials=1, random_state=0, searcher_args=SMALL)
    regressor.fit(x, y, time_limit=5, sample_weight=correct)
    assert regressor.score(x[correct], y[correct]) > 0.8


def test_calibration_temperature_uses_sample_weights() -> None:
    problem = infer_problem(np.where(Y == 0, 20.0, 1.0))
    valid, graph = problem.task.valid, cnn((1, 6, 6), 3, width=8, depth=1)
    assert valid is not None
    network = Network(graph, fresh_weights(graph))
    outputs = predict(network.to_module(), valid.x, problem.task)
    weighted = problem.task.goal.temperature(outputs, valid.y, valid.weights)
    unweighted = problem.task.goal.temperature(outputs, valid.y, None)
    assert calibration_temperature(network, problem.task, False, NEVER, None) == pytest.approx(weighted, rel=1e-6)
    assert abs(weighted - unweighted) > 0.1


def test_calibration_temperature_without_time_is_one() -> None:
    graph = cnn((1, 6, 6), 3, width=8, depth=1)
    network = Network(graph, fresh_weights(graph))
    assert calibration_temperature(network, infer_problem(None).task, False, Clock().deadline(0), None) == 1.0


def test_normalisation_ignores_examples_of_weight_zero() -> None:
    """Both the normalisation of pixels and that of regression targets ignore them."""
    y, weights = np.random.default_rng(0).normal(size=300), np.ones(300)
    x = X.astype(np.float32)
    x[::7], y[::7], weights[::7] = 1e4, -1e6, 0
    problem = infer_problem(weights, y=y, read=RegressionTarget.infer)
    assert isinstance(problem.target, RegressionTarget)
    assert problem.target.mean == pytest.approx([y[weights > 0].mean()])
    assert problem.target.std == pytest.approx([y[weights > 0].std()])
    problem = Problem.infer(x, Y, None, None, 0, CPU, sample_weight=weights)
    assert problem.task.mean.abs().max() < 255
    assert problem.task.std.max() < 255
