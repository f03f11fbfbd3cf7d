"""Contract tests of spaces, searchers and executors: base classes of the test classes of each implementation."""

from __future__ import annotations

import itertools
import json
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from morphnas.graph import Graph, Limits, Morph, MorphError, Network, Wider
from morphnas.run.jobs import Executor, Job, grace
from morphnas.run.work import work
from morphnas.search import Budget, Searcher, Space, Trial
from morphnas.train.deadline import Stop
from morphnas.train.recipe import Outcome
from tests.run.doubles import GRAPH, RECIPE, weights, without_times
from tests.run.failing_morph import FailingMorph
from tests.table import TableSpace, outcome_of, run_search, running_trial
from tests.train.tasks import blob_task

AMPLE = Budget(math.inf)
TASK = blob_task()

SearcherFactory = Callable[..., Searcher]
"""Makes a searcher from a space, limits and a seed."""


class SpaceContract:
    """Contract of search spaces. Subclasses provide the space as a fixture."""

    @pytest.fixture
    def space(self) -> Space:
        raise NotImplementedError

    def test_starts_are_distinct(self, space: Space) -> None:
        keys = [graph.key for graph in space.starts]
        assert keys
        assert len(set(keys)) == len(keys)

    def test_neighbours_differ_from_start_and_keep_output_shape(self, space: Space) -> None:
        for start in space.starts:
            fitting = 0
            for morph in space.neighbours(start):
                with suppress(MorphError):
                    graph = morph.grow(start)
                    fitting += 1
                    assert graph.key != start.key
                    assert graph.shapes[graph.output.name] == start.shapes[start.output.name]
            assert fitting

    def test_neighbours_have_fixed_order(self, space: Space) -> None:
        for start in space.starts:
            same = Graph(start.nodes)
            assert list(space.neighbours(start)) == list(space.neighbours(same))

    def test_morphs_convert_to_json(self, space: Space) -> None:
        for start in space.starts:
            for morph in space.neighbours(start):
                assert json.loads(json.dumps(morph.to_json()))["morph"] == morph.tag


class SearcherContract:
    """Contract of searchers, checked on `TableSpace`, where nothing is trained. Subclasses provide a factory of the
    searcher as a fixture."""

    @pytest.fixture
    def make(self) -> SearcherFactory:
        raise NotImplementedError

    @pytest.fixture
    def history(self, make: SearcherFactory) -> tuple[Trial, ...]:
        """A search of 25 trials, some of which failed and some of which are running."""
        return _history(make)

    def test_equal_arguments_give_equal_proposals(self, make: SearcherFactory, history: Sequence[Trial]) -> None:
        trials_before = tuple(history)
        random_state = np.random.get_state(legacy=False)["state"]["key"].copy()  # noqa: NPY002
        one, other = make(TableSpace(), Limits(), 3), make(TableSpace(), Limits(), 3)
        for n in (0, 2, 4, 7, 13, 25):
            proposal = one.ask(history[:n], AMPLE)
            copies = [replace(t, graph=Graph(t.graph.nodes)) for t in history[:n]]
            assert proposal == one.ask(copies, AMPLE) == other.ask(list(history[:n]), AMPLE)
        assert trials_before == tuple(history)
        assert (random_state == np.random.get_state(legacy=False)["state"]["key"]).all()  # noqa: NPY002

    def test_starts_are_proposed_first_in_order(self, make: SearcherFactory) -> None:
        space = TableSpace()
        trials = run_search(make(space, Limits(), 0), 4)
        assert [t.proposal.start for t in trials] == list(space.starts)
        assert not any(t.proposal.morphs for t in trials)

    def test_trainings_are_not_repeated(self, make: SearcherFactory, history: Sequence[Trial]) -> None:
        for seed in range(3):
            trial = _next_trial(make(TableSpace(), Limits(), seed), history)
            assert (trial.graph.key, trial.proposal.recipe) not in {(t.graph.key, t.proposal.recipe) for t in history}

    def test_proposals_for_idle_workers_are_distinct(self, make: SearcherFactory, history: Sequence[Trial]) -> None:
        trials = list(history)
        for _ in range(4):
            trials.append(_next_trial(make(TableSpace(), Limits(), 0), trials))
        trainings = [(t.graph.key, t.proposal.recipe) for t in trials]
        assert len(set(trainings)) == len(trainings)

    def test_proposals_are_within_limits(self, make: SearcherFactory) -> None:
        limits = Limits(max_params=TableSpace().starts[3].parameters, max_depth=14)
        trials = run_search(make(TableSpace(), limits, 0), 20)
        assert len(trials) > 10
        assert all(limits.violation(t.graph) is None for t in trials)

    def test_proposals_fit_remaining_time(self, make: SearcherFactory, history: Sequence[Trial]) -> None:
        searcher = make(TableSpace(), Limits(), 0)
        durations = sorted(t.graph.work * t.epochs for t in history)
        for n, quantile in itertools.product((0, 4, 25), (0.1, 0.5, 1.0)):
            budget = Budget(durations[int(quantile * (len(durations) - 1))], None, 1.0)
            proposal = searcher.ask(history[:n], budget)
            if proposal is not None:
                trial = running_trial(history, proposal)
                assert budget.predict(trial.graph, trial.epochs) <= budget.seconds

    @pytest.mark.parametrize("budget", [Budget(0.0), Budget(-1.0), Budget(math.inf, 0)])
    def test_no_proposal_when_budget_is_spent(
        self, make: SearcherFactory, history: Sequence[Trial], budget: Budget
    ) -> None:
        searcher = make(TableSpace(), Limits(), 0)
        assert searcher.ask((), budget) is None
        assert searcher.ask(history, budget) is None

    def test_why_is_json_with_reason_and_budget(self, make: SearcherFactory, history: Sequence[Trial]) -> None:
        for n in (0, 4, 25):
            proposal = make(TableSpace(), Limits(), 0).ask(history[:n], AMPLE)
            assert proposal is not None
            assert json.loads(json.dumps(proposal.why, allow_nan=False)) == proposal.why
            assert proposal.why["reason"]
            assert proposal.why["budget"] == {"seconds": None, "trials": None, "seconds_per_flop": 0.0}


