"""Tests of the loop of a search: when it ends, what searchers and workers get, failures, and resuming."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from morphnas.graph import Deeper, Limits, Network, Weights, Wider, mlp
from morphnas.run import executors as executors_module
from morphnas.run.checkpoints import Result
from morphnas.run.executors import SerialExecutor
from morphnas.run.files import RunError
from morphnas.run.jobs import Job, trial_seed
from morphnas.run.pruning import prune
from morphnas.run.search import MAX_FAILED_TRIALS, MAX_REFUSED, Search, decide_flip, seconds_per_flop
from morphnas.run.store import Store, load_run
from morphnas.search import MorphSpace, RandomSearcher
from morphnas.search.trial import STOPPED, Budget, Proposal, Trial, grow_proposal
from morphnas.train.data import Task
from morphnas.train.recipe import Augment, Outcome, Recipe
from morphnas.train.trainer import EachEpoch
from tests.run.doubles import (
    FINISHED,
    GRAPH,
    RECIPE,
    FakeWork,
    RecordingObserver,
    ScriptedSearcher,
    ThreadExecutor,
    comparable_trials,
    file_contents,
    has_weights,
    new_store,
    proposals,
    resumed_store,
    weights,
)
from tests.train.tasks import Clock, blob_task

TASK = blob_task()
NEVER = Clock().deadline(math.inf)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def fake_work(monkeypatch: pytest.MonkeyPatch) -> FakeWork:
    """Replaces `work`, so that nothing is trained."""
    fake = FakeWork()
    monkeypatch.setattr(executors_module, "work", fake)
    return fake


def run_search(
    store: Store, searcher: Any, *, executor: Any = None, deadline: Any = NEVER, **settings: Any
) -> list[Trial]:
    Search(store, searcher, executor or SerialExecutor(TASK), deadline, **settings).run()
    return store.trials


# -- trials that a stop cut short


def cut_short(epochs: int) -> Outcome:
    return replace(FINISHED, status="truncated", epochs=epochs, error=STOPPED, score=-1.0 - epochs)


@pytest.mark.parametrize(
    ("outcome", "replaced"),
    [
        (replace(FINISHED, epochs=3), True), (cut_short(3), True), (cut_short(2), True), (cut_short(1), False),
        (replace(FINISHED, status="truncated", epochs=1), False), (Outcome("failed", error="no"), False),
    ],
)  # fmt: skip
def test_retraining_replaces_cut_short_result_unless_shorter(
    path: Path, monkeypatch: pytest.MonkeyPatch, outcome: Outcome, replaced: bool
) -> None:
    result = outcome, None if outcome.status == "failed" else weights(7)
    monkeypatch.setattr(executors_module, "work", lambda *_, **__: result)
    with new_store(path) as store:
        store.claim(Proposal(GRAPH, (), RECIPE))
        before = store.finish(0, replace(cut_short(2), score=-9.0), weights(3))
        store.update_about(best=0, final=0, members={"0": 1.0})
    with resumed_store(path) as store:
        (trial,) = run_search(store, ScriptedSearcher([]))
        assert has_weights(store.network(0), weights(7 if replaced else 3))
        assert (trial == before) is not replaced
    found = load_run(path)
    assert found.trials == (trial,)
    assert found.about["final"] == (None if replaced else 0)
    assert found.get_best_model_id() == 0


def test_result_stays_on_disk_while_trial_is_reopened(path: Path) -> None:
    with new_store(path) as store:
        store.claim(Proposal(GRAPH, (), RECIPE))
        before = store.finish(0, cut_short(2), weights(3))
        store.reopen(0)
        assert store.trial(0).outcome is None
        assert load_run(path).trials == (before,), "the result would be lost if the driver died"
        store.restore_reopened()
        assert store.trials == [before]


def test_cut_short_trial_is_resumed_although_weights_were_pruned(path: Path, fake_work: FakeWork) -> None:
    """`prune` keeps the weights of its parent."""
    with new_store(path) as store:
        for i, proposal in enumerate(proposals(3)):
            graph = store.claim(proposal).graph
            store.finish(i, replace(FINISHED, score=-float(i)), weights(i, graph))
        store.claim(Proposal(2, (Deeper("relu_3"),), RECIPE))
        store.finish(3, cut_short(1), weights(3, store.trial(3).graph))
        prune(store, 1)
        assert [trial.kept for trial in store.trials] == [True, False, True, False]
    with resumed_store(path) as store:
        trial = run_search(store, ScriptedSearcher([]), keep=1)[3]
        assert trial.outcome is not None
        assert trial.outcome.status == "finished"


def test_cut_short_trial_with_child_is_not_retrained(path: Path, fake_work: FakeWork) -> None:
    with new_store(path) as store:
        store.claim(Proposal(GRAPH, (), RECIPE))
        before = store.finish(0, cut_short(1), weights(3))
        store.claim(Proposal(0, (Deeper("relu_3"),), RECIPE))
        store.finish(1, FINISHED, weights(4, store.trial(1).graph))
    with resumed_store(path) as store:
        assert run_search(store, ScriptedSearcher([]))[0] == before


# -- when a search ends


def test_search_ends_when_searcher_returns_none(path: Path, fake_work: FakeWork) -> None:
    with new_store(path) as store:
        trials = run_search(store, ScriptedSearcher(proposals(4)))
    assert [t.id for t in trials] == [0, 1, 2, 3]
    assert all(t.outcome == FINISHED and t.kept for t in trials)
    assert list(load_run(path).trials) == trials


@pytest.mark.parametrize("max_trials", [1, 3])
def test_search_ends_after_max_trials(path: Path, fake_work: FakeWork, max_trials: int) -> None:
    searcher = ScriptedSearcher(proposals(9))
    with new_store(path) as store:
        assert len(run_search(store, searcher, max_trials=max_trials)) == max_trials
        assert [budget.trials for _, budget in searcher.calls] == list(range(max_trials, 0, -1))
    with resumed_store(path) as store:
        assert len(run_search(store, searcher, max_trials=max_trials)) == max_trials
        assert len(run_search(store, searcher, max_trials=max_trials + 2)) == max_trials + 2


def test_search_ends_at_deadline(path: Path, fake_work: FakeWork) -> None:
    clock, searcher = Clock(), ScriptedSearcher(proposals(99))

    def outcome_of(job: Job) -> Outcome:
        clock.now += 3
        return FINISHED

    fake_work.outcome_of = outcome_of
    with new_store(path) as store:
        trials = run_search(store, searcher, deadline=clock.deadline(10))
    assert len(trials) == 4
    assert [job.seconds for job in fake_work.jobs] == [10, 7, 4, 1]
    assert [budget.seconds for _, budget in searcher.calls] == [10, 7, 4, 1]


def test_first_trial_is_started_even_without_time(path: Path, fake_work: FakeWork) -> None:
    """But a second search without time starts no other."""
    clock = Clock()
    with new_store(path) as store:
        assert len(run_search(store, ScriptedSearcher(proposals(9)), deadline=clock.deadline(0))) == 1
        assert fake_work.jobs[0].seconds == 0
        assert len(run_search(store, ScriptedSearcher(proposals(9)), deadline=clock.deadline(0))) == 1


def test_first_network_is_trained_if_none_can_finish_in_time(path: Path, fake_work: FakeWork) -> None:
    searcher = RandomSearcher(MorphSpace((GRAPH,)), RECIPE, Limits(), 0)
    with new_store(path) as store:
        trials = run_search(store, searcher, deadline=Clock().deadline(1e-3), guess=1.0)
    assert [t.id for t in trials] == [0]


# -- arguments of the searcher, jobs, and calls of the observer


def test_searcher_gets_all_trials_and_remaining_budget(path: Path, fake_work: FakeWork) -> None:
    searcher = ScriptedSearcher(proposals(3))
    with new_store(path) as store:
        trials = run_search(store, searcher, guess=1e-9, deadline=Clock().deadline(100))
    assert [history for history, _ in searcher.calls] == [tuple(trials[:i]) for i in range(4)]
    budgets = [budget for _, budget in searcher.calls]
    assert budgets[0] == Budget(100, None, 1e-9)
    assert budgets[1].seconds_per_flop == seconds_per_flop(trials[:1], 0)
    assert budgets[3].seconds_per_flop == seconds_per_flop(trials, 0)


def test_jobs_have_weights_of_start_and_seed_of_trial(path: Path, fake_work: FakeWork) -> None:
    wider = Wider("dense_1", 7)
    searcher = ScriptedSearcher([*proposals(2), Proposal(1, (wider,), RECIPE)])
    with new_store(path) as store:
        run_search(store, searcher, seed=5)
        second = store.network(1)
    jobs = fake_work.jobs
    assert [job.seed for job in jobs] == [trial_seed(5, id) for id in range(3)]
    assert [job.morphs for job in jobs] == [(), (), (wider,)]
    assert all(job.scored and job.recipe == RECIPE for job in jobs)
    start = jobs[2].start
    assert isinstance(start, Network)
    assert start.graph == proposals(2)[1].start
    assert has_weights(start, dict(second.weights))


def test_trial_seeds_are_distinct() -> None:
    seeds = [trial_seed(seed, id) for seed in (0, 1, 2, 2**40) for id in range(200)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_observer_is_called_in_order(path: Path) -> None:
    observer = RecordingObserver()
    with new_store(path) as store:
        run_search(store, ScriptedSearcher(proposals(2)), observer=observer)
    expected = [[("begins", i), ("epoch", 1), ("epoch", 2), ("ends", i)] for i in range(2)]
    assert observer.calls == [entry for trial in expected for entry in trial]


def test_observer_error_ends_search(path: Path) -> None:
    """The trial does not fail, but stays open and is continued later."""

    class Failing(RecordingObserver):
        def epoch_done(self, trial: Trial, outcome: Outcome) -> None:
            raise OSError("no space to write to")

    with new_store(path) as store:
        with pytest.raises(OSError, match="no space to write to"):
            run_search(store, ScriptedSearcher(proposals(2)), observer=Failing())
        assert [trial.outcome for trial in store.trials] == [None]
        assert run_search(store, ScriptedSearcher([]))[0].kept


# -- failures


def test_search_continues_after_failed_trials(path: Path, fake_work: FakeWork) -> None:
    outcomes = iter(
        [FINISHED, Outcome("failed", error="trace"), Outcome("oom"), Outcome("truncated", -1.0, 0.5), FINISHED]
    )
    fake_work.outcome_of = lambda _: next(outcomes)
    with new_store(path) as store:
        trials = run_search(store, ScriptedSearcher(proposals(5)))
    assert [t.outcome and t.outcome.status for t in trials] == ["finished", "failed", "oom", "truncated", "finished"]
    assert [t.kept for t in trials] == [True, False, False, True, True]


def test_exception_of_worker_fails_its_trial(path: Path, fake_work: FakeWork) -> None:
    """The job did not return an outcome: the exception is in the future."""

    def outcome_of(job: Job) -> Outcome:
        if len(fake_work.jobs) == 2:
            raise ConnectionResetError("the worker is gone")
        return FINISHED

    fake_work.outcome_of = outcome_of
    with new_store(path) as store:
        trials = run_search(store, ScriptedSearcher(proposals(3)))
    outcome = trials[1].outcome
    assert outcome is not None
    assert (outcome.status, outcome.error) == ("failed", "ConnectionResetError: the worker is gone")
    assert [t.kept for t in trials] == [True, False, True]


class UntriedStarts:
    """A searcher that proposes those of two starts that are not among the trials."""

    def ask(self, trials: Sequence[Trial], budget: Budget) -> Proposal | None:
        return next((p for p in proposals(2) if p.start not in [t.graph for t in trials]), None)


def test_invalid_first_proposal_raises(path: Path, fake_work: FakeWork) -> None:
    class Invalid:
        def ask(self, trials: Sequence[Trial], budget: Budget) -> Any:
            return 3

    with new_store(path) as store, pytest.raises(RunError, match="ask returns a Proposal or None, not 3"):
        run_search(store, Invalid())


class DuplicateTag(Deeper):
    """A morph with the tag of another class."""


INVALID_ANSWERS: dict[str, tuple[Callable[[], Any], str]] = {
    "searcher raises": (lambda: 1 / 0, "ZeroDivisionError: division by zero"),
    "not a proposal": (lambda: "deeper", "ask returns a Proposal or None, not 'deeper'"),
    "unknown trial": (lambda: Proposal(77, (), RECIPE), "starts from trial 77, which does not exist"),
    "invalid start": (lambda: Proposal("0", (), RECIPE), "must be a Graph or the id of a trial, not '0'"),  # type: ignore[arg-type]
    "not morphs": (lambda: Proposal(0, ("deeper",), RECIPE), "must be a tuple of Morphs, not .'deeper',."),  # type: ignore[arg-type]
    "not a tuple of morphs": (lambda: Proposal(0, Deeper("relu_3"), RECIPE), "must be a tuple of Morphs, not Deeper"),  # type: ignore[arg-type]
    "not a recipe": (lambda: Proposal(0, (), {"epochs": 3}), "must be a Recipe, not {'epochs': 3}"),  # type: ignore[arg-type]
    "morph does not fit": (lambda: Proposal(0, (Deeper("relu_99"),), RECIPE), "relu_99 is no activation of the graph"),
    "tag of another class": (
        lambda: Proposal(0, (DuplicateTag("relu_3"),), RECIPE),
        "DuplicateTag: its tag 'deeper' is that of .*Deeper",
    ),
    "morph cannot be stored": (lambda: Proposal(0, (Deeper("relu_3", kernel=3.5),), RECIPE), "a deeper has"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", INVALID_ANSWERS)
def test_failing_searcher_ends_search_and_keeps_trials(path: Path, fake_work: FakeWork, case: str) -> None:
    """The run can be resumed with another searcher."""
    answer, message = INVALID_ANSWERS[case]

    class FailsLater:
        def ask(self, trials: Sequence[Trial], budget: Budget) -> Any:
            return proposals(2)[len(trials)] if len(trials) < 2 else answer()

    with new_store(path) as store:
        with pytest.warns(UserWarning, match=f"the search ends, and can be continued with resume=True: .*{message}"):
            trials = run_search(store, FailsLater())
        assert [trial.kept for trial in trials] == [True, True]
        more = run_search(store, ScriptedSearcher([*proposals(2), Proposal(np.int64(0), (Deeper("relu_3"),), RECIPE)]))  # type: ignore[arg-type]
        assert [trial.parent for trial in more[:3]] == [None, None, 0]


def test_proposal_beyond_limits_fails_without_training(path: Path, fake_work: FakeWork) -> None:
    """User-defined searchers may ignore the limits."""
    small, large = sorted(proposals(2), key=lambda p: grow_proposal(p, {}).parameters)
    max_params = grow_proposal(small, {}).parameters
    with new_store(path) as store:
        trials = run_search(store, ScriptedSearcher([large, small]), limits=Limits(max_params=max_params))
    assert [t.kept for t in trials] == [False, True]
    assert len(fake_work.jobs) == 1
    outcome = trials[0].outcome
    assert outcome is not None
    assert outcome.status == "failed"
    assert f"parameters, at most {max_params} are allowed" in str(outcome.error)


def test_search_ends_after_repeated_proposals_beyond_limits(
    path: Path, fake_work: FakeWork, caplog: pytest.LogCaptureFixture
) -> None:
    class Repeating:
        def ask(self, trials: Sequence[Trial], budget: Budget) -> Proposal | None:
            return proposals(1)[0]

    with new_store(path) as store:
        trials = run_search(store, Repeating(), limits=Limits(max_params=1))
    assert len(trials) == MAX_REFUSED
    assert not fake_work.jobs
    assert f"the search ends: its last {MAX_REFUSED} networks exceeded the limits" in caplog.text


def test_why_of_proposal_is_stored_as_json(path: Path, fake_work: FakeWork) -> None:
    start = proposals(1)[0]
    why: Any = {"expected": np.float32(0.5), "nearest": np.array([1, 2]), "pair": (1, None), 3: "three"}
    with new_store(path) as store:
        trials = run_search(store, ScriptedSearcher([replace(start, why=why)]))
    assert trials[0].proposal.why == {"expected": 0.5, "nearest": [1, 2], "pair": [1, None], "3": "three"}
    assert load_run(path).trials == tuple(trials)
    for invalid in (math.nan, np.float64("inf"), [np.nan], object(), {1, 2}):
        with pytest.raises(ValueError, match="the why of a proposal must hold JSON values"):
            replace(start, why={"expected": invalid})


@pytest.mark.parametrize("outcome", [Outcome("failed", error="the worker is gone"), Outcome("diverged", epochs=1)])
@pytest.mark.parametrize(("failures", "expected"), [(2, 3), (5, 6), (99, MAX_FAILED_TRIALS)])
def test_starts_are_retried_if_all_trials_have_failed(
    path: Path, fake_work: FakeWork, failures: int, expected: int, outcome: Outcome
) -> None:
    """Failures may be due to chance; but after `MAX_FAILED_TRIALS` of them the search ends."""
    fake_work.outcome_of = lambda _: FINISHED if len(fake_work.jobs) > failures else outcome
    with new_store(path) as store:
        trials = run_search(store, UntriedStarts())
    assert len(trials) == expected
    assert [t.score is not None for t in trials] == [False] * (expected - 1) + [failures < 99]


def test_starts_that_ran_out_of_memory_are_not_retried(path: Path, fake_work: FakeWork) -> None:
    fake_work.outcome_of = lambda _: Outcome("oom", error="no room")
    with new_store(path) as store:
        assert len(run_search(store, UntriedStarts())) == 2


def test_network_that_does_not_fit_the_task_fails(path: Path) -> None:
    """Without a fake: its number of features is wrong; the next network is trained."""
    misfit = Proposal(mlp((9,), 2, width=3, depth=1), (), RECIPE)
    with new_store(path) as store:
        trials = run_search(store, ScriptedSearcher([misfit, *proposals(2)[1:]]))
    assert [t.outcome and t.outcome.status for t in trials] == ["failed", "finished"]


def test_running_trial_is_on_disk_without_outcome(path: Path, fake_work: FakeWork) -> None:
    unfinished: list[list[bool]] = []

    def outcome_of(job: Job) -> Outcome:
        unfinished.append([t.outcome is None for t in load_run(path).trials])
        return FINISHED

    fake_work.outcome_of = outcome_of
    with new_store(path) as store:
        run_search(store, ScriptedSearcher(proposals(2)))
    assert unfinished == [[True], [False, True]]


def test_weights_are_pruned_after_every_trial(path: Path, fake_work: FakeWork) -> None:
    """Not only at the end, when the disk may be full."""
    counts: list[int] = []

    class Counting(RecordingObserver):
        def trial_ends(self, trial: Trial) -> None:
            counts.append(len(list(path.glob("trials/*/weights.safetensors"))))

    with new_store(path) as store:
        run_search(store, ScriptedSearcher(proposals(5)), keep=1, observer=Counting())
    assert counts == [1] * 5


# -- resuming


def test_unfinished_trials_run_first(path: Path, fake_work: FakeWork) -> None:
    with new_store(path) as store:
        for i, proposal in enumerate(proposals(4)):
            graph = store.claim(proposal).graph
            if i in (0, 2):
                store.finish(i, FINISHED, weights(i, graph))
    searcher, observer = ScriptedSearcher(proposals(5)), RecordingObserver()
    before = file_contents(path)
    with resumed_store(path) as store:
        trials = run_search(store, searcher, seed=3, observer=observer)
    assert [entry for entry in observer.calls if entry[0] == "begins"] == [("begins", 1), ("begins", 3), ("begins", 4)]
    assert [job.seed for job in fake_work.jobs] == [trial_seed(3, 1), trial_seed(3, 3), trial_seed(3, 4)]
    assert all(history and all(t.outcome for t in history) for history, _ in searcher.calls)  # asked after them
    assert [t.outcome for t in trials] == [FINISHED] * 5
    after = file_contents(path)
    assert {name for name in before if before[name] != after.get(name)} <= {"holder"}, "existing files were changed"


class Interrupted(BaseException):
    """An interrupt, or the end of the process."""


@dataclass
class Interrupting(RecordingObserver):
    """Interrupts the search in the observer's `after`-th call."""

    after: int = 0

    def _check(self) -> None:
        if len(self.calls) == self.after:
            raise Interrupted

    def trial_begins(self, trial: Trial) -> None:
        super().trial_begins(trial)
        self._check()

    def epoch_done(self, trial: Trial, outcome: Outcome) -> None:
        super().epoch_done(trial, outcome)
        self._check()

    def trial_ends(self, trial: Trial) -> None:
        super().trial_ends(trial)
        self._check()


