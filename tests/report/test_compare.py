"""Comparing runs: a run and its copy are equal, others are not, and what is predicted of a further run."""

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


def run(trials: list[Trial], name: str = "run", **about: Any) -> Run:
    """A run with a seed of its own for each name."""
    own = {"data": DATA, "decides": {"search_type": "bayesian", "random_state": 1}, "seed": hash(name)}
    return Run(Path(name), own | about, tuple(trials))


def same(n: int, **about: Any) -> list[Run]:
    return [run(history(), str(i), best=5, **about) for i in range(n)]


def scored(id: int, graph: Any, score: float, accuracy: float, examples: int = 400) -> Trial:
    one = trial(id, graph)
    assert one.outcome is not None
    return replace(one, outcome=replace(one.outcome, score=score, metric=accuracy, examples=examples))


def test_a_run_and_its_copy_are_the_same() -> None:
    found = compare_runs([run(history(), best=5), run(history(), "copy", best=5)])
    assert (found.measure, found.shared, found.nearest) == ("accuracy", 1.0, 0.0)
    assert found.by_chance == pytest.approx(1.0)
    assert found.winners_apart == ((0.0, 0.0), (0.0, 0.0))
    assert found.runs[0].value == 0.96
    assert found.runs[0].curve == found.runs[1].curve
    assert all(sd == 0 for sd in found.sd if sd is not None)
    assert "no more different than chance would explain" in str(found)
    assert "1 of 1 pairs at distance 0" in str(found)
    json.dumps(found.to_json(), allow_nan=False)


def test_networks_that_are_too_slow_are_in_no_curve() -> None:
    """They cannot win either, unless all are."""
    good, fast = scored(0, LARGE, -0.1, 0.97), scored(1, SMALL, -0.5, 0.85)
    assert good.outcome is not None
    slow = replace(good, outcome=replace(good.outcome, slow=True))
    for trials, expected in (([slow, fast], 0.85), ([slow], 0.97)):
        (one, _) = compare_runs([run(trials), run(trials, "copy")]).runs
        assert {value for value in one.curve if value is not None} == {expected}


def test_others_differ() -> None:
    one, other = run([scored(0, LARGE, -0.1, 0.97)]), run([scored(0, SMALL, -0.9, 0.7)], "other")
    found = compare_runs([one, other])
    assert found.shared == 0
    assert found.winners_apart[0][1] == found.typical == found.nearest > 0
    assert found.by_chance is not None
    assert found.by_chance < 1e-6
    assert ", more different than chance would explain" in str(found)
    assert "between 70.00 % and 97.00 %" in str(found)


@given(st.lists(st.floats(0.5, 0.99), min_size=2, max_size=6))
def test_what_is_said_of_a_further_run(accuracies: list[float]) -> None:
    n = len(accuracies)
    runs = [run([scored(0, LARGE, -0.5, value)], str(i), seed=i) for i, value in enumerate(accuracies)]
    found = compare_runs(runs)
    assert found.next_better == pytest.approx(1 / (n + 1))
    if n < 3:
        assert found.next_value is None
        return
    assert found.next_value is not None
    low, high = found.next_value
    mean, sd = statistics.mean(accuracies), statistics.stdev(accuracies)
    if sd > 1e-6:
        law = stats.t(n - 1, mean, sd * (1 + 1 / n) ** 0.5)
        assert law.cdf(high) - law.cdf(low) == pytest.approx(0.95)


def test_a_further_run_has_one_chance_in_three_after_two() -> None:
    """Of three draws of anything, the last one is the best a third of the time."""
    draws = stats.norm.rvs(size=(30_000, 3), random_state=0)
    found = compare_runs(same(2))
    assert found.next_better == pytest.approx((draws[:, 2] > draws[:, :2].max(1)).mean(), abs=0.01)


def test_runs_of_other_settings_say_nothing_of_a_further_one() -> None:
    found = compare_runs([run(history(), best=5), run(history(), "other", decides={"search_type": "random"}, best=5)])
    assert not found.alike
    assert found.next_better is None
    assert "different settings" in str(found)
    again = compare_runs([run(history(), best=5), run(history(), "other", decides={"search_type": "bayesian"}, best=5)])
    assert again.alike, "the seed is no setting"


def test_runs_of_the_same_seed_are_no_two_draws() -> None:
    copies = compare_runs(same(3, seed=7))
    assert not copies.alike
    assert (copies.next_better, copies.next_value) == (None, None)
    assert "or the same seed" in str(copies)


@pytest.mark.parametrize(
    ("one", "other"),
    [({"max_trials": 1}, {"max_trials": 8}), ({"refit": False}, {}), ({"devices": 2, "executor": "process"}, {})],
)
def test_so_do_runs_of_other_lengths(one: dict[str, Any], other: dict[str, Any]) -> None:
    runs = [run(history(), name, best=5, settings=settings) for name, settings in (("a", one), ("b", other))]
    assert not compare_runs(runs).alike
    assert compare_runs(same(2, settings=one)).alike


def test_an_interval_of_shares_is_told_as_one() -> None:
    found = compare_runs(same(3))
    text = str(replace(found, next_value=(-0.2, 1.1)))
    assert "between 0.00 % and 100.00 %" in text


def test_other_validation_data_are_other_data() -> None:
    other = run(history(), "other", best=5, data=DATA | {"validation": {"hash": "2"}})
    with pytest.raises(ValueError, match="'other' is not a run on the same data"):
        compare_runs([run(history(), best=5), other])


def test_without_shares_scores_are_compared() -> None:
    plain = [replace(t, outcome=t.outcome and replace(t.outcome, examples=0)) for t in history()]
    found = compare_runs([run(plain, best=5), run(history(), "other", best=5)])
    assert (found.measure, found.by_chance, found.runs[0].value) == ("score", None, -0.1)
    assert "The winners are between -0.1000 and -0.1000." in str(found)


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    good = run(history(), best=5)
    for few in ([], [good], "runs", good):
        with pytest.raises(ValueError, match="at least two runs"):
            compare_runs(few)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'elsewhere' is not a run on the same data .* as 'run'"):
        compare_runs([good, run(history(), "elsewhere", data={"hash": "2"})])
    for other in (None, "text"):
        with pytest.raises(ValueError, match="the data of the run 'elsewhere' are unknown"):
            compare_runs([good, run(history(), "elsewhere", data=other)])
    with pytest.raises(ValueError, match="'run' is named twice"):
        compare_runs([good, run(history(), "other", best=5), good])
    with pytest.raises(ValueError, match="no network of 'empty' has a score yet"):
        compare_runs([good, run([], "empty")])
    with pytest.raises(RunError, match="holds no run"):
        compare_runs([good, tmp_path])


def test_the_curves_are_drawn(tmp_path: Path) -> None:
    found = compare_runs([run(history(), "<a>", best=5), run(history()[:3], "b")])
    root = ElementTree.parse(found.draw(tmp_path / "new" / "curves.svg")).getroot()
    assert len([path for path in root.iter() if path.tag.endswith("path") and path.get("fill") == "none"]) == 3
    with pytest.raises(ValueError, match=r"drawn as \.svg"):
        found.draw(tmp_path / "curves.png")
