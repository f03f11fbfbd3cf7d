"""Tests of the executor on Ray: the contract, a cluster of two nodes, and failures of workers, nodes and drivers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from morphnas import ImageClassifier, load_run
from morphnas.run.cluster import RETRIES, check_reachable, ray_executor
from morphnas.run.executors import SupervisedExecutor
from morphnas.run.jobs import Executor, Job
from morphnas.run.search import Search
from morphnas.search.trial import Proposal, Trial
from morphnas.train.data import Examples
from morphnas.train.deadline import Deadline
from tests.contracts import TASK, ExecutorContract, WorkerProcessContract
from tests.run.doubles import GRAPH, RECIPE, RecordingObserver, ScriptedSearcher, file_contents, new_store, proposals
from tests.run.failing_morph import FailingMorph

ROOT = Path(__file__).parents[2]
# Ray leaves processes and files open, and Python warns when they are garbage collected
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


def test_missing_ray_raises_error_with_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[ray\]' in your clone"):
        ray_executor(TASK)


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9"])
def test_unreachable_address_raises_connection_error(address: str) -> None:
    with pytest.raises(ConnectionError, match=f"no Ray cluster answers at {address}"):
        check_reachable(address)


def test_connection_is_retried_before_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = []

    def refuse(**settings: Any) -> None:
        attempts.append(settings["address"])
        raise ConnectionAbortedError("Initialization failure from server")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=refuse, is_initialized=lambda: False))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"ray://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=f"no Ray cluster answers at {address}: Initialization failure"):
            ray_executor(TASK, address=address)
    assert attempts == [address] * (RETRIES + 1)


# -- with Ray


@pytest.fixture(scope="class")
def class_executor() -> Iterator[SupervisedExecutor]:
    pytest.importorskip("ray")
    all_examples = Examples(
        torch.cat([TASK.train.x, TASK.evaluation_set.x]), torch.cat([TASK.train.y, TASK.evaluation_set.y])
    )
    executor = ray_executor(TASK, all_examples, workers=1)
    yield executor
    executor.shutdown()
    executor.shutdown()  # has no further effect


@pytest.mark.slow
class TestRay(ExecutorContract, WorkerProcessContract):
    @pytest.fixture
    def executor(self, class_executor: SupervisedExecutor) -> Executor:
        return class_executor

    def test_unscored_training_uses_all_examples(self, executor: Executor) -> None:
        outcome, trained = executor.submit(Job(GRAPH, (), RECIPE, 600, 0, scored=False)).result(120)
        assert (outcome.status, outcome.score) == ("finished", None)
        assert trained is not None
        steps = (len(TASK.train) + len(TASK.evaluation_set)) // RECIPE.batch_size * RECIPE.epochs
        assert next(v for name, v in trained.items() if name.endswith("num_batches_tracked")) >= steps

    def test_cluster_without_enough_gpus_raises_value_error(self, executor: Executor) -> None:
        with pytest.raises(ValueError, match="the Ray cluster has 0 GPUs, but each trial needs"):
            ray_executor(TASK, gpus=0.5)
        assert executor.submit(Job(GRAPH, (), RECIPE, 600, 0)).result(120)[0].status == "finished"


@pytest.mark.slow
def test_signal_handlers_and_environment_are_unchanged() -> None:
    pytest.importorskip("ray")

    def state() -> tuple[Any, ...]:
        handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
        return handlers, {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TORCH"))}

    before = state()
    executor = ray_executor(TASK)
    assert state() == before
    assert executor.workers >= 1
    executor.shutdown()
    assert state() == before


@pytest.fixture
def cluster() -> Iterator[Any]:
    utils = pytest.importorskip("ray.cluster_utils")
    two_nodes = utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    two_nodes.add_node(num_cpus=1)
    yield two_nodes
    two_nodes.shutdown()


@pytest.mark.slow
def test_search_on_two_nodes_survives_killed_worker(cluster: Any, tmp_path: Path) -> None:
    script: list[Proposal | None] = [*proposals(20)]
    script[7] = Proposal(proposals(1)[0].start, (), RECIPE, {"reason": "a starter"})
    script[11] = Proposal(
        0, (FailingMorph(f"kill once {tmp_path / 'killed'}"),), RECIPE, {"reason": "kills its worker"}
    )
    executor = ray_executor(TASK, address=cluster.address)
    try:
        assert executor.workers == 2
        with new_store(tmp_path / "run") as store:
            Search(store, ScriptedSearcher(script), executor, Deadline.after(250)).run()
            results = [(trial.outcome.status, trial.outcome.error) for trial in store.trials if trial.outcome]
    finally:
        executor.shutdown()
    assert (tmp_path / "killed").exists()
    assert results == [("finished", None)] * 20


@pytest.mark.slow
def test_trials_of_lost_node_run_on_other_node(cluster: Any, tmp_path: Path) -> None:
    ended: list[int] = []

    class NodeRemover(RecordingObserver):
        """An observer that removes a node when three trials have ended."""

        def trial_ends(self, trial: Trial) -> None:
            super().trial_ends(trial)
            ended.append(trial.id)
            if len(ended) == 3:
                cluster.remove_node(node, allow_graceful=False)

    (node,) = cluster.worker_nodes
    executor = ray_executor(TASK, address=cluster.address)
    try:
        assert executor.workers == 2
        with new_store(tmp_path / "run") as store:
            Search(store, ScriptedSearcher(proposals(12)), executor, Deadline.after(250), observer=NodeRemover()).run()
            results = [(trial.outcome.status, trial.outcome.error) for trial in store.trials if trial.outcome]
    finally:
        executor.shutdown()
    assert not cluster.worker_nodes, "the node was removed"
    assert results == [("finished", None)] * 12


@pytest.mark.slow
def test_client_connects_from_outside_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through Ray's client, from a process that is not part of the cluster. The client's server process crashes at the
    first attempt, as it sometimes does: Ray forks it from a process with many threads."""
    utils = pytest.importorskip("ray.cluster_utils")
    crashed = tmp_path / "crashed"
    (tmp_path / "sitecustomize.py").write_text(CRASHING_SERVER.format(crashed=str(crashed)))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")  # for the cluster's processes
    monkeypatch.setenv("RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S", "10")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    node = {"num_cpus": 1, "include_dashboard": False, "ray_client_server_port": port}
    one_node = utils.Cluster(initialize_head=True, head_node_args=node)
    code = DRIVER.replace('executor="ray"', f'executor="ray://127.0.0.1:{port}"').replace(
        "max_trials=12", "max_trials=3"
    )
    try:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], env=environment, check=True, timeout=240)
    finally:
        one_node.shutdown()
    assert crashed.exists()
    assert [t.outcome and t.outcome.status for t in load_run(tmp_path / "run").trials] == ["finished"] * 3


