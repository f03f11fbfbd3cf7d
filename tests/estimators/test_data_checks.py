"""The data checks find what is wrong with data, and find nothing in sound data."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.datasets import load_digits

import morphnas
from morphnas import DataWarning, Findings, ImageClassifier, examine
from morphnas.estimators import data_checks
from morphnas.estimators import findings as findings_module
from morphnas.estimators.data_memory import DataMemory
from morphnas.estimators.findings import CheckedData, Finding
from morphnas.estimators.inputs import Problem
from tests.estimators.conftest import stripes

Array = NDArray[Any]
X: Array = (load_digits().images * (255 / 16)).round().astype(np.uint8)
Y: Array = load_digits().target
TINY: dict[str, Any] = {"default_model_width": 2, "default_model_len": 1}


def only_finding(findings: Findings, kind: str) -> Finding:
    """The only finding of a kind."""
    (matching,) = (finding for finding in findings.found if finding.kind == kind)
    return matching


def finding_kinds(findings: Findings) -> list[str]:
    return [finding.kind for finding in findings.found]


def random_rows(n: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).choice(len(X), n, replace=False)


def smooth_images(n: int, size: tuple[int, int], seed: int = 0) -> Array:
    """Colour images (n, *size, 3) of noise, blurred separately in each channel."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, *size, 3))
    for axis in (1, 2):
        for _ in range(6):
            x = x + np.roll(x, 1, axis) + np.roll(x, -1, axis)
    x = (x - x.min()) / np.ptp(x)
    rounded: Array = (255 * x).astype(np.uint8)
    return rounded


# -- sound data


def test_sound_data_have_no_findings() -> None:
    for x, y in ((X, Y), (X / 255, Y), (X.reshape(len(X), -1), Y.astype(str)), stripes(150), stripes(12)):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "x has rows")
            findings = examine(x, y)
        assert findings.found == ()
        assert findings.looked == findings.examples == len(x)
        assert str(findings) == f"nothing found in {len(x):,} examples"


def test_sound_validation_data_have_no_findings() -> None:
    findings = examine(X[:1500], Y[:1500], (X[1500:], Y[1500:]))
    assert findings.found == ()
    assert findings.examples == len(X)


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), n=st.integers(10, 80), classes=st.integers(2, 5))
def test_few_random_examples_cause_no_warnings(seed: int, n: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    for x in (rng.integers(0, 256, (n, 6, 5, 3)), rng.normal(size=(n, 7)), rng.integers(0, 2, (n, 8, 8))):
        assert not examine(x, y).warnings


# -- copies


def count_copies(x: Array, y: Array, train: set[int]) -> dict[str, int]:
    """Count leaks, contradictory labels and duplicates example by example."""
    groups: dict[bytes, list[int]] = {}
    for i, example in enumerate(x):
        groups.setdefault(example.tobytes(), []).append(i)
    count = {"leak": 0, "contradictory": 0, "duplicates": 0}
    for group in groups.values():
        trained = [i for i in group if i in train]
        count["leak"] += len(group) - len(trained) if trained else 0
        same_label = len({y[i] for i in group}) == 1
        count["contradictory"] += 0 if same_label else len(group)
        count["duplicates"] += max(0, len(trained) - 1) if same_label else 0
    return count


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(30, 120),
    n_distinct=st.integers(5, 60),
    with_validation_data=st.booleans(),
)
def test_copies_are_counted_correctly(seed: int, n: int, n_distinct: int, with_validation_data: bool) -> None:
    rng = np.random.default_rng(seed)
    pool = rng.integers(0, 256, (n_distinct, 6, 6)).astype(np.uint8)
    drawn = rng.integers(0, n_distinct, n)
    x, y = pool[drawn], np.where(rng.random(n) < 0.8, drawn % 2, np.arange(n) % 2)
    y[:4] = 0, 1, 0, 1
    if with_validation_data:
        n_x = n - 10
        findings, train = examine(x[:n_x], y[:n_x], (x[n_x:], y[n_x:])), set(range(n_x))
    else:
        problem = Problem.infer(x, y, None, None, 0, torch.device("cpu"))
        findings, train = data_checks.check(problem), {int(i) for i in problem.order[: len(problem.task.train)]}
    expected = count_copies(x, y, train)
    counted = {f.kind: f.numbers["count"] for f in findings.found if f.kind in expected}
    assert counted == {kind: count for kind, count in expected.items() if count}


