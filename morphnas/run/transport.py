"""What travels between processes: the task once, jobs to the workers, and answers back.

Weights travel as safetensors, all else pickled: by value where a class is of the user's script, which workers do not
run. Nothing of this stays on disk.
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


def send_by_value(own: object) -> None:
    """Have other processes be sent the module that a function, an object or a class is from, where they could not
    import it: it was loaded from a file that is nowhere on the path."""
    name = getattr(own, "__module__", None)
    if not isinstance(name, str) or name == "__main__":
        return
    module, top = sys.modules.get(name), name.partition(".")[0]
    if top == __name__.partition(".")[0] or module is None or not getattr(module, "__file__", None):
        return
    if not any(finder.find_spec(top, None) for finder in sys.meta_path if hasattr(finder, "find_spec")):
        cloudpickle.register_pickle_by_value(module)


def part_for(job: Job, task: Task, everything: Examples | None) -> Task:
    """The task as a job sees it: trainings that nobody judges are on everything."""
    return task if job.scored or everything is None else replace(task, train=everything)


# -- tasks


def tensors(task: Task, everything: Examples | None = None) -> dict[str, Any]:
    """A task as tensors on the CPU. x that is not on the task's device stays in main memory there, too."""
    parts = {"train": task.train, "valid": task.valid, "everything": everything}
    held: dict[str, Any] = {}
    for name, part in parts.items():
        if part is None:
            held[name] = None
            continue
        here = part.to(torch.device("cpu"))
        held[name] = here.x, here.y, here.weights, here.teacher_outputs, part.x.device == part.y.device
    goal = torch.frombuffer(bytearray(cloudpickle.dumps(task.goal)), dtype=torch.uint8)
    return held | {"goal": goal, "mean": task.mean.cpu(), "std": task.std.cpu()}


def task_of(held: Mapping[str, Any], device: torch.device) -> tuple[Task, Examples | None]:
    """The task, and everything, on a device."""

    def part(name: str) -> Examples | None:
        if held[name] is None:
            return None
        *several, resident = held[name]
        return Examples(*several).to(device, x=resident)

    train = part("train")
    assert train is not None
    goal: Goal = pickle.loads(held["goal"].numpy().tobytes())  # noqa: S301  # of the driver
    task = Task(train, part("valid"), goal, held["mean"].to(device), held["std"].to(device))
    return task, part("everything")


def write_task(path: Path, task: Task) -> None:
    """Write a task to a file for `read_task`; parts that are views of the same data are written once."""
    torch.save(tensors(task), path)


def read_task(path: Path, device: torch.device) -> Task:
    """The task in a file; on a CPU its examples stay there, mapped, so that all who read it have them in common."""
    return task_of(torch.load(path, mmap=True, weights_only=True), device)[0]


# -- jobs and answers


@dataclass(frozen=True)
class Ready:
    """The first thing that a worker says."""


@dataclass(frozen=True, eq=False)
class Done:
    """What came of a job, with the weights as they travel."""

    outcome: Outcome
    weights: bytes | None


Answer = Ready | Outcome | Done
"""An outcome is that of an epoch."""


def sealed(job: Job) -> bytes:
    """A job as it travels: its stop cannot, a worker is told by the executor's `stop`."""
    for kind in {type(morph) for morph in job.morphs} | {type(node.op) for node in _graph(job).nodes}:
        send_by_value(kind)
    weights, start, job = None, job.start, replace(job, stop=None)
    if isinstance(start, Network):
        job, weights = replace(job, start=start.graph), save(dict(start.weights))
    parcel: bytes = cloudpickle.dumps((job, weights))
    return parcel


def _graph(job: Job) -> Graph:
    return job.start.graph if isinstance(job.start, Network) else job.start


def opened(parcel: bytes) -> Job:
    job: Job
    job, weights = pickle.loads(parcel)  # noqa: S301  # of the driver
    if weights is not None:
        assert isinstance(job.start, Graph)
        job = replace(job, start=Network(job.start, load(weights)))
    return job


def unsealed(answer: Answer) -> Result:
    assert isinstance(answer, Done)
    return answer.outcome, None if answer.weights is None else load(answer.weights)


def done(parcel: bytes, task: Task, everything: Examples | None, each_epoch: EachEpoch, stop: Stop) -> Done:
    """Do a job that has arrived, until `stop` is asked. Whatever it raises is an outcome, but for DeviceGone."""
    try:
        job = replace(opened(parcel), stop=stop)
        outcome, weights = work(job, part_for(job, task, everything), each_epoch)
    except DeviceLost:
        raise
    except BaseException:  # sys.exit() as well
        return Done(Outcome("failed", error=traceback.format_exc()[-4000:]), None)
    return Done(outcome, None if weights is None else save(weights))
