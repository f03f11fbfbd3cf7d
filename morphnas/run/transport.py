"""Serialisation between driver and workers: the task once, jobs to the workers, and messages back.

Weights are serialised as safetensors, the rest is pickled; classes defined in the user's script, which workers do not
run, are pickled by value. Nothing of this remains on disk.
"""

from __future__ import annotations

import pickle
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cloudpickle
import torch
from safetensors.torch import load, save

from morphnas.graph import Graph, Network
from morphnas.run.checkpoints import Result
from morphnas.run.jobs import DeviceLost, Job
from morphnas.run.work import work
from morphnas.train.data import Examples, Task
from morphnas.train.deadline import Stop
from morphnas.train.goal import Goal
from morphnas.train.recipe import Outcome
from morphnas.train.trainer import EachEpoch


def send_by_value(obj: object) -> None:
    """Have the module of a function, object or class pickled by value if workers could not import it.

    That is the case if it was loaded from a file that no finder of `sys.meta_path` knows.
    """
    name = getattr(obj, "__module__", None)
    if not isinstance(name, str) or name == "__main__":
        return
    module, top = sys.modules.get(name), name.partition(".")[0]
    if top == __name__.partition(".")[0] or module is None or not getattr(module, "__file__", None):
        return
    if not any(finder.find_spec(top, None) for finder in sys.meta_path if hasattr(finder, "find_spec")):
        cloudpickle.register_pickle_by_value(module)


def task_for_job(job: Job, task: Task, all_examples: Examples | None) -> Task:
    """The task with which the job is trained: a training that is not scored uses all examples."""
    return task if job.scored or all_examples is None else replace(task, train=all_examples)


# -- tasks


def task_to_tensors(task: Task, all_examples: Examples | None = None) -> dict[str, Any]:
    """A task as tensors on the CPU; with each set of examples, whether its x was on the same device as its y."""
    parts = {"train": task.train, "valid": task.valid, "all_examples": all_examples}
    data: dict[str, Any] = {}
    for name, part in parts.items():
        if part is None:
            data[name] = None
            continue
        on_cpu = part.to(torch.device("cpu"))
        data[name] = on_cpu.x, on_cpu.y, on_cpu.weights, on_cpu.teacher_outputs, part.x.device == part.y.device
    goal = torch.frombuffer(bytearray(cloudpickle.dumps(task.goal)), dtype=torch.uint8)
    return data | {"goal": goal, "mean": task.mean.cpu(), "std": task.std.cpu()}


def task_from_tensors(data: Mapping[str, Any], device: torch.device) -> tuple[Task, Examples | None]:
    """The task and all examples on a device; x that was not on the driver's device stays in main memory."""

    def part(name: str) -> Examples | None:
        if data[name] is None:
            return None
        *tensors, x_on_device = data[name]
        return Examples(*tensors).to(device, x=x_on_device)

    train = part("train")
    assert train is not None
    goal: Goal = pickle.loads(data["goal"].numpy().tobytes())  # noqa: S301  # from the driver
    task = Task(train, part("valid"), goal, data["mean"].to(device), data["std"].to(device))
    return task, part("all_examples")


def write_task(path: Path, task: Task) -> None:
    """Write a task to a file for `read_task`; tensors that are views of the same storage are written once."""
    torch.save(task_to_tensors(task), path)


def read_task(path: Path, device: torch.device) -> Task:
    """The task from a file. On a CPU its examples are memory-mapped, so that all processes share them."""
    return task_from_tensors(torch.load(path, mmap=True, weights_only=True), device)[0]


# -- jobs and messages


@dataclass(frozen=True)
class Ready:
    """A worker's first message: it has started."""


@dataclass(frozen=True, eq=False)
class JobDone:
    """The result of a job. weights: in safetensors format; None: the job returned none."""

    outcome: Outcome
    weights: bytes | None


Message = Ready | Outcome | JobDone
"""What a worker sends to the driver; an `Outcome` is that of one epoch of the current job."""


def serialise_job(job: Job) -> bytes:
    """A job as bytes, without its `stop`, which cannot be serialised: a worker is stopped by the executor's `stop`."""
    for kind in {type(morph) for morph in job.morphs} | {type(node.op) for node in _graph(job).nodes}:
        send_by_value(kind)
    weights, start, job = None, job.start, replace(job, stop=None)
    if isinstance(start, Network):
        job, weights = replace(job, start=start.graph), save(dict(start.weights))
    data: bytes = cloudpickle.dumps((job, weights))
    return data


def _graph(job: Job) -> Graph:
    return job.start.graph if isinstance(job.start, Network) else job.start


def deserialise_job(data: bytes) -> Job:
    job: Job
    job, weights = pickle.loads(data)  # noqa: S301  # from the driver
    if weights is not None:
        assert isinstance(job.start, Graph)
        job = replace(job, start=Network(job.start, load(weights)))
    return job


def deserialise_result(message: Message) -> Result:
    assert isinstance(message, JobDone)
    return message.outcome, None if message.weights is None else load(message.weights)


def run_serialised_job(
    data: bytes, task: Task, all_examples: Examples | None, each_epoch: EachEpoch, stop: Stop
) -> JobDone:
    """Run a job in a worker, until `stop` is set. Any exception becomes an outcome, except for `DeviceLost`."""
    try:
        job = replace(deserialise_job(data), stop=stop)
        outcome, weights = work(job, task_for_job(job, task, all_examples), each_epoch)
    except DeviceLost:
        raise
    except BaseException:  # sys.exit() as well
        return JobDone(Outcome("failed", error=traceback.format_exc()[-4000:]), None)
    return JobDone(outcome, None if weights is None else save(weights))
