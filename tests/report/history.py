"""A made-up history of a search, with trials of every status except "oom"."""

from __future__ import annotations

from morphnas.graph import (
    AddSkip,
    BatchNorm,
    Conv,
    Deeper,
    Dense,
    Flatten,
    GlobalPool,
    Graph,
    MaxPool,
    Morph,
    ReLU,
    Wider,
)
from morphnas.search.trial import Proposal, Trial
from morphnas.train.recipe import Outcome, Recipe
from tests.strategies import sequential

SMALL = sequential(Flatten(), Dense(8, bias=False), BatchNorm(), ReLU(), Dense(10), shape=(1, 8, 8))
LARGE = sequential(
    Conv(8), BatchNorm(), ReLU(), MaxPool(), Conv(16), BatchNorm(), ReLU(), Conv(16, 5, 2), BatchNorm(), ReLU(),
    GlobalPool(), Dense(10), shape=(1, 8, 8),
)  # fmt: skip
GOOD = Outcome("finished", -0.25, 0.925, 12.34, 4, 4, examples=400)


def trial(
    number: int,
    start: Graph | Trial,
    *morphs: Morph,
    outcome: Outcome | None = GOOD,
    epochs: int = 4,
) -> Trial:
    graph = start if isinstance(start, Graph) else start.graph
    for morph in morphs:
        graph = morph.grow(graph)
    origin = start if isinstance(start, Graph) else start.id
    return Trial(number, Proposal(origin, morphs, Recipe(epochs=epochs)), graph, outcome, outcome is not None)


def history() -> list[Trial]:
    first = trial(0, LARGE)
    second = trial(1, SMALL, outcome=Outcome("finished", -0.5, 0.85, 2.0, 4, 3, examples=400))
    better = trial(2, first, Wider("conv_1", 12), outcome=Outcome("finished", -0.125, 0.95, 75.0, 4, 4, examples=400))
    return [
        first,
        second,
        better,
        trial(3, better, AddSkip("relu_3", "relu_10"), Deeper("relu_3"), outcome=Outcome("failed", error="no")),
        trial(4, first, Deeper("relu_3"), outcome=Outcome("truncated", -0.3, 0.9, 3.0, 2, 1, examples=400)),
        trial(5, better, outcome=Outcome("finished", -0.1, 0.96, 200.0, 8, 8, examples=400), epochs=8),
        trial(6, second, Deeper("relu_4"), outcome=Outcome("diverged", seconds=1.0, epochs=1)),
        trial(7, better, Deeper("relu_7"), outcome=None),
    ]
