"""Tests of explanations of why a network was tried and what it gained."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from morphnas.report.explain import Explanation, _noise, explain
from morphnas.run.files import RunError
from morphnas.run.store import Run
from morphnas.search import winner
from morphnas.search.trial import Trial
from morphnas.train.recipe import Outcome
from tests.report.history import history

TRIALS = history()
BAYES = {
    "reason": "acquisition",
    "acquisition": "ei",
    "mean": -0.2,
    "sd": 0.05,
    "nearest": [[0, 1.5]],
    "candidates": 40,
}


def run_of(trials: list[Trial], **about: Any) -> Run:
    return Run(Path("run"), about, tuple(trials))


def explanation_with(id: int, **why: Any) -> Explanation:
    """The explanation of a trial whose searcher recorded this."""
    trials = [replace(t, proposal=replace(t.proposal, why=why)) if t.id == id else t for t in TRIALS]
    return explain(run_of(trials), id)


def test_steps_are_the_lineage_with_gains() -> None:
    steps = explain(run_of(TRIALS), 5).steps
    assert [step.id for step in steps] == [0, 2, 5]
    assert [step.gain for step in steps] == [None, pytest.approx(0.125), pytest.approx(0.025)]
    assert [step.metric_gain for step in steps] == [None, pytest.approx(0.025), pytest.approx(0.01)]
    assert [step.clear for step in steps] == [None, False, False]  # of 400 examples
    shares = [(0.925 * 400 + 1) / 402, (0.95 * 400 + 1) / 402]
    half_width = 1.959964 * sum(share * (1 - share) / 402 for share in shares) ** 0.5
    assert steps[1].noise == pytest.approx(half_width + 0.025 - (shares[1] - shares[0]))


def test_difference_on_few_examples_is_not_clear() -> None:
    """45 of 45 and 41 of 45 correct is within chance: Fisher's exact test has p = 0.12."""
    changed = {2: (1.0, 45), 5: (41 / 45, 45)}
    trials = [
        replace(t, outcome=replace(t.outcome, metric=changed[t.id][0], examples=changed[t.id][1]))
        if t.outcome and t.id in changed
        else t
        for t in TRIALS
    ]
    step = explain(run_of(trials), 5).steps[-1]
    assert step.noise is not None
    assert not step.clear


@pytest.mark.parametrize(("n", "m"), [(5, 5), (10, 10), (30, 30), (10, 1000)])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_noise_has_about_5_percent_false_positives(n: int, m: int, share: float) -> None:
    def outcomes(n: int) -> list[tuple[Outcome, float]]:
        """The possible outcomes on n examples, with their probabilities."""
        probabilities = [math.comb(n, right) * share**right * (1 - share) ** (n - right) for right in range(n + 1)]
        return [(Outcome("finished", -1.0, right / n, examples=n), p) for right, p in enumerate(probabilities)]

    error_rate = 0.0
    for one, p in outcomes(n):
        for other, q in outcomes(m):
            noise = _noise(one, other)
            assert noise is not None
            assert one.metric is not None
            assert other.metric is not None
            error_rate += p * q * (abs(one.metric - other.metric) > noise)
    assert error_rate < 0.075  # above 0.05 for very different sample sizes, as in Agresti and Caffo


def test_gain_beyond_chance_is_clear() -> None:
    trials = [
        replace(t, outcome=replace(t.outcome, examples=100_000)) if t.outcome and t.outcome.examples else t
        for t in TRIALS
    ]
    explanation = explain(run_of(trials), 5)
    assert [step.clear for step in explanation.steps] == [None, True, True]
    assert "more than chance" in str(explanation)
    assert "within chance" in str(explain(run_of(TRIALS), 5))


def test_metric_used_as_score_is_shown_once() -> None:
    trials = [
        replace(t, outcome=replace(t.outcome, score=t.outcome.metric, measure="f1", objective="f1")) if t.outcome else t
        for t in TRIALS
    ]
    text = str(explain(run_of(trials), 5))
    assert "score" not in text
    assert "f1 0.9500; gain +0.0250 of f1" in text


def test_predicted_score_is_shown() -> None:
    step = explanation_with(2, **BAYES).steps[-1]
    assert (step.expected, step.sd, step.nearest) == (-0.2, 0.05, ((0, 1.5),))
    text = str(step)
    assert "expected score -0.2000 +/- 0.0500, actually -0.1250" in text
    assert "by expected improvement, out of 40" in text
    assert "0 (1.5)" in text


def test_winner_is_explained_by_default() -> None:
    assert explain(run_of(TRIALS, best=2)).steps[-1].id == 2
    assert explain(run_of(TRIALS)).steps[-1].id == winner(TRIALS).id  # type: ignore[union-attr]  # while the search runs
    with pytest.raises(RunError, match="no network with a score yet"):
        explain(run_of([]))
    with pytest.raises(RunError, match="there is no model 99"):
        explain(run_of(TRIALS), 99)


def test_final_training_shows_how_its_network_was_chosen() -> None:
    final = replace(TRIALS[5], id=9, proposal=replace(TRIALS[5].proposal, why={"final": "everything"}))
    chosen = {"chosen": {"9": {"examples": 54, "stopped": False, "scores": {"2": -0.125, "5": -0.1}}}}
    run = run_of([*TRIALS, final], best=2)
    assert explain(run, 9).steps[-1].reason == "a final training"
    reason = explain(replace(run, about={**run.about, **chosen}), 9).steps[-1].reason
    assert reason.startswith(
        "a final training. Chosen on 54 examples not used for early stopping; scores on them: -0.1 ("
    )


@pytest.mark.parametrize("trial", TRIALS, ids=lambda t: str(t.id))
def test_every_trial_can_be_explained(trial: Trial) -> None:
    explanation = explain(run_of(TRIALS), trial.id)
    assert json.loads(json.dumps(explanation.to_json(), allow_nan=False))[-1]["id"] == trial.id
    assert f"network {trial.id}: " in str(explanation)
    assert explanation.steps[-1].score == trial.score


@pytest.mark.parametrize(
    "why",
    [
        {"mean": "NaN", "sd": "wide", "nearest": [[1]], "candidates": None},
        {"mean": True, "nearest": "none", "reason": ["x"]},
        {"nearest": [["one", 2.0], [1, None], [True]], "acquisition": {}},
        {"reason": "user-defined"},
    ],
)
def test_malformed_records_of_searchers_are_ignored(why: dict[str, Any]) -> None:
    explanation = explanation_with(2, **why)
    assert explanation.steps[-1].expected is None
    assert explanation.steps[-1].nearest == ()
    json.dumps(explanation.to_json(), allow_nan=False)
    assert str(explanation)


@pytest.mark.parametrize("change", [{"measure": "R2", "metric": -0.5}, {"held_out": False}])
def test_noise_is_unknown_except_for_held_out_accuracy(change: dict[str, Any]) -> None:
    trials = [replace(t, outcome=replace(t.outcome, **change)) if t.outcome and t.score else t for t in TRIALS]
    explanation = explain(run_of(trials), 5)
    assert {(step.noise, step.clear) for step in explanation.steps} == {(None, None)}
    assert "chance" not in str(explanation)