def test_leak_names_the_leaked_examples() -> None:
    x = np.concatenate([X[1500:], X[3:5]])
    finding = only_finding(examine(X[:1500], Y[:1500], (x, np.concatenate([Y[1500:], Y[3:5]]))), "leak")
    assert not finding.warns, "2 of 299 are below the threshold for a warning"
    assert finding.numbers["examples"] == ["validation_data[297]", "validation_data[298]"]
    assert "2 of validation_data (0.7 %) are trained on as well" in finding.text
    assert "first validation_data[297] as x[3]" in finding.text
    all_leaked = examine(X, Y, (X, Y))
    assert only_finding(all_leaked, "leak").warns
    assert only_finding(all_leaked, "leak").numbers["share"] == 1
    assert finding_kinds(all_leaked) == ["leak"]


def test_checks_use_groups_and_sample_weights() -> None:
    """Copies within a group are held out together; weights may balance the classes."""
    x, y = np.repeat(X[:400], 3, 0), np.repeat(Y[:400], 3)
    assert only_finding(examine(x, y), "leak").warns
    assert "leak" not in finding_kinds(examine(x, y, groups=np.repeat(np.arange(400), 3)))
    imbalanced = np.concatenate([np.flatnonzero(Y == 0), np.flatnonzero(Y == 1)[:9]])
    assert only_finding(examine(X[imbalanced], Y[imbalanced]), "imbalance").warns
    assert not examine(X[imbalanced], Y[imbalanced], sample_weight="balanced").warnings


def test_contradictory_labels_are_found() -> None:
    x, y = np.concatenate([X, X[:20]]), np.concatenate([Y.astype(str), ["x"] * 20])
    finding = only_finding(examine(x, y), "contradictory")
    assert finding.warns
    assert finding.numbers["count"] == 40
    assert "40 images (2.2 %) occur with different labels: x[" in finding.text
    assert "is 'x'" in finding.text


def test_copies_among_rows_of_few_values_are_no_warnings() -> None:
    rng = np.random.default_rng(0)
    findings = examine(rng.integers(0, 3, (300, 4)), rng.integers(0, 2, 300))
    assert {"leak", "contradictory", "duplicates"} <= set(finding_kinds(findings))
    assert not findings.warnings


# -- values


@pytest.mark.parametrize("rate", [0.01, 0.2])
def test_constant_images_are_found(rate: float) -> None:
    x, rows = X.copy(), random_rows(int(rate * len(X)) + 1)
    x[rows] = 7
    findings = examine(x, Y)
    assert finding_kinds(findings) == ["constant"], "they are not reported as copies as well"
    assert findings.found[0].warns
    assert findings.found[0].numbers["count"] == len(rows)
    assert set(findings.found[0].numbers["examples"]) <= {f"x[{i}]" for i in rows}


def test_single_pixel_images_are_not_constant() -> None:
    assert not examine(np.arange(60.0).reshape(60, 1, 1), np.arange(60) % 2).warnings


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("low", [0.0, -1.0])
def test_mixed_value_ranges_are_found(rate: float, low: float) -> None:
    x, rows = X.astype(np.float64), random_rows(int(rate * len(X)) + 1)
    x[rows] = low + (1 - low) * x[rows] / 255
    finding = only_finding(examine(x, Y), "range")
    assert finding.warns
    assert finding.numbers["count"] == min(len(rows), len(X) - len(rows))
    assert "were all brought to the same range?" in finding.text


def test_extreme_value_is_found() -> None:
    x = X.astype(np.float32)
    x[5, 3, 3] = 1e9
    finding = only_finding(examine(x, Y), "range")
    assert finding.warns
    assert finding.numbers["examples"] == ["x[5]"]


def test_images_of_almost_only_zeros_are_found() -> None:
    x = np.zeros((200, 30, 30), dtype=np.uint8)
    rng = np.random.default_rng(0)
    for image in x:
        image[tuple(rng.integers(0, 30, 2))] = 1
    assert "99.9 % of all values are 0" in only_finding(examine(x, np.arange(200) % 2), "zeros").text


@pytest.mark.parametrize(("deviation", "expected"), [(0.5, []), (1.0, []), (2.0, [[1]]), (3.0, [[1]])])
def test_features_with_long_tails_are_found(deviation: float, expected: list[list[int]]) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3))
    x[:, 1] = np.exp(deviation * x[:, 1])
    x[:, 2] = np.where(rng.random(400) < 0.1, 100 * x[:, 2], 0)  # mostly zeros, like counts
    findings = [finding for finding in examine(x, x[:, 0] > 0).found if finding.kind == "tails"]
    assert [finding.numbers["features"] for finding in findings] == expected
    assert all("feature 1 has a few values" in finding.text for finding in findings)


