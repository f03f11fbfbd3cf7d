"""Fidelities of trials, the surrogate, and the choice of the winner."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from morphnas.search import NetworkSurrogate, Proposal, RandomSearcher, Trial, fidelities, sketch, winner
from morphnas.train.recipe import Outcome, Recipe
from tests.table import TableSpace, network, outcome_of, run, score, scored


def won(trials: list[Trial]) -> Trial:
    found = winner(trials)
    assert found is not None
    return found


def trial(i: int, start: object, epochs: int, value: float | None, digits: str = "11111111", **how: object) -> Trial:
    status = how.pop("status", "finished")
    outcome = Outcome(status, value, epochs=how.pop("begun", epochs)) if status else None  # type: ignore[arg-type]
    return Trial(i, Proposal(start, (), Recipe(epochs=epochs)), network(digits), outcome, how.pop("kept", True))  # type: ignore[arg-type]


GRAPH = network("11111111")


def test_inherited_epochs_count_less() -> None:
    trials = [trial(0, GRAPH, 8, 0.0), trial(1, 0, 8, 0.0), trial(2, 1, 32, None, status=None)]
    assert fidelities(trials) == {0: 8, 1: 12, 2: 38}


def test_a_training_that_was_cut_off_counts_what_it_did() -> None:
    trials = [trial(0, GRAPH, 8, 0.0, status="truncated", begun=3), trial(1, GRAPH, 8, 0.0, begun=5)]
    assert fidelities(trials) == {0: 3, 1: 8}


def test_nobody_wins_without_a_score() -> None:
    assert winner([]) is None
    assert winner([trial(0, GRAPH, 8, None, status="failed"), trial(1, GRAPH, 8, None, status=None)]) is None


def test_the_best_score_wins_among_few() -> None:
    assert won([trial(i, GRAPH, 8, value) for i, value in enumerate((-0.5, -0.2, -0.3))]).id == 1
    assert won([trial(0, GRAPH, 8, -0.2), trial(1, GRAPH, 32, -0.2), trial(2, GRAPH, 32, -0.2)]).id == 1


def test_a_bad_network_does_not_win_for_its_long_training() -> None:
    few = [trial(0, GRAPH, 8, -0.2), trial(1, GRAPH, 128, -0.9, "00000000")]
    assert won(few).id == 0
    trials = run(RandomSearcher(TableSpace()), 20)
    worst = min(trials, key=score)
    longer = Trial(20, Proposal(worst.id, (), Recipe(epochs=128)), worst.graph, worst.outcome, kept=True)
    assert won([*trials, longer]).id != 20


def test_longer_training_wins_where_it_helps() -> None:
    trials = run(RandomSearcher(TableSpace()), 16)
    for t in sorted(trials, key=score, reverse=True)[:4]:
        proposal = Proposal(t.id, (), Recipe(epochs=32))
        trials.append(replace(scored(t, score(t) + 0.3, epochs=32), id=len(trials), proposal=proposal))
    assert won(trials).epochs == 32


def test_luck_does_not_win_against_its_neighbourhood() -> None:
    rng = np.random.default_rng(0)
    trials = run(RandomSearcher(TableSpace()), 30)
    mediocre = sorted(trials, key=score, reverse=True)[15]
    noisy = [scored(t, score(t) + 0.2 * rng.normal()) for t in trials]
    top = max(map(score, noisy))
    lucky = scored(mediocre, top + 0.02)
    assert won([lucky if t.id == lucky.id else t for t in noisy]).id != lucky.id


@pytest.mark.parametrize("n", [3, 12])
def test_what_finished_and_is_kept_comes_first(n: int) -> None:
    founded = [trial(i, GRAPH, 8, -0.5 - 0.01 * i, f"1111111{i % 3}") for i in range(n)]
    others = [
        trial(n, GRAPH, 8, -0.1, "22222222", status="truncated", begun=2),
        trial(n + 1, GRAPH, 8, -0.1, "22222222", status="diverged", begun=2),
        trial(n + 2, GRAPH, 8, -0.1, "22222222", kept=False),
    ]
    assert won([*founded, *others]).id < n
    assert won(others).id in (n, n + 1)
    assert won(others[2:]).id == n + 2


@pytest.mark.parametrize("n", [3, 12])
def test_what_is_too_slow_does_not_win(n: int) -> None:
    trials = [trial(i, GRAPH, 8, -0.5 - 0.01 * i, f"1111111{i % 3}") for i in range(n)]

    def timed(t: Trial, slow: bool) -> Trial:
        assert t.outcome is not None
        return replace(t, outcome=replace(t.outcome, latency=1.0 - 0.01 * t.id, slow=slow))

    assert won([timed(t, t.id < 2) for t in trials]).id == 2
    assert won([timed(t, True) for t in trials]).id == n - 1  # of slow ones, the fastest


def test_odd_histories_are_no_trouble() -> None:
    orphans = [trial(i, 1000 + i, 1 + i % 3, -0.5, begun=0, status="diverged") for i in range(10)]
    assert won(orphans) in orphans
    diverged = [trial(i, GRAPH, 8, -(10.0**i)) for i in range(12)]
    assert won(diverged).id == 0


def test_running_trials_are_believed() -> None:
    trials = run(RandomSearcher(TableSpace()), 12)
    candidate = [sketch(network("22221111"))]
    alone = NetworkSurrogate.of(trials)
    running = Trial(12, Proposal(3, (), Recipe()), network("22221111"))
    believed = NetworkSurrogate.of([*trials, running])
    before, after = (belief.predict(candidate, 12.0, [Recipe()]) for belief in (alone, believed))
    assert after[1] < before[1]
    assert after[0] == pytest.approx(before[0], abs=0.05)
    assert outcome_of(running.graph).score == pytest.approx(float(after[0][0]), abs=1)


def test_belief_of_nothing() -> None:
    mean, sd = NetworkSurrogate.of([]).predict([sketch(GRAPH)], 8.0, [Recipe()])
    assert (mean.item(), sd.item()) == (0.0, 1.0)
