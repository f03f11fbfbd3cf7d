"""Tests of facts derived from trials: properties, and cases small enough to be checked by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morphnas.graph import Graph
from morphnas.report import facts
from morphnas.report.outline import layers_svg
from morphnas.report.words import status_words
from morphnas.search.distance import distances
from morphnas.search.trial import Trial
from morphnas.train.recipe import Epoch, Outcome
from tests.report.history import GOOD, LARGE, SMALL, history, trial
from tests.strategies import graphs

TRIALS = history()
numbers = st.floats(-5, 5)


def started_at(one: Trial, seconds: float) -> Trial:
    return replace(one, started=seconds)


def test_timeline_uses_recorded_starts() -> None:
    first, second = started_at(trial(0, SMALL), 0.0), started_at(trial(1, LARGE), 20.0)
    assert facts.timeline([first, second]) == {0: (0.0, 12.34), 1: (20.0, 32.34)}
    spent = facts.time_spent([first, second])
    assert (spent.training, spent.final, spent.between) == pytest.approx((24.68, 0.0, 7.66))
    resumed = facts.timeline([first, replace(second, driver_start=1)])
    assert resumed[1] == (12.34, 24.68), "the clocks of two drivers cannot be compared"
    assert facts.timeline([trial(0, SMALL), trial(1, LARGE)])[1] == (12.34, 24.68), "without recorded starts"


def test_choice_among_final_trainings_is_described() -> None:
    scores = {"13": -0.12, "16": -0.1, "nan": 1, "17": "high"}
    about: dict[str, Any] = {"chosen": {"17": {"examples": 150, "stopped": False, "scores": scores}}, "final": 17}
    assert facts.choice(about) == (
        "Chosen on 150 examples not used for early stopping; scores on them: -0.1 (network 16), -0.12 (network 13)"
    )
    about["chosen"]["20"] = {"examples": 40, "stopped": True, "scores": {"18": -1, "19": -2}}
    assert "(network 16)" in facts.choice(about), "later choices do not matter"
    assert facts.choice(about | {"final": 20}).startswith("Chosen on 40 examples also used for early stopping;")
    for damaged in ({}, {"chosen": 3}, {"chosen": {"17": [1]}}, {"chosen": {"17": {"scores": {"16": 0.5}}}}):
        assert facts.choice(damaged | {"final": 17}) == ""
    assert facts.choice(about | {"final": 9}) == facts.choice({"chosen": about["chosen"]}) == ""


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0, 20)), max_size=8))
def test_time_spent_adds_up(spans: list[tuple[float, float]]) -> None:
    trials = [
        started_at(trial(i, SMALL, outcome=Outcome("finished", -1.0, 0.5, seconds, 1, 1)), start - min(spans)[0])
        for i, (start, seconds) in enumerate(sorted(spans))
    ]
    spent = facts.time_spent(trials)
    assert min(spent.training, spent.final, spent.between) >= -1e-9
    end = max((end for _, end in facts.timeline(trials).values()), default=0.0)
    assert spent.total == pytest.approx(end)


@given(st.lists(numbers, min_size=3, max_size=9, unique=True))
def test_rank_correlation_with_itself_and_its_reverse(values: list[float]) -> None:
    assert facts.rank_correlation(values, values) == pytest.approx(1)
    assert facts.rank_correlation(values, [-value for value in values]) == pytest.approx(-1)
    assert facts.rank_correlation(values, [1.0] * len(values)) is None


def test_rank_by_epoch() -> None:
    def with_curve(id: int, *scores: float) -> Trial:
        curve = tuple(Epoch(1.0, 1.0, score, 0.5) for score in scores)
        return trial(id, LARGE, outcome=Outcome("finished", max(scores), 0.5, 1.0, 2, 1, curve), epochs=2)

    trials = [with_curve(0, -3, -1), with_curve(1, -2, -2), with_curve(2, -4, -3), with_curve(3, -5, -4)]
    ranking = facts.rank_by_epoch(trials)
    assert ranking is not None
    assert list(ranking.correlations) == pytest.approx([0.8, 1.0])
    assert ranking.places == ((2, 1), (1, 2), (3, 3), (4, 4))
    assert ranking.settled() == 2
    assert facts.rank_by_epoch(trials[:2]) is None


def test_coverage_is_share_inside_intervals() -> None:
    def predicted(id: int, mean: float, sd: float) -> Trial:
        one = trial(id, LARGE, outcome=GOOD)
        return replace(one, proposal=replace(one.proposal, why={"mean": mean, "sd": sd}))

    forecasts = facts.forecasts(
        [predicted(0, -0.25, 0.1), predicted(1, -0.5, 0.1), predicted(2, -0.35, 0.1), predicted(3, 0, 0)]
    )
    assert [forecast.id for forecast in forecasts] == [0, 1, 2], "a standard deviation of 0 is no prediction"
    assert [round(forecast.z_score, 6) for forecast in forecasts] == [0, 2.5, 1]
    assert facts.coverage(forecasts, 0.95) == pytest.approx(2 / 3)


@settings(max_examples=30)
@given(st.lists(graphs(), min_size=2, max_size=6, unique_by=lambda graph: graph.key))
def test_plane_is_finite_and_exact_for_two_networks(networks: list[Graph]) -> None:
    trials = [trial(i, graph) for i, graph in enumerate(networks)]
    plane = facts.plane(trials)
    edits = distances([t.sketch for t in trials], [t.sketch for t in trials])
    positions = np.array([plane.positions[t.id] for t in trials])
    in_plane = np.linalg.norm(positions[:, None] - positions, axis=2)
    assert np.isfinite(positions).all()
    assert positions[0, 0] <= 0
    if len(trials) == 2:
        assert in_plane == pytest.approx(edits, abs=1e-6)


def test_equal_networks_have_the_same_position() -> None:
    plane = facts.plane([trial(0, SMALL), trial(1, LARGE), trial(2, SMALL)])
    assert plane.positions[0] == plane.positions[2] != plane.positions[1]
    assert facts.plane([]).positions == {}


def test_strides_are_distances_from_the_best() -> None:
    strides = facts.strides(TRIALS)
    assert 5 not in strides, "a network that is trained longer is not new"
    assert strides[4] == pytest.approx(float(distances([TRIALS[4].sketch], [TRIALS[2].sketch])[0, 0]))


def test_family_is_depth_first() -> None:
    assert facts.family(TRIALS) == [(0, 0), (2, 1), (3, 2), (5, 2), (7, 2), (4, 1), (1, 0), (6, 1)]


def test_introduced_gives_origin_of_nodes() -> None:
    origins = facts.introduced(TRIALS, TRIALS[3])
    assert set(origins.values()) == {0, 3}
    assert {name for name, id in origins.items() if id == 0} >= {node.name for node in LARGE.nodes}


def test_gain_is_over_the_parent() -> None:
    assert facts.gain(TRIALS[2], {t.id: t for t in TRIALS}) == pytest.approx(0.125)


def test_slow_networks_are_no_improvements_or_leaders() -> None:
    assert [t.id for t in facts.improvements(TRIALS)] == [0, 2, 5]
    slow = [replace(t, outcome=replace(t.outcome, slow=True)) if t.id == 2 and t.outcome else t for t in TRIALS]
    assert [t.id for t in facts.improvements(slow)] == [0, 5]
    assert 2 in facts.leaders(TRIALS).values()
    assert 2 not in facts.leaders(slow).values()
    assert status_words(slow[2]) == "finished, too slow"


@given(graphs())
def test_layers_svg_shows_every_kind_of_layer(graph: Graph) -> None:
    root = ElementTree.fromstring(layers_svg(graph))
    texts = " ".join("".join(text.itertext()) for text in root.iter("text"))
    for node in graph.nodes:
        assert node.op.tag in texts
