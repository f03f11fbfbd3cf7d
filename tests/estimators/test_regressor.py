"""The public behaviour of the regressor: fit, predict, score, store, export, inspect and resume."""

from __future__ import annotations

import json
import re
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import mean_squared_error, r2_score

import morphnas
from morphnas import DataWarning, ImageClassifier, ImageRegressor, RunError, examine, load_run
from morphnas.cli import main
from morphnas.estimators.splits import split
from morphnas.estimators.targets import RegressionTarget, target_from_json

Regression = tuple[NDArray[np.uint8], NDArray[np.floating[Any]]]
SMALL: dict[str, Any] = {"default_model_width": 8, "trainer_args": {"epochs": 6}}


def spots(n: int, seed: int = 0) -> Regression:
    """Images (n, 8, 8) with a bright spot on noise, and how far right it is, from 1000 to 1060."""
    rng = np.random.default_rng(seed)
    places = rng.integers(0, 7, (n, 2))
    x = rng.integers(0, 60, (n, 8, 8))
    for image, (row, column) in zip(x, places, strict=True):
        image[row : row + 2, column : column + 2] += 150
    return x.astype(np.uint8), 1000.0 + 10 * places[:, 1]


@pytest.fixture(scope="module")
def data() -> Regression:
    return spots(300)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, data: Regression) -> ImageRegressor:
    """Not to be changed."""
    path = tmp_path_factory.mktemp("runs") / "run"
    return ImageRegressor(path, max_trials=3, random_state=0, searcher_args=SMALL).fit(*data, time_limit=6)


def test_learns_and_predicts(fitted: ImageRegressor) -> None:
    x, y = spots(100, seed=1)
    found = fitted.predict(x)
    assert found.shape == (100,)
    assert found.dtype == np.float64
    assert fitted.score(x, y) == pytest.approx(r2_score(y, found))
    assert fitted.score(x, torch.tensor(y, requires_grad=True)) == fitted.score(x, y) > 0.8
    assert fitted.evaluate(x, y) == pytest.approx(mean_squared_error(y, found), rel=1e-3)
    assert not fitted.mirrors_  # the mirror image has another y
    assert not hasattr(fitted, "classes_")


def test_scores_heed_weights(fitted: ImageRegressor) -> None:
    x, y = spots(100, seed=1)
    weights = np.arange(100.0)
    assert fitted.score(x, y, weights) == pytest.approx(r2_score(y, fitted.predict(x), sample_weight=weights))
    for wrong in (np.where(weights == 3, np.nan, 1), -weights, weights[1:]):
        for measured in (fitted.score, fitted.evaluate):
            with pytest.raises(ValueError, match="sample_weight must be"):
                measured(x, y, sample_weight=wrong)


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (None, "y is missing"),
        (np.arange(99), "x has 100 examples but y has 99"),
        (np.ones((100, 2)), "different number of output"),
        (np.full(100, np.nan), r"y contains NaN or infinity, first in y\[0\]"),
    ],
)
def test_what_cannot_be_scored(fitted: ImageRegressor, y: Any, words: str) -> None:
    x, _ = spots(100, seed=1)
    with pytest.raises(ValueError, match=words):
        fitted.score(x, y)


def test_another_process_would_predict_the_same(fitted: ImageRegressor) -> None:
    x, _ = spots(20, seed=1)
    again = morphnas.load(fitted.path_)
    assert isinstance(again, ImageRegressor)
    assert (again.predict(x) == fitted.predict(x)).all()
    with pytest.raises(RunError, match=r"another estimator than ImageClassifier: use morphnas\.load"):
        ImageClassifier.load(fitted.path_)


def test_the_module_and_what_is_exported_give_amounts(fitted: ImageRegressor, tmp_path: Path) -> None:
    x, _ = spots(20, seed=1)
    raw = torch.from_numpy(x)[:, None]
    morphnas.export(fitted.path_, tmp_path / "net.py")
    source = (tmp_path / "net.py").read_text()
    assert "amounts = network(images)" in source
    assert "LABELS" not in source
    for module in (fitted.to_module(), runpy.run_path(str(tmp_path / "net.py"))["load"]()):
        with torch.no_grad():
            assert module(raw)[:, 0].numpy() == pytest.approx(fitted.predict(x), rel=1e-7)


def test_what_is_told_is_of_r2(fitted: ImageRegressor, capsys: pytest.CaptureFixture[str]) -> None:
    run = load_run(fitted.path_)
    entry = run.history[0]
    assert entry["measure"] == "R2"
    assert entry["interval"] is None
    table = str(fitted.results_summary())
    assert "R2" in table
    assert "accuracy" not in table
    told = str(morphnas.explain(fitted.path_))
    assert told == str(morphnas.explain(run))
    assert "R2" in told
    assert "accuracy" not in told
    page = morphnas.write_report(run).read_text()
    assert '"measure":"R2"' in page.replace(" ", "")
    assert "ImageRegressor · 300 examples of 8 x 8" in page
    assert main(["info", fitted.path_]) == 0
    assert "ImageRegressor" in capsys.readouterr().out
    assert morphnas.compare_runs([run, replace(run, path=run.path / "copy")]).measure == "score"
    frame = run.trials_dataframe()
    assert set(frame["measure"].dropna()) == {"R2"}


