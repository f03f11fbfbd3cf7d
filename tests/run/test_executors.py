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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from morphnas.graph import Graph, Limits, Network, Weights, Wider, mlp
from morphnas.run import executors as module
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
from tests.contracts import TASK, ExecutorContract, SurvivorContract
from tests.run.doubles import GOOD, GRAPH, RECIPE, Notes, Script, Threads, comparable, proposals, store_of, weights
from tests.strategies import random_weights
from tests.train.tasks import blobs

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


class TestInThisProcess(ExecutorContract):
    @pytest.fixture(params=[SerialExecutor, Threads])
    def executor(self, request: pytest.FixtureRequest) -> Iterator[Executor]:
        """`Threads` is a double used in tests of the search, so it must fulfil the contract, too."""
        made: Executor = request.param(TASK)
        yield made
        made.shutdown()


@pytest.fixture(scope="module")
def process() -> Iterator[SupervisedExecutor]:
    made = process_executor(TASK, [CPU], torch.get_num_threads())
    yield made
    made.shutdown()


class TestProcesses(ExecutorContract, SurvivorContract):
    @pytest.fixture
    def executor(self, process: SupervisedExecutor) -> Executor:
        return process


def test_a_disk_that_is_too_small_for_the_examples_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(path: Path, task: Task) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 1152 vs 1046")

    monkeypatch.setattr(module, "write_task", full)
    with pytest.raises(
        OSError, match=f"the examples for the worker processes cannot be written to {tmp_path}: .enforce"
    ):
        process_executor(TASK, [CPU], folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_ctrl_c_comes_through_the_serial_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "work", interrupted)
    with pytest.raises(KeyboardInterrupt):
        SerialExecutor(TASK).submit(Job(GRAPH, (), RECIPE, 1, 0))


def test_the_serial_executor_is_done_when_submit_returns() -> None:
    assert SerialExecutor(TASK).submit(Job(GRAPH, (), RECIPE, 60, 0)).done()


