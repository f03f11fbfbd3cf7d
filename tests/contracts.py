"""What every space and every searcher must do: test classes, to be run over all of them."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from contextlib import suppress
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from morphnas.graph import Graph, Limits, MorphError
from morphnas.run.executors import Executor
from morphnas.search import Left, Proposal, Searcher, Space, Trial
from morphnas.train.recipe import Outcome
from tests.table import TableSpace, grown, outcome_of, run

AMPLE = Left(math.inf)

Make = Callable[..., Searcher]
"""A searcher from a space, limits and a seed."""


class SpaceContract:
    """Subclasses give the space as a fixture."""

    @pytest.fixture
    def space(self) -> Space:
        raise NotImplementedError

    def test_has_different_starts(self, space: Space) -> None:
        keys = [graph.key for graph in space.starts]
        assert keys
        assert len(set(keys)) == len(keys)

    def test_a_neighbour_is_another_network_or_does_not_fit(self, space: Space) -> None:
        for start in space.starts:
            fitting = 0
            for morph in space.neighbours(start):
                with suppress(MorphError):
                    graph = morph.grow(start)
                    fitting += 1
                    assert graph.key != start.key
                    assert graph.shapes[graph.output.name] == start.shapes[start.output.name]
            assert fitting

    def test_neighbours_come_in_a_fixed_order(self, space: Space) -> None:
        for start in space.starts:
            same = Graph(start.nodes)
            assert list(space.neighbours(start)) == list(space.neighbours(same))

    def test_morphs_are_json(self, space: Space) -> None:
        for start in space.starts:
            for morph in space.neighbours(start):
                assert json.loads(json.dumps(morph.to_json()))["morph"] == morph.tag


class SearcherContract:
    """Subclasses give, as a fixture, what makes the searcher. It is tried on the table, where nothing is trained."""

    @pytest.fixture
    def make(self) -> Make:
        raise NotImplementedError

    @pytest.fixture
    def history(self, make: Make) -> tuple[Trial, ...]:
        """A search of 25 trials, some of which failed and some of which are running."""
        return _history(make)

    def test_equal_arguments_give_equal_proposals(self, make: Make, history: Sequence[Trial]) -> None:
        before, state = tuple(history), np.random.get_state(legacy=False)["state"]["key"].copy()  # noqa: NPY002
        first, other = make(TableSpace(), Limits(), 3), make(TableSpace(), Limits(), 3)
        for n in (0, 2, 4, 7, 13, 25):
            proposal = first.ask(history[:n], AMPLE)
            again = [replace(t, graph=Graph(t.graph.nodes)) for t in history[:n]]
            assert proposal == first.ask(again, AMPLE) == other.ask(list(history[:n]), AMPLE)
        assert before == tuple(history)
        assert (state == np.random.get_state(legacy=False)["state"]["key"]).all()  # noqa: NPY002

    def test_begins_with_the_starts_in_order(self, make: Make) -> None:
        space = TableSpace()
        trials = run(make(space, Limits(), 0), 4)
        assert [t.proposal.start for t in trials] == list(space.starts)
        assert not any(t.proposal.morphs for t in trials)

    def test_never_repeats(self, make: Make, history: Sequence[Trial]) -> None:
        for seed in range(3):
            found = _ask(make(TableSpace(), Limits(), seed), history)
            assert (found.graph.key, found.epochs) not in {(t.graph.key, t.epochs) for t in history}

    def test_fills_idle_workers_with_different_networks(self, make: Make, history: Sequence[Trial]) -> None:
        trials = list(history)
        for _ in range(4):
            trials.append(_ask(make(TableSpace(), Limits(), 0), trials))
        ahead = [(t.graph.key, t.epochs) for t in trials]
        assert len(set(ahead)) == len(ahead)

    def test_stays_within_the_limits(self, make: Make) -> None:
        limits = Limits(max_params=TableSpace().starts[3].parameters, max_depth=14)
        trials = run(make(TableSpace(), limits, 0), 20)
        assert len(trials) > 10
        assert all(limits.refuse(t.graph) is None for t in trials)

    def test_proposes_nothing_that_cannot_finish(self, make: Make, history: Sequence[Trial]) -> None:
        searcher = make(TableSpace(), Limits(), 0)
        typical = sorted(t.graph.work * t.epochs for t in history)
        for n, share in itertools.product((0, 4, 25), (0.1, 0.5, 1.0)):
            left = Left(typical[int(share * (len(typical) - 1))], None, 1.0)
            proposal = searcher.ask(history[:n], left)
            if proposal is not None:
                trial = _trial(history, proposal)
                assert left.predict(trial.graph, trial.epochs) <= left.seconds

    @pytest.mark.parametrize("left", [Left(0.0), Left(-1.0), Left(math.inf, 0)])
    def test_proposes_nothing_when_the_budget_is_spent(self, make: Make, history: Sequence[Trial], left: Left) -> None:
        searcher = make(TableSpace(), Limits(), 0)
        assert searcher.ask((), left) is None
        assert searcher.ask(history, left) is None

    def test_says_why_in_json(self, make: Make, history: Sequence[Trial]) -> None:
        for n in (0, 4, 25):
            proposal = make(TableSpace(), Limits(), 0).ask(history[:n], AMPLE)
            assert proposal is not None
            assert json.loads(json.dumps(proposal.why, allow_nan=False)) == proposal.why
            assert proposal.why["reason"]
            assert proposal.why["left"] == {"seconds": None, "trials": None, "seconds_per_flop": 0.0}


class MorphingContract:
    """The same, of searchers that go on from trials by the space's morphs."""

    @pytest.fixture
    def make(self) -> Make:
        raise NotImplementedError

    @pytest.fixture
    def history(self, make: Make) -> tuple[Trial, ...]:
        """A search of 25 trials, some of which failed and some of which are running."""
        return _history(make)

    def test_starts_from_kept_weights(self, make: Make, history: Sequence[Trial]) -> None:
        for seed in range(3):
            start = _ask(make(TableSpace(), Limits(), seed), history).proposal.start
            assert isinstance(start, int)
            assert history[start].kept
            assert history[start].score is not None

    def test_waits_while_there_are_no_weights(self, make: Make) -> None:
        searcher = make(TableSpace(), Limits(), 0)
        trials: list[Trial] = []
        while (proposal := searcher.ask(trials, AMPLE)) is not None:
            trials.append(_trial(trials, proposal))
        assert len(trials) == len(TableSpace().starts)
        assert searcher.ask([replace(t, outcome=Outcome("failed")) for t in trials], AMPLE) is None
        pruned = [replace(t, outcome=outcome_of(t.graph)) for t in trials]
        assert searcher.ask(pruned, AMPLE) is None

    def test_goes_on_when_starts_fail(self, make: Make) -> None:
        searcher = make(TableSpace(), Limits(), 0)
        trials = run(searcher, 4)
        failed = [trials[0], *(replace(t, outcome=Outcome("oom"), kept=False) for t in trials[1:])]
        assert _ask(searcher, failed).proposal.start == 0

    def test_uses_only_the_morphs_allowed(self, make: Make) -> None:
        trials = run(make(TableSpace(), Limits(morphs=("deeper",)), 0), 20)
        assert {morph.tag for t in trials for morph in t.proposal.morphs} == {"deeper"}

    def test_ends_when_the_space_is_exhausted(self, make: Make) -> None:
        trials = run(make(TableSpace(("22222112",)), Limits(), 0), 100)
        assert len({t.graph.key for t in trials}) == 4
        assert len(trials) < 20


