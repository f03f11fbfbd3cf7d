"""Search of hyperparameters: the given ranges, the values that are tried, and how they are reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import morphnas
from morphnas import ImageClassifier, ImageRegressor
from morphnas.report.words import trial_words
from tests.run.doubles import comparable_trials

RANGES: dict[str, Any] = {"lr": (0.01, 0.5), "dropout": (0.0, 0.5), "optimizer": ["sgd", "adamw"]}
ARGS: dict[str, Any] = {"default_model_width": 8, "trainer_args": {"epochs": 3, "precision": "float32", **RANGES}}


def rows(n: int = 150) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    x = np.random.default_rng(0).normal(size=(n, 5)).astype(np.float32)
    return x, (x[:, 0] * x[:, 1] > 0).astype(int)


def fit_classifier(path: Path, **options: Any) -> ImageClassifier:
    settings: dict[str, Any] = {"random_state": 1, "max_trials": 10, "searcher_args": ARGS}
    return ImageClassifier(path, **(settings | options)).fit(*rows(), time_limit=600)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> ImageClassifier:
    return fit_classifier(tmp_path_factory.mktemp("tuned") / "run")


def test_values_lie_in_the_ranges(classifier: ImageClassifier) -> None:
    run = classifier.load_searcher()
    searched = [t for t in run.trials if "recipe" in t.proposal.why]
    assert len(searched) >= 4
    for trial in searched:
        recipe = trial.proposal.recipe
        assert 0.01 <= recipe.lr <= 0.5
        assert 0 <= recipe.dropout <= 0.5
        assert f"; lr {recipe.lr}, dropout {recipe.dropout}, optimizer {recipe.optimizer}" in trial_words(trial)
    assert len({t.proposal.recipe.lr for t in searched}) == len({t.proposal.recipe for t in searched})


def test_final_training_uses_hyperparameters_of_the_winner(classifier: ImageClassifier) -> None:
    run = classifier.load_searcher()
    winner = run.trial(run.get_best_model_id()).proposal.recipe
    finals = [t.proposal.recipe for t in run.trials if t.final]
    assert finals
    for recipe in finals:
        assert (recipe.dropout, recipe.optimizer) == (winner.dropout, winner.optimizer)


def test_search_is_reproducible(classifier: ImageClassifier, tmp_path: Path) -> None:
    repeated = fit_classifier(tmp_path / "again")
    trials, repeated_trials = (estimator.load_searcher().trials for estimator in (classifier, repeated))
    assert comparable_trials(trials) == comparable_trials(repeated_trials)


def test_resumed_search_equals_uninterrupted_search(classifier: ImageClassifier, tmp_path: Path) -> None:
    fit_classifier(tmp_path / "run", max_trials=6, refit=False)
    resumed = fit_classifier(tmp_path / "run", resume=True, refit=False)
    expected = [t for t in classifier.load_searcher().trials if not t.final]
    assert comparable_trials(resumed.load_searcher().trials) == comparable_trials(expected)


def test_resume_rejects_other_ranges(tmp_path: Path) -> None:
    args = {"default_model_width": 4, "trainer_args": {"epochs": 1, "momentum": [0.5, 0.9]}}
    fit_classifier(tmp_path / "run", max_trials=1, refit=False, searcher_args=args)
    for momentum in ((0.5, 0.9), [0.5, 0.8], 0.5):
        changed = {"default_model_width": 4, "trainer_args": {"epochs": 1, "momentum": momentum}}
        with pytest.raises(morphnas.RunError, match="other settings: searcher_args"):
            fit_classifier(tmp_path / "run", resume=True, searcher_args=changed)
    fit_classifier(tmp_path / "run", max_trials=1, refit=False, resume=True, searcher_args=args)


def test_hyperparameters_are_shown_in_summaries_and_reports(classifier: ImageClassifier, tmp_path: Path) -> None:
    summary = str(classifier.search_space_summary(*rows(), time_limit=600))
    assert "also searched: lr from 0.01 to 0.5, dropout from 0 to 0.5, optimizer sgd or adamw" in summary
    run = classifier.load_searcher()
    trial = next(t for t in run.trials if "recipe" in t.proposal.why)
    assert f"lr {trial.proposal.recipe.lr}" in str(morphnas.explain(run, trial.id))
    page = morphnas.write_report(run, tmp_path / "page.html")
    assert f"lr {trial.proposal.recipe.lr}" in Path(page).read_text()


def test_regressor_searches_hyperparameters(tmp_path: Path) -> None:
    x, _ = rows()
    regressor = ImageRegressor(tmp_path / "run", random_state=0, max_trials=6, refit=False, searcher_args=ARGS)
    regressor.fit(x, x.sum(1), time_limit=600)
    assert any("recipe" in t.proposal.why for t in regressor.load_searcher().trials)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"searcher_args": {"trainer_args": {"lr": (0.5, 0.1)}}}, "trainer_args: lr: a range is two finite numbers"),
        ({"searcher_args": {"trainer_args": {"max_iter_num": (2, 4)}}}, "epochs is not searched"),
        ({"searcher_args": {"trainer_args": {"speed": (2, 4)}}}, "trainer_args: speed"),
        ({"searcher_args": ARGS, "search_type": "pareto"}, "search_type='pareto' does not search lr, dropout"),
    ],
)
def test_fit_rejects_invalid_ranges(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        ImageClassifier(tmp_path / "run", **changes).fit(*rows(), time_limit=5)
    assert not (tmp_path / "run").exists()


def test_final_fit_rejects_ranges(classifier: ImageClassifier) -> None:
    x, y = rows()
    with pytest.raises(ValueError, match="lr must be a number"):
        classifier.final_fit(x, y, x, y, trainer_args={"lr": (0.1, 0.2)}, time_limit=5)