def test_constant_and_equal_channels_are_found() -> None:
    x = smooth_images(60, (8, 8))
    y = np.arange(60) % 2
    assert examine(x, y).found == ()
    alpha = np.concatenate([x, np.full((60, 8, 8, 1), 255, np.uint8)], 3)
    assert only_finding(examine(alpha, y), "channels").numbers == {"constant": [3]}
    grey = only_finding(examine(np.repeat(x[..., :1], 3, 3), y), "channels")
    assert (grey.numbers, grey.warns) == ({"equal": 3}, False)


# -- the order of axes


def test_wrong_order_of_axes_is_found() -> None:
    x, y = smooth_images(100, (12, 12)), np.arange(100) % 2
    planes = np.moveaxis(x, -1, 1)
    wrong = planes.reshape(100, 12, 12, 3)
    finding = only_finding(examine(wrong, y), "axes")
    assert (finding.warns, finding.numbers["order"]) == (True, "channels first")
    assert "np.moveaxis(x.reshape(-1, 3, 12, 12), 1, -1)" in finding.text
    assert only_finding(examine(planes.reshape(100, -1), y, image_shape=(12, 12, 3)), "axes") == finding
    assert examine(np.moveaxis(wrong.reshape(-1, 3, 12, 12), 1, -1), y).found == (), "the suggested code is correct"
    assert examine(x.reshape(100, -1), y, image_shape=(12, 12, 3)).found == ()
    tensors = np.moveaxis(x.reshape(100, 3, 12, 12), 1, -1)
    assert only_finding(examine(tensors, y), "axes").numbers["order"] == "channels last"


def test_exchanged_width_and_height_are_found() -> None:
    x, y = smooth_images(100, (8, 14))[..., 0], np.arange(100) % 2
    assert examine(x, y).found == ()
    finding = only_finding(examine(x.reshape(100, 14, 8), y), "axes")
    assert finding.numbers["order"] == "width and height exchanged"
    assert "x.reshape(-1, 8, 14) would read them like that" in finding.text


@pytest.mark.parametrize("channels", [1, 6])
def test_exchanged_length_and_channels_are_found(channels: int) -> None:
    x, y = np.random.default_rng(0).normal(size=(60, 100, channels)).cumsum(axis=1), np.arange(60) % 2
    assert examine(x, y, axes=1).found == ()
    exchanged = np.moveaxis(x, 1, -1)
    finding = only_finding(examine(exchanged, y, axes=1), "axes")
    assert finding.warns
    positions = "1 position" if channels == 1 else "6 positions"
    assert f"are read as {positions} of 100 channels" in finding.text
    assert examine(torch.from_numpy(exchanged), y, axes=1).found == (), "tensors have their channels first"
    assert examine(np.random.default_rng(0).normal(size=(60, channels, 100)), y, axes=1).found == ()


@pytest.mark.parametrize("shape", [(50, 1), (6, 6, 6, 1)])
def test_sequences_and_volumes_of_other_ranges_are_found(shape: tuple[int, ...]) -> None:
    x, axes = np.random.default_rng(0).normal(size=(60, *shape)), len(shape) - 1
    x[7] *= 5000
    x[8] = 3
    findings = {finding.kind: finding for finding in examine(x, np.arange(60) % 2, axes=axes).found}
    noun = "sequence" if axes == 1 else "volume"
    assert findings["range"].text.startswith(f"1 {noun} (1.7 %) has values of up to ")
    assert findings["range"].warns
    assert findings["constant"].text == f"1 {noun} (1.7 %) is constant, all values the same, first x[8]"


def test_positions_of_sequences_have_no_long_tails() -> None:
    x = np.exp(3 * np.random.default_rng(0).normal(size=(60, 50, 1)))
    assert "tails" not in finding_kinds(examine(x, np.arange(60) % 2, axes=1))
    assert "tails" in finding_kinds(examine(x[..., 0], np.arange(60) % 2))


# -- labels


