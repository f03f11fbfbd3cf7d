"""Where trials run: the arguments `executor`, `devices` and `per_trial`, and a fit with worker processes."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from morphnas import ImageClassifier
from morphnas.estimators import placement, sizes
from morphnas.estimators.fitting import StartersOnly
from morphnas.estimators.placement import Place
from morphnas.graph import cnn, resnet
from morphnas.run.plan import Pace
from morphnas.run.store import load_run
from morphnas.search import MorphSpace, RandomSearcher
from morphnas.search.trial import Budget, Proposal, Trial
from morphnas.train.data import Task
from morphnas.train.recipe import Outcome, Recipe
from morphnas.train.step import GRAPH_RECORDERS
from tests.estimators.conftest import Data

CPU = torch.device("cpu")


def place_of(**settings: Any) -> Place:
    return Place.of(ImageClassifier(**{"device": "cpu"} | settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"executor": "threads"}, "executor must be None"),
        ({"executor": 3}, "executor must be None"),
        ({"executor": "process", "devices": 0}, "devices must be None, a positive integer or a list"),
        ({"executor": "process", "devices": []}, "devices must be None, a positive integer or a list"),
        ({"executor": "process", "devices": "cpu"}, "devices must be None, a positive integer or a list"),
        ({"executor": "process", "devices": ["cpu", "gpu"]}, "device must be"),
        ({"executor": "process", "devices": ["cuda:99"]}, "is not available"),
        ({"executor": "process", "per_trial": 1}, "per_trial is for a Ray cluster"),
        ({"executor": "ray", "per_trial": 0}, "per_trial must be None or a positive number"),
        ({"executor": "ray", "devices": ["cpu"]}, "devices must be None or a number of workers"),
        ({"executor": "127.0.0.1:none"}, "is not the address of a Ray cluster"),
        ({"devices": 2}, "devices is for executor"),
    ],
)
def test_fit_rejects_invalid_placement(settings: dict[str, Any], message: str, data: Data, tmp_path: Path) -> None:
    if settings.get("executor") not in (None, "process", "threads", 3):
        pytest.importorskip("ray")
    with pytest.raises(ValueError, match=message):
        ImageClassifier(tmp_path / "run", **settings).fit(*data, time_limit=5)
    assert not (tmp_path / "run").exists()


def test_fit_without_ray_raises_before_it_creates_a_run(
    monkeypatch: pytest.MonkeyPatch, data: Data, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[ray\]' in your clone"):
        ImageClassifier(tmp_path / "run", executor="ray").fit(*data, time_limit=5)
    assert not (tmp_path / "run").exists()


def test_cpu_workers_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "cores", lambda: 6)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    assert place_of() == Place(CPU)
    assert place_of(executor="process").workers == (CPU,) * 6
    assert place_of(executor="process", devices=["cpu", "cpu"]).workers == (CPU, CPU)
    assert [place_of(executor="process", devices=n).threads for n in (1, 2, 4, 6, 8)] == [6, 3, 1, 1, 1]
    assert place_of().threads is None


def test_gpu_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    first, second = torch.device("cuda:0"), torch.device("cuda:1")
    both = ImageClassifier(executor="process", devices=2)
    assert Place.of(both).workers == (first, second)
    assert Place.of(both).threads is None
    assert len(Place.of(ImageClassifier(executor="process")).workers) == 3
    assert Place.of(ImageClassifier(executor="process", device="cuda:1")).workers == (second,)
    assert Place.of(ImageClassifier(executor="process", devices=["cuda:1", "cuda:1"])) == Place(second, (second,) * 2)
    assert not Place.of(both).shares_gpu
    assert Place.of(ImageClassifier(executor="process", devices=["cuda:1", "cuda:0", "cuda:1"])).shares_gpu
    with pytest.raises(ValueError, match="devices=4 are not available: torch sees 3"):
        Place.of(ImageClassifier(executor="process", devices=4))


def test_place_on_a_ray_cluster() -> None:
    pytest.importorskip("ray")
    assert place_of(executor="ray") == Place(CPU, ray=True)
    assert place_of(executor="ray", devices=3, per_trial=2) == Place(CPU, ray=True, max_workers=3, cpus=2)
    assert place_of(executor="ray", per_trial=2).threads == 2
    assert place_of(executor="auto").address == "auto"


def test_resume_on_a_shared_gpu_disables_cuda_graphs(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the plan of the run, which may be from another machine, uses CUDA graphs."""
    run_json = tmp_path / "run" / "run.json"
    settings: dict[str, Any] = {"random_state": 0, "refit": False, "device": "cpu"}
    ImageClassifier(tmp_path / "run", max_trials=1, **settings).fit(*data)
    about = json.loads(run_json.read_text())
    about["plan"]["recipe"]["cuda_graphs"] = True
    run_json.write_text(json.dumps(about))
    for trials, shared in ((2, False), (3, True)):
        monkeypatch.setattr(Place, "shares_gpu", shared)
        ImageClassifier(tmp_path / "run", max_trials=trials, resume=True, **settings).fit(*data)
        assert load_run(tmp_path / "run").trials[-1].proposal.recipe.cuda_graphs != shared


