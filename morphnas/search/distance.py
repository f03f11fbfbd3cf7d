"""How far apart two networks are: an edit distance over their layers, which know their resolution and their skips.

    >>> from morphnas.graph import Deeper, cnn
    >>> graph = cnn((3, 32, 32), 10)
    >>> deeper = Deeper("relu_3").grow(graph)
    >>> distances([sketch(graph)], [sketch(graph), sketch(deeper)]).tolist()
    [[0.0, 1.0]]

A pseudometric: symmetric, zero on itself, and with the triangle inequality. Networks at distance zero may still differ
in what is not looked at (activations, norms, which branch comes first): equality is `Graph.key`. After Jin, Song and Hu
2018, Auto-Keras (arXiv:1806.10282), section 3.1, with three changes. A layer knows its resolution. A skip is known to
the layer behind which it ends, by how far it reaches back, instead of being matched with the other skips by itself: so
an insertion moves no skip before or behind it. And the pooling and 1x1 convolution of a shortcut are part of the skip:
counted as layers they would make a skip past three poolings farther than four new layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from morphnas.graph import Activation, Conv, Depthwise, Graph, Op
from morphnas.graph.ops import Shape

Array = NDArray[np.float64]
Savings = NDArray[np.float32]
Numbers = NDArray[np.intp]

OCTAVE = 0.5
"""What a layer's change costs when one of its sizes doubles, or its longest skip; to insert a layer costs 1."""

SKIP = 1.0
"""What it costs to insert a skip: as much as a layer."""

_BATCH = 1024
"""Pairs of networks that are aligned at a time, so that what is worked on stays in the cache; at least 4 rows."""


class Token(NamedTuple):
    """A layer as the distance sees it.

    sizes: its settings and resolution, as logarithms. skips: how many ways besides the longest lead into sums, and into
    other joins, behind it and before the next layer. reach: the logarithm of how many layers the longest of them spans.
    """

    kind: str
    sizes: tuple[float, ...]
    skips: tuple[int, int] = (0, 0)
    reach: float = 0.0


Sketch = tuple[Token, ...]
"""What the distance looks at in a network: its input and its layers, in evaluation order."""


def sketch(graph: Graph) -> Sketch:
    """What the distance looks at in the graph."""
    layers: dict[str, Token] = {}
    depths: dict[str, tuple[int, int]] = {}  # activations and layers on the way with the most of them: the main one
    before: dict[str, str] = {}  # the node's input on that way
    for node in graph.nodes:
        inputs = sorted(node.inputs, key=depths.__getitem__, reverse=True)
        layer = _token(node.op, graph.input_shapes(node))
        active, deep = depths[inputs[0]] if inputs else (0, 0)
        depths[node.name] = active + isinstance(node.op, Activation), deep + (layer is not None)
        if layer is not None:
            layers[node.name] = layer
        before[node.name] = inputs[0] if inputs else ""
        walked: dict[str, tuple[str, bool]] = {}  # where branches fork off, and whether all from there is a shortcut's
        for name in inputs[1:]:
            branch: list[str] = []
            while not (name in walked or name == inputs[0] or graph.leads(name, inputs[0])):
                branch.append(name)
                name = before[name]
            fork, short = walked.get(name, (name, True))
            for one in reversed(branch):
                short = short and _in_shortcuts(graph[one].op)
                walked[one] = fork, short
            if short:
                for one in branch:
                    layers.pop(one, None)
            last = next(reversed(layers))
            span = max(0, depths[node.name][1] - depths[fork][1])  # the main way may have fewer layers
            layers[last] = _joined(layers[last], node.op.commutative, span)
    return tuple(layers.values())


def _in_shortcuts(op: Op) -> bool:
    """Whether the op may stand in a shortcut, where all that it does is to fit channels and resolution."""
    return not (isinstance(op, (Activation, Depthwise)) or (isinstance(op, Conv) and op.kernel > 1))


@lru_cache(maxsize=4096)
def _joined(layer: Token, in_sum: bool, span: int) -> Token:
    """The layer with one more skip that ends behind it."""
    sums, others = layer.skips
    skips = (sums + 1, others) if in_sum else (sums, others + 1)
    return Token(layer.kind, layer.sizes, skips, max(layer.reach, _octaves(span)))


@lru_cache(maxsize=4096)
def _token(op: Op, inputs: tuple[Shape, ...]) -> Token | None:
    """The op as a layer: the input, and what has weights that mix or filter or, without weights, settings or a
    resolution to change. None for others: norms, activations, joins. An op added later is a layer unless it is like
    those.
    """
    if not inputs:
        return Token(op.tag, ())
    if len(inputs) > 1 or isinstance(op, Activation):
        return None
    tensors = op.tensors(*inputs).values()
    if not (any(len(shape) > 1 for shape in tensors) if tensors else fields(op) or op.mirror() is not None):
        return None
    positions = op.shape(*inputs)[1:]
    side = math.prod(positions) ** (1 / max(1, len(positions)))
    settings = (_octaves(getattr(op, f.name)) for f in fields(op) if f.name not in op.unseen)
    return Token(op.tag, (*settings, _octaves(side - 1)))


def _octaves(size: float) -> float:
    """log2(1 + size), odd in size, in steps of 1/1024: sums of such numbers are exact in float32, in any order."""
    return math.copysign(round(1024 * math.log2(1 + abs(size))) / 1024, size)


def distances(rows: Sequence[Sketch], columns: Sequence[Sketch], skip_weight: float = SKIP) -> Array:
    """Distance of every row's network to every column's, (len(rows), len(columns)).

    What it costs to turn one sequence of layers into the other by insertions, removals and substitutions (Levenshtein
    1966), see `weights` and `changes`.
    """
    return Gauge.of(columns, skip_weight).distances(rows)


