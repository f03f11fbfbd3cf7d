"""Graphs as PyTorch modules: named after the nodes, readable, trainable, exportable, and freed when unreferenced."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from morphnas.graph import (
    Dense,
    Graph,
    Network,
    ReLU,
    WeightsError,
    Wider,
    cnn,
    densenet,
    fresh_weights,
    mlp,
    resnet,
    to_module,
    weights_of,
)
from morphnas.graph.module import NORMALISED_INIT_SCALE
from tests.strategies import HAND_MADE, apply_morphs, graphs, random_inputs, random_morphs, random_weights, sequential


def grown(graph: Graph, seed: int = 1) -> Graph:
    return apply_morphs(graph, random_morphs(graph, 8, seed))


GROWN = {
    "flat": grown(mlp((6,), 3, width=6, dropout=0.1)),
    "1d": grown(resnet((2, 9), 3, width=4, depth=2)),
    "2d": grown(cnn((1, 8, 8), 3, width=4)),
    "3d": grown(densenet((1, 8, 8, 8), 3, width=3, depth=3)),
    "hand-made": grown(HAND_MADE["vgg_2d"]()),
}


@settings(max_examples=40)
@given(graph=graphs(), seed=st.integers(0, 100))
def test_submodules_and_weights_are_named_after_nodes(graph: Graph, seed: int) -> None:
    weights = random_weights(graph, seed)
    module = to_module(graph, weights)
    assert [step.name for step in module.graph.nodes if step.op != "output"] == [node.name for node in graph.nodes]
    with_weights = [node.name for node in graph.nodes if node.op.tensors(*graph.input_shapes(node))]
    assert {name for name in weights if "." in name} == set(module.state_dict()) == set(graph.weight_shapes)
    children = dict(module.named_children())
    assert set(with_weights) <= set(children) <= {node.name for node in graph.nodes}
    for name, value in module.state_dict().items():
        assert torch.equal(value, weights[name])


def test_generated_code_is_readable() -> None:
    code = "".join(to_module(HAND_MADE[name]()).code for name in ("two_towers_2d", "vgg_2d"))
    lines = [line.partition(";")[0].strip() for line in code.splitlines()]
    for line in (
        "def forward(self, x):",
        "conv_1 = self.conv_1(x)",
        "relu_2 = torch.relu(conv_1)",
        "add_5 = conv_3 + conv_4",
        "concat_9 = torch.cat([maxpool_7, avgpool_8, maxpool_7], 1)",
        "bn_10 = self.bn_10(concat_9)",
        "globalpool_15 = add_14.mean((2, 3))",
        "flatten_12 = torch.flatten(maxpool_11, 1)",
        "dropout_15 = self.dropout_15(relu_14)",
        "return dense_18",
    ):
        assert line in lines, code


@pytest.mark.parametrize("name", GROWN)
def test_module_can_be_trained(name: str) -> None:
    graph = GROWN[name]
    module = to_module(graph)
    assert not module.training
    module.train()
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.eval()  # it draws global random numbers
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    x, y = random_inputs(graph, 0, n=24, dtype=torch.float32), torch.arange(24) % 3
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(module(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize("name", GROWN)
def test_module_can_be_exported_for_any_batch_size(name: str) -> None:
    graph = GROWN[name]
    module = to_module(graph, random_weights(graph, 0, torch.float32)).eval()
    x = random_inputs(graph, 0, n=3, dtype=torch.float32)
    exported = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for n in (2, 7):
        x = random_inputs(graph, n, n=n, dtype=torch.float32)
        with torch.no_grad():
            assert torch.equal(exported.module()(x), module(x))
    assert {name.removeprefix("p_") for name in exported.state_dict} == set(graph.weight_shapes)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_module_has_the_dtype_of_its_weights(dtype: torch.dtype) -> None:
    graph = GROWN["2d"]
    weights = {n: v.to(dtype) if v.is_floating_point() else v for n, v in random_weights(graph, 0).items()}
    assert to_module(graph, weights).eval()(random_inputs(graph, 0, dtype=dtype)).dtype == dtype


def test_initial_weights_depend_only_on_the_generator() -> None:
    graph = GROWN["2d"]
    state = torch.get_rng_state()
    first, second = to_module(graph).state_dict(), fresh_weights(graph)
    other = fresh_weights(graph, torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in second)
    assert not all(torch.equal(other[name], second[name]) for name in second)


def test_fresh_weights_keep_the_variance_of_activations() -> None:
    graph = sequential(*[op for _ in range(6) for op in (Dense(256), ReLU())], Dense(256), shape=(256,))
    with torch.no_grad():
        out = to_module(graph)(random_inputs(graph, 0, n=64, dtype=torch.float32))
    assert 0.5 < out.pow(2).mean() / 2 < 2  # the last layer doubles: its scale is for a relu after it


def test_layers_before_batch_norms_have_smaller_initial_weights() -> None:
    """Also with pooling in between; not if anything other than a batch norm reads the layer."""
    graph = cnn((1, 16, 16), 2, width=8)
    weights = fresh_weights(graph, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    for node in graph.nodes:
        for name, value in node.op.init(*graph.input_shapes(node), generator=generator).items():
            scale = NORMALISED_INIT_SCALE if node.op.tag == "conv" else 1.0
            assert torch.equal(weights[f"{node.name}.{name}"], scale * value)
    unnormalised = sequential(Dense(4), ReLU(), Dense(2), shape=(3,))
    expected = unnormalised["dense_1"].op.init((3,), generator=torch.Generator().manual_seed(0))["weight"]
    assert expected.std() > 0
    assert torch.equal(fresh_weights(unnormalised)["dense_1.weight"], expected)


def test_module_and_its_weights_share_no_memory() -> None:
    graph = GROWN["flat"]
    weights = random_weights(graph, 0, torch.float32)
    module = to_module(graph, weights)
    taken = weights_of(module)
    with torch.no_grad():
        for value in module.state_dict().values():
            value.zero_()
    assert all(value.abs().sum() > 0 for value in weights.values())
    assert all(torch.equal(taken[name], weights[name]) for name in weights)


def test_weights_error_names_the_tensor() -> None:
    graph = cnn((1, 4, 4), 2, width=3, depth=1)
    weights = fresh_weights(graph)
    incomplete = {name: value for name, value in weights.items() if name != "bn_2.bias"}
    for make in (to_module, Network):
        with pytest.raises(WeightsError, match=r"missing: bn_2\.bias"):
            make(graph, incomplete)
        with pytest.raises(WeightsError, match=r"the graph has no node: conv_9\.weight"):
            make(graph, weights | {"conv_9.weight": torch.zeros(1)})
        with pytest.raises(WeightsError, match=r"conv_1\.weight has shape \(3, 1, 3\), the graph needs \(3, 1, 3, 3\)"):
            make(graph, weights | {"conv_1.weight": torch.zeros(3, 1, 3)})
    with pytest.raises(WeightsError):
        to_module(Wider("conv_1", 5).grow(graph), weights)


def test_to_module_and_produce_model_are_equivalent() -> None:
    graph = GROWN["1d"]
    network = Network(graph, random_weights(graph, 0, torch.float32))
    x = random_inputs(graph, 0, dtype=torch.float32)
    one, other = network.to_module().eval(), network.produce_model().eval()
    assert torch.equal(one(x), other(x))
    assert network.graph is graph


def test_graphs_and_modules_can_be_pickled() -> None:
    """As scikit-learn users pickle estimators; morphnas itself stores JSON and safetensors."""
    graph = GROWN["2d"]
    module = to_module(graph, random_weights(graph, 0, torch.float32)).eval()
    loaded_graph, loaded = pickle.loads(pickle.dumps((graph, module)))
    x = random_inputs(graph, 0, dtype=torch.float32)
    assert loaded_graph == graph
    assert torch.equal(loaded(x), module(x))


def test_module_is_freed_when_unreferenced() -> None:
    """Without a reference cycle, which would hold GPU memory until the garbage collector runs."""
    gc.disable()
    try:
        module = to_module(GROWN["2d"])
        other = copy.deepcopy(module)
        module.graph.lint()
        references = [weakref.ref(value) for each in (module, other) for value in (each, *each.parameters())]
        del module, other
        assert [ref() for ref in references if ref() is not None] == []
    finally:
        gc.enable()
