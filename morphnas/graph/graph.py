"""A network's architecture as a value: named nodes in evaluation order; all other properties are derived.

>>> from morphnas.graph import cnn
>>> graph = cnn((1, 28, 28), 10, width=8, depth=2)
>>> graph.shapes[graph.output.name]
(10,)
"""

from __future__ import annotations

import builtins
import hashlib
import itertools
import json
import keyword
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

from torch import fx, nn

from morphnas.graph.ops import Input, Op, Shape, op_from_json

FORMAT = 1
MAX_NODES = 10_000
"""Largest number of nodes of a network."""
MAX_EDGES = 100_000
"""Largest total number of node inputs of a network that is read from a file."""
MAX_VALUES = 10**9
"""Largest number of weights, and of activation values per example, of a network that is read from a file: for larger
ones nothing is allocated."""
MIN_MICRO_BATCH = 8
"""Smallest micro-batch of a training step: batch norm learns little from fewer examples."""
WEIGHT_COPIES = 6
"""Copies of the weights in training: the weights, their gradients, two optimizer states, the best weights so far and
the latest."""
FLOPS_PER_BYTE = 32
"""Cost of moving a byte of activations, in FLOPs, see `Graph.work`."""
FLOPS_PER_NODE = 125_000
"""Cost of calling an op, per example, in FLOPs, see `Graph.work`."""
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_RESERVED = {*dir(builtins), *dir(fx.GraphModule), *vars(fx.GraphModule(nn.Module(), fx.Graph()))}
_RESERVED |= {"self", "torch", "inf", "nan", "device", "fx_pytree", "pytree"}  # used in the code that fx generates
_RESERVED |= {"offset", "mean", "std", "unit", "centre"}  # buffers of an estimator's module


@lru_cache(maxsize=4096)
def _op_json(op: Op) -> str:
    return json.dumps(op.to_json(), sort_keys=True)


@lru_cache(maxsize=4096)
def _is_valid_name(name: str) -> bool:
    return bool(_NAME.fullmatch(name)) and not keyword.iskeyword(name) and name not in _RESERVED


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class GraphError(ValueError):
    """The nodes do not form a network; the message names the node and the shapes."""


