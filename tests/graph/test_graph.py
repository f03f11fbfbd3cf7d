"""Graphs: derived properties agree with PyTorch, keys with isomorphism, and JSON round trips."""

from __future__ import annotations

import copy
import itertools
import json
import math
import random
from collections.abc import Callable
from dataclasses import MISSING, fields, replace
from typing import Any

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx
from torch.utils.flop_counter import FlopCounterMode

from morphnas.graph import (
    Add,
    AvgPool,
    BatchNorm,
    Concat,
    Conv,
    Dense,
    Depthwise,
    Dropout,
    Flatten,
    GlobalPool,
    Graph,
    GraphError,
    Input,
    Limits,
    MaxPool,
    MorphError,
    Node,
    Op,
    ReLU,
    ShapeError,
    cnn,
    densenet,
    mlp,
    morph_from_json,
    neighbours,
    resnet,
    to_module,
)
from morphnas.graph.graph import FORMAT
from morphnas.graph.ops import KINDS, op_from_json
from tests.strategies import HAND_MADE, apply_morphs, graphs, random_inputs, random_morphs, sequential, ungrown_graphs

# -- derived properties


class Recorder(fx.Interpreter):
    """Runs a module and records the output shape of every node."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[str, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.shapes[n.name] = tuple(result.shape[1:])
        return result


@settings(max_examples=60)
@given(graph=graphs(), seed=st.integers(0, 100))
def test_shapes_and_measures_agree_with_torch(graph: Graph, seed: int) -> None:
    module = to_module(graph).eval().double()
    recorder = Recorder(module)
    with torch.no_grad():
        recorder.run(random_inputs(graph, seed, n=2))
    assert {name: recorder.shapes[name] for name in graph.shapes} == graph.shapes
    state = module.state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == graph.weight_shapes
    assert graph.parameters == sum(parameter.numel() for parameter in module.parameters())
    assert graph.activation_bytes == 4 * sum(math.prod(shape) for shape in graph.shapes.values())


@settings(max_examples=20)
@given(graph=graphs(morphs=8))
def test_flops_of_layers_agree_with_torch(graph: Graph) -> None:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        to_module(graph).eval()(random_inputs(graph, 0, n=1, dtype=torch.float32))
    layers = [node for node in graph.nodes if node.op.mixes or isinstance(node.op, Depthwise)]
    assert counter.get_total_flops() == sum(node.op.flops(*graph.input_shapes(node)) for node in layers)
    assert graph.flops >= counter.get_total_flops()


def test_measures_agree_with_manual_computation() -> None:
    graph = sequential(
        Conv(4, bias=True), BatchNorm(), ReLU(), MaxPool(), Flatten(), Dense(3, bias=False), shape=(2, 6, 5)
    )
    assert graph.shapes == {
        "x": (2, 6, 5), "conv_1": (4, 6, 5), "bn_2": (4, 6, 5), "relu_3": (4, 6, 5), "maxpool_4": (4, 3, 2),
        "flatten_5": (24,), "dense_6": (3,),
    }  # fmt: skip
    assert graph.parameters == (4 * 2 * 9 + 4) + (4 + 4) + 3 * 24
    assert graph.flops == 2 * 4 * 30 * 2 * 9 + 2 * 120 + 120 + 24 * 4 + 2 * 3 * 24
    assert graph.activation_bytes == 4 * (60 + 120 + 120 + 120 + 24 + 24 + 3)
    assert graph.depth == 2


def test_depth_is_that_of_longest_path() -> None:
    assert [mlp((4,), 2, depth=n).depth for n in (0, 1, 2, 5)] == [1, 2, 3, 6]
    assert HAND_MADE["two_towers_2d"]().depth == 5


def test_starters_accept_every_image_size() -> None:
    for rank, build in itertools.product((1, 2, 3), (cnn, resnet, densenet, mlp)):
        for size in (1, 2, 7, 8, 17):
            graph = build((1, *[size] * rank), 3, width=4)
            assert graph.shapes[graph.output.name] == (3,)


def test_starters_reject_invalid_arguments() -> None:
    with pytest.raises(ValueError, match="use mlp for flat features"):
        cnn((5,), 2)
    invalid: Any
    for invalid in (0, -1, 2.5, True, "4"):
        with pytest.raises(ValueError, match="width must be a positive integer"):
            resnet((1, 4, 4), 2, width=invalid)
        with pytest.raises(ValueError, match="depth must be a positive integer"):
            densenet((1, 4, 4), 2, depth=invalid)
        with pytest.raises(ValueError, match="n_classes must be a positive integer"):
            mlp((4,), invalid)


@pytest.mark.parametrize("build", [cnn, resnet, densenet])
@pytest.mark.parametrize(
    ("size", "poolings", "pools_first"),
    [(7, 0, False), (8, 1, False), (15, 1, False), (16, 2, False), (28, 2, False), (63, 3, False), (64, 4, True)],
)
def test_starter_pooling_depends_on_image_size(
    build: Callable[..., Graph], size: int, poolings: int, pools_first: bool
) -> None:
    graph = build((1, size, size), 3, width=4, depth=6)
    max_poolings = 2 + pools_first if build is densenet else poolings  # densenet has at most three blocks
    assert sum(isinstance(node.op, MaxPool) for node in graph.nodes) == min(poolings, max_poolings)
    (first,) = graph.consumers[graph.input.name]
    assert any(isinstance(graph[name].op, MaxPool) for name in graph.consumers[first]) is pools_first


@pytest.mark.parametrize("build", [cnn, resnet])
@pytest.mark.parametrize(
    ("sizes", "flattened"),
    [((8,), True), ((64,), True), ((640,), False), ((32, 32), True), ((8, 128), False), ((16, 16, 16), True)],
)
def test_starters_read_few_positions_one_by_one_and_many_by_their_mean(
    build: Callable[..., Graph], sizes: tuple[int, ...], flattened: bool
) -> None:
    graph = build((1, *sizes), 3, width=4, depth=4)
    assert any(isinstance(node.op, Flatten) for node in graph.nodes) is flattened
    assert any(isinstance(node.op, GlobalPool) for node in graph.nodes) is not flattened


def test_lookup_of_nodes_and_paths() -> None:
    graph = HAND_MADE["two_towers_2d"]()
    assert "conv_3" in graph
    assert "conv_99" not in graph
    assert graph["conv_3"].op == Conv(4, bias=True)
    assert graph.consumers["relu_2"] == ("conv_3", "conv_4", "avgpool_8")
    assert graph.consumers["relu_13"] == ("add_14", "add_14")
    ancestors = {node.name for node in graph.nodes if graph.has_path(node.name, "add_5")}
    assert ancestors == {"x", "conv_1", "relu_2", "conv_3", "conv_4"}
    assert [node.name for node in graph.path("relu_6", "conv_12")] == [
        "maxpool_7", "concat_9", "bn_10", "relu_11", "conv_12",
    ]  # fmt: skip
    with pytest.raises(GraphError, match="no node 'conv_99'"):
        _ = graph["conv_99"]
    with pytest.raises(GraphError, match="no path leads from 'conv_12' to 'conv_1'"):
        graph.path("conv_12", "conv_1")
    description = "conv_3 (4, 6, 6): conv filters 4, kernel 3, stride 1, bias True, padding 1, groups 1 <- relu_2"
    assert description in str(graph)


# -- keys


def isomorphic_copy(graph: Graph, seed: int) -> Graph:
    """The same network with random node names, inputs of sums shuffled, and nodes in a random order."""
    rng = random.Random(seed)
    numbers = rng.sample(range(10_000), len(graph.nodes))
    names = {node.name: f"n_{number}" for node, number in zip(graph.nodes, numbers, strict=True)}
    remaining, nodes, added = list(graph.nodes), [], set[str]()
    while remaining:
        ready = [node for node in remaining if added.issuperset(node.inputs)]
        node = rng.choice([n for n in ready if n is not graph.output] or ready)  # the output comes last
        remaining.remove(node)
        added.add(node.name)
        inputs = [names[name] for name in node.inputs]
        if node.op.commutative:
            rng.shuffle(inputs)
        nodes.append(Node(names[node.name], node.op, tuple(inputs)))
    return Graph(tuple(nodes))


def to_networkx(graph: Graph) -> nx.MultiDiGraph:
    result = nx.MultiDiGraph()
    for node in graph.nodes:
        result.add_node(node.name, op=repr(node.op))
        for i, name in enumerate(node.inputs):
            result.add_edge(name, node.name, position=None if node.op.commutative else i)
    return result


def are_isomorphic(one: Graph, other: Graph) -> bool:
    def positions(edges: Any) -> list[str]:
        return sorted(str(edge["position"]) for edge in edges.values())

    return bool(
        nx.is_isomorphic(
            to_networkx(one),
            to_networkx(other),
            node_match=lambda a, b: a["op"] == b["op"],
            edge_match=lambda a, b: positions(a) == positions(b),
        )
    )


@settings(max_examples=60)
@given(graph=graphs(), seed=st.integers(0, 2**32))
def test_key_ignores_names_and_order(graph: Graph, seed: int) -> None:
    assert isomorphic_copy(graph, seed).key == graph.key


@settings(max_examples=25)
@given(graph=graphs(morphs=3), seed=st.integers(0, 2**32))
def test_keys_are_equal_only_for_isomorphic_graphs(graph: Graph, seed: int) -> None:
    rng = random.Random(seed)
    morphs = list(neighbours(graph))
    grown = [morph.grow(graph) for morph in rng.sample(morphs, min(8, len(morphs)))]
    for one, other in itertools.combinations([graph, *grown], 2):
        assert (one.key == other.key) == are_isomorphic(one, other), f"{one}\n\n{other}"


@settings(max_examples=20)
@given(graph=graphs(morphs=4), seed=st.integers(0, 2**32))
def test_key_ignores_order_of_morphs(graph: Graph, seed: int) -> None:
    """Deepening at two sites in either order: searchers recognise the duplicate."""
    deeper = list(neighbours(graph, Limits(morphs=("deeper",))))
    if len(deeper) >= 2:
        one, other = random.Random(seed).sample(deeper, 2)
        assert apply_morphs(graph, [one, other]).key == apply_morphs(graph, [other, one]).key


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Conv(4), Conv(5)), (Conv(4), Conv(4, 5)), (Conv(4), Conv(4, bias=True)), (Conv(4), Conv(4, 3, 2)),
        (MaxPool(), AvgPool()), (MaxPool(), MaxPool(3, 2, 1)), (BatchNorm(), BatchNorm(eps=1e-3)),
        (BatchNorm(), BatchNorm(momentum=0.2)), (Dropout(0.1), Dropout(0.2)), (ReLU(), BatchNorm()),
    ],
)  # fmt: skip
def test_key_depends_on_every_setting(one: Op, other: Op) -> None:
    keys = {sequential(Conv(3), op, GlobalPool(), Dense(2), shape=(3, 8, 8)).key for op in (one, other)}
    assert len(keys) == 2


def test_key_depends_on_sharing_and_order_of_inputs() -> None:
    def join(op: Op, *inputs: str) -> Graph:
        middle = [Node(f"dense_{i}", Dense(2, bias=i == 3), ("x",)) for i in (1, 2, 3) if f"dense_{i}" in inputs]
        return Graph((Node("x", Input((2,))), *middle, Node("join", op, inputs)))

    assert join(Add(), "dense_1", "dense_1").key != join(Add(), "dense_1", "dense_2").key
    assert join(Add(), "dense_1", "dense_3").key == join(Add(), "dense_3", "dense_1").key
    assert join(Concat(), "dense_1", "dense_3").key != join(Concat(), "dense_3", "dense_1").key
    assert mlp((2,), 2).key != mlp((3,), 2).key


def test_key_distinguishes_equal_tensors_by_readers() -> None:
    """Two towers with equal ops, whose outputs are joined in all possible pairs."""
    towers = [Node("x", Input((4,)))]
    for name in "ab":
        towers += [Node(f"dense_{name}", Dense(4), ("x",)), Node(name, ReLU(), (f"dense_{name}",))]
    pairs = [("a", "a"), ("a", "b"), ("b", "a"), ("b", "b")]
    joined = [
        Graph((*towers, Node("one", inner, one), Node("other", inner, other), Node("last", outer, ("one", "other"))))
        for inner, outer in itertools.product((Add(), Concat()), repeat=2)
        for one, other in itertools.product(pairs, repeat=2)
        if {*one, *other} == {"a", "b"}
    ]
    for one, other in itertools.combinations(joined, 2):
        assert (one.key == other.key) == are_isomorphic(one, other), f"{one}\n\n{other}"
    for graph in joined:
        assert isomorphic_copy(graph, 1).key == graph.key


def test_key_and_json_ignore_type_of_numbers() -> None:
    one, other = (sequential(BatchNorm(momentum=m), Dropout(0 * m), Dense(2), shape=(4,)) for m in (1, 1.0))
    assert one == other
    assert one.key == other.key
    assert json.dumps(one.to_json()) == json.dumps(other.to_json())


def test_key_is_the_same_in_every_process() -> None:
    assert sequential(Dense(3), ReLU(), Dense(2), shape=(4,)).key == "93d489e498c3d5649368b42fd8c845d8"


# -- JSON


@settings(max_examples=60)
@given(graph=graphs())
def test_graph_round_trips_through_json(graph: Graph) -> None:
    text = json.dumps(graph.to_json())
    again = Graph.from_json(json.loads(text))
    assert again == graph
    assert hash(again) == hash(graph)
    assert again.key == graph.key
    assert json.dumps(again.to_json()) == text


@settings(max_examples=30)
@given(graph=ungrown_graphs(), seed=st.integers(0, 2**32))
def test_morph_round_trips_through_json(graph: Graph, seed: int) -> None:
    for morph in random_morphs(graph, 8, seed):
        text = json.dumps(morph.to_json())
        again = morph_from_json(json.loads(text))
        assert again == morph
        assert json.dumps(again.to_json()) == text


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([10**30, "x", "conv"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


def locations(data: Any) -> list[tuple[Any, Any]]:
    """Every (container, key or index) in a JSON value."""
    keys: list[Any] = list(data) if isinstance(data, dict) else list(range(len(data))) if isinstance(data, list) else []
    return [(data, key) for key in keys] + [location for key in keys for location in locations(data[key])]


@settings(max_examples=400)
@given(graph=graphs(morphs=3), value=JSON_VALUES, data=st.data())
def test_malformed_graph_raises_graph_error(graph: Graph, value: Any, data: st.DataObject) -> None:
    malformed = copy.deepcopy(graph.to_json())
    container, key = data.draw(st.sampled_from(locations(malformed)))
    match data.draw(st.sampled_from(["replace", "delete", "add", "repeat"])):
        case "replace":
            container[key] = value
        case "delete":
            del container[key]
        case "add" if isinstance(container, dict):
            container[data.draw(st.text(max_size=5))] = value
        case _:
            if isinstance(container, list):
                container.insert(key, container[key])
    try:
        loaded = Graph.from_json(malformed)
    except GraphError as error:
        assert str(error)  # noqa: PT017 - whether it is raised depends on the example
    else:
        assert Graph.from_json(json.loads(json.dumps(loaded.to_json()))) == loaded
        assert loaded.parameters >= 0
        assert len(loaded.key) == 32


@settings(max_examples=100)
@given(value=JSON_VALUES)
def test_other_json_raises_graph_error(value: Any) -> None:
    for read in (Graph.from_json, morph_from_json):
        with pytest.raises(GraphError):
            read(value)
    with pytest.raises(GraphError):
        Graph.from_json({"format": FORMAT, "nodes": value})
    with pytest.raises(GraphError):
        Graph.from_json({"format": FORMAT, "nodes": [value]})


@settings(max_examples=100)
@given(value=JSON_VALUES, tag=st.sampled_from(sorted(Limits.morphs)))
def test_malformed_morph_raises_morph_error(value: Any, tag: str) -> None:
    skip = {"start": "relu_1", "end": "relu_2"}
    valid: dict[str, dict[str, Any]] = {
        "deeper": {"after": "relu_1", "kernel": 3},
        "wider": {"node": "conv_1", "width": 4},
        "wider_all": {"percent": 150},
        "add_skip": skip,
        "concat_skip": skip,
    }
    arguments = valid[tag]
    no_arguments = [] if tag == "wider_all" else [{"morph": tag}]  # wider_all has a default
    for malformed in ({"morph": tag, **arguments, "more": value}, *no_arguments, {"morph": value, **arguments}):
        with pytest.raises(MorphError):
            morph_from_json(malformed)
    field = "start" if tag == "concat_skip" else list(arguments)[-1]
    try:
        morph = morph_from_json({"morph": tag, **arguments, field: value})
    except MorphError:
        return
    assert getattr(morph, field) == value


@pytest.mark.parametrize("tag", KINDS)
def test_op_json_rejects_unknown_settings(tag: str) -> None:
    ops: dict[str, Op] = {"input": Input((2, 3)), "conv": Conv(3, 5, 2, True), "dense": Dense(4, False)}
    op = ops.get(tag) or KINDS[tag]()
    assert op_from_json(json.loads(json.dumps(op.to_json()))) == op
    with pytest.raises(ValueError, match=f"{tag}: unknown setting 'colour'"):
        op_from_json(op.to_json() | {"colour": 1})
    with pytest.raises(ValueError, match="unknown op 'lstm'"):
        op_from_json({"op": "lstm"})


@settings(max_examples=300)
@given(kind=st.sampled_from(sorted(KINDS)), data=st.data())
def test_every_valid_op_round_trips_through_json(kind: str, data: st.DataObject) -> None:
    values = st.sampled_from([0, 1, 2, 3, 1.0, 0.5, True, False, None, "0.5", (2, 3)]) | JSON_VALUES
    names = [f.name for f in fields(KINDS[kind]) if f.default is MISSING or data.draw(st.booleans())]
    try:
        op = KINDS[kind](**{name: data.draw(values) for name in names})
    except ValueError:
        return
    again = op_from_json(json.loads(json.dumps(op.to_json(), allow_nan=False)))
    assert again == op
    assert again.to_json() == op.to_json()
    assert repr(again) == repr(op)


# -- errors


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Conv(0), ["conv", "filters", "0"]),
        (lambda: Conv(4, 2), ["kernel must be odd", "2"]),
        (lambda: Conv(4, stride=0), ["stride"]),
        (lambda: Conv(4, 1, 2), ["conv", "stride of 2", "kernel of 1"]),
        (lambda: Conv(True), ["filters", "True"]),
        (lambda: Dense(-1), ["dense", "units", "-1"]),
        (lambda: MaxPool(2, 2, 2), ["maxpool", "padding", "2"]),
        (lambda: AvgPool(0), ["avgpool", "size"]),
        (lambda: Dropout(1.0), ["dropout", "rate", "1.0"]),
        (lambda: Dropout(math.nan), ["dropout", "rate", "nan"]),
        (lambda: BatchNorm(eps=0.0), ["bn", "eps", "0.0"]),
        (lambda: BatchNorm(eps=math.inf), ["bn", "eps", "inf"]),
        (lambda: BatchNorm(momentum=1.5), ["bn", "momentum", "1.5"]),
        (lambda: BatchNorm(eps="a"), ["bn", "eps", "float", "'a'"]),  # type: ignore[arg-type]
        (lambda: BatchNorm(momentum=10**400), ["bn", "momentum"]),
        (lambda: Dropout("0.5"), ["dropout", "rate", "float", "'0.5'"]),  # type: ignore[arg-type]
        (lambda: Dropout(False), ["dropout", "rate", "float", "False"]),
        (lambda: Conv(8, bias=1), ["conv", "bias", "bool", "1"]),  # type: ignore[arg-type]
        (lambda: Dense(8, bias=None), ["dense", "bias", "bool", "None"]),  # type: ignore[arg-type]
        (lambda: MaxPool(3, 2, True), ["maxpool", "padding", "int", "True"]),
        (lambda: Input(()), ["input", "size"]),
        (lambda: Input((1, 2, 3, 4, 5)), ["input", "size"]),
        (lambda: Input((1, 0)), ["input", "(1, 0)"]),
    ],
)
def test_op_error_names_invalid_setting(build: Any, words: list[str]) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        build()
    assert all(word in str(caught.value) for word in words)


X = Node("x", Input((2, 6, 6)))
C = Node("conv_1", Conv(4), ("x",))


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ((), ["begins with its input"]),
        ((C,), ["begins with its input"]),
        ((X, Node("conv_1", Conv(4), ("y",))), ["conv_1", "['y']", "before it"]),
        ((X, C, Node("conv_1", Conv(4), ("conv_1",))), ["two nodes", "conv_1"]),
        ((X, Node("x_2", Input((2,)))), ["x_2", "one input"]),
        ((X, C, Node("add_2", Add(), ("conv_1",))), ["add_2", "1 inputs"]),
        ((X, C, Node("add_2", Add(), ("conv_1", "conv_1", "conv_1"))), ["add_2", "3 inputs"]),
        ((X, C, Node("add_2", Add(), ("x", "conv_1"))), ["add_2", "(2, 6, 6)", "(4, 6, 6)"]),
        ((X, C, Node("dense_2", Dense(3), ("conv_1",))), ["dense_2", "(4, 6, 6)", "flatten"]),
        ((X, C, Node("pool_2", MaxPool(9, 1), ("conv_1",))), ["pool_2", "window of 9", "(4, 6, 6)"]),
        ((X, Node("pool_1", MaxPool(), ("x",)), Node("concat_2", Concat(), ("x", "pool_1"))),
         ["concat_2", "(2, 6, 6)", "(2, 3, 3)"]),
        ((X, C, Node("conv_2", Conv(4), ("x",))), ["['conv_1']", "not used"]),
        ((Node("x", Input((3,))), Node("conv_1", Conv(2), ("x",))), ["conv_1", "(3,)", "spatial"]),
        ((Node("x", Input((3,))), Node("globalpool_1", GlobalPool(), ("x",))), ["globalpool_1", "(3,)"]),
        ((Node("x", Input((1, 2, 2, 2))), Node("avgpool_1", AvgPool(3, 1, 1), ("x",))), ["avgpool_1", "(1, 2, 2, 2)"]),
    ],
)  # fmt: skip
def test_graph_error_names_node_and_shapes(nodes: tuple[Node, ...], words: list[str]) -> None:
    with pytest.raises(GraphError) as caught:
        Graph(nodes)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "", "Conv", "1a", "a b", "a.b", "for", "forward", "print", "train", "a" * 65, "é", "self", "torch", "inf",
        "nan", "device", "fx_pytree", "pytree", "mean", "std", "unit", "centre",
    ],
)  # fmt: skip
def test_graph_rejects_names_invalid_in_python_or_torch(name: str) -> None:
    with pytest.raises(GraphError, match="cannot name a node"):
        Graph((X, Node(name, Conv(2), ("x",))))


def test_graph_rejects_names_used_by_fx() -> None:
    for name in [*fx.graph._custom_builtins, *vars(to_module(mlp((2,), 2)))]:
        with pytest.raises(GraphError, match="cannot name a node"):
            Graph((X, Node(name, Conv(2), ("x",))))


def test_from_json_rejects_too_many_inputs() -> None:
    joins = [Node(f"join_{i}", Concat(), ("x",) * 1000) for i in range(101)]
    graph = Graph((Node("x", Input((1,))), *joins, Node("join", Concat(), tuple(node.name for node in joins))))
    with pytest.raises(GraphError, match="at most 100,000 inputs, not 101,101"):
        Graph.from_json(graph.to_json())


def test_from_json_rejects_other_formats() -> None:
    data = mlp((2,), 2).to_json()
    invalid: Any
    for invalid in (data | {"format": FORMAT + 1}, {"nodes": data["nodes"]}, [], None, "graph"):
        with pytest.raises(GraphError, match="this is something else"):
            Graph.from_json(invalid)


def test_replace_ops_rejects_unknown_node() -> None:
    graph = mlp((2,), 2)
    with pytest.raises(GraphError, match="no node 'dense_99'"):
        graph.replace_ops({"dense_99": Dense(3)})


def test_shape_error_is_a_value_error() -> None:
    assert issubclass(ShapeError, ValueError)


def test_copied_graph_is_equal() -> None:
    graph = mlp((2,), 2)
    assert replace(graph) == graph
