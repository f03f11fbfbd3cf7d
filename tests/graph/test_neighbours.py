"""The morphs offered to searchers: those that fit, within the limits, and the errors of those that do not."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morphnas.graph import (
    MIN_MICRO_BATCH,
    Add,
    AddSkip,
    ConcatSkip,
    Conv,
    Deeper,
    Dense,
    Flatten,
    GlobalPool,
    Graph,
    GraphError,
    Input,
    Limits,
    Morph,
    MorphError,
    Node,
    ReLU,
    Wider,
    WiderAll,
    cnn,
    densenet,
    mlp,
    narrowed,
    neighbours,
    resnet,
    width_group,
)
from morphnas.graph.morphs import _max_width, width_groups
from tests.strategies import HAND_MADE, graphs, sequential


@settings(max_examples=40)
@given(graph=graphs(morphs=10))
def test_neighbours_fit_and_keep_old_nodes(graph: Graph) -> None:
    offered = list(neighbours(graph))
    assert len(set(offered)) == len(offered)
    assert offered == list(neighbours(graph))
    for morph in offered:
        morph.check(graph)
        grown = morph.grow(graph)
        assert [node.name for node in grown.nodes if node.name in graph] == [node.name for node in graph.nodes]
        assert {node.name: node.op.tag for node in graph.nodes}.items() <= {
            node.name: node.op.tag for node in grown.nodes
        }.items()
        assert grown.key != graph.key
        assert grown.shapes[grown.output.name] == graph.shapes[graph.output.name]
        assert grown.shapes["x"] == graph.shapes["x"]
        assert grown.parameters > graph.parameters


PACE = (2.0**-10, 2.0**-24, 2.0**-20)  # exact in floats, also its multiples
SIZES: dict[str, Callable[[Graph], float]] = {
    "max_params": lambda g: g.parameters,
    "max_flops": lambda g: g.flops,
    "max_work": lambda g: g.work,
    "max_depth": lambda g: g.depth,
    "max_width": lambda g: max((n.op.width for n in g.nodes[:-1] if isinstance(n.op, (Conv, Dense))), default=1),
    "max_activation_bytes": lambda g: g.activation_bytes,
    "max_memory": lambda g: g.peak_bytes(MIN_MICRO_BATCH),
    "max_latency_ms": lambda g: 1000 * (PACE[0] * len(g.nodes) + PACE[1] * g.flops + PACE[2] * g.parameters),
}
"""The size that each limit bounds."""


@pytest.mark.parametrize("name", SIZES)
@settings(max_examples=10)
@given(graph=graphs(morphs=4), data=st.data())
def test_neighbours_are_exactly_those_within_the_limits(name: str, graph: Graph, data: st.DataObject) -> None:
    """The limit is the size of one of the neighbours."""
    grown = {morph: morph.grow(graph) for morph in neighbours(graph)}
    limit = SIZES[name](grown[data.draw(st.sampled_from(list(grown)))])
    tags = data.draw(st.sets(st.sampled_from(sorted(Limits.morphs)), min_size=3))
    limits = Limits(**{name: limit}, pace=PACE, morphs=tuple(tags))  # type: ignore[arg-type]
    expected = [morph for morph, g in grown.items() if morph.tag in tags and SIZES[name](g) <= limit]
    assert list(neighbours(graph, limits)) == expected


@settings(max_examples=30)
@given(graph=graphs(morphs=6), random=st.randoms(use_true_random=False))
def test_morphs_never_reduce_a_size(graph: Graph, random: Random) -> None:
    """Morphs never reduce a size, so no descendant of a network beyond the limits is within them."""

    def sizes(graph: Graph) -> list[float]:
        return [
            graph.parameters,
            graph.flops,
            graph.work,
            graph.depth,
            graph.activation_bytes,
            graph.peak_bytes(MIN_MICRO_BATCH),
            _max_width(graph),
            Limits(pace=(1, 1e-6, 1e-6)).latency(graph),
        ]

    offered = list(neighbours(graph))
    for morph in random.sample(offered, min(10, len(offered))):
        assert all(new >= old for new, old in zip(sizes(morph.grow(graph)), sizes(graph), strict=True)), morph


def raises_value_error(function: Callable[[Graph], object], graph: Graph) -> bool:
    try:
        function(graph)
    except ValueError:
        return True
    return False


@settings(max_examples=60)
@given(graph=graphs(morphs=5), data=st.data())
def test_check_and_grow_reject_the_same_morphs(graph: Graph, data: st.DataObject) -> None:
    name = st.sampled_from([node.name for node in graph.nodes] + ["missing_0"])
    morph = data.draw(
        st.one_of(
            st.builds(Deeper, name, st.sampled_from([1, 2, 3, 5])),
            st.builds(Wider, name, st.integers(-1, 12)),
            st.builds(AddSkip, name, name),
            st.builds(ConcatSkip, name, name),
        )
    )
    assert raises_value_error(morph.check, graph) == raises_value_error(morph.grow, graph)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(max_params=100), "parameters, at most 100 are allowed"),
        (Limits(max_flops=100), "FLOPs, at most 100"),
        (Limits(max_work=100), "FLOPs' worth of work in training, at most 100"),
        (Limits(max_depth=3), "4 layers of depth, at most 3"),
        (Limits(max_width=8), "16 channels of width, at most 8"),
        (Limits(max_activation_bytes=1_000), "activation bytes, at most 1,000"),
        (Limits(max_memory=1_000), "bytes of memory in training, at most 1,000"),
        (Limits(max_latency_ms=0.5, pace=(1e-3, 0, 0)), r"\d+ ms of latency \(predicted\), at most 0.5 are allowed"),
    ],
)
def test_violation_names_the_exceeded_limit(limits: Limits, words: str) -> None:
    assert re.search(words, str(limits.violation(cnn((1, 8, 8), 10, width=8))))


def test_network_within_limits_has_no_violation() -> None:
    assert Limits().violation(cnn((1, 8, 8), 10, width=8)) is None
    assert Limits(max_width=16).violation(cnn((1, 8, 8), 1_000, width=8)) is None  # the output's width is not counted


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"max_params": 0}, "max_params must be None or a positive integer, not 0"),
        ({"max_flops": 1.5}, "max_flops"),
        ({"max_depth": -1}, "max_depth"),
        ({"max_width": "8"}, "max_width"),
        ({"max_activation_bytes": True}, "max_activation_bytes"),
        ({"max_activation_bytes": np.True_}, "max_activation_bytes"),
        ({"max_params": np.float32(1.5)}, "max_params"),
        ({"max_latency_ms": np.float32("nan")}, "max_latency_ms must be None or a positive number, not nan"),
        ({"morphs": ("deeper", "prune")}, "unknown morphs"),
    ],
)
def test_limits_error_names_invalid_setting(setting: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Limits(**setting)


def test_limits_accept_numpy_numbers() -> None:
    pace = (np.float32(0.5), np.int64(0), 1e-6)
    sizes: dict[str, Any] = {"max_params": np.int64(1000), "max_flops": np.float32(1e6), "max_depth": np.uint8(7)}
    limits = Limits(**sizes, max_latency_ms=np.float64(0.5), pace=pace)  # type: ignore[arg-type]
    expected = Limits(max_params=1000, max_flops=1_000_000, max_depth=7, max_latency_ms=0.5, pace=(0.5, 0, 1e-6))
    assert limits == expected
    assert json.dumps(asdict(limits)) == json.dumps(asdict(expected))
    numbers = (limits.max_params, limits.max_flops, limits.max_depth, limits.max_latency_ms, *limits.pace)
    assert {type(number) for number in numbers} == {int, float}


def test_neighbours_offer_every_kind_of_morph() -> None:
    for graph in (mlp((4,), 2, depth=3), *(make((1, 16, 16), 2) for make in (resnet, densenet, cnn))):
        assert {morph.tag for morph in neighbours(graph)} == set(Limits.morphs)
    assert {morph.tag for morph in neighbours(graph, Limits(morphs=("deeper", "wider")))} == {"deeper", "wider"}
    assert list(neighbours(graph, Limits(morphs=()))) == []


def test_width_group_of_layers_tied_by_a_sum() -> None:
    graph = resnet((1, 4, 4), 2, depth=1)
    stem, start, inner, end, _ = [node.name for node in graph.nodes if isinstance(node.op, Conv)]
    assert width_group(graph, start) == width_group(graph, end) == {start, end}
    assert [width_group(graph, name) for name in (stem, inner)] == [{stem}, {inner}]


@pytest.mark.parametrize(
    ("graph", "name", "words"),
    [
        (mlp((4,), 2), "dense_7", "dense_7: its width is that of the network's output"),
        (mlp((4,), 2), "relu_3", "relu_3 is no convolution or dense layer"),
        (
            Graph(
                (
                    Node("x", Input((3,))),
                    Node("dense_1", Dense(3), ("x",)),
                    Node("add_2", Add(), ("dense_1", "x")),
                    Node("relu_3", ReLU(), ("add_2",)),
                    Node("dense_4", Dense(2), ("relu_3",)),
                )
            ),
            "dense_1",
            "that of the network's input",
        ),
        (
            Graph(
                (
                    Node("x", Input((2, 2, 2))),
                    Node("conv_1", Conv(2), ("x",)),
                    Node("flatten_2", Flatten(), ("conv_1",)),
                    Node("globalpool_3", GlobalPool(), ("x",)),
                    Node("dense_4", Dense(8), ("globalpool_3",)),
                    Node("add_5", Add(), ("flatten_2", "dense_4")),
                    Node("dense_6", Dense(2), ("add_5",)),
                )
            ),
            "conv_1",
            "conv_1: its channels are a part of what add_5 joins",
        ),
    ],
)
def test_width_group_rejects_widths_that_cannot_change(graph: Graph, name: str, words: str) -> None:
    with pytest.raises(MorphError, match=words):
        width_group(graph, name)
    with pytest.raises(MorphError):
        Wider(name, 50).grow(graph)


@pytest.mark.parametrize(("percent", "widths"), [(101, (5, 9)), (150, (6, 16)), (200, (8, 16))])
def test_wider_all_equals_widening_layer_by_layer(percent: int, widths: tuple[int, int]) -> None:
    graph = cnn((1, 32, 32), 10, width=4, depth=2)
    first, second = (node.name for node in graph.nodes if isinstance(node.op, Conv))
    grown = WiderAll(percent).grow(graph)
    assert (grown.shapes[first][0], grown.shapes[second][0]) == widths
    assert grown.key == Wider(second, widths[1]).grow(Wider(first, widths[0]).grow(graph)).key


@settings(max_examples=40)
@given(graph=graphs(morphs=10), times=st.integers(1, 5))
def test_narrowed_changes_only_widths(graph: Graph, times: int) -> None:
    result = narrowed(graph, times)
    assert [(node.name, node.inputs) for node in result.nodes] == [(node.name, node.inputs) for node in graph.nodes]
    for node in graph.nodes:
        old, new = graph.shapes[node.name], result.shapes[node.name]
        assert new[1:] == old[1:] or len(old) == 1
    changeable = frozenset().union(*width_groups(graph))
    for name in changeable:
        assert result.shapes[name][0] == math.ceil(graph.shapes[name][0] / times)
    assert all(result[node.name].op == node.op for node in graph.nodes if node.name not in changeable)
    assert narrowed(graph, 1).key == graph.key


def test_wider_all_keeps_width_groups() -> None:
    graph = HAND_MADE["two_towers_2d"]()
    grown = WiderAll().grow(graph)
    assert width_groups(grown) == width_groups(graph)
    with pytest.raises(MorphError, match="no layer that it could widen"):
        WiderAll().grow(sequential(GlobalPool(), Dense(3), shape=(1, 4, 4)))


def test_width_groups_before_a_sum_and_a_concat() -> None:
    graph = HAND_MADE["two_towers_2d"]()
    assert width_group(graph, "conv_1") == {"conv_1"}
    assert width_group(graph, "conv_3") == {"conv_3", "conv_4"}


@pytest.mark.parametrize(
    ("morph", "words"),
    [
        (Deeper("conv_1"), "conv_1 is no activation"),
        (Deeper("missing_9"), "missing_9 is no activation"),
        (Deeper("relu_2", 2), r"deeper\(relu_2, 2\): conv: kernel must be odd, not 2"),
        (Wider("missing_9", 20), "missing_9 is no convolution or dense layer of the graph"),
        (Wider("conv_1", 4), "conv_1 has 4 channels already"),
        (Wider("conv_1", 2**31), "a layer has at most 2,147,483,647 channels"),
        (WiderAll(10**12), "a layer has at most 2,147,483,647 channels"),
        (WiderAll(100), "percent must be above 100"),
        (AddSkip("relu_11", "relu_2"), "relu_11 does not lead to relu_2"),
        (AddSkip("relu_2", "relu_2"), "relu_2 does not lead to relu_2"),
        (AddSkip("relu_6", "relu_11"), "without an activation between them"),
        (ConcatSkip("relu_6", "relu_13"), "all that reads relu_13 leads into a sum, a gate or the network's output"),
        (ConcatSkip("relu_2", "relu_11"), "without an activation between them"),
    ],
)
def test_morph_error_says_why_the_morph_does_not_fit(morph: Morph, words: str) -> None:
    graph = HAND_MADE["two_towers_2d"]()
    with pytest.raises(MorphError, match=words):
        morph.check(graph)


@pytest.mark.parametrize("morph", [Deeper("relu_4"), ConcatSkip("relu_2", "relu_4")])
def test_insertion_after_the_output_is_rejected(morph: Morph) -> None:
    graph = sequential(Dense(5), ReLU(), Dense(5), ReLU(), shape=(4,))
    with pytest.raises(MorphError, match="relu_4 is the network's output"):
        morph.grow(graph)
    with pytest.raises(GraphError, match="none of the readers given for 'relu_4' is a node"):
        graph.splice([Node("relu_5", ReLU(), ("relu_4",))], "relu_4", [])


def test_new_nodes_get_valid_names_for_any_numbering() -> None:
    layers = f"d_{'9' * 62}", "relu_999999999", "dense_1"
    graph = Graph(
        (
            Node("x", Input((4,))),
            Node(layers[0], Dense(4), ("x",)),
            Node(layers[1], ReLU(), (layers[0],)),
            Node(layers[2], Dense(2), (layers[1],)),
        )
    )
    for _ in range(3):
        graph = Deeper("relu_999999999").grow(graph)
    assert len(graph.nodes) == 10


def test_same_skip_cannot_be_added_twice() -> None:
    graph = sequential(*[op for _ in range(4) for op in (Conv(3), ReLU())], GlobalPool(), Dense(2), shape=(1, 5, 5))
    for skip in (AddSkip("relu_2", "relu_6"), ConcatSkip("relu_2", "relu_6")):
        with pytest.raises(MorphError, match="already"):
            skip.check(skip.grow(graph))


def test_skip_that_torch_cannot_pool_is_rejected() -> None:
    """A skip over a strided 5x5x5 convolution would average windows that torch refuses in three dimensions."""
    graph = sequential(
        Conv(2), ReLU(), Conv(2, 5, 2), ReLU(), Conv(2), ReLU(), GlobalPool(), Dense(2), shape=(1, 3, 3, 3)
    )
    with pytest.raises(MorphError, match="no pooling turns"):
        AddSkip("relu_2", "relu_6").check(graph)


def test_skip_search_is_fast_with_many_paths() -> None:
    """Thirty tensors added to themselves have a billion paths; looking for skips must not follow each of them."""
    adds = [Node(f"add_{i}", Add(), (f"add_{i - 1}",) * 2) for i in range(1, 31)]
    graph = Graph(
        (
            Node("x", Input((2,))),
            Node("relu_0", ReLU(), ("x",)),
            Node("add_0", Add(), ("relu_0", "relu_0")),
            *adds,
            Node("relu_31", ReLU(), ("add_30",)),
            Node("dense_32", Dense(2), ("relu_31",)),
        )
    )
    assert {str(morph) for morph in neighbours(graph)} == {"deeper(relu_0, 1)", "deeper(relu_31, 1)"}
