"""Knowledge distillation: valid and invalid teachers, how they are called, and fits with a teacher."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

import morphnas
from morphnas import ImageClassifier, ImageRegressor, RunError, load_run
from morphnas.cli import main
from morphnas.estimators.distillation import MIN_PROBABILITY, teacher_outputs
from morphnas.estimators.labels import ClassTarget
from morphnas.estimators.sources import Source
from morphnas.estimators.targets import MultiLabelTarget, RegressionTarget
from tests.estimators.conftest import Data, stripes

SMALL: dict[str, Any] = {"default_model_width": 8, "trainer_args": {"epochs": 6}}
X = np.random.default_rng(0).integers(0, 255, (6, 4)).astype(np.uint8)
SOURCE = Source.of(X, "x")
LETTERS = ClassTarget.infer(np.array(list("abcabc")), 6)[0]
NUMBERS = RegressionTarget.infer(np.arange(6.0), 6)[0]


def probabilities(n: int = 6, k: int = 3) -> NDArray[np.float64]:
    drawn: NDArray[np.float64] = np.random.default_rng(1).dirichlet(np.ones(k), n)
    return drawn


class ReorderedTeacher:
    """A teacher whose classes are in another order than LETTERS; it records the examples."""

    classes_ = np.array(list("cab"))

    def __init__(self) -> None:
        self.inputs: list[Any] = []

    def predict_proba(self, x: Any) -> NDArray[np.float64]:
        self.inputs.append(x)
        return probabilities(len(x))


# -- outputs of teachers


def test_probabilities_are_a_valid_teacher() -> None:
    log_probabilities = teacher_outputs(probabilities(), SOURCE, LETTERS)
    assert log_probabilities is not None
    assert log_probabilities.dtype == np.float32
    assert np.exp(log_probabilities) == pytest.approx(probabilities(), rel=1e-5)
    tensor = torch.from_numpy(probabilities()).requires_grad_()  # like the output of a PyTorch module
    assert teacher_outputs(tensor, SOURCE, LETTERS) == pytest.approx(log_probabilities)
    assert teacher_outputs(None, SOURCE, LETTERS) is None


def test_teacher_gets_raw_examples_and_classes_are_reordered() -> None:
    teacher = ReorderedTeacher()
    outputs = teacher_outputs(teacher, SOURCE, LETTERS)
    assert outputs is not None
    assert (np.concatenate(teacher.inputs) == X).all()
    assert np.exp(outputs) == pytest.approx(probabilities()[:, [1, 2, 0]], rel=1e-5)


def test_teacher_with_column_names_gets_a_data_frame() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=list("abcd"))
    teacher = make_pipeline(ColumnTransformer([("some", "passthrough", ["d", "b"])]), LogisticRegression())
    teacher.fit(frame, list("abcabc"))
    outputs = teacher_outputs(teacher, Source.of(frame, "x"), LETTERS)
    assert outputs is not None
    assert np.exp(outputs) == pytest.approx(teacher.predict_proba(frame), abs=2 * MIN_PROBABILITY)


def test_outputs_of_a_certain_teacher_are_finite() -> None:
    outputs = teacher_outputs(np.eye(3)[[0, 1, 2, 0, 1, 2]], SOURCE, LETTERS)
    assert outputs is not None
    assert np.isfinite(outputs).all()
    assert outputs.min() == pytest.approx(np.log(MIN_PROBABILITY))
    tags = teacher_outputs(np.eye(2)[[0, 1, 0, 1, 0, 1]], SOURCE, MultiLabelTarget(2))
    assert tags is not None
    assert np.isfinite(tags).all()
    assert (tags > 0).sum() == 6


def test_teachers_of_multilabel_and_regression_targets() -> None:
    y = np.random.default_rng(2).integers(0, 2, (6, 2))
    y[:2] = [[0, 1], [1, 0]]
    teacher = MultiOutputClassifier(LogisticRegression()).fit(X / 255, y)  # returns a list of (n, 2)
    source = Source.of(X / 255, "x")
    tags = teacher_outputs(teacher, source, MultiLabelTarget(2))
    assert tags is not None
    expected = np.stack([pair[:, 1] for pair in teacher.predict_proba(X / 255)], 1)
    assert 1 / (1 + np.exp(-tags)) == pytest.approx(expected, rel=1e-4)
    regressor = Ridge().fit(X / 255, np.arange(6.0))
    outputs = teacher_outputs(regressor, source, NUMBERS)
    assert outputs is not None
    assert outputs.shape == (6, 1)
    assert NUMBERS.decode(outputs)[:, 0] == pytest.approx(regressor.predict(X / 255), rel=1e-4)


class UniformTeacher:
    def __init__(self, *classes: str) -> None:
        self.classes_ = np.array(classes)

    def predict_proba(self, x: Any) -> NDArray[np.float64]:
        return np.full((len(x), len(self.classes_)), 1 / len(self.classes_))


class FailingTeacher(UniformTeacher):
    def predict_proba(self, x: Any) -> NDArray[np.float64]:
        raise RuntimeError("out of order")


@pytest.mark.parametrize(
    ("teacher", "target", "message"),
    [
        (UniformTeacher("a", "b"), LETTERS, "the teacher does not know the class 'c'"),
        (UniformTeacher("a", "b", "c", "d"), LETTERS, "knows a class that is not in y: 'd'"),
        (FailingTeacher("a", "b", "c"), LETTERS, "the teacher's predict_proba fails on x: out of order"),
        (LinearSVC(), LETTERS, "a teacher needs predict_proba, which LinearSVC does not have"),
        (LogisticRegression(), LETTERS, "the teacher's predict_proba fails on x: .*not fitted"),
        (probabilities(5), LETTERS, r"probabilities must be \(6, 3\).* but these are \(5, 3\)"),
        (probabilities(6, 2), LETTERS, r"probabilities must be \(6, 3\).* but these are \(6, 2\)"),
        (np.arange(6) % 3, LETTERS, r"but these are \(6, 1\)"),
        (2 * probabilities(), LETTERS, "sum to 1|from 0 to 1"),
        (probabilities() - 0.5, LETTERS, "from 0 to 1"),
        (probabilities() * np.nan, LETTERS, "from 0 to 1"),
        (probabilities() / 2, LETTERS, "sum to 1 for every example"),
        (np.ma.masked_less(probabilities(), 0.1), LETTERS, "masked values"),
        ("run", LETTERS, "teacher must be a fitted model, not its path: use morphnas.load..run"),
        (object(), LETTERS, "teacher must be a fitted model or numbers"),
        (probabilities(6, 3), MultiLabelTarget(2), r"probabilities must be \(6, 2\).* labels, but these are \(6, 3\)"),
        (probabilities(6, 2), NUMBERS, "2 numbers for each example, but fit saw 1"),
        (probabilities(6, 1) * np.inf, NUMBERS, "NaN or infinity"),
    ],
)
def test_invalid_teacher_is_rejected(teacher: Any, target: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        teacher_outputs(teacher, SOURCE, target)


# -- fits

SETTINGS: dict[str, Any] = {
    "max_trials": 1,
    "random_state": 0,
    "searcher_args": {"default_model_width": 8, "trainer_args": {"epochs": 30}},
}


def confident_probabilities(truth: NDArray[np.int64]) -> NDArray[np.float64]:
    """Probabilities of a teacher that is right about all labels."""
    return np.eye(3)[truth] * 0.94 + 0.02


def mostly_wrong(truth: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels of which 60 % are replaced by the next class."""
    return np.where(np.random.default_rng(0).random(len(truth)) < 0.6, (truth + 1) % 3, truth)


