"""How far apart two networks are: an edit distance over their layers, and a matching of their skips.

    >>> from morphnas.graph import Deeper, cnn
    >>> graph = cnn((3, 32, 32), 10)
    >>> deeper = Deeper("relu_4").grow(graph)
    >>> distances([sketch(graph)], [sketch(graph), sketch(deeper)]).tolist()
    [[0.0, 1.0]]

A semimetric made of two metrics: symmetric, zero on itself, and with the triangle inequality. Networks at distance zero
may still differ in what is not looked at (activations, norms, the order of branches): equality is `Graph.key`. After
Jin, Song and Hu 2018, Auto-Keras (arXiv:1806.10282), section 3.1, with two changes: a layer knows its resolution, and
the ends of a skip are fractions of the network's depth, for positions shift with every insertion before them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from morphnas.graph import Graph, Op
from morphnas.graph.ops import Shape

Array = NDArray[np.float64]

OCTAVE = 0.5
"""What a layer's change costs when one of its sizes doubles; to insert or remove a layer costs 1."""

_CHUNK = 32


class Token(NamedTuple):
    """A layer as the distance sees it: its kind, and its settings and resolution as logarithms."""

    kind: str
    sizes: tuple[float, ...]


class Skip(NamedTuple):
    """An extra way into a sum or a concat: where it leaves and where it enters, in fractions of the network's depth."""

    kind: str
    start: float
    end: float


@dataclass(frozen=True)
class Sketch:
    """What the distance looks at in a network: its layers in evaluation order, and its skips."""

    layers: tuple[Token, ...]
    skips: tuple[Skip, ...]


def sketch(graph: Graph) -> Sketch:
    """What the distance looks at in the graph."""
    layers, joins = [], []
    depths: dict[str, int] = {}
    for node in graph.nodes:
        token = _token(node.op, graph.input_shapes(node))
        if token is not None:
            layers.append(token)
        depths[node.name] = max([depths[name] for name in node.inputs], default=0) + (token is not None)
        if len(node.inputs) > 1:
            joins.append(node)
    whole = max(1, depths[graph.output.name])
    skips = []
    for node in joins:
        main, *extra = sorted(node.inputs, key=lambda name: -depths[name])
        through = graph.ancestors[main] | {main}
        for name in extra:
            while name not in through:  # back through the branch's own layers, to where it forks off
                name = max(graph[name].inputs, key=lambda source: depths[source])
            skips.append(Skip(node.op.tag, depths[name] / whole, depths[node.name] / whole))
    return Sketch(tuple(layers), tuple(skips))


@lru_cache(maxsize=4096)
def _token(op: Op, inputs: tuple[Shape, ...]) -> Token | None:
    """The op as a layer: one with weights that mix or filter or, without weights, with settings or a resolution to
    change. None for others: norms, activations, joins, the input. An op added later is a layer unless it is like those.
    """
    if len(inputs) != 1:
        return None
    tensors = op.tensors(*inputs).values()
    if not (any(len(shape) > 1 for shape in tensors) if tensors else fields(op) or op.mirror() is not None):
        return None
    positions = op.shape(*inputs)[1:]
    resolution = sum(map(math.log2, positions)) / max(1, len(positions))
    return Token(op.tag, (*(math.log2(1 + getattr(op, f.name)) for f in fields(op)), resolution))


def distances(rows: Sequence[Sketch], columns: Sequence[Sketch], skip_weight: float = 1.0) -> Array:
    """Distance of every row's network to every column's, (len(rows), len(columns)): d_layers + skip_weight d_skips."""
    return layer_distances(rows, columns) + skip_weight * skip_distances(rows, columns)


