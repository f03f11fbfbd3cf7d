"""Morphs preserve the function of a network, whatever the network and its weights."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from morphnas.graph import (
    AddSkip,
    Concat,
    Conv,
    Deeper,
    Dense,
    Dropout,
    Flatten,
    GlobalPool,
    Graph,
    Input,
    Limits,
    Morph,
    Node,
    ReLU,
    Weights,
    Widening,
    Wider,
    cnn,
    densenet,
    mlp,
    neighbours,
    resnet,
    to_module,
)
from morphnas.graph.morphs import width_groups
from morphnas.graph.ops import KINDS
from tests.strategies import (
    HAND_MADE,
    random_inputs,
    random_morphs,
    random_weights,
    sequential,
    starters,
    ungrown_graphs,
)

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}

NETWORKS: dict[str, Graph] = {name: build() for name, build in HAND_MADE.items()} | {
    f"{name}_{rank}d": graph
    for rank, shape in ((1, (2, 9)), (2, (2, 8, 9)), (3, (1, 8, 8, 8)))
    for name, graph in {
        "mlp": mlp(shape, 3, width=5, dropout=0.1),
        "cnn": cnn(shape, 3, width=4, dropout=0.1),
        "resnet": resnet(shape, 3, width=4),
        "densenet": densenet(shape, 3, width=3),
    }.items()
}
NETWORKS["mlp_flat"] = mlp((6,), 3, width=5, dropout=0.1)
NETWORKS["resnet_one_pixel"] = resnet((1, 1, 1), 2, width=3)
NETWORKS["relu_last"] = sequential(
    Conv(3), ReLU(), Conv(4), ReLU(), Flatten(), Dense(5), ReLU(), Dense(2), ReLU(), shape=(1, 4, 4)
)


def grow_and_carry(graph: Graph, weights: Weights, morphs: Sequence[Morph], seed: int) -> tuple[Graph, Weights]:
    """The graph and its weights after the morphs."""
    generator = torch.Generator().manual_seed(seed)
    for morph in morphs:
        graph, weights = morph.grow(graph), morph.carry(graph, weights, generator)
    return graph, weights


def outputs(graph: Graph, weights: Weights, x: torch.Tensor, training: bool = False) -> torch.Tensor:
    """The logits (n, classes); in training mode with batch statistics, but without dropout."""
    module = to_module(graph, weights).train(training)
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.eval()
    with torch.no_grad():
        result = module(x)
    assert result.isfinite().all()
    return result  # type: ignore[no-any-return]


def check_morphs(
    graph: Graph,
    morphs: Sequence[Morph],
    seed: int,
    dtype: torch.dtype = torch.float64,
    training: bool = False,
    tolerance: float | None = None,
) -> None:
    """The morphs change no output by more than a rounding error, relative to the largest output."""
    weights = random_weights(graph, seed, dtype)
    x = random_inputs(graph, seed, dtype=dtype)
    before = outputs(graph, weights, x, training)
    grown, carried = grow_and_carry(graph, weights, morphs, seed)
    after = outputs(grown, carried, x, training)
    assert {value.dtype for value in carried.values() if value.is_floating_point()} == {dtype}
    largest = before.abs().max().clamp(min=1e-300)  # with a relu at the end all outputs may be 0
    error = ((after - before).abs().max() / largest).item()
    allowed = TOLERANCE[dtype] if tolerance is None else tolerance
    assert error <= allowed, f"{error:.1e} after {', '.join(map(str, morphs))}\nof\n{graph}"


@pytest.mark.parametrize("tag", Limits.morphs)
@pytest.mark.parametrize("name", NETWORKS)
def test_each_morph_keeps_the_function(name: str, tag: str) -> None:
    graph = NETWORKS[name]
    fitting = list(neighbours(graph, Limits(morphs=(tag,))))
    for i, morph in enumerate(random.Random(name).sample(fitting, min(6, len(fitting)))):
        check_morphs(graph, [morph], seed=i)


@pytest.mark.parametrize("rank", range(4))
@settings(max_examples=40)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_chains_of_twenty_morphs_keep_the_function(rank: int, data: st.DataObject, seed: int) -> None:
    graph = data.draw(ungrown_graphs((rank,)))
    check_morphs(graph, random_morphs(graph, 20, seed), seed)


@pytest.mark.parametrize("rank", range(4))
@settings(max_examples=15)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_chains_keep_the_function_in_single_precision(rank: int, data: st.DataObject, seed: int) -> None:
    graph = data.draw(ungrown_graphs((rank,)))
    check_morphs(graph, random_morphs(graph, 20, seed), seed, torch.float32)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("rank", range(4))
def test_two_thousand_chains_keep_the_function(rank: int) -> None:
    graphs = [*starters(rank), *(graph for graph in NETWORKS.values() if len(graph.shapes["x"]) == rank + 1)]
    for seed in range(500):
        graph = graphs[seed % len(graphs)]
        check_morphs(graph, random_morphs(graph, 20, seed), seed)


@settings(max_examples=40)
@given(graph=ungrown_graphs(), seed=st.integers(0, 2**32))
def test_all_morphs_but_deeper_keep_the_function_in_training(graph: Graph, seed: int) -> None:
    """With batch statistics; after Deeper the new batch norm has to be calibrated."""
    morphs: list[Morph] = []
    grown = graph
    rng = random.Random(seed)
    for tag in ("wider", "add_skip", "concat_skip", "wider_all", "wider"):
        fitting = list(neighbours(grown, Limits(morphs=(tag,))))
        if fitting:
            morphs.append(rng.choice(fitting))
            grown = morphs[-1].grow(grown)
    check_morphs(graph, morphs, seed, training=True, tolerance=1e-4)


@settings(max_examples=40)
@given(graph=ungrown_graphs(), seed=st.integers(0, 2**32))
def test_fresh_channels_keep_the_function(graph: Graph, seed: int) -> None:
    """No two channels of the layers in `fresh` have equal weights after a widening."""
    fitting = list(neighbours(graph, Limits(morphs=("wider", "wider_all"))))
    if not fitting:
        return
    morph, weights = random.Random(seed).choice(fitting), random_weights(graph, seed)
    assert isinstance(morph, Widening)
    layers = [layer for group, _, _ in morph.groups(graph) for layer in group]
    carried = morph.carry(graph, weights, torch.Generator().manual_seed(seed + 1), fresh=layers)
    grown, x = morph.grow(graph), random_inputs(graph, seed)
    before, after = outputs(graph, weights, x), outputs(grown, carried, x)
    assert (after - before).abs().max() <= 1e-10 * before.abs().max()
    for layer in layers:
        old, new = weights[f"{layer}.weight"], carried[f"{layer}.weight"]
        rows = new.flatten(1)[:, : old[0].numel()] if old[0].numel() > 1 else new.flatten(1)[:0]
        assert len({tuple(row.tolist()) for row in rows}) == len(rows), layer


def test_networks_contain_every_kind_of_op() -> None:
    assert {node.op.tag for graph in NETWORKS.values() for node in graph.nodes} == set(KINDS)


def test_widening_across_pooling_flatten_and_dropout() -> None:
    graph = NETWORKS["vgg_2d"]
    check_morphs(graph, [Wider("conv_8", 9), Wider("dense_13", 10), Wider("conv_1", 6)], 0)
    check_morphs(graph, [AddSkip("relu_2", "relu_10"), Deeper("relu_14"), Wider("conv_4", 8), Deeper("relu_10", 5)], 1)


def test_widening_across_concats_and_sums() -> None:
    graph = NETWORKS["two_towers_2d"]
    skips = [AddSkip("relu_6", "relu_13"), AddSkip("relu_11", "relu_17")]
    check_morphs(graph, [Wider("conv_1", 7), Wider("conv_3", 9), *skips, Wider("conv_1", 8), Wider("conv_12", 6)], 0)


def test_widening_of_a_tensor_concatenated_with_itself() -> None:
    graph = Graph(
        (
            Node("x", Input((3,))),
            Node("dense_1", Dense(4), ("x",)),
            Node("relu_2", ReLU(), ("dense_1",)),
            Node("concat_3", Concat(), ("relu_2", "relu_2", "relu_2")),
            Node("dense_4", Dense(2), ("concat_3",)),
        )
    )
    check_morphs(graph, [Wider("dense_1", 9), Deeper("relu_2"), Wider("dense_1", 11)], 3)


# -- side effects and symmetry breaking


@settings(max_examples=30)
@given(graph=ungrown_graphs(), seed=st.integers(0, 2**32))
def test_morphs_have_no_side_effects(graph: Graph, seed: int) -> None:
    weights = random_weights(graph, seed)
    before = {name: value.clone() for name, value in weights.items()}
    state = torch.get_rng_state()
    morphs = random_morphs(graph, 5, seed)
    grown, carried = grow_and_carry(graph, weights, morphs, seed)
    again = grow_and_carry(graph, weights, morphs, seed)[1]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weights[name], value) for name, value in before.items())
    assert all(torch.equal(again[name], value) for name, value in carried.items())
    assert {name: tuple(value.shape) for name, value in carried.items()} == grown.weight_shapes
    shared = {value.data_ptr() for value in weights.values()} & {value.data_ptr() for value in carried.values()}
    assert not shared
    assert all(value.is_contiguous() for value in carried.values())


@pytest.mark.parametrize("name", ["cnn_2d", "resnet_2d", "mlp_flat", "vgg_2d", "densenet_1d"])
def test_repeated_channels_get_different_gradients(name: str) -> None:
    """Channels that a widening gave equal weights: with equal gradients they would stay equal."""
    graph = NETWORKS[name]
    compared = 0
    for seed, morph in enumerate(neighbours(graph, Limits(morphs=("wider", "wider_all")))):
        grown, carried = grow_and_carry(graph, random_weights(graph, seed), [morph], seed)
        module = to_module(grown, carried)
        loss = nn.functional.cross_entropy(module(random_inputs(graph, seed, n=32)), torch.arange(32) % 2)
        loss.backward()
        for layer in [layer for group in width_groups(grown) for layer in group]:
            weight = module.get_submodule(layer).weight
            assert isinstance(weight, nn.Parameter)
            assert weight.grad is not None
            for i in range(graph.shapes[layer][0], grown.shapes[layer][0]):
                for j in range(i):
                    if torch.equal(weight[i], weight[j]) and weight.grad[j].abs().max() > 1e-9:
                        difference = (weight.grad[i] - weight.grad[j]).abs().max() / weight.grad[j].abs().max()
                        assert difference > 1e-6, f"{morph}: channels {i} and {j} of {layer} have equal gradients"
                        compared += 1
    assert compared


def test_morph_keeps_half_precision() -> None:
    graph = sequential(Conv(4), ReLU(), GlobalPool(), Dropout(), Dense(2), shape=(1, 4, 4))
    weights = {name: value.to(torch.bfloat16) for name, value in random_weights(graph, 0, torch.float32).items()}
    carried = Wider("conv_1", 6).carry(graph, weights, torch.Generator().manual_seed(0))
    assert {value.dtype for value in carried.values()} == {torch.bfloat16}