@pytest.mark.slow
def test_a_run_is_gone_on_with_and_trained_further(tmp_path: Path, data: Regression) -> None:
    x, y = data
    made: dict[str, Any] = {"searcher_args": SMALL, "random_state": 0}
    ImageRegressor(tmp_path / "run", max_trials=1, refit=False, **made).fit(x, y, time_limit=20)
    with pytest.raises(RunError, match="other data"):
        ImageClassifier(tmp_path / "run", resume=True, **made).fit(x, y.astype(int), time_limit=6)
    more = ImageRegressor(tmp_path / "run", max_trials=3, resume=True, ensemble=2, refit=False, **made)
    more.fit(x, y, time_limit=20)
    assert len(load_run(tmp_path / "run").trials) == 3
    test, truth = spots(60, seed=2)
    more.final_fit(x, y, test, truth, time_limit=3)
    assert more.test_metric_ == pytest.approx(more.evaluate(test, truth), rel=1e-4)
    with pytest.raises(ValueError, match="2 numbers for each example, but fit saw 1"):
        more.final_fit(x, np.stack([y, y], 1), time_limit=5)
    told = morphnas.ablate(tmp_path / "run", x, y, time_limit=3, repeats=1)
    assert told.measure == "R2"


def test_several_amounts(tmp_path: Path, data: Regression) -> None:
    x, y = data
    pair = np.stack([y, 1e-3 * x.mean((1, 2))], 1)
    found = ImageRegressor(tmp_path / "run", max_trials=1, random_state=0, searcher_args=SMALL, ensemble=3)
    found.fit(torch.from_numpy(x[50:]), pair[50:], time_limit=4, validation_data=(x[:50], pair[:50].tolist()))
    assert found.predict(x[:7]).shape == (7, 2)
    assert found.score(x, pair) > 0.5


