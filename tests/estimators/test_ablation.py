"""Ablation of morphs: the remaining network is trained as the whole one, and the run is not changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

import morphnas
from morphnas import ImageClassifier, RunError, ablate, load_run
from morphnas.estimators import ablation
from morphnas.estimators.ablation import MorphEffect, _effect, _replay_without
from morphnas.estimators.objective import with_objective
from morphnas.graph import Deeper, Graph, Wider, cnn
from morphnas.report.words import morph_words
from morphnas.run.jobs import Job
from morphnas.search.trial import lineage
from morphnas.train.deadline import Deadline
from morphnas.train.recipe import Outcome
from tests.estimators.conftest import Data
from tests.train.tasks import Clock

ARGS: dict[str, Any] = {"default_model_width": 2, "default_model_len": 1, "trainer_args": {"epochs": 2}}


@pytest.fixture(scope="module")
def run(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 8 networks. Not to be changed."""
    path = Path(tmp_path_factory.mktemp("runs")) / "run"
    made = ImageClassifier(path, max_trials=8, random_state=1, device="cpu", searcher_args=ARGS, refit=False)
    made.fit(*data, time_limit=30)
    return path


def grown(run: Path) -> int:
    """Id of a network with morphs."""
    return next(trial.id for trial in reversed(load_run(run).trials) if trial.proposal.morphs)


@pytest.mark.slow
def test_every_morph_is_undone_once(run: Path, data: Data) -> None:
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    found = ablate(run, *data, grown(run), time_limit=60, repeats=2, device="cpu")
    line = lineage(load_run(run).trials, load_run(run).trial(grown(run)))
    morphs = [morph for trial in line for morph in trial.proposal.morphs]
    assert [one.morph for one in found.morphs] == list(map(morph_words, morphs))
    assert found.epochs == sum(trial.epochs for trial in line[1:])
    for i, one in enumerate(found.morphs):
        left = line[0].graph
        for morph in _replay_without(left, morphs, i)[0]:
            left = morph.grow(left)
        assert one.parameters == line[-1].graph.parameters - left.parameters
        if left.key == line[-1].graph.key:
            assert (one.n, one.gain, one.why) == (0, None, "the network is the same without it")
        else:
            assert one.n == 2
            assert one.gain is not None
            assert one.standard_error is not None
    assert any(one.n for one in found.morphs)
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
    assert f"network {found.trial}, from {line[0].id}" in str(found)
    json.dumps(found.to_json(), allow_nan=False)
    again = ablate(load_run(run), *data, grown(run), time_limit=60, repeats=2, device="cpu")
    assert again == found, "the same seeds, the same trainings"


def test_morphs_that_need_the_one_undone_go_with_it() -> None:
    graph = cnn((1, 6, 6), 3, width=4, depth=2)
    first = Deeper("relu_3")
    (inner,) = (n.name for n in first.grow(graph).nodes if n.name not in graph and n.op.tag == "conv")
    morphs = [first, Wider("conv_4", 8), Wider(inner, 8)]
    assert _replay_without(graph, morphs, None) == (morphs, ())
    assert _replay_without(graph, morphs, 0) == ([morphs[1]], (morph_words(morphs[2]),))
    assert _replay_without(graph, morphs, 1) == ([morphs[0], morphs[2]], ())


def test_later_morphs_find_their_nodes_under_other_names() -> None:
    graph = cnn((1, 6, 6), 3, width=4, depth=2)
    first, second = Deeper("relu_3"), Deeper("relu_6")
    whole = second.grow(first.grow(graph))
    inner = [node.name for node in whole.nodes if node.name not in graph and node.op.tag == "conv"]
    kept, gone = _replay_without(graph, [first, second, Wider(inner[1], 8)], 0)
    (alone,) = (n.name for n in second.grow(graph).nodes if n.name not in graph and n.op.tag == "conv")
    assert (kept, gone) == ([second, Wider(alone, 8)], ())
    assert alone != inner[1]


