"""Knowledge distillation: valid and invalid teachers, how they are called, and fits with one."""

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


def chances(n: int = 6, k: int = 3) -> NDArray[np.float64]:
    there: NDArray[np.float64] = np.random.default_rng(1).dirichlet(np.ones(k), n)
    return there


class Oracle:
    """A teacher with its classes in another order."""

    classes_ = np.array(list("cab"))

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def predict_proba(self, x: Any) -> NDArray[np.float64]:
        self.asked.append(x)
        return chances(len(x))


# -- what a teacher's outputs are


def test_numbers_are_what_a_teacher_says() -> None:
    said = teacher_outputs(chances(), SOURCE, LETTERS)
    assert said is not None
    assert said.dtype == np.float32
    assert np.exp(said) == pytest.approx(chances(), rel=1e-5)
    outputs = torch.from_numpy(chances()).requires_grad_()  # as the output of a PyTorch module
    assert teacher_outputs(outputs, SOURCE, LETTERS) == pytest.approx(said)
    assert teacher_outputs(None, SOURCE, LETTERS) is None


def test_a_model_is_asked_of_the_raw_examples_and_its_classes_are_put_in_order() -> None:
    teacher = Oracle()
    said = teacher_outputs(teacher, SOURCE, LETTERS)
    assert said is not None
    assert (np.concatenate(teacher.asked) == X).all()
    assert np.exp(said) == pytest.approx(chances()[:, [1, 2, 0]], rel=1e-5)


def test_a_model_that_knows_columns_by_name_is_asked_of_a_frame() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=list("abcd"))
    teacher = make_pipeline(ColumnTransformer([("some", "passthrough", ["d", "b"])]), LogisticRegression())
    teacher.fit(frame, list("abcabc"))
    said = teacher_outputs(teacher, Source.of(frame, "x"), LETTERS)
    assert said is not None
    assert np.exp(said) == pytest.approx(teacher.predict_proba(frame), abs=2 * MIN_PROBABILITY)


def test_what_is_sure_stays_a_number() -> None:
    said = teacher_outputs(np.eye(3)[[0, 1, 2, 0, 1, 2]], SOURCE, LETTERS)
    assert said is not None
    assert np.isfinite(said).all()
    assert said.min() == pytest.approx(np.log(MIN_PROBABILITY))
    tags = teacher_outputs(np.eye(2)[[0, 1, 0, 1, 0, 1]], SOURCE, MultiLabelTarget(2))
    assert tags is not None
    assert np.isfinite(tags).all()
    assert (tags > 0).sum() == 6


def test_tags_and_amounts_are_read_as_they_are_learnt() -> None:
    y = np.random.default_rng(2).integers(0, 2, (6, 2))
    y[:2] = [[0, 1], [1, 0]]
    teacher = MultiOutputClassifier(LogisticRegression()).fit(X / 255, y)  # returns a list of (n, 2)
    source = Source.of(X / 255, "x")
    tags = teacher_outputs(teacher, source, MultiLabelTarget(2))
    assert tags is not None
    wanted = np.stack([one[:, 1] for one in teacher.predict_proba(X / 255)], 1)
    assert 1 / (1 + np.exp(-tags)) == pytest.approx(wanted, rel=1e-4)
    amounts = np.arange(6.0)
    values = RegressionTarget.infer(amounts, 6)[0]
    said = teacher_outputs(Ridge().fit(X / 255, amounts), source, values)
    assert said is not None
    assert said.shape == (6, 1)
    assert values.decode(said)[:, 0] == pytest.approx(Ridge().fit(X / 255, amounts).predict(X / 255), rel=1e-4)


class Knows:
    def __init__(self, *classes: str) -> None:
        self.classes_ = np.array(classes)

    def predict_proba(self, x: Any) -> NDArray[np.float64]:
        return np.full((len(x), len(self.classes_)), 1 / len(self.classes_))


class Fails(Knows):
    def predict_proba(self, x: Any) -> NDArray[np.float64]:
        raise RuntimeError("no batteries")


