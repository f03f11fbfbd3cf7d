"""A network's outputs, score and latency."""

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

LATENCY_PASSES, LATENCY_PASSES_SECONDS = 8, 0.05
"""Passes of one example that are measured even if they take longer than `seconds`, up to these seconds, see `latency`.
"""
EXPORT_OVERHEAD = 1.05
"""Factor on measured latencies for exported modules, which do the preprocessing themselves (`benchmarks/latency.py`).
"""
FIRST_BATCH_SIZE = 32
"""Examples in the first batch that is predicted under a deadline; every further batch is twice as large, up to the
batch size."""

_PRECISION_LOCK = threading.Lock()


class Diverged(ArithmeticError):
    """The loss exploded, or the loss, the outputs or the weights became NaN or infinite."""


def evaluate(
    module: nn.Module, examples: Examples, task: Task, batch_size: int = 512, deadline: Deadline | None = None
) -> tuple[float, float]:
    """The score and the metric of a network on examples.

    Diverged if an output or the score is NaN or infinite; OutOfTime if the deadline leaves no time for all examples;
    UndefinedMetric if a user-defined metric has no finite value.
    """
    outputs = predict(module, examples.x, task, batch_size, deadline)
    if len(outputs) < len(examples):
        raise OutOfTime("the deadline came before all examples were scored")
    if not outputs.isfinite().all():
        raise Diverged("the network's outputs are NaN or infinite")
    score, metric = task.goal.score_and_metric(outputs, examples.y, examples.weights)
    if not math.isfinite(score):
        raise Diverged("the validation score is NaN or infinite")
    return score, metric


def evaluation_batch_size(micro: int | None) -> int:
    """The batch size for forward passes alone.

    micro: the micro-batch size of training steps; None or 0: not limited.
    """
    return min(512, 4 * micro) if micro else 512


@torch.no_grad()
def latency(module: nn.Module, task: Task, seconds: float = 0.1) -> float:
    """Seconds from one raw example to its outputs, including the normalisation and temperature of an exported module.

    The median over 1 to 200 passes of one example, times `EXPORT_OVERHEAD`. They end once `seconds` have passed, with
    fewer than `LATENCY_PASSES` not before `LATENCY_PASSES_SECONDS`. The first passes are warm-up and left out: half of
    them, at most half of `LATENCY_PASSES`.
    """
    module.eval()
    x, limit = task.evaluation_set.x[:1].to(task.device), clip_limit(task.mean)
    times, first = list[float](), time.perf_counter()
    while not times or (
        len(times) < 200
        and time.perf_counter() - first < max(seconds, LATENCY_PASSES_SECONDS * (len(times) < LATENCY_PASSES))
    ):
        start = time.perf_counter()
        _ = module(((x.float() - task.mean) / task.std).clamp(-limit, limit)) / 1.0
        if task.device.type == "cuda":
            torch.cuda.current_stream(task.device).synchronize()
        times.append(time.perf_counter() - start)
    return EXPORT_OVERHEAD * statistics.median(times[min(LATENCY_PASSES // 2, len(times) // 2) :])


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """In this context convolutions on a GPU use full float32; PyTorch's default is TF32, with a mantissa of 10 bits
    instead of 23.

    One thread at a time can be inside, since this is a setting of the whole process.
    """
    if device.type != "cuda":
        yield
        return
    flags: Any = torch.backends.cudnn
    with _PRECISION_LOCK:
        if hasattr(flags, "conv"):  # since torch 2.9, where allow_tf32 may not be read once this is set
            before = flags.conv.fp32_precision
            before, flags.conv.fp32_precision = "none" if before == flags.fp32_precision else before, "ieee"
        else:
            before, flags.allow_tf32 = flags.allow_tf32, False
        try:
            yield
        finally:
            if hasattr(flags, "conv"):
                flags.conv.fp32_precision = before  # "none" inherits `flags.fp32_precision`
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

    deadline: the result has the outputs of only the first examples, as many as there is time for.
    mirrored: return the mean outputs of every image and its mirror image (test-time augmentation).
    When a batch does not fit into memory, the batch size is halved; PyTorch's out-of-memory error if not even one
    example fits.
    """
    module.eval()
    results: list[Tensor] = []
    done, pace, size = 0, 0.0, batch_size if deadline is None else min(FIRST_BATCH_SIZE, batch_size)
    while done < len(x):
        batch = x[done : done + size]
        if deadline is not None and deadline.left <= pace * len(batch):
            break
        left = deadline.left if deadline else 0.0
        try:
            inputs = task.normalised(batch.to(task.device))
            outputs = module(inputs).float()
            results.append((outputs + module(inputs.flip(-1)).float()) / 2 if mirrored else outputs)
        except Exception as error:
            if len(batch) == 1 or not is_out_of_memory(error):
                raise
            batch_size = size = len(batch) // 2
            continue
        done += len(batch)
        if deadline is not None:
            if task.device.type == "cuda":
                torch.cuda.current_stream(task.device).synchronize()
            pace, size = (left - deadline.left) / len(batch), min(2 * size, batch_size)
    return torch.cat(results) if results else torch.empty(0, task.goal.outputs, device=task.device)
