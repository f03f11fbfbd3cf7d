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
    """Images (n, 8, 8) of noise with a bright spot; y: its column, scaled to 1000 to 1060."""
    rng = np.random.default_rng(seed)
    positions = rng.integers(0, 7, (n, 2))
    x = rng.integers(0, 60, (n, 8, 8))
    for image, (row, column) in zip(x, positions, strict=True):
        image[row : row + 2, column : column + 2] += 150
    return x.astype(np.uint8), 1000.0 + 10 * positions[:, 1]


@pytest.fixture(scope="module")
def data() -> Regression:
    return spots(300)


@pytest.fixture(scope="module")
def fitted_regressor(tmp_path_factory: pytest.TempPathFactory, data: Regression) -> ImageRegressor:
    """A fitted regressor that tests must not modify."""
    path = tmp_path_factory.mktemp("runs") / "run"
    return ImageRegressor(path, max_trials=3, random_state=0, searcher_args=SMALL).fit(*data, time_limit=6)


def test_predict_score_and_evaluate(fitted_regressor: ImageRegressor) -> None:
    x, y = spots(100, seed=1)
    predictions = fitted_regressor.predict(x)
    assert predictions.shape == (100,)
    assert predictions.dtype == np.float64
    assert fitted_regressor.score(x, y) == pytest.approx(r2_score(y, predictions))
    assert fitted_regressor.score(x, torch.tensor(y, requires_grad=True)) == fitted_regressor.score(x, y) > 0.8
    assert fitted_regressor.evaluate(x, y) == pytest.approx(mean_squared_error(y, predictions), rel=1e-3)
    assert not fitted_regressor.mirrors_  # the mirror image has another y
    assert not hasattr(fitted_regressor, "classes_")


def test_score_and_evaluate_use_sample_weight(fitted_regressor: ImageRegressor) -> None:
    x, y = spots(100, seed=1)
    weights = np.arange(100.0)
    assert fitted_regressor.score(x, y, weights) == pytest.approx(
        r2_score(y, fitted_regressor.predict(x), sample_weight=weights)
    )
    for invalid in (np.where(weights == 3, np.nan, 1), -weights, weights[1:]):
        for method in (fitted_regressor.score, fitted_regressor.evaluate):
            with pytest.raises(ValueError, match="sample_weight must be"):
                method(x, y, sample_weight=invalid)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, "y is missing"),
        (np.arange(99), "x has 100 examples but y has 99"),
        (np.ones((100, 2)), "different number of output"),
        (np.full(100, np.nan), r"y contains NaN or infinity, first in y\[0\]"),
    ],
)
def test_score_rejects_invalid_y(fitted_regressor: ImageRegressor, y: Any, message: str) -> None:
    x, _ = spots(100, seed=1)
    with pytest.raises(ValueError, match=message):
        fitted_regressor.score(x, y)


def test_loaded_regressor_predicts_the_same(fitted_regressor: ImageRegressor) -> None:
    x, _ = spots(20, seed=1)
    loaded = morphnas.load(fitted_regressor.path_)
    assert isinstance(loaded, ImageRegressor)
    assert (loaded.predict(x) == fitted_regressor.predict(x)).all()
    with pytest.raises(RunError, match=r"another estimator than ImageClassifier: use morphnas\.load"):
        ImageClassifier.load(fitted_regressor.path_)


def test_module_and_export_predict_targets(fitted_regressor: ImageRegressor, tmp_path: Path) -> None:
    x, _ = spots(20, seed=1)
    tensor = torch.from_numpy(x)[:, None]
    morphnas.export(fitted_regressor.path_, tmp_path / "net.py")
    source = (tmp_path / "net.py").read_text()
    assert "amounts = network(images)" in source
    assert "LABELS" not in source
    for module in (fitted_regressor.to_module(), runpy.run_path(str(tmp_path / "net.py"))["load"]()):
        with torch.no_grad():
            assert module(tensor)[:, 0].numpy() == pytest.approx(fitted_regressor.predict(x), rel=1e-7)


def test_summaries_and_reports_show_r2(fitted_regressor: ImageRegressor, capsys: pytest.CaptureFixture[str]) -> None:
    run = load_run(fitted_regressor.path_)
    entry = run.history[0]
    assert entry["measure"] == "R2"
    assert entry["interval"] is None
    table = str(fitted_regressor.results_summary())
    assert "R2" in table
    assert "accuracy" not in table
    explanation = str(morphnas.explain(fitted_regressor.path_))
    assert explanation == str(morphnas.explain(run))
    assert "R2" in explanation
    assert "accuracy" not in explanation
    page = morphnas.write_report(run).read_text()
    assert '"measure":"R2"' in page.replace(" ", "")
    assert "ImageRegressor · 300 examples of 8 x 8" in page
    assert main(["info", fitted_regressor.path_]) == 0
    assert "ImageRegressor" in capsys.readouterr().out
    assert morphnas.compare_runs([run, replace(run, path=run.path / "copy")]).measure == "score"
    frame = run.trials_dataframe()
    assert set(frame["measure"].dropna()) == {"R2"}