CRASHING_SERVER = """
import os, pathlib, sys
crashed = pathlib.Path({crashed!r})
if "--mode=specific-server" in sys.orig_argv and not crashed.exists():
    crashed.touch()
    os._exit(1)
"""

DRIVER = """
import sys
from tests.run.test_cluster import digits
from morphnas import ImageClassifier
sizes = {"default_model_width": 4, "trainer_args": {"epochs": 2}}
classifier = ImageClassifier(
    sys.argv[1], resume="auto", executor="ray", refit=False, max_trials=12, random_state=0, searcher_args=sizes
)
classifier.fit(*digits(), time_limit=200)
"""


def digits() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    y = np.arange(300) % 2
    return (rng.integers(0, 90, (300, 6, 6)) + 100 * y[:, None, None]).astype(np.uint8), y


@pytest.mark.slow
def test_run_resumes_after_driver_is_killed(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    path, code = tmp_path / "run", [sys.executable, "-c", DRIVER, str(tmp_path / "run")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(code, env=environment, stderr=subprocess.DEVNULL) as driver:
        end = time.monotonic() + 120
        while len(list(path.glob("trials/*/trial.json"))) < 3 and time.monotonic() < end:
            time.sleep(0.02)
        driver.kill()
    before = {name: data for name, data in file_contents(path / "trials").items() if not name.endswith(".tmp")}
    assert 3 <= sum(name.endswith("trial.json") for name in before) < 12
    subprocess.run(code, env=environment, check=True, stderr=subprocess.DEVNULL, timeout=240)
    run = load_run(path)
    assert len(run.trials) == 12
    assert all(trial.outcome is not None and trial.outcome.status == "finished" for trial in run.trials)
    after = file_contents(path / "trials")
    assert {name for name in before if after[name] != before[name]} == set()
    assert ImageClassifier.load(path).predict(digits()[0]).shape == (300,)
