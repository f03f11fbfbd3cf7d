"""A graph and its weights as a PyTorch module: a `torch.fx.GraphModule` whose submodules are named after nodes."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from morphnas.graph.graph import Graph, GraphError
from morphnas.graph.ops import AvgPool, Concat, Conv, Dense, GlobalPool, Input, MaxPool, Op, Shape, Weights

NORMALISED_INIT_SCALE = 0.4
"""Factor on the initial weights of layers whose scale a batch norm cancels; with it their variance is about that of
PyTorch's default initialisation."""


class WeightsError(ValueError):
    """The weights do not match the graph."""


def fresh_weights(graph: Graph, generator: torch.Generator | None = None) -> Weights:
    """Initial weights, drawn from `generator` (default: seed 0), by ``<node>.<tensor>``.

    Those of layers read only by batch norms, possibly after pooling, are scaled by `NORMALISED_INIT_SCALE`: their scale
    does not affect the output, and a training step changes smaller weights relatively more.
    """
    generator = generator or torch.Generator().manual_seed(0)
    weights = {}
    for node in graph.nodes:
        scale = NORMALISED_INIT_SCALE if node.op.mixes and _is_normalised(graph, node.name) else 1.0
        for name, value in node.op.init(*graph.input_shapes(node), generator=generator).items():
            weights[f"{node.name}.{name}"] = value * scale if scale != 1 else value
    return weights


def _is_normalised(graph: Graph, name: str) -> bool:
    """Whether all readers of a node are batch norms, possibly after pooling, so that its scale does not matter."""
    readers = [graph[reader] for reader in graph.consumers[name]]
    pooled = [_is_normalised(graph, r.name) for r in readers if isinstance(r.op, (MaxPool, AvgPool, GlobalPool))]
    return bool(readers) and sum(r.op.normalises for r in readers) + sum(pooled) == len(readers)


def check_weights(graph: Graph, weights: Mapping[str, Tensor]) -> None:
    """WeightsError if names or shapes differ from those that the graph needs."""
    expected = graph.weight_shapes
    if missing := sorted(expected.keys() - weights.keys()):
        raise WeightsError(f"weights are missing: {', '.join(missing[:5])}")
    if extra := sorted(weights.keys() - expected.keys()):
        raise WeightsError(f"weights for which the graph has no node: {', '.join(extra[:5])}")
    for name, shape in expected.items():
        if tuple(weights[name].shape) != shape:
            raise WeightsError(f"{name} has shape {tuple(weights[name].shape)}, the graph needs {shape}")


class _Module(fx.GraphModule):
    """A `GraphModule` that is freed, with its GPU memory, as soon as nothing refers to it.

    PyTorch's own and its graph refer to each other: only the garbage collector frees such a cycle, at some later time.
    """

    @property
    def graph(self) -> fx.Graph:
        return self._graph

    @graph.setter
    def graph(self, graph: fx.Graph) -> None:
        fx.GraphModule.graph.fset(self, graph)  # type: ignore[attr-defined]  # compiles the code
        graph.owning_module = weakref.proxy(self)  # type: ignore[assignment]


def to_module(graph: Graph, weights: Mapping[str, Tensor] | None = None) -> fx.GraphModule:
    """The network of `graph` as a plain PyTorch module, in evaluation mode: (n, *input shape) -> (n, *output shape).

    Its parameters are named after the nodes and are copies of `weights` (None: initial ones of seed 0); `.code` is the
    source of its forward pass. WeightsError if names or shapes do not fit.
    """
    weights = fresh_weights(graph) if weights is None else weights
    check_weights(graph, weights)
    fx_graph = fx.Graph()
    modules: dict[str, nn.Module] = {}
    fx_nodes: dict[str, fx.Node] = {}
    with torch.device("meta"):  # allocates nothing and draws no random numbers: weights are loaded below
        for node in graph.nodes:
            shapes = graph.input_shapes(node)
            module = node.op.module(*shapes)
            if module is not None:
                modules[node.name] = module
            fx_node = node.op.emit(fx_graph, node.name, tuple(fx_nodes[name] for name in node.inputs), *shapes)
            assert fx_node.name == node.name
            fx_nodes[node.name] = fx_node
    fx_graph.output(fx_nodes[graph.output.name])
    network = _Module(modules, fx_graph, class_name="Network")
    network.load_state_dict({name: value.detach().clone() for name, value in weights.items()}, assign=True)
    return network.eval()


def weights_of(module: nn.Module) -> Weights:
    """A copy of a module's state dict on the CPU."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in module.state_dict().items()}


@dataclass(frozen=True, eq=False, repr=False)
class Network:
    """A network's architecture and its weights; WeightsError if they do not match."""

    graph: Graph
    weights: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        check_weights(self.graph, self.weights)

    def __repr__(self) -> str:
        return f"Network({len(self.graph.nodes)} nodes, {self.graph.parameters} parameters)"

    def to_module(self) -> fx.GraphModule:
        """The network as a PyTorch module, see `to_module`; its inputs must be preprocessed as in training."""
        return to_module(self.graph, self.weights)

    produce_model = to_module

    def adapted(self, shape: Shape, outputs: int) -> Network:
        """The network for another input shape and number of outputs, with all weights that still fit.

        For transfer learning. The last layer, which must be dense for another number of outputs, gets initial weights
        if its shape changes, as do the last layers of the networks in a `blend`. First convolutions for another number
        of channels compute the same as before on images whose channels are all equal. GraphError if the network cannot
        take such inputs or have so many outputs, or if other layers would need weights of another shape.
        """
        head, first = self.graph.output, self.graph.input
        ops: dict[str, Op] = {first.name: Input(shape)}
        if isinstance(head.op, Dense):
            ops[head.name] = head.op.widened(outputs)
        graph = self.graph.replace_ops(ops)
        if graph.shapes[head.name] != (outputs,):
            raise GraphError(f"{head.name}: the last layer is {head.op}, only a dense one can get {outputs} outputs")
        last = [self.graph[name] for name in head.inputs]
        heads = {head.name, *(name for node in last if isinstance(node.op, Concat) for name in node.inputs)}
        weights, fresh = {}, fresh_weights(graph)
        for name, needed in graph.weight_shapes.items():
            node, value = graph[name.rpartition(".")[0]], self.weights[name]
            if tuple(value.shape) == needed:
                weights[name] = value
            elif node.name in heads and isinstance(node.op, Dense):
                weights[name] = fresh[name]
            elif (
                isinstance(node.op, Conv)
                and not node.op.fixed_channels
                and node.inputs == (first.name,)
                and value.ndim == len(needed)
            ):
                weights[name] = value.mean(1, keepdim=True).expand(needed) * (value.shape[1] / needed[1])
            else:
                raise GraphError(f"{node.name}: inputs of shape {shape} would need other weights here: {needed}")
        return Network(graph, weights)
