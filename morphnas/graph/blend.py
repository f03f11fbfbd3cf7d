"""Several networks as one, which computes the weighted mean of their outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from morphnas.graph.graph import Graph, Node
from morphnas.graph.module import Network
from morphnas.graph.ops import Concat, Dense


def blend(networks: Sequence[Network], shares: Sequence[float]) -> Network:
    """One network made of all those given, side by side behind one input: its outputs are sum(share * outputs).

    They must take the same shape and have flat outputs of the same width, else ValueError. A single one with share 1 is
    returned unchanged. A dense layer over all outputs applies the shares, so the result is a network like any other: it
    can be trained, stored, drawn and exported.
    """
    if not networks or len(networks) != len(shares):
        raise ValueError(f"a blend is of at least one network, each with its share, not {len(networks)}, {len(shares)}")
    if len(networks) == 1 and shares[0] == 1:
        return networks[0]
    ends = {(n.graph.shapes[n.graph.input.name], n.graph.shapes[n.graph.output.name]) for n in networks}
    _, gives = next(iter(ends))
    if len(ends) > 1 or len(gives) > 1:
        raise ValueError(f"only networks of one input shape and one flat output are blended, not {sorted(ends)}")
    nodes, outputs, weights = [Node("x", networks[0].graph.input.op)], [], dict[str, Tensor]()
    for network in networks:
        names = {network.graph.input.name: "x"}
        for node in network.graph.nodes[1:]:
            name = names[node.name] = f"{node.op.tag}_{len(nodes)}"
            nodes.append(Node(name, node.op, tuple(names[i] for i in node.inputs)))
        outputs.append(names[network.graph.output.name])
        for name, value in network.weights.items():
            node_name, _, tensor = name.partition(".")
            weights[f"{names[node_name]}.{tensor}"] = value
    last = Dense(gives[0], bias=False)
    if len(networks) > 1:
        nodes.append(Node(f"{Concat.tag}_{len(nodes)}", Concat(), tuple(outputs)))
    nodes.append(Node(f"{last.tag}_{len(nodes)}", last, (nodes[-1].name,)))
    kind = next((value.dtype for value in weights.values() if value.is_floating_point()), torch.float32)
    weights[f"{nodes[-1].name}.weight"] = torch.cat([share * torch.eye(gives[0], dtype=kind) for share in shares], 1)
    return Network(Graph(tuple(nodes)), weights)
