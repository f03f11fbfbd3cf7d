"""Edit distance between networks, over sequences of layers that include each layer's resolution and skip connections.

    >>> from morphnas.graph import Deeper, cnn
    >>> graph = cnn((3, 32, 32), 10)
    >>> deeper = Deeper("relu_3").grow(graph)
    >>> distances([sketch(graph)], [sketch(graph), sketch(deeper)]).tolist()
    [[0.0, 1.0]]

A pseudometric: symmetric, zero between equal networks, and with the triangle inequality. Networks at distance zero may
still differ in what it ignores (activations, norms, the order of branches); equality is `Graph.key`.

After Jin, Song and Hu 2018, Auto-Keras (arXiv:1806.10282), section 3.1, with three changes. The resolution is an
attribute of a layer. A skip is an attribute of the layer behind which it ends, with the number of layers that it spans,
instead of being matched with the other skips separately: so an inserted layer changes no skip before or behind it. And
the pooling and 1x1 convolution of a shortcut are part of the skip: counted as layers they would make a skip past three
poolings farther than four new layers.
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
TokenIds = NDArray[np.intp]

DOUBLING_COST = 0.5
"""Cost of doubling one of a layer's sizes or the span of its longest skip, relative to inserting a layer."""

SKIP_COST = 1.0
"""Cost of inserting a skip, relative to inserting a layer."""

_BATCH = 1024
"""Pairs of networks that are aligned at a time, so that the working memory stays in the cache; at least 4 rows."""


class Token(NamedTuple):
    """A layer as the edit distance sees it.

    sizes: logarithms of its settings and resolution. skips: numbers of branches besides the main path that end, behind
    it and before the next layer, in sums and in other joins. reach: logarithm of the number of layers that the longest
    of them spans.
    """

    kind: str
    sizes: tuple[float, ...]
    skips: tuple[int, int] = (0, 0)
    reach: float = 0.0


Sketch = tuple[Token, ...]
"""A network as the edit distance sees it: its input and its layers, in evaluation order."""


def sketch(graph: Graph) -> Sketch:
    """The graph as the edit distance sees it."""
    layers: dict[str, Token] = {}
    depths: dict[str, tuple[int, int]] = {}  # activations and layers on the main path, which has the most of them
    previous: dict[str, str] = {}  # the node's input on the main path
    for node in graph.nodes:
        inputs = sorted(node.inputs, key=depths.__getitem__, reverse=True)
        layer = _token(node.op, graph.input_shapes(node))
        activations, n_layers = depths[inputs[0]] if inputs else (0, 0)
        depths[node.name] = activations + isinstance(node.op, Activation), n_layers + (layer is not None)
        if layer is not None:
            layers[node.name] = layer
        previous[node.name] = inputs[0] if inputs else ""
        visited: dict[str, tuple[str, bool]] = {}  # where the branch forks off, and whether it is a shortcut up to here
        for name in inputs[1:]:
            branch: list[str] = []
            while not (name in visited or name == inputs[0] or graph.has_path(name, inputs[0])):
                branch.append(name)
                name = previous[name]
            fork, shortcut = visited.get(name, (name, True))
            for member in reversed(branch):
                shortcut = shortcut and _allowed_in_shortcut(graph[member].op)
                visited[member] = fork, shortcut
            if shortcut:
                for member in branch:
                    layers.pop(member, None)
            last = next(reversed(layers))
            span = max(0, depths[node.name][1] - depths[fork][1])  # the main path may have fewer layers
            layers[last] = _with_skip(layers[last], node.op.commutative, span)
    return tuple(layers.values())


def _allowed_in_shortcut(op: Op) -> bool:
    """Whether a shortcut may have the op: it only adapts channels or resolution."""
    return not (isinstance(op, (Activation, Depthwise)) or (isinstance(op, Conv) and op.kernel > 1))


@lru_cache(maxsize=4096)
def _with_skip(layer: Token, in_sum: bool, span: int) -> Token:
    """The layer with one more skip that ends behind it."""
    sums, others = layer.skips
    skips = (sums + 1, others) if in_sum else (sums, others + 1)
    return Token(layer.kind, layer.sizes, skips, max(layer.reach, _log_size(span)))