@cache
def _history(make: Make) -> tuple[Trial, ...]:
    trials = run(make(TableSpace(), Limits(), 0), 25)
    parents = {t.parent for t in trials}
    without = {5: Outcome("oom"), 9: Outcome("failed", error="no luck"), 14: None, 24: None}
    ended = {t.id for t in trials if t.proposal.morphs} - parents
    return tuple(
        replace(t, outcome=without[t.id], kept=False) if t.id in without and t.id in ended else t for t in trials
    )


def _trial(trials: Sequence[Trial], proposal: Proposal) -> Trial:
    return Trial(len(trials), proposal, grown(trials, proposal.start, proposal.morphs))


def _ask(searcher: Searcher, trials: Sequence[Trial]) -> Trial:
    proposal = searcher.ask(trials, AMPLE)
    assert proposal is not None
    return _trial(trials, proposal)


class ExecutorContract:
    """Subclasses give the executor as a fixture, and end it. What is submitted must be able to travel."""

    @pytest.fixture
    def executor(self) -> Executor:
        raise NotImplementedError

    def test_has_workers(self, executor: Executor) -> None:
        assert isinstance(executor.workers, int)
        assert executor.workers >= 1

    def test_a_future_has_the_result(self, executor: Executor) -> None:
        future = executor.submit(divmod, 17, 5)
        assert future.result(60) == (3, 2)
        assert future.exception(60) is None
        assert future.done()

    def test_an_exception_is_the_futures(self, executor: Executor) -> None:
        future = executor.submit(_fail, "no luck")
        error = future.exception(60)
        assert isinstance(error, LookupError)
        assert "no luck" in str(error)
        with pytest.raises(LookupError, match="no luck"):
            future.result(60)

    def test_a_failure_does_not_end_the_others(self, executor: Executor) -> None:
        futures = [executor.submit(_fail if i % 2 else abs, -i) for i in range(6)]
        assert [future.exception(60) is None for future in futures] == [True, False] * 3
        assert executor.submit(abs, -7).result(60) == 7

    def test_every_future_has_its_own_result(self, executor: Executor) -> None:
        futures = [executor.submit(abs, -i) for i in range(5 * executor.workers)]
        assert [future.result(60) for future in futures] == list(range(5 * executor.workers))

    def test_futures_can_be_waited_for(self, executor: Executor) -> None:
        futures = [executor.submit(abs, -i) for i in range(3)]
        assert wait(futures, 60).done == set(futures)

    def test_arguments_arrive_as_they_were(self, executor: Executor) -> None:
        given = (1, {"a": [2.5, None]}, "text", b"bytes", (True,))
        assert executor.submit(_same, *given).result(60) == given

    def test_can_be_shut_down_twice(self, executor: Executor) -> None:
        executor.submit(abs, -1).result(60)
        executor.shutdown()
        executor.shutdown()


def _fail(why: object) -> None:
    raise LookupError(why)


def _same(*values: object) -> tuple[object, ...]:
    return values
