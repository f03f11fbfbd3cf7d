"""Sample weights: in training, in scores, and in stored runs."""

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


def problem(sample_weight: Any, validation_data: Any = None, **options: Any) -> Problem:
    return Problem.infer(X, options.pop("y", Y), validation_data, None, 0, CPU, sample_weight=sample_weight, **options)


def test_weights_go_with_their_examples(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).uniform(0, 3, 300)
    found = problem(weights)
    parts = [found.task.train, found.task.valid, found.all_examples]
    for part, order in zip(parts, (found.order[:255], found.order[255:], found.order), strict=True):
        assert part is not None
        assert part.weights is not None
        assert part.weights.numpy() == pytest.approx(weights[order] / weights.mean(), rel=1e-5)
    assert found.task.train.effective_size < 255
    write_task(tmp_path / "task.pt", found.task)
    again = read_task(tmp_path / "task.pt", CPU)
    assert again.train.weights is not None
    assert found.task.train.weights is not None
    assert torch.equal(again.train.weights, found.task.train.weights)


def test_weights_that_are_alike_are_none() -> None:
    assert problem(np.full(300, 0.2)).fingerprint == problem(None).fingerprint
    assert problem("balanced").task.train.weights is None  # the classes are balanced
    assert problem(np.arange(300)).fingerprint["hash"] != problem(None).fingerprint["hash"]


def test_balanced_classes_count_alike() -> None:
    few = np.concatenate([np.flatnonzero(Y == 0), np.flatnonzero(Y == 1)[:20], np.flatnonzero(Y == 2)[:60]])
    own = (X[:30], Y[:30])
    found = Problem.infer(X[few], Y[few], own, None, 0, CPU, sample_weight="balanced")
    assert found.task.train.weights is not None
    sums = torch.bincount(found.task.train.y, found.task.train.weights)
    assert sums.tolist() == pytest.approx([60, 60, 60])
    assert found.baseline_metric == pytest.approx(1 / 3)
    assert found.task.valid is not None
    assert found.task.valid.weights is not None
    of_class = [found.task.valid.weights[found.task.valid.y == i].unique().item() for i in range(3)]
    assert of_class == pytest.approx([0.6, 3.0, 1.0])  # as in x


def test_validation_data_may_have_weights_of_its_own() -> None:
    found = problem(None, (X[:3], Y[:3], [1.0, 2.0, 3.0]))
    assert found.task.valid is not None
    assert found.task.valid.weights is not None
    assert found.task.valid.weights.tolist() == [0.5, 1.0, 1.5]
    assert found.fingerprint["validation"] != problem(None, (X[:3], Y[:3])).fingerprint["validation"]


UNUSABLE = pytest.mark.parametrize(
    ("sample_weight", "words"),
    [
        (np.ones(299), r"must be \(300,\), a number for each example, but its shape is \(299,\)"),
        (np.ones((300, 1)), "its shape is"),
        (np.linspace(-1, 1, 300), "none negative"),
        (np.zeros(300), "none negative and not all 0"),
        (np.where(Y == 0, np.nan, 1), "finite"),
        (["much"] * 300, "must hold numbers"),
        (np.ma.masked_equal(Y, 2), "masked"),
    ],
)