def test_it_keeps_to_the_memory_of_the_fit(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "run", list[int | None]()
    for given in ({"max_memory": 120_000}, {"limits": {"max_memory": 120_000}}):
        made = ImageClassifier(
            path, max_trials=3, device="cpu", searcher_args=ARGS, refit=False, overwrite=True, **given
        )
        made.fit(*data, time_limit=20)

        def trained(job: Job, *_: object) -> tuple[Outcome, None]:
            seen.append(job.micro)
            return Outcome("failed", error="no"), None

        with monkeypatch.context() as patched:
            patched.setattr("morphnas.estimators.ablation.work", trained)
            ablate(path, *data, grown(path), time_limit=60, repeats=1, device="cpu")
    assert seen
    assert None not in seen


def test_without_time_it_says_so(run: Path, data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()

    def after(seconds: float) -> Deadline:
        return clock.deadline(seconds)

    def late(problem: Any, *rest: Any) -> Any:
        clock.now += 60
        return with_objective(problem, *rest)

    monkeypatch.setattr(ablation, "Deadline", SimpleNamespace(after=after))
    monkeypatch.setattr(ablation, "with_objective", late)
    found = ablate(run, *data, grown(run), time_limit=60, device="cpu")
    assert all((one.n, one.gain, one.metric_gain) == (0, None, None) for one in found.morphs)
    assert "no time" in str(found)


def test_data_that_take_all_of_the_time_to_read_are_told(run: Path) -> None:
    slow = TensorDataset(torch.zeros(60, 1, 8, 8), torch.zeros(60))
    with pytest.raises(TimeoutError, match="reading x has taken all of the time limit, after 0 of 60 examples"):
        ablate(run, slow, trial=grown(run), time_limit=1e-6, device="cpu")


def test_turns_are_paired_and_failures_told() -> None:
    graph = cnn((1, 6, 6), 3, width=4, depth=2)
    morph = Wider("conv_4", 8)
    wide = morph.grow(graph)

    def undone(whole: list[Outcome], without: list[Outcome], part: Graph = graph) -> MorphEffect:
        return _effect(1, morph, (), whole, without, wide, part)

    good = [Outcome("finished", score, score) for score in (-1.0, -2.0, -3.0)]
    worse = [Outcome("finished", score - 0.5, score) for score in (-1.0, -2.0, -3.0)]
    bad = Outcome("diverged")
    assert (undone(good, worse).gain, undone(good, worse).n) == (0.5, 3)
    missed = undone([bad, *good[1:]], [worse[0], bad, worse[2]])
    assert (missed.gain, missed.n, missed.why) == (0.5, 1, "")
    assert undone([bad], [worse[0]]).why == "trainings failed (diverged)"
    assert undone(good, []).why == "no time"
    assert undone(good, [], wide).why == "the network is the same without it"
    assert undone(good, worse).parameters == wide.parameters - graph.parameters


def test_what_is_known_of_a_lineage_begins_where_its_files_can_be_read(run: Path, data: Data, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    child = load_run(run).trial(grown(run))
    (tmp_path / "run" / "trials" / f"{child.parent:05d}" / "proposal.json").write_text("{")
    with pytest.warns(UserWarning, match="is left out"):
        found = ablate(tmp_path / "run", *data, child.id, time_limit=5, device="cpu")
    assert str(found) == f"network {child.id} has no morphs to undo"


def test_a_start_has_nothing_to_undo(run: Path, data: Data) -> None:
    assert str(ablate(run, *data, 0, time_limit=5, device="cpu")) == "network 0 has no morphs to undo"


def test_what_cannot_be_used_is_refused(run: Path, data: Data) -> None:
    x, y = data
    with pytest.raises(RunError, match="a run on other data"):
        ablate(run, x[:-1], y[:-1], time_limit=5, device="cpu")
    with pytest.raises(RunError, match="there is no model 99"):
        ablate(run, x, y, 99, time_limit=5, device="cpu")
    with pytest.raises(ValueError, match="repeats must be a positive integer"):
        ablate(run, x, y, time_limit=5, repeats=0)
    with pytest.raises(ValueError, match="time_limit must be a positive number"):
        ablate(run, x, y, time_limit=-1)
    assert morphnas.ablate is ablate
