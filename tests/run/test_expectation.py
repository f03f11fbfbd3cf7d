"""Predictions of a search, from artificial plans and trials."""

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
from tests.run.doubles import GOOD, store_of, weights
from tests.train.tasks import Clock

STARTS = tuple(cnn((1, 8, 8), 3, width=width, depth=2) for width in (4, 8, 16))
RECIPE = Recipe(epochs=6, batch_size=32)
COST = 2.0 / (6 * STARTS[1].work)
"""Seconds per FLOP with which the second start takes 2 s."""
PLAN = Plan(STARTS, RECIPE, Limits(), 0.75, COST, 1, True)
LADDER = Ladder(4, 4, 2, 0.25)
AMPLE = 10**12


def expected(
    trials: Any = (), left: float = 60.0, overhead: float = 0.0, process: int = 0, **terms: Any
) -> Expectation:
    return expectation(
        PLAN, list(trials), left, SearchConditions(**terms), free=AMPLE, process=process, overhead=overhead
    )


def done(n: int, pace: float = 1.0, epochs: int = 6, **more: Any) -> list[Trial]:
    """n trials of the starters in turn, which took `pace` times as long as planned."""
    found = []
    for i in range(n):
        graph = STARTS[i % 3]
        seconds = pace * COST * epochs * graph.work
        outcome = Outcome("finished", -0.5 - i / 100, 0.8, seconds=seconds, epochs=epochs, examples=40)
        proposal = Proposal(graph, (), replace(RECIPE, epochs=epochs), more)
        found.append(Trial(i, proposal, graph, outcome, kept=True))
    return found


# -- networks


def test_the_starts_are_counted_by_what_they_take() -> None:
    seconds = [COST * 6 * graph.work for graph in STARTS]
    assert expected(left=sum(seconds) + 0.01).networks == 3
    assert expected(left=seconds[0] + 0.01).networks == 1
    assert expected(left=0).networks == 1, "one is begun however short the time"
    assert expected(done(3), left=0.0).networks == 3


def test_trials_say_better_than_the_plan_what_networks_take() -> None:
    quick, slow = (expected(done(3, pace), left=60.0) for pace in (0.25, 4.0))
    assert quick.networks > 2 * slow.networks
    assert quick.seconds_per_network < slow.seconds_per_network
    assert (quick.measured, expected().measured) == (3, 0)


def test_the_range_is_narrower_once_networks_were_measured() -> None:
    by_plan, by_trials = expected(), expected(done(3))
    assert by_plan.fewest < by_plan.networks < by_plan.most
    assert by_trials.most / by_trials.fewest < by_plan.most / by_plan.fewest


def test_time_between_trials_counts() -> None:
    assert expected(overhead=2.0).networks < expected(overhead=0.0).networks


def test_networks_that_are_trained_on_take_the_time_of_others() -> None:
    assert expected(left=600.0, ladder=LADDER).networks < expected(left=600.0).networks
    assert expected(left=600.0, ladder=LADDER).seconds_per_network > expected(left=600.0).seconds_per_network


def test_networks_grow_until_the_limits() -> None:
    tight = replace(PLAN, limits=Limits(max_work=STARTS[0].work))
    free = expectation(PLAN, done(3), 600.0, SearchConditions(), free=AMPLE, overhead=0.0)
    assert expectation(tight, done(3), 600.0, SearchConditions(), free=AMPLE, overhead=0.0).networks > free.networks


@pytest.mark.parametrize("most", [1, 4])
def test_no_more_than_max_trials(most: int) -> None:
    found = expected(left=1e9, max_trials=most)
    assert (found.fewest, found.networks, found.most) == (most,) * 3
    assert expected(done(2), left=1e9, max_trials=most).networks == max(2, most)


def test_a_day_of_tiny_networks_is_counted_at_once() -> None:
    assert expected(left=1e12).networks == module.MAX_NETWORKS