@pytest.mark.parametrize("after", [1, 2, 4, 9, 10, 12, 15])
def test_resumed_search_equals_uninterrupted_search(tmp_path: Path, after: int) -> None:
    """Networks are trained without a fake, and their weights are bitwise equal."""
    starts = (mlp((4,), 2, width=3, depth=1), mlp((4,), 2, width=2, depth=2))
    searcher = RandomSearcher(MorphSpace(starts), RECIPE, Limits(max_params=2000), seed=7)
    with new_store(tmp_path / "uninterrupted") as store:
        expected = run_search(store, searcher, seed=7, max_trials=5)
    assert len(expected) == 5
    assert any(t.proposal.morphs for t in expected)
    with new_store(tmp_path / "resumed") as store, pytest.raises(Interrupted):
        run_search(store, searcher, seed=7, max_trials=5, observer=Interrupting(after=after))
    with resumed_store(tmp_path / "resumed") as store:
        assert len(store.trials) < 5 or store.trials[-1].outcome is None
        found = run_search(store, searcher, seed=7, max_trials=5)
    assert comparable_trials(found) == comparable_trials(expected)
    one, other = load_run(tmp_path / "uninterrupted"), load_run(tmp_path / "resumed")
    for trial in expected:
        assert has_weights(one.load_model_by_id(trial.id), dict(other.load_model_by_id(trial.id).weights))


