"""What a network says of examples, and how good that is."""

from __future__ import annotations

import math

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn import functional as F

from morphnas.train.data import Examples, Task
from morphnas.train.deadline import Deadline, OutOfTime
from morphnas.train.step import is_out_of_memory

FIRST_CHUNK = 32
"""Examples that are scored first when there is a deadline; each time twice as many follow."""


class Diverged(ArithmeticError):
    """The loss exploded, or it or the network's outputs are no numbers any more."""


def evaluate(
    module: nn.Module, examples: Examples, task: Task, batch_size: int = 512, deadline: Deadline | None = None
) -> tuple[float, float]:
    """Minus the mean log loss, and the accuracy. Diverged when an output is no number, OutOfTime at the deadline."""
    logits = predict(module, examples.x, task, batch_size, deadline)
    if len(logits) < len(examples):
        raise OutOfTime("the deadline came before all examples were scored")
    if not logits.isfinite().all():
        raise Diverged("the network's outputs are no numbers any more")
    score = -F.cross_entropy(logits.double(), examples.y).item()
    return score, (logits.argmax(1) == examples.y).double().mean().item()


def chunk(micro: int | None) -> int:
    """Examples to pass through a network at once where there is no backward pass.

    micro: that a step can have in memory; None or 0: whole batches.
    """
    return min(512, 4 * micro) if micro else 512


def best_temperature(logits: Tensor, y: Tensor) -> float:
    """What logits (n, classes) are to be divided by for the least log loss, from 1/4 to 4 (Guo et al. 2017,
    arXiv:1706.04599). Makes up for label smoothing, which leaves a network too doubtful.

    A label counts as right with probability (n + 1) / (n + 2), Laplace's rule: n examples without a mistake do not say
    that there will be none (Platt 1999, "Probabilistic outputs for support vector machines", section 2.2).
    """
    values, classes = logits.double(), logits.shape[1]
    doubt = min(1.0, classes / (max(1, classes - 1) * (len(y) + 2)))

    def loss(log_temperature: float) -> float:
        return F.cross_entropy(values * math.exp(-log_temperature), y, label_smoothing=doubt).item()

    found = minimize_scalar(loss, bounds=(-math.log(4), math.log(4)), method="bounded", options={"xatol": 1e-3})
    return math.exp(found.x)


@torch.no_grad()
def predict(
    module: nn.Module,
    x: Tensor,
    task: Task,
    batch_size: int = 512,
    deadline: Deadline | None = None,
    mirrored: bool = False,
) -> Tensor:
    """Logits (n, classes) float32 of raw examples (n, *shape), in evaluation mode.

    mirrored: the means of every image's and its mirror image's (test-time augmentation).
    With a deadline they are those of as many examples, from the first on, as there is time for. Out of memory, it goes
    on with half as many at a time.
    """
    module.eval()
    parts = [torch.empty(0, task.n_classes, device=task.device)]
    done, pace, size = 0, 0.0, batch_size if deadline is None else min(FIRST_CHUNK, batch_size)
    while done < len(x):
        part = x[done : done + size]
        if deadline is not None and deadline.left <= pace * len(part):
            break
        begun = deadline.left if deadline else 0.0
        try:
            pixels = task.normalised(part.to(task.device))
            logits = module(pixels).float()
            parts.append((logits + module(pixels.flip(-1)).float()) / 2 if mirrored else logits)
        except Exception as error:
            if len(part) == 1 or not is_out_of_memory(error):
                raise
            batch_size = size = len(part) // 2
            continue
        done += len(part)
        if deadline is not None:
            if task.device.type == "cuda":
                torch.cuda.synchronize(task.device)
            pace, size = (begun - deadline.left) / len(part), min(2 * size, batch_size)
    return torch.cat(parts)
