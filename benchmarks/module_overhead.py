"""The overhead of a module made from a graph, compared with the same network as a handwritten nn.Module.

Forward and backward passes of `to_module(graph)` and of an ordinary nn.Module of the same sizes are timed in turns, and
also the handwritten module against a copy of itself, which shows the noise of such a ratio on the machine. Goal: a
ratio of at most 1.03 for cnn, resnet and densenet.

    OMP_NUM_THREADS=1 python benchmarks/module_overhead.py            writes results/module_overhead.json
    python benchmarks/module_overhead.py --smoke                      a quick pass that writes nothing
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from machine import describe
from torch import Tensor, nn

from morphnas.graph import (
    Add,
    AvgPool,
    BatchNorm,
    Concat,
    Conv,
    Dense,
    Flatten,
    Graph,
    Input,
    MaxPool,
    Node,
    Op,
    ReLU,
    to_module,
)

RESULTS = Path(__file__).parent / "results" / "module_overhead.json"
SHAPE, CLASSES, BATCH, WARM_UP = (3, 32, 32), 10, 64, 3


def conv_bn(inputs: int, filters: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, filters, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(filters))


class Cnn(nn.Module):
    """Three blocks of conv-bn-relu, pooled between them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = conv_bn(3, 32), conv_bn(32, 64), conv_bn(64, 128)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(128 * 8 * 8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.one(x)))
        x = self.pool(torch.relu(self.two(x)))
        x = torch.relu(self.three(x))
        return self.head(torch.flatten(x, 1))  # type: ignore[no-any-return]


class Residual(nn.Module):
    def __init__(self, inputs: int, filters: int, stride: int) -> None:
        super().__init__()
        self.one, self.two = conv_bn(inputs, filters, stride=stride), conv_bn(filters, filters)
        pool = nn.AvgPool2d(3, stride, 1, count_include_pad=False)
        self.match = nn.Sequential(pool, *conv_bn(inputs, filters, 1)) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.two(torch.relu(self.one(x))) + self.match(x))


