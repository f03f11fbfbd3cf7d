"""Examples of a group are never split between the training set and held-out examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import morphnas
from morphnas import ImageClassifier, ImageRegressor
from morphnas.estimators.splits import groups_of, split
from morphnas.run.files import RunError
from tests.estimators.conftest import stripes

ARGS: dict[str, Any] = {"default_model_width": 2, "trainer_args": {"epochs": 2, "precision": "float32"}}


@settings(max_examples=40)
@given(n=st.integers(50, 1500), classes=st.integers(2, 5), size=st.integers(1, 12), seed=st.integers(0, 100))
def test_split_keeps_groups_together(n: int, classes: int, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups, strata = np.sort(rng.integers(0, max(10, n // size), n)), rng.integers(0, classes, n)
    codes = groups_of(groups, n)
    assert codes is not None
    parts = split(strata, seed, codes)
    indices = [part for part in (parts.train, parts.valid, parts.selection_set) if part is not None]
    assert sorted(np.concatenate(indices).tolist()) == list(range(n))
    assert sum(len(set(groups[part])) for part in indices) == len(set(groups))
    assert set(strata[parts.train]) == set(strata)
    assert np.array_equal(split(strata, seed, codes).train, parts.train)


def test_split_by_groups_is_stratified() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 200, 2000)
    strata = (groups % 4 == 0).astype(np.int64)
    parts = split(strata, 0, groups_of(groups, 2000))
    assert parts.valid is not None
    assert parts.selection_set is not None
    held_out = np.concatenate([parts.valid, parts.selection_set])
    for stratum in (0, 1):
        assert (strata[held_out] == stratum).sum() == pytest.approx(0.15 * (strata == stratum).sum(), rel=0.15)
    assert len(parts.selection_set) == pytest.approx(len(parts.valid), rel=0.2)


def test_groups_prevent_leaks_into_the_scores(tmp_path: Path) -> None:
    """The images of a group are similar and share a label, which is random."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 5)
    x = rng.integers(0, 200, (60, 6, 6))[groups] + rng.integers(0, 20, (300, 6, 6))
    y = rng.permutation(np.arange(60) % 2)[groups]
    args = {"default_model_width": 8, "trainer_args": {"epochs": 12}}
    scores = []
    for name, fit_groups in (("without", None), ("with", [f"plant {group}" for group in groups])):
        clf = ImageClassifier(tmp_path / name, max_trials=1, refit=False, random_state=0, searcher_args=args)
        scores.append(clf.fit(x, y, groups=fit_groups).history[0]["metric_value"])
    assert scores[0] > 0.9
    assert scores[1] < 0.75


def test_groups_in_fit_resume_final_fit_and_ablate(tmp_path: Path) -> None:
    x, y = stripes(200)
    groups = np.arange(200) // 4
    options: dict[str, Any] = {"path": tmp_path / "run", "searcher_args": ARGS, "random_state": 0, "refit": False}
    ImageClassifier(**options, max_trials=1).fit(x, y, groups=groups)
    with pytest.raises(RunError, match="the same x, y, sample_weight, groups and teacher"):
        ImageClassifier(**options, max_trials=2, resume=True).fit(x, y)
    clf = ImageClassifier(**options, max_trials=3, resume=True).fit(x, y, groups=list(groups))
    clf.final_fit(x, y, trainer_args={"epochs": 1}, time_limit=5, groups=groups)
    ablation = morphnas.ablate(clf.load_searcher(), x, y, groups=groups, time_limit=1, repeats=1)
    assert ablation.trial == clf.best_trial_
    with pytest.raises(RunError, match="groups and teacher of the fit"):
        morphnas.ablate(clf.load_searcher(), x, y, time_limit=1)
    ImageRegressor(max_trials=1, searcher_args=ARGS, refit=False).fit(x, y + 0.5, groups=groups)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([1, 2, 3], r"groups must be \(200,\), the group of each example, but their shape is \(3,\)"),
        (np.zeros((200, 2)), r"their shape is \(200, 2\)"),
        (np.zeros(200), "all examples belong to one group"),
        ([float("nan")] * 200, r"groups\[0\] is NaN"),
        ([[1]] * 199 + [2], r"groups\[0\] is not a label, because it cannot be hashed|setting an array element"),
        (np.ma.masked_equal(np.arange(200), 3), "groups"),
        (np.arange(200) % 3, r"groups cannot be held out: examples like \d are in 1 of 3 groups only"),
        ("each", r"their shape is \(\)"),
    ],
)
def test_fit_rejects_invalid_groups(groups: Any, message: str, tmp_path: Path) -> None:
    x, y = stripes(200)
    with pytest.raises(ValueError, match=message):
        ImageClassifier(tmp_path / "run", max_trials=1, searcher_args=ARGS).fit(x, y, groups=groups)
    assert not (tmp_path / "run").exists()


def test_validation_data_and_groups_exclude_each_other() -> None:
    x, y = stripes(200)
    with pytest.raises(ValueError, match="groups and validation_data exclude each other"):
        ImageClassifier().fit(x, y, validation_data=(x, y), groups=np.arange(200) // 4)
