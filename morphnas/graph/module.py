"""A graph and its weights as PyTorch: a `torch.fx.GraphModule` with one submodule per node that has weights."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from morphnas.graph.graph import Graph, GraphError
from morphnas.graph.ops import AvgPool, Concat, Conv, Dense, GlobalPool, Input, MaxPool, Op, Shape, Weights

NORMALISED = 0.4
"""Scale of fresh weights that a batch norm undoes; with it layers begin as torch's own do, by the variance."""


class WeightsError(ValueError):
    """The weights do not match the graph."""


def fresh_weights(graph: Graph, generator: torch.Generator | None = None) -> Weights:
    """Initial weights, drawn from `generator` (default: seed 0), by ``<node>.<tensor>``.

    Those of layers read only by batch norms, maybe after pooling, are smaller than the op's own, since their scale does
    not matter: so a training step changes them more.
    """
    generator = generator or torch.Generator().manual_seed(0)
    weights = {}
    for node in graph.nodes:
        scale = NORMALISED if node.op.mixes and _normalised(graph, node.name) else 1.0
        for name, value in node.op.init(*graph.input_shapes(node), generator=generator).items():
            weights[f"{node.name}.{name}"] = value * scale if scale != 1 else value
    return weights


def _normalised(graph: Graph, name: str) -> bool:
    """Whether batch norms, maybe behind pooling, undo the scale of what a node gives to all that read it."""
    readers = [graph[reader] for reader in graph.consumers[name]]
    pooled = [_normalised(graph, r.name) for r in readers if isinstance(r.op, (MaxPool, AvgPool, GlobalPool))]
    return bool(readers) and sum(r.op.normalises for r in readers) + sum(pooled) == len(readers)


def check_weights(graph: Graph, weights: Mapping[str, Tensor]) -> None:
    """WeightsError if names or shapes are not those that the graph needs."""
    wanted = graph.weight_shapes
    if missing := sorted(wanted.keys() - weights.keys()):
        raise WeightsError(f"weights are missing: {', '.join(missing[:5])}")
    if extra := sorted(weights.keys() - wanted.keys()):
        raise WeightsError(f"weights for which the graph has no node: {', '.join(extra[:5])}")
    for name, shape in wanted.items():
        if tuple(weights[name].shape) != shape:
            raise WeightsError(f"{name} has shape {tuple(weights[name].shape)}, the graph needs {shape}")


class _Module(fx.GraphModule):
    """One that is gone as soon as nobody has it any more, with the memory of a GPU that it holds.

    torch's own and its graph have each other: such circles Python looks for only now and then.
    """

    @property
    def graph(self) -> fx.Graph:
        return self._graph

    @graph.setter
    def graph(self, graph: fx.Graph) -> None:
        fx.GraphModule.graph.fset(self, graph)  # type: ignore[attr-defined]  # which compiles it
        graph.owning_module = weakref.proxy(self)  # type: ignore[assignment]


def to_module(graph: Graph, weights: Mapping[str, Tensor] | None = None) -> fx.GraphModule:
    """The network as a plain PyTorch module, in evaluation mode: (batch, *input shape) -> (batch, *output shape).

    Its parameters are named after the nodes and are copies of `weights` (None: fresh ones of seed 0); `.code` prints
    its forward pass. WeightsError if names or shapes do not fit.
    """
    weights = fresh_weights(graph) if weights is None else weights
    check_weights(graph, weights)
    code = fx.Graph()
    modules: dict[str, nn.Module] = {}
    made: dict[str, fx.Node] = {}
    with torch.device("meta"):  # no memory and no random numbers: the weights come next
        for node in graph.nodes:
            shapes = graph.input_shapes(node)
            module = node.op.module(*shapes)
            if module is not None:
                modules[node.name] = module
            step = node.op.emit(code, node.name, tuple(made[name] for name in node.inputs), *shapes)
            assert step.name == node.name
            made[node.name] = step
    code.output(made[graph.output.name])
    network = _Module(modules, code, class_name="Network")
    network.load_state_dict({name: value.detach().clone() for name, value in weights.items()}, assign=True)
    return network.eval()


def weights_of(module: nn.Module) -> Weights:
    """A copy of a module's state, on the CPU."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in module.state_dict().items()}


@dataclass(frozen=True, eq=False, repr=False)
class Network:
    """A trained network: the architecture and its weights."""

    graph: Graph
    weights: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        check_weights(self.graph, self.weights)

    def __repr__(self) -> str:
        return f"Network({len(self.graph.nodes)} nodes, {self.graph.parameters} parameters)"

    def to_module(self) -> fx.GraphModule:
        """See `to_module`; it takes preprocessed examples, like those the network was trained on."""
        return to_module(self.graph, self.weights)

    produce_model = to_module

    def adapted(self, shape: Shape, outputs: int) -> Network:
        """The network for examples of another shape and number of outputs, with all weights that still fit.

        For transfer learning. The last layer, a dense one, gets fresh weights if its shape changes, as do the last ones
        of networks that are side by side in it (see `blend`). First convolutions
        compute the same as before for images whose channels are all equal, whatever their number. GraphError if the
        network cannot take such examples, or if other layers would need other weights.
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
        for name, wanted in graph.weight_shapes.items():
            node, value = graph[name.rpartition(".")[0]], self.weights[name]
            if tuple(value.shape) == wanted:
                weights[name] = value
            elif node.name in heads and isinstance(node.op, Dense):
                weights[name] = fresh[name]
            elif (
                isinstance(node.op, Conv)
                and not node.op.rigid
                and node.inputs == (first.name,)
                and value.ndim == len(wanted)
            ):
                weights[name] = value.mean(1, keepdim=True).expand(wanted) * (value.shape[1] / wanted[1])
            else:
                raise GraphError(f"{node.name}: inputs of shape {shape} would need other weights here: {wanted}")
        return Network(graph, weights)