def test_starters_only_does_not_count_promotions_or_finals() -> None:
    graph = cnn((1, 6, 6), 3, width=4)
    outcome = Outcome("finished", -0.5, 0.8, epochs=1, best_epoch=1)
    first = Trial(0, Proposal(graph, (), Recipe()), graph, outcome, kept=True)
    promoted = replace(first, id=1, proposal=Proposal(0, (), Recipe(epochs=24)))
    final = replace(first, id=2, proposal=Proposal(graph, (), Recipe(), {"final": "fresh"}))
    searcher = StartersOnly(RandomSearcher(MorphSpace((graph, resnet((1, 6, 6), 3, width=4)))), 2)
    assert searcher.ask([first, promoted, final], Budget(60.0)) is not None, "the second starter is not trained yet"
    assert searcher.ask([first, promoted, final, replace(first, id=3)], Budget(60.0)) is None


@pytest.mark.slow
@pytest.mark.parametrize(("has_graphs", "times"), [(False, 2), (True, 1)])
def test_speed_of_a_device_with_cuda_graphs_is_measured_once(
    has_graphs: bool, times: int, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU it is measured again before the final trainings, which use the threads of all workers."""
    tasks: list[Task] = []

    def fake_measure(task: Task, *_: Any, **__: Any) -> Pace:
        tasks.append(task)
        return Pace(1e-11, 1, "float32")

    monkeypatch.setattr(sizes, "measure", fake_measure)
    if has_graphs:
        monkeypatch.setitem(GRAPH_RECORDERS, "cpu", lambda _: pytest.fail("no graph should be captured"))
    args = {"default_model_width": 4, "trainer_args": {"epochs": 1}}
    ImageClassifier(tmp_path, executor="process", devices=1, max_trials=1, searcher_args=args).fit(*data, time_limit=20)
    assert len(tasks) == times


@pytest.mark.slow
def test_fit_with_worker_processes(data: Data, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"executor": "process", "devices": 2, "device": "cpu", "random_state": 0}
    classifier = ImageClassifier(tmp_path / "run", max_trials=6, **settings).fit(*data, time_limit=60)
    assert classifier.evaluate(*data) > 0.9
    run = classifier.load_searcher()
    assert all(trial.outcome and trial.outcome.status != "failed" for trial in run.trials)
    assert run.about["settings"]["executor"] == "process"
    assert sorted(entry.name for entry in (tmp_path / "run").iterdir()) == [
        "lock", "model", "run.json", "trials"
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the time limit was too short")
def test_fit_too_short_for_workers_to_start_keeps_a_network(data: Data, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"executor": "process", "devices": 1, "device": "cpu", "random_state": 0}
    classifier = ImageClassifier(tmp_path / "run", **settings)
    with pytest.warns(UserWarning, match="trainings failed, the first with: no worker had started, or was free"):
        classifier.fit(*data, time_limit=2)
    assert classifier.predict(data[0]).shape == (150,)
    statuses = [trial.outcome and trial.outcome.status for trial in classifier.load_searcher().trials]
    assert statuses[0] == "failed"
    assert "failed" not in statuses[1:]
