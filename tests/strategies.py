"""Hypothesis strategies for networks: starters of every rank, grown by random morphs, with random weights."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from functools import cache

import torch
from hypothesis import strategies as st

from morphnas.graph import (
    GELU,
    Add,
    AvgPool,
    BatchNorm,
    Concat,
    Conv,
    Dense,
    Depthwise,
    Dropout,
    Flatten,
    Gate,
    GlobalPool,
    Graph,
    Hardsigmoid,
    Hardswish,
    Input,
    LayerNorm,
    LeakyReLU,
    Limits,
    MaxPool,
    Morph,
    MorphError,
    Node,
    Pad,
    ReLU,
    ReLU6,
    Sigmoid,
    SiLU,
    Tanh,
    Weights,
    Wider,
    WiderAll,
    cnn,
    densenet,
    fresh_weights,
    mlp,
    resnet,
)
from morphnas.graph.morphs import candidates

SMALL_LIMITS = Limits(max_params=60_000, max_flops=3_000_000, max_width=48)
"""Keeps networks so small that a property can be checked on hundreds of them."""

FLAT_SHAPES = ((1,), (2,), (7,), (20,))
IMAGE_SHAPES = {
    1: ((1, 1), (2, 5), (1, 16), (3, 9)),
    2: ((1, 1, 1), (3, 2, 2), (1, 8, 8), (2, 3, 9), (1, 9, 11)),
    3: ((1, 1, 1, 1), (2, 3, 2, 4), (1, 8, 8, 8)),
}


def sequential(*ops: object, shape: tuple[int, ...]) -> Graph:
    """A network of the ops in sequence."""
    nodes = [Node("x", Input(shape))]
    for i, op in enumerate(ops):
        nodes.append(Node(f"{op.tag}_{i + 1}", op, (nodes[-1].name,)))  # type: ignore[attr-defined,arg-type]
    return Graph(tuple(nodes))


def vgg(shape: tuple[int, ...] = (2, 8, 8)) -> Graph:
    """Convolutions with biases, average pooling, and flatten between the convolutions and the dense layers."""
    return sequential(
        Conv(5, bias=True), ReLU(), AvgPool(), Conv(6), BatchNorm(), ReLU(), Dropout(0.2), Conv(4, 5, 2), BatchNorm(),
        ReLU(), MaxPool(3, 1, 1), Flatten(), Dense(7), ReLU(), Dropout(0.5), Dense(6, bias=False), BatchNorm(), ReLU(),
        Dense(3),
        shape=shape,
    )  # fmt: skip


def two_towers(shape: tuple[int, ...] = (2, 6, 6)) -> Graph:
    """Branches that are joined by a sum and by a concat of three, with repeated inputs, and a pooled skip."""
    return Graph(
        (
            Node("x", Input(shape)),
            Node("conv_1", Conv(4), ("x",)),
            Node("relu_2", ReLU(), ("conv_1",)),
            Node("conv_3", Conv(4, bias=True), ("relu_2",)),
            Node("conv_4", Conv(4, 1), ("relu_2",)),
            Node("add_5", Add(), ("conv_3", "conv_4")),
            Node("relu_6", ReLU(), ("add_5",)),
            Node("maxpool_7", MaxPool(), ("relu_6",)),
            Node("avgpool_8", AvgPool(3, 2, 1), ("relu_2",)),
            Node("concat_9", Concat(), ("maxpool_7", "avgpool_8", "maxpool_7")),
            Node("bn_10", BatchNorm(), ("concat_9",)),
            Node("relu_11", ReLU(), ("bn_10",)),
            Node("conv_12", Conv(5), ("relu_11",)),
            Node("relu_13", ReLU(), ("conv_12",)),
            Node("add_14", Add(), ("relu_13", "relu_13")),
            Node("globalpool_15", GlobalPool(), ("add_14",)),
            Node("dense_16", Dense(6), ("globalpool_15",)),
            Node("relu_17", ReLU(), ("dense_16",)),
            Node("dense_18", Dense(3), ("relu_17",)),
        )
    )


def mobile(shape: tuple[int, ...] = (2, 9, 8)) -> Graph:
    """Depthwise convolutions, two variants of squeeze-and-excitation, every activation, and convolutions and pooling
    with all kinds of padding."""
    return Graph(
        (
            Node("x", Input(shape)),
            Node("conv_1", Conv(4, 4, 2, padding=1), ("x",)),
            Node("relu6_2", ReLU6(), ("conv_1",)),
            Node("depthwise_3", Depthwise(), ("relu6_2",)),
            Node("bn_4", BatchNorm(), ("depthwise_3",)),
            Node("silu_5", SiLU(), ("bn_4",)),
            Node("globalpool_6", GlobalPool(), ("silu_5",)),
            Node("dense_7", Dense(3), ("globalpool_6",)),
            Node("relu_8", ReLU(), ("dense_7",)),
            Node("dense_9", Dense(4), ("relu_8",)),
            Node("sigmoid_10", Sigmoid(), ("dense_9",)),
            Node("gate_11", Gate(), ("silu_5", "sigmoid_10")),
            Node("conv_12", Conv(4, 1), ("gate_11",)),
            Node("add_13", Add(), ("conv_12", "conv_1")),
            Node("hardswish_14", Hardswish(), ("add_13",)),
            Node("avgpool_15", AvgPool(2, 2, ceil=True), ("hardswish_14",)),
            Node("conv_16", Conv(5, 2, padding=1, bias=True), ("avgpool_15",)),
            Node("leakyrelu_17", LeakyReLU(0.1), ("conv_16",)),
            Node("depthwise_18", Depthwise(3, 2, bias=True), ("leakyrelu_17",)),
            Node("gelu_19", GELU(), ("depthwise_18",)),
            Node("globalpool_20", GlobalPool(), ("gelu_19",)),
            Node("hardsigmoid_21", Hardsigmoid(), ("globalpool_20",)),
            Node("gate_22", Gate(), ("gelu_19", "hardsigmoid_21")),
            Node("maxpool_23", MaxPool(2, 2, ceil=True), ("gate_22",)),
            Node("conv_24", Conv(6, 1, padding=0), ("maxpool_23",)),
            Node("tanh_25", Tanh(), ("conv_24",)),
            Node("flatten_26", Flatten(), ("tanh_25",)),
            Node("dense_27", Dense(3), ("flatten_26",)),
        )
    )


def grouped(shape: tuple[int, ...] = (2, 8, 8)) -> Graph:
    """Grouped convolutions: in a residual block, and after a concat, with more filters than channels."""
    return Graph(
        (
            Node("x", Input(shape)),
            Node("conv_1", Conv(6), ("x",)),
            Node("relu_2", ReLU(), ("conv_1",)),
            Node("conv_3", Conv(4, 1), ("relu_2",)),
            Node("relu_4", ReLU(), ("conv_3",)),
            Node("conv_5", Conv(4, groups=2), ("relu_4",)),
            Node("bn_6", BatchNorm(), ("conv_5",)),
            Node("relu_7", ReLU(), ("bn_6",)),
            Node("conv_8", Conv(6, 1), ("relu_7",)),
            Node("add_9", Add(), ("conv_8", "conv_1")),
            Node("relu_10", ReLU(), ("add_9",)),
            Node("concat_11", Concat(), ("relu_10", "relu_7", "relu_2")),
            Node("conv_12", Conv(8, 3, 2, bias=True, groups=4), ("concat_11",)),
            Node("relu_13", ReLU(), ("conv_12",)),
            Node("conv_14", Conv(5), ("relu_13",)),
            Node("relu_15", ReLU(), ("conv_14",)),
            Node("flatten_16", Flatten(), ("relu_15",)),
            Node("dense_17", Dense(3), ("flatten_16",)),
        )
    )


def convnext(shape: tuple[int, ...] = (2, 9, 8)) -> Graph:
    """A depthwise convolution, layer norms over channels and over features, GELU, and a layer scale; and before them a
    convolution whose padding is not symmetric."""
    return Graph(
        (
            Node("x", Input(shape)),
            Node("pad_1", Pad(0, 1), ("x",)),
            Node("conv_2", Conv(4, 2, 2, bias=True, padding=0), ("pad_1",)),
            Node("layernorm_3", LayerNorm(1e-6), ("conv_2",)),
            Node("depthwise_4", Depthwise(5, bias=True), ("layernorm_3",)),
            Node("layernorm_5", LayerNorm(), ("depthwise_4",)),
            Node("conv_6", Conv(8, 1, bias=True), ("layernorm_5",)),
            Node("gelu_7", GELU(), ("conv_6",)),
            Node("conv_8", Conv(4, 1, bias=True), ("gelu_7",)),
            Node("depthwise_9", Depthwise(1), ("conv_8",)),
            Node("add_10", Add(), ("layernorm_3", "depthwise_9")),
            Node("relu_11", ReLU(), ("add_10",)),
            Node("globalpool_12", GlobalPool(), ("relu_11",)),
            Node("layernorm_13", LayerNorm(), ("globalpool_12",)),
            Node("dense_14", Dense(5), ("layernorm_13",)),
            Node("relu_15", ReLU(), ("dense_14",)),
            Node("dense_16", Dense(3), ("relu_15",)),
        )
    )


HAND_MADE: dict[str, Callable[[], Graph]] = {
    "vgg_1d": lambda: vgg((2, 12)),
    "vgg_2d": vgg,
    "vgg_3d": lambda: vgg((1, 6, 6, 6)),
    "two_towers_1d": lambda: two_towers((2, 6)),
    "two_towers_2d": two_towers,
    "mobile_1d": lambda: mobile((2, 9)),
    "mobile_2d": mobile,
    "mobile_3d": lambda: mobile((1, 9, 8, 9)),
    "convnext_1d": lambda: convnext((2, 9)),
    "convnext_2d": convnext,
    "convnext_3d": lambda: convnext((1, 5, 4, 5)),
    "grouped_1d": lambda: grouped((2, 8)),
    "grouped_2d": grouped,
    "grouped_3d": lambda: grouped((1, 4, 4, 4)),
    "flatten_of_one_position": lambda: sequential(
        Conv(4), ReLU(), GlobalPool(), Flatten(), Dense(5), ReLU(), Dense(2), shape=(2, 4, 4)
    ),
    "norm_first": lambda: sequential(BatchNorm(), ReLU(), Dense(5), ReLU(), Dense(2), shape=(4,)),
}


@cache
def starters(rank: int) -> tuple[Graph, ...]:
    """Every starter for every input shape with `rank` spatial axes."""
    if rank == 0:
        return tuple(mlp(shape, 3, width=6, depth=2, dropout=0.1) for shape in FLAT_SHAPES)
    return tuple(
        graph
        for shape in IMAGE_SHAPES[rank]
        for graph in (
            mlp(shape, 3, width=5, depth=1),
            cnn(shape, 3, width=4, depth=3, dropout=0.1),
            resnet(shape, 3, width=4, depth=2),
            densenet(shape, 2, width=3, depth=4),
        )
    )


def random_weights(graph: Graph, seed: int, dtype: torch.dtype = torch.float64) -> Weights:
    """Random weights as after training: no bias is 0, and batch norms have random parameters and statistics."""
    generator = torch.Generator().manual_seed(seed)
    weights = fresh_weights(graph, generator)
    for name, value in weights.items():
        if not value.is_floating_point():
            weights[name] = torch.tensor(7)
        elif name.endswith("running_var"):
            weights[name] = 0.2 + 2 * torch.rand(value.shape, generator=generator, dtype=dtype)
        elif value.ndim == 1:
            centre = 1 if name.endswith(".weight") else 0
            weights[name] = centre + 0.5 * torch.randn(value.shape, generator=generator, dtype=dtype)
        else:
            weights[name] = value.to(dtype)
    return weights


def random_inputs(graph: Graph, seed: int, n: int = 4, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """A batch of random inputs, (n, *input shape)."""
    return torch.randn(n, *graph.shapes[graph.input.name], generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_morphs(graph: Graph, n: int, seed: int, limits: Limits = SMALL_LIMITS) -> list[Morph]:
    """Up to `n` random morphs that fit in sequence, within the limits. Widths need not be those of `neighbours`."""
    rng = random.Random(seed)
    morphs: list[Morph] = []
    for _ in range(n):
        morph = _random_morph(graph, rng, limits)
        if morph is None:
            break
        morphs.append(morph)
        graph = morph.grow(graph)
    return morphs


def _random_morph(graph: Graph, rng: random.Random, limits: Limits) -> Morph | None:
    """A random morph within the limits, of an equally likely kind; widths are arbitrary. None if none fits."""
    morphs = list(candidates(graph))
    kinds = sorted({morph.tag for morph in morphs})
    for tag in rng.sample(kinds, len(kinds)):
        of_kind = [morph for morph in morphs if morph.tag == tag]
        for morph in rng.sample(of_kind, len(of_kind)):
            if isinstance(morph, Wider):
                morph = Wider(morph.node, graph.shapes[morph.node][0] + rng.randint(1, 5))
            if isinstance(morph, WiderAll):
                morph = WiderAll(rng.randint(101, 250))
            with suppress(MorphError):
                if limits.violation(morph.grow(graph)) is None:
                    return morph
    return None


def apply_morphs(graph: Graph, morphs: list[Morph]) -> Graph:
    """The graph after all the morphs."""
    for morph in morphs:
        graph = morph.grow(graph)
    return graph


@cache
def _ungrown_graphs(rank: int) -> tuple[Graph, ...]:
    hand_made = (build() for build in HAND_MADE.values())
    return (*starters(rank), *(graph for graph in hand_made if len(graph.shapes["x"]) == rank + 1))


@st.composite
def ungrown_graphs(draw: st.DrawFn, ranks: tuple[int, ...] = (0, 1, 2, 3)) -> Graph:
    """A starter or a hand-made network, not yet grown."""
    return draw(st.sampled_from([start for rank in ranks for start in _ungrown_graphs(rank)]))


@st.composite
def graphs(draw: st.DrawFn, ranks: tuple[int, ...] = (0, 1, 2, 3), morphs: int = 20) -> Graph:
    """A start, grown by 0 to `morphs` random morphs. ranks: the allowed numbers of spatial axes of its input."""
    start = draw(ungrown_graphs(ranks))
    return apply_morphs(start, random_morphs(start, draw(st.integers(0, morphs)), draw(st.integers(0, 2**32))))