@dataclass(frozen=True)
class Node:
    """One step of a network: an op, applied to the outputs of the nodes named in `inputs`.

    The name is also the name of the fx node, of the submodule, of the weights' prefix and of the box in a drawing.
    """

    name: str
    op: Op
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Graph:
    """A network's architecture: one `Input` first, every other node after its inputs, the last one is the output.

    Immutable and valid once constructed: GraphError otherwise. Weights are stored separately (see `Network`).
    """

    nodes: tuple[Node, ...]
    shapes: Mapping[str, Shape] = field(init=False, repr=False, compare=False)
    """Output shape of every node, by name."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", tuple(self.nodes))
        if not self.nodes or not isinstance(self.nodes[0].op, Input):
            raise GraphError("a graph begins with its input")
        if len(self.nodes) > MAX_NODES:
            raise GraphError(f"a graph has at most {MAX_NODES:,} nodes, not {len(self.nodes):,}")
        shapes: dict[str, Shape] = {}
        read: set[str] = set()
        for node in self.nodes:
            name, op = node.name, node.op
            if not _is_valid_name(name):
                raise GraphError(f"{name!r} cannot name a node: use a lower-case identifier that torch does not use")
            if name in shapes:
                raise GraphError(f"two nodes are named {name!r}")
            if isinstance(op, Input) and shapes:
                raise GraphError(f"{name}: a graph has one input, and it already has {self.nodes[0].name!r}")
            if not op.arity[0] <= len(node.inputs) <= op.arity[1]:
                raise GraphError(f"{name}: {op.tag} cannot take {len(node.inputs)} inputs {node.inputs}")
            if missing := [i for i in node.inputs if i not in shapes]:
                raise GraphError(f"{name}: its inputs {missing} are not nodes before it")
            try:
                shapes[name] = op.shape(*(shapes[i] for i in node.inputs))
            except ValueError as error:
                raise GraphError(f"{name}: {error}") from None
            read.update(node.inputs)
        if unread := [node.name for node in self.nodes[:-1] if node.name not in read]:
            raise GraphError(f"the output of {unread} is not used; only the last node is the network's output")
        object.__setattr__(self, "shapes", shapes)

    def _repr_pretty_(self, printer: Any, _: bool) -> None:
        """The representation that IPython shows in notebooks."""
        printer.text(str(self))

    def __str__(self) -> str:
        return "\n".join(
            f"{n.name} {self.shapes[n.name]}: {n.op}" + (f" <- {', '.join(n.inputs)}" if n.inputs else "")
            for n in self.nodes
        )

    # -- lookup

    @cached_property
    def _by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    def __getitem__(self, name: str) -> Node:
        try:
            return self._by_name[name]
        except KeyError:
            raise GraphError(f"there is no node {name!r} in this graph") from None

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    @property
    def input(self) -> Node:
        return self.nodes[0]

    @property
    def output(self) -> Node:
        return self.nodes[-1]

    def input_shapes(self, node: Node) -> tuple[Shape, ...]:
        return tuple([self.shapes[name] for name in node.inputs])

    @cached_property
    def consumers(self) -> dict[str, tuple[str, ...]]:
        """For every node the names of the nodes that read it; one that reads it twice is listed twice."""
        readers: dict[str, list[str]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for name in node.inputs:
                readers[name].append(node.name)
        return {name: tuple(names) for name, names in readers.items()}

    @cached_property
    def _bits(self) -> dict[str, int]:
        """For every node the bit that stands for it in `_ancestors`."""
        return {node.name: 1 << i for i, node in enumerate(self.nodes)}

    @cached_property
    def _ancestors(self) -> dict[str, int]:
        """For every node the bit mask of the nodes from which a path leads to it."""
        masks: dict[str, int] = {}
        for node in self.nodes:
            masks[node.name] = 0
            for name in node.inputs:
                masks[node.name] |= masks[name] | self._bits[name]
        return masks

    def has_path(self, start: str, end: str) -> bool:
        """Whether a path leads from the node `start` to another, `end`."""
        return bool(self._ancestors[end] & self._bits[start])

    def path(self, start: str, end: str) -> tuple[Node, ...]:
        """The nodes of one path from `start` (excluded) to `end` (included); GraphError if there is none."""
        if not self.has_path(start, end):
            raise GraphError(f"no path leads from {start!r} to {end!r}")
        node, steps = self[end], [self[end]]
        while start not in node.inputs:
            node = self[next(name for name in node.inputs if self.has_path(start, name))]
            steps.append(node)
        return tuple(reversed(steps))

    # -- measures

    @cached_property
    def weight_shapes(self) -> dict[str, Shape]:
        """Shape of every weight tensor and running statistic, by ``<node>.<tensor>``."""
        return {
            f"{node.name}.{name}": shape
            for node in self.nodes
            for name, shape in node.op.tensors(*self.input_shapes(node)).items()
        }

    @cached_property
    def parameters(self) -> int:
        """Number of trainable parameters (without running statistics)."""
        trained = (name for name in self.weight_shapes if name.endswith((".weight", ".bias")))
        return sum(math.prod(self.weight_shapes[name]) for name in trained)

    @cached_property
    def flops(self) -> int:
        """Floating point operations of a forward pass of one example; a multiply-add counts as two."""
        return sum(node.op.flops(*self.input_shapes(node)) for node in self.nodes)

    @cached_property
    def activation_bytes(self) -> int:
        """Bytes of the outputs of all nodes for one example in float32, all of which training keeps."""
        return 4 * sum(math.prod(shape) for shape in self.shapes.values())

    def peak_bytes(self, examples: int) -> int:
        """Estimated bytes that training in float32 takes with this many examples in memory at a time.

        The sum of the weights and their copies (`WEIGHT_COPIES`), all activations of the examples, two copies of their
        images, and the gradients of an op's input and output, both counted as large as the largest activation.
        """
        weights = 4 * WEIGHT_COPIES * sum(math.prod(shape) for shape in self.weight_shapes.values())
        image, largest = math.prod(self.shapes[self.input.name]), max(map(math.prod, self.shapes.values()))
        return weights + examples * (self.activation_bytes + 4 * (2 * image + 2 * largest))

    @cached_property
    def work(self) -> int:
        """Cost of a training step per example, in FLOPs of a forward pass: these FLOPs, the memory traffic of
        activations and the overhead of calling ops, weighted as on a CPU with batches of 64
        (`benchmarks/cost_model.py`)."""
        return self.flops + FLOPS_PER_BYTE * self.activation_bytes + FLOPS_PER_NODE * len(self.nodes)

    @cached_property
    def depth(self) -> int:
        """Number of convolutions and dense layers on the longest path."""
        length: dict[str, int] = {}
        for node in self.nodes:
            length[node.name] = max((length[name] for name in node.inputs), default=0) + node.op.mixes
        return length[self.output.name]

    @cached_property
    def key(self) -> str:
        """Hash of the architecture: equal for graphs that differ only in names, evaluation order or the order of the
        inputs of sums.

        Computed from the input on: a node's hash covers its op, its inputs' hashes and how often it is read. If nodes
        share a hash, a second pass from the output on adds the nodes that read them. Graphs that agree in both have the
        same key.
        """
        hashes: dict[str, str] = {}
        for node in self.nodes:
            inputs = [hashes[name] for name in node.inputs]
            if node.op.commutative:
                inputs.sort()
            read = ", ".join(f'"{name}"' for name in inputs)
            text = f"[{_op_json(node.op)}, [{read}], {len(self.consumers[node.name])}]"
            hashes[node.name] = _hash(text)
        if len(set(hashes.values())) == len(hashes):
            return hashes[self.output.name]
        reads: dict[str, list[str]] = {node.name: [] for node in self.nodes}
        refined = []
        for node in reversed(self.nodes):
            refined.append(_hash(f"{hashes[node.name]} {sorted(reads[node.name])}"))
            positions: dict[str, list[int]] = {}
            for i, name in enumerate(node.inputs):
                positions.setdefault(name, []).append(0 if node.op.commutative else i)
            for name, read_at in positions.items():
                reads[name].append(f"{refined[-1]} {read_at}")
        return _hash(str(sorted(refined)))

    # -- editing: each method returns a new graph

    @cached_property
    def _last_number(self) -> int:
        """The largest number of up to 9 digits at the end of a node's name, 0 if there is none."""
        matches = (re.search(r"_(\d{1,9})$", node.name) for node in self.nodes)
        return max((int(match[1]) for match in matches if match), default=0)

    def fresh_names(self, tags: Iterable[str]) -> tuple[str, ...]:
        """Unused names for new nodes, ``<tag>_<number>`` for each tag, numbered above those in the graph."""
        numbers = itertools.count(self._last_number + 1)
        return tuple(next(name for n in numbers if (name := f"{tag}_{n}") not in self) for tag in tags)

    def splice(self, new: Sequence[Node], old: str, readers: Iterable[str]) -> Graph:
        """The graph with the `new` nodes, the last of which `readers` read wherever they read `old` before.

        The new nodes are inserted right before the first reader. GraphError if none of the readers is in the graph.
        """
        readers = frozenset(readers)
        first = next((i for i, node in enumerate(self.nodes) if node.name in readers), None)
        if first is None:
            raise GraphError(f"none of the readers given for {old!r} is a node of this graph")

        def rewired(node: Node) -> Node:
            if node.name not in readers:
                return node
            return replace(node, inputs=tuple(new[-1].name if name == old else name for name in node.inputs))

        return Graph((*self.nodes[:first], *new, *map(rewired, self.nodes[first:])))

    def replace_ops(self, ops: Mapping[str, Op]) -> Graph:
        """The graph with the ops of the named nodes replaced; GraphError for a name that it does not have."""
        for name in ops:
            _ = self[name]
        return Graph(tuple(replace(n, op=ops[n.name]) if n.name in ops else n for n in self.nodes))

    # -- storage

    def to_json(self) -> dict[str, Any]:
        nodes = [{"name": n.name, **n.op.to_json(), "inputs": list(n.inputs)} for n in self.nodes]
        return {"format": FORMAT, "nodes": nodes}

    @staticmethod
    def from_json(data: Any) -> Graph:
        """The graph from the data of `to_json`; GraphError for another format, or an invalid or too large network (see
        `check_size`)."""
        if not isinstance(data, Mapping) or data.get("format") != FORMAT or not isinstance(data.get("nodes"), list):
            raise GraphError(f'a graph is {{"format": {FORMAT}, "nodes": [...]}}, this is something else')
        nodes = []
        for entry in data["nodes"]:
            if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
                raise GraphError(f"a node has a name, an op and inputs, not {entry!r:.100}")
            settings = dict(entry)
            name, inputs = settings.pop("name"), settings.pop("inputs", [])
            if not isinstance(inputs, list) or not all(isinstance(i, str) for i in inputs):
                raise GraphError(f"{name}: inputs must be a list of names, not {inputs!r:.100}")
            try:
                op = op_from_json(settings)
            except ValueError as error:
                raise GraphError(f"{name}: {error}") from None
            nodes.append(Node(name, op, tuple(inputs)))
        return check_size(Graph(tuple(nodes)))


def check_size(graph: Graph) -> Graph:
    """The graph itself, which was read from a file; GraphError if it exceeds `MAX_EDGES` or `MAX_VALUES`."""
    if (edges := sum(len(node.inputs) for node in graph.nodes)) > MAX_EDGES:
        raise GraphError(f"the nodes of a graph from a file have at most {MAX_EDGES:,} inputs, not {edges:,}")
    size = max(sum(map(math.prod, graph.weight_shapes.values())), sum(map(math.prod, graph.shapes.values())))
    if size > MAX_VALUES:
        raise GraphError(f"a graph from a file has at most {MAX_VALUES:,} weights, and activations per example")
    return graph
