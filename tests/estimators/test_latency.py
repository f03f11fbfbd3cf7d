"""Limits on latency: networks that are too slow are not tried, do not win, and are reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from morphnas import ImageClassifier, Limits, load_run, write_report
from morphnas.cli import main
from morphnas.estimators import sizes
from morphnas.graph import cnn
from morphnas.run.plan import measure_latency
from morphnas.train import predict
from morphnas.train.deadline import Deadline
from tests.estimators.conftest import Data
from tests.train.tasks import Clock, blobs, images

SMALL: dict[str, Any] = {"default_model_width": 8, "trainer_args": {"epochs": 2}}


@pytest.mark.parametrize("task", [blobs(), images()], ids=["rows", "images"])
def test_what_an_example_takes_here_is_measured(task: Any) -> None:
    per_node, per_flop = measure_latency(task, 0.05)
    assert 0 <= per_node < 0.1
    assert 0 <= per_flop < 1e-3
    assert per_node + per_flop > 0


@pytest.mark.parametrize(
    ("seconds", "each", "passes"),
    [(1.0, 0.02, 50), (1.0, 0.001, 200), (0.001, 0.001, 8), (0.001, 0.02, 3), (0.001, 1.0, 1)],
)
def test_slow_networks_are_timed_as_long_as_fast_ones(
    monkeypatch: pytest.MonkeyPatch, seconds: float, each: float, passes: int
) -> None:
    """With little time at least 8 passes, if these take less than 50 ms."""
    clock, done = Clock(), list[int]()

    class Slow(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            done.append(len(x))
            clock.now += each
            return x

    monkeypatch.setattr("time.perf_counter", clock)
    found = predict.latency(Slow(), blobs(), seconds)
    assert found == pytest.approx(predict.EXPORT_OVERHEAD * each)
    assert set(done) == {1}
    assert abs(len(done) - passes) <= 1, "the clock adds fractions"


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "fast", True])
def test_a_limit_is_a_positive_number(value: Any) -> None:
    with pytest.raises(ValueError, match="max_latency_ms must be None or a positive number"):
        Limits(max_latency_ms=value)


@pytest.mark.parametrize("pace", [(1.0, 2.0), (1.0, 2.0, -1.0), 3.0, (1.0, "2", 3.0), (1.0, float("inf"), 0.0)])
def test_a_pace_is_three_numbers(pace: Any) -> None:
    with pytest.raises(ValueError, match="pace must be three numbers of seconds"):
        Limits(pace=pace)


def test_networks_over_the_limit_are_refused_in_words() -> None:
    graph = cnn((1, 6, 6), 3, width=8)
    limits = Limits(max_latency_ms=1.0, pace=(1e-3, 0.0, 0.0))
    assert limits.violation(graph) == f"{len(graph.nodes)} ms of latency (predicted), at most 1 are allowed"
    assert Limits(max_latency_ms=1.0).violation(graph) is None  # nothing is known yet
    assert Limits(pace=(1e-3, 0.0, 0.0)).violation(graph) is None


def test_an_ensemble_is_not_for_those_in_a_hurry(data: Data, tmp_path: Path) -> None:
    made = ImageClassifier(tmp_path / "run", ensemble=2, limits={"max_latency_ms": 5})
    with pytest.raises(ValueError, match="ensemble and the limit max_latency_ms exclude each other"):
        made.fit(*data, time_limit=5)


def test_the_winner_is_fast_enough_and_reads_no_mirror_images(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine on which a node takes 1 ms: starters of 23 nodes exceed the limit, shallower ones do not."""
    monkeypatch.setattr(sizes, "measure_latency", lambda *_: (1e-3, 0.0))
    more: dict[str, Any] = {"augment": True, "random_state": 0, "max_trials": 2, "searcher_args": SMALL}
    made = ImageClassifier(tmp_path / "run", limits={"max_latency_ms": 20.0}, **more).fit(*data, time_limit=10)
    run = load_run(tmp_path / "run")
    assert all(len(trial.graph.nodes) <= 20 for trial in run.trials)
    assert not made.mirrors_
    assert all(t.outcome is not None and not t.outcome.slow for t in run.trials)
    assert {entry["latency"] > 0 for entry in run.history} == {True}
    assert "from a single example to its outputs" in write_report(run).read_text().lower()
    with pytest.raises(ValueError, match=r"no first network meets them; the smallest one has .* ms of latency"):
        ImageClassifier(tmp_path / "other", limits={"max_latency_ms": 5.0}, **more).fit(*data, time_limit=10)


def test_where_all_are_too_slow_it_is_said(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "measure_latency", lambda *_: (0.0, 0.0))
    more: dict[str, Any] = {"random_state": 0, "max_trials": 2, "searcher_args": SMALL, "refit": False}
    with pytest.warns(UserWarning, match=r"no network is as fast as 1e-05 ms: the fastest takes"):
        made = ImageClassifier(tmp_path / "run", limits={"max_latency_ms": 1e-5}, **more).fit(*data, time_limit=10)
    trials = [trial for trial in load_run(tmp_path / "run").trials if not trial.final]
    assert all(trial.outcome is not None and trial.outcome.slow for trial in trials)
    latencies = {trial.id: trial.outcome.latency for trial in trials if trial.outcome is not None}
    assert latencies[made.best_trial_] == min(value for value in latencies.values() if value is not None)


@pytest.mark.parametrize(
    ("value", "words"), [("much", "needs a number"), ("0", "positive number"), ("nan", "positive number")]
)
def test_the_command_line_knows_fractions(
    value: str, words: str, data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "data.npz", x_train=data[0], y_train=data[1])
    file, path = str(tmp_path / "data.npz"), str(tmp_path / "run")
    assert main(["fit", file, "--path", path, "--limit", f"max_latency_ms={value}"]) == 1
    assert words in capsys.readouterr().err
    assert main(["fit", file, "--path", path, "--limit", "max_latency_ms=0.0001", "--time-limit", "5"]) == 1
    assert "ms of latency (predicted), at most 0.0001 are allowed" in capsys.readouterr().err


def test_measuring_is_a_matter_of_moments() -> None:
    deadline = Deadline.after(30)
    measure_latency(blobs(), 0.0)
    assert deadline.left > 20