@pytest.mark.slow
def test_resume_final_fit_and_ablate(tmp_path: Path, data: Regression) -> None:
    x, y = data
    settings: dict[str, Any] = {"searcher_args": SMALL, "random_state": 0}
    ImageRegressor(tmp_path / "run", max_trials=1, refit=False, **settings).fit(x, y, time_limit=20)
    with pytest.raises(RunError, match="other data"):
        ImageClassifier(tmp_path / "run", resume=True, **settings).fit(x, y.astype(int), time_limit=6)
    resumed = ImageRegressor(tmp_path / "run", max_trials=3, resume=True, ensemble=2, refit=False, **settings)
    resumed.fit(x, y, time_limit=20)
    assert len(load_run(tmp_path / "run").trials) == 3
    x_test, y_test = spots(60, seed=2)
    resumed.final_fit(x, y, x_test, y_test, time_limit=3)
    assert resumed.test_metric_ == pytest.approx(resumed.evaluate(x_test, y_test), rel=1e-4)
    with pytest.raises(ValueError, match="2 numbers for each example, but fit saw 1"):
        resumed.final_fit(x, np.stack([y, y], 1), time_limit=5)
    assert morphnas.ablate(tmp_path / "run", x, y, time_limit=3, repeats=1).measure == "R2"


def test_several_targets(tmp_path: Path, data: Regression) -> None:
    x, y = data
    pair = np.stack([y, 1e-3 * x.mean((1, 2))], 1)
    regressor = ImageRegressor(tmp_path / "run", max_trials=1, random_state=0, searcher_args=SMALL, ensemble=3)
    regressor.fit(torch.from_numpy(x[50:]), pair[50:], time_limit=4, validation_data=(x[:50], pair[:50].tolist()))
    assert regressor.predict(x[:7]).shape == (7, 2)
    assert regressor.score(x, pair) > 0.5


