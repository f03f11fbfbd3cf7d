"""What a network says of examples, and how good that is."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from morphnas.train.data import Examples, Task, clip_limit
from morphnas.train.deadline import Deadline, OutOfTime
from morphnas.train.step import is_out_of_memory

WARM, WARMING = 8, 0.05
"""Passes of one example of which the first ones are slow, and seconds that these may take in any case."""
HANDED_OVER = 1.05
"""What a module that is handed over takes of that time, since its preprocessing is inside (`benchmarks/latency.py`)."""
FIRST_CHUNK = 32
"""Examples that are scored first when there is a deadline; each time twice as many follow."""

_PRECISE = threading.Lock()


class Diverged(ArithmeticError):
    """The loss exploded, or it or the network's outputs are no numbers any more."""


def evaluate(
    module: nn.Module, examples: Examples, task: Task, batch_size: int = 512, deadline: Deadline | None = None
) -> tuple[float, float]:
    """The score and the metric. Diverged when an output or the score is no number, OutOfTime at the deadline,
    Unmeasured where a metric of the user's own says nothing of them."""
    outputs = predict(module, examples.x, task, batch_size, deadline)
    if len(outputs) < len(examples):
        raise OutOfTime("the deadline came before all examples were scored")
    if not outputs.isfinite().all():
        raise Diverged("the network's outputs are no numbers any more")
    score, metric = task.goal.score_and_metric(outputs, examples.y, examples.weights)
    if not math.isfinite(score):
        raise Diverged("the loss of the validation examples is no number any more")
    return score, metric


def chunk(micro: int | None) -> int:
    """Examples to pass through a network at once where there is no backward pass.

    micro: that a step can have in memory; None or 0: whole batches.
    """
    return min(512, 4 * micro) if micro else 512


@torch.no_grad()
def latency(module: nn.Module, task: Task, seconds: float = 0.1) -> float:
    """Seconds from one raw example to its outputs, with all that is done to them where the network is used: the median
    of as many passes as there is time for, `WARM` to 200, but for the first ones, times `HANDED_OVER`.
    """
    module.eval()
    x, most = task.evaluation_set.x[:1].to(task.device), clip_limit(task.mean)
    times, first = list[float](), time.perf_counter()
    while not times or (
        len(times) < 200 and time.perf_counter() - first < (seconds if len(times) >= WARM else WARMING)
    ):
        begun = time.perf_counter()
        _ = module(((x.float() - task.mean) / task.std).clamp(-most, most)) / 1.0
        if task.device.type == "cuda":
            torch.cuda.current_stream(task.device).synchronize()
        times.append(time.perf_counter() - begun)
    return HANDED_OVER * statistics.median(times[min(WARM // 2, len(times) // 2) :])


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Inside, convolutions on a GPU compute in float32 as it is; torch's default is TF32, 10 bits instead of 23.

    One thread is inside at a time, since that is a setting of the whole process.
    """
    if device.type != "cuda":
        yield
        return
    flags: Any = torch.backends.cudnn
    with _PRECISE:
        if hasattr(flags, "conv"):  # since torch 2.9, where the other one may not be read any more once this is set
            before = flags.conv.fp32_precision
            before, flags.conv.fp32_precision = "none" if before == flags.fp32_precision else before, "ieee"
        else:
            before, flags.allow_tf32 = flags.allow_tf32, False
        try:
            yield
        finally:
            if hasattr(flags, "conv"):
                flags.conv.fp32_precision = before  # "none" is what stands above it
            else:
                flags.allow_tf32 = before


@torch.no_grad()
def predict(
    module: nn.Module,
    x: Tensor,
    task: Task,
    batch_size: int = 512,
    deadline: Deadline | None = None,
    mirrored: bool = False,
) -> Tensor:
    """Outputs (n, outputs) float32 of raw examples (n, *shape), in evaluation mode.

    mirrored: the means of every image's and its mirror image's (test-time augmentation).
    With a deadline they are those of as many examples, from the first on, as there is time for. Out of memory, it goes
    on with half as many at a time.
    """
    module.eval()
    parts = [torch.empty(0, task.goal.outputs, device=task.device)]
    done, pace, size = 0, 0.0, batch_size if deadline is None else min(FIRST_CHUNK, batch_size)
    while done < len(x):
        part = x[done : done + size]
        if deadline is not None and deadline.left <= pace * len(part):
            break
        begun = deadline.left if deadline else 0.0
        try:
            pixels = task.normalised(part.to(task.device))
            outputs = module(pixels).float()
            parts.append((outputs + module(pixels.flip(-1)).float()) / 2 if mirrored else outputs)
        except Exception as error:
            if len(part) == 1 or not is_out_of_memory(error):
                raise
            batch_size = size = len(part) // 2
            continue
        done += len(part)
        if deadline is not None:
            if task.device.type == "cuda":
                torch.cuda.current_stream(task.device).synchronize()
            pace, size = (begun - deadline.left) / len(part), min(2 * size, batch_size)
    return torch.cat(parts)
