"""A weighted mean of several networks' outputs as a single network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from morphnas.graph.graph import Graph, Node
from morphnas.graph.module import Network
from morphnas.graph.ops import Concat, Dense


def blend_graphs(graphs: Sequence[Graph]) -> tuple[Graph, list[dict[str, str]]]:
    """The graph of a `blend` of networks with these graphs, and for each of them its node names -> names in the blend.

    ValueError if their input shapes differ or their outputs are not flat and of one width.
    """
    signatures = {(graph.shapes[graph.input.name], graph.shapes[graph.output.name]) for graph in graphs}
    _, output_shape = next(iter(signatures))
    if len(signatures) > 1 or len(output_shape) > 1:
        raise ValueError(f"only networks of one input shape and one flat output are blended, not {sorted(signatures)}")
    nodes, names = [Node("x", graphs[0].input.op)], []
    for graph in graphs:
        new_names = {graph.input.name: "x"}
        for node in graph.nodes[1:]:
            name = new_names[node.name] = f"{node.op.tag}_{len(nodes)}"
            nodes.append(Node(name, node.op, tuple(new_names[i] for i in node.inputs)))
        names.append(new_names)
    if len(graphs) > 1:
        outputs = tuple(new_names[graph.output.name] for graph, new_names in zip(graphs, names, strict=True))
        nodes.append(Node(f"{Concat.tag}_{len(nodes)}", Concat(), outputs))
    nodes.append(Node(f"{Dense.tag}_{len(nodes)}", Dense(output_shape[0], bias=False), (nodes[-1].name,)))
    return Graph(tuple(nodes)), names


def blend(networks: Sequence[Network], shares: Sequence[float]) -> Network:
    """One network made of all those given, side by side behind one input: its outputs are sum(share * outputs).

    They must take the same shape and have flat outputs of the same width, else ValueError. A single one with share 1 is
    returned unchanged. A dense layer over all outputs applies the shares, so the result is a network like any other: it
    can be trained, stored, drawn and exported.
    """
    if not networks or len(networks) != len(shares):
        given = f"{len(networks)} networks and {len(shares)} shares"
        raise ValueError(f"a blend needs at least one network, each with its share, not {given}")
    if len(networks) == 1 and shares[0] == 1:
        return networks[0]
    graph, names = blend_graphs([network.graph for network in networks])
    weights = dict[str, Tensor]()
    for network, new_names in zip(networks, names, strict=True):
        for name, value in network.weights.items():
            node, _, tensor = name.partition(".")
            weights[f"{new_names[node]}.{tensor}"] = value
    dtype = next((value.dtype for value in weights.values() if value.is_floating_point()), torch.float32)
    identity = torch.eye(*graph.shapes[graph.output.name], dtype=dtype)
    weights[f"{graph.output.name}.weight"] = torch.cat([share * identity for share in shares], 1)
    return Network(graph, weights)