def test_search_is_determined_by_its_seed(tmp_path: Path) -> None:
    searcher = RandomSearcher(MorphSpace((GRAPH,)), RECIPE, Limits(max_params=2000), seed=1)
    found = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        with new_store(tmp_path / name) as store:
            found.append(comparable_trials(run_search(store, searcher, seed=seed, max_trials=3)))
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_damaged_weights_of_parent_fail_the_trial(path: Path, fake_work: FakeWork) -> None:
    with new_store(path) as store:
        run_search(store, ScriptedSearcher(proposals(2)))
    (path / "trials" / "00000" / "weights.safetensors").write_bytes(b"garbage")
    searcher = ScriptedSearcher([*proposals(2), Proposal(0, (), RECIPE), Proposal(1, (), RECIPE)])
    with resumed_store(path) as store:
        trials = run_search(store, searcher)
    assert [t.outcome and t.outcome.status for t in trials] == ["finished", "finished", "failed", "finished"]


def test_open_trial_stays_open_without_time(path: Path, fake_work: FakeWork) -> None:
    fake_work.outcome_of = lambda job: Outcome("truncated") if not job.seconds else FINISHED
    with new_store(path) as store:
        run_search(store, ScriptedSearcher(proposals(1)))
        store.claim(proposals(2)[1])
    with resumed_store(path) as store:
        assert run_search(store, ScriptedSearcher([]), deadline=Clock().deadline(0))[1].outcome is None


