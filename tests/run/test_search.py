"""The loop of a search: when it ends, and that no results are lost."""

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
from morphnas.run import executors as module
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
    GOOD,
    GRAPH,
    RECIPE,
    Notes,
    Script,
    Threads,
    Workers,
    comparable,
    files,
    proposals,
    resumed,
    same_weights,
    store_of,
    weights,
)
from tests.train.tasks import Clock, blobs

TASK = blobs()
NEVER = Clock().deadline(math.inf)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Workers:
    """Instead of training."""
    made = Workers()
    monkeypatch.setattr(module, "work", made)
    return made


def run(store: Store, searcher: Any, *, executor: Any = None, deadline: Any = NEVER, **settings: Any) -> list[Trial]:
    Search(store, searcher, executor or SerialExecutor(TASK), deadline, **settings).run()
    return store.trials


# -- what a stop cut short


def cut(epochs: int) -> Outcome:
    return replace(GOOD, status="truncated", epochs=epochs, error=STOPPED, score=-1.0 - epochs)


@pytest.mark.parametrize(
    ("came", "replaced"),
    [
        (replace(GOOD, epochs=3), True), (cut(3), True), (cut(2), True), (cut(1), False),
        (replace(GOOD, status="truncated", epochs=1), False), (Outcome("failed", error="no"), False),
    ],
)  # fmt: skip
def test_what_a_stop_cut_short_is_trained_again_and_stays_where_nothing_better_comes(
    path: Path, monkeypatch: pytest.MonkeyPatch, came: Outcome, replaced: bool
) -> None:
    monkeypatch.setattr(module, "work", lambda *_, **__: (came, None if came.status == "failed" else weights(7)))
    with store_of(path) as store:
        store.claim(Proposal(GRAPH, (), RECIPE))
        before = store.finish(0, replace(cut(2), score=-9.0), weights(3))
        store.update_about(best=0, final=0, members={"0": 1.0})
    with resumed(path) as store:
        (trial,) = run(store, Script([]))
        assert same_weights(store.network(0), weights(7 if replaced else 3))
        assert (trial == before) is not replaced
    again = load_run(path)
    assert again.trials == (trial,)
    assert again.about["final"] == (None if replaced else 0)
    assert again.get_best_model_id() == 0


def test_what_a_stop_cut_short_is_there_while_it_is_trained_again(path: Path) -> None:
    with store_of(path) as store:
        store.claim(Proposal(GRAPH, (), RECIPE))
        before = store.finish(0, cut(2), weights(3))
        store.reopen(0)
        assert store.trial(0).outcome is None
        assert load_run(path).trials == (before,), "a driver that dies now has lost nothing"
        store.restore_reopened()
        assert store.trials == [before]


def test_what_a_stop_cut_short_can_be_gone_on_with_though_few_weights_are_kept(path: Path, workers: Workers) -> None:
    """The weights of its parent are kept for that."""
    with store_of(path) as store:
        for i, proposal in enumerate(proposals(3)):
            store.claim(proposal)
            store.finish(i, replace(GOOD, score=-float(i)), weights(i, proposal.start))  # type: ignore[arg-type]
        store.claim(Proposal(2, (Deeper("relu_3"),), RECIPE))
        store.finish(3, cut(1), weights(3, store.trial(3).graph))
        prune(store, 1)
        assert [trial.kept for trial in store.trials] == [True, False, True, False]
    with resumed(path) as store:
        trial = run(store, Script([]), keep=1)[3]
        assert trial.outcome is not None
        assert trial.outcome.status == "finished"


def test_what_was_grown_from_what_a_stop_cut_short_keeps_its_start(path: Path, workers: Workers) -> None:
    with store_of(path) as store:
        store.claim(Proposal(GRAPH, (), RECIPE))
        before = store.finish(0, cut(1), weights(3))
        store.claim(Proposal(0, (Deeper("relu_3"),), RECIPE))
        store.finish(1, GOOD, weights(4, store.trial(1).graph))
    with resumed(path) as store:
        assert run(store, Script([]))[0] == before


