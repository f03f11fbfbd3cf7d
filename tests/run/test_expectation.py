"""Tests of the predictions of a search, from artificial plans and trials."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morphnas.graph import Limits, cnn
from morphnas.run import expectation as module
from morphnas.run.expectation import (
    Expectation,
    ExpectationReporter,
    Ladder,
    SearchConditions,
    expectation,
    seconds_for_search,
    weight_bytes,
)
from morphnas.run.plan import Pace, Plan, plan
from morphnas.search import MorphSpace, Patient, Promote, RandomSearcher, Tuned, ranges_of
from morphnas.search.halving import HalvingSearcher
from morphnas.search.trial import Proposal, Trial
from morphnas.train.recipe import Outcome, Recipe
from tests.run.doubles import FINISHED, new_store, weights
from tests.train.tasks import Clock

STARTERS = tuple(cnn((1, 8, 8), 3, width=width, depth=2) for width in (4, 8, 16))
RECIPE = Recipe(epochs=6, batch_size=32)
COST = 2.0 / (6 * STARTERS[1].work)
"""Seconds per FLOP with which the second starter takes 2 s."""
PLAN = Plan(STARTERS, RECIPE, Limits(), 0.75, COST, 1, True)
LADDER = Ladder(4, 4, 2, 0.25)
AMPLE = 10**12


def expect(
    trials: Any = (),
    seconds: float = 60.0,
    overhead: float = 0.0,
    process: int = 0,
    plan: Plan = PLAN,
    **conditions: Any,
) -> Expectation:
    """The expectation with so many seconds left."""
    return expectation(
        plan, list(trials), seconds, SearchConditions(**conditions), free=AMPLE, process=process, overhead=overhead
    )


def finished(n: int, pace: float = 1.0, epochs: int = 6, **why: Any) -> list[Trial]:
    """n trials of the starters in turn, which took `pace` times as long as planned."""
    trials = []
    for i in range(n):
        graph = STARTERS[i % 3]
        seconds = pace * COST * epochs * graph.work
        outcome = Outcome("finished", -0.5 - i / 100, 0.8, seconds=seconds, epochs=epochs, examples=40)
        proposal = Proposal(graph, (), replace(RECIPE, epochs=epochs), why)
        trials.append(Trial(i, proposal, graph, outcome, kept=True))
    return trials


# -- networks


def test_starters_are_counted_while_they_fit_the_time() -> None:
    seconds = [COST * 6 * graph.work for graph in STARTERS]
    assert expect(seconds=sum(seconds) + 0.01).networks == 3
    assert expect(seconds=seconds[0] + 0.01).networks == 1
    assert expect(seconds=0).networks == 1, "one is started however short the time"
    assert expect(finished(3), seconds=0.0).networks == 3


def test_measured_times_replace_planned_ones() -> None:
    quick, slow = (expect(finished(3, pace)) for pace in (0.25, 4.0))
    assert quick.networks > 2 * slow.networks
    assert quick.seconds_per_network < slow.seconds_per_network
    assert (quick.measured, expect().measured) == (3, 0)


def test_range_narrows_once_networks_are_measured() -> None:
    by_plan, by_trials = expect(), expect(finished(3))
    assert by_plan.fewest < by_plan.networks < by_plan.most
    assert by_trials.most / by_trials.fewest < by_plan.most / by_plan.fewest


def test_overhead_between_trials_reduces_networks() -> None:
    assert expect(overhead=2.0).networks < expect(overhead=0.0).networks


def test_promotions_reduce_networks() -> None:
    without, with_promotions = expect(seconds=600.0), expect(seconds=600.0, ladder=LADDER)
    assert with_promotions.networks < without.networks
    assert with_promotions.seconds_per_network > without.seconds_per_network


def test_limits_bound_growth_of_networks() -> None:
    tight = replace(PLAN, limits=Limits(max_work=STARTERS[0].work))
    assert expect(finished(3), 600.0, plan=tight).networks > expect(finished(3), 600.0).networks


@pytest.mark.parametrize("max_trials", [1, 4])
def test_max_trials_bounds_networks(max_trials: int) -> None:
    expected = expect(seconds=1e9, max_trials=max_trials)
    assert (expected.fewest, expected.networks, expected.most) == (max_trials,) * 3
    assert expect(finished(2), 1e9, max_trials=max_trials).networks == max(2, max_trials)


def test_networks_are_capped_at_max_networks() -> None:
    assert expect(seconds=1e12).networks == module.MAX_NETWORKS


@given(
    seconds=st.floats(0, 1e4),
    factor=st.floats(1, 10),
    n=st.integers(0, 9),
    workers=st.integers(1, 9),
    keep=st.integers(1, 9),
)
def test_expectation_invariants(seconds: float, factor: float, n: int, workers: int, keep: int) -> None:
    trials = finished(n)
    expected = expect(trials, seconds, workers=workers, ladder=LADDER)
    assert n <= expected.fewest <= expected.networks <= expected.most
    assert expected.networks >= 1
    assert expected.most <= expect(trials, factor * seconds, workers=workers, ladder=LADDER).most + 1
    assert expect(trials, seconds, workers=workers, ladder=LADDER, keep=keep).disk <= expected.disk
    assert 0 <= expected.to_write <= expected.disk
    assert expected.memory > 0
    assert json.loads(json.dumps(expected.to_json())) == expected.to_json()
    assert math.isfinite(expected.seconds_per_network)


def test_final_trainings_are_not_counted() -> None:
    assert expect([*finished(3), *finished(2, final="everything")], 0.0).networks == 3


# -- disk and memory


def test_disk_includes_searched_and_final_networks() -> None:
    expected = expect(finished(3), 0.0)
    searched = sum(map(weight_bytes, STARTERS))
    model = weight_bytes(STARTERS[2])
    assert expected.disk == searched + 3 * module.BYTES_PER_TRIAL + (1 + module.MAX_FINALS) * model
    assert expected.to_write == expected.disk - searched
    assert expect(finished(3), 0.0, finals=False).disk == expected.disk - module.MAX_FINALS * model


def test_memory_includes_every_worker() -> None:
    one = expect(data=1000).memory
    assert expect(data=2000).memory == one + 1000
    assert expect(data=1000, workers=3).memory == 1000 + 3 * (one - 1000)
    assert expect(process=10**9).memory > 10**9
    assert expect(process=10**9, separate_processes=True, workers=2).memory > 3 * 10**9
    assert 10**7 < module.peak_memory() < 10**12


# -- promotions


def test_ladder_of_each_searcher() -> None:
    space = MorphSpace(STARTERS)
    plain = RandomSearcher(space, RECIPE, Limits(), 0)
    assert Ladder.of(plain) == Ladder()
    assert Ladder.of(Promote(plain)) == LADDER
    assert Ladder.of(HalvingSearcher(space)) == Ladder(3, 3, 3, 0.25)
    ranges = ranges_of({"lr": (0.001, 1.0)})
    assert Ladder.of(Patient(Tuned(HalvingSearcher(space), ranges, RECIPE), 3)) == Ladder(3, 3, 3, 0.25)


# -- the time that a search needs


def plan_of(seconds: float) -> Plan:
    return plan((1, 8, 8), 3, 1000, RECIPE, seconds, Pace(1e-6, 1, "float32"), Limits(), width=8)


def test_seconds_for_search_finds_first_limit_with_search() -> None:
    assert not plan_of(20.0).searches
    seconds = seconds_for_search(plan_of, 20.0)
    assert seconds is not None
    assert plan_of(seconds).searches
    assert not plan_of(seconds / 1.25).searches
    assert seconds_for_search(plan_of, seconds) is None, "this limit has a search"
    without_search = replace(PLAN, searches=False)
    assert seconds_for_search(lambda _: without_search, 10.0) is None, "no limit has a search"


def test_text_of_expectation() -> None:
    expected = Expectation(12, 9, 16, 3, 2.345, 0.25, 4_560_000, 100, 10, 512 * 10**6)
    assert str(expected) == (
        "expected: about 12 networks (9 to 16) of 2.3 s each, then 25% of the time for the final model; "
        "4.56 MB of disk, 512 MB of memory"
    )
    single = replace(expected, networks=1, fewest=1, most=1, final_share=0.0, for_search=7200.0, small=True)
    first, second = str(single).splitlines()
    assert first == "expected: about 1 network of 2.3 s each; 4.56 MB of disk, 512 MB of memory"
    assert second.endswith('needs a limit of about 2.0 h, or small networks: searcher_args={"default_model_width": 8}')
    assert str(replace(single, small=False)).endswith("needs a limit of about 2.0 h")


# -- reporting


DiskUsage = namedtuple("DiskUsage", "total used free")  # noqa: PYI024


def reports_of_search(path: Path, n: int, seconds: float = 60.0, **conditions: Any) -> list[str]:
    """What is reported in a search of n trials, which take 5 of so many seconds each."""
    reports: list[str] = []
    clock = Clock()
    deadline = clock.deadline(seconds)
    with new_store(path) as store:
        reporter = ExpectationReporter(
            store, PLAN, lambda: max(0.0, deadline.left), SearchConditions(**conditions), reports.append, clock=clock
        )
        for trial in finished(n):
            claimed = store.claim(trial.proposal)
            reporter.trial_begins(claimed)
            clock.now += 5
            assert trial.outcome is not None
            reporter.trial_ends(store.finish(claimed.id, trial.outcome, weights(0, trial.graph)))
        assert store.about["expected"]["free"] > 0
    return reports


def test_expectation_is_reported_once_and_stored(tmp_path: Path) -> None:
    (report,) = reports_of_search(tmp_path / "run", 9, 600.0)
    assert report.startswith("expected: about ")


def test_running_networks_are_not_overhead(tmp_path: Path) -> None:
    """Of three workers, two have finished a network and started another, and one trains its first."""
    clock, conditions = Clock(), SearchConditions(workers=3)
    with new_store(tmp_path / "run") as store:
        reporter = ExpectationReporter(store, PLAN, lambda: 600.0, conditions, lambda _: None, clock=clock)
        claimed = [store.claim(Proposal(STARTERS[i % 2], (), RECIPE)) for i in range(5)]
        for trial in claimed[:3]:
            reporter.trial_begins(trial)
        clock.now += 10
        for trial in claimed[:2]:
            store.finish(trial.id, replace(FINISHED, seconds=10.0, epochs=6), weights(0, trial.graph))
        for trial in claimed[3:]:
            reporter.trial_begins(trial)
        clock.now += 2
        networks = reporter.now().networks
    assert networks == expect(store.trials, 600.0, workers=3, overhead=0.0).networks
    assert networks != expect(store.trials, 600.0, workers=3, overhead=2.0).networks


def test_little_time_gives_early_report_and_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "morphnas"):
        assert len(reports_of_search(tmp_path / "run", 1, 5.1, for_search=900.0)) == 1
        (message,) = caplog.messages
        assert message == (
            "there is only time for one network, without any comparison; a search needs a limit of about 15 min"
        )
        caplog.clear()
        assert len(reports_of_search(tmp_path / "other", 1, 5.1, max_trials=1)) == 1
        assert len(reports_of_search(tmp_path / "more", 2, 20.0)) == 1
        assert not caplog.messages


def test_report_comes_after_a_minute_of_first_network(tmp_path: Path) -> None:
    clock, reports = Clock(), list[str]()
    with new_store(tmp_path / "run") as store:
        reporter = ExpectationReporter(store, PLAN, lambda: 3600.0, SearchConditions(), reports.append, clock=clock)
        trial = store.claim(Proposal(STARTERS[0], (), RECIPE))
        for _ in range(5):
            clock.now += 20
            reporter.epoch_done(trial, Outcome("truncated", epochs=1))
            assert len(reports) == (clock.now - 1000 >= 60)
        assert store.about["expected"]["measured"] == 0


def test_stored_expectation_is_updated_every_30_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []
    original = ExpectationReporter._note

    def recording_note(self: ExpectationReporter, expected: Expectation) -> None:
        measured.append(expected.measured)
        original(self, expected)

    monkeypatch.setattr(ExpectationReporter, "_note", recording_note)
    assert len(reports_of_search(tmp_path / "run", 20, 600.0)) == 1
    assert measured == [3, 9, 15], "every 30 seconds, where a network takes 5"


def test_too_small_disk_gives_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(10**6, 10**6 - 1000, 1000))
    with pytest.warns(UserWarning, match=r"expected to write .* more, but 1 kB are free on .*keep=5 keeps"):
        reports_of_search(tmp_path / "run", 3)
    with pytest.warns(UserWarning, match=r"the disk of '[^']*'$"):
        reports_of_search(tmp_path / "other", 3, keep=2)
