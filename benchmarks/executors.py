"""The overhead of running trials in worker processes and on Ray, and the speedup by several workers.

    python benchmarks/executors.py [--smoke]

Trials of a tiny network with inherited weights: milliseconds per trial in this process, in a worker process, and in an
actor of a private Ray instance, one trial after the other, in rounds that take turns. The overhead is the difference to
this process. Then trials that sleep for half a second, on 4 workers and on one. Medians and quartiles over the rounds.
Writes results/executors.json, with the machine; --smoke: few and short, nothing is written.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe

from morphnas.graph import Network, Wider, fresh_weights, mlp
from morphnas.run.cluster import ray_executor
from morphnas.run.executors import SerialExecutor, process_executor
from morphnas.run.jobs import Executor, Job
from morphnas.train.data import Examples, Task
from morphnas.train.goal import Classification
from morphnas.train.recipe import Recipe

RESULTS = Path(__file__).parent / "results" / "executors.json"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Sleepy(Wider):
    """A morph that sleeps, without using the CPU."""

    def carry(self, *args: Any) -> Any:
        time.sleep(0.5)
        return super().carry(*args)


def task() -> Task:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(120) % 2
    examples = Examples(torch.randn(120, 4, generator=generator) + 3.0 * y[:, None], y)
    return Task.of(examples[:80], examples[80:], Classification(2))


def job(*morphs: Wider) -> Job:
    graph = mlp((4,), 2, width=16, depth=2)
    return Job(Network(graph, fresh_weights(graph)), morphs, Recipe(epochs=1, batch_size=80, lr=0.1), 600, 0)


def seconds(executor: Executor, jobs: Sequence[Job], at_once: bool = False) -> float:
    """Wall-clock seconds for the jobs, submitted one after the other or all at once."""
    start = time.perf_counter()
    if at_once:
        results = [future.result() for future in [executor.submit(one) for one in jobs]]
    else:
        results = [executor.submit(one).result() for one in jobs]
    assert all(outcome.status == "finished" for outcome, _ in results), results
    return time.perf_counter() - start


def quartiles(values: Sequence[float]) -> dict[str, float]:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {"median": round(float(middle), 3), "lower": round(float(low), 3), "upper": round(float(high), 3)}


def ready(executor: Executor) -> None:
    """Wait until all workers have started."""
    while seconds(executor, [job(Sleepy("dense_1", 17))] * executor.workers, at_once=True) > 0.9:
        pass


def overhead(executors: dict[str, Executor], rounds: int, trials: int) -> dict[str, Any]:
    times: dict[str, list[float]] = {name: [] for name in executors}
    for _ in range(rounds):
        for name, executor in executors.items():
            times[name].append(1000 * seconds(executor, [job()] * trials) / trials)
    overheads = {name: [a - b for a, b in zip(times[name], times["serial"], strict=True)] for name in times}
    return {
        "rounds": rounds,
        "trials_per_round": trials,
        "milliseconds_per_trial": {name: quartiles(values) for name, values in times.items()},
        "overhead_milliseconds": {name: quartiles(values) for name, values in overheads.items() if name != "serial"},
    }


def speedup(one: Executor, four: Executor, rounds: int, trials: int) -> dict[str, float]:
    ready(one)
    ready(four)
    jobs = [job(Sleepy("dense_1", 17))] * trials
    return quartiles([seconds(one, jobs, True) / seconds(four, jobs, True) for _ in range(rounds)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true")
    smoke = parser.parse_args().smoke

    torch.set_num_threads(1)
    data, rounds, trials, sleeping = task(), *((2, 5, 4) if smoke else (20, 30, 16))
    executors: dict[str, Executor] = {
        "serial": SerialExecutor(data),
        "process": process_executor(data, [CPU]),
        "ray": ray_executor(data, workers=1),
    }
    four: dict[str, Executor] = {"process": process_executor(data, [CPU] * 4)}
    result: dict[str, Any] = describe() | {"ray": version("ray")}
    try:
        for executor in executors.values():
            ready(executor)
        result |= overhead(executors, rounds, trials)
        gains = {"process": speedup(executors["process"], four["process"], min(rounds, 3), sleeping)}
        executors["ray"].shutdown()
        executors["ray"] = ray_executor(data, workers=1, cpus=0.25)
        four["ray"] = ray_executor(data, workers=4, cpus=0.25)
        gains["ray"] = speedup(executors["ray"], four["ray"], min(rounds, 3), sleeping)
        result["sleeping_trials_on_4_workers_against_one"] = gains
    finally:
        for executor in [*four.values(), *executors.values()]:
            executor.shutdown()
    if not smoke:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print({name: value for name, value in result.items() if name not in ("machine", "versions")})


if __name__ == "__main__":
    main()