@pytest.mark.slow
def test_a_process_whose_device_is_gone_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first job raises an error in a process that then believes its device to be lost."""
    (tmp_path / "sitecustomize.py").write_text(
        "from morphnas.run import work\nwork.is_device_lost = lambda device: True\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    executor = process_executor(TASK, [CPU], 1)
    try:
        outcome, found = executor.submit(Job(mlp((5,), 2, width=3), (), RECIPE, 60, 0)).result(120)
        assert (outcome.status, found) == ("failed", None)
        assert "cpu does nothing any more for this process" in (outcome.error or "")
        assert "exit code 1" in (outcome.error or "")
        assert executor.submit(Job(GRAPH, (), RECIPE, 60, 0)).result(120)[0].status == "finished"
    finally:
        executor.shutdown()


# -- supervision, with workers that are not processes


@dataclass
class Puppet:
    """A worker that acts by the next of `ways`: answers, dies, or hangs until it is killed."""

    ways: list[str]
    killed: threading.Event = field(default_factory=threading.Event)
    closed: int = 0
    stopped: int = 0

    def ready(self) -> None:
        if self.ways[:1] == ["absent"]:
            assert self.killed.wait(60)
            raise WorkerLost("the worker never came")
        if self.ways[:1] == ["broken"]:
            self.ways.pop(0)
            raise WorkerLost("the worker has no memory")

    def run(self, job: Job, each_epoch: EachEpoch | None) -> Result:
        way = self.ways.pop(0)
        if way == "die":
            raise WorkerLost("the worker was killed")
        if way == "gone":
            raise JobNotReceived("the worker was killed before")
        if way == "hang":
            assert self.killed.wait(60)
            raise WorkerLost("the worker was killed")
        if each_epoch:
            each_epoch(GOOD)
        return GOOD, weights()

    def stop(self) -> None:
        self.stopped += 1

    def kill(self) -> None:
        self.killed.set()

    def close(self) -> None:
        self.kill()
        self.closed += 1


@dataclass
class Troupe:
    """Makes puppets that share a list of ways, and records them."""

    ways: list[str]
    made: list[Puppet] = field(default_factory=list)

    def __call__(self) -> Puppet:
        self.made.append(Puppet(self.ways))
        return self.made[-1]


@pytest.fixture
def supervised() -> Iterator[Callable[..., tuple[SupervisedExecutor, Troupe]]]:
    made: list[SupervisedExecutor] = []

    def make(ways: list[str], retries: int = 0) -> tuple[SupervisedExecutor, Troupe]:
        troupe = Troupe(ways)
        made.append(SupervisedExecutor([troupe], asks_ahead=False, retries=retries))
        return made[-1], troupe

    yield make
    for one in made:
        one.shutdown()


def job(seconds: float = 60) -> Job:
    return Job(GRAPH, (), RECIPE, seconds, 0)


def test_a_lost_worker_is_replaced_at_once(supervised: Callable[..., tuple[SupervisedExecutor, Troupe]]) -> None:
    executor, troupe = supervised(["die", "answer", "answer"])
    outcome, trained = executor.submit(job()).result(60)
    assert (outcome.status, outcome.error, trained) == ("failed", "the worker was killed", None)
    assert [executor.submit(job()).result(60)[0] for _ in range(2)] == [GOOD, GOOD]
    assert [puppet.closed for puppet in troupe.made] == [1, 0]


def test_a_worker_that_dies_idle_costs_no_job(supervised: Callable[..., tuple[SupervisedExecutor, Troupe]]) -> None:
    executor, troupe = supervised(["gone", "gone", "answer"])
    assert executor.submit(job()).result(60)[0] == GOOD
    assert [puppet.closed for puppet in troupe.made] == [1, 1, 0]


@pytest.mark.parametrize(("deaths", "status"), [(2, "finished"), (3, "failed")])
def test_a_job_is_done_again(
    supervised: Callable[..., tuple[SupervisedExecutor, Troupe]], deaths: int, status: str
) -> None:
    executor, troupe = supervised(["die"] * deaths + ["answer"], retries=2)
    assert executor.submit(job()).result(60)[0].status == status
    executor.shutdown()
    assert deaths <= len(troupe.made) <= deaths + 1
    assert all(puppet.closed == 1 for puppet in troupe.made)


def test_a_worker_that_hangs_is_given_up(
    supervised: Callable[..., tuple[SupervisedExecutor, Troupe]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "grace", lambda _: 0.05)
    executor, _ = supervised(["hang", "answer"], retries=2)
    outcome, _ = executor.submit(job(0.1)).result(60)
    assert outcome.status == "failed"
    assert "the worker hung" in (outcome.error or "")
    assert executor.submit(job()).result(60)[0] == GOOD


def test_what_the_observer_raises_ends_the_trial_only(
    supervised: Callable[..., tuple[SupervisedExecutor, Troupe]],
) -> None:
    def raising(_: Outcome) -> None:
        raise OSError("no space to write to")

    executor, _ = supervised(["answer", "answer"])
    outcome, _ = executor.submit(job(), raising).result(60)
    assert "no space to write to" in (outcome.error or "")
    assert executor.submit(job()).result(60)[0] == GOOD


def test_a_worker_that_never_comes_takes_no_jobs(caplog: pytest.LogCaptureFixture) -> None:
    absent, present = Troupe(["absent"]), Troupe(["answer"] * 5)
    executor = SupervisedExecutor([absent, present], asks_ahead=False)
    assert [executor.submit(job()).result(60)[0] for _ in range(5)] == [GOOD] * 5
    waiting = executor.submit(job())
    executor.shutdown()
    assert waiting.cancelled() or waiting.result(0)[0].status == "failed"
    assert [puppet.closed for puppet in absent.made] == [1]
    assert not caplog.records, "it was killed while it started, nothing is wrong with it"


@pytest.mark.parametrize("workers", [1, 2])
def test_jobs_fail_where_no_worker_can_be_started(workers: int) -> None:
    executor = SupervisedExecutor([Troupe(["broken"] * 100) for _ in range(workers)], asks_ahead=False)
    errors = [executor.submit(job()).result(60)[0].error for _ in range(3)]
    executor.shutdown()
    assert errors == ["the worker has no memory"] * 3


def test_a_worker_that_cannot_be_started_leaves_the_jobs_to_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "RESTART_DELAY", 0.01)
    broken, whole = Troupe(["broken"] * 3 + ["answer"] * 100), Troupe(["answer"] * 100)
    executor = SupervisedExecutor([broken, whole], asks_ahead=False)
    found = list[Outcome]()
    while len(broken.made) < 4 and len(found) < 100:
        found.append(executor.submit(job()).result(60)[0])
        time.sleep(0.01)
    executor.shutdown()
    assert found == [GOOD] * len(found)
    assert len(broken.made) == 4, "it was started again and again"
    assert [record.getMessage() for record in caplog.records] == [
        "a worker cannot be started: the worker has no memory"
    ]


def test_a_worker_that_can_never_be_started_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "RESTART_DELAY", 0.01)
    broken, whole = Troupe(["broken"] * 1000), Troupe(["answer"] * 3 + ["die"] + ["broken"] * 1000)
    executor = SupervisedExecutor([broken, broken, whole], asks_ahead=False)
    until = time.monotonic() + 60
    while executor.workers > 1 and time.monotonic() < until:
        time.sleep(0.01)
    assert executor.workers == 1
    assert len(broken.made) == 2 * module.MAX_START_ATTEMPTS
    given_up = "a worker is given up after 5 failed starts: the worker has no memory"
    assert [record.getMessage() for record in caplog.records].count(given_up) == 2
    assert [executor.submit(job()).result(60)[0] for _ in range(3)] == [GOOD] * 3
    errors = [executor.submit(job()).result(60)[0].error for _ in range(10)]
    assert errors == ["the worker was killed"] + ["the worker has no memory"] * 9, "the last one is not given up"
    assert executor.workers == 1
    assert len(broken.made) == 2 * module.MAX_START_ATTEMPTS
    executor.shutdown()


def test_who_waits_to_fail_leaves_a_job_to_one_that_has_started_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESTART_DELAY", 0.01)
    executor = SupervisedExecutor([Troupe(["broken"] * 1000), Troupe(["broken", *["answer"] * 50])], asks_ahead=False)
    found = [executor.submit(job()).result(60)[0] for _ in range(50)]
    executor.shutdown()
    assert GOOD in found
    assert found[found.index(GOOD) :] == [GOOD] * (50 - found.index(GOOD))


def test_what_waits_when_it_is_shut_down_is_given_up(
    supervised: Callable[..., tuple[SupervisedExecutor, Troupe]],
) -> None:
    executor, troupe = supervised(["hang"])
    first, second = executor.submit(job()), executor.submit(job())
    while not troupe.made or len(troupe.ways):
        time.sleep(0.001)
    executor.shutdown()
    executor.shutdown()
    assert first.result(0)[0].status == "failed"
    assert second.cancelled()
    assert executor.submit(job()).cancelled()


def test_a_worker_that_cannot_be_made_is_a_failed_trial() -> None:
    def broken() -> Puppet:
        raise OSError("too many processes")

    executor = SupervisedExecutor([broken], asks_ahead=False)
    outcome, _ = executor.submit(job()).result(60)
    executor.shutdown()
    assert outcome.error == "no worker could be started: OSError: too many processes"


# -- the search with workers


@dataclass
class Mute:
    """An executor that accepts jobs and never returns a result."""

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


def test_a_search_ends_when_nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("morphnas.run.trainings.grace", lambda _: -0.3)
    begun, notes = time.monotonic(), Notes()
    with store_of(tmp_path / "run") as store:
        Search(store, Script(proposals(9)), Mute(), Deadline.after(0.2), observer=notes).run()
        errors = [t.outcome and t.outcome.error for t in store.trials]
    late = ["no worker gave an answer by the deadline", "no worker had started, or was free, before the deadline"]
    assert errors == late
    assert time.monotonic() - begun < 5
    assert [what for what, _ in notes.told] == ["begins", "begins", "ends", "ends"]


def test_a_stop_that_nobody_hears_leaves_the_trial_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("morphnas.run.trainings.grace", lambda _: -0.3)
    stop, begun = Stop(), time.monotonic()
    stop.requested = True
    with store_of(tmp_path / "run") as store:
        Search(store, Script(proposals(9)), Mute(), Deadline.after(600, stop=stop)).run()
        assert [trial.outcome for trial in store.trials] == [None]
    assert time.monotonic() - begun < 5


@pytest.mark.skipif(os.name != "posix", reason="kills a process the POSIX way")
def test_a_process_that_dies_idle_costs_no_job(process: SupervisedExecutor) -> None:
    process.submit(Job(GRAPH, (), RECIPE, 600, 0)).result(120)
    (worker,) = process._alive
    assert isinstance(worker, module._Process)
    os.kill(worker._process.pid, signal.SIGKILL)
    worker._process.wait()
    assert process.submit(Job(GRAPH, (), RECIPE, 600, 0)).result(120)[0].status == "finished"


@pytest.mark.skipif(os.name != "posix", reason="suspends a process the POSIX way")
def test_a_stop_does_not_wait_for_a_process_that_does_not_take_its_job(process: SupervisedExecutor) -> None:
    """The process is suspended, and the weights do not fit into the pipe's buffer."""
    graph = mlp((6,), 2, width=400, depth=2)
    start = Network(graph, random_weights(graph, 0))
    process.submit(Job(GRAPH, (), RECIPE, 600, 0)).result(120)
    (worker,) = process._alive
    assert isinstance(worker, module._Process)
    os.kill(worker._process.pid, signal.SIGSTOP)
    future = process.submit(Job(start, (), RECIPE, 600, 0))
    while not worker._sending.locked():
        time.sleep(0.01)
    begun = time.monotonic()
    process.stop()
    assert time.monotonic() - begun < 10
    assert future.result(120)[0].status == "failed"