def test_networks_learn_from_teacher_and_are_scored_on_y(data: Data, tmp_path: Path) -> None:
    """y are mostly wrong, in a systematic way."""
    x, truth = data
    teacher, y = confident_probabilities(truth), mostly_wrong(truth)
    clf = ImageClassifier(tmp_path / "run", refit=False, **SETTINGS).fit(x, y, time_limit=60, teacher=teacher)
    x_test, y_test = stripes(90, seed=3)
    assert clf.score(x_test, y_test) > 0.8
    (trial,) = load_run(clf.path_).trials
    assert trial.outcome is not None
    assert trial.outcome.metric is not None
    assert trial.outcome.metric < 0.7


@pytest.mark.slow
def test_final_fit_uses_the_teacher_given_to_it(data: Data, tmp_path: Path) -> None:
    x, truth = data
    teacher, y = confident_probabilities(truth), mostly_wrong(truth)
    clf = ImageClassifier(tmp_path / "run", refit=False, **SETTINGS).fit(x, y, time_limit=60)
    x_test, y_test = stripes(90, seed=3)
    options: dict[str, Any] = {"retrain": True, "trainer_args": {"epochs": 30}}
    assert clf.final_fit(x, y, time_limit=60, **options).score(x_test, y_test) < 0.6
    assert clf.final_fit(x, y, time_limit=60, teacher=teacher, **options).score(x_test, y_test) > 0.8