@pytest.mark.parametrize(
    ("teacher", "target", "words"),
    [
        (Knows("a", "b"), LETTERS, "the teacher does not know the class 'c'"),
        (Knows("a", "b", "c", "d"), LETTERS, "knows a class that is not in y: 'd'"),
        (Fails("a", "b", "c"), LETTERS, "the teacher's predict_proba fails on x: no batteries"),
        (LinearSVC(), LETTERS, "a teacher needs predict_proba, which LinearSVC does not have"),
        (LogisticRegression(), LETTERS, "the teacher's predict_proba fails on x: .*not fitted"),
        (chances(5), LETTERS, r"probabilities must be \(6, 3\).* but these are \(5, 3\)"),
        (chances(6, 2), LETTERS, r"probabilities must be \(6, 3\).* but these are \(6, 2\)"),
        (np.arange(6) % 3, LETTERS, r"but these are \(6, 1\)"),
        (2 * chances(), LETTERS, "sum to 1|from 0 to 1"),
        (chances() - 0.5, LETTERS, "from 0 to 1"),
        (chances() * np.nan, LETTERS, "from 0 to 1"),
        (chances() / 2, LETTERS, "sum to 1 for every example"),
        (np.ma.masked_less(chances(), 0.1), LETTERS, "masked values"),
        ("run", LETTERS, "teacher must be a fitted model, not its path: use morphnas.load..run"),
        (object(), LETTERS, "teacher must be a fitted model or numbers"),
        (chances(6, 3), MultiLabelTarget(2), r"probabilities must be \(6, 2\).* labels, but these are \(6, 3\)"),
        (chances(6, 2), RegressionTarget.infer(np.arange(6.0), 6)[0], "2 numbers for each example, but fit saw 1"),
        (chances(6, 1) * np.inf, RegressionTarget.infer(np.arange(6.0), 6)[0], "NaN or infinity"),
    ],
)
def test_what_cannot_be_a_teacher_is_refused_in_words(teacher: Any, target: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        teacher_outputs(teacher, SOURCE, target)


# -- fits

LONGER: dict[str, Any] = {
    "max_trials": 1,
    "random_state": 0,
    "searcher_args": {"default_model_width": 8, "trainer_args": {"epochs": 30}},
}


def mostly_wrong(truth: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels of which 60 % are the next class's."""
    return np.where(np.random.default_rng(0).random(len(truth)) < 0.6, (truth + 1) % 3, truth)


def test_networks_learn_what_a_teacher_says_and_are_scored_by_y(data: Data, tmp_path: Path) -> None:
    """With y that are mostly wrong, in a systematic way."""
    x, truth = data
    said, y = np.eye(3)[truth] * 0.94 + 0.02, mostly_wrong(truth)
    clf = ImageClassifier(tmp_path / "run", refit=False, **LONGER).fit(x, y, time_limit=60, teacher=said)
    new, known = stripes(90, seed=3)
    assert clf.score(new, known) > 0.8
    (trial,) = load_run(clf.path_).trials
    assert trial.outcome is not None
    assert trial.outcome.metric is not None
    assert trial.outcome.metric < 0.7


@pytest.mark.slow
def test_final_trainings_have_the_teacher_that_they_are_given(data: Data, tmp_path: Path) -> None:
    x, truth = data
    said, y = np.eye(3)[truth] * 0.94 + 0.02, mostly_wrong(truth)
    clf = ImageClassifier(tmp_path / "run", refit=False, **LONGER).fit(x, y, time_limit=60)
    new, known = stripes(90, seed=3)
    epochs: dict[str, Any] = {"retrain": True, "trainer_args": {"epochs": 30}}
    assert clf.final_fit(x, y, time_limit=60, **epochs).score(new, known) < 0.6
    assert clf.final_fit(x, y, time_limit=60, teacher=said, **epochs).score(new, known) > 0.8


def test_a_classifier_teaches_another(fitted: ImageClassifier, data: Data, tmp_path: Path) -> None:
    limits = {"max_params": 1500}
    clf = ImageClassifier(tmp_path / "run", max_trials=2, random_state=0, limits=limits)
    clf.fit(*data, time_limit=20, teacher=fitted)
    assert clf.score(*stripes(90, seed=3)) > 0.8
    assert "a teacher" in morphnas.write_report(clf.path_).read_text()
    assert clf.network_.graph.parameters <= 1500
    with pytest.raises(ValueError, match="is not a run on the same data"):
        morphnas.compare_runs([fitted.path_, clf.path_])


@pytest.mark.slow
def test_a_run_is_gone_on_with_its_teacher_only(data: Data, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"random_state": 0, "searcher_args": SMALL}
    said = np.eye(3)[data[1]] * 0.94 + 0.02
    ImageClassifier(tmp_path / "run", max_trials=1, **settings).fit(*data, time_limit=20, teacher=said)
    again = ImageClassifier(tmp_path / "run", max_trials=2, resume=True, **settings)
    with pytest.raises(RunError, match=re.escape("the same x, y, sample_weight, groups and teacher")):
        again.fit(*data, time_limit=20)
    again.fit(*data, time_limit=20, teacher=said)
    with pytest.raises(RunError, match="groups and teacher of the fit"):
        morphnas.ablate(tmp_path / "run", *data, time_limit=5)
    assert morphnas.ablate(tmp_path / "run", *data, time_limit=5, teacher=said).epochs > 0


def test_amounts_are_taught_as_well(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4))
    regressor = ImageRegressor(tmp_path / "run", max_trials=2, random_state=0)
    regressor.fit(x, rng.normal(size=200), time_limit=15, teacher=x[:, 0])
    assert np.corrcoef(regressor.predict(x), x[:, 0])[0, 1] > 0.5


@pytest.mark.slow
def test_on_the_command_line(fitted: ImageClassifier, data: Data, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=data[0], y=data[1])
    one = ["fit", str(tmp_path / "data.npz"), "--time-limit", "5", "--max-trials", "1", "--quiet"]
    assert main([*one, "--path", str(tmp_path / "run"), "--teacher", fitted.path_]) == 0
    assert load_run(tmp_path / "run").about["data"]["taught"] is True
    assert main([*one, "--path", str(tmp_path / "other"), "--teacher", str(tmp_path)]) == 1
