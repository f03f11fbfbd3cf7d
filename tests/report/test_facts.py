"""Facts derived from trials: properties, and cases small enough to be checked by hand."""

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


def begun(one: Trial, seconds: float) -> Trial:
    """The trial, started so many seconds after the first."""
    return replace(one, started=seconds)


def test_times_follow_from_when_trials_were_taken_up() -> None:
    first, second = begun(trial(0, SMALL), 0.0), begun(trial(1, LARGE), 20.0)
    assert facts.timeline([first, second]) == {0: (0.0, 12.34), 1: (20.0, 32.34)}
    spent = facts.time_spent([first, second])
    assert (spent.training, spent.final, spent.between) == pytest.approx((24.68, 0.0, 7.66))
    resumed = facts.timeline([first, replace(second, driver_start=1)])
    assert resumed[1] == (12.34, 24.68), "another driver's clock says nothing of the first one's"
    assert facts.timeline([trial(0, SMALL), trial(1, LARGE)])[1] == (12.34, 24.68), (
        "one after the other, where none says"
    )


def test_what_chose_among_final_trainings_is_told() -> None:
    scores = {"13": -0.12, "16": -0.1, "nan": 1, "17": "high"}
    about: dict[str, Any] = {"chosen": {"17": {"examples": 150, "stopped": False, "scores": scores}}, "final": 17}
    assert facts.choice(about) == (
        "Chosen on 150 examples not used for early stopping; scores on them: -0.1 (network 16), -0.12 (network 13)"
    )
    about["chosen"]["20"] = {"examples": 40, "stopped": True, "scores": {"18": -1, "19": -2}}
    assert "(network 16)" in facts.choice(about), "what was compared since says nothing of it"
    assert facts.choice(about | {"final": 20}).startswith("Chosen on 40 examples also used for early stopping;")
    for damaged in ({}, {"chosen": 3}, {"chosen": {"17": [1]}}, {"chosen": {"17": {"scores": {"16": 0.5}}}}):
        assert facts.choice(damaged | {"final": 17}) == ""
    assert facts.choice(about | {"final": 9}) == facts.choice({"chosen": about["chosen"]}) == ""


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0, 20)), max_size=8))
def test_times_add_up(given_spans: list[tuple[float, float]]) -> None:
    trials = [
        begun(trial(i, SMALL, outcome=Outcome("finished", -1.0, 0.5, seconds, 1, 1)), at - min(given_spans)[0])
        for i, (at, seconds) in enumerate(sorted(given_spans))
    ]
    spent = facts.time_spent(trials)
    assert min(spent.training, spent.final, spent.between) >= -1e-9
    end = max((end for _, end in facts.timeline(trials).values()), default=0.0)
    assert spent.total == pytest.approx(end)


@given(st.lists(numbers, min_size=3, max_size=9, unique=True))
def test_a_ranking_agrees_with_itself_and_not_with_its_reverse(values: list[float]) -> None:
    assert facts.rank_correlation(values, values) == pytest.approx(1)
    assert facts.rank_correlation(values, [-value for value in values]) == pytest.approx(-1)
    assert facts.rank_correlation(values, [1.0] * len(values)) is None


def test_the_ranking_by_epoch() -> None:
    def of(id: int, *scores: float) -> Trial:
        curve = tuple(Epoch(1.0, 1.0, score, 0.5) for score in scores)
        return trial(id, LARGE, outcome=Outcome("finished", max(scores), 0.5, 1.0, 2, 1, curve), epochs=2)

    found = facts.rank_by_epoch([of(0, -3, -1), of(1, -2, -2), of(2, -4, -3), of(3, -5, -4)])
    assert found is not None
    assert list(found.correlations) == pytest.approx([0.8, 1.0])
    assert found.places == ((2, 1), (1, 2), (3, 3), (4, 4))
    assert found.settled() == 2
    assert facts.rank_by_epoch([of(0, -3, -1), of(1, -2, -2)]) is None


def test_the_share_inside_the_intervals() -> None:
    def believed(id: int, mean: float, sd: float) -> Trial:
        one = trial(id, LARGE, outcome=GOOD)
        return replace(one, proposal=replace(one.proposal, why={"mean": mean, "sd": sd}))

    told = facts.forecasts(
        [believed(0, -0.25, 0.1), believed(1, -0.5, 0.1), believed(2, -0.35, 0.1), believed(3, 0, 0)]
    )
    assert [one.id for one in told] == [0, 1, 2], "without a deviation nothing is believed"
    assert [round(one.z_score, 6) for one in told] == [0, 2.5, 1]
    assert facts.coverage(told, 0.95) == pytest.approx(2 / 3)


@settings(max_examples=30)
@given(st.lists(graphs(), min_size=2, max_size=6, unique_by=lambda graph: graph.key))
def test_the_map_of_few_networks_is_as_true_as_a_plane_can_be(several: list[Graph]) -> None:
    trials = [trial(i, graph) for i, graph in enumerate(several)]
    plane = facts.plane(trials)
    apart = distances([t.sketch for t in trials], [t.sketch for t in trials])
    at = np.array([plane.positions[t.id] for t in trials])
    drawn = np.linalg.norm(at[:, None] - at, axis=2)
    assert np.isfinite(at).all()
    assert at[0, 0] <= 0
    if len(trials) == 2:
        assert drawn == pytest.approx(apart, abs=1e-6)


def test_equal_networks_are_in_one_place() -> None:
    plane = facts.plane([trial(0, SMALL), trial(1, LARGE), trial(2, SMALL)])
    assert plane.positions[0] == plane.positions[2] != plane.positions[1]
    assert facts.plane([]).positions == {}


def test_how_far_new_networks_were_from_the_best() -> None:
    found = facts.strides(TRIALS)
    assert 5 not in found, "trained longer, it is no new network"
    assert found[4] == pytest.approx(float(distances([TRIALS[4].sketch], [TRIALS[2].sketch])[0, 0]))


def test_the_tree_and_what_came_from_whom() -> None:
    assert facts.family(TRIALS) == [(0, 0), (2, 1), (3, 2), (5, 2), (7, 2), (4, 1), (1, 0), (6, 1)]
    brought = facts.introduced(TRIALS, TRIALS[3])
    assert set(brought.values()) == {0, 3}
    assert {name for name, id in brought.items() if id == 0} >= {node.name for node in LARGE.nodes}
    assert facts.gain(TRIALS[2], {t.id: t for t in TRIALS}) == pytest.approx(0.125)
    assert [t.id for t in facts.improvements(TRIALS)] == [0, 2, 5]
    slow = [replace(t, outcome=replace(t.outcome, slow=True)) if t.id == 2 and t.outcome else t for t in TRIALS]
    assert [t.id for t in facts.improvements(slow)] == [0, 5], "it cannot win"
    assert 2 in facts.leaders(TRIALS).values()
    assert 2 not in facts.leaders(slow).values()
    assert status_words(slow[2]) == "finished, too slow"


@given(graphs())
def test_a_drawing_has_every_layer(graph: Graph) -> None:
    root = ElementTree.fromstring(layers_svg(graph))
    names = " ".join("".join(text.itertext()) for text in root.iter("text"))
    for node in graph.nodes:
        assert node.op.tag in names