def test_classifier_as_teacher(fitted_classifier: ImageClassifier, data: Data, tmp_path: Path) -> None:
    limits = {"max_params": 1500}
    clf = ImageClassifier(tmp_path / "run", max_trials=2, random_state=0, limits=limits)
    clf.fit(*data, time_limit=20, teacher=fitted_classifier)
    assert clf.score(*stripes(90, seed=3)) > 0.8
    assert "a teacher" in morphnas.write_report(clf.path_).read_text()
    assert clf.network_.graph.parameters <= 1500
    with pytest.raises(ValueError, match="is not a run on the same data"):
        morphnas.compare_runs([fitted_classifier.path_, clf.path_])


@pytest.mark.slow
def test_resume_and_ablate_need_the_teacher_of_the_fit(data: Data, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"random_state": 0, "searcher_args": SMALL}
    teacher = confident_probabilities(data[1])
    ImageClassifier(tmp_path / "run", max_trials=1, **settings).fit(*data, time_limit=20, teacher=teacher)
    resumed = ImageClassifier(tmp_path / "run", max_trials=2, resume=True, **settings)
    with pytest.raises(RunError, match=re.escape("the same x, y, sample_weight, groups and teacher")):
        resumed.fit(*data, time_limit=20)
    resumed.fit(*data, time_limit=20, teacher=teacher)
    with pytest.raises(RunError, match="groups and teacher of the fit"):
        morphnas.ablate(tmp_path / "run", *data, time_limit=5)
    assert morphnas.ablate(tmp_path / "run", *data, time_limit=5, teacher=teacher).epochs > 0


def test_regressor_learns_from_teacher(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4))
    regressor = ImageRegressor(tmp_path / "run", max_trials=2, random_state=0)
    regressor.fit(x, rng.normal(size=200), time_limit=15, teacher=x[:, 0])
    assert np.corrcoef(regressor.predict(x), x[:, 0])[0, 1] > 0.5


@pytest.mark.slow
def test_teacher_on_the_command_line(fitted_classifier: ImageClassifier, data: Data, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=data[0], y=data[1])
    arguments = ["fit", str(tmp_path / "data.npz"), "--time-limit", "5", "--max-trials", "1", "--quiet"]
    assert main([*arguments, "--path", str(tmp_path / "run"), "--teacher", fitted_classifier.path_]) == 0
    assert load_run(tmp_path / "run").about["data"]["taught"] is True
    assert main([*arguments, "--path", str(tmp_path / "other"), "--teacher", str(tmp_path)]) == 1
