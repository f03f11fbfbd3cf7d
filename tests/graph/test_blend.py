"""Blends: they compute the weighted mean of several networks, and are networks like any other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from morphnas.graph import (
    Dense,
    Graph,
    GraphError,
    Input,
    Network,
    Node,
    blend,
    cnn,
    mlp,
    neighbours,
    resnet,
    to_module,
)
from tests.strategies import HAND_MADE, random_inputs, random_weights, ungrown_graphs


def network(graph: Graph, seed: int) -> Network:
    return Network(graph, random_weights(graph, seed))


def outputs(network: Network, x: torch.Tensor) -> torch.Tensor:
    return network.to_module().double().eval()(x).detach()  # type: ignore[no-any-return]


@settings(max_examples=25)
@given(ungrown_graphs(), st.lists(st.floats(0.01, 1), min_size=1, max_size=4), st.integers(0, 2**20), st.booleans())
def test_blend_computes_weighted_mean(graph: Graph, shares: list[float], seed: int, with_grown: bool) -> None:
    """Of networks with one graph and different weights, and with a grown one among them."""
    graphs = [graph] * len(shares)
    if with_grown and (morph := next(neighbours(graph), None)) is not None:
        graphs[-1] = morph.grow(graph)
    networks = [network(g, seed + i) for i, g in enumerate(graphs)]
    x = random_inputs(graph, seed, 3)
    expected = sum(share * outputs(each, x) for share, each in zip(shares, networks, strict=True))
    assert isinstance(expected, torch.Tensor)
    found = outputs(blend(networks, shares), x)
    assert (found - expected).abs().max() <= 1e-6 * max(1.0, float(expected.abs().max()))


def test_blend_can_be_stored_blended_and_trained() -> None:
    blended = blend([network(cnn((2, 8, 8), 3, width=4), 0), network(resnet((2, 8, 8), 3, width=3), 1)], [0.5, 0.5])
    assert Graph.from_json(blended.graph.to_json()) == blended.graph
    assert blend([blended, blended], [0.5, 0.5]).graph.parameters == 2 * blended.graph.parameters + 18
    module = to_module(blended.graph, blended.weights).float()
    module(torch.randn(4, 2, 8, 8)).sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_blend_of_one_network_is_that_network() -> None:
    one = network(mlp((4,), 2, width=3), 0)
    assert blend([one], [1.0]) is one


def test_blend_accepts_any_node_names() -> None:
    graph = Graph((Node("dense_1", Input((4,))), Node("x", Dense(2), ("dense_1",))))
    one, two = network(graph, 0), network(graph, 1)
    x = torch.randn(3, 4, dtype=torch.float64)
    mean = (outputs(one, x) + outputs(two, x)) / 2
    assert torch.allclose(outputs(blend([one, two], [0.5, 0.5]), x), mean)


def test_blend_rejects_mismatched_networks_and_shares() -> None:
    one, other_inputs, other_outputs = (network(g, 0) for g in (mlp((4,), 2), mlp((5,), 2), mlp((4,), 3)))
    for other in (other_inputs, other_outputs):
        with pytest.raises(ValueError, match="one input shape and one flat output"):
            blend([one, other], [0.5, 0.5])
    for networks, shares in (([], []), ([one], [0.5, 0.5])):
        with pytest.raises(ValueError, match="each with its share"):
            blend(networks, shares)


def test_blend_rejects_too_many_nodes() -> None:
    one = network(HAND_MADE["norm_first"](), 0)
    with pytest.raises(GraphError, match="at most 10,000 nodes"):
        blend([one] * 3000, [1 / 3000] * 3000)


def test_blend_adapts_to_other_images_and_classes() -> None:
    """Convolutions keep their weights; the blended networks' last layers get initial ones where shapes change."""
    graphs = [cnn((1, 8, 8), 5, width=4, depth=2), cnn((1, 8, 8), 5, width=8, depth=1)]
    networks = [network(graph, i) for i, graph in enumerate(graphs)]
    blended = blend(networks, [0.5, 0.5])
    adapted = blended.adapted((1, 16, 16), 3)
    assert adapted.graph.shapes[adapted.graph.output.name] == (3,)
    kept = [name for name, value in adapted.weights.items() if value is blended.weights[name]]
    assert {name for name in adapted.weights if adapted.graph[name.rpartition(".")[0]].op.tag == "conv"} <= set(kept)
    assert outputs(adapted, torch.rand(2, 1, 16, 16).double()).shape == (2, 3)