def test_a_stop_reaches_a_process(tmp_path: Path, process: SupervisedExecutor) -> None:
    """Its trial ends with the result so far, and the process can be used again."""
    stop, long = Stop(), replace(proposals(1)[0], recipe=replace(RECIPE, epochs=100_000))
    process.submit(Job(GRAPH, (), RECIPE, 600, 0)).result(120)
    begun = time.monotonic()
    with store_of(tmp_path / "run") as store:
        Search(store, Script([long] * 9), process, Deadline.after(600, stop=stop), observer=Asking(stop=stop)).run()
        (trial,) = store.trials
        assert trial.outcome is not None
        assert (trial.outcome.status, trial.kept) == ("truncated", True)
        assert trial.score is not None
    assert time.monotonic() - begun < 15
    assert process.submit(Job(GRAPH, (), RECIPE, 600, 0)).result(120)[0].status == "finished"


@dataclass
class Asking(Notes):
    """An observer that requests a stop when an epoch is done."""

    stop: Stop = field(default_factory=Stop)

    def epoch_done(self, trial: Trial, outcome: Outcome) -> None:
        self.stop.requested = True


def test_the_next_proposal_is_asked_for_while_a_network_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The history that the searcher gets includes the running trial."""
    script, jobs = Script(proposals(4)), []
    usual, meanwhile = sys.getswitchinterval(), set[float]()

    def trained(job: Job, task: Task, each_epoch: object = None) -> tuple[Outcome, Weights]:
        jobs.append(job)
        meanwhile.add(sys.getswitchinterval())
        until = time.monotonic() + 30
        while len(script.asked) <= len(jobs) and time.monotonic() < until:
            time.sleep(0.001)
        return GOOD, weights(0, job.start)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "work", trained)
    monkeypatch.setattr(SerialExecutor, "asks_ahead", True)
    with store_of(tmp_path / "run") as store:
        Search(store, script, SerialExecutor(TASK), Deadline.after(60)).run()
        assert len(store.trials) == 4
    running = [[t.outcome is None for t in asked].count(True) for asked, _ in script.asked]
    assert running[:4] == [0, 1, 1, 1]
    assert [len(asked) for asked, _ in script.asked][:4] == [0, 1, 2, 3]
    assert max(meanwhile) < usual / 10, "asking does not block the thread that trains"
    assert sys.getswitchinterval() == usual


def test_searches_at_a_time_leave_python_as_it_was(tmp_path: Path) -> None:
    """Whichever of several `Asker`s ends first."""
    usual = sys.getswitchinterval()
    with store_of(tmp_path / "run") as store:
        one, other = (Asker(Script([]), store, True, time.monotonic) for _ in range(2))
        one.__enter__()
        with other:
            one.__exit__()
            assert sys.getswitchinterval() < usual / 10
    assert sys.getswitchinterval() == usual


def test_nobody_waits_for_a_proposal_after_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    class Slow(Script):
        def ask(self, trials: Sequence[Trial], left: Budget) -> Proposal | None:
            assert not trials or ended.wait(60)
            return super().ask(trials, left)

    def trained(job: Job, task: Task, each_epoch: object = None) -> tuple[Outcome, Weights]:
        return GOOD, weights(0, job.start)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "work", trained)
    monkeypatch.setattr(SerialExecutor, "asks_ahead", True)
    with store_of(tmp_path / "run") as store:
        begun = time.monotonic()
        Search(store, Slow(proposals(4)), SerialExecutor(TASK), Deadline.after(0.3)).run()
        assert time.monotonic() - begun < 10
        ended.set()
        assert len(store.trials) == 1


def test_nobody_waits_for_the_disk_while_proposals_are_asked_for_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are written, and those that the next network starts from are read, while another network trains."""
    first, second, third = proposals(3)
    script = Script([first, second, Proposal(0, (), RECIPE), third])
    began = [threading.Event() for _ in script.proposals]
    reads, written = list[str](), list[bool]()
    read = Store.network

    def writing(file: Path, held: Any) -> None:
        id = int(file.parent.name)
        written.append(id == 3 or began[id + 1].wait(30))
        write_tensors(file, held)

    def reading(store: Store, id: int) -> Network:
        reads.append(threading.current_thread().name)
        return read(store, id)

    def trained(job: Job, task: Task, each_epoch: object = None) -> tuple[Outcome, Weights]:
        began[len(store.trials) - 1].set()
        until = time.monotonic() + 30
        while len(script.asked) <= len(store.trials) and time.monotonic() < until:
            time.sleep(0.001)
        graph = job.start if isinstance(job.start, Graph) else job.start.graph
        return GOOD, weights(0, graph)

    monkeypatch.setattr("morphnas.run.store.write_tensors", writing)
    monkeypatch.setattr(Store, "network", reading)
    monkeypatch.setattr(module, "work", trained)
    monkeypatch.setattr(SerialExecutor, "asks_ahead", True)
    with store_of(tmp_path / "run") as store:
        Search(store, script, SerialExecutor(TASK), Deadline.after(120)).run()
    assert written == [True] * 4, "each while the next one trained, the one that has the first one's weights as well"
    assert len(reads) == 1
    assert reads[0].startswith("morphnas-ask")
    assert [trial.kept for trial in load_run(tmp_path / "run").trials] == [True] * 4


