"""Ablation: networks without one of their morphs are trained like the whole network; the run is not changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from morphnas import ImageClassifier, RunError, ablate, load_run
from morphnas.estimators import ablation
from morphnas.estimators.ablation import MorphEffect, _effect, _replay_without
from morphnas.estimators.data_memory import DataMemory
from morphnas.estimators.objective import with_objective
from morphnas.graph import Deeper, Graph, Wider, cnn
from morphnas.report.words import morph_words
from morphnas.run.jobs import Job
from morphnas.search.trial import lineage
from morphnas.train.recipe import Outcome
from tests.estimators.conftest import Data
from tests.train.tasks import Clock

ARGS: dict[str, Any] = {"default_model_width": 2, "default_model_len": 1, "trainer_args": {"epochs": 2}}


@pytest.fixture(scope="module")
def run(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 networks, which tests must not modify."""
    path = Path(tmp_path_factory.mktemp("runs")) / "run"
    classifier = ImageClassifier(path, max_trials=8, random_state=1, device="cpu", searcher_args=ARGS, refit=False)
    classifier.fit(*data, time_limit=30)
    return path


def id_with_morphs(run: Path) -> int:
    """Id of the last network with morphs."""
    return next(trial.id for trial in reversed(load_run(run).trials) if trial.proposal.morphs)


@pytest.mark.slow
def test_ablate_measures_effect_of_every_morph(run: Path, data: Data) -> None:
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    result = ablate(run, *data, id_with_morphs(run), time_limit=60, repeats=2, device="cpu")
    ancestors = lineage(load_run(run).trials, load_run(run).trial(id_with_morphs(run)))
    morphs = [morph for trial in ancestors for morph in trial.proposal.morphs]
    assert [effect.morph for effect in result.morphs] == list(map(morph_words, morphs))
    assert result.epochs == sum(trial.epochs for trial in ancestors[1:])
    for i, effect in enumerate(result.morphs):
        remaining = ancestors[0].graph
        for morph in _replay_without(remaining, morphs, i)[0]:
            remaining = morph.grow(remaining)
        assert effect.parameters == ancestors[-1].graph.parameters - remaining.parameters
        if remaining.key == ancestors[-1].graph.key:
            assert (effect.n, effect.gain, effect.why) == (0, None, "the network is the same without it")
        else:
            assert effect.n == 2
            assert effect.gain is not None
            assert effect.standard_error is not None
    assert any(effect.n for effect in result.morphs)
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
    assert f"network {result.trial}, from {ancestors[0].id}" in str(result)
    json.dumps(result.to_json(), allow_nan=False)
    repeated = ablate(load_run(run), *data, id_with_morphs(run), time_limit=60, repeats=2, device="cpu")
    assert repeated == result, "results are reproducible"


def test_replay_drops_morphs_that_need_the_skipped_one() -> None:
    graph = cnn((1, 6, 6), 3, width=4, depth=2)
    first = Deeper("relu_3")
    (new_conv,) = (n.name for n in first.grow(graph).nodes if n.name not in graph and n.op.tag == "conv")
    morphs = [first, Wider("conv_4", 8), Wider(new_conv, 8)]
    assert _replay_without(graph, morphs, None) == (morphs, ())
    assert _replay_without(graph, morphs, 0) == ([morphs[1]], (morph_words(morphs[2]),))
    assert _replay_without(graph, morphs, 1) == ([morphs[0], morphs[2]], ())


def test_replay_renames_nodes_of_later_morphs() -> None:
    graph = cnn((1, 6, 6), 3, width=4, depth=2)
    first, second = Deeper("relu_3"), Deeper("relu_6")
    whole = second.grow(first.grow(graph))
    new_convs = [node.name for node in whole.nodes if node.name not in graph and node.op.tag == "conv"]
    kept, dropped = _replay_without(graph, [first, second, Wider(new_convs[1], 8)], 0)
    (conv_without_first,) = (n.name for n in second.grow(graph).nodes if n.name not in graph and n.op.tag == "conv")
    assert (kept, dropped) == ([second, Wider(conv_without_first, 8)], ())
    assert conv_without_first != new_convs[1]


