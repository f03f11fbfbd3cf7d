"""The data checks report what is wrong with data, and nothing for sound data."""

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


def the(findings: Findings, kind: str) -> Finding:
    """The only finding of a kind."""
    (found,) = (finding for finding in findings.found if finding.kind == kind)
    return found


def kinds(findings: Findings) -> list[str]:
    return [finding.kind for finding in findings.found]


def some(n: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).choice(len(X), n, replace=False)


def smooth(n: int, size: tuple[int, int], seed: int = 0) -> Array:
    """Colour images (n, *size, 3) of noise that is blurred separately in each channel."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, *size, 3))
    for axis in (1, 2):
        for _ in range(6):
            x = x + np.roll(x, 1, axis) + np.roll(x, -1, axis)
    x = (x - x.min()) / np.ptp(x)
    rounded: Array = (255 * x).astype(np.uint8)
    return rounded


# -- data as they should be


def test_nothing_is_found_in_data_that_are_as_they_should_be() -> None:
    for x, y in ((X, Y), (X / 255, Y), (X.reshape(len(X), -1), Y.astype(str)), stripes(150), stripes(12)):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "x has rows")
            found = examine(x, y)
        assert found.found == ()
        assert found.looked == found.examples == len(x)
        assert str(found) == f"nothing found in {len(x):,} examples"


def test_nothing_is_found_in_validation_data_that_are_as_they_should_be() -> None:
    found = examine(X[:1500], Y[:1500], (X[1500:], Y[1500:]))
    assert found.found == ()
    assert found.examples == len(X)


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), n=st.integers(10, 80), classes=st.integers(2, 5))
def test_of_a_few_random_examples_nothing_is_said(seed: int, n: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    for x in (rng.integers(0, 256, (n, 6, 5, 3)), rng.normal(size=(n, 7)), rng.integers(0, 2, (n, 8, 8))):
        assert not examine(x, y).warnings


# -- copies


def brute(findings_of: Array, y: Array, train: set[int], places: list[int]) -> dict[str, int]:
    """Count leaks, contradictory labels and duplicates example by example."""
    groups: dict[bytes, list[int]] = {}
    for i in places:
        groups.setdefault(findings_of[i].tobytes(), []).append(i)
    count = {"leak": 0, "contradictory": 0, "duplicates": 0}
    for group in groups.values():
        trained = [i for i in group if i in train]
        count["leak"] += len(group) - len(trained) if trained else 0
        alike = len({y[i] for i in group}) == 1
        count["contradictory"] += 0 if alike else len(group)
        count["duplicates"] += max(0, len(trained) - 1) if alike else 0
    return count


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), n=st.integers(30, 120), different=st.integers(5, 60), own=st.booleans())
def test_copies_are_counted_as_one_by_one(seed: int, n: int, different: int, own: bool) -> None:
    rng = np.random.default_rng(seed)
    pool = rng.integers(0, 256, (different, 6, 6)).astype(np.uint8)
    which = rng.integers(0, different, n)
    x, y = pool[which], np.where(rng.random(n) < 0.8, which % 2, np.arange(n) % 2)
    y[:4] = 0, 1, 0, 1
    m = n - 10 if own else n
    if own:
        found, train = examine(x[:m], y[:m], (x[m:], y[m:])), set(range(m))
    else:
        problem = Problem.infer(x, y, None, None, 0, torch.device("cpu"))
        found, train = data_checks.check(problem), {int(i) for i in problem.order[: len(problem.task.train)]}
    expected = brute(x, y, train, list(range(n)))
    counted = {f.kind: f.numbers["count"] for f in found.found if f.kind in expected}
    assert counted == {kind: count for kind, count in expected.items() if count}


def test_a_leak_says_where_it_is() -> None:
    x = np.concatenate([X[1500:], X[3:5]])
    found = the(examine(X[:1500], Y[:1500], (x, np.concatenate([Y[1500:], Y[3:5]]))), "leak")
    assert not found.warns, "2 of 299 are below the threshold"
    assert found.numbers["examples"] == ["validation_data[297]", "validation_data[298]"]
    assert "2 of validation_data (0.7 %) are trained on as well" in found.text
    assert "first validation_data[297] as x[3]" in found.text
    whole = examine(X, Y, (X, Y))
    assert the(whole, "leak").warns
    assert the(whole, "leak").numbers["share"] == 1
    assert kinds(whole) == ["leak"]


def test_groups_and_weights_are_heeded_as_fit_does() -> None:
    """Copies within a group are held out together; weights may balance the classes."""
    x, y = np.repeat(X[:400], 3, 0), np.repeat(Y[:400], 3)
    assert the(examine(x, y), "leak").warns
    assert "leak" not in kinds(examine(x, y, groups=np.repeat(np.arange(400), 3)))
    few = np.concatenate([np.flatnonzero(Y == 0), np.flatnonzero(Y == 1)[:9]])
    assert the(examine(X[few], Y[few]), "imbalance").warns
    assert not examine(X[few], Y[few], sample_weight="balanced").warnings


def test_contradictory_labels_are_named() -> None:
    x, y = np.concatenate([X, X[:20]]), np.concatenate([Y.astype(str), ["x"] * 20])
    found = the(examine(x, y), "contradictory")
    assert found.warns
    assert found.numbers["count"] == 40
    assert "40 images (2.2 %) occur with different labels: x[" in found.text
    assert "is 'x'" in found.text


def test_rows_of_few_values_are_equal_by_nature() -> None:
    rng = np.random.default_rng(0)
    found = examine(rng.integers(0, 3, (300, 4)), rng.integers(0, 2, 300))
    assert {"leak", "contradictory", "duplicates"} <= set(kinds(found))
    assert not found.warnings


# -- values


@pytest.mark.parametrize("rate", [0.01, 0.2])
def test_constant_images(rate: float) -> None:
    x, where = X.copy(), some(int(rate * len(X)) + 1)
    x[where] = 7
    found = examine(x, Y)
    assert kinds(found) == ["constant"], "they are not told of as copies, too"
    assert found.found[0].warns
    assert found.found[0].numbers["count"] == len(where)
    assert set(found.found[0].numbers["examples"]) <= {f"x[{i}]" for i in where}


def test_one_pixel_is_not_constant() -> None:
    assert not examine(np.arange(60.0).reshape(60, 1, 1), np.arange(60) % 2).warnings


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("low", [0.0, -1.0])
def test_mixed_ranges(rate: float, low: float) -> None:
    x, where = X.astype(np.float64), some(int(rate * len(X)) + 1)
    x[where] = low + (1 - low) * x[where] / 255
    found = the(examine(x, Y), "range")
    assert found.warns
    assert found.numbers["count"] == min(len(where), len(X) - len(where))
    assert "were all brought to the same range?" in found.text


def test_one_wild_value() -> None:
    x = X.astype(np.float32)
    x[5, 3, 3] = 1e9
    found = the(examine(x, Y), "range")
    assert found.warns
    assert found.numbers["examples"] == ["x[5]"]


def test_images_that_became_zeros() -> None:
    x = np.zeros((200, 30, 30), dtype=np.uint8)
    rng = np.random.default_rng(0)
    for image in x:
        image[tuple(rng.integers(0, 30, 2))] = 1
    assert "99.9 % of all values are 0" in the(examine(x, np.arange(200) % 2), "zeros").text


@pytest.mark.parametrize(("deviation", "found"), [(0.5, []), (1.0, []), (2.0, [1]), (3.0, [1])])
def test_features_with_long_tails(deviation: float, found: list[int]) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3))
    x[:, 1] = np.exp(deviation * x[:, 1])
    x[:, 2] = np.where(rng.random(400) < 0.1, 100 * x[:, 2], 0)  # mostly zeros, like counts
    findings = [finding for finding in examine(x, x[:, 0] > 0).found if finding.kind == "tails"]
    assert [finding.numbers["features"] for finding in findings] == ([found] if found else [])
    assert all("feature 1 has a few values" in finding.text for finding in findings)


def test_channels_that_say_nothing() -> None:
    x = smooth(60, (8, 8))
    y = np.arange(60) % 2
    assert examine(x, y).found == ()
    alpha = np.concatenate([x, np.full((60, 8, 8, 1), 255, np.uint8)], 3)
    assert the(examine(alpha, y), "channels").numbers == {"constant": [3]}
    grey = the(examine(np.repeat(x[..., :1], 3, 3), y), "channels")
    assert (grey.numbers, grey.warns) == ({"equal": 3}, False)


# -- the order of axes


def test_axes_in_another_order() -> None:
    x, y = smooth(100, (12, 12)), np.arange(100) % 2
    planes = np.moveaxis(x, -1, 1)
    wrong = planes.reshape(100, 12, 12, 3)
    found = the(examine(wrong, y), "axes")
    assert (found.warns, found.numbers["order"]) == (True, "channels first")
    assert "np.moveaxis(x.reshape(-1, 3, 12, 12), 1, -1)" in found.text
    assert the(examine(planes.reshape(100, -1), y, image_shape=(12, 12, 3)), "axes") == found
    assert examine(np.moveaxis(wrong.reshape(-1, 3, 12, 12), 1, -1), y).found == (), "what it says helps"
    assert examine(x.reshape(100, -1), y, image_shape=(12, 12, 3)).found == ()
    tensors = np.moveaxis(x.reshape(100, 3, 12, 12), 1, -1)
    assert the(examine(tensors, y), "axes").numbers["order"] == "channels last"


def test_width_and_height_exchanged() -> None:
    x, y = smooth(100, (8, 14))[..., 0], np.arange(100) % 2
    assert examine(x, y).found == ()
    found = the(examine(x.reshape(100, 14, 8), y), "axes")
    assert found.numbers["order"] == "width and height exchanged"
    assert "x.reshape(-1, 8, 14) would read them like that" in found.text


# -- labels


def test_labels_in_another_order_than_the_images() -> None:
    found = examine(X, np.random.default_rng(0).permutation(Y))
    assert kinds(found) == ["signal"]
    assert "are x and y in the same order?" in found.found[0].text
    few = np.concatenate([np.flatnonzero(Y != 3), np.flatnonzero(Y == 3)[:3]])
    assert "signal" not in kinds(examine(X[few], Y[few] == 3)), "a small class is not lost among the others"
    assert examine(X[:900], np.random.default_rng(0).permutation(Y[:900])).found == (), "too few to say"


def test_labels_that_are_amounts() -> None:
    rng = np.random.default_rng(0)
    amounts = the(examine(X, rng.integers(0, 4000, len(X))), "labels")
    assert "are they numbers to predict, for an ImageRegressor?" in amounts.text
    names = [f"img_{i}.png" for i in range(len(X))]
    assert "are they names of examples?" in the(examine(X, names), "labels").text
    few = np.repeat(np.arange(30), 2)
    assert "labels" not in kinds(examine(X[:60], few)), "classes that are numbered, two examples of each"


def test_unequal_and_tiny_classes() -> None:
    order = np.argsort(Y != 3, kind="stable")  # all threes first
    keep = np.concatenate([order[:183], order[183:195]])
    found = examine(X[keep], Y[keep] == 3)
    imbalance = the(found, "imbalance")
    assert imbalance.warns
    assert imbalance.numbers["share"] == 183 / 195
    assert "accuracy of 93.8 %" in imbalance.text
    milder = the(examine(X[:200], np.where(np.arange(200) < 12, "few", "many")), "imbalance")
    assert milder.warns
    y = Y.astype(str)
    y[7] = "once"
    single = the(examine(X, y), "unjudged")
    assert "class 'once' has no example in the held-out part" in single.text


def test_classes_that_validation_data_lack() -> None:
    where = Y[1500:] < 8
    found = examine(X[:1500], Y[:1500], (X[1500:][where], Y[1500:][where]))
    assert "classes 8, 9 have no example in validation_data" in the(found, "unjudged").text


def test_validation_data_of_another_mixture_or_range() -> None:
    order = np.argsort(Y + np.random.default_rng(0).normal(0, 3, len(Y)))
    x, y = X[order], Y[order]
    found = examine(x[:1400], y[:1400], (x[1400:], y[1400:]))
    assert "mixture" in kinds(found)
    for other in (X[1500:] / 255, X[1500:] / 127.5 - 1):
        found = examine(X[:1500], Y[:1500], (other, Y[1500:]))
        assert kinds(found)[0] in ("preparation", "range")
        assert "from 0 to 255" in the(found, "preparation").text
    assert kinds(examine(X[:1500] / 255, Y[:1500], (X[1500:] / 255, Y[1500:]))) == []


# -- refused


def test_data_without_any_difference_are_refused(tmp_path: Path) -> None:
    x, y = np.ones((60, 6, 6)), np.arange(60) % 2
    with pytest.raises(ValueError, match="all 60 examples are the same"):
        examine(x, y)
    with pytest.raises(ValueError, match="all 60 examples are the same"):
        ImageClassifier(tmp_path / "run").fit(x, y, time_limit=5)
    assert not (tmp_path / "run").exists()


def test_what_fit_refuses_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        examine(np.full((60, 6, 6), np.nan), np.arange(60) % 2)
    with pytest.raises(ValueError, match="did not see"):
        examine(X, Y, (X[:10], ["?"] * 10))
    with pytest.raises(ValueError, match="one class only"):
        examine(X, np.zeros(len(X)))


# -- time and memory


def test_without_time_a_part_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings_module, "_PIECE", 64 * 100)
    found = examine(np.concatenate([X, X]), np.concatenate([Y, Y]), time_limit=1e-9)
    assert found.looked == 100
    assert "100 of 3,594 examples (out of time)" in str(found)


def test_pieces_and_files_make_no_difference(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    x = np.concatenate([X, X[:100]])
    y = np.concatenate([Y, (Y[:100] + 1) % 10])
    whole = examine(x, y)
    monkeypatch.setattr(findings_module, "_PIECE", 64 * 77)
    problem = Problem.infer(x, y, None, None, 0, torch.device("cpu"), data_memory=DataMemory(memory=1, folder=tmp_path))
    assert problem.bytes_in_memory == 0
    assert data_checks.check(problem).found == whole.found


# -- as fit and others have it


def test_fit_warns_of_each_and_keeps_all(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    x, y = np.concatenate([X[:200], X[:40]]), np.concatenate([Y[:200], (Y[:40] + 1) % 10])
    x[100] = 0
    args = {"trainer_args": {"epochs": 1}, **TINY}
    classifier = ImageClassifier(tmp_path / "run", max_trials=1, refit=False, random_state=0, searcher_args=args)
    with pytest.warns(DataWarning) as caught, caplog.at_level("INFO", "morphnas"):
        classifier.fit(x, y)
    expected = examine(x, y)
    assert [str(one.message) for one in caught] == [finding.text for finding in expected.warnings]
    assert {one.filename for one in caught} == {__file__}
    told = [message for message in caplog.messages if "constant" in message or "different labels" in message]
    assert told == [str(the(expected, "constant"))], "information is logged, and warnings are not logged as well"
    kept = morphnas.load_run(tmp_path / "run").about["findings"]
    assert kept | {"seconds": 0} == json.loads(json.dumps(expected.to_json())) | {"seconds": 0}


def test_words() -> None:
    lines = str(examine(X, Y, (X, Y))).splitlines()
    assert lines[0].startswith("warning: 1,797 of validation_data (100.0 %) are trained on")
    assert lines[1:] == ["1 found in 3,594 examples"]


def test_large_images_are_read_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings_module, "_PIECE", 10)
    monkeypatch.setattr(findings_module, "_BYTES", 10 * 4 * 64)
    data = CheckedData.of(Problem.infer(X, Y, None, None, 0, torch.device("cpu")))
    assert {len(piece) for _, piece in data.pieces()} == {1}
    assert len(data.sample(500)) == 10


@pytest.mark.parametrize(
    ("unit", "other", "said"), [(1, 1 / 255, "0 to 1, .* from 0 to 255"), (1 / 16, 1, "0 to 255, .* from 0 to 15.94")]
)
@pytest.mark.parametrize("n", [1, 100])
def test_images_to_predict_of_another_range(unit: float, other: float, said: str, n: int, tmp_path: Path) -> None:
    args = {"trainer_args": {"epochs": 1}, **TINY}
    classifier = ImageClassifier(tmp_path / "run", max_trials=1, refit=False, random_state=0, searcher_args=args)
    classifier.fit(X[:200] * unit, Y[:200])
    loaded = ImageClassifier.load(tmp_path / "run")
    others = X[200:][:n] * other
    for ask in (loaded.predict, classifier.predict_proba, lambda x: loaded.evaluate(x, Y[200:][:n])):
        with pytest.warns(DataWarning, match=f"^x_test has values from {said}: were both prepared alike") as caught:
            ask(others)
        assert len(caught) == 1
    blank, dark = np.zeros((1, 8, 8)), (X[:1] > X[:1].mean()) * X[:200].max() * unit / 9
    for usual in (X[200:] * unit, X[:1] * unit, blank, dark, X[:2] * 9 * unit):
        loaded.predict(usual)


def test_rows_have_no_range(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(100, 3))
    classifier = ImageClassifier(tmp_path / "run", max_trials=1, refit=False, searcher_args=TINY)
    classifier.fit(x, x[:, 0] > 0, time_limit=5).predict(100 * x)


def test_of_hundreds_of_tags_in_another_order_some_seem_to_be_told_by_chance() -> None:
    tags = np.random.default_rng(0).integers(0, 2, (len(X), 400))
    assert "signal" in kinds(examine(X, tags))


def test_of_many_classes_a_few_validation_data_may_be_another_mixture_by_chance() -> None:
    y = np.random.default_rng(0).integers(0, 100, len(X))
    assert "mixture" not in kinds(examine(X[:1597], y[:1597], (X[1597:], y[1597:])))