class MorphingContract:
    """Contract of searchers that propose morphs of earlier trials."""

    @pytest.fixture
    def make(self) -> SearcherFactory:
        raise NotImplementedError

    @pytest.fixture
    def history(self, make: SearcherFactory) -> tuple[Trial, ...]:
        """A search of 25 trials, some of which failed and some of which are running."""
        return _history(make)

    def test_parent_has_kept_weights_and_score(self, make: SearcherFactory, history: Sequence[Trial]) -> None:
        for seed in range(3):
            start = _next_trial(make(TableSpace(), Limits(), seed), history).proposal.start
            assert isinstance(start, int)
            assert history[start].kept
            assert history[start].score is not None

    def test_no_proposal_while_no_weights_are_kept(self, make: SearcherFactory) -> None:
        searcher = make(TableSpace(), Limits(), 0)
        trials: list[Trial] = []
        while (proposal := searcher.ask(trials, AMPLE)) is not None:
            trials.append(running_trial(trials, proposal))
        assert len(trials) == len(TableSpace().starts)
        assert searcher.ask([replace(t, outcome=Outcome("failed")) for t in trials], AMPLE) is None
        not_kept = [replace(t, outcome=outcome_of(t.graph)) for t in trials]
        assert searcher.ask(not_kept, AMPLE) is None

    def test_search_continues_after_failed_starts(self, make: SearcherFactory) -> None:
        searcher = make(TableSpace(), Limits(), 0)
        trials = run_search(searcher, 4)
        failed = [trials[0], *(replace(t, outcome=Outcome("oom"), kept=False) for t in trials[1:])]
        assert _next_trial(searcher, failed).proposal.start == 0

    def test_only_allowed_morphs_are_proposed(self, make: SearcherFactory) -> None:
        trials = run_search(make(TableSpace(), Limits(morphs=("deeper",)), 0), 20)
        assert {morph.tag for t in trials for morph in t.proposal.morphs} == {"deeper"}

    def test_search_ends_when_space_is_exhausted(self, make: SearcherFactory) -> None:
        trials = run_search(make(TableSpace(("22222112",)), Limits(), 0), 100)
        assert len({t.graph.key for t in trials}) == 4
        assert len(trials) < 20


@cache
def _history(make: SearcherFactory) -> tuple[Trial, ...]:
    trials = run_search(make(TableSpace(), Limits(), 0), 25)
    unscored = {5: Outcome("oom"), 9: Outcome("failed", error="an error"), 14: None, 24: None}
    childless = {t.id for t in trials if t.proposal.morphs} - {t.parent for t in trials}
    return tuple(
        replace(t, outcome=unscored[t.id], kept=False) if t.id in unscored and t.id in childless else t for t in trials
    )


def _next_trial(searcher: Searcher, trials: Sequence[Trial]) -> Trial:
    proposal = searcher.ask(trials, AMPLE)
    assert proposal is not None
    return running_trial(trials, proposal)


