"""Tests of the executors: their common contract, supervision of workers, and searches that use them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from morphnas.graph import Graph, Limits, Network, Weights, Wider, mlp
from morphnas.run import executors as executors_module
from morphnas.run.checkpoints import Result
from morphnas.run.executors import JobNotReceived, SerialExecutor, SupervisedExecutor, WorkerLost, process_executor
from morphnas.run.files import write_tensors
from morphnas.run.jobs import Executor, Job
from morphnas.run.proposing import Asker
from morphnas.run.search import Search
from morphnas.run.store import Store, load_run
from morphnas.run.transport import read_task, write_task
from morphnas.search import MorphSpace, RandomSearcher
from morphnas.search.trial import Budget, Proposal, Trial
from morphnas.train.data import Examples, Task
from morphnas.train.deadline import Deadline, Stop
from morphnas.train.goal import Classification
from morphnas.train.recipe import Outcome
from morphnas.train.trainer import EachEpoch
from tests.contracts import TASK, ExecutorContract, WorkerProcessContract
from tests.run.doubles import (
    FINISHED,
    GRAPH,
    RECIPE,
    FakeWork,
    RecordingObserver,
    ScriptedSearcher,
    ThreadExecutor,
    comparable_trials,
    new_store,
    proposals,
    weights,
)
from tests.strategies import random_weights
from tests.train.tasks import blob_task

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


class TestExecutorsInThisProcess(ExecutorContract):
    @pytest.fixture(params=[SerialExecutor, ThreadExecutor])
    def executor(self, request: pytest.FixtureRequest) -> Iterator[Executor]:
        """`ThreadExecutor` is a test double; the tests that use it rely on the contract, too."""
        made: Executor = request.param(TASK)
        yield made
        made.shutdown()


@pytest.fixture(scope="module")
def processes() -> Iterator[SupervisedExecutor]:
    """An executor with one worker process."""
    made = process_executor(TASK, [CPU], torch.get_num_threads())
    yield made
    made.shutdown()


class TestProcessExecutor(ExecutorContract, WorkerProcessContract):
    @pytest.fixture
    def executor(self, processes: SupervisedExecutor) -> Executor:
        return processes


def make_job(seconds: float = 60) -> Job:
    return Job(GRAPH, (), RECIPE, seconds, 0)


def test_full_disk_error_names_folder_of_examples(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(path: Path, task: Task) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 1152 vs 1046")

    monkeypatch.setattr(executors_module, "write_task", full)
    with pytest.raises(
        OSError, match=f"the examples for the worker processes cannot be written to {tmp_path}: .enforce"
    ):
        process_executor(TASK, [CPU], folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_serial_executor_propagates_keyboard_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(executors_module, "work", interrupted)
    with pytest.raises(KeyboardInterrupt):
        SerialExecutor(TASK).submit(make_job())


def test_serial_executor_runs_job_in_submit() -> None:
    assert SerialExecutor(TASK).submit(make_job()).done()


@pytest.mark.slow
def test_process_with_lost_device_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its worker processes every error counts as a lost device; the first job raises one."""
    (tmp_path / "sitecustomize.py").write_text(
        "from morphnas.run import work\nwork.is_device_lost = lambda device: True\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    executor = process_executor(TASK, [CPU], 1)
    try:
        outcome, found = executor.submit(Job(mlp((5,), 2, width=3), (), RECIPE, 60, 0)).result(120)
        assert (outcome.status, found) == ("failed", None)
        assert "cpu has failed, so this process can no longer use it" in (outcome.error or "")
        assert "exit code 1" in (outcome.error or "")
        assert executor.submit(make_job()).result(120)[0].status == "finished"
    finally:
        executor.shutdown()


# -- supervision, with fake workers in this process


@dataclass
class FakeWorker:
    """A worker that performs the next of `actions`, which it shares with others: "answer", "die", "die before job",
    "hang" (until it is killed), "never start", or "fail to start"."""

    actions: list[str]
    killed: threading.Event = field(default_factory=threading.Event)
    closed: int = 0

    def ready(self) -> None:
        if self.actions[:1] == ["never start"]:
            assert self.killed.wait(60)
            raise WorkerLost("the worker never started")
        if self.actions[:1] == ["fail to start"]:
            self.actions.pop(0)
            raise WorkerLost("the worker has no memory")

    def run(self, job: Job, each_epoch: EachEpoch | None) -> Result:
        action = self.actions.pop(0)
        if action == "die":
            raise WorkerLost("the worker was killed")
        if action == "die before job":
            raise JobNotReceived("the worker was killed before")
        if action == "hang":
            assert self.killed.wait(60)
            raise WorkerLost("the worker was killed")
        if each_epoch:
            each_epoch(FINISHED)
        return FINISHED, weights()

    def stop(self) -> None:
        pass

    def kill(self) -> None:
        self.killed.set()

    def close(self) -> None:
        self.kill()
        self.closed += 1


@dataclass
class FakeFactory:
    """Makes fake workers that share a list of actions, and records them."""

    actions: list[str]
    made: list[FakeWorker] = field(default_factory=list)

    def __call__(self) -> FakeWorker:
        self.made.append(FakeWorker(self.actions))
        return self.made[-1]


MakeExecutor = Callable[..., tuple[SupervisedExecutor, FakeFactory]]


@pytest.fixture
def make_executor() -> Iterator[MakeExecutor]:
    """Makes executors with one fake worker, which are shut down at the end."""
    made: list[SupervisedExecutor] = []

    def make(actions: list[str], retries: int = 0) -> tuple[SupervisedExecutor, FakeFactory]:
        factory = FakeFactory(actions)
        made.append(SupervisedExecutor([factory], asks_ahead=False, retries=retries))
        return made[-1], factory

    yield make
    for executor in made:
        executor.shutdown()


def test_lost_worker_is_replaced(make_executor: MakeExecutor) -> None:
    executor, factory = make_executor(["die", "answer", "answer"])
    outcome, trained = executor.submit(make_job()).result(60)
    assert (outcome.status, outcome.error, trained) == ("failed", "the worker was killed", None)
    assert [executor.submit(make_job()).result(60)[0] for _ in range(2)] == [FINISHED, FINISHED]
    assert [worker.closed for worker in factory.made] == [1, 0]


def test_job_does_not_fail_if_idle_workers_die(make_executor: MakeExecutor) -> None:
    executor, factory = make_executor(["die before job", "die before job", "answer"])
    assert executor.submit(make_job()).result(60)[0] == FINISHED
    assert [worker.closed for worker in factory.made] == [1, 1, 0]


@pytest.mark.parametrize(("deaths", "status"), [(2, "finished"), (3, "failed")])
def test_job_of_lost_worker_is_retried(make_executor: MakeExecutor, deaths: int, status: str) -> None:
    executor, factory = make_executor(["die"] * deaths + ["answer"], retries=2)
    assert executor.submit(make_job()).result(60)[0].status == status
    executor.shutdown()
    assert deaths <= len(factory.made) <= deaths + 1
    assert all(worker.closed == 1 for worker in factory.made)


def test_hung_worker_is_replaced_and_its_job_fails(
    make_executor: MakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors_module, "grace", lambda _: 0.05)
    executor, _ = make_executor(["hang", "answer"], retries=2)
    outcome, _ = executor.submit(make_job(0.1)).result(60)
    assert outcome.status == "failed"
    assert "the worker hung" in (outcome.error or "")
    assert executor.submit(make_job()).result(60)[0] == FINISHED


def test_callback_error_fails_only_its_job(make_executor: MakeExecutor) -> None:
    def raising(_: Outcome) -> None:
        raise OSError("no space to write to")

    executor, _ = make_executor(["answer", "answer"])
    outcome, _ = executor.submit(make_job(), raising).result(60)
    assert "no space to write to" in (outcome.error or "")
    assert executor.submit(make_job()).result(60)[0] == FINISHED


def test_worker_that_never_starts_takes_no_jobs(caplog: pytest.LogCaptureFixture) -> None:
    not_starting, working = FakeFactory(["never start"]), FakeFactory(["answer"] * 5)
    executor = SupervisedExecutor([not_starting, working], asks_ahead=False)
    assert [executor.submit(make_job()).result(60)[0] for _ in range(5)] == [FINISHED] * 5
    waiting = executor.submit(make_job())
    executor.shutdown()
    assert waiting.cancelled() or waiting.result(0)[0].status == "failed"
    assert [worker.closed for worker in not_starting.made] == [1]
    assert not caplog.records, "a warning about a worker that was killed at shutdown"


@pytest.mark.parametrize("workers", [1, 2])
def test_jobs_fail_if_no_worker_can_be_started(workers: int) -> None:
    executor = SupervisedExecutor([FakeFactory(["fail to start"] * 100)] * workers, asks_ahead=False)
    errors = [executor.submit(make_job()).result(60)[0].error for _ in range(3)]
    executor.shutdown()
    assert errors == ["the worker has no memory"] * 3


def test_jobs_go_to_others_while_a_worker_cannot_be_started(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(executors_module, "RESTART_DELAY", 0.01)
    failing, working = FakeFactory(["fail to start"] * 3 + ["answer"] * 100), FakeFactory(["answer"] * 100)
    executor = SupervisedExecutor([failing, working], asks_ahead=False)
    found = list[Outcome]()
    while len(failing.made) < 4 and len(found) < 100:
        found.append(executor.submit(make_job()).result(60)[0])
        time.sleep(0.01)
    executor.shutdown()
    assert found == [FINISHED] * len(found)
    assert len(failing.made) == 4, "three failed starts, and a successful one"
    assert [record.getMessage() for record in caplog.records] == [
        "a worker cannot be started: the worker has no memory"
    ]


def test_worker_is_given_up_after_repeated_failed_starts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(executors_module, "RESTART_DELAY", 0.01)
    failing = FakeFactory(["fail to start"] * 1000)
    working = FakeFactory(["answer"] * 3 + ["die"] + ["fail to start"] * 1000)
    executor = SupervisedExecutor([failing, failing, working], asks_ahead=False)
    until = time.monotonic() + 60
    while executor.workers > 1 and time.monotonic() < until:
        time.sleep(0.01)
    assert executor.workers == 1
    assert len(failing.made) == 2 * executors_module.MAX_START_ATTEMPTS
    given_up = "a worker is given up after 5 failed starts: the worker has no memory"
    assert [record.getMessage() for record in caplog.records].count(given_up) == 2
    assert [executor.submit(make_job()).result(60)[0] for _ in range(3)] == [FINISHED] * 3
    errors = [executor.submit(make_job()).result(60)[0].error for _ in range(10)]
    assert errors == ["the worker was killed"] + ["the worker has no memory"] * 9, "the last worker was given up"
    assert executor.workers == 1
    assert len(failing.made) == 2 * executors_module.MAX_START_ATTEMPTS
    executor.shutdown()


def test_jobs_succeed_as_soon_as_a_worker_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another worker never starts: its thread, which would fail the jobs, leaves them to the one that has started."""
    monkeypatch.setattr(executors_module, "RESTART_DELAY", 0.01)
    factories = FakeFactory(["fail to start"] * 1000), FakeFactory(["fail to start", *["answer"] * 50])
    executor = SupervisedExecutor(factories, asks_ahead=False)
    found = [executor.submit(make_job()).result(60)[0] for _ in range(50)]
    executor.shutdown()
    assert FINISHED in found
    assert found[found.index(FINISHED) :] == [FINISHED] * (50 - found.index(FINISHED))


def test_shutdown_fails_running_job_and_cancels_queued_ones(make_executor: MakeExecutor) -> None:
    executor, factory = make_executor(["hang"])
    first, second = executor.submit(make_job()), executor.submit(make_job())
    while factory.actions:
        time.sleep(0.001)
    executor.shutdown()
    executor.shutdown()
    assert first.result(0)[0].status == "failed"
    assert second.cancelled()
    assert executor.submit(make_job()).cancelled()


def test_job_fails_if_factory_raises() -> None:
    def failing() -> FakeWorker:
        raise OSError("too many processes")

    executor = SupervisedExecutor([failing], asks_ahead=False)
    outcome, _ = executor.submit(make_job()).result(60)
    executor.shutdown()
    assert outcome.error == "no worker could be started: OSError: too many processes"


# -- searches with unresponsive or stopped workers


@dataclass
class SilentExecutor:
    """An executor that starts the first of its jobs and never returns a result."""

    workers = 2
    asks_ahead = False
    submitted: int = 0

    def submit(self, job: Job, each_epoch: EachEpoch | None = None) -> Future[Result]:
        self.submitted += 1
        future: Future[Result] = Future()
        if self.submitted == 1:
            future.set_running_or_notify_cancel()
        return future

    def stop(self) -> None:
        pass

    def shutdown(self) -> None:
        pass


def test_search_ends_if_workers_do_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("morphnas.run.trainings.grace", lambda _: -0.3)
    start, observer = time.monotonic(), RecordingObserver()
    with new_store(tmp_path / "run") as store:
        Search(store, ScriptedSearcher(proposals(9)), SilentExecutor(), Deadline.after(0.2), observer=observer).run()
        errors = [t.outcome and t.outcome.error for t in store.trials]
    assert errors == [
        "no worker returned a result before the deadline",
        "no worker had started, or was free, before the deadline",
    ]
    assert time.monotonic() - start < 5
    assert [event for event, _ in observer.calls] == ["begins", "begins", "ends", "ends"]


def test_trial_stays_open_if_worker_ignores_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("morphnas.run.trainings.grace", lambda _: -0.3)
    stop, start = Stop(), time.monotonic()
    stop.requested = True
    with new_store(tmp_path / "run") as store:
        Search(store, ScriptedSearcher(proposals(9)), SilentExecutor(), Deadline.after(600, stop=stop)).run()
        assert [trial.outcome for trial in store.trials] == [None]
    assert time.monotonic() - start < 5


@dataclass
class BusyExecutor(SilentExecutor):
    """An executor without a free worker, which requests a stop when a job is submitted."""

    stop_request: Stop = field(default_factory=Stop)

    def submit(self, job: Job, each_epoch: EachEpoch | None = None) -> Future[Result]:
        self.stop_request.requested = True
        return Future()


def test_trial_of_queued_job_stays_open_after_stop(tmp_path: Path) -> None:
    stop = Stop()
    with new_store(tmp_path / "run") as store:
        Search(
            store, ScriptedSearcher(proposals(9)), BusyExecutor(stop_request=stop), Deadline.after(600, stop=stop)
        ).run()
        assert [trial.outcome for trial in store.trials] == [None]


# -- asking ahead


def test_searcher_is_asked_ahead_during_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And gets the running trial."""
    searcher, jobs = ScriptedSearcher(proposals(4)), []
    usual_interval, intervals = sys.getswitchinterval(), set[float]()

    def fake_work(job: Job, task: Task, each_epoch: object = None) -> tuple[Outcome, Weights]:
        jobs.append(job)
        intervals.add(sys.getswitchinterval())
        until = time.monotonic() + 30
        while len(searcher.calls) <= len(jobs) and time.monotonic() < until:
            time.sleep(0.001)
        return FINISHED, weights(0, job.start)  # type: ignore[arg-type]

    monkeypatch.setattr(executors_module, "work", fake_work)
    monkeypatch.setattr(SerialExecutor, "asks_ahead", True)
    with new_store(tmp_path / "run") as store:
        Search(store, searcher, SerialExecutor(TASK), Deadline.after(60)).run()
        assert len(store.trials) == 4
    running = [sum(t.outcome is None for t in history) for history, _ in searcher.calls]
    assert running[:4] == [0, 1, 1, 1]
    assert [len(history) for history, _ in searcher.calls][:4] == [0, 1, 2, 3]
    assert max(intervals) < usual_interval / 10, "asking may block the thread that trains"
    assert sys.getswitchinterval() == usual_interval


def test_concurrent_searches_restore_switch_interval(tmp_path: Path) -> None:
    """Whichever of several `Asker`s ends first."""
    usual_interval = sys.getswitchinterval()
    with new_store(tmp_path / "run") as store:
        one, other = (Asker(ScriptedSearcher([]), store, True, time.monotonic) for _ in range(2))
        one.__enter__()
        with other:
            one.__exit__()
            assert sys.getswitchinterval() < usual_interval / 10
    assert sys.getswitchinterval() == usual_interval


def test_search_does_not_wait_for_proposal_after_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    class Slow(ScriptedSearcher):
        def ask(self, trials: Sequence[Trial], budget: Budget) -> Proposal | None:
            assert not trials or ended.wait(60)
            return super().ask(trials, budget)

    monkeypatch.setattr(executors_module, "work", FakeWork())
    monkeypatch.setattr(SerialExecutor, "asks_ahead", True)
    with new_store(tmp_path / "run") as store:
        start = time.monotonic()
        Search(store, Slow(proposals(4)), SerialExecutor(TASK), Deadline.after(0.3)).run()
        assert time.monotonic() - start < 10
        ended.set()
        assert len(store.trials) == 1


def test_weights_are_written_and_read_during_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of a finished trial are written, and those of the next one's parent read, while another trains."""
    first, second, third = proposals(3)
    searcher = ScriptedSearcher([first, second, Proposal(0, (), RECIPE), third])
    started = [threading.Event() for _ in searcher.proposals]
    reading_threads, written_after_next_started = list[str](), list[bool]()
    read = Store.network

    def fake_write(file: Path, tensors: Any) -> None:
        id = int(file.parent.name)
        written_after_next_started.append(id == 3 or started[id + 1].wait(30))
        write_tensors(file, tensors)

    def fake_read(store: Store, id: int) -> Network:
        reading_threads.append(threading.current_thread().name)
        return read(store, id)

    def fake_work(job: Job, task: Task, each_epoch: object = None) -> tuple[Outcome, Weights]:
        started[len(store.trials) - 1].set()
        until = time.monotonic() + 30
        while len(searcher.calls) <= len(store.trials) and time.monotonic() < until:
            time.sleep(0.001)
        graph = job.start if isinstance(job.start, Graph) else job.start.graph
        return FINISHED, weights(0, graph)

    monkeypatch.setattr("morphnas.run.store.write_tensors", fake_write)
    monkeypatch.setattr(Store, "network", fake_read)
    monkeypatch.setattr(executors_module, "work", fake_work)
    monkeypatch.setattr(SerialExecutor, "asks_ahead", True)
    with new_store(tmp_path / "run") as store:
        Search(store, searcher, SerialExecutor(TASK), Deadline.after(120)).run()
    assert written_after_next_started == [True] * 4, "also before trial 2, which starts from weights of trial 0"
    (thread,) = reading_threads
    assert thread.startswith("morphnas-ask")
    assert [trial.kept for trial in load_run(tmp_path / "run").trials] == [True] * 4


def test_proposal_is_replaced_if_weights_of_parent_were_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child of the first starter is proposed ahead; the second starter is better, so keep=1 prunes the first."""
    outcomes, proposed = iter([replace(FINISHED, score=-0.9), FINISHED, FINISHED]), threading.Event()

    class Best(ScriptedSearcher):
        def ask(self, trials: Sequence[Trial], budget: Budget) -> Proposal | None:
            if len(trials) < 2:
                return super().ask(trials, budget)
            best = max((t for t in trials if t.score is not None), key=lambda t: t.score or 0.0)
            proposed.set()
            return Proposal(best.id, (Wider("dense_1", 9),), RECIPE) if len(trials) == 2 else None

    def fake_work(job: Job, task: Task, each_epoch: object = None) -> tuple[Outcome, Weights]:
        outcome = next(outcomes)
        assert outcome.score != FINISHED.score or proposed.wait(30)  # the second ends after the child was proposed
        graph = job.start if isinstance(job.start, Graph) else job.morphs[0].grow(job.start.graph)
        return outcome, weights(0, graph)

    monkeypatch.setattr(executors_module, "work", fake_work)
    monkeypatch.setattr(SerialExecutor, "asks_ahead", True)
    with new_store(tmp_path / "run") as store:
        Search(store, Best(proposals(2)), SerialExecutor(TASK), Deadline.after(60), keep=1).run()
        assert [trial.parent for trial in store.trials] == [None, None, 1]
        assert store.trials[2].outcome == FINISHED


# -- worker processes


def started_process(executor: SupervisedExecutor) -> executors_module._Process:
    """The executor's only worker, after it has run a job."""
    executor.submit(make_job(600)).result(120)
    (worker,) = executor._alive
    assert isinstance(worker, executors_module._Process)
    return worker


@pytest.mark.skipif(os.name != "posix", reason="kills a process the POSIX way")
def test_job_does_not_fail_if_idle_process_dies(processes: SupervisedExecutor) -> None:
    worker = started_process(processes)
    os.kill(worker._process.pid, signal.SIGKILL)
    worker._process.wait()
    assert processes.submit(make_job(600)).result(120)[0].status == "finished"


@pytest.mark.skipif(os.name != "posix", reason="suspends a process the POSIX way")
def test_stop_does_not_wait_for_suspended_process(processes: SupervisedExecutor) -> None:
    """The job is still being sent, since its weights do not fit into the pipe's buffer."""
    graph = mlp((6,), 2, width=400, depth=2)
    network = Network(graph, random_weights(graph, 0))
    worker = started_process(processes)
    os.kill(worker._process.pid, signal.SIGSTOP)
    future = processes.submit(Job(network, (), RECIPE, 600, 0))
    while not worker._sending.locked():
        time.sleep(0.01)
    start = time.monotonic()
    processes.stop()
    assert time.monotonic() - start < 10
    assert future.result(120)[0].status == "failed"


def test_stop_ends_trial_of_process(tmp_path: Path, processes: SupervisedExecutor) -> None:
    """The trial keeps its result so far, and the process can be used again."""
    stop, long = Stop(), replace(proposals(1)[0], recipe=replace(RECIPE, epochs=100_000))
    started_process(processes)
    start, observer = time.monotonic(), StopAfterEpoch(stop=stop)
    with new_store(tmp_path / "run") as store:
        Search(store, ScriptedSearcher([long] * 9), processes, Deadline.after(600, stop=stop), observer=observer).run()
        (trial,) = store.trials
        assert trial.outcome is not None
        assert (trial.outcome.status, trial.kept) == ("truncated", True)
        assert trial.score is not None
    assert time.monotonic() - start < 15
    assert processes.submit(make_job(600)).result(120)[0].status == "finished"


@dataclass
class StopAfterEpoch(RecordingObserver):
    """An observer that requests a stop after the first epoch."""

    stop: Stop = field(default_factory=Stop)

    def epoch_done(self, trial: Trial, outcome: Outcome) -> None:
        self.stop.requested = True


def test_search_with_process_equals_search_in_this_process(tmp_path: Path, processes: SupervisedExecutor) -> None:
    """Including the observer's calls."""
    searcher, found = RandomSearcher(MorphSpace((GRAPH,)), RECIPE, Limits(max_params=2000), seed=1), []
    for name, executor in (("serial", SerialExecutor(TASK)), ("processes", processes)):
        observer = RecordingObserver()
        with new_store(tmp_path / name) as store:
            Search(store, searcher, executor, Deadline.after(600), seed=1, max_trials=3, observer=observer).run()
            found.append((comparable_trials(store.trials), observer.calls))
    assert found[0] == found[1]


def test_processes_do_not_get_ctrl_c_of_terminal(processes: SupervisedExecutor) -> None:
    """They are in another process group. Only the driver gets the signal, and then stops its workers."""
    assert os.getpgid(started_process(processes)._process.pid) != os.getpgid(0)


# -- the file of the examples


def assert_equal_examples(found: Examples, expected: Examples) -> None:
    for name in (f.name for f in fields(Examples)):
        one, other = getattr(found, name), getattr(expected, name)
        assert torch.equal(one, other) if isinstance(other, torch.Tensor) else one == other, name


@pytest.mark.parametrize("n_valid", [0, 30])
def test_task_file_round_trip(tmp_path: Path, n_valid: int) -> None:
    task = blob_task(50, n_valid)
    train = replace(task.train, weights=torch.rand(50), teacher_outputs=torch.rand(50, 2))
    valid = replace(task.valid, weights=torch.rand(n_valid)) if task.valid else None
    task = replace(task, train=train, valid=valid)
    write_task(tmp_path / "task.pt", task)
    found = read_task(tmp_path / "task.pt", CPU)
    assert found.goal == task.goal
    assert torch.equal(found.mean, task.mean)
    assert torch.equal(found.std, task.std)
    assert_equal_examples(found.train, train)
    assert (found.valid is None) == (valid is None)
    if found.valid and valid:
        assert_equal_examples(found.valid, valid)


def test_task_file_stores_shared_data_once(tmp_path: Path) -> None:
    whole = Examples(torch.zeros(1000, 100), torch.zeros(1000, dtype=torch.int64))
    write_task(tmp_path / "task.pt", Task.of(whole[:500], whole[500:], Classification(2)))
    assert (tmp_path / "task.pt").stat().st_size < 1.1 * whole.x.nbytes


def test_shutdown_removes_file_of_examples(tmp_path: Path) -> None:
    executor = process_executor(TASK, [], 1, tmp_path)
    assert [file.name for folder in tmp_path.iterdir() for file in folder.iterdir()] == ["task.pt"]
    executor.shutdown()
    assert not list(tmp_path.iterdir())


# -- scripts, and processes that end


SCRIPT = """
import sys, time, torch
from dataclasses import dataclass
from morphnas.run.executors import process_executor
from morphnas.run.jobs import Job
from morphnas.graph import Network, Wider
from tests.run.doubles import GRAPH, RECIPE, weights
from tests.train.tasks import blob_task

@dataclass(frozen=True)
class Slow(Wider):  # defined in this script, which no worker runs
    def carry(self, graph, weights, generator):
        print("carrying")
        time.sleep(SECONDS)
        return super().carry(graph, weights, generator)

print("script", flush=True)
executor = process_executor(blob_task(), [torch.device("cpu")], 1, sys.argv[1])
future = executor.submit(Job(Network(GRAPH, weights(1)), (Slow("dense_1", 7),), RECIPE, 600, 0))
while not executor._alive:
    time.sleep(0.01)
print(executor._alive[0]._process.pid, flush=True)
print(future.result()[0].status, flush=True)
executor.shutdown()
"""


def start_script(tmp_path: Path, seconds: float) -> subprocess.Popen[str]:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.replace("SECONDS", str(seconds)))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, path, tmp_path], stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
def test_script_needs_no_main_guard_and_may_define_morphs(tmp_path: Path) -> None:
    with start_script(tmp_path, 0) as driver:
        assert driver.stdout is not None
        first, _pid, *others = driver.stdout.read().split()
    assert driver.returncode == 0
    assert [first, *others] == ["script", "finished"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["script.py"]


@pytest.mark.slow
def test_process_may_print_at_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('hello')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), os.pathsep)
    executor = process_executor(TASK, [CPU])
    try:
        assert executor.submit(make_job()).result(120)[0].status == "finished"
    finally:
        executor.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["types", "random"])