@UNUSABLE
def test_weights_that_cannot_be_used(sample_weight: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        ImageClassifier(tmp_path / "run").fit(X, Y, time_limit=5, sample_weight=sample_weight)
    assert not (tmp_path / "run").exists()


@UNUSABLE
def test_weights_that_nothing_can_be_scored_by(fitted: ImageClassifier, sample_weight: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fitted.score(X, Y, sample_weight)
    with pytest.raises(ValueError, match=words):
        fitted.evaluate(X, Y, sample_weight)


@pytest.mark.parametrize(
    ("sample_weight", "words"),
    [
        ("equal", "None, numbers .* or \"balanced\", not 'equal'"),
        (np.eye(300)[0], "0 for all examples of a split"),
    ],
)
def test_weights_that_cannot_be_learnt_from(sample_weight: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        ImageClassifier(tmp_path / "run").fit(X, Y, time_limit=5, sample_weight=sample_weight)
    assert not (tmp_path / "run").exists()


def test_amounts_have_no_balance() -> None:
    with pytest.raises(ValueError, match="None or numbers"):
        problem("balanced", y=Y + 0.5 * X.mean((1, 2)), read=RegressionTarget.infer)


@pytest.mark.slow
def test_what_counts_for_nothing_is_not_learnt(tmp_path: Path) -> None:
    """Two thirds of the labels are wrong and have weight 0."""
    right = np.arange(300) // 3 % 3 == 0
    y = np.where(right, Y, (Y + 1) % 3)
    found = ImageClassifier(tmp_path / "run", max_trials=1, random_state=0, searcher_args=SMALL)
    found.fit(X, y, time_limit=4, sample_weight=right)
    test, truth = stripes(90, seed=1)
    assert found.evaluate(test, truth) > 0.8
    again = ImageClassifier(tmp_path / "run", max_trials=1, random_state=0, searcher_args=SMALL, resume=True)
    with pytest.raises(RunError, match="sample_weight"):
        again.fit(X, y, time_limit=6)
    outcome = load_run(tmp_path / "run").trials[0].outcome
    assert outcome is not None
    assert outcome.examples == right[problem(right, y=y).order[255:]].sum()
    found.final_fit(X, y, time_limit=2, sample_weight=right)
    assert found.evaluate(test, truth) > 0.8


def test_a_rare_class_is_found_where_classes_are_balanced(tmp_path: Path) -> None:
    """Of two overlapping classes, the rare one is never predicted if all errors count the same."""
    rng = np.random.default_rng(0)
    y = (np.arange(1200) % 12 == 0).astype(int)
    x = rng.normal(size=(1200, 6)) + 0.5 * y[:, None]
    options: dict[str, Any] = {"max_trials": 1, "random_state": 0, "searcher_args": SMALL, "refit": False}
    balanced = ImageClassifier(**options).fit(x, y, time_limit=10, sample_weight="balanced")
    with pytest.warns(DataWarning, match="with sample_weight='balanced' all classes count alike"):
        plain = ImageClassifier(**options).fit(x, y, time_limit=10)
    test = rng.normal(size=(1200, 6)) + 0.5 * y[:, None]
    before, after = (balanced_accuracy_score(y, model.predict(test)) for model in (plain, balanced))
    assert before < 0.6
    assert after > 0.65
    np.savez(tmp_path / "rare.npz", x_train=x, y_train=y)
    quick = ["--time-limit", "10", "--max-trials", "1", "--width", "8", "--seed", "0", "--quiet", "--no-refit"]
    assert main(["fit", str(tmp_path / "rare.npz"), "--balanced", *quick, "--path", str(tmp_path / "run")]) == 0
    assert balanced_accuracy_score(y, ImageClassifier.load(tmp_path / "run").predict(test)) > 0.65


def test_amounts_may_count_for_more_and_for_less(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3))
    right = np.arange(400) % 2 == 0
    y = np.where(right, x.sum(1), 5 * rng.normal(size=400))
    found = ImageRegressor(tmp_path / "run", max_trials=1, random_state=0, searcher_args=SMALL)
    found.fit(x, y, time_limit=5, sample_weight=right)
    assert found.score(x[right], y[right]) > 0.8


def test_how_sure_a_model_may_be_is_said_by_what_counts() -> None:
    found = problem(np.where(Y == 0, 20.0, 1.0))
    valid, graph = found.task.valid, cnn((1, 6, 6), 3, width=8, depth=1)
    assert valid is not None
    network = Network(graph, fresh_weights(graph))
    outputs = predict(network.to_module(), valid.x, found.task)
    counted, alike = (found.task.goal.temperature(outputs, valid.y, weights) for weights in (valid.weights, None))
    assert calibration_temperature(network, found.task, False, NEVER, None) == pytest.approx(counted, rel=1e-6)
    assert abs(counted - alike) > 0.1


def test_where_there_is_no_time_to_ask_a_model_is_as_sure_as_it_is() -> None:
    graph = cnn((1, 6, 6), 3, width=8, depth=1)
    network = Network(graph, fresh_weights(graph))
    assert calibration_temperature(network, problem(None).task, False, Clock().deadline(0), None) == 1.0


def test_examples_without_weight_leave_no_trace() -> None:
    """Neither in the normalisation of pixels nor in that of regression targets."""
    y, weights = np.random.default_rng(0).normal(size=300), np.ones(300)
    x = X.astype(np.float32)
    x[::7], y[::7], weights[::7] = 1e4, -1e6, 0
    found = problem(weights, y=y, read=RegressionTarget.infer)
    assert isinstance(found.target, RegressionTarget)
    assert found.target.mean == pytest.approx([y[weights > 0].mean()])
    assert found.target.std == pytest.approx([y[weights > 0].std()])
    found = Problem.infer(x, Y, None, None, 0, CPU, sample_weight=weights)
    assert found.task.mean.abs().max() < 255
    assert found.task.std.max() < 255