def test_one_process_searches_as_this_one_does(tmp_path: Path, process: SupervisedExecutor) -> None:
    """And calls the observer after every epoch, in this thread."""
    searcher, found = RandomSearcher(MorphSpace((GRAPH,)), RECIPE, Limits(max_params=2000), seed=1), []
    for name, executor in (("serial", SerialExecutor(TASK)), ("process", process)):
        notes = Notes()
        with store_of(tmp_path / name) as store:
            Search(store, searcher, executor, Deadline.after(600), seed=1, max_trials=3, observer=notes).run()
            found.append((comparable(store.trials), notes.told))
    assert found[0] == found[1]


# -- tasks in files


@pytest.mark.parametrize("valid", [0, 30])
def test_a_task_comes_out_of_its_file_as_it_was(tmp_path: Path, valid: int) -> None:
    task = blobs(50, valid)
    teacher_outputs = torch.rand(50, 2)
    task = replace(task, train=replace(task.train, teacher_outputs=teacher_outputs))
    write_task(tmp_path / "task.pt", task)
    found = read_task(tmp_path / "task.pt", CPU)
    assert found.goal == task.goal
    assert torch.equal(found.mean, task.mean)
    assert torch.equal(found.std, task.std)
    assert torch.equal(found.train.x, task.train.x)
    assert found.train.teacher_outputs is not None
    assert torch.equal(found.train.teacher_outputs, teacher_outputs)
    assert torch.equal(found.evaluation_set.y, task.evaluation_set.y)
    assert (found.valid is None) == (valid == 0)