def test_regression_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4))
    y = x @ [1.0, 2.0, 0.0, -1.0]
    np.savez(tmp_path / "rows.npz", x_train=x, y_train=y, x_test=x[:40], y_test=y[:40])
    path, file = str(tmp_path / "run"), str(tmp_path / "rows.npz")
    flags = ["--time-limit", "5", "--max-trials", "1", "--width", "16", "--seed", "0", "--quiet", "--json"]
    assert main(["fit", file, "--regression", *flags, "--path", path]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["validation_R2"] > 0.5
    assert main(["evaluate", path, file, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mean_squared_error"] == result["test_mean_squared_error"]
    assert main(["evaluate", path, file]) == 0
    assert "mean squared error" in capsys.readouterr().out
    expected = ImageRegressor.load(path).predict(x[:40])
    assert main(["predict", path, file]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header == "example,amount"
    assert [float(row.split(",")[1]) for row in rows] == pytest.approx(expected, rel=1e-5)
    assert main(["predict", path, file, "--json"]) == 0
    examples = json.loads(capsys.readouterr().out)["examples"]
    assert [entry["amounts"][0] for entry in examples] == pytest.approx(expected)


# -- invalid targets

X, Y = spots(60)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, "y is missing"),
        (Y[:-1], "x has 60 examples but y has 59"),
        (np.where(Y > 1040, np.nan, Y), r"NaN or infinity, first in y\[\d+\]"),
        (np.full(60, 3.5), r"y is \[3.5\] for all 60 samples"),
        (np.full(60, 1e-300), "for all 60 samples"),
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
def test_fit_rejects_invalid_y(y: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        ImageRegressor(tmp_path / "run").fit(X, y, time_limit=5)
    assert not (tmp_path / "run").exists()


def test_targets_far_from_zero_are_not_constant() -> None:
    """Whole numbers around 1e15 are exact in float64."""
    y = np.arange(60) % 7 + 10**15
    target, codes = RegressionTarget.infer(y, 60)
    assert np.array_equal(target.predictions(codes).round(), y)
    with pytest.raises(ValueError, match="nothing to learn"):
        RegressionTarget.infer(0.1 + np.arange(60) % 2 * 1e-17, 60)


@pytest.mark.parametrize("k", [2, 500])
def test_strata_of_many_targets(k: int) -> None:
    """Groups of 20 along the first principal component."""
    rng = np.random.default_rng(0)
    position = rng.permutation(400)
    codes = position[:, None] * rng.uniform(0.5, 2, k) + rng.normal(0, 0.1, (400, k))
    strata = RegressionTarget.infer(codes, 400)[0].strata(codes - codes.mean(0))
    assert any(np.array_equal(groups, position // 20) for groups in (strata, 19 - strata))


def test_classifier_suggests_regressor_for_numbers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="To predict numbers, use ImageRegressor"):
        ImageClassifier(tmp_path / "run").fit(X, Y + 0.5 * np.arange(60) / 7, time_limit=5)


TYPES = [Y.tolist(), Y[:, None], Y.astype(str), [torch.tensor(v) for v in Y], torch.from_numpy(Y), Y.astype(object)]


@pytest.mark.parametrize("y", TYPES, ids=lambda y: type(y).__name__)
def test_target_accepts_many_types_of_y(y: Any) -> None:
    target, codes = RegressionTarget.infer(y, 60)
    assert target.single_output
    assert target.decode(codes)[:, 0] == pytest.approx(Y)


# -- encoding and splits


@given(st.integers(1, 3), st.integers(5, 300), st.integers(0, 99), st.floats(-1e6, 1e6), st.floats(1e-2, 1e6))
def test_targets_are_standardised_stored_and_decoded(k: int, n: int, seed: int, mean: float, sd: float) -> None:
    y = mean + sd * np.random.default_rng(seed).normal(size=(n, k))
    target, codes = RegressionTarget.infer(y, n)
    assert codes.dtype == np.float32
    assert codes.mean(0) == pytest.approx(0, abs=1e-3)
    assert codes.std(0) == pytest.approx(1, rel=1e-3)
    restored = target_from_json(json.loads(json.dumps(target.to_json())))
    assert isinstance(restored, RegressionTarget)
    assert (restored.encode(y, n) == codes).all()
    assert np.abs(restored.decode(codes) - y).max() <= 1e-5 * sd + 1e-9 * abs(mean)
    strata = target.strata(codes)
    assert strata.shape == (n,)
    assert n < 60 or np.bincount(strata).min() >= 20


@pytest.mark.parametrize("amounts", [None, {}, {"mean": [0.0]}, {"mean": [0.0], "std": [0.0]}, {"mean": [], "std": []},
                                     {"mean": [0.0, 1.0], "std": [1.0]}, {"mean": ["0"], "std": [1.0]},
                                     {"mean": [float("nan")], "std": [1.0]}])  # fmt: skip
def test_target_from_json_rejects_invalid_values(amounts: Any) -> None:
    with pytest.raises(ValueError, match="standard deviation of y"):
        target_from_json({"amounts": amounts})


def test_split_is_stratified_by_targets() -> None:
    y = np.random.default_rng(0).exponential(size=2000)
    target, codes = RegressionTarget.infer(y, 2000)
    differences = []
    for seed in range(5):
        held_out = np.setdiff1d(np.arange(2000), split(target.strata(codes), seed).train)
        differences.append(abs(codes[held_out].mean()))
    assert max(differences) < 0.03  # without stratification .09


# -- data checks


def finding_kinds(*data: Any) -> dict[str, bool]:
    """The kinds of the findings, and whether each is a warning."""
    return {finding.kind: finding.warns for finding in examine(*data, regression=True).found}


def test_sound_targets_have_no_findings() -> None:
    x, y = spots(2000)
    assert not finding_kinds(x, y + np.random.default_rng(0).normal(size=2000))


def test_extreme_target_is_found() -> None:
    x, y = spots(500)
    y[17] = 1e6
    with pytest.warns(DataWarning, match=r"y\[17\], is [\d.]+ standard deviations from the mean"):
        ImageRegressor(max_trials=1, refit=False).fit(x, y, time_limit=3)
    assert finding_kinds(x, y)["far"]


def test_targets_that_look_like_classes_are_found() -> None:
    x, y = spots(500)
    assert finding_kinds(x, y) == {"classes": False}


def test_shifted_targets_of_validation_data_are_found() -> None:
    x, y = spots(400)
    order = np.argsort(y, kind="stable")
    x, y = x[order], y[order]
    assert finding_kinds(x[:300], y[:300], (x[300:], y[300:]))["moved"]


def test_shuffled_targets_are_found() -> None:
    x, y = spots(2000)
    y = y + np.random.default_rng(0).normal(size=2000)
    assert finding_kinds(x, np.random.default_rng(1).permutation(y))["signal"]


def test_contradictory_targets_are_found() -> None:
    x, y = spots(300)
    findings = examine(np.concatenate([x, x[:30]]), np.concatenate([y, y[:30] + 1]), regression=True)
    (finding,) = (finding for finding in findings.found if finding.kind == "contradictory")
    assert finding.warns
    assert "occur with different values of y" in finding.text
    first, other = (float(number) for number in re.findall(r" is ([0-9.]+)", finding.text))
    assert abs(first - other) == 1
