"""A network's architecture as a value: named nodes in evaluation order, everything else derived.

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
MAX_EDGES = 100_000
"""Inputs of all nodes of a network that is read from a file, at most."""
MAX_VALUES = 10**9
"""Weights of a network that is read from a file, and values that an example becomes in it, at most: for larger ones
nothing is allocated."""
SMALLEST = 8
"""Examples that a training step can do with in memory at a time: batch norm learns little from fewer."""
COPIES = 6
"""Of the weights, in training: they, their gradients, two of the optimizer's, the best so far, and the latest."""
FLOPS_PER_BYTE = 32
FLOPS_PER_NODE = 125_000
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_TAKEN = {*dir(builtins), *dir(fx.GraphModule), *vars(fx.GraphModule(nn.Module(), fx.Graph()))}
_TAKEN |= {"self", "torch", "inf", "nan", "device", "fx_pytree", "pytree"}  # in the code that fx writes
_TAKEN |= {"offset", "mean", "std", "unit", "centre"}  # buffers of an estimator's module


@lru_cache(maxsize=4096)
def _settings(op: Op) -> str:
    return json.dumps(op.to_json(), sort_keys=True)


@lru_cache(maxsize=4096)
def _may_name(name: str) -> bool:
    return bool(_NAME.fullmatch(name)) and not keyword.iskeyword(name) and name not in _TAKEN


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

    Immutable and valid once constructed: GraphError otherwise. Weights are kept apart (see `Network`).
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
            if not _may_name(name):
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
        """As notebooks show it."""
        printer.text(str(self))

    def __str__(self) -> str:
        return "\n".join(
            f"{n.name} {self.shapes[n.name]}: {n.op}" + (f" <- {', '.join(n.inputs)}" if n.inputs else "")
            for n in self.nodes
        )

    # -- looking

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
        """For every node the names of those that read it, once for each time they do."""
        found: dict[str, list[str]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for name in node.inputs:
                found[name].append(node.name)
        return {name: tuple(readers) for name, readers in found.items()}

    @cached_property
    def _bits(self) -> dict[str, int]:
        return {node.name: 1 << i for i, node in enumerate(self.nodes)}

    @cached_property
    def _ancestors(self) -> dict[str, int]:
        """For every node the bits of all nodes before it on some path."""
        found: dict[str, int] = {}
        for node in self.nodes:
            found[node.name] = 0
            for name in node.inputs:
                found[node.name] |= found[name] | self._bits[name]
        return found

    def leads(self, start: str, end: str) -> bool:
        """Whether a path leads from the node `start` to another, `end`."""
        return bool(self._ancestors[end] & self._bits[start])

    def path(self, start: str, end: str) -> tuple[Node, ...]:
        """The nodes of one path that leaves `start` (left out) and arrives at `end`; GraphError if there is none."""
        if not self.leads(start, end):
            raise GraphError(f"no path leads from {start!r} to {end!r}")
        node, steps = self[end], [self[end]]
        while start not in node.inputs:
            node = self[next(name for name in node.inputs if self.leads(start, name))]
            steps.append(node)
        return tuple(reversed(steps))

    # -- measures

    @cached_property
    def weight_shapes(self) -> dict[str, Shape]:
        """Shape of every tensor of weights and running statistics, by ``<node>.<tensor>``."""
        return {
            f"{node.name}.{name}": shape
            for node in self.nodes
            for name, shape in node.op.tensors(*self.input_shapes(node)).items()
        }

    @cached_property
    def parameters(self) -> int:
        """Number of trained values (running statistics are not among them)."""
        trained = (name for name in self.weight_shapes if name.endswith((".weight", ".bias")))
        return sum(math.prod(self.weight_shapes[name]) for name in trained)

    @cached_property
    def flops(self) -> int:
        """Floating point operations of a forward pass of one example; a multiply-add counts as two."""
        return sum(node.op.flops(*self.input_shapes(node)) for node in self.nodes)

    @cached_property
    def activation_bytes(self) -> int:
        """Bytes that the outputs of all nodes take for one example in float32, as training keeps them."""
        return 4 * sum(math.prod(shape) for shape in self.shapes.values())

    def peak_bytes(self, examples: int) -> int:
        """Bytes that training in float32 takes with so many examples in memory at a time, as far as a graph tells.

        Weights and what goes with them, all activations of the examples with their images, and the gradients of the
        largest activation before and behind an op.
        """
        weights = 4 * COPIES * sum(math.prod(shape) for shape in self.weight_shapes.values())
        image, largest = math.prod(self.shapes[self.input.name]), max(map(math.prod, self.shapes.values()))
        return weights + examples * (self.activation_bytes + 4 * (2 * image + 2 * largest))

    @cached_property
    def work(self) -> int:
        """What a step of training costs per example, in FLOPs of a forward pass: those, the moving of activations and
        the calling of ops. Weighed as on a CPU with batches of 64 (`benchmarks/cost_model.py`)."""
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
        """Equal for graphs that differ in nothing but names, order of evaluation or of the inputs of sums.

        A hash built up from the input: every node's op, the hashes of its inputs and how often it is read. Tensors that
        are computed alike are told apart by what reads them, all the way to the output; graphs that differ in neither
        share a key.
        """
        found: dict[str, str] = {}
        for node in self.nodes:
            inputs = [found[name] for name in node.inputs]
            if node.op.commutative:
                inputs.sort()
            read = ", ".join(f'"{name}"' for name in inputs)
            text = f"[{_settings(node.op)}, [{read}], {len(self.consumers[node.name])}]"
            found[node.name] = _hash(text)
        if len(set(found.values())) == len(found):
            return found[self.output.name]
        reads: dict[str, list[str]] = {node.name: [] for node in self.nodes}
        told = []
        for node in reversed(self.nodes):
            told.append(_hash(f"{found[node.name]} {sorted(reads[node.name])}"))
            places: dict[str, list[int]] = {}
            for i, name in enumerate(node.inputs):
                places.setdefault(name, []).append(0 if node.op.commutative else i)
            for name, at in places.items():
                reads[name].append(f"{told[-1]} {at}")
        return _hash(str(sorted(told)))

    # -- editing: each gives a new graph

    @cached_property
    def _last_number(self) -> int:
        """The largest number of up to 9 digits at the end of a name."""
        found = (re.search(r"_(\d{1,9})$", node.name) for node in self.nodes)
        return max((int(match[1]) for match in found if match), default=0)

    def fresh_names(self, tags: Iterable[str]) -> tuple[str, ...]:
        """Names for new nodes of the given tags: the tag and the next number that no node of the graph has."""
        numbers = itertools.count(self._last_number + 1)
        return tuple(next(name for n in numbers if (name := f"{tag}_{n}") not in self) for tag in tags)

    def splice(self, new: Sequence[Node], old: str, readers: Iterable[str]) -> Graph:
        """The graph in which `readers` read the last of the `new` nodes where they read `old` before.

        The new nodes come right before the first reader. GraphError when the graph has none of the readers.
        """
        readers = frozenset(readers)
        at = next((i for i, node in enumerate(self.nodes) if node.name in readers), None)
        if at is None:
            raise GraphError(f"none of the readers that {old!r} is to have is a node of this graph")

        def rewired(node: Node) -> Node:
            if node.name not in readers:
                return node
            return replace(node, inputs=tuple(new[-1].name if name == old else name for name in node.inputs))

        return Graph((*self.nodes[:at], *new, *map(rewired, self.nodes[at:])))

    def replace_ops(self, ops: Mapping[str, Op]) -> Graph:
        """The graph with other ops under the given names."""
        for name in ops:
            _ = self[name]
        return Graph(tuple(replace(n, op=ops[n.name]) if n.name in ops else n for n in self.nodes))

    # -- storage

    def to_json(self) -> dict[str, Any]:
        nodes = [{"name": n.name, **n.op.to_json(), "inputs": list(n.inputs)} for n in self.nodes]
        return {"format": FORMAT, "nodes": nodes}

    @staticmethod
    def from_json(data: Any) -> Graph:
        """The graph that `to_json` described; GraphError when it is of another format or not a valid network."""
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
        return bounded(Graph(tuple(nodes)))


def bounded(graph: Graph) -> Graph:
    """The graph, which comes from a file; GraphError when it is of more than `MAX_EDGES` or `MAX_VALUES`."""
    if (edges := sum(len(node.inputs) for node in graph.nodes)) > MAX_EDGES:
        raise GraphError(f"the nodes of a graph that is read have at most {MAX_EDGES:,} inputs, not {edges:,}")
    size = max(sum(map(math.prod, graph.weight_shapes.values())), sum(map(math.prod, graph.shapes.values())))
    if size > MAX_VALUES:
        raise GraphError(f"a graph that is read has at most {MAX_VALUES:,} weights, and values of an example")
    return graph