@given(
    left=st.floats(0, 1e4),
    more=st.floats(1, 10),
    n=st.integers(0, 9),
    workers=st.integers(1, 9),
    keep=st.integers(1, 9),
)
def test_laws(left: float, more: float, n: int, workers: int, keep: int) -> None:
    trials = done(n)
    found = expected(trials, left, workers=workers, ladder=LADDER)
    assert n <= found.fewest <= found.networks <= found.most
    assert found.networks >= 1
    assert found.most <= expected(trials, more * left, workers=workers, ladder=LADDER).most + 1
    assert expected(trials, left, workers=workers, ladder=LADDER, keep=keep).disk <= found.disk
    assert 0 <= found.to_write <= found.disk
    assert found.memory > 0
    assert json.loads(json.dumps(found.to_json())) == found.to_json()
    assert math.isfinite(found.seconds_per_network)


def test_final_trainings_are_no_networks_of_the_search() -> None:
    assert expected([*done(3), *done(2, final="everything")], 0.0).networks == 3


# -- disk and memory


def test_the_disk_holds_every_network_and_the_final_ones() -> None:
    found = expected(done(3), left=0.0)
    mine = sum(map(weight_bytes, STARTS))
    assert found.disk == mine + 3 * module.BYTES_PER_TRIAL + weight_bytes(STARTS[2]) * (1 + module.MAX_FINALS)
    assert found.to_write == found.disk - mine
    assert expected(done(3), left=0.0, finals=False).disk < found.disk


def test_memory_is_that_of_every_worker() -> None:
    one = expected(data=1000).memory
    assert expected(data=2000).memory == one + 1000
    assert expected(data=1000, workers=3).memory == 1000 + 3 * (one - 1000)
    assert expected(process=10**9).memory > 10**9
    assert expected(process=10**9, separate_processes=True, workers=2).memory > 3 * 10**9
    assert 10**7 < module.peak_memory() < 10**12


# -- how searchers go on


def test_ladders() -> None:
    space = MorphSpace(STARTS)
    plain = RandomSearcher(space, RECIPE, Limits(), 0)
    assert Ladder.of(plain) == Ladder()
    assert Ladder.of(Promote(plain)) == LADDER
    assert Ladder.of(HalvingSearcher(space)) == Ladder(3, 3, 3, 0.25)
    ranges = ranges_of({"lr": (0.001, 1.0)})
    assert Ladder.of(Patient(Tuned(HalvingSearcher(space), ranges, RECIPE), 3)) == Ladder(3, 3, 3, 0.25)


# -- what time a search takes


def planner(seconds: float) -> Plan:
    return plan((1, 8, 8), 3, 1000, RECIPE, seconds, Pace(1e-6, 1, "float32"), Limits(), width=8)


def test_a_limit_that_is_long_enough_for_a_search() -> None:
    assert not planner(20.0).searches
    found = seconds_for_search(planner, 20.0)
    assert found is not None
    assert planner(found).searches
    assert not planner(found / 1.25).searches
    assert seconds_for_search(planner, found) is None, "it is one"
    only = replace(PLAN, searches=False)
    assert seconds_for_search(lambda _: only, 10.0) is None, "there is none"


def test_words() -> None:
    found = Expectation(12, 9, 16, 3, 2.345, 0.25, 4_560_000, 100, 10, 512 * 10**6)
    assert str(found) == (
        "expected: about 12 networks (9 to 16) of 2.3 s each, then 25% of the time for the final model; "
        "4.56 MB of disk, 512 MB of memory"
    )
    alone = replace(found, networks=1, fewest=1, most=1, final_share=0.0, for_search=7200.0, small=True)
    first, second = str(alone).splitlines()
    assert first == "expected: about 1 network of 2.3 s each; 4.56 MB of disk, 512 MB of memory"
    assert second.endswith('needs a limit of about 2.0 h, or small networks: searcher_args={"default_model_width": 8}')
    assert str(replace(alone, small=False)).endswith("needs a limit of about 2.0 h")


# -- telling it


Disk = namedtuple("Disk", "total used free")  # noqa: PYI024


