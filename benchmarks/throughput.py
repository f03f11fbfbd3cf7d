"""Images per second of our training loop and of two handwritten loops, for the same network in the same run.

    python benchmarks/throughput.py [--repeats 10] [--smoke]

The plain loop is what tutorials show: a Dataset that pads and crops each image by itself, a DataLoader, `model(x)`. The
optimised one keeps all images as one tensor and shifts whole batches by one gather, channels last (`handwritten.py`).
All three train `cnn` of width 16 on 6,000 random images (28, 28), shifted by up to 3 pixels, in batches of 64 with
Nesterov SGD and label smoothing, for an epoch at a time and in turns. Writes results/throughput.json: median and
quartiles of the ratios ours / theirs over the repeats, and of the optimised loop against itself.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from handwritten import moved
from machine import describe
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from morphnas.graph import cnn, to_module
from morphnas.train.data import Examples, Task
from morphnas.train.deadline import Deadline
from morphnas.train.goal import Classification
from morphnas.train.recipe import Augment, Recipe
from morphnas.train.trainer import load_optimizers, train

RESULTS = Path(__file__).parent / "results" / "throughput.json"
BATCH, REACH, RATE = 64, 3, 0.05


class Images(Dataset[tuple[Tensor, Tensor]]):
    """Images (1, 28, 28) that are normalised and shifted one at a time."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def __len__(self) -> int:
        return len(self.task.train)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        x = (self.task.train.x[i].float() - self.task.mean) / self.task.std
        padded = F.pad(x, (REACH,) * 4, mode="replicate")
        down, right = torch.randint(0, 2 * REACH + 1, (2,)).tolist()
        return padded[:, down : down + x.shape[1], right : right + x.shape[2]], self.task.train.y[i]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)


def plain(model: nn.Module, task: Task) -> None:
    optimizer = sgd(model)
    for x, y in DataLoader(Images(task), batch_size=BATCH, shuffle=True):
        loss = F.cross_entropy(model(x), y, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def optimised(model: nn.Module, task: Task) -> None:
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer, generator = sgd(model), torch.Generator().manual_seed(0)
    for index in torch.randperm(len(task.train), generator=generator).split(BATCH):
        x = moved((task.train.x[index].float() - task.mean) / task.std, REACH, False, generator)
        logits = model(x.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits, task.train.y[index], label_smoothing=0.1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def ours(model: nn.Module, task: Task) -> None:
    recipe = Recipe(epochs=1, batch_size=BATCH, lr=RATE, augment=Augment(shift=REACH / 28))
    train(model, task, recipe, Deadline.after(1e6), torch.Generator().manual_seed(0), scored=False)


LOOPS: dict[str, Callable[[nn.Module, Task], None]] = {
    "ours": ours, "plain": plain, "optimised": optimised, "optimised again": optimised,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--smoke", action="store_true", help="few images, two repeats, nothing written")
    args = parser.parse_args()
    n, repeats = (640, 2) if args.smoke else (6000, args.repeats)
    load_optimizers()
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (n, 1, 28, 28), dtype=torch.uint8, generator=generator)
    task = Task.of(Examples(x, torch.arange(n) % 10), None, Classification(10))
    graph = cnn((1, 28, 28), 10, width=16, depth=4)
    seconds: dict[str, list[float]] = {name: [] for name in LOOPS}
    for repeat in range(repeats + 1):
        for name, loop in LOOPS.items():
            model = to_module(graph).train()
            start = time.perf_counter()
            loop(model, task)
            if repeat:  # the first one warms up
                seconds[name].append(time.perf_counter() - start)
    ratios = {}
    for name in ("plain", "optimised", "optimised again"):
        against = "optimised" if name == "optimised again" else "ours"
        all_of = sorted(b / a for a, b in zip(seconds[against], seconds[name], strict=True))
        low, middle, high = statistics.quantiles(all_of, n=4)
        ratios[f"{against} / {name}"] = {"median": round(middle, 3), "quartiles": [round(low, 3), round(high, 3)]}
    result = {
        "n": repeats,
        "images_per_second": {name: round(n / statistics.median(values)) for name, values in seconds.items()},
        "ratios_of_images_per_second": ratios,
    }
    print(json.dumps(result, indent=1))
    if not args.smoke:
        RESULTS.write_text(json.dumps(describe() | result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