# -- when it ends


def test_it_ends_when_the_searcher_has_nothing_left(path: Path, workers: Workers) -> None:
    with store_of(path) as store:
        trials = run(store, Script(proposals(4)))
    assert [t.id for t in trials] == [0, 1, 2, 3]
    assert all(t.outcome == GOOD and t.kept for t in trials)
    assert list(load_run(path).trials) == trials


@pytest.mark.parametrize("most", [1, 3])
def test_it_ends_after_so_many_trials(path: Path, workers: Workers, most: int) -> None:
    script = Script(proposals(9))
    with store_of(path) as store:
        assert len(run(store, script, max_trials=most)) == most
        assert [left.trials for _, left in script.asked] == list(range(most, 0, -1))
    with resumed(path) as store:
        assert len(run(store, script, max_trials=most)) == most
        assert len(run(store, script, max_trials=most + 2)) == most + 2


def test_it_ends_at_the_deadline(path: Path, workers: Workers) -> None:
    clock, script = Clock(), Script(proposals(99))

    def ends(job: Job) -> Outcome:
        clock.now += 3
        return GOOD

    workers.ends = ends
    with store_of(path) as store:
        trials = run(store, script, deadline=clock.deadline(10))
    assert len(trials) == 4
    assert [job.seconds for job in workers.jobs] == [10, 7, 4, 1]
    assert [left.seconds for _, left in script.asked] == [10, 7, 4, 1]


def test_one_trial_is_begun_however_short_the_time(path: Path, workers: Workers) -> None:
    clock = Clock()
    with store_of(path) as store:
        assert len(run(store, Script(proposals(9)), deadline=clock.deadline(0))) == 1
        assert workers.jobs[0].seconds == 0
        assert len(run(store, Script(proposals(9)), deadline=clock.deadline(0))) == 1


def test_the_limits_of_the_time_do_not_keep_it_from_a_first_network(path: Path, workers: Workers) -> None:
    searcher = RandomSearcher(MorphSpace((GRAPH,)), RECIPE, Limits(), 0)
    with store_of(path) as store:
        trials = run(store, searcher, deadline=Clock().deadline(1e-3), guess=1.0)
    assert [t.id for t in trials] == [0]


# -- what the searcher is told, and what the workers get


def test_the_searcher_is_told_all_trials_and_what_is_left(path: Path, workers: Workers) -> None:
    script = Script(proposals(3))
    with store_of(path) as store:
        trials = run(store, script, guess=1e-9, deadline=Clock().deadline(100))
    assert [asked for asked, _ in script.asked] == [tuple(trials[:i]) for i in range(4)]
    lefts = [left for _, left in script.asked]
    assert lefts[0] == Budget(100, None, 1e-9)
    assert lefts[1].seconds_per_flop == seconds_per_flop(trials[:1], 0)
    assert lefts[3].seconds_per_flop == seconds_per_flop(trials, 0)


def test_workers_get_the_weights_of_the_start_and_a_seed_of_the_trial(path: Path, workers: Workers) -> None:
    wider = Wider("dense_1", 7)
    script = Script([*proposals(2), Proposal(1, (wider,), RECIPE)])
    with store_of(path) as store:
        run(store, script, seed=5)
        second = store.network(1)
    jobs = workers.jobs
    assert [job.seed for job in jobs] == [trial_seed(5, id) for id in range(3)]
    assert [job.morphs for job in jobs] == [(), (), (wider,)]
    assert all(job.scored and job.recipe == RECIPE for job in jobs)
    start = jobs[2].start
    assert isinstance(start, Network)
    assert start.graph == proposals(2)[1].start
    assert same_weights(start, dict(second.weights))


