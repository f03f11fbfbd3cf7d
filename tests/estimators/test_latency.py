"""Limits on latency: too slow networks are not tried, do not win, and are reported."""

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
from tests.train.tasks import Clock, blob_task, image_task

SMALL: dict[str, Any] = {"default_model_width": 8, "trainer_args": {"epochs": 2}}


@pytest.mark.parametrize("task", [blob_task(), image_task()], ids=["rows", "images"])
def test_measured_latency_is_plausible(task: Any) -> None:
    per_node, per_flop = measure_latency(task, 0.05)
    assert 0 <= per_node < 0.1
    assert 0 <= per_flop < 1e-3
    assert per_node + per_flop > 0


@pytest.mark.parametrize(
    ("seconds", "pass_seconds", "passes"),
    [(1.0, 0.02, 50), (1.0, 0.001, 200), (0.001, 0.001, 8), (0.001, 0.02, 3), (0.001, 1.0, 1)],
)
def test_number_of_timed_passes_depends_on_the_time(
    monkeypatch: pytest.MonkeyPatch, seconds: float, pass_seconds: float, passes: int
) -> None:
    """With little time there are at least 8 passes, if these take less than 50 ms."""
    clock, batch_sizes = Clock(), list[int]()

    class Slow(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            batch_sizes.append(len(x))
            clock.now += pass_seconds
            return x

    monkeypatch.setattr("time.perf_counter", clock)
    measured = predict.latency(Slow(), blob_task(), seconds)
    assert measured == pytest.approx(predict.EXPORT_OVERHEAD * pass_seconds)
    assert set(batch_sizes) == {1}
    assert abs(len(batch_sizes) - passes) <= 1, "sums of floats are rounded"


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "fast", True])
def test_limits_rejects_invalid_max_latency(value: Any) -> None:
    with pytest.raises(ValueError, match="max_latency_ms must be None or a positive number"):
        Limits(max_latency_ms=value)


@pytest.mark.parametrize("pace", [(1.0, 2.0), (1.0, 2.0, -1.0), 3.0, (1.0, "2", 3.0), (1.0, float("inf"), 0.0)])
def test_limits_rejects_invalid_pace(pace: Any) -> None:
    with pytest.raises(ValueError, match="pace must be three numbers of seconds"):
        Limits(pace=pace)


def test_violation_of_max_latency() -> None:
    graph = cnn((1, 6, 6), 3, width=8)
    limits = Limits(max_latency_ms=1.0, pace=(1e-3, 0.0, 0.0))
    assert limits.violation(graph) == f"{len(graph.nodes)} ms of latency (predicted), at most 1 are allowed"
    assert Limits(max_latency_ms=1.0).violation(graph) is None  # the pace is unknown
    assert Limits(pace=(1e-3, 0.0, 0.0)).violation(graph) is None


def test_ensemble_and_max_latency_exclude_each_other(data: Data, tmp_path: Path) -> None:
    classifier = ImageClassifier(tmp_path / "run", ensemble=2, limits={"max_latency_ms": 5})
    with pytest.raises(ValueError, match="ensemble and the limit max_latency_ms exclude each other"):
        classifier.fit(*data, time_limit=5)


def test_winner_meets_max_latency_without_mirror_images(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node takes 1 ms: starters of 23 nodes exceed the limit, shallower ones do not."""
    monkeypatch.setattr(sizes, "measure_latency", lambda *_: (1e-3, 0.0))
    settings: dict[str, Any] = {"augment": True, "random_state": 0, "max_trials": 2, "searcher_args": SMALL}
    classifier = ImageClassifier(tmp_path / "run", limits={"max_latency_ms": 20.0}, **settings)
    classifier.fit(*data, time_limit=10)
    run = load_run(tmp_path / "run")
    assert all(len(trial.graph.nodes) <= 20 for trial in run.trials)
    assert not classifier.mirrors_
    assert all(trial.outcome is not None and not trial.outcome.slow for trial in run.trials)
    assert {entry["latency"] > 0 for entry in run.history} == {True}
    assert "from a single example to its outputs" in write_report(run).read_text().lower()
    with pytest.raises(ValueError, match=r"no first network meets them; the smallest one has .* ms of latency"):
        ImageClassifier(tmp_path / "other", limits={"max_latency_ms": 5.0}, **settings).fit(*data, time_limit=10)


def test_fastest_network_wins_with_a_warning_if_all_are_slow(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizes, "measure_latency", lambda *_: (0.0, 0.0))
    settings: dict[str, Any] = {"random_state": 0, "max_trials": 2, "searcher_args": SMALL, "refit": False}
    classifier = ImageClassifier(tmp_path / "run", limits={"max_latency_ms": 1e-5}, **settings)
    with pytest.warns(UserWarning, match=r"no network is as fast as 1e-05 ms: the fastest takes"):
        classifier.fit(*data, time_limit=10)
    trials = [trial for trial in load_run(tmp_path / "run").trials if not trial.final]
    assert all(trial.outcome is not None and trial.outcome.slow for trial in trials)
    latencies = {trial.id: trial.outcome.latency for trial in trials if trial.outcome is not None}
    assert latencies[classifier.best_trial_] == min(value for value in latencies.values() if value is not None)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("much", "needs a number"),
        ("0", "positive number"),
        ("nan", "positive number"),
        ("0.0001", "ms of latency (predicted), at most 0.0001 are allowed"),
    ],
)
def test_command_line_rejects_invalid_max_latency(
    value: str, message: str, data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "data.npz", x_train=data[0], y_train=data[1])
    command = ["fit", str(tmp_path / "data.npz"), "--path", str(tmp_path / "run"), "--time-limit", "5"]
    assert main([*command, "--limit", f"max_latency_ms={value}"]) == 1
    assert message in capsys.readouterr().err


def test_measuring_latency_without_time_is_short() -> None:
    deadline = Deadline.after(30)
    measure_latency(blob_task(), 0.0)
    assert deadline.left > 20
