"""Starters: graphs of small networks of given width and depth, from which a search begins.

All take an input shape, channels first and without the batch axis, with 1 to 3 spatial axes of any size from 1; `mlp`
also takes flat features.
"""

from __future__ import annotations

import math

from morphnas.graph.graph import Graph, Node
from morphnas.graph.ops import (
    Add,
    BatchNorm,
    Concat,
    Conv,
    Dense,
    Dropout,
    Flatten,
    GlobalPool,
    Input,
    MaxPool,
    Op,
    ReLU,
    Shape,
)

_MIN_POOLED_SIZE = 4
"""A starter halves the resolution only while at least this many positions remain along every axis."""

MIN_SIZE_FOR_POOLED_STEM = 64
"""Positions along the smallest axis from which the first convolution is pooled. For smaller images it is not: networks
of half the width then cost as much and learn more (`benchmarks/rates.py`)."""

_MAX_FLATTENED = {1: 8, 2: 64, 3: 64}
"""Number of positions, by number of spatial axes, up to which the last layer reads them all: on images it learns faster
than from their mean. On sequences it memorises where something happens (`benchmarks/few.py`)."""


class Draft:
    """A graph under construction, node by node."""

    def __init__(self, input_shape: Shape) -> None:
        first = Input(input_shape)
        self.nodes = [Node("x", first)]
        self.shapes: dict[str, Shape] = {"x": first.size}

    @property
    def last(self) -> str:
        return self.nodes[-1].name

    def add(self, op: Op, *inputs: str) -> str:
        inputs = inputs or (self.last,)
        name = f"{op.tag}_{len(self.nodes)}"
        self.nodes.append(Node(name, op, inputs))
        self.shapes[name] = op.shape(*(self.shapes[i] for i in inputs))
        return name

    def conv_bn(self, filters: int, kernel: int = 3, source: str | None = None, pool: bool = False) -> str:
        """Add a convolution and a batch norm; pooling comes before the norm, which then, like the relu, processes a
        quarter of the values (with two spatial axes)."""
        self.add(Conv(filters, kernel), source or self.last)
        if pool:
            self.add(MaxPool())
        return self.add(BatchNorm())

    def block(self, width: int, last: bool) -> int:
        """Add conv-bn-relu, pooled if the resolution allows; returns the width for the next block.

        For images smaller than `MIN_SIZE_FOR_POOLED_STEM` a pooled block has twice the given width. For others the
        width doubles after a pooled block instead, and the last block is not pooled.
        """
        large = min(self.shapes[self.nodes[0].name][1:]) >= MIN_SIZE_FOR_POOLED_STEM
        pool = self.can_pool and not (large and last)
        width *= 1 + (pool and not large)
        self.conv_bn(width, pool=pool)
        self.add(ReLU())
        return width * (1 + (pool and large))

    @property
    def can_pool(self) -> bool:
        """Whether the resolution is large enough for pooling; right after the input only from
        `MIN_SIZE_FOR_POOLED_STEM` on."""
        first = self.last == self.nodes[0].name
        return min(self.shapes[self.last][1:]) >= max(MIN_SIZE_FOR_POOLED_STEM if first else 0, 2 * _MIN_POOLED_SIZE)

    def graph(self) -> Graph:
        return Graph(tuple(self.nodes))


def _check_spatial(input_shape: Shape) -> Shape:
    if len(input_shape) == 1:
        raise ValueError(f"convolutions need (channels, *spatial), not {input_shape}: use mlp for flat features")
    return input_shape


def _check_positive(**sizes: int) -> None:
    for name, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a positive integer, not {value!r}")


def mlp(input_shape: Shape, n_classes: int, width: int = 128, depth: int = 2, dropout: float = 0.0) -> Graph:
    """`depth` dense layers of `width` units with batch norm and relu, then the logits; depth 0: a linear model."""
    _check_positive(n_classes=n_classes, width=width, depth=depth or 1)
    draft = Draft(input_shape)
    if len(input_shape) > 1:
        draft.add(Flatten())
    for _ in range(depth):
        draft.add(Dense(width, bias=False))
        draft.add(BatchNorm())
        draft.add(ReLU())
        if dropout:
            draft.add(Dropout(dropout))
    draft.add(Dense(n_classes))
    return draft.graph()


def cnn(input_shape: Shape, n_classes: int, width: int = 32, depth: int = 3, dropout: float = 0.0) -> Graph:
    """`depth` blocks of conv-bn-relu, pooled while the resolution allows.

    For images smaller than `MIN_SIZE_FOR_POOLED_STEM` all but the first are pooled, and each pooled block doubles the
    width. For others all but the last are pooled, and the width doubles after each of them.
    """
    _check_positive(n_classes=n_classes, width=width, depth=depth)
    draft = Draft(_check_spatial(input_shape))
    for block in range(depth):
        width = draft.block(width, last=block == depth - 1)
    return _head(draft, n_classes, dropout)


def resnet(input_shape: Shape, n_classes: int, width: int = 32, depth: int = 2, dropout: float = 0.0) -> Graph:
    """A stem, `depth` stages with a residual block of two convolutions, and a last stage, which has one only if it is
    pooled (He et al. 2015, arXiv:1512.03385).

    The stem and every stage begin with a block of `cnn`, so that residual blocks come after pooling: at lower
    resolutions they are worth their cost (`benchmarks/sizes.py`, `benchmarks/rates.py`).
    """
    _check_positive(n_classes=n_classes, width=width, depth=depth)
    draft = Draft(_check_spatial(input_shape))
    for stage in range(depth + 2):
        before = draft.shapes[draft.last][1:]
        width = draft.block(width, last=stage > depth)
        start = draft.last
        pooled = draft.shapes[start][1:] != before
        if stage and (stage <= depth or pooled):
            for _ in range(2):
                draft.conv_bn(draft.shapes[start][0])
                draft.add(ReLU())
            draft.add(Add(), draft.last, start)
    return _head(draft, n_classes, dropout)


def densenet(input_shape: Shape, n_classes: int, width: int = 16, depth: int = 6, dropout: float = 0.0) -> Graph:
    """A stem and `depth` layers of `width` channels, each reading the concatenation of all before it in its block
    (Huang et al. 2016, arXiv:1608.06993).

    Up to three blocks, with a 1x1 convolution and pooling between them while the resolution allows; the stem is pooled
    for images from `MIN_SIZE_FOR_POOLED_STEM` on.
    """
    _check_positive(n_classes=n_classes, width=width, depth=depth)
    draft = Draft(_check_spatial(input_shape))
    draft.conv_bn(2 * width, pool=draft.can_pool)
    features = draft.add(ReLU())
    per_block = -(-depth // 3)
    for layer in range(depth):
        if layer and layer % per_block == 0 and draft.can_pool:
            draft.conv_bn(max(1, draft.shapes[features][0] // 2), kernel=1)
            draft.add(ReLU())
            features = draft.add(MaxPool())
        draft.conv_bn(width, source=features)
        features = draft.add(Concat(), features, draft.add(ReLU()))
    return _head(draft, n_classes, dropout)


def _head(draft: Draft, n_classes: int, dropout: float) -> Graph:
    """Add the logits, computed from all positions if there are at most `_MAX_FLATTENED`, else from their normalised
    mean; returns the graph."""
    positions = draft.shapes[draft.last][1:]
    if math.prod(positions) <= _MAX_FLATTENED[len(positions)]:
        draft.add(Flatten())
    else:
        draft.add(GlobalPool())
        draft.add(BatchNorm())
    if dropout:
        draft.add(Dropout(dropout))
    draft.add(Dense(n_classes))
    return draft.graph()
