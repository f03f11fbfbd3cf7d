"""Tests of the comparison of runs: equal and different runs, and predictions of a further run."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from morphnas.report.compare import compare_runs
from morphnas.run.files import RunError
from morphnas.run.store import Run
from morphnas.search.trial import Trial
from tests.report.history import LARGE, SMALL, history, trial

DATA = {"hash": "1"}


def make_run(trials: list[Trial], name: str = "run", **about: Any) -> Run:
    """A run whose seed depends on the name."""
    defaults = {"data": DATA, "decides": {"search_type": "bayesian", "random_state": 1}, "seed": hash(name)}
    return Run(Path(name), defaults | about, tuple(trials))


def equal_runs(n: int, **about: Any) -> list[Run]:
    """Runs that differ only in their names and seeds."""
    return [make_run(history(), str(i), best=5, **about) for i in range(n)]


def scored_trial(id: int, graph: Any, score: float, accuracy: float, examples: int = 400) -> Trial:
    one = trial(id, graph)
    assert one.outcome is not None
    return replace(one, outcome=replace(one.outcome, score=score, metric=accuracy, examples=examples))


def test_run_and_its_copy_do_not_differ() -> None:
    comparison = compare_runs(equal_runs(2))
    assert (comparison.measure, comparison.shared, comparison.nearest) == ("accuracy", 1.0, 0.0)
    assert comparison.by_chance == pytest.approx(1.0)
    assert comparison.winners_apart == ((0.0, 0.0), (0.0, 0.0))
    assert comparison.runs[0].value == 0.96
    assert comparison.runs[0].curve == comparison.runs[1].curve
    assert all(sd == 0 for sd in comparison.sd if sd is not None)
    assert "no more different than chance would explain" in str(comparison)
    assert "1 of 1 pairs at distance 0" in str(comparison)
    json.dumps(comparison.to_json(), allow_nan=False)


def test_slow_networks_are_left_out_of_curves() -> None:
    """Unless all are too slow."""
    good, fast = scored_trial(0, LARGE, -0.1, 0.97), scored_trial(1, SMALL, -0.5, 0.85)
    assert good.outcome is not None
    slow = replace(good, outcome=replace(good.outcome, slow=True))
    for trials, expected in (([slow, fast], 0.85), ([slow], 0.97)):
        (one, _) = compare_runs([make_run(trials), make_run(trials, "copy")]).runs
        assert {value for value in one.curve if value is not None} == {expected}


def test_different_runs_differ() -> None:
    one, other = make_run([scored_trial(0, LARGE, -0.1, 0.97)]), make_run([scored_trial(0, SMALL, -0.9, 0.7)], "other")
    comparison = compare_runs([one, other])
    assert comparison.shared == 0
    assert comparison.winners_apart[0][1] == comparison.typical == comparison.nearest > 0
    assert comparison.by_chance is not None
    assert comparison.by_chance < 1e-6
    assert ", more different than chance would explain" in str(comparison)
    assert "between 70.00 % and 97.00 %" in str(comparison)


@given(st.lists(st.floats(0.5, 0.99), min_size=2, max_size=6))
def test_prediction_interval_of_further_run(accuracies: list[float]) -> None:
    n = len(accuracies)
    runs = [make_run([scored_trial(0, LARGE, -0.5, value)], str(i), seed=i) for i, value in enumerate(accuracies)]
    comparison = compare_runs(runs)
    assert comparison.next_better == pytest.approx(1 / (n + 1))
    if n < 3:
        assert comparison.next_value is None
        return
    assert comparison.next_value is not None
    low, high = comparison.next_value
    mean, sd = statistics.mean(accuracies), statistics.stdev(accuracies)
    if sd > 1e-6:
        distribution = stats.t(n - 1, mean, sd * (1 + 1 / n) ** 0.5)
        assert distribution.cdf(high) - distribution.cdf(low) == pytest.approx(0.95)


def test_third_run_is_best_with_probability_one_third() -> None:
    """As the last of three draws from any continuous distribution is the largest."""
    draws = stats.norm.rvs(size=(30_000, 3), random_state=0)
    comparison = compare_runs(equal_runs(2))
    assert comparison.next_better == pytest.approx((draws[:, 2] > draws[:, :2].max(1)).mean(), abs=0.01)


def test_different_settings_give_no_prediction() -> None:
    run, other = make_run(history(), best=5), make_run(history(), "other", decides={"search_type": "random"}, best=5)
    comparison = compare_runs([run, other])
    assert not comparison.alike
    assert comparison.next_better is None
    assert "different settings" in str(comparison)
    other_seed = make_run(history(), "other", decides={"search_type": "bayesian", "random_state": 2}, best=5)
    assert compare_runs([run, other_seed]).alike, "the seed does not count as a setting"


def test_equal_seeds_give_no_prediction() -> None:
    comparison = compare_runs(equal_runs(3, seed=7))
    assert not comparison.alike
    assert (comparison.next_better, comparison.next_value) == (None, None)
    assert "or the same seed" in str(comparison)


@pytest.mark.parametrize(
    ("one", "other"),
    [({"max_trials": 1}, {"max_trials": 8}), ({"refit": False}, {}), ({"devices": 2, "executor": "process"}, {})],
)
def test_different_effort_is_not_alike(one: dict[str, Any], other: dict[str, Any]) -> None:
    runs = [make_run(history(), name, best=5, settings=settings) for name, settings in (("a", one), ("b", other))]
    assert not compare_runs(runs).alike
    assert compare_runs(equal_runs(2, settings=one)).alike


def test_interval_of_accuracy_is_clipped_to_0_and_1() -> None:
    comparison = replace(compare_runs(equal_runs(3)), next_value=(-0.2, 1.1))
    assert "between 0.00 % and 100.00 %" in str(comparison)


def test_different_validation_data_raise_value_error() -> None:
    other = make_run(history(), "other", best=5, data=DATA | {"validation": {"hash": "2"}})
    with pytest.raises(ValueError, match="'other' is not a run on the same data"):
        compare_runs([make_run(history(), best=5), other])


def test_scores_are_compared_without_accuracies() -> None:
    without_accuracy = [replace(t, outcome=t.outcome and replace(t.outcome, examples=0)) for t in history()]
    comparison = compare_runs([make_run(without_accuracy, best=5), make_run(history(), "other", best=5)])
    assert (comparison.measure, comparison.by_chance, comparison.runs[0].value) == ("score", None, -0.1)
    assert "The winners are between -0.1000 and -0.1000." in str(comparison)


def test_runs_that_cannot_be_compared_raise_errors(tmp_path: Path) -> None:
    good = make_run(history(), best=5)
    for runs in ([], [good], "runs", good):
        with pytest.raises(ValueError, match="at least two runs"):
            compare_runs(runs)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'elsewhere' is not a run on the same data .* as 'run'"):
        compare_runs([good, make_run(history(), "elsewhere", data={"hash": "2"})])
    for data in (None, "text"):
        with pytest.raises(ValueError, match="the data of the run 'elsewhere' are unknown"):
            compare_runs([good, make_run(history(), "elsewhere", data=data)])
    with pytest.raises(ValueError, match="'run' is named twice"):
        compare_runs([good, make_run(history(), "other", best=5), good])
    with pytest.raises(ValueError, match="no network of 'empty' has a score yet"):
        compare_runs([good, make_run([], "empty")])
    with pytest.raises(RunError, match="holds no run"):
        compare_runs([good, tmp_path])


def test_draw_writes_curves_as_svg(tmp_path: Path) -> None:
    comparison = compare_runs([make_run(history(), "<a>", best=5), make_run(history()[:3], "b")])
    root = ElementTree.parse(comparison.draw(tmp_path / "new" / "curves.svg")).getroot()
    assert len([path for path in root.iter() if path.tag.endswith("path") and path.get("fill") == "none"]) == 3
    with pytest.raises(ValueError, match=r"drawn as \.svg"):
        comparison.draw(tmp_path / "curves.png")