def test_trials_have_seeds_of_their_own() -> None:
    seeds = [trial_seed(seed, id) for seed in (0, 1, 2, 2**40) for id in range(200)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_observer_is_told_in_order(path: Path) -> None:
    notes = Notes()
    with store_of(path) as store:
        run(store, Script(proposals(2)), observer=notes)
    expected = [[("begins", i), ("epoch", 1), ("epoch", 2), ("ends", i)] for i in range(2)]
    assert notes.told == [entry for trial in expected for entry in trial]


def test_what_the_observer_raises_ends_the_search(path: Path) -> None:
    """It is not a failure of the trial, which is continued later."""

    class Full(Notes):
        def epoch_done(self, trial: Trial, outcome: Outcome) -> None:
            raise OSError("no space to write to")

    with store_of(path) as store:
        with pytest.raises(OSError, match="no space to write to"):
            run(store, Script(proposals(2)), observer=Full())
        assert [trial.outcome for trial in store.trials] == [None]
        assert run(store, Script([]))[0].kept


# -- failures


def test_a_failure_is_a_trial_and_the_search_goes_on(path: Path, workers: Workers) -> None:
    ends = iter([GOOD, Outcome("failed", error="trace"), Outcome("oom"), Outcome("truncated", -1.0, 0.5), GOOD])
    workers.ends = lambda _: next(ends)
    with store_of(path) as store:
        trials = run(store, Script(proposals(5)))
    assert [t.outcome and t.outcome.status for t in trials] == ["finished", "failed", "oom", "truncated", "finished"]
    assert [t.kept for t in trials] == [True, False, False, True, True]


def test_a_worker_that_dies_is_a_failed_trial(path: Path, workers: Workers) -> None:
    """The worker failed and not the job, so the future has an exception."""

    def ends(job: Job) -> Outcome:
        if len(workers.jobs) == 2:
            raise ConnectionResetError("the worker is gone")
        return GOOD

    workers.ends = ends
    with store_of(path) as store:
        trials = run(store, Script(proposals(3)))
    outcome = trials[1].outcome
    assert outcome is not None
    assert (outcome.status, outcome.error) == ("failed", "ConnectionResetError: the worker is gone")
    assert [t.kept for t in trials] == [True, False, True]


@dataclass
class Starts:
    """Proposes what has not been tried, like all searchers of morphnas."""

    seen: int = 0

    def ask(self, trials: Sequence[Trial], left: Budget) -> Proposal | None:
        self.seen += 1
        return next((p for p in proposals(2) if p.start not in [t.graph for t in trials]), None)


def test_a_searcher_that_answers_with_something_else_is_told(path: Path, workers: Workers) -> None:
    class Wrong:
        def ask(self, trials: Sequence[Trial], left: Budget) -> Any:
            return 3

    with store_of(path) as store, pytest.raises(RunError, match="ask returns a Proposal or None, not 3"):
        run(store, Wrong())


class Tagless(Deeper):
    """Its tag is that of another kind of morph."""


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "raises": (lambda: 1 / 0, "ZeroDivisionError: division by zero"),
    "no proposal": (lambda: "deeper", "ask returns a Proposal or None, not 'deeper'"),
    "no trial": (lambda: Proposal(77, (), RECIPE), "starts from trial 77, which is not there"),
    "no start": (lambda: Proposal("0", (), RECIPE), "the start of a proposal must be a Graph or the id of a trial"),  # type: ignore[arg-type]
    "no morphs": (lambda: Proposal(0, ("deeper",), RECIPE), "must be a tuple of Morphs, not .'deeper',."),  # type: ignore[arg-type]
    "one morph": (lambda: Proposal(0, Deeper("relu_3"), RECIPE), "must be a tuple of Morphs, not Deeper"),  # type: ignore[arg-type]
    "no recipe": (lambda: Proposal(0, (), {"epochs": 3}), "must be a Recipe, not {'epochs': 3}"),  # type: ignore[arg-type]
    "does not fit": (lambda: Proposal(0, (Deeper("relu_99"),), RECIPE), "relu_99 is no activation of the graph"),
    "another's tag": (
        lambda: Proposal(0, (Tagless("relu_3"),), RECIPE),
        "Tagless: its tag 'deeper' is that of .*Deeper",
    ),
    "cannot be stored": (lambda: Proposal(0, (Deeper("relu_3", kernel=3.5),), RECIPE), "a deeper has"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("way", WRONG)
def test_a_searcher_that_fails_ends_the_search_and_costs_no_network(path: Path, workers: Workers, way: str) -> None:
    """A user-defined searcher may; with resume=True another one continues."""
    answer, words = WRONG[way]

    class Late:
        def ask(self, trials: Sequence[Trial], left: Budget) -> Any:
            return proposals(2)[len(trials)] if len(trials) < 2 else answer()

    with store_of(path) as store:
        with pytest.warns(UserWarning, match=f"the search ends, with resume=True it can go on: .*{words}"):
            trials = run(store, Late())
        assert [trial.kept for trial in trials] == [True, True]
        more = run(store, Script([*proposals(2), Proposal(np.int64(0), (Deeper("relu_3"),), RECIPE)]))  # type: ignore[arg-type]
        assert [trial.parent for trial in more[:3]] == [None, None, 0]


def test_networks_beyond_the_limits_are_not_trained_whoever_proposes_them(path: Path, workers: Workers) -> None:
    """User-defined searchers may ignore the limits; their other proposals are trained."""
    small, large = sorted((p for p in proposals(2)), key=lambda p: grow_proposal(p, {}).parameters)
    most = grow_proposal(small, {}).parameters
    with store_of(path) as store:
        trials = run(store, Script([large, small]), limits=Limits(max_params=most))
    assert [t.kept for t in trials] == [False, True]
    assert len(workers.jobs) == 1
    outcome = trials[0].outcome
    assert outcome is not None
    assert outcome.status == "failed"
    assert f"parameters, at most {most} are allowed" in str(outcome.error)


def test_a_searcher_that_proposes_nothing_but_such_networks_ends_the_search(
    path: Path, workers: Workers, caplog: pytest.LogCaptureFixture
) -> None:
    class Stubborn:
        def ask(self, trials: Sequence[Trial], left: Budget) -> Proposal | None:
            return proposals(1)[0]

    with store_of(path) as store:
        trials = run(store, Stubborn(), limits=Limits(max_params=1))
    assert len(trials) == MAX_REFUSED
    assert not workers.jobs
    assert f"the search ends: its last {MAX_REFUSED} networks exceeded the limits" in caplog.text


def test_what_a_searcher_says_of_why_is_kept_or_refused_at_once(path: Path, workers: Workers) -> None:
    start = proposals(1)[0]
    why: Any = {"expected": np.float32(0.5), "nearest": np.array([1, 2]), "pair": (1, None), 3: "three"}
    with store_of(path) as store:
        trials = run(store, Script([replace(start, why=why)]))
    assert trials[0].proposal.why == {"expected": 0.5, "nearest": [1, 2], "pair": [1, None], "3": "three"}
    assert load_run(path).trials == tuple(trials)
    for wrong in (math.nan, np.float64("inf"), [np.nan], object(), {1, 2}):
        with pytest.raises(ValueError, match="the why of a proposal must hold JSON values"):
            replace(start, why={"expected": wrong})


@pytest.mark.parametrize("what", [Outcome("failed", error="the worker is gone"), Outcome("diverged", epochs=1)])
@pytest.mark.parametrize(("lost", "expected"), [(2, 3), (5, 6), (99, MAX_FAILED_TRIALS)])
def test_starts_are_tried_again_when_all_have_failed(
    path: Path, workers: Workers, lost: int, expected: int, what: Outcome
) -> None:
    """Failures may be due to workers, or chance; but a search in which all trials fail ends."""
    workers.ends = lambda _: GOOD if len(workers.jobs) > lost else what
    with store_of(path) as store:
        trials = run(store, Starts())
    assert len(trials) == expected
    assert [t.score is not None for t in trials] == [False] * (expected - 1) + [lost < 99]


def test_starts_that_no_memory_was_enough_for_are_not_tried_again(path: Path, workers: Workers) -> None:
    workers.ends = lambda _: Outcome("oom", error="no room")
    with store_of(path) as store:
        assert len(run(store, Starts())) == 2


def test_real_failures_are_trials_too(path: Path) -> None:
    """A network for other features than the task has, and then one for its own."""
    wrong = Proposal(mlp((9,), 2, width=3, depth=1), (), RECIPE)
    with store_of(path) as store:
        trials = run(store, Script([wrong, *proposals(2)[1:]]))
    assert [t.outcome and t.outcome.status for t in trials] == ["failed", "finished"]


def test_an_unfinished_trial_is_on_disk_while_it_runs(path: Path, workers: Workers) -> None:
    seen: list[list[bool]] = []

    def ends(job: Job) -> Outcome:
        seen.append([t.outcome is None for t in load_run(path).trials])
        return GOOD

    workers.ends = ends
    with store_of(path) as store:
        run(store, Script(proposals(2)))
    assert seen == [[True], [False, True]]


# -- going on


def test_claimed_and_unfinished_trials_come_first(path: Path, workers: Workers) -> None:
    with store_of(path) as store:
        for i, proposal in enumerate(proposals(4)):
            store.claim(proposal)
            if i in (0, 2):
                store.finish(i, GOOD, weights(i, proposal.start))  # type: ignore[arg-type]
    script, notes = Script(proposals(5)), Notes()
    before = files(path)
    with resumed(path) as store:
        trials = run(store, script, seed=3, observer=notes)
    assert [entry for entry in notes.told if entry[0] == "begins"] == [("begins", 1), ("begins", 3), ("begins", 4)]
    assert [job.seed for job in workers.jobs] == [trial_seed(3, 1), trial_seed(3, 3), trial_seed(3, 4)]
    assert all(asked[0] and all(t.outcome for t in asked[0]) for asked in script.asked)  # not before they are done
    assert [t.outcome for t in trials] == [GOOD] * 5
    after = files(path)
    assert {name for name in before if before[name] != after.get(name)} <= {"holder"}


class Stop(BaseException):
    """An interrupt, or the end of the process."""


@dataclass
class Interrupting(Notes):
    """Interrupts the search after so many notifications."""

    after: int = 0

    def _told(self) -> None:
        if len(self.told) == self.after:
            raise Stop

    def trial_begins(self, trial: Trial) -> None:
        super().trial_begins(trial)
        self._told()

    def epoch_done(self, trial: Trial, outcome: Outcome) -> None:
        super().epoch_done(trial, outcome)
        self._told()

    def trial_ends(self, trial: Trial) -> None:
        super().trial_ends(trial)
        self._told()


@pytest.mark.parametrize("after", [1, 2, 4, 9, 10, 12, 15])
def test_a_search_that_is_broken_off_and_resumed_is_the_unbroken_one(tmp_path: Path, after: int) -> None:
    """Networks are really trained: the weights are the same to the last bit."""
    starts = (mlp((4,), 2, width=3, depth=1), mlp((4,), 2, width=2, depth=2))
    searcher = RandomSearcher(MorphSpace(starts), RECIPE, Limits(max_params=2000), seed=7)
    with store_of(tmp_path / "unbroken") as store:
        expected = run(store, searcher, seed=7, max_trials=5)
    assert len(expected) == 5
    assert any(t.proposal.morphs for t in expected)
    with store_of(tmp_path / "broken") as store, pytest.raises(Stop):
        run(store, searcher, seed=7, max_trials=5, observer=Interrupting(after=after))
    with resumed(tmp_path / "broken") as store:
        assert len(store.trials) < 5 or store.trials[-1].outcome is None
        found = run(store, searcher, seed=7, max_trials=5)
    assert comparable(found) == comparable(expected)
    one, other = load_run(tmp_path / "unbroken"), load_run(tmp_path / "broken")
    for trial in expected:
        assert same_weights(one.load_model_by_id(trial.id), dict(other.load_model_by_id(trial.id).weights))


def test_equal_seeds_search_alike_and_others_do_not(tmp_path: Path) -> None:
    searcher = RandomSearcher(MorphSpace((GRAPH,)), RECIPE, Limits(max_params=2000), seed=1)
    found = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        with store_of(tmp_path / name) as store:
            found.append(comparable(run(store, searcher, seed=seed, max_trials=3)))
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_damaged_weights_of_a_start_are_a_failed_trial(path: Path, workers: Workers) -> None:
    with store_of(path) as store:
        run(store, Script(proposals(2)))
    (path / "trials" / "00000" / "weights.safetensors").write_bytes(b"garbage")
    script = Script([*proposals(2), Proposal(0, (), RECIPE), Proposal(1, (), RECIPE)])
    with resumed(path) as store:
        trials = run(store, script)
    assert [t.outcome and t.outcome.status for t in trials] == ["finished", "finished", "failed", "finished"]


def test_a_trial_that_waits_keeps_waiting_when_there_is_no_time(path: Path, workers: Workers) -> None:
    workers.ends = lambda job: Outcome("truncated") if not job.seconds else GOOD
    with store_of(path) as store:
        run(store, Script(proposals(1)))
        store.claim(proposals(2)[1])
    with resumed(path) as store:
        assert run(store, Script([]), deadline=Clock().deadline(0))[1].outcome is None


def test_a_final_training_that_was_broken_off_is_none_of_the_searchs(path: Path, workers: Workers) -> None:
    with store_of(path) as store:
        run(store, Script(proposals(1)))
        store.claim(Proposal(0, (), RECIPE, {"final": "everything", "of": 0, "score_of": 0}))
    workers.jobs.clear()
    with resumed(path) as store:
        run(store, Script([]))
    assert not workers.jobs


def test_searchers_know_of_no_final_trainings(path: Path, workers: Workers) -> None:
    """These may have used the examples that networks are scored on, if the data were split again."""
    with store_of(path) as store:
        run(store, Script(proposals(2)))
        final = store.claim(Proposal(0, (), RECIPE, {"final": "everything", "of": 0, "score_of": 0}))
        store.finish(final.id, GOOD, weights())
        script = Script(proposals(9))
        trials = run(store, script, max_trials=4)
    assert [trial.id for trial in trials if not trial.final] == [0, 1, 3, 4]
    assert all(not trial.final for asked, _ in script.asked for trial in asked)
    assert [left.trials for _, left in script.asked] == [2, 1]


def test_nothing_is_asked_for_that_would_come_too_late(path: Path, workers: Workers) -> None:
    clock, asked = Clock(), []

    class Slow(Script):
        def ask(self, trials: Any, left: Budget) -> Proposal | None:
            asked.append(left.seconds)
            clock.now += 4
            return super().ask(trials, left)

    with store_of(path) as store:
        run(store, Slow(proposals(99)), deadline=clock.deadline(10))
    assert asked == [10, 6]


# -- several workers


@dataclass
class Together:
    """In place of `work`: two jobs at a time must run at once, and end in the order given."""

    ends: Sequence[int]
    jobs: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    turns: list[threading.Event] = field(default_factory=lambda: [threading.Event() for _ in range(20)])
    both: threading.Barrier = field(default_factory=lambda: threading.Barrier(2))

    def __call__(self, job: Job, task: Task, each_epoch: object = None) -> tuple[Outcome, Weights]:
        with self.lock:
            number, self.jobs = self.jobs, self.jobs + 1
        if number < 2:
            self.both.wait(30)
        turn = self.ends.index(number)
        if turn:
            assert self.turns[turn - 1].wait(30)
        self.turns[turn].set()
        assert isinstance(job.start, type(GRAPH))
        return replace(GOOD, score=-float(number)), weights(number, job.start)


def test_running_trials_are_shown_to_the_searcher(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, threads = Script(proposals(6)), Threads(TASK)
    monkeypatch.setattr(module, "work", Together(range(6)))
    try:
        with store_of(path) as store:
            trials = run(store, script, executor=threads, max_trials=6)
    finally:
        threads.shutdown()
    assert len(trials) == 6
    assert all(t.outcome is not None for t in trials)
    running = [[t.outcome is None for t in asked].count(True) for asked, _ in script.asked]
    assert running[:2] == [0, 1]  # the second is asked for while the first runs
    assert set(running[1:]) <= {0, 1}
    assert 1 in running[2:]
    assert [len(asked) for asked, _ in script.asked] == list(range(6))
    assert [left.trials for _, left in script.asked] == [6, 5, 4, 3, 2, 1]


def test_trials_that_end_out_of_order_keep_their_results(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = Threads(TASK)
    monkeypatch.setattr(module, "work", Together([1, 2, 0, 3]))
    try:
        with store_of(path) as store:
            trials = run(store, Script(proposals(4)), executor=threads)
            for trial in trials:
                assert trial.score is not None
                assert same_weights(store.network(trial.id), weights(int(-trial.score), trial.graph))
    finally:
        threads.shutdown()
    assert sorted(-(t.score or 0) for t in trials) == [0, 1, 2, 3]


class Lossy(SerialExecutor):
    """Loses the second job."""

    submitted = 0

    def submit(self, job: Job, each_epoch: EachEpoch | None = None) -> Future[Result]:
        self.submitted += 1
        if self.submitted == 2:
            future: Future[Result] = Future()
            future.set_exception(RuntimeError("the machine is gone"))
            return future
        return super().submit(job, each_epoch)


def test_a_job_that_an_executor_loses_is_a_failed_trial(path: Path, workers: Workers) -> None:
    with store_of(path) as store:
        trials = run(store, Script(proposals(3)), executor=Lossy(TASK))
    assert [t.outcome and t.outcome.status for t in trials] == ["finished", "failed", "finished"]
    assert len(workers.jobs) == 2


# -- flips


UNDECIDED = Recipe(augment=Augment(shift=0.1, flip=None))


def asked(metric: float | None, mirrored: float | None, id: int = 0, examples: int = 10_000) -> Trial:
    score = None if metric is None else -0.5
    outcome = Outcome("finished", score, metric, upright=metric, mirrored=mirrored, examples=examples)
    return Trial(id, Proposal(GRAPH, (), UNDECIDED), GRAPH, outcome, True)


@pytest.mark.parametrize(
    ("trials", "flip"),
    [
        ([], None),
        ([Trial(0, Proposal(GRAPH, (), UNDECIDED), GRAPH)], None),
        ([asked(0.9, 0.88)], True),  # as good on mirrored images
        ([asked(0.9, 0.95)], True),
        ([asked(0.9, 0.86)], False),  # 4 points worse
        ([asked(0.55, 0.5, examples=900)], True),  # 5 points worse, which 900 images can be by chance
        ([asked(0.9, 0.5, examples=50)], False),
        ([asked(1.0, 1.0, examples=1)], True),
        ([asked(0.9, 0.1)], False),
        ([asked(0.39, 0.39)], None),  # knows too little: 30 points above chance are asked for
        ([asked(0.41, 0.41)], True),
        ([asked(0.2, 0.2), asked(0.8, 0.2, 1), asked(0.9, 0.9, 2)], False),  # the first that knows decides
        ([asked(None, None), asked(0.9, None, 1)], None),
        ([Trial(0, Proposal(GRAPH, (), UNDECIDED), GRAPH, Outcome("failed"))], None),
    ],
)
def test_flips_are_settled_by_the_first_network_that_knows(trials: list[Trial], flip: bool | None) -> None:
    assert decide_flip(UNDECIDED, trials, 0.1) == replace(UNDECIDED, augment=Augment(shift=0.1, flip=flip))


def test_where_chance_is_high_half_of_what_is_left_is_enough() -> None:
    assert decide_flip(UNDECIDED, [asked(0.94, 0.94)], 0.9).augment.flip is None
    assert decide_flip(UNDECIDED, [asked(0.96, 0.96)], 0.9).augment.flip is True


@pytest.mark.parametrize("flip", [True, False])
def test_what_is_settled_stays_so(flip: bool) -> None:
    recipe = Recipe(augment=Augment(flip=flip))
    assert decide_flip(recipe, [asked(0.9, 0.1), asked(0.9, 0.9)], 0.1) == recipe


def test_the_search_settles_flips_for_the_trials_that_follow(path: Path, workers: Workers) -> None:
    workers.ends = lambda job: replace(GOOD, upright=GOOD.metric, mirrored=0.8 if len(workers.jobs) > 1 else None)
    given = [replace(proposal, recipe=UNDECIDED) for proposal in proposals(4)]
    with store_of(path) as store:
        trials = run(store, Script(given), baseline_metric=0.1)
    assert [job.recipe.augment.flip for job in workers.jobs] == [None, None, True, True]
    assert [t.proposal.recipe.augment.flip for t in trials] == [None, None, True, True]


# -- the cost of an epoch


def timed(id: int, per_epoch: float, **changes: Any) -> Trial:
    """A trial whose epochs took so many seconds per FLOP of `Graph.work`."""
    outcome = replace(GOOD, seconds=per_epoch * 4 * GRAPH.work, epochs=4, **changes)
    return Trial(id, Proposal(GRAPH, (), RECIPE), GRAPH, outcome, True)


def test_the_cost_is_guessed_until_it_is_known() -> None:
    running = Trial(0, Proposal(GRAPH, (), RECIPE), GRAPH)
    assert seconds_per_flop([], 0.5) == 0.5
    assert seconds_per_flop([running, timed(1, 9.0, status="truncated"), timed(2, 9.0, status="diverged")], 0.5) == 0.5
    assert seconds_per_flop([timed(0, 2.0)], 0.5) == pytest.approx(2.0)


def test_the_cost_is_the_median_of_the_last_nine() -> None:
    costs = [100.0] * 20 + [1.0, 50.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    assert seconds_per_flop([timed(i, cost) for i, cost in enumerate(costs)], 0.5) == pytest.approx(5.0)


def test_final_trainings_say_nothing_of_the_cost() -> None:
    final = replace(timed(1, 9.0), proposal=Proposal(0, (), RECIPE, {"final": "everything"}))
    assert seconds_per_flop([timed(0, 2.0), final, replace(final, id=2)], 0.5) == pytest.approx(2.0)


def test_a_predicted_cost_is_that_of_the_trial_it_came_from() -> None:
    trial = timed(0, 3e-9)
    assert trial.outcome is not None
    left = Budget(10, None, seconds_per_flop([trial], 0))
    assert left.predict(GRAPH, 4) == pytest.approx(trial.outcome.seconds)


def test_weights_that_need_not_stay_go_while_it_runs(path: Path, workers: Workers) -> None:
    """Not only at the end, when the disk may be full."""
    seen: list[int] = []

    class Looking(Notes):
        def trial_ends(self, trial: Trial) -> None:
            seen.append(len(list(path.glob("trials/*/weights.safetensors"))))

    with store_of(path) as store:
        run(store, Script(proposals(5)), keep=1, observer=Looking())
    assert seen == [1] * 5