@lru_cache(maxsize=4096)
def _token(op: Op, inputs: tuple[Shape, ...]) -> Token | None:
    """The op as a layer: the input, ops with weight tensors of more than one axis, and ops without weights that have
    settings or change the resolution. None for others: norms, activations, joins.
    """
    if not inputs:
        return Token(op.tag, ())
    if len(inputs) > 1 or isinstance(op, Activation):
        return None
    tensors = op.tensors(*inputs).values()
    if not (any(len(shape) > 1 for shape in tensors) if tensors else fields(op) or op.shortcut_op() is not None):
        return None
    positions = op.shape(*inputs)[1:]
    side = math.prod(positions) ** (1 / max(1, len(positions)))
    settings = (_log_size(getattr(op, f.name)) for f in fields(op) if f.name not in op.resolution_settings)
    return Token(op.tag, (*settings, _log_size(side - 1)))


def _log_size(size: float) -> float:
    """sign(size) log2(1 + |size|), rounded to multiples of 1/1024, whose sums are exact in float32 in any order."""
    return math.copysign(round(1024 * math.log2(1 + abs(size))) / 1024, size)


def distances(rows: Sequence[Sketch], columns: Sequence[Sketch], skip_weight: float = SKIP_COST) -> Array:
    """Edit distance (Levenshtein 1966) of every row's network to every column's, (len(rows), len(columns)).

    The least cost of turning one sequence of layers into the other by insertions, removals and substitutions, see
    `insertion_costs` and `substitution_costs`.
    """
    return ReferenceNetworks.of(columns, skip_weight).distances(rows)


def insertion_costs(tokens: Sequence[Token], skip_weight: float) -> Array:
    """Cost of inserting or removing each of n layers, (n,): 1, and `skip_weight` for each of its skips."""
    return np.array([1 + skip_weight * sum(token.skips) for token in tokens], dtype=np.float64)


def substitution_costs(rows: Sequence[Token], columns: Sequence[Token], skip_weight: float) -> Array:
    """Cost of turning each row's layer into each column's, (len(rows), len(columns)).

    First, the smaller of 1 and `DOUBLING_COST` times the sum of the differences of their sizes; 1 between layers of
    different kinds. To this is added `skip_weight` times the larger of: the difference of their numbers of skips; and
    the smaller of 1 and `DOUBLING_COST` times the difference of their reach.
    """
    sides, tokens = (rows, columns), (*rows, *columns)
    kinds = {kind: number / DOUBLING_COST for number, kind in enumerate(sorted({token.kind for token in tokens}))}
    most = max((len(token.sizes) for token in tokens), default=0)
    sizes = [
        np.array([(kinds[t.kind], *t.sizes, *[0.0] * (most - len(t.sizes))) for t in side]).reshape(-1, 1 + most)
        for side in sides
    ]
    skips = [np.array([token.skips for token in side], dtype=np.float64).reshape(-1, 2) for side in sides]
    reach = [np.array([token.reach for token in side], dtype=np.float64).reshape(-1, 1) for side in sides]
    skip_costs = np.maximum(_cityblock(*skips), np.minimum(1.0, DOUBLING_COST * _cityblock(*reach)))
    return np.minimum(1.0, DOUBLING_COST * _cityblock(*sizes)) + skip_weight * skip_costs


def _cityblock(a: Array, b: Array) -> Array:
    return np.asarray(cdist(a, b, "cityblock"), dtype=np.float64)