def test_search_does_not_resume_a_final_training(path: Path, fake_work: FakeWork) -> None:
    with new_store(path) as store:
        run_search(store, ScriptedSearcher(proposals(1)))
        store.claim(Proposal(0, (), RECIPE, {"final": "everything", "of": 0, "score_of": 0}))
    fake_work.jobs.clear()
    with resumed_store(path) as store:
        run_search(store, ScriptedSearcher([]))
    assert not fake_work.jobs


def test_searcher_does_not_get_final_trainings(path: Path, fake_work: FakeWork) -> None:
    """They may have used the held-out examples of the search, if the data were split again."""
    with new_store(path) as store:
        run_search(store, ScriptedSearcher(proposals(2)))
        final = store.claim(Proposal(0, (), RECIPE, {"final": "everything", "of": 0, "score_of": 0}))
        store.finish(final.id, FINISHED, weights())
        searcher = ScriptedSearcher(proposals(9))
        trials = run_search(store, searcher, max_trials=4)
    assert [trial.id for trial in trials if not trial.final] == [0, 1, 3, 4]
    assert all(not trial.final for history, _ in searcher.calls for trial in history)
    assert [budget.trials for _, budget in searcher.calls] == [2, 1]


def test_slow_searcher_is_not_asked_shortly_before_deadline(path: Path, fake_work: FakeWork) -> None:
    clock = Clock()

    class Slow(ScriptedSearcher):
        def ask(self, trials: Sequence[Trial], budget: Budget) -> Proposal | None:
            clock.now += 4
            return super().ask(trials, budget)

    searcher = Slow(proposals(99))
    with new_store(path) as store:
        run_search(store, searcher, deadline=clock.deadline(10))
    assert [budget.seconds for _, budget in searcher.calls] == [10, 6]