class ExecutorContract:
    """Contract of executors. Subclasses provide an executor for `TASK` as a fixture, and close it; its workers use as
    many threads as this process."""

    @pytest.fixture
    def executor(self) -> Executor:
        raise NotImplementedError

    def test_workers_is_a_positive_integer(self, executor: Executor) -> None:
        assert isinstance(executor.workers, int)
        assert executor.workers >= 1

    @pytest.mark.parametrize("morphs", [(), (Wider("dense_1", 7),)])
    def test_results_equal_those_of_work(self, executor: Executor, morphs: tuple[Morph, ...]) -> None:
        job = Job(Network(GRAPH, weights(3)) if morphs else GRAPH, morphs, RECIPE, 600, 5)
        expected, found = work(job, TASK), executor.submit(job).result(120)
        assert without_times(found[0]) == without_times(expected[0])
        assert found[0].status == "finished"
        assert expected[1] is not None
        assert found[1] is not None
        assert found[1].keys() == expected[1].keys()
        assert all(torch.equal(value, expected[1][name]) for name, value in found[1].items())

    def test_each_epoch_is_reported(self, executor: Executor) -> None:
        reported: list[Outcome] = []
        outcome, _ = executor.submit(_job(epochs=4), reported.append).result(120)
        assert [so_far.epochs for so_far in reported] == [1, 2, 3, 4]
        assert reported[-1].curve == outcome.curve

    def test_exception_in_job_is_a_failed_outcome(self, executor: Executor) -> None:
        outcome, trained = executor.submit(_job(FailingMorph("raise"))).result(120)
        assert (outcome.status, trained) == ("failed", None)
        assert outcome.error is not None
        assert "in carry" in outcome.error
        assert "LookupError: weights not carried" in outcome.error

    def test_each_future_has_the_result_of_its_job(self, executor: Executor) -> None:
        jobs = [_job(FailingMorph("raise")) if i % 3 == 1 else _job(seed=i) for i in range(3 * executor.workers + 3)]
        found = [future.result(120)[0] for future in [executor.submit(job) for job in jobs]]
        assert [without_times(outcome) for outcome in found if outcome.status != "failed"] == [
            without_times(work(job, TASK)[0]) for job in jobs if not job.morphs
        ]
        assert [outcome.status == "failed" for outcome in found] == [bool(job.morphs) for job in jobs]

    def test_job_is_truncated_at_its_time_limit(self, executor: Executor) -> None:
        executor.submit(_job()).result(120)  # waits until the worker has started
        start = time.monotonic()
        outcome, trained = executor.submit(_job(epochs=100_000, seconds=0.5)).result(120)
        assert outcome.status == "truncated"
        assert trained is not None
        assert time.monotonic() - start < 5

    def test_stop_truncates_running_job(self, executor: Executor) -> None:
        """The stopped job returns its results so far; later jobs are not affected."""
        executor.submit(_job()).result(120)  # waits until the worker has started
        stop, epoch_done = Stop(), threading.Event()
        job = replace(_job(epochs=100_000), stop=stop)
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(executor.submit, job, lambda _: epoch_done.set())
            assert epoch_done.wait(60)
            start, stop.requested = time.monotonic(), True
            executor.stop()
            outcome, trained = future.result(120).result(120)
        assert time.monotonic() - start < 5
        assert (outcome.status, outcome.score is None, trained is None) == ("truncated", False, False)
        assert executor.submit(_job()).result(120)[0].status == "finished"


class WorkerProcessContract:
    """Contract of executors with one worker outside this process; a worker that dies is replaced by a new one."""

    @pytest.fixture
    def executor(self) -> Executor:
        raise NotImplementedError

    @pytest.mark.slow
    @pytest.mark.parametrize("failure", ["kill", "os._exit"])
    def test_dead_worker_fails_its_job(self, executor: Executor, failure: str) -> None:
        outcome, trained = executor.submit(_job(FailingMorph(failure))).result(240)
        assert (outcome.status, trained) == ("failed", None)
        assert "worker" in (outcome.error or "")
        assert executor.submit(_job()).result(120)[0].status == "finished"

    @pytest.mark.slow
    def test_hung_worker_fails_its_job(self, executor: Executor) -> None:
        executor.submit(_job()).result(120)
        start = time.monotonic()
        outcome, trained = executor.submit(_job(FailingMorph("hang"), seconds=1)).result(240)
        assert time.monotonic() - start < 1 + grace(1) + 5
        assert (outcome.status, trained) == ("failed", None)
        assert "hung" in (outcome.error or "")
        assert executor.submit(_job()).result(120)[0].status == "finished"

    @pytest.mark.slow
    def test_sys_exit_in_job_fails_it(self, executor: Executor) -> None:
        outcome, _ = executor.submit(_job(FailingMorph("sys.exit"))).result(120)
        assert "SystemExit: 3" in (outcome.error or "")


def _job(*morphs: Morph, epochs: int = 2, seconds: float = 600, seed: int = 0) -> Job:
    start = Network(GRAPH, weights(1)) if morphs else GRAPH
    return Job(start, morphs, replace(RECIPE, epochs=epochs), seconds, seed)