def layer_distances(rows: Sequence[Sketch], columns: Sequence[Sketch]) -> Array:
    """Edit distances (Levenshtein 1966) of the layer sequences, (len(rows), len(columns)).

    An insertion or removal costs 1, a substitution `substitution_costs`. One dynamic programme runs over all pairs: its
    row f[i, j] = min(f[i-1, j] + 1, f[i-1, j-1] + cost, f[i, j-1] + 1) depends on itself only through the last term,
    which is a prefix minimum, f[i, j] = j + min over k <= j of (g[k] - k) with g the minimum of the first two.
    """
    vocabulary: dict[Token, int] = {}
    a, b = (_numbered(side, vocabulary) for side in (rows, columns))
    costs = substitution_costs(list(vocabulary))
    found = np.empty((len(rows), len(columns)))
    every = np.arange(len(columns))
    ends = np.array([len(s.layers) for s in columns], dtype=np.intp)
    for first in range(0, len(rows), _CHUNK):
        part = slice(first, first + _CHUNK)
        lengths = np.array([len(s.layers) for s in rows[part]], dtype=np.intp)
        steps = np.arange(b.shape[1] + 1, dtype=np.float64)
        f = np.broadcast_to(steps, (len(lengths), len(columns), len(steps))).copy()  # (rows, columns, prefixes)
        for i in range(lengths.max(initial=0) + 1):
            done = lengths == i
            found[part][done] = f[done][:, every, ends]
            if i < a.shape[1]:
                g = f + 1
                substituted = f[:, :, :-1] + costs[a[part, i, None, None], b[None]]
                np.minimum(g[:, :, 1:], substituted, out=g[:, :, 1:])
                f = np.minimum.accumulate(g - steps, axis=2) + steps
    return found


def _numbered(side: Sequence[Sketch], vocabulary: dict[Token, int]) -> NDArray[np.intp]:
    """Every network as a row of token numbers, padded with 0; new tokens enter the vocabulary."""
    numbers = np.zeros((len(side), max((len(s.layers) for s in side), default=0)), dtype=np.intp)
    for row, one in zip(numbers, side, strict=True):
        row[: len(one.layers)] = [vocabulary.setdefault(token, len(vocabulary)) for token in one.layers]
    return numbers


def substitution_costs(tokens: Sequence[Token]) -> Array:
    """Cost of turning one layer into another, (n, n) in [0, 1]: 1 across kinds, else the relative changes added up."""
    kinds = sorted({token.kind for token in tokens})
    points = np.zeros((len(tokens), 1 + max((len(token.sizes) for token in tokens), default=0)))
    for point, token in zip(points, tokens, strict=True):
        point[0] = kinds.index(token.kind) / OCTAVE  # at least 1 apart once multiplied
        point[1 : 1 + len(token.sizes)] = token.sizes
    return _capped_cityblock(points, points, OCTAVE)


def skip_distances(rows: Sequence[Sketch], columns: Sequence[Sketch]) -> Array:
    """Costs of the cheapest matchings of the skips, (len(rows), len(columns)).

    A matched pair costs how far apart its ends are, at most 1, and 1 across kinds; a skip left over costs 1.
    """
    a, b = (list(dict.fromkeys(s.skips for s in side)) for side in (rows, columns))
    kinds = sorted({skip.kind for skips in (*a, *b) for skip in skips})
    points = [
        np.array([(kinds.index(s.kind), s.start, s.end) for skips in side for s in skips]).reshape(-1, 3)
        for side in (a, b)
    ]
    costs = _capped_cityblock(points[0], points[1])
    starts = [np.cumsum([0, *map(len, side)]) for side in (a, b)]
    between = np.empty((len(a), len(b)))
    for i in range(len(a)):
        mine = costs[starts[0][i] : starts[0][i + 1]]
        for j in range(len(b)):
            pair = mine[:, starts[1][j] : starts[1][j + 1]]
            between[i, j] = abs(pair.shape[0] - pair.shape[1]) + pair[linear_sum_assignment(pair)].sum()
    where = [{skips: i for i, skips in enumerate(side)} for side in (a, b)]
    return between[np.ix_([where[0][s.skips] for s in rows], [where[1][s.skips] for s in columns])]


def _capped_cityblock(a: Array, b: Array, scale: float = 1.0) -> Array:
    """min(1, scale |a - b|_1) for all pairs of rows: a metric capped is a metric."""
    return np.minimum(1.0, scale * np.asarray(cdist(a, b, "cityblock"), dtype=np.float64))