# -- several workers


@dataclass
class OrderedWork:
    """Replaces `work`: the first two jobs must run at the same time, and jobs end in the given order."""

    order: Sequence[int]
    jobs: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    ended: list[threading.Event] = field(default_factory=lambda: [threading.Event() for _ in range(20)])
    first_two: threading.Barrier = field(default_factory=lambda: threading.Barrier(2))

    def __call__(self, job: Job, task: Task, each_epoch: object = None) -> tuple[Outcome, Weights]:
        with self.lock:
            number, self.jobs = self.jobs, self.jobs + 1
        if number < 2:
            self.first_two.wait(30)
        position = self.order.index(number)
        if position:
            assert self.ended[position - 1].wait(30)
        self.ended[position].set()
        assert isinstance(job.start, type(GRAPH))
        return replace(FINISHED, score=-float(number)), weights(number, job.start)


def test_searcher_gets_running_trials(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searcher, threads = ScriptedSearcher(proposals(6)), ThreadExecutor(TASK)
    monkeypatch.setattr(executors_module, "work", OrderedWork(range(6)))
    try:
        with new_store(path) as store:
            trials = run_search(store, searcher, executor=threads, max_trials=6)
    finally:
        threads.shutdown()
    assert len(trials) == 6
    assert all(t.outcome is not None for t in trials)
    running = [sum(t.outcome is None for t in history) for history, _ in searcher.calls]
    assert running[:2] == [0, 1]  # the second proposal is requested while the first trial runs
    assert set(running[1:]) <= {0, 1}
    assert 1 in running[2:]
    assert [len(history) for history, _ in searcher.calls] == list(range(6))
    assert [budget.trials for _, budget in searcher.calls] == [6, 5, 4, 3, 2, 1]


def test_trials_ending_out_of_order_keep_their_results(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = ThreadExecutor(TASK)
    monkeypatch.setattr(executors_module, "work", OrderedWork([1, 2, 0, 3]))
    try:
        with new_store(path) as store:
            trials = run_search(store, ScriptedSearcher(proposals(4)), executor=threads)
            for trial in trials:
                assert trial.score is not None
                assert has_weights(store.network(trial.id), weights(int(-trial.score), trial.graph))
    finally:
        threads.shutdown()
    assert sorted(-(t.score or 0) for t in trials) == [0, 1, 2, 3]


class LossyExecutor(SerialExecutor):
    """The future of the second job has an exception."""

    submitted = 0

    def submit(self, job: Job, each_epoch: EachEpoch | None = None) -> Future[Result]:
        self.submitted += 1
        if self.submitted == 2:
            future: Future[Result] = Future()
            future.set_exception(RuntimeError("the machine is gone"))
            return future
        return super().submit(job, each_epoch)


def test_job_lost_by_executor_fails_its_trial(path: Path, fake_work: FakeWork) -> None:
    with new_store(path) as store:
        trials = run_search(store, ScriptedSearcher(proposals(3)), executor=LossyExecutor(TASK))
    assert [t.outcome and t.outcome.status for t in trials] == ["finished", "failed", "finished"]
    assert len(fake_work.jobs) == 2


# -- deciding on horizontal flips


UNDECIDED = Recipe(augment=Augment(shift=0.1, flip=None))


def scored_trial(metric: float | None, mirrored: float | None, id: int = 0, examples: int = 10_000) -> Trial:
    """A trial with these metrics on upright and on mirrored images."""
    score = None if metric is None else -0.5
    outcome = Outcome("finished", score, metric, upright=metric, mirrored=mirrored, examples=examples)
    return Trial(id, Proposal(GRAPH, (), UNDECIDED), GRAPH, outcome, True)


@pytest.mark.parametrize(
    ("trials", "flip"),
    [
        ([], None),
        ([Trial(0, Proposal(GRAPH, (), UNDECIDED), GRAPH)], None),
        ([scored_trial(0.9, 0.88)], True),  # about as good on mirrored images
        ([scored_trial(0.9, 0.95)], True),
        ([scored_trial(0.9, 0.86)], False),  # 4 points worse
        ([scored_trial(0.55, 0.5, examples=900)], True),  # 5 points worse, which may be chance with 900 images
        ([scored_trial(0.9, 0.5, examples=50)], False),
        ([scored_trial(0.8, 11 / 15, examples=15)], True),  # one of 15 images more
        ([scored_trial(0.8, 10 / 15, examples=15)], False),  # two more, which may be chance, but flips may cost more
        ([scored_trial(1.0, 1.0, examples=1)], True),
        ([scored_trial(0.9, 0.1)], False),
        ([scored_trial(0.39, 0.39)], None),  # not good enough: less than 30 points above the baseline
        ([scored_trial(0.41, 0.41)], True),
        # the first that is good enough decides
        ([scored_trial(0.2, 0.2), scored_trial(0.8, 0.2, 1), scored_trial(0.9, 0.9, 2)], False),
        ([scored_trial(None, None), scored_trial(0.9, None, 1)], None),
        ([Trial(0, Proposal(GRAPH, (), UNDECIDED), GRAPH, Outcome("failed"))], None),
    ],
)
def test_flip_is_decided_by_first_good_enough_network(trials: list[Trial], flip: bool | None) -> None:
    assert decide_flip(UNDECIDED, trials, 0.1) == replace(UNDECIDED, augment=Augment(shift=0.1, flip=flip))


def test_flip_decision_with_high_baseline() -> None:
    """A network is good enough halfway from the baseline to 1."""
    assert decide_flip(UNDECIDED, [scored_trial(0.94, 0.94)], 0.9).augment.flip is None
    assert decide_flip(UNDECIDED, [scored_trial(0.96, 0.96)], 0.9).augment.flip is True


@pytest.mark.parametrize("flip", [True, False])
def test_decided_flip_is_not_changed(flip: bool) -> None:
    recipe = Recipe(augment=Augment(flip=flip))
    assert decide_flip(recipe, [scored_trial(0.9, 0.1), scored_trial(0.9, 0.9)], 0.1) == recipe


def test_search_decides_flip_for_later_trials(path: Path, fake_work: FakeWork) -> None:
    evaluated = replace(FINISHED, upright=FINISHED.metric, mirrored=0.8)
    fake_work.outcome_of = lambda _: replace(evaluated, mirrored=None) if len(fake_work.jobs) == 1 else evaluated
    given = [replace(proposal, recipe=UNDECIDED) for proposal in proposals(4)]
    with new_store(path) as store:
        trials = run_search(store, ScriptedSearcher(given), baseline_metric=0.1)
    assert [job.recipe.augment.flip for job in fake_work.jobs] == [None, None, True, True]
    assert [t.proposal.recipe.augment.flip for t in trials] == [None, None, True, True]


# -- seconds per FLOP


def timed_trial(id: int, seconds_per_flop: float, **changes: Any) -> Trial:
    """A trial whose epochs took so many seconds per FLOP of `Graph.work`."""
    outcome = replace(FINISHED, seconds=seconds_per_flop * 4 * GRAPH.work, epochs=4, **changes)
    return Trial(id, Proposal(GRAPH, (), RECIPE), GRAPH, outcome, True)


def test_seconds_per_flop_is_the_guess_without_finished_trials() -> None:
    running = Trial(0, Proposal(GRAPH, (), RECIPE), GRAPH)
    assert seconds_per_flop([], 0.5) == 0.5
    unfinished = [running, timed_trial(1, 9.0, status="truncated"), timed_trial(2, 9.0, status="diverged")]
    assert seconds_per_flop(unfinished, 0.5) == 0.5
    assert seconds_per_flop([timed_trial(0, 2.0)], 0.5) == pytest.approx(2.0)


def test_seconds_per_flop_is_median_of_last_nine_trials() -> None:
    measured = [100.0] * 20 + [1.0, 50.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    assert seconds_per_flop([timed_trial(i, value) for i, value in enumerate(measured)], 0.5) == pytest.approx(5.0)


def test_seconds_per_flop_ignores_final_trainings() -> None:
    final = replace(timed_trial(1, 9.0), proposal=Proposal(0, (), RECIPE, {"final": "everything"}))
    assert seconds_per_flop([timed_trial(0, 2.0), final, replace(final, id=2)], 0.5) == pytest.approx(2.0)


def test_predicted_seconds_are_those_of_the_measured_trial() -> None:
    trial = timed_trial(0, 3e-9)
    assert trial.outcome is not None
    budget = Budget(10, None, seconds_per_flop([trial], 0))
    assert budget.predict(GRAPH, 4) == pytest.approx(trial.outcome.seconds)