def play(path: Path, n: int, clock: Clock, left: float = 60.0, epochs: bool = False, **terms: Any) -> list[str]:
    """What is reported while n trials are trained, each for 5 seconds of the clock."""
    told: list[str] = []
    with store_of(path) as store:
        begun, meant = clock(), SearchConditions(**terms)
        forecast = ExpectationReporter(
            store, PLAN, lambda: max(0.0, left - (clock() - begun)), meant, told.append, clock=clock
        )
        for trial in done(n):
            claimed = store.claim(trial.proposal)
            forecast.trial_begins(claimed)
            clock.now += 5
            assert trial.outcome is not None
            if epochs:
                forecast.epoch_done(claimed, trial.outcome)
            forecast.trial_ends(store.finish(claimed.id, trial.outcome, weights(0, trial.graph)))
        if n and (told or not epochs):
            assert store.about["expected"]["free"] > 0
    return told


def test_it_is_told_once_and_kept(tmp_path: Path) -> None:
    (told,) = play(tmp_path / "run", 9, Clock(), 600.0)
    assert told.startswith("expected: about ")


def test_networks_that_run_are_no_overhead(tmp_path: Path) -> None:
    """Of three workers, two have finished a network and started another, and one trains its first."""
    clock = Clock()
    with store_of(tmp_path / "run") as store:
        forecast = ExpectationReporter(
            store, PLAN, lambda: 600.0, SearchConditions(workers=3), lambda _: None, clock=clock
        )
        claimed = [store.claim(Proposal(STARTS[i % 2], (), RECIPE)) for i in range(5)]
        for trial in claimed[:3]:
            forecast.trial_begins(trial)
        clock.now += 10
        for trial in claimed[:2]:
            store.finish(trial.id, replace(GOOD, seconds=10.0, epochs=6), weights(0, trial.graph))
        for trial in claimed[3:]:
            forecast.trial_begins(trial)
        clock.now += 2
        found = forecast.now()
    same = expectation(PLAN, store.trials, 600.0, SearchConditions(workers=3), free=found.free, overhead=0.0)
    assert found.networks == same.networks


def test_it_is_told_soon_where_there_is_little_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "morphnas"):
        assert len(play(tmp_path / "run", 1, Clock(), 5.1, for_search=900.0)) == 1
        (said,) = caplog.messages
        assert said == (
            "there is only time for one network, without any comparison; a search needs a limit of about 15 min"
        )
        caplog.clear()
        assert len(play(tmp_path / "other", 1, Clock(), 5.1, max_trials=1)) == 1
        assert len(play(tmp_path / "more", 2, Clock(), 20.0)) == 1
        assert not caplog.messages


def test_it_is_told_after_a_minute_of_the_first_network(tmp_path: Path) -> None:
    clock, told = Clock(), list[str]()
    with store_of(tmp_path / "run") as store:
        forecast = ExpectationReporter(store, PLAN, lambda: 3600.0, SearchConditions(), told.append, clock=clock)
        trial = store.claim(Proposal(STARTS[0], (), RECIPE))
        for _ in range(5):
            clock.now += 20
            forecast.epoch_done(trial, Outcome("truncated", epochs=1))
            assert len(told) == (clock.now - 1000 >= 60)
        assert store.about["expected"]["measured"] == 0


def test_it_is_looked_at_again_from_time_to_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[int] = []
    note = ExpectationReporter._note

    def noted(self: ExpectationReporter, found: Expectation) -> None:
        notes.append(found.measured)
        note(self, found)

    monkeypatch.setattr(ExpectationReporter, "_note", noted)
    assert len(play(tmp_path / "run", 20, Clock(), 600.0)) == 1
    assert notes == [3, 9, 15], "every 30 seconds, of 5 for a network"


def test_a_disk_that_is_too_small_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Disk(10**6, 10**6 - 1000, 1000))
    with pytest.warns(UserWarning, match=r"expected to write .* more, but 1 kB are free on .*keep=5 keeps"):
        play(tmp_path / "run", 3, Clock())
    with pytest.warns(UserWarning, match=r"the disk of '[^']*'$"):
        play(tmp_path / "other", 3, Clock(), keep=2)