def test_module_beside_script_does_not_shadow_standard_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / f"{name}.py").write_text("raise RuntimeError('the wrong module was imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    executor = process_executor(TASK, [CPU])
    try:
        assert executor.submit(make_job()).result(120)[0].status == "finished"
    finally:
        executor.shutdown()


@pytest.mark.parametrize(
    "output",
    [b"hello", b"cno_module\nno_name\n.", b"\x80\x05K"],
    ids=["not a pickle", "unknown module", "truncated pickle"],
)
def test_unreadable_message_is_that_of_a_lost_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: bytes
) -> None:
    program, python = tmp_path / "program.py", tmp_path / "python"
    program.write_text(f"import os, sys; os.write(int(sys.argv[-1]), {output!r}); print('goodbye'); sys.exit(3)")
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{program}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    worker = executors_module._Process(tmp_path, CPU, 1)
    with pytest.raises(WorkerLost, match="ended with exit code 3; its last output: goodbye"):
        worker.ready()
    worker.close()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are looked for in /proc")
def test_worker_processes_end_with_their_driver(tmp_path: Path) -> None:
    with start_script(tmp_path, 600) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "script\n"
        worker = Path("/proc", driver.stdout.readline().strip())
        time.sleep(15)  # until it is running the job
        assert worker.is_dir()
        driver.kill()
    until = time.monotonic() + 20
    while time.monotonic() < until and (worker.is_dir() or len(list(tmp_path.iterdir())) > 1):
        time.sleep(0.05)
    assert not worker.is_dir()
    assert [entry.name for entry in tmp_path.iterdir()] == ["script.py"]
