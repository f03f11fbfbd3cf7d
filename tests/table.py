"""A tabular benchmark: the search space NAS-Bench-Macro on CIFAR-10, with the accuracies of all its networks (see
tests/data/README.md), so that searches can be run without training.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from morphnas.graph import (
    Add,
    BatchNorm,
    Conv,
    Dense,
    GlobalPool,
    Graph,
    Input,
    Morph,
    MorphError,
    Node,
    Op,
    ReLU,
)  # fmt: skip
from morphnas.search import Budget, Proposal, Searcher, Trial
from morphnas.train.recipe import Outcome

SLOTS = ((64, 2), (64, 1), (128, 2), (128, 1), (128, 1), (256, 2), (256, 1), (256, 1))
"""Width and stride of the eight blocks."""

BLOCKS = {"1": (3, 3), "2": (5, 6)}
"""Kernel and expansion of a light and of a heavy block."""


@cache
def accuracies() -> NDArray[np.float64]:
    """Test accuracy of every network in three trainings, (6561, 3), in [0, 1]."""
    with np.load(Path(__file__).parent / "data" / "nas_bench_macro.npz") as data:
        return np.asarray(data["accuracy"], dtype=np.float64) / 1e4


def accuracy(digits: str) -> float:
    """Mean test accuracy of the network with these blocks."""
    return float(accuracies()[int(digits, 3)].mean())


def best_accuracy() -> float:
    return float(accuracies().mean(axis=1).max())


@cache
def table_network(digits: str) -> Graph:
    """The network with these blocks; each depthwise convolution is merged with the expansion before it."""
    nodes = [Node("x", Input((3, 32, 32)))]

    def add(name: str, op: Op, *inputs: str) -> str:
        nodes.append(Node(name, op, inputs))
        return name

    def conv_bn(name: str, op: Op, source: str) -> str:
        return add(f"{name}_bn", BatchNorm(), add(name, op, source))

    last, width = add("stem_relu", ReLU(), conv_bn("stem", Conv(32), "x")), 32
    for slot, (digit, (filters, stride)) in enumerate(zip(digits, SLOTS, strict=True)):
        if digit in BLOCKS:
            kernel, expansion = BLOCKS[digit]
            wide = conv_bn(f"block_{slot}", Conv(width * expansion, kernel, stride), last)
            out = conv_bn(f"project_{slot}", Conv(filters, 1), add(f"relu_{slot}", ReLU(), wide))
            last = add(f"add_{slot}", Add(), out, last) if stride == 1 else out
        elif stride > 1:
            last = conv_bn(f"reduce_{slot}", Conv(filters, 3, stride), last)
        width = filters
    last = add("head_relu", ReLU(), conv_bn("head", Conv(1280, 1), last))
    add("logits", Dense(10), add("pool", GlobalPool(), last))
    return Graph(tuple(nodes))


def digits_of(graph: Graph) -> str:
    """The table's key of a network."""
    kernels = {kernel: digit for digit, (kernel, _) in BLOCKS.items()}
    names = (f"block_{slot}" for slot in range(len(SLOTS)))
    return "".join(kernels[graph[name].op.kernel] if name in graph else "0" for name in names)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Swap(Morph):
    """Replaces the block in a slot. Its tag is "deeper" from none to light, "wider" from light to heavy, otherwise
    "smaller"."""

    slot: int
    old: str
    new: str

    @property
    def tag(self) -> str:  # type: ignore[override]
        return {"01": "deeper", "12": "wider"}.get(self.old + self.new, "smaller")

    def grow(self, graph: Graph) -> Graph:
        digits = digits_of(graph)
        if digits[self.slot] != self.old:
            raise MorphError(f"{self}: block {self.slot} is {digits[self.slot]}")
        return table_network(digits[: self.slot] + self.new + digits[self.slot + 1 :])