def test_shuffled_labels_are_found() -> None:
    findings = examine(X, np.random.default_rng(0).permutation(Y))
    assert finding_kinds(findings) == ["signal"]
    assert "are x and y in the same order?" in findings.found[0].text
    imbalanced = np.concatenate([np.flatnonzero(Y != 3), np.flatnonzero(Y == 3)[:3]])
    assert "signal" not in finding_kinds(examine(X[imbalanced], Y[imbalanced] == 3)), "a balanced sample is too small"
    assert examine(X[:900], np.random.default_rng(0).permutation(Y[:900])).found == (), "these are too few examples"


def test_labels_that_are_numbers_or_names_are_found() -> None:
    rng = np.random.default_rng(0)
    numbers = only_finding(examine(X, rng.integers(0, 4000, len(X))), "labels")
    assert "are they numbers to predict, for an ImageRegressor?" in numbers.text
    names = [f"img_{i}.png" for i in range(len(X))]
    assert "are they names of examples?" in only_finding(examine(X, names), "labels").text
    pairs = np.repeat(np.arange(30), 2)
    assert "labels" not in finding_kinds(examine(X[:60], pairs)), "these are numbered classes with two examples each"


def test_majority_class_is_found() -> None:
    order = np.argsort(Y != 3, kind="stable")  # all threes first
    keep = np.concatenate([order[:183], order[183:195]])
    imbalance = only_finding(examine(X[keep], Y[keep] == 3), "imbalance")
    assert imbalance.warns
    assert imbalance.numbers["share"] == 183 / 195
    assert "accuracy of 93.8 %" in imbalance.text


@pytest.mark.parametrize(("smallest", "found"), [(80, []), (75, [False]), (8, [False]), (7, [True])])
def test_ratio_of_classes_without_majority_is_found(smallest: int, found: list[bool]) -> None:
    """From 10 on it is reported, from 100 on it is a warning.

    smallest: examples of the smallest class; the largest has 750. found: whether the findings are warnings.
    """
    y = np.repeat(["large", "medium", "small"], [750, 700, smallest])
    findings = examine(X[: len(y)], y).found
    assert [finding.warns for finding in findings if finding.kind == "imbalance"] == found


def test_single_example_of_a_class_is_found() -> None:
    y = Y.astype(str)
    y[7] = "once"
    single = only_finding(examine(X, y), "unjudged")
    assert "class 'once' has no example in the held-out part" in single.text


def test_classes_missing_from_validation_data_are_found() -> None:
    kept = Y[1500:] < 8
    findings = examine(X[:1500], Y[:1500], (X[1500:][kept], Y[1500:][kept]))
    assert "classes 8, 9 have no example in validation_data" in only_finding(findings, "unjudged").text


def test_class_and_range_shifts_of_validation_data_are_found() -> None:
    order = np.argsort(Y + np.random.default_rng(0).normal(0, 3, len(Y)))
    x, y = X[order], Y[order]
    findings = examine(x[:1400], y[:1400], (x[1400:], y[1400:]))
    assert "mixture" in finding_kinds(findings)
    for other in (X[1500:] / 255, X[1500:] / 127.5 - 1):
        findings = examine(X[:1500], Y[:1500], (other, Y[1500:]))
        assert finding_kinds(findings)[0] in ("preparation", "range")
        assert "from 0 to 255" in only_finding(findings, "preparation").text
    assert finding_kinds(examine(X[:1500] / 255, Y[:1500], (X[1500:] / 255, Y[1500:]))) == []


# -- invalid data


def test_identical_examples_are_rejected(tmp_path: Path) -> None:
    x, y = np.ones((60, 6, 6)), np.arange(60) % 2
    with pytest.raises(ValueError, match="all 60 examples are the same"):
        examine(x, y)
    with pytest.raises(ValueError, match="all 60 examples are the same"):
        ImageClassifier(tmp_path / "run").fit(x, y, time_limit=5)
    assert not (tmp_path / "run").exists()


def test_examine_rejects_what_fit_rejects() -> None:
    with pytest.raises(ValueError, match="NaN"):
        examine(np.full((60, 6, 6), np.nan), np.arange(60) % 2)
    with pytest.raises(ValueError, match="did not see"):
        examine(X, Y, (X[:10], ["?"] * 10))
    with pytest.raises(ValueError, match="one class only"):
        examine(X, np.zeros(len(X)))


# -- time and memory


def test_examine_without_time_checks_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings_module, "_PIECE", 64 * 100)
    findings = examine(np.concatenate([X, X]), np.concatenate([Y, Y]), time_limit=1e-9)
    assert findings.looked == 100
    assert "100 of 3,594 examples (out of time)" in str(findings)