def test_parts_of_the_same_data_are_written_once(tmp_path: Path) -> None:
    whole = Examples(torch.zeros(1000, 100), torch.zeros(1000, dtype=torch.int64))
    write_task(tmp_path / "task.pt", Task.of(whole[:500], whole[500:], Classification(2)))
    assert (tmp_path / "task.pt").stat().st_size < 1.1 * whole.x.nbytes


# -- processes that end


SCRIPT = """
import sys, time, torch
from dataclasses import dataclass
from morphnas.run.executors import process_executor
from morphnas.run.jobs import Job
from morphnas.graph import Network, Wider
from tests.run.doubles import GRAPH, RECIPE, weights
from tests.train.tasks import blobs

@dataclass(frozen=True)
class Slow(Wider):  # defined in this script, which no worker runs
    def carry(self, graph, weights, generator):
        print("carrying")
        time.sleep(SECONDS)
        return super().carry(graph, weights, generator)

print("script", flush=True)
executor = process_executor(blobs(), [torch.device("cpu")], 1, sys.argv[1])
future = executor.submit(Job(Network(GRAPH, weights(1)), (Slow("dense_1", 7),), RECIPE, 600, 0))
while not executor._alive:
    time.sleep(0.01)
print(executor._alive[0]._process.pid, flush=True)
print(future.result()[0].status, flush=True)
executor.shutdown()
"""