@dataclass(frozen=True)
class ReferenceNetworks:
    """Reference networks to measure distances to, preprocessed once for all of them.

    tokens: those that occur in the networks. token_ids: a column for every network, (longest, networks), from its first
    layer on, `tokens[i]` as i + 1, padded with 0. removal_costs: cost of removing all layers of each, (networks,).

    A distance is computed by the dual of the edit distance: the cost of removing all layers of both networks, less the
    largest saving of an alignment of them. A matched pair of layers saves the cost of removing both, less that of
    substituting one for the other.
    """

    tokens: tuple[Token, ...]
    token_ids: TokenIds
    removal_costs: Array
    skip_weight: float

    @staticmethod
    def of(networks: Sequence[Sketch], skip_weight: float = SKIP_COST) -> ReferenceNetworks:
        tokens, token_ids = _encode(networks)
        return ReferenceNetworks(tokens, token_ids, _removal_costs(tokens, token_ids, skip_weight), skip_weight)

    def distances(self, rows: Sequence[Sketch]) -> Array:
        """Distance of every row's network to each reference network, (len(rows), networks)."""
        n = len(self.removal_costs)
        result, size = np.empty((len(rows), n)), max(4, _BATCH // max(1, n))
        for first in range(0, len(rows), size):
            tokens, token_ids = _encode(rows[first : first + size])
            own, others = (insertion_costs(side, self.skip_weight) for side in (tokens, self.tokens))
            savings = np.zeros((1 + len(tokens), 1 + len(self.tokens)), dtype=np.float32)
            savings[1:, 1:] = np.add.outer(own, others) - substitution_costs(tokens, self.tokens, self.skip_weight)
            saved = _largest_savings(token_ids, savings.take(self.token_ids, axis=1))
            removed = _removal_costs(tokens, token_ids, self.skip_weight)[:, None] + self.removal_costs
            result[first : first + size] = np.maximum(0.0, removed - saved)
        return result


def _encode(networks: Sequence[Sketch]) -> tuple[tuple[Token, ...], TokenIds]:
    """The tokens that occur, and every network as a column of their ids, which begin at 1, padded with 0."""
    vocabulary: dict[Token, int] = {}
    token_ids = np.zeros((max(map(len, networks), default=0), len(networks)), dtype=np.intp)
    for column, network in zip(token_ids.T, networks, strict=True):
        column[: len(network)] = [vocabulary.setdefault(token, 1 + len(vocabulary)) for token in network]
    return tuple(vocabulary), token_ids


def _removal_costs(tokens: Sequence[Token], token_ids: TokenIds, skip_weight: float) -> Array:
    """Cost of removing all layers of every network, (networks,)."""
    costs: Array = np.concatenate([[0.0], insertion_costs(tokens, skip_weight)])[token_ids].sum(0)
    return costs


def _largest_savings(rows: TokenIds, savings: Savings) -> Savings:
    """The largest saving of an alignment of every row's network with every column's, (rows, networks).

    rows: token ids of the rows' networks, a column for each, (longest, rows). savings: by matching each token with each
    layer of the columns' networks, (tokens, longest, networks). Padding, token 0, saves nothing.

    The largest saving of the first i and j layers is s[i, j] = max(s[i-1, j], s[i, j-1], s[i-1, j-1] + saving of i and
    j). All pairs of networks are computed at once, diagonal by diagonal, i + j = d, whose entries do not depend on each
    other.
    """
    height, (tokens, width, networks) = len(rows), savings.shape  # layers of the longest network of rows, of columns
    flat = savings.reshape(tokens * width, networks)
    index = rows * width - np.arange(height)[:, None]  # + d - 2: in `flat`, of layer i + 1 and layer d - i - 1
    older, last, new = np.zeros((3, height + 1, rows.shape[1], networks), dtype=np.float32)  # entry i is s[i, d - i]
    buffer = np.empty((height, rows.shape[1], networks), dtype=np.float32)  # reused: allocating takes as long
    for d in range(2, 1 + height + width):
        low, high = max(1, d - width), min(height, d - 1)
        matched = buffer[low - 1 : high]
        flat.take(index[low - 1 : high] + (d - 2), axis=0, out=matched, mode="clip")
        matched += older[low - 1 : high]
        np.maximum(matched, last[low - 1 : high], out=matched)
        np.maximum(matched, last[low : high + 1], out=new[low : high + 1])
        older, last, new = last, new, older
    result: Savings = last[height]
    return result