def weights(tokens: Sequence[Token], skip_weight: float) -> Array:
    """What it costs to insert or remove layers, (n,): 1, and `skip_weight` for each of their skips."""
    return np.array([1 + skip_weight * sum(token.skips) for token in tokens], dtype=np.float64)


def changes(some: Sequence[Token], others: Sequence[Token], skip_weight: float) -> Array:
    """What it costs to turn layers into others, (len(some), len(others)).

    The relative changes of their sizes added up, 1 at most, and 1 across kinds. Further, times `skip_weight`, by how
    many skips they differ, or by how much these reach farther, 1 at most, if that is more.
    """
    sides, every = (some, others), (*some, *others)
    kinds = {kind: number / OCTAVE for number, kind in enumerate(sorted({token.kind for token in every}))}
    most = max((len(token.sizes) for token in every), default=0)
    sizes = [
        np.array([(kinds[t.kind], *t.sizes, *[0.0] * (most - len(t.sizes))) for t in side]).reshape(-1, 1 + most)
        for side in sides
    ]
    skips = [np.array([token.skips for token in side], dtype=np.float64).reshape(-1, 2) for side in sides]
    reach = [np.array([token.reach for token in side], dtype=np.float64).reshape(-1, 1) for side in sides]
    skipping = np.maximum(_cityblock(*skips), np.minimum(1.0, OCTAVE * _cityblock(*reach)))
    return np.minimum(1.0, OCTAVE * _cityblock(*sizes)) + skip_weight * skipping


def _cityblock(a: Array, b: Array) -> Array:
    return np.asarray(cdist(a, b, "cityblock"), dtype=np.float64)


@dataclass(frozen=True)
class Gauge:
    """Networks to measure others against, and what is worth preparing once for all of them.

    tokens: those that occur in them. numbers: (longest, networks), every network from top to bottom, `tokens[i]` as
    i + 1, filled up with 0. weights: (networks,), the cost of removing all their layers.

    Distances come from the dual of the edit distance: the weights of both networks, less what the best alignment of
    them saves. A matched pair saves what it would cost to remove the one and insert the other instead.
    """

    tokens: tuple[Token, ...]
    numbers: Numbers
    weights: Array
    skip_weight: float

    @staticmethod
    def of(networks: Sequence[Sketch], skip_weight: float = SKIP) -> Gauge:
        tokens, numbers = _numbered(networks)
        return Gauge(tokens, numbers, _totals(tokens, numbers, skip_weight), skip_weight)

    def distances(self, rows: Sequence[Sketch]) -> Array:
        """Distance of every row's network to each of these, (len(rows), networks)."""
        found, size = np.empty((len(rows), len(self.weights))), max(4, _BATCH // max(1, len(self.weights)))
        for first in range(0, len(rows), size):
            tokens, numbers = _numbered(rows[first : first + size])
            mine, theirs = (weights(side, self.skip_weight) for side in (tokens, self.tokens))
            saving = np.zeros((1 + len(tokens), 1 + len(self.tokens)), dtype=np.float32)
            saving[1:, 1:] = np.add.outer(mine, theirs) - changes(tokens, self.tokens, self.skip_weight)
            saved = _best(numbers, saving.take(self.numbers, axis=1))
            spent = _totals(tokens, numbers, self.skip_weight)[:, None] + self.weights
            found[first : first + size] = np.maximum(0.0, spent - saved)
        return found


def _numbered(networks: Sequence[Sketch]) -> tuple[tuple[Token, ...], Numbers]:
    """The tokens that occur, and every network as a column of their numbers from 1, filled up with 0."""
    vocabulary: dict[Token, int] = {}
    numbers = np.zeros((max(map(len, networks), default=0), len(networks)), dtype=np.intp)
    for column, one in zip(numbers.T, networks, strict=True):
        column[: len(one)] = [vocabulary.setdefault(token, 1 + len(vocabulary)) for token in one]
    return tuple(vocabulary), numbers


def _totals(tokens: Sequence[Token], numbers: Numbers, skip_weight: float) -> Array:
    totals: Array = np.concatenate([[0.0], weights(tokens, skip_weight)])[numbers].sum(0)
    return totals


def _best(rows: Numbers, savings: Savings) -> Savings:
    """The most that an alignment saves, (rows, networks).

    rows: (longest, rows), every row's network from top to bottom as numbers of tokens. savings: (tokens, longest,
    networks), of matching a token with what stands in the columns' networks. 0 fills up: it saves nothing.

    The best saving of the first i and j layers is s[i, j] = max(s[i-1, j], s[i, j-1], s[i-1, j-1] + saving of i and j).
    All pairs of networks are gone through at once, diagonal by diagonal, i + j = d: no entry of one needs another.
    """
    deep, (tokens, wide, networks) = len(rows), savings.shape
    flat = savings.reshape(tokens * wide, networks)
    at = rows * wide - np.arange(deep)[:, None]  # in `flat`, of layer i + 1 and the columns' first, less i
    older, last, new = np.zeros((3, deep + 1, rows.shape[1], networks), dtype=np.float32)  # entry i is s[i, d - i]
    room = np.empty((deep, rows.shape[1], networks), dtype=np.float32)  # fresh memory costs as much as the work
    for d in range(2, 1 + deep + wide):
        low, high = max(1, d - wide), min(deep, d - 1)
        matched = room[low - 1 : high]
        flat.take(at[low - 1 : high] + (d - 2), axis=0, out=matched, mode="clip")
        matched += older[low - 1 : high]
        np.maximum(matched, last[low - 1 : high], out=matched)
        np.maximum(matched, last[low : high + 1], out=new[low : high + 1])
        older, last, new = last, new, older
    saved: Savings = last[deep]
    return saved