def test_findings_do_not_depend_on_piece_size_or_storage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    x = np.concatenate([X, X[:100]])
    y = np.concatenate([Y, (Y[:100] + 1) % 10])
    expected = examine(x, y)
    monkeypatch.setattr(findings_module, "_PIECE", 64 * 77)
    problem = Problem.infer(x, y, None, None, 0, torch.device("cpu"), data_memory=DataMemory(memory=1, folder=tmp_path))
    assert problem.bytes_in_memory == 0
    assert data_checks.check(problem).found == expected.found


# -- in fit and predict


def test_fit_warns_of_logs_and_stores_findings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    x, y = np.concatenate([X[:200], X[:40]]), np.concatenate([Y[:200], (Y[:40] + 1) % 10])
    x[100] = 0
    args = {"trainer_args": {"epochs": 1}, **TINY}
    classifier = ImageClassifier(tmp_path / "run", max_trials=1, refit=False, random_state=0, searcher_args=args)
    with pytest.warns(DataWarning) as caught, caplog.at_level("INFO", "morphnas"):
        classifier.fit(x, y)
    expected = examine(x, y)
    assert [str(warning.message) for warning in caught] == [finding.text for finding in expected.warnings]
    assert {warning.filename for warning in caught} == {__file__}
    logged = [message for message in caplog.messages if "constant" in message or "different labels" in message]
    assert logged == [str(only_finding(expected, "constant"))], "only findings that are no warnings are logged"
    stored = morphnas.load_run(tmp_path / "run").about["findings"]
    assert stored | {"seconds": 0} == json.loads(json.dumps(expected.to_json())) | {"seconds": 0}


def test_findings_as_text() -> None:
    lines = str(examine(X, Y, (X, Y))).splitlines()
    assert lines[0].startswith("warning: 1,797 of validation_data (100.0 %) are trained on")
    assert lines[1:] == ["1 found in 3,594 examples"]


def test_pieces_and_samples_of_large_images_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings_module, "_PIECE", 10)
    monkeypatch.setattr(findings_module, "_BYTES", 10 * 4 * 64)
    data = CheckedData.of(Problem.infer(X, Y, None, None, 0, torch.device("cpu")))
    assert {len(piece) for _, piece in data.pieces()} == {1}
    assert len(data.sample(500)) == 10


@pytest.mark.parametrize(
    ("scale", "test_scale", "ranges"),
    [(1, 1 / 255, "0 to 1, .* from 0 to 255"), (1 / 16, 1, "0 to 255, .* from 0 to 15.94")],
)
@pytest.mark.parametrize("n", [1, 100])
def test_predict_warns_of_images_of_another_range(
    scale: float, test_scale: float, ranges: str, n: int, tmp_path: Path
) -> None:
    args = {"trainer_args": {"epochs": 1}, **TINY}
    classifier = ImageClassifier(tmp_path / "run", max_trials=1, refit=False, random_state=0, searcher_args=args)
    classifier.fit(X[:200] * scale, Y[:200])
    loaded = ImageClassifier.load(tmp_path / "run")
    x_test = X[200:][:n] * test_scale
    for method in (loaded.predict, classifier.predict_proba, lambda x: loaded.evaluate(x, Y[200:][:n])):
        with pytest.warns(DataWarning, match=f"^x_test has values from {ranges}: were both prepared alike") as caught:
            method(x_test)
        assert len(caught) == 1
    blank, dark = np.zeros((1, 8, 8)), (X[:1] > X[:1].mean()) * X[:200].max() * scale / 9
    for similar in (X[200:] * scale, X[:1] * scale, blank, dark, X[:2] * 9 * scale):
        loaded.predict(similar)


def test_predict_ignores_the_range_of_rows(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(100, 3))
    classifier = ImageClassifier(tmp_path / "run", max_trials=1, refit=False, searcher_args=TINY)
    classifier.fit(x, x[:, 0] > 0, time_limit=5).predict(100 * x)


def test_shuffled_labels_are_found_with_hundreds_of_tags() -> None:
    """Some tags seem predictable, by chance."""
    tags = np.random.default_rng(0).integers(0, 2, (len(X), 400))
    assert "signal" in finding_kinds(examine(X, tags))


def test_small_validation_set_of_many_classes_is_no_shift() -> None:
    """The class frequencies differ only by chance."""
    y = np.random.default_rng(0).integers(0, 100, len(X))
    assert "mixture" not in finding_kinds(examine(X[:1597], y[:1597], (X[1597:], y[1597:])))
