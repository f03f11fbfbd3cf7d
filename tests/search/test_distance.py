"""The edit distance: a pseudometric on random networks, with the values of a reference implementation."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morphnas.graph import (
    Add,
    AddSkip,
    Concat,
    ConcatSkip,
    Conv,
    Deeper,
    Dense,
    Dropout,
    GlobalPool,
    Graph,
    Input,
    Node,
    ReLU,
    Wider,
    cnn,
    densenet,
    mlp,
    resnet,
)
from morphnas.search.distance import _BATCH, DOUBLING_COST, Sketch, Token, distances, sketch
from tests.reference import distance
from tests.strategies import graphs, sequential


@given(st.lists(graphs((2,), morphs=12), min_size=1, max_size=4), st.lists(graphs((1, 2), morphs=12), max_size=3))
@settings(max_examples=40)
def test_distances_match_reference_implementation(rows: list[Graph], columns: list[Graph]) -> None:
    a, b = ([sketch(graph) for graph in side] for side in (rows, columns))
    for skip_weight in (1.0, 0.25, 0.0):  # sums of such numbers are exact
        expected = np.array([[distance(s, t, skip_weight) for t in b] for s in a]).reshape(len(a), len(b))
        np.testing.assert_array_equal(distances(a, b, skip_weight), expected)


@given(st.lists(graphs(morphs=12), min_size=3, max_size=6))
@settings(max_examples=60)
def test_distance_of_networks_is_a_pseudometric(networks: list[Graph]) -> None:
    sketches = [sketch(graph) for graph in networks]
    d = distances(sketches, sketches)
    assert (np.diag(d) == 0).all()
    assert (d >= 0).all()
    np.testing.assert_array_equal(d, d.T)
    assert (d[:, None, :] <= d[:, :, None] + d[None, :, :]).all()  # d(a, c) <= d(a, b) + d(b, c)


counts = st.tuples(st.integers(0, 2), st.integers(0, 2))
tokens = st.builds(Token, st.sampled_from(["conv", "pool"]), st.tuples(*[st.floats(0, 8)] * 3), counts, st.floats(0, 6))
sketches = st.lists(tokens, max_size=6).map(tuple)


@given(st.tuples(sketches, sketches, sketches), st.floats(0, 3))
@settings(max_examples=300)
def test_distance_of_any_sketches_is_a_pseudometric(networks: tuple[Sketch, ...], skip_weight: float) -> None:
    d = distances(networks, networks, skip_weight)
    np.testing.assert_allclose(d, d.T, atol=1e-4)
    assert (d[:, None, :] <= d[:, :, None] + d[None, :, :] + 1e-4).all()
    np.testing.assert_allclose(d[0, 1], distance(networks[0], networks[1], skip_weight), atol=1e-4)


def test_distances_of_empty_lists_and_sketches() -> None:
    one = [sketch(mlp((4,), 2))]
    assert distances([], one).shape == (0, 1)
    assert distances(one, []).shape == (1, 0)
    assert distances([], []).shape == (0, 0)
    assert distances([()], [(), *one]).tolist() == [[0, len(one[0])]]


def test_distances_are_the_same_in_several_batches() -> None:
    networks = [sketch(cnn((1, 8, 8), 2, width=w, depth=d)) for w in range(1, 14) for d in range(1, 7)]
    assert len(networks) ** 2 > _BATCH
    row_by_row = np.concatenate([distances([network], networks) for network in networks])
    np.testing.assert_array_equal(distances(networks, networks), row_by_row)


def test_sketch_of_residual_network() -> None:
    found = sketch(resnet((3, 8, 8), 10, width=4, depth=2))
    assert [token.kind for token in found] == ["input", "conv", "conv", "maxpool", *["conv"] * 6, "dense"]
    assert [token.skips for token in found] == [(int(i in (5, 8)), 0) for i in range(len(found))]
    assert found[5].reach == found[8].reach == pytest.approx(np.log2(1 + 2), abs=1e-3)


def test_main_path_of_densenet_is_the_longest() -> None:
    found = sketch(densenet((3, 8, 8), 10, width=4, depth=2))
    assert sum(sum(token.skips) for token in found) == 2
    assert {token.skips for token in found} == {(0, 0), (0, 1)}
    assert {token.reach for token in found if token.skips[1]} == {1.0}


def test_branch_shared_by_many_inputs_is_walked_once() -> None:
    """And not once for each of 18,000 inputs, over its 3,000 nodes."""
    nodes = [Node("x", Input((1,)))]
    for path, length in (("side", 3000), ("main", 3001)):
        nodes += [Node(f"{path}_{i}", ReLU(), (f"{path}_{i - 1}" if i else "x",)) for i in range(length)]
    leaves = [f"leaf_{i}" for i in range(900)]
    nodes += [Node(name, Dropout(), ("side_2999",)) for name in leaves]
    nodes += [Node(f"join_{i}", Concat(), ("main_3000", *leaves)) for i in range(20)]
    nodes += [Node("join", Concat(), tuple(f"join_{i}" for i in range(20))), Node("y", Dense(1), ("join",))]
    start = time.process_time()
    (last,) = [token for token in sketch(Graph(tuple(nodes))) if token.skips[1]]
    assert time.process_time() - start < 20
    assert last.skips == (0, 20 * 900 + 19)


def test_inserted_layer_leaves_other_tokens_unchanged() -> None:
    graph = resnet((3, 32, 32), 10, width=4, depth=3)
    before, after = sketch(graph), sketch(Deeper("relu_3").grow(graph))
    assert after[:2] == before[:2]
    assert after[3:] == before[2:]


GRAPH = cnn((3, 16, 16), 10, width=8, depth=3)
RELUS = [node.name for node in GRAPH.nodes if node.op.tag == "relu"]


@pytest.mark.parametrize(
    ("grown", "expected"),
    [
        (GRAPH, 0.0),
        (Deeper(RELUS[0]).grow(GRAPH), 1.0),
        (Wider(GRAPH.nodes[1].name, 16).grow(GRAPH), pytest.approx(DOUBLING_COST * np.log2(17 / 9), abs=1e-3)),
        (ConcatSkip(RELUS[0], RELUS[2]).grow(GRAPH), 1.0),  # including the pooling on its branch
        (AddSkip(RELUS[0], RELUS[2]).grow(GRAPH), 1.0),  # including its 1x1 convolution
    ],
)
def test_distance_of_single_morphs(grown: Graph, expected: float) -> None:
    assert distances([sketch(GRAPH)], [sketch(grown)], skip_weight=1.0).item() == expected


@pytest.mark.parametrize("ends", [(0, 2), (0, 3), (1, 3)])
@pytest.mark.parametrize("skip", [AddSkip, ConcatSkip])
def test_skip_across_strides_costs_one(skip: type[AddSkip | ConcatSkip], ends: tuple[int, int]) -> None:
    """Although its branch has at least as many layers as the path that it skips."""
    strided = (op for stride in (1, 2, 2, 1) for op in (Conv(4, 3, stride), ReLU()))
    graph = sequential(*strided, GlobalPool(), Dense(2), shape=(1, 16, 16))
    relus = [node.name for node in graph.nodes if isinstance(node.op, ReLU)]
    grown = skip(*(relus[i] for i in ends)).grow(graph)
    assert distances([sketch(graph)], [sketch(grown)], skip_weight=1.0).item() == 1.0


def test_branch_with_3x3_convolution_is_not_a_shortcut() -> None:
    def with_branch(op: Conv) -> Graph:
        nodes = [Node("x", Input((1, 8, 8))), Node("c", Conv(4), ("x",)), Node("r", ReLU(), ("c",))]
        nodes += [Node("d", Conv(4), ("r",)), Node("b", op, ("r",)), Node("s", Add(), ("d", "b"))]
        return Graph((*nodes, Node("p", GlobalPool(), ("s",)), Node("y", Dense(2), ("p",))))

    with_1x1, with_3x3 = (sketch(with_branch(Conv(4, kernel))) for kernel in (1, 3))
    assert [token.kind for token in with_1x1] == ["input", "conv", "conv", "globalpool", "dense"]
    assert len(with_3x3) == len(with_1x1) + 1


def test_main_path_may_have_fewer_layers_than_branch() -> None:
    nodes = [
        Node("x", Input((4,))),
        Node("a", Dense(4), ("x",)),
        Node("b", Dense(4), ("a",)),
        Node("r", ReLU(), ("x",)),
    ]
    graph = Graph((*nodes, Node("one", Add(), ("b", "r")), Node("last", Add(), ("one", "b"))))
    assert [(token.skips, token.reach) for token in sketch(graph)] == [((2, 0), 0.0)]


def test_distance_depends_on_position_of_layer() -> None:
    sketches = [sketch(Deeper(relu).grow(GRAPH)) for relu in RELUS]
    from_first = distances(sketches[:1], sketches)[0]
    assert 0 == from_first[0] < from_first[1] <= from_first[2]


def test_distance_depends_on_settings_of_weightless_layer() -> None:
    a, b = (sequential(Conv(4), Dropout(rate), shape=(1, 4, 4)) for rate in (0.1, 0.5))
    assert 0 < distances([sketch(a)], [sketch(b)]).item() < 1
