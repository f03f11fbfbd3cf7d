"""The duration of training steps on this machine, and how well a graph's `work` predicts it.

Times steps of starters of many widths and three image sizes, fits seconds = a * FLOPs + b * activation bytes + c *
nodes with weights that make errors relative, and compares the ratios b / a and c / a with those that `Graph.work` uses.

    OMP_NUM_THREADS=1 python benchmarks/cost_model.py [--precision bfloat16]
    python benchmarks/cost_model.py --smoke                      a quick pass that writes nothing

Appends to results/cost_model.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import get_args

import numpy as np
import torch
import torch.nn.functional as F
from machine import append
from scipy.optimize import nnls

from morphnas.graph import Graph, Shape, cnn, densenet, resnet, to_module
from morphnas.graph.graph import FLOPS_PER_BYTE, FLOPS_PER_NODE
from morphnas.train.recipe import Precision
from morphnas.train.step import autocast_to

RESULTS = Path(__file__).parent / "results" / "cost_model.json"
BATCH = 64
SHAPES: tuple[Shape, ...] = ((1, 28, 28), (3, 32, 32), (1, 8, 8))


def networks(shape: Shape, widths: tuple[int, ...]) -> dict[str, Graph]:
    made = {}
    for width in widths:
        made[f"cnn width {width}"] = cnn(shape, 10, width=width, depth=4)
        made[f"resnet width {width}"] = resnet(shape, 10, width=width, depth=2)
        made[f"densenet width {width}"] = densenet(shape, 10, width=width, depth=6)
    return made


def step_seconds(graph: Graph, repeats: int, precision: Precision) -> float:
    """The duration of the fastest of several training steps, least affected by other load on the machine."""
    module = to_module(graph).train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9, nesterov=True, fused=True)
    x, y = torch.randn(BATCH, *graph.shapes["x"]), torch.randint(0, 10, (BATCH,))
    times = []
    for _ in range(2 + repeats):
        start = time.perf_counter()
        with autocast_to(precision, x.device):
            outputs = module(x)
        loss = F.cross_entropy(outputs.float(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
    return min(times[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=get_args(Precision), default="float32")
    parser.add_argument("--smoke", action="store_true", help="few networks and steps, nothing is written")
    args = parser.parse_args()
    shapes, widths = (SHAPES[2:], (8,)) if args.smoke else (SHAPES, (4, 8, 16, 32))

    names, parts, seconds, work = [], [], [], []
    for shape in shapes:
        for name, graph in networks(shape, widths).items():
            names.append(f"{name} {shape}")
            parts.append([graph.flops * BATCH, graph.activation_bytes * BATCH, len(graph.nodes)])
            work.append(graph.work * BATCH)
            seconds.append(step_seconds(graph, 3 if args.smoke else 15, args.precision))
    table, measured = np.array(parts, dtype=float), np.array(seconds)
    (flop, byte, node), _ = nnls(table / measured[:, None], np.ones(len(measured)))
    scale = statistics.median(measured / np.array(work))
    errors = scale * np.array(work) / measured
    flops_only = table[:, 0] * statistics.median(measured / table[:, 0]) / measured

    print(f"seconds per FLOP {flop:.3g}, per byte {byte:.3g}, per node and step {node:.3g}")
    if flop:
        print(f"FLOPs per byte {byte / flop:.1f} (used: {FLOPS_PER_BYTE})")
        print(f"FLOPs per node and example {node / flop / BATCH:,.0f} (used: {FLOPS_PER_NODE:,})")
    for name, by_work, by_flops, step_time in zip(names, errors, flops_only, measured, strict=True):
        ratios = f"predicted / measured {by_work:5.2f}   by FLOPs alone {by_flops:5.2f}"
        print(f"{name:32} {1e3 * step_time:8.2f} ms   {ratios}")
    if not args.smoke:
        spread = {
            key: dict(zip(("min", "quarter", "median", "three_quarters", "max"),
                          np.round(np.quantile(values, [0, 0.25, 0.5, 0.75, 1]), 3).tolist(), strict=True))
            for key, values in (("work", errors), ("flops_alone", flops_only))
        }  # fmt: skip
        result = {
            "precision": args.precision,
            "batch": BATCH,
            "networks": len(names),
            "seconds_per_flop": flop,
            "flops_per_byte": byte / flop if flop else None,
            "flops_per_node_and_example": node / flop / BATCH if flop else None,
            "predicted_over_measured": spread,
            "milliseconds": {name: round(1e3 * step_time, 3) for name, step_time in zip(names, measured, strict=True)},
        }
        append(RESULTS, result)


if __name__ == "__main__":
    main()