def test_rows_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4))
    y = x @ [1.0, 2.0, 0.0, -1.0]
    np.savez(tmp_path / "rows.npz", x_train=x, y_train=y, x_test=x[:40], y_test=y[:40])
    path, file = str(tmp_path / "run"), str(tmp_path / "rows.npz")
    quick = ["--time-limit", "5", "--max-trials", "1", "--width", "16", "--seed", "0", "--quiet", "--json"]
    assert main(["fit", file, "--regression", *quick, "--path", path]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["validation_R2"] > 0.5
    assert main(["evaluate", path, file, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mean_squared_error"] == found["test_mean_squared_error"]
    assert main(["evaluate", path, file]) == 0
    assert "mean squared error" in capsys.readouterr().out
    expected = ImageRegressor.load(path).predict(x[:40])
    assert main(["predict", path, file]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head == "example,amount"
    assert [float(row.split(",")[1]) for row in rows] == pytest.approx(expected, rel=1e-5)
    assert main(["predict", path, file, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["examples"]
    assert [entry["amounts"][0] for entry in told] == pytest.approx(expected)


# -- bad input

X, Y = spots(60)


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (None, "y is missing"),
        (Y[:-1], "x has 60 examples but y has 59"),
        (np.where(Y > 1040, np.nan, Y), r"NaN or infinity, first in y\[\d+\]"),
        (np.full(60, 3.5), r"y is \[3.5\] for all 60 samples"),
        (np.full(60, 1e-300) + 0 * Y, "for all 60 samples"),
        (np.where(Y > 1040, 1e200, Y), "too large"),
        (Y * 1e-200, "too small"),
        (["cat", "dog"] * 30, "must hold numbers: .*ImageClassifier"),
        (Y.astype(complex), "Complex data not supported"),
        (Y.astype("datetime64[s]"), "must hold numbers, but its dtype is datetime64"),
        (np.ones((60, 2, 2)), r"its shape is \(60, 2, 2\)"),
        (np.ones((60, 0)), r"its shape is \(60, 0\)"),
        ([[1.0], [1.0, 2.0]] * 30, "cannot be made an array of numbers"),
        (np.ma.masked_equal(Y, Y[0]), "masked values"),
        ([{}] * 60, "must hold numbers"),
    ],
)
def test_amounts_that_cannot_be_used(y: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        ImageRegressor(tmp_path / "run").fit(X, y, time_limit=5)
    assert not (tmp_path / "run").exists()


def test_amounts_far_from_0_are_no_constant() -> None:
    """Whole numbers around 1e15 are exact in float64."""
    y = np.arange(60) % 7 + 10**15
    values, codes = RegressionTarget.infer(y, 60)
    assert np.array_equal(values.predictions(codes).round(), y)
    with pytest.raises(ValueError, match="nothing to learn"):
        RegressionTarget.infer(0.1 + np.arange(60) % 2 * 1e-17, 60)


@pytest.mark.parametrize("k", [2, 500])
def test_parts_have_like_amounts_where_there_are_many(k: int) -> None:
    """Stratified along the first principal component."""
    rng = np.random.default_rng(0)
    along = rng.permutation(400)
    codes = along[:, None] * rng.uniform(0.5, 2, k) + rng.normal(0, 0.1, (400, k))
    strata = RegressionTarget.infer(codes, 400)[0].strata(codes - codes.mean(0))
    assert any(np.array_equal(groups, along // 20) for groups in (strata, 19 - strata))


def test_a_classifier_says_where_amounts_go(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="To predict numbers, use ImageRegressor"):
        ImageClassifier(tmp_path / "run").fit(X, Y + 0.5 * np.arange(60) / 7, time_limit=5)


KINDS = [Y.tolist(), Y[:, None], Y.astype(str), [torch.tensor(v) for v in Y], torch.from_numpy(Y), Y.astype(object)]


@pytest.mark.parametrize("given_y", KINDS, ids=lambda y: type(y).__name__)
def test_amounts_come_in_many_kinds(given_y: Any) -> None:
    values, codes = RegressionTarget.infer(given_y, 60)
    assert values.single_output
    assert values.decode(codes)[:, 0] == pytest.approx(Y)


# -- how they are kept


@given(st.integers(1, 3), st.integers(5, 300), st.integers(0, 99), st.floats(-1e6, 1e6), st.floats(1e-2, 1e6))
def test_amounts_are_learnt_in_deviations_and_come_back(k: int, n: int, seed: int, mean: float, sd: float) -> None:
    y = mean + sd * np.random.default_rng(seed).normal(size=(n, k))
    values, codes = RegressionTarget.infer(y, n)
    assert codes.dtype == np.float32
    assert codes.mean(0) == pytest.approx(0, abs=1e-3)
    assert codes.std(0) == pytest.approx(1, rel=1e-3)
    again = target_from_json(json.loads(json.dumps(values.to_json())))
    assert isinstance(again, RegressionTarget)
    assert (again.encode(y, n) == codes).all()
    assert np.abs(again.decode(codes) - y).max() <= 1e-5 * sd + 1e-9 * abs(mean)
    strata = values.strata(codes)
    assert strata.shape == (n,)
    assert n < 60 or np.bincount(strata).min() >= 20


@pytest.mark.parametrize("amounts", [None, {}, {"mean": [0.0]}, {"mean": [0.0], "std": [0.0]}, {"mean": [], "std": []},
                                     {"mean": [0.0, 1.0], "std": [1.0]}, {"mean": ["0"], "std": [1.0]},
                                     {"mean": [float("nan")], "std": [1.0]}])  # fmt: skip
def test_what_was_not_written_by_it_is_refused(amounts: Any) -> None:
    with pytest.raises(ValueError, match="amounts"):
        target_from_json({"amounts": amounts})


def test_parts_hold_amounts_of_all_sizes_alike() -> None:
    y = np.random.default_rng(0).exponential(size=2000)
    values, codes = RegressionTarget.infer(y, 2000)
    means = [split(values.strata(codes), seed).valid for seed in range(5)]
    apart = [abs(codes[part].mean()) for part in means if part is not None]
    assert max(apart) < 0.1  # by chance alone .08 on average


# -- data checks


def kinds(*args: Any, **options: Any) -> dict[str, bool]:
    return {found.kind: found.warns for found in examine(*args, regression=True, **options).found}


def test_usual_amounts_are_not_spoken_of() -> None:
    x, y = spots(2000)
    assert not kinds(x, y + np.random.default_rng(0).normal(size=2000))


def test_amounts_that_few_examples_decide() -> None:
    x, y = spots(500)
    y[17] = 1e6
    with pytest.warns(DataWarning, match=r"y\[17\], is [\d.]+ standard deviations from the mean"):
        ImageRegressor(max_trials=1, refit=False).fit(x, y, time_limit=3)
    assert kinds(x, y)["far"]


def test_amounts_that_look_like_classes() -> None:
    x, y = spots(500)
    assert kinds(x, y) == {"classes": False}


def test_other_amounts_in_validation_data() -> None:
    x, y = spots(400)
    order = np.argsort(y, kind="stable")
    x, y = x[order], y[order]
    assert kinds(x[:300], y[:300], (x[300:], y[300:]))["moved"]


def test_amounts_in_another_order() -> None:
    x, y = spots(2000)
    y = y + np.random.default_rng(0).normal(size=2000)
    assert kinds(x, np.random.default_rng(1).permutation(y))["signal"]


def test_equal_images_of_different_amounts() -> None:
    x, y = spots(300)
    found = {one.kind: one for one in examine(np.concatenate([x, x[:30]]), np.concatenate([y, y[:30] + 1]),
                                              regression=True).found}  # fmt: skip
    assert found["contradictory"].warns
    assert "occur with different amounts" in found["contradictory"].text
    first, other = (float(word) for word in re.findall(r" is ([0-9.]+)", found["contradictory"].text))
    assert abs(first - other) == 1