def script(tmp_path: Path, seconds: float) -> subprocess.Popen[str]:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.replace("SECONDS", str(seconds)))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, path, tmp_path], stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
def test_a_script_needs_no_guard_and_may_have_morphs_of_its_own(tmp_path: Path) -> None:
    with script(tmp_path, 0) as driver:
        assert driver.stdout is not None
        words = driver.stdout.read().split()
    assert driver.returncode == 0
    assert [words[0], *words[2:]] == ["script", "finished"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["script.py"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are looked for in /proc")
def test_a_process_may_print_as_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('hello')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), os.pathsep)
    executor = process_executor(TASK, [CPU])
    try:
        assert executor.submit(job()).result(120)[0].status == "finished"
    finally:
        executor.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["types", "random"])
def test_a_script_may_lie_beside_a_module_with_the_name_of_one_of_pythons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / f"{name}.py").write_text("raise RuntimeError('not this one')")
    monkeypatch.syspath_prepend(str(tmp_path))
    executor = process_executor(TASK, [CPU])
    try:
        assert executor.submit(job()).result(120)[0].status == "finished"
    finally:
        executor.shutdown()


@pytest.mark.parametrize("output", [b"hello", b"cno_module\nno_name\n.", b"\x80\x05K"])
def test_an_answer_that_cannot_be_read_is_that_of_a_lost_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: bytes
) -> None:
    program, python = tmp_path / "program.py", tmp_path / "python"
    program.write_text(f"import os, sys; os.write(int(sys.argv[-1]), {output!r}); print('goodbye'); sys.exit(3)")
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{program}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    worker = module._Process(tmp_path, CPU, 1)
    with pytest.raises(WorkerLost, match="ended with exit code 3; its last words: goodbye"):
        worker.ready()
    worker.close()


