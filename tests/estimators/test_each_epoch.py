"""`fit(each_epoch=f)`: f is called after every epoch and can end the fit; its errors do no harm."""

from __future__ import annotations

import logging
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import morphnas
from morphnas import EpochReport, ImageClassifier, StopFit, load_run
from tests.estimators.conftest import Data

ARGS: dict[str, Any] = {
    "default_model_width": 2,
    "default_model_len": 1,
    "trainer_args": {"epochs": 3, "precision": "float32", "examples": None, "augment": morphnas.Augment()},
}


def make_classifier(path: Path, **options: Any) -> ImageClassifier:
    settings: dict[str, Any] = {"random_state": 3, "max_trials": 3, "searcher_args": ARGS, "refit": False}
    return ImageClassifier(path, **(settings | options))


def stop_at_once(report: EpochReport) -> None:
    raise StopFit


class Writer:
    """The part of `torch.utils.tensorboard.SummaryWriter` that is used."""

    def __init__(self) -> None:
        self.scalars: dict[str, list[tuple[int, float]]] = defaultdict(list)

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.scalars[tag].append((global_step, scalar_value))


def test_each_epoch_reports_the_curves_of_all_trials(data: Data, tmp_path: Path) -> None:
    writer = Writer()

    def each_epoch(report: EpochReport) -> None:
        for name, value in report.numbers.items():
            writer.add_scalar(f"{name}/trial {report.trial}", value, report.epoch)

    make_classifier(tmp_path / "run", refit=True).fit(*data, time_limit=30, each_epoch=each_epoch)
    trials = load_run(tmp_path / "run").trials
    assert trials[-1].proposal.why["final"] == "everything"
    for trial in trials:
        assert trial.outcome is not None
        assert [step for step, _ in writer.scalars[f"loss/trial {trial.id}"]] == [*range(1, trial.outcome.epochs + 1)]
        curve = [(i, -(epoch.score or 0.0)) for i, epoch in enumerate(trial.outcome.curve, start=1)]
        assert writer.scalars.get(f"validation_loss/trial {trial.id}", []) == curve


def test_failing_each_epoch_does_not_change_the_fit(
    data: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(report: EpochReport) -> None:
        raise ConnectionError(report.trial)

    make_classifier(tmp_path / "run").fit(*data, each_epoch=broken)
    make_classifier(tmp_path / "other").fit(*data)
    failing, plain = (load_run(tmp_path / name) for name in ("run", "other"))
    assert [trial.score for trial in failing.trials] == [trial.score for trial in plain.trials]
    assert [record.levelno for record in caplog.records].count(logging.ERROR) == 2
    assert caplog.text.count("Traceback") == 1
    assert "each_epoch raised 9 times" in caplog.text


def test_stop_fit_ends_a_fit_that_can_be_resumed(data: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "run"

    def stop_second_trial(report: EpochReport) -> None:
        if (report.trial, report.epoch) == (1, 2):
            raise StopFit("the second network suffices")

    with caplog.at_level(logging.INFO, "morphnas"), warnings.catch_warnings():
        warnings.simplefilter("error")
        classifier = make_classifier(path, refit=True).fit(*data, each_epoch=stop_second_trial)
    assert "asked to end after epoch 2 of trial 1: the second network suffices" in caplog.text
    first, second = load_run(path).trials
    assert first.outcome is not None
    assert second.outcome is not None
    assert (first.outcome.status, second.outcome.status, second.outcome.epochs) == ("finished", "truncated", 2)
    assert ImageClassifier.load(path).predict(data[0]).tolist() == classifier.predict(data[0]).tolist()
    make_classifier(path, resume=True).fit(*data)
    assert len(load_run(path).trials) == 3


def test_stop_fit_in_first_epoch_keeps_a_network(data: Data, tmp_path: Path) -> None:
    classifier = make_classifier(tmp_path / "run").fit(*data, each_epoch=stop_at_once)
    (trial,) = load_run(tmp_path / "run").trials
    assert trial.outcome is not None
    assert (trial.outcome.epochs, trial.outcome.status, trial.kept) == (1, "truncated", True)
    assert classifier.predict(data[0]).shape == (150,)


def test_final_fit_calls_each_epoch_and_can_be_stopped(data: Data, tmp_path: Path) -> None:
    classifier = make_classifier(tmp_path / "run").fit(*data)
    reports: list[EpochReport] = []
    options: dict[str, Any] = {"time_limit": 60, "trainer_args": {"epochs": 3}}
    classifier.final_fit(*data, **options, each_epoch=reports.append)
    assert {report.final for report in reports} >= {"everything"}
    assert all(report.run == tmp_path / "run" and report.trial >= 3 for report in reports)
    before = len(load_run(classifier.path_).trials)

    classifier.final_fit(*data, **options, each_epoch=stop_at_once)
    assert len(load_run(classifier.path_).trials) == before + 1
    assert classifier.predict(data[0]).shape == (150,)


def test_fit_rejects_each_epoch_that_is_not_callable(data: Data, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"each_epoch must be None or a function of a morphnas\.EpochReport, not 3"):
        make_classifier(tmp_path / "run").fit(*data, each_epoch=3)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_each_epoch_is_no_parameter_of_the_estimator() -> None:
    assert "each_epoch" not in ImageClassifier().get_params()


def test_expectation_is_shown_or_logged_and_stored(
    data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "morphnas"):
        make_classifier(tmp_path / "shown", verbose=True).fit(*data)
        assert "expected: about 3 networks of" in capsys.readouterr().err
        assert "expected: " not in caplog.text
        make_classifier(tmp_path / "logged").fit(*data)
    assert "expected: about 3 networks of" in caplog.text
    stored = load_run(tmp_path / "logged").about["expected"]
    assert (stored["networks"], stored["measured"]) == (3, 2)
    assert stored["disk"] > 0
    assert stored["memory"] > 0
    assert np.isfinite(stored["seconds_per_network"])


@pytest.mark.slow
def test_stop_fit_stops_worker_processes(data: Data, tmp_path: Path) -> None:
    args = ARGS | {"trainer_args": ARGS["trainer_args"] | {"epochs": 1000, "patience": 1000}}
    settings = {"executor": "process", "devices": ["cpu"], "device": "cpu", "searcher_args": args}
    classifier = make_classifier(tmp_path / "run", **settings).fit(*data, time_limit=120, each_epoch=stop_at_once)
    (trial,) = load_run(tmp_path / "run").trials
    assert trial.outcome is not None
    assert (trial.outcome.status, trial.kept) == ("truncated", True)
    assert trial.outcome.epochs < 1000
    assert classifier.predict(data[0]).shape == (150,)
