"""Test doubles of executors, searchers, observers and `work`, example proposals and weights, and other helpers."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cloudpickle

from morphnas.graph import Graph, Network, Weights, fresh_weights, mlp
from morphnas.run import executors
from morphnas.run.checkpoints import Result
from morphnas.run.jobs import Job
from morphnas.run.store import Store
from morphnas.search.trial import Budget, Proposal, Trial
from morphnas.train.data import Task
from morphnas.train.recipe import Outcome, Recipe
from morphnas.train.trainer import EachEpoch
from tests.train.tasks import seeded, states_equal

GRAPH = mlp((4,), 2, width=3, depth=1)
RECIPE = Recipe(epochs=2, batch_size=16, lr=0.1)
FINISHED = Outcome("finished", -0.5, 0.8, seconds=2.0, epochs=2, best_epoch=2, examples=40)


def weights(seed: int = 0, graph: Graph = GRAPH) -> Weights:
    return fresh_weights(graph, seeded(seed))


def proposals(n: int) -> list[Proposal]:
    """Different networks, trained from fresh weights."""
    return [Proposal(mlp((4,), 2, width=3 + i, depth=1), (), RECIPE, {"reason": f"number {i}"}) for i in range(n)]


@contextmanager
def new_store(path: Path, **about: Any) -> Iterator[Store]:
    """The store of a new run, closed at the end."""
    store = Store.create(path, about)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def resumed_store(path: Path) -> Iterator[Store]:
    """The store of an existing run, closed at the end."""
    store = Store.resume(path)
    try:
        yield store
    finally:
        store.close()


def has_weights(network: Network, expected: Weights) -> bool:
    return states_equal(dict(network.weights), expected)


def file_contents(path: Path) -> dict[str, bytes]:
    """The contents of all files in a folder and its subfolders, by relative path."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


class ThreadExecutor:
    """An executor with two workers, threads of this process."""

    workers, asks_ahead = 2, False

    def __init__(self, task: Task) -> None:
        self._task, self._pool = task, ThreadPoolExecutor(2)

    def submit(self, job: Job, each_epoch: EachEpoch | None = None) -> Future[Result]:
        return self._pool.submit(executors.work, job, self._task, each_epoch)  # type: ignore[attr-defined]  # tests patch it there

    def stop(self) -> None:
        pass

    def shutdown(self) -> None:
        self._pool.shutdown(cancel_futures=True)


@contextmanager
def module_from_file(file: Path, source: str) -> Iterator[Any]:
    """A module loaded from a new file with this source, outside `sys.path`; unloaded afterwards."""
    file.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[file.stem] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[file.stem]
        cloudpickle.unregister_pickle_by_value(module)


@dataclass
class ScriptedSearcher:
    """A searcher that returns the given proposals in order, and records the arguments of `ask`."""

    proposals: Sequence[Proposal | None]
    calls: list[tuple[tuple[Trial, ...], Budget]] = field(default_factory=list)

    def ask(self, trials: Sequence[Trial], budget: Budget) -> Proposal | None:
        self.calls.append((tuple(trials), budget))
        return self.proposals[len(trials)] if len(trials) < len(self.proposals) else None


@dataclass
class RecordingObserver:
    """An observer that records its calls: the event, and the id of the trial or the number of the epoch."""

    calls: list[tuple[str, int]] = field(default_factory=list)

    def trial_begins(self, trial: Trial) -> None:
        assert trial.outcome is None
        self.calls.append(("begins", trial.id))

    def epoch_done(self, trial: Trial, outcome: Outcome) -> None:
        self.calls.append(("epoch", outcome.epochs))

    def trial_ends(self, trial: Trial) -> None:
        assert trial.outcome is not None
        self.calls.append(("ends", trial.id))


@dataclass
class FakeWork:
    """Replaces `work`: records the jobs and returns `outcome_of(job)`, without training."""

    outcome_of: Callable[[Job], Outcome] = lambda _: FINISHED
    jobs: list[Job] = field(default_factory=list)

    def __call__(self, job: Job, task: Task, each_epoch: object = None) -> tuple[Outcome, Weights | None]:
        self.jobs.append(job)
        outcome = self.outcome_of(job)
        graph = job.start if isinstance(job.start, Graph) else job.start.graph
        for morph in job.morphs:
            graph = morph.grow(graph)
        return outcome, None if outcome.status in ("failed", "oom") else weights(len(self.jobs), graph)


def without_times(outcome: Outcome) -> Outcome:
    curve = tuple(replace(epoch, seconds=0) for epoch in outcome.curve)
    return replace(outcome, seconds=0, images_per_second=0, latency=None, curve=curve)


def comparable_trials(trials: Sequence[Trial]) -> list[tuple[Any, ...]]:
    """What must be equal in two searches with the same settings: everything except times."""
    return [
        (
            t.id,
            t.proposal.start,
            t.proposal.morphs,
            t.proposal.recipe,
            t.graph,
            t.kept,
            t.outcome and without_times(t.outcome),
        )
        for t in trials
    ]