class ResNet(nn.Module):
    """A stem and three residual blocks, the shortcuts pooled and projected where the resolution halves."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16)
        self.blocks = nn.Sequential(Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 64, 2))
        self.head = nn.Linear(64 * 8 * 8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.blocks(torch.relu(self.stem(x))), 1))  # type: ignore[no-any-return]


class DenseNet(nn.Module):
    """A stem and three blocks of two layers that read all before them, with transitions between the blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 32)
        widths = [32]
        layers, transitions = [], []
        for block in range(3):
            if block:
                transitions.append(conv_bn(widths[-1], widths[-1] // 2, 1))
                widths.append(widths[-1] // 2)
            for _ in range(2):
                layers.append(conv_bn(widths[-1], 16))
                widths.append(widths[-1] + 16)
        self.layers, self.transitions = nn.ModuleList(layers), nn.ModuleList(transitions)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(widths[-1] * 8 * 8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for i, layer in enumerate(self.layers):
            if i and i % 2 == 0:
                x = self.pool(torch.relu(self.transitions[i // 2 - 1](x)))
            x = torch.cat([x, torch.relu(layer(x))], 1)
        return self.head(torch.flatten(x, 1))  # type: ignore[no-any-return]


class Draft:
    """Builds a graph node by node."""

    def __init__(self) -> None:
        self.nodes = [Node("x", Input(SHAPE))]

    def add(self, op: Op, *inputs: str) -> str:
        name = f"{op.tag}_{len(self.nodes)}"
        self.nodes.append(Node(name, op, inputs or (self.nodes[-1].name,)))
        return name

    def conv_bn(self, source: str, filters: int, kernel: int = 3, stride: int = 1) -> str:
        self.add(Conv(filters, kernel, stride), source)
        return self.add(BatchNorm())

    def graph(self) -> Graph:
        self.add(Flatten())
        self.add(Dense(CLASSES))
        return Graph(tuple(self.nodes))


def cnn() -> Graph:
    draft, x = Draft(), "x"
    for filters, pooled in ((32, True), (64, True), (128, False)):
        draft.conv_bn(x, filters)
        x = draft.add(ReLU())
        if pooled:
            x = draft.add(MaxPool())
    return draft.graph()


def resnet() -> Graph:
    draft = Draft()
    draft.conv_bn("x", 16)
    x = draft.add(ReLU())
    for filters, stride in ((16, 1), (32, 2), (64, 2)):
        draft.conv_bn(x, filters, stride=stride)
        end = draft.conv_bn(draft.add(ReLU()), filters)
        if stride > 1:
            x = draft.conv_bn(draft.add(AvgPool(3, stride, 1), x), filters, 1)
        draft.add(Add(), end, x)
        x = draft.add(ReLU())
    return draft.graph()


def densenet() -> Graph:
    draft, width = Draft(), 32
    draft.conv_bn("x", width)
    x = draft.add(ReLU())
    for layer in range(6):
        if layer in (2, 4):
            width //= 2
            draft.conv_bn(x, width, 1)
            draft.add(ReLU())
            x = draft.add(MaxPool())
        draft.conv_bn(x, 16)
        x = draft.add(Concat(), x, draft.add(ReLU()))
        width += 16
    return draft.graph()


NETWORKS: dict[str, tuple[Callable[[], Graph], Callable[[], nn.Module]]] = {
    "cnn": (cnn, Cnn),
    "resnet": (resnet, ResNet),
    "densenet": (densenet, DenseNet),
}


def same_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy the weights of `source` to `target`, in which those of equal shape are in the same order."""
    shapes: dict[tuple[int, ...], list[Tensor]] = {}
    for value in source.state_dict().values():
        shapes.setdefault(tuple(value.shape), []).append(value)
    with torch.no_grad():
        for value in target.state_dict().values():
            value.copy_(shapes[tuple(value.shape)].pop(0))


def step(module: nn.Module, x: Tensor, y: Tensor) -> float:
    """Seconds of a forward and a backward pass."""
    module.zero_grad(set_to_none=True)
    start = time.perf_counter()
    F.cross_entropy(module(x), y).backward()
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(one: nn.Module, other: nn.Module, x: Tensor, y: Tensor, pairs: int) -> dict[str, Any]:
    """Time both modules in turns, each first as often as second.

    ratio: the median over the pairs of one / other; quartiles: of the same. fastest: the ratio of the fastest passes.
    """
    for module in (one, other) * WARM_UP:
        step(module, x, y)
    times: list[tuple[float, float]] = []
    for i in range(pairs):
        if i % 2:
            second, first = step(other, x, y), step(one, x, y)
        else:
            first, second = step(one, x, y), step(other, x, y)
        times.append((first, second))
    ratios = [first / second for first, second in times]
    ones, others = zip(*times, strict=True)
    return {
        "pairs": pairs,
        "ratio": round(statistics.median(ratios), 4),
        "quartiles": [round(value, 4) for value in statistics.quantiles(ratios, n=4)[::2]],
        "fastest": round(min(ones) / min(others), 4),
        "milliseconds": round(1000 * statistics.median(ones), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="few repetitions, nothing written")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    pairs = 3 if arguments.smoke else 50
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, *SHAPE, generator=generator).to(arguments.device)
    y = torch.randint(CLASSES, (BATCH,), generator=generator).to(arguments.device)
    results: dict[str, object] = {}
    for name, (write, build) in NETWORKS.items():
        graph = write()
        ours, by_hand = to_module(graph).train().to(arguments.device), build().to(arguments.device)
        assert sum(p.numel() for p in by_hand.parameters()) == graph.parameters
        same_weights(ours, by_hand)
        torch.testing.assert_close(ours(x), by_hand(x), rtol=1e-4, atol=1e-4)
        against = compare(ours, by_hand, x, y, pairs)
        itself = compare(copy.deepcopy(by_hand), by_hand, x, y, pairs)
        results[name] = {"graph_against_hand": against, "hand_against_itself": itself, "parameters": graph.parameters}
        print(
            f"{name:9} graph / by hand {against['ratio']:.3f} {against['quartiles']}   "
            f"by hand / itself {itself['ratio']:.3f} {itself['quartiles']}   {against['milliseconds']} ms"
        )
    if not arguments.smoke:
        RESULTS.parent.mkdir(exist_ok=True)
        about = {"batch": BATCH, "input": SHAPE, "device": arguments.device, "spread": "quartiles over the pairs"}
        RESULTS.write_text(json.dumps({**describe(), **about, "networks": results}, indent=1) + "\n", encoding="utf-8")
        print(f"written to {RESULTS}")


if __name__ == "__main__":
    main()
