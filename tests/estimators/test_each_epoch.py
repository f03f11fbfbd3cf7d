"""`fit(each_epoch=f)`: f is called after every epoch, can end the fit, and its errors do no harm."""

from __future__ import annotations

import logging
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone

import morphnas
from morphnas import EpochReport, ImageClassifier, StopFit, load_run
from tests.estimators.conftest import Data

ARGS: dict[str, Any] = {
    "default_model_width": 2,
    "default_model_len": 1,
    "trainer_args": {"epochs": 3, "precision": "float32", "examples": None, "augment": morphnas.Augment()},
}


def classifier(path: Path, **more: Any) -> ImageClassifier:
    settings: dict[str, Any] = {"random_state": 3, "max_trials": 3, "searcher_args": ARGS, "refit": False}
    return ImageClassifier(path, **(settings | more))


class Writer:
    """The part of the interface of `torch.utils.tensorboard.SummaryWriter` that is used."""

    def __init__(self) -> None:
        self.scalars: dict[str, list[tuple[int, float]]] = defaultdict(list)

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.scalars[tag].append((global_step, scalar_value))


def test_curves_are_written_as_the_docstring_says(data: Data, tmp_path: Path) -> None:
    writer = Writer()

    def each_epoch(report: EpochReport) -> None:
        for name, value in report.numbers.items():
            writer.add_scalar(f"{name}/trial {report.trial}", value, report.epoch)

    classifier(tmp_path / "run", refit=True).fit(*data, time_limit=30, each_epoch=each_epoch)
    trials = load_run(tmp_path / "run").trials
    assert trials[-1].proposal.why["final"] == "everything"
    for trial in trials:
        assert trial.outcome is not None
        assert [step for step, _ in writer.scalars[f"loss/trial {trial.id}"]] == [*range(1, trial.outcome.epochs + 1)]
        curve = [(i, -(epoch.score or 0.0)) for i, epoch in enumerate(trial.outcome.curve, start=1)]
        assert writer.scalars.get(f"validation_loss/trial {trial.id}", []) == curve


def test_a_function_that_fails_costs_nothing(data: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def broken(report: EpochReport) -> None:
        raise ConnectionError(report.trial)

    classifier(tmp_path / "run").fit(*data, each_epoch=broken)
    classifier(tmp_path / "other").fit(*data)
    one, other = (load_run(tmp_path / name) for name in ("run", "other"))
    assert [trial.score for trial in one.trials] == [trial.score for trial in other.trials]
    assert [record.levelno for record in caplog.records].count(logging.ERROR) == 2
    assert caplog.text.count("Traceback") == 1
    assert "each_epoch raised 9 times" in caplog.text


def test_it_ends_the_fit_which_can_be_gone_on_with(
    data: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "run"

    def enough(report: EpochReport) -> None:
        if (report.trial, report.epoch) == (1, 2):
            raise StopFit("the second network suffices")

    with caplog.at_level(logging.INFO, "morphnas"), warnings.catch_warnings():
        warnings.simplefilter("error")
        found = classifier(path, refit=True).fit(*data, each_epoch=enough)
    assert "asked to end after epoch 2 of trial 1: the second network suffices" in caplog.text
    first, second = load_run(path).trials
    assert first.outcome is not None
    assert second.outcome is not None
    assert (first.outcome.status, second.outcome.status, second.outcome.epochs) == ("finished", "truncated", 2)
    assert ImageClassifier.load(path).predict(data[0]).tolist() == found.predict(data[0]).tolist()
    classifier(path, resume=True).fit(*data)
    assert len(load_run(path).trials) == 3


def test_it_ends_the_fit_in_the_first_epoch(data: Data, tmp_path: Path) -> None:
    def at_once(report: EpochReport) -> None:
        raise StopFit

    found = classifier(tmp_path / "run").fit(*data, each_epoch=at_once)
    (trial,) = load_run(tmp_path / "run").trials
    assert trial.outcome is not None
    assert (trial.outcome.epochs, trial.outcome.status, trial.kept) == (1, "truncated", True)
    assert found.predict(data[0]).shape == (150,)


def test_final_fit_calls_it_and_is_ended_by_it(data: Data, tmp_path: Path) -> None:
    found = classifier(tmp_path / "run").fit(*data)
    seen: list[EpochReport] = []
    more: dict[str, Any] = {"time_limit": 60, "trainer_args": {"epochs": 3}}
    found.final_fit(*data, **more, each_epoch=seen.append)
    assert {report.final for report in seen} >= {"everything"}
    assert all(report.run == tmp_path / "run" and report.trial >= 3 for report in seen)
    before = len(load_run(found.path_).trials)

    def enough(report: EpochReport) -> None:
        raise StopFit

    found.final_fit(*data, **more, each_epoch=enough)
    assert len(load_run(found.path_).trials) == before + 1
    assert found.predict(data[0]).shape == (150,)


def test_what_cannot_be_called_is_refused(data: Data, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"each_epoch must be None or a function of a morphnas\.EpochReport, not 3"):
        classifier(tmp_path / "run").fit(*data, each_epoch=3)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_it_is_an_argument_of_fit_that_clones_do_not_have(tmp_path: Path) -> None:
    assert "each_epoch" not in clone(classifier(tmp_path / "run")).get_params()


def test_the_expectation_is_told_and_kept(
    data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "morphnas"):
        classifier(tmp_path / "shown", verbose=True).fit(*data)
        assert "expected: about 3 networks of" in capsys.readouterr().err
        assert "expected: " not in caplog.text
        classifier(tmp_path / "logged").fit(*data)
    assert "expected: about 3 networks of" in caplog.text
    kept = load_run(tmp_path / "logged").about["expected"]
    assert (kept["networks"], kept["measured"]) == (3, 2)
    assert kept["disk"] > 0
    assert kept["memory"] > 0
    assert np.isfinite(kept["seconds_per_network"])


@pytest.mark.slow
def test_processes_end_what_they_train_when_it_ends_the_fit(data: Data, tmp_path: Path) -> None:
    def at_once(report: EpochReport) -> None:
        raise StopFit

    args = ARGS | {"trainer_args": ARGS["trainer_args"] | {"epochs": 1000, "patience": 1000}}
    many = {"executor": "process", "devices": ["cpu"], "device": "cpu", "searcher_args": args}
    found = classifier(tmp_path / "run", **many).fit(*data, time_limit=120, each_epoch=at_once)
    (trial,) = load_run(tmp_path / "run").trials
    assert trial.outcome is not None
    assert (trial.outcome.status, trial.kept) == ("truncated", True)
    assert trial.outcome.epochs < 1000
    assert found.predict(data[0]).shape == (150,)