@pytest.mark.slow
def test_workers_end_with_their_driver(tmp_path: Path) -> None:
    with script(tmp_path, 600) as driver:
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


@dataclass
class Full(Mute):
    """An executor without a free worker; a stop is requested as soon as a job is submitted."""

    stopped: Stop = field(default_factory=Stop)

    def submit(self, job: Job, each_epoch: EachEpoch | None = None) -> Future[Result]:
        self.stopped.requested = True
        return Future()


def test_a_job_that_no_worker_has_begun_when_a_stop_is_asked_for_stays_open(tmp_path: Path) -> None:
    stop = Stop()
    with store_of(tmp_path / "run") as store:
        Search(store, Script(proposals(9)), Full(stopped=stop), Deadline.after(600, stop=stop)).run()
        assert [trial.outcome for trial in store.trials] == [None]


def test_what_starts_from_weights_that_were_removed_meanwhile_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two starters the second is better: keep=1 removes the weights of the first, of which a child was proposed."""
    outcomes, asked = iter([replace(GOOD, score=-0.9), GOOD, GOOD]), threading.Event()

    class Best(Script):
        def ask(self, trials: Sequence[Trial], left: Budget) -> Proposal | None:
            if len(trials) < 2:
                return super().ask(trials, left)
            best = max((t for t in trials if t.score is not None), key=lambda t: t.score or 0.0)
            asked.set()
            return Proposal(best.id, (Wider("dense_1", 9),), RECIPE) if len(trials) == 2 else None

    def trained(job: Job, task: Task, each_epoch: object = None) -> tuple[Outcome, Weights]:
        outcome = next(outcomes)
        assert outcome.score != GOOD.score or asked.wait(30)  # the second ends when its follower is known
        graph = job.start if isinstance(job.start, Graph) else job.morphs[0].grow(job.start.graph)
        return outcome, weights(0, graph)

    monkeypatch.setattr(module, "work", trained)
    monkeypatch.setattr(SerialExecutor, "asks_ahead", True)
    with store_of(tmp_path / "run") as store:
        Search(store, Best(proposals(2)), SerialExecutor(TASK), Deadline.after(60), keep=1).run()
        assert [trial.parent for trial in store.trials] == [None, None, 1]
        assert store.trials[2].outcome == GOOD


def test_ctrl_c_in_the_terminal_does_not_reach_processes(process: SupervisedExecutor) -> None:
    """Only the driver gets the signal, and then stops its workers."""
    process.submit(Job(GRAPH, (), RECIPE, 600, 0)).result(120)
    (worker,) = process._alive
    assert isinstance(worker, module._Process)
    assert os.getpgid(worker._process.pid) != os.getpgid(0)


def test_the_file_of_the_examples_goes_with_the_processes(tmp_path: Path) -> None:
    made = process_executor(TASK, [], 1, tmp_path)
    assert [file.name for folder in tmp_path.iterdir() for file in folder.iterdir()] == ["task.pt"]
    made.shutdown()
    assert not list(tmp_path.iterdir())
