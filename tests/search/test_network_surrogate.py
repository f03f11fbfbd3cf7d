"""Fidelities of trials, the surrogate, and the choice of the winner."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from morphnas.search import NetworkSurrogate, Proposal, RandomSearcher, Trial, fidelities, sketch, winner
from morphnas.train.recipe import Outcome, Recipe
from tests.table import TableSpace, outcome_of, run_search, score, table_network, with_score


def winning_trial(trials: list[Trial]) -> Trial:
    found = winner(trials)
    assert found is not None
    return found


def trial(
    id: int, start: Any, epochs: int, score: float | None, digits: str = "11111111", *,
    status: Any = "finished", started_epochs: int | None = None, kept: bool = True,
) -> Trial:  # fmt: skip
    """A trial of the network with these blocks; it is running if the status is None."""
    started_epochs = epochs if started_epochs is None else started_epochs
    outcome = None if status is None else Outcome(status, score, epochs=started_epochs)
    return Trial(id, Proposal(start, (), Recipe(epochs=epochs)), table_network(digits), outcome, kept)


GRAPH = table_network("11111111")


def test_inherited_epochs_are_discounted() -> None:
    trials = [trial(0, GRAPH, 8, 0.0), trial(1, 0, 8, 0.0), trial(2, 1, 32, None, status=None)]
    assert fidelities(trials) == {0: 8, 1: 12, 2: 38}


def test_fidelity_of_unfinished_training_is_started_epochs() -> None:
    trials = [trial(0, GRAPH, 8, 0.0, status="truncated", started_epochs=3), trial(1, GRAPH, 8, 0.0, started_epochs=5)]
    assert fidelities(trials) == {0: 3, 1: 8}


def test_no_winner_without_scores() -> None:
    assert winner([]) is None
    assert winner([trial(0, GRAPH, 8, None, status="failed"), trial(1, GRAPH, 8, None, status=None)]) is None


def test_best_score_wins_among_few_trials() -> None:
    assert winning_trial([trial(i, GRAPH, 8, value) for i, value in enumerate((-0.5, -0.2, -0.3))]).id == 1
    assert winning_trial([trial(0, GRAPH, 8, -0.2), trial(1, GRAPH, 32, -0.2), trial(2, GRAPH, 32, -0.2)]).id == 1


def test_bad_network_does_not_win_by_long_training() -> None:
    few = [trial(0, GRAPH, 8, -0.2), trial(1, GRAPH, 128, -0.9, "00000000")]
    assert winning_trial(few).id == 0
    many = run_search(RandomSearcher(TableSpace()), 20)
    worst = min(many, key=score)
    longer = Trial(20, Proposal(worst.id, (), Recipe(epochs=128)), worst.graph, worst.outcome, kept=True)
    assert winning_trial([*many, longer]).id != 20


def test_longer_training_wins_if_it_helps() -> None:
    trials = run_search(RandomSearcher(TableSpace()), 16)
    for t in sorted(trials, key=score, reverse=True)[:4]:
        proposal = Proposal(t.id, (), Recipe(epochs=32))
        trials.append(replace(with_score(t, score(t) + 0.3, epochs=32), id=len(trials), proposal=proposal))
    assert winning_trial(trials).epochs == 32


def test_lucky_score_of_mediocre_network_does_not_win() -> None:
    rng = np.random.default_rng(0)
    trials = run_search(RandomSearcher(TableSpace()), 30)
    mediocre = sorted(trials, key=score, reverse=True)[15]
    noisy = [with_score(t, score(t) + 0.2 * rng.normal()) for t in trials]
    top = max(map(score, noisy))
    lucky = with_score(mediocre, top + 0.02)
    assert winning_trial([lucky if t.id == lucky.id else t for t in noisy]).id != lucky.id


@pytest.mark.parametrize("n", [3, 12])
def test_finished_and_kept_trials_take_precedence(n: int) -> None:
    finished = [trial(i, GRAPH, 8, -0.5 - 0.01 * i, f"1111111{i % 3}") for i in range(n)]
    others = [
        trial(n, GRAPH, 8, -0.1, "22222222", status="truncated", started_epochs=2),
        trial(n + 1, GRAPH, 8, -0.1, "22222222", status="diverged", started_epochs=2),
        trial(n + 2, GRAPH, 8, -0.1, "22222222", kept=False),
    ]
    assert winning_trial([*finished, *others]).id < n
    assert winning_trial(others).id in (n, n + 1)
    assert winning_trial(others[2:]).id == n + 2


@pytest.mark.parametrize("n", [3, 12])
def test_slow_network_wins_only_if_all_are_slow(n: int) -> None:
    trials = [trial(i, GRAPH, 8, -0.5 - 0.01 * i, f"1111111{i % 3}") for i in range(n)]

    def timed(t: Trial, slow: bool) -> Trial:
        return with_score(t, score(t), latency=1.0 - 0.01 * t.id, slow=slow)

    assert winning_trial([timed(t, t.id < 2) for t in trials]).id == 2
    assert winning_trial([timed(t, True) for t in trials]).id == n - 1, "the fastest"


def test_winner_among_diverged_or_orphaned_trials() -> None:
    orphans = [trial(i, 1000 + i, 1 + i % 3, -0.5, started_epochs=0, status="diverged") for i in range(10)]
    assert winning_trial(orphans) in orphans
    diverged = [trial(i, GRAPH, 8, -(10.0**i)) for i in range(12)]
    assert winning_trial(diverged).id == 0


def test_running_trial_counts_with_its_predicted_score() -> None:
    trials = run_search(RandomSearcher(TableSpace()), 12)
    candidate = [sketch(table_network("22221111"))]
    running = Trial(12, Proposal(3, (), Recipe()), table_network("22221111"))
    before, after = (
        NetworkSurrogate.of(ts).predict(candidate, 12.0, [Recipe()]) for ts in (trials, [*trials, running])
    )
    assert after[1] < before[1]
    assert after[0] == pytest.approx(before[0], abs=0.05)
    assert outcome_of(running.graph).score == pytest.approx(float(after[0][0]), abs=1)


def test_surrogate_without_trials_predicts_prior() -> None:
    mean, sd = NetworkSurrogate.of([]).predict([sketch(GRAPH)], 8.0, [Recipe()])
    assert (mean.item(), sd.item()) == (0.0, 1.0)