def test_ablate_uses_the_memory_limit_of_the_fit(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, micro_batches = tmp_path / "run", list[int | None]()

    def failing_work(job: Job, *_: object) -> tuple[Outcome, None]:
        micro_batches.append(job.micro)
        return Outcome("failed", error="no"), None

    settings: dict[str, Any] = {"max_trials": 3, "device": "cpu", "searcher_args": ARGS, "refit": False}
    limits: list[dict[str, Any]] = [{"max_memory": 120_000}, {"limits": {"max_memory": 120_000}}]
    for limit in limits:
        ImageClassifier(path, overwrite=True, **settings | limit).fit(*data, time_limit=20)
        with monkeypatch.context() as patched:
            patched.setattr("morphnas.estimators.ablation.work", failing_work)
            ablate(path, *data, id_with_morphs(path), time_limit=60, repeats=1, device="cpu")
    assert micro_batches
    assert None not in micro_batches


@pytest.mark.parametrize(("stored", "used"), [(10_000, 10_000), (None, None), ("all", None), (-1, None)])
def test_ablate_uses_data_memory_of_the_fit(
    run: Path, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: Any, used: int | None
) -> None:
    """Invalid values, which only a damaged file holds, count as none."""
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    about = json.loads((copy / "run.json").read_text())
    about["settings"]["data_memory"] = stored
    (copy / "run.json").write_text(json.dumps(about))
    memories: list[DataMemory] = []

    def recorded(*args: Any) -> DataMemory:
        memories.append(DataMemory(*args))
        return memories[-1]

    monkeypatch.setattr(ablation, "DataMemory", recorded)
    monkeypatch.setattr(ablation, "work", lambda *_: (Outcome("failed", error="no"), None))
    ablate(copy, *data, id_with_morphs(copy), time_limit=60, repeats=1, device="cpu")
    assert memories == [DataMemory(used, copy)]


def test_ablate_without_time_reports_no_effects(run: Path, data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()

    def slow_with_objective(problem: Any, *rest: Any) -> Any:
        clock.now += 60
        return with_objective(problem, *rest)

    monkeypatch.setattr(ablation, "Deadline", SimpleNamespace(after=clock.deadline))
    monkeypatch.setattr(ablation, "with_objective", slow_with_objective)
    result = ablate(run, *data, id_with_morphs(run), time_limit=60, device="cpu")
    assert all((effect.n, effect.gain, effect.metric_gain) == (0, None, None) for effect in result.morphs)
    assert "no time" in str(result)


def test_ablate_raises_if_reading_takes_the_whole_limit(run: Path) -> None:
    dataset = TensorDataset(torch.zeros(60, 1, 8, 8), torch.zeros(60))
    with pytest.raises(TimeoutError, match="reading x has taken all of the time limit, after 0 of 60 examples"):
        ablate(run, dataset, trial=id_with_morphs(run), time_limit=1e-6, device="cpu")


def test_effect_pairs_trainings_and_explains_failures() -> None:
    graph = cnn((1, 6, 6), 3, width=4, depth=2)
    morph = Wider("conv_4", 8)
    wide = morph.grow(graph)

    def effect(whole: list[Outcome], without: list[Outcome], part: Graph = graph) -> MorphEffect:
        return _effect(1, morph, (), whole, without, wide, part)

    good = [Outcome("finished", score, score) for score in (-1.0, -2.0, -3.0)]
    worse = [Outcome("finished", score - 0.5, score) for score in (-1.0, -2.0, -3.0)]
    diverged = Outcome("diverged")
    assert (effect(good, worse).gain, effect(good, worse).n) == (0.5, 3)
    partial = effect([diverged, *good[1:]], [worse[0], diverged, worse[2]])
    assert (partial.gain, partial.n, partial.why) == (0.5, 1, "")
    assert effect([diverged], [worse[0]]).why == "trainings failed (diverged)"
    assert effect(good, []).why == "no time"
    assert effect(good, [], wide).why == "the network is the same without it"
    assert effect(good, worse).parameters == wide.parameters - graph.parameters


def test_lineage_begins_after_an_unreadable_parent(run: Path, data: Data, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    child = load_run(run).trial(id_with_morphs(run))
    (tmp_path / "run" / "trials" / f"{child.parent:05d}" / "proposal.json").write_text("{")
    with pytest.warns(UserWarning, match="is left out"):
        result = ablate(tmp_path / "run", *data, child.id, time_limit=5, device="cpu")
    assert str(result) == f"network {child.id} has no morphs to undo"


def test_starter_has_no_morphs_to_ablate(run: Path, data: Data) -> None:
    assert str(ablate(run, *data, 0, time_limit=5, device="cpu")) == "network 0 has no morphs to undo"


def test_ablate_rejects_invalid_arguments(run: Path, data: Data) -> None:
    x, y = data
    with pytest.raises(RunError, match="a run on other data"):
        ablate(run, x[:-1], y[:-1], time_limit=5, device="cpu")
    with pytest.raises(RunError, match="there is no model 99"):
        ablate(run, x, y, 99, time_limit=5, device="cpu")
    with pytest.raises(ValueError, match="repeats must be a positive integer"):
        ablate(run, x, y, time_limit=5, repeats=0)
    with pytest.raises(ValueError, match="time_limit must be a positive number"):
        ablate(run, x, y, time_limit=-1)