@dataclass(frozen=True)
class TableSpace:
    """The networks of the table that can be grown from the starts; with `shrink`, where morphs can also make blocks
    smaller, all of them."""

    keys: tuple[str, ...] = ("00000000", "00100100", "01010010", "11111111")
    shrink: bool = False

    @property
    def starts(self) -> tuple[Graph, ...]:
        return tuple(map(table_network, self.keys))

    def neighbours(self, graph: Graph) -> Iterable[Morph]:
        for slot, old in enumerate(digits_of(graph)):
            for new in {"0": "1", "1": "02" if self.shrink else "2", "2": "1" if self.shrink else ""}[old]:
                yield Swap(slot, old, new)


def table_outcome(digits: str, seed: int = 0) -> Outcome:
    """One of the three trainings of a network, chosen by the seed. The score is minus the logarithm of the error."""
    training = zlib.crc32(f"{digits} {seed}".encode()) % 3
    value = float(accuracies()[int(digits, 3), training])
    return Outcome("finished", -math.log(1 - value), value, epochs=8, best_epoch=8, examples=10_000)


def outcome_of(graph: Graph, seed: int = 0) -> Outcome:
    return table_outcome(digits_of(graph), seed)


def running_trial(trials: Sequence[Trial], proposal: Proposal) -> Trial:
    """The proposal as the next trial, without an outcome."""
    graph = proposal.start if isinstance(proposal.start, Graph) else trials[proposal.start].graph
    for morph in proposal.morphs:
        graph = morph.grow(graph)
    return Trial(len(trials), proposal, graph)


def score(trial: Trial) -> float:
    """The score of a trial that has one."""
    assert trial.score is not None
    return trial.score


def with_score(trial: Trial, score: float, **changes: Any) -> Trial:
    """The trial with this score, and with other changes of its outcome."""
    assert trial.outcome is not None
    return replace(trial, outcome=replace(trial.outcome, score=score, **changes))


def run_search(searcher: Searcher, n: int, seed: int = 0) -> list[Trial]:
    """The trials of a search for up to `n` networks, with outcomes from the table; fewer if the search ends earlier."""
    trials: list[Trial] = []
    while (proposal := searcher.ask(tuple(trials), Budget(math.inf, n - len(trials)))) is not None:
        trial = running_trial(trials, proposal)
        trials.append(replace(trial, outcome=outcome_of(trial.graph, seed), kept=True))
    return trials


def shortfall(trials: Sequence[Trial], cost: str = "flops") -> float:
    """Difference in mean accuracy between the table's and the trials' best network within a budget, averaged over
    log2(budget) from the least to the highest cost of the table.

    cost: "flops" or "parameters". Budgets below the cheapest trial count with the lowest accuracy of the table.
    """
    costs, accuracies = _costs_and_accuracies(cost)
    own = [getattr(trial.graph, cost) for trial in trials], [true_accuracy(trial) for trial in trials]
    return _mean_best(costs, accuracies, costs) - _mean_best(*own, costs)


@cache
def _costs_and_accuracies(cost: str) -> tuple[list[int], list[float]]:
    """Costs and mean accuracies of all networks of the table."""
    keys = [np.base_repr(i, 3).zfill(len(SLOTS)) for i in range(3 ** len(SLOTS))]
    return [getattr(table_network(digits), cost) for digits in keys], [accuracy(digits) for digits in keys]


def _mean_best(costs: Sequence[int], values: Sequence[float], table: Sequence[int]) -> float:
    """The best value within a budget, averaged over log2(budget) across the costs of the table."""
    order = np.argsort(costs)
    budgets = np.log2(np.concatenate([[min(table)], np.array(costs)[order], [max(table)]]))
    best = np.maximum.accumulate(np.concatenate([[accuracies().mean(axis=1).min()], np.array(values)[order]]))
    return float((np.diff(budgets) * best).sum() / (budgets[-1] - budgets[0]))


def true_accuracy(trial: Trial | None) -> float:
    return 0.0 if trial is None else accuracy(digits_of(trial.graph))
