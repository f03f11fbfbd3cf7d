"""Small networks to start a search from, as graphs sized on request.

Every one takes an input shape, channels first and without the batch, with 1 to 3 spatial axes of any size from 1;
`mlp` also takes flat features.
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

_SMALLEST = 4
"""A starter halves the resolution only while at least this many positions remain along every axis."""

READ_WHOLE = 64
"""Positions along an axis below which the first convolution is not pooled: networks of half the width, which cost as
much, learn more of what they read whole (`benchmarks/rates.py`)."""

_FEW = 64
"""Positions up to which the last layer reads them all: it learns faster than from their mean."""


class Draft:
    """Nodes as they are written down, one after the other."""

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
        """Pooled before the norm, which then, like the relu, has a quarter of the values to go over."""
        self.add(Conv(filters, kernel), source or self.last)
        if pool:
            self.add(MaxPool())
        return self.add(BatchNorm())

    def block(self, width: int, last: bool) -> int:
        """Conv-bn-relu, pooled where that may be: with twice the width then, unless the first of all is pooled, which
        no last one is. The width of what comes next."""
        large = min(self.shapes[self.nodes[0].name][1:]) >= READ_WHOLE
        pool = self.may_shrink and not (large and last)
        width *= 1 + (pool and not large)
        self.conv_bn(width, pool=pool)
        self.add(ReLU())
        return width * (1 + (pool and large))

    @property
    def may_shrink(self) -> bool:
        first = self.last == self.nodes[0].name
        return min(self.shapes[self.last][1:]) >= max(READ_WHOLE if first else 0, 2 * _SMALLEST)

    def graph(self) -> Graph:
        return Graph(tuple(self.nodes))


def _images(input_shape: Shape) -> Shape:
    if len(input_shape) == 1:
        raise ValueError(f"convolutions need (channels, *spatial), not {input_shape}: use mlp for flat features")
    return input_shape


def _count(**sizes: int) -> None:
    for name, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a positive integer, not {value!r}")


def mlp(input_shape: Shape, n_classes: int, width: int = 128, depth: int = 2, dropout: float = 0.0) -> Graph:
    """`depth` dense layers of `width` units with batch norm and relu, then the logits; depth 0: a linear map."""
    _count(n_classes=n_classes, width=width, depth=depth or 1)
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
    """`depth` blocks of conv-bn-relu. While the resolution allows, those that pool have twice the width of the one
    before: all but the first, or of large images, where the first one pools as well, all but the last."""
    _count(n_classes=n_classes, width=width, depth=depth)
    draft = Draft(_images(input_shape))
    for block in range(depth):
        width = draft.block(width, last=block == depth - 1)
    return _head(draft, n_classes, dropout)


def resnet(input_shape: Shape, n_classes: int, width: int = 32, depth: int = 2, dropout: float = 0.0) -> Graph:
    """A stem, `depth` stages that end with a residual block of two convolutions, and a last one that does where it is
    pooled (He et al. 2015, arXiv:1512.03385).

    Each of them begins as a block of `cnn`: residual blocks at lower resolutions are worth their cost
    (`benchmarks/sizes.py`, `benchmarks/rates.py`).
    """
    _count(n_classes=n_classes, width=width, depth=depth)
    draft = Draft(_images(input_shape))
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
    """A pooled stem and `depth` layers of `width` channels, each reading all before it in its block by concatenation
    (Huang et al. 2016, arXiv:1608.06993).

    Up to three blocks, a 1x1 convolution and pooling between them, while the resolution allows.
    """
    _count(n_classes=n_classes, width=width, depth=depth)
    draft = Draft(_images(input_shape))
    draft.conv_bn(2 * width, pool=draft.may_shrink)
    features = draft.add(ReLU())
    per_block = -(-depth // 3)
    for layer in range(depth):
        if layer and layer % per_block == 0 and draft.may_shrink:
            draft.conv_bn(max(1, draft.shapes[features][0] // 2), kernel=1)
            draft.add(ReLU())
            features = draft.add(MaxPool())
        draft.conv_bn(width, source=features)
        features = draft.add(Concat(), features, draft.add(ReLU()))
    return _head(draft, n_classes, dropout)


def _head(draft: Draft, n_classes: int, dropout: float) -> Graph:
    """The logits, which read every position where there are few, else the normalised mean over all."""
    if math.prod(draft.shapes[draft.last][1:]) <= _FEW:
        draft.add(Flatten())
    else:
        draft.add(GlobalPool())
        draft.add(BatchNorm())
    if dropout:
        draft.add(Dropout(dropout))
    draft.add(Dense(n_classes))
    return draft.graph()
