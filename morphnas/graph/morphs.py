"""Network morphisms: edits of a network that preserve its function, and the weights that preserve it.

A morph is a small value with two interpretations: `grow` edits the graph (all that a searcher needs), `carry` computes
the grown graph's weights from the old ones. Blocks are inserted after activations, skip connections lead from one
activation to another, and convolutions and dense layers are widened. After Wei et al. 2016 (arXiv:1603.01670) and Chen
et al. 2016, Net2Net (arXiv:1511.05641).
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from morphnas.graph.graph import MIN_MICRO_BATCH, Graph, GraphError, Node
from morphnas.graph.kinds import describe_kinds, register, type_name
from morphnas.graph.ops import (
    MAX_SIZE,
    Activation,
    Add,
    BatchNorm,
    Concat,
    Conv,
    Dense,
    Elementwise,
    Op,
    Producer,
    ReLU,
    Route,
    Shape,
    ShapeError,
    Weights,
)


class MorphError(GraphError):
    """A morph does not fit the graph; the message names the site."""


MORPHS: dict[str, type[Morph]] = {}
"""All morph classes, user-defined ones included, by tag."""


@dataclass(frozen=True)
class Limits:
    """Upper bounds on the size of a network (None: no bound), and `morphs`, the tags of the allowed morphs.

    max_work: bound on `Graph.work`, the cost of training on one example. max_memory: bytes, bound on `Graph.peak_bytes`
    of the smallest possible micro-batch (`MIN_MICRO_BATCH`). max_latency_ms: bound on the `latency` predicted for a
    single example, in milliseconds. pace: seconds per node, FLOP and parameter on this machine, measured in `fit`.
    """

    max_params: int | None = None
    max_flops: int | None = None
    max_work: int | None = None
    max_depth: int | None = None
    max_width: int | None = None
    max_activation_bytes: int | None = None
    max_memory: int | None = None
    max_latency_ms: float | None = None
    pace: tuple[float, float, float] = (0.0, 0.0, 0.0)
    morphs: tuple[str, ...] = ("deeper", "wider", "wider_all", "add_skip", "concat_skip")

    def __post_init__(self) -> None:
        if not isinstance(self.morphs, (list, tuple)):
            raise ValueError(f"limits: morphs must be a list of names, not {self.morphs!r:.100}")
        object.__setattr__(self, "morphs", tuple(self.morphs))
        pace = tuple(map(_to_python, self.pace)) if isinstance(self.pace, (list, tuple)) else ()
        if len(pace) != 3 or not all(map(_is_seconds, pace)):
            raise ValueError(f"limits: pace must be three numbers of seconds, not {self.pace!r:.100}")
        object.__setattr__(self, "pace", pace)
        for f in fields(self):
            value = _to_python(getattr(self, f.name))
            if f.name in ("morphs", "pace") or value is None:
                continue
            object.__setattr__(self, f.name, value)
            if f.name == "max_latency_ms":
                if not _is_seconds(value) or not value:
                    raise ValueError(f"limits: {f.name} must be None or a positive number, not {value!r}")
                continue
            if isinstance(value, float) and value.is_integer():  # such as 1e6
                object.__setattr__(self, f.name, value := int(value))
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"limits: {f.name} must be None or a positive integer, not {value!r}")
        if unknown := [tag for tag in self.morphs if tag not in MORPHS]:
            raise ValueError(f"limits: unknown morphs {unknown}: {describe_kinds(MORPHS)}")

    def violation(self, graph: Graph) -> str | None:
        """A message on the first limit that the graph exceeds; None if it is within all of them."""
        sizes: tuple[tuple[str, Callable[[], int], int | None], ...] = (
            ("parameters", lambda: graph.parameters, self.max_params),
            ("FLOPs", lambda: graph.flops, self.max_flops),
            ("FLOPs' worth of work in training", lambda: graph.work, self.max_work),
            ("layers of depth", lambda: graph.depth, self.max_depth),
            ("channels of width", lambda: _max_width(graph), self.max_width),
            ("activation bytes", lambda: graph.activation_bytes, self.max_activation_bytes),
            ("bytes of memory in training", lambda: graph.peak_bytes(MIN_MICRO_BATCH), self.max_memory),
        )
        for unit, measure, limit in sizes:
            if limit is not None and (value := measure()) > limit:
                return f"{value:,} {unit}, at most {limit:,} are allowed"
        max_latency = self.max_latency_ms
        if max_latency is not None and (latency := 1000 * self.latency(graph)) > max_latency:
            return f"{latency:.3g} ms of latency (predicted), at most {max_latency:g} are allowed"
        return None

    def latency(self, graph: Graph) -> float:
        """Predicted seconds of a forward pass of a single example; 0 if nothing was measured."""
        sizes = (len(graph.nodes), graph.flops, graph.parameters)
        return sum(seconds * size for seconds, size in zip(self.pace, sizes, strict=True))


def _to_python(value: Any) -> Any:
    """A NumPy scalar as a Python number, which JSON can store; other values are returned unchanged."""
    return value.item() if isinstance(value, np.generic) else value


def _is_seconds(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf


@dataclass(frozen=True)
class Morph:
    """An edit that preserves a network's function; subclasses are the kinds, their fields the site and the size.

    A kind is a frozen dataclass with a `tag` of its own, by which `Limits.morphs` and stored runs name it, and with
    fields that are strings or numbers. Defining the class registers it.
    """

    tag: ClassVar[str]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        register(MORPHS, cls)

    @classmethod
    def candidates(cls, graph: Graph) -> Iterable[Morph]:  # noqa: ARG003  # subclasses use it
        """Morphs of this kind, in usual sizes, at every site, in a fixed order; some may not fit the graph."""
        return ()

    def grow(self, graph: Graph) -> Graph:
        """The edited graph; MorphError if the morph does not fit. Old nodes keep their names."""
        raise NotImplementedError

    def check(self, graph: Graph) -> None:
        """MorphError if the morph does not fit the graph; subclasses may do this with less work than `grow`."""
        self.grow(graph)

    def carry(self, graph: Graph, weights: Mapping[str, Tensor], generator: torch.Generator) -> Weights:
        """Weights with which ``grow(graph)`` computes, in evaluation mode, what `graph` computes with `weights`.

        Widening breaks symmetry: readers split the weight of a repeated channel unequally, which preserves the
        function. Computed in the dtype of `weights`: cast them to float64 first for full precision.
        """
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        return {"morph": self.tag} | asdict(self)

    def __str__(self) -> str:
        return f"{self.tag}({', '.join(str(value) for value in asdict(self).values())})"


# -- the gather that computes the weights for all morphs


def inherit(
    old: Graph,
    new: Graph,
    weights: Mapping[str, Tensor],
    generator: torch.Generator,
    routes: Mapping[str, Route] | None = None,
    fresh: Mapping[str, Weights] | None = None,
) -> Weights:
    """Weights for `new`, which was grown from `old`, computed from the weights for `old`.

    routes: the origin of the output channels of the nodes that are widened; for others it follows from the ops.
    fresh: weights of new nodes, by node name; other new nodes get their op's initial weights.
    """
    routes, fresh = dict(routes or {}), fresh or {}
    dtype = next((t.dtype for t in weights.values() if t.is_floating_point()), torch.float32)
    route_of: dict[str, Route | None] = {}  # None: the output channels are unchanged
    carried: Weights = {}
    for node in new.nodes:
        op, shapes = node.op, new.input_shapes(node)
        input_routes = [route_of[name] for name in node.inputs]
        if node.name in routes:
            route_of[node.name] = routes[node.name]
        elif op.mixes or all(route is None for route in input_routes):
            route_of[node.name] = None
        else:
            old_shapes = [old.shapes[name] for name in old[node.name].inputs]
            full_routes = [r or Route.identity(s[0]) for r, s in zip(input_routes, old_shapes, strict=True)]
            route_of[node.name] = op.route(*zip(full_routes, old_shapes, strict=True))
        if not op.tensors(*shapes):
            continue
        out_route, in_route = route_of[node.name], input_routes[0]
        if node.name not in old:
            tensors = fresh.get(node.name) or op.init(*shapes, generator=generator)
        elif out_route is None and in_route is None:
            tensors = {name: weights[f"{node.name}.{name}"] for name in op.tensors(*shapes)}
        else:
            has_new_channels = out_route is not None and bool((out_route.source < 0).any())
            initial = op.init(*shapes, generator=generator) if has_new_channels else {}
            tensors = {name: weights[f"{node.name}.{name}"] for name in op.tensors(*shapes)}
            for name in tensors.keys() & op.axes.keys():
                initial_value = initial[name].to(dtype) if has_new_channels else None
                tensors[name] = _gather(tensors[name], initial_value, op.axes[name], out_route, in_route)
        for name, value in tensors.items():
            value = value.to(dtype) if value.is_floating_point() else value
            is_unchanged = value is weights.get(f"{node.name}.{name}")
            carried[f"{node.name}.{name}"] = value.clone() if is_unchanged else value.contiguous()
    return carried


def _gather(
    value: Tensor, initial: Tensor | None, axes: tuple[str, ...], out_route: Route | None, in_route: Route | None
) -> Tensor:
    """`value`, gathered along its input axis by `in_route` (times its shares) and along its output axis by `out_route`;
    new output channels have the values of `initial`."""
    if in_route is not None and "in" in axes:
        axis = axes.index("in")
        share = in_route.share.to(value.dtype).reshape([-1 if i == axis else 1 for i in range(value.ndim)])
        value = value.index_select(axis, in_route.source.clamp(min=0)).mul_(share)
    if out_route is not None:
        value = value.index_select(0, out_route.source.clamp(min=0))
    if out_route is not None and initial is not None:
        value = torch.where((out_route.source >= 0).reshape(-1, *[1] * (value.ndim - 1)), value, initial)
    return value


# -- the morphs


@dataclass(frozen=True)
class Insertion(Morph):
    """A morph that inserts new nodes between a node and some of its readers. Subclasses define which (`plan`) and their
    weights (`initial_weights`)."""

    def plan(self, graph: Graph) -> tuple[list[Node], str, list[str]]:
        """The arguments of `Graph.splice`; MorphError if the morph does not fit."""
        raise NotImplementedError

    def initial_weights(self, op: Op, *inputs: Shape) -> Weights:
        """The weights of a new node that preserve the function; if empty, it gets the initial weights of its op."""
        return {}

    def check(self, graph: Graph) -> None:
        self.plan(graph)

    def grow(self, graph: Graph) -> Graph:
        return graph.splice(*self.plan(graph))

    def carry(self, graph: Graph, weights: Mapping[str, Tensor], generator: torch.Generator) -> Weights:
        grown = self.grow(graph)
        fresh = {
            node.name: self.initial_weights(node.op, *grown.input_shapes(node)) for node in _new_nodes(graph, grown)
        }
        return inherit(graph, grown, weights, generator, fresh=fresh)


@dataclass(frozen=True)
class Deeper(Insertion):
    """Insert an identity block after a relu or another nonnegative activation: conv-bn-relu if there are spatial axes,
    else dense-relu.

    The block computes the identity because its input is nonnegative.
    """

    after: str
    kernel: int = 3
    tag = "deeper"

    @classmethod
    def candidates(cls, graph: Graph) -> Iterable[Deeper]:
        for name in sites(graph):
            yield cls(name, kernel=3 if max(graph.shapes[name][1:], default=1) > 1 else 1)

    def plan(self, graph: Graph) -> tuple[list[Node], str, list[str]]:
        readers = _readers(self, graph, self.after)
        site, shape = graph[self.after].op, graph.shapes[self.after]
        if not (isinstance(site, Activation) and site.nonnegative):
            raise MorphError(f"{self}: {self.after} may be negative, so a relu after it would change it")
        ops: list[Op] = [Dense(shape[0]), ReLU()]
        if len(shape) > 1:
            try:
                ops = [Conv(shape[0], self.kernel), BatchNorm(), ReLU()]
            except ValueError as error:
                raise MorphError(f"{self}: {error}") from None
        return chain(graph, self.after, ops), self.after, readers

    def initial_weights(self, op: Op, *inputs: Shape) -> Weights:
        if isinstance(op, Producer):
            return op.identity(*inputs)
        return op.neutral(*inputs) if isinstance(op, BatchNorm) else {}


class Widening(Morph):
    """A morph that gives layers more output channels, which repeat randomly drawn old ones (Net2WiderNet)."""

    def groups(self, graph: Graph) -> list[tuple[frozenset[str], int, int]]:
        """(layers of tied width, their width, their new width) for each group; MorphError if the morph does not fit."""
        raise NotImplementedError

    def check(self, graph: Graph) -> None:
        self.groups(graph)

    def grow(self, graph: Graph) -> Graph:
        return _widened(graph, {name: width for group, _, width in self.groups(graph) for name in group})

    def carry(
        self,
        graph: Graph,
        weights: Mapping[str, Tensor],
        generator: torch.Generator,
        fresh: Collection[str] = (),
    ) -> Weights:
        """See `Morph.carry`. fresh: layers whose new channels get initial weights, and weight 0 in their readers,
        instead of repeating old ones: for layers that are not trained, whose repeated channels would stay equal."""
        routes: dict[str, Route] = {}
        for group, old, width in self.groups(graph):
            repeats = group.isdisjoint(fresh)
            route = _repeated_channels(old, width, generator) if repeats else _new_channels(old, width - old)
            routes |= dict.fromkeys(group, route)
        return inherit(graph, self.grow(graph), weights, generator, routes=routes)


@dataclass(frozen=True)
class Wider(Widening):
    """Give a convolution or dense layer, and all layers tied to it by sums and gates, `width` output channels."""

    node: str
    width: int
    tag = "wider"

    @classmethod
    def candidates(cls, graph: Graph) -> Iterable[Wider]:
        for group in width_groups(graph):
            name = next(node.name for node in graph.nodes if node.name in group and isinstance(node.op, Producer))
            width = graph.shapes[name][0]
            for wider in sorted({_rounded_width(width + max(1, width // 2)), _rounded_width(2 * width)}):
                yield cls(name, wider)

    def groups(self, graph: Graph) -> list[tuple[frozenset[str], int, int]]:
        group, old = width_group(graph, self.node), graph.shapes[self.node][0]
        if self.width <= old:
            raise MorphError(f"{self}: {self.node} has {old} channels already")
        if self.width > MAX_SIZE:
            raise MorphError(f"{self}: a layer has at most {MAX_SIZE:,} channels")
        return [(group, old, self.width)]


@dataclass(frozen=True)
class WiderAll(Widening):
    """Scale every convolution and dense layer whose width can change to `percent` of its output channels: rounded down,
    from 8 on then up to a multiple of 8, and at least one more.

    A single step to a network for more time or data, where `Wider` needs one per layer (Tan and Le 2019, EfficientNet,
    arXiv:1905.11946, also scale all widths together).
    """

    percent: int = 200
    tag = "wider_all"

    @classmethod
    def candidates(cls, graph: Graph) -> Iterable[WiderAll]:
        return (cls(150), cls(200)) if len(width_groups(graph)) > 1 else ()

    def groups(self, graph: Graph) -> list[tuple[frozenset[str], int, int]]:
        if self.percent <= 100:
            raise MorphError(f"{self}: percent must be above 100")
        if not (tied := _groups_with_widths(graph)):
            raise MorphError(f"{self}: there is no layer that it could widen")
        groups = [(group, old, max(old + 1, _rounded_width(old * self.percent // 100))) for group, old in tied]
        if max(width for _, _, width in groups) > MAX_SIZE:
            raise MorphError(f"{self}: a layer has at most {MAX_SIZE:,} channels")
        return groups


def _widened(graph: Graph, widths: Mapping[str, int]) -> Graph:
    """The graph with the widths of the named layers changed."""
    ops = {name: graph[name].op for name in widths}
    return graph.replace_ops({n: op.widened(widths[n]) for n, op in ops.items() if isinstance(op, Producer)})


def narrowed(graph: Graph, times: int) -> Graph:
    """The graph with every width that can change divided by `times`, rounded up."""
    return _widened(graph, {name: -(-width // times) for group, width in _groups_with_widths(graph) for name in group})


def _groups_with_widths(graph: Graph) -> list[tuple[frozenset[str], int]]:
    """The groups of layers whose widths are tied and can change, each with its width."""
    return [(group, graph.shapes[min(group)][0]) for group in width_groups(graph)]


def _new_channels(old: int, n: int) -> Route:
    """A route of all `old` channels, followed by n new ones."""
    new = Route(torch.full((n,), -1), torch.zeros(n, dtype=torch.float64))
    return Route.concat((Route.identity(old), old), (new, 0))


def _repeated_channels(old: int, width: int, generator: torch.Generator) -> Route:
    """A route of all `old` channels, followed by randomly drawn repetitions up to `width`.

    The shares of a channel's repetitions are random and sum to 1.
    """
    source = torch.cat([torch.arange(old), torch.randint(old, (width - old,), generator=generator)])
    portion = 0.5 + torch.rand(width, generator=generator, dtype=torch.float64)
    share = portion / torch.zeros(old, dtype=torch.float64).index_add(0, source, portion)[source]
    return Route(source, share)


@dataclass(frozen=True)
class AddSkip(Insertion):
    """Add an activation's output to the input of a later one, through a 1x1 convolution (a dense layer where that input
    is flat) and a batch norm of scale 0.

    Pooling and strides between them are repeated in the branch (strided convolutions as average pooling).
    """

    start: str
    end: str
    tag = "add_skip"

    @classmethod
    def candidates(cls, graph: Graph) -> Iterable[AddSkip]:
        return (cls(start, end) for start, end in _activation_pairs(graph))

    def plan(self, graph: Graph) -> tuple[list[Node], str, list[str]]:
        _check_is_activation(self, graph, self.start)
        _check_is_activation(self, graph, self.end)
        (target,) = graph[self.end].inputs
        _check_skip(self, graph, self.start, self.end)
        width, flat = graph.shapes[target][0], len(graph.shapes[target]) == 1
        match = Dense(width, bias=False) if flat else Conv(width, 1)
        ops = [*_resolution_ops(self, graph, self.start, target), match, BatchNorm(), Add()]
        return _branch(graph, self.start, ops, target), target, [self.end]

    def initial_weights(self, op: Op, *inputs: Shape) -> Weights:
        return op.neutral(*inputs, scale=0.0) if isinstance(op, BatchNorm) else {}


@dataclass(frozen=True)
class ConcatSkip(Insertion):
    """Concatenate an earlier activation to the input of the layers that read a later one, with weights 0 at first.

    Pooling and strides between them are repeated in the branch. Readers that lead into a sum, a gate, a grouped
    convolution or the network's output without a layer that mixes channels before it are unchanged.
    """

    start: str
    end: str
    tag = "concat_skip"

    @classmethod
    def candidates(cls, graph: Graph) -> Iterable[ConcatSkip]:
        return (cls(start, end) for start, end in _activation_pairs(graph))

    def plan(self, graph: Graph) -> tuple[list[Node], str, list[str]]:
        _check_is_activation(self, graph, self.start)
        readers = [name for name in _readers(self, graph, self.end) if _can_widen_input(graph, name)]
        if not readers:
            raise MorphError(f"{self}: all that reads {self.end} leads into a sum, a gate or the network's output")
        _check_skip(self, graph, self.start, self.end)
        if any(_has_direct_path(graph, self.start, name) for name in readers if isinstance(graph[name].op, Concat)):
            raise MorphError(f"{self}: there is such a skip already")
        ops = [*_resolution_ops(self, graph, self.start, self.end), Concat()]
        return _branch(graph, self.start, ops, self.end), self.end, readers

    def carry(self, graph: Graph, weights: Mapping[str, Tensor], generator: torch.Generator) -> Weights:
        grown = self.grow(graph)
        old_width, added_width = graph.shapes[self.end][0], graph.shapes[self.start][0]
        (concat,) = (node.name for node in _new_nodes(graph, grown) if isinstance(node.op, Concat))
        return inherit(graph, grown, weights, generator, routes={concat: _new_channels(old_width, added_width)})


@dataclass(frozen=True)
class UnknownMorph(Morph):
    """A stored morph whose class is not registered: reports can name it, but it cannot be applied."""

    kind: str
    settings: tuple[tuple[str, Any], ...]

    @property
    def tag(self) -> str:  # type: ignore[override]  # differs by instance
        return self.kind

    def grow(self, graph: Graph) -> Graph:
        raise MorphError(f"{self}: import the module that defines {self.kind!r}")

    def to_json(self) -> dict[str, Any]:
        return {"morph": self.kind, **dict(self.settings)}

    def __str__(self) -> str:
        return f"{self.kind}({', '.join(str(value) for _, value in self.settings)})"


def stored_morph(data: Any) -> Morph:
    """As `morph_from_json`, but an `UnknownMorph` if no class with the tag is registered."""
    tag = data.get("morph") if isinstance(data, Mapping) else None
    if isinstance(tag, str) and tag.isidentifier() and tag not in MORPHS:
        return UnknownMorph(tag, tuple((name, value) for name, value in data.items() if name != "morph"))
    return morph_from_json(data)


def morph_from_json(data: Any) -> Morph:
    """The morph from the data of `Morph.to_json`; MorphError if it is invalid."""
    settings = dict(data) if isinstance(data, Mapping) else {}
    tag = settings.pop("morph", None)
    if not isinstance(tag, str) or tag not in MORPHS:
        raise MorphError(f"unknown morph {tag!r:.100}: {describe_kinds(MORPHS)}")
    types = {f.name: type_name(f) for f in fields(MORPHS[tag])}
    required = {f.name for f in fields(MORPHS[tag]) if f.default is MISSING and f.default_factory is MISSING}
    given = {name: type(value).__name__ for name, value in settings.items()}
    ints_for_floats = {name for name, kind in given.items() if kind == "int" and types.get(name) == "float"}
    given |= dict.fromkeys(ints_for_floats, "float")
    if not required <= given.keys() or not given.items() <= types.items():
        raise MorphError(f"a {tag} has {types}, not {settings!r:.100}")
    return MORPHS[tag](**settings)


def check_storable(morph: Morph) -> None:
    """MorphError for a morph that would not be equal after it was stored and read again."""
    if isinstance(morph, UnknownMorph):
        return
    name, known = type(morph).__qualname__, MORPHS.get(morph.tag)
    if known is not type(morph):
        owner = "is not known" if known is None else f"is that of {known.__module__}.{known.__qualname__}"
        raise MorphError(f"{name}: its tag {morph.tag!r} {owner}: give the class a tag of its own")
    if morph_from_json(json.loads(json.dumps(morph.to_json()))) != morph:
        raise MorphError(f"{morph}: its fields must be text, numbers or booleans, so that it can be stored")


def neighbours(graph: Graph, limits: Limits | None = None) -> Iterator[Morph]:
    """Every morph that fits `graph` and, if `limits` are given, is allowed and leads to a graph within them."""
    for morph in candidates(graph, Limits.morphs if limits is None else limits.morphs):
        try:
            morph.check(graph)
        except MorphError:
            continue
        if limits is None or limits.violation(morph.grow(graph)) is None:
            yield morph


def candidates(graph: Graph, tags: Collection[str] = Limits.morphs) -> Iterator[Morph]:
    """Morphs of these kinds, in usual sizes, at every site, in a fixed order; some may not fit the graph."""
    for tag, kind in MORPHS.items():
        if tag in tags:
            yield from kind.candidates(graph)


def sites(graph: Graph) -> list[str]:
    """Names of the activations, where morphs insert blocks and add skips."""
    return [node.name for node in graph.nodes if isinstance(node.op, Activation)]


def _activation_pairs(graph: Graph) -> Iterator[tuple[str, str]]:
    """All pairs of activations of which the first leads to the second."""
    return ((start, end) for start, end in itertools.combinations(sites(graph), 2) if graph.has_path(start, end))


def _rounded_width(width: int) -> int:
    """The width, rounded up to a multiple of 8 from 8 on: kernels process channels in groups of 8."""
    return width if width < 8 else -(-width // 8) * 8


# -- properties of a graph that morphs depend on


def width_groups(graph: Graph) -> list[frozenset[str]]:
    """Every group of layers whose widths are tied together and can change, in evaluation order."""
    groups: dict[frozenset[str], None] = {}
    seen: set[str] = set()
    for node in graph.nodes:
        if isinstance(node.op, Producer) and node.name not in seen:
            with suppress(MorphError):
                group = width_group(graph, node.name)
                seen |= group
                groups[group] = None
    return list(groups)


def width_group(graph: Graph, name: str) -> frozenset[str]:
    """Names of the layers whose width is tied to that of `name` by sums and gates, itself included.

    MorphError if `name` is no such layer, or if the width cannot change: it is tied to the network's input or output,
    or to a concat or flatten, or the channels are in groups.
    """
    if name not in graph or not graph[name].op.mixes:
        raise MorphError(f"{name} is no convolution or dense layer of the graph")
    group: set[str] = set()
    waiting, seen = [(name, False)], set()  # (tensor, is_part: whether it is behind a concat or flatten)
    while waiting:
        tensor, is_part = waiting.pop()
        if (tensor, is_part) in seen:
            continue
        seen.add((tensor, is_part))
        op = graph[tensor].op
        if tensor == graph.output.name:
            raise MorphError(f"{name}: its width is that of the network's output")
        if op.fixed_channels:
            raise MorphError(f"{name}: the channels of {tensor} cannot change")
        if isinstance(op, Elementwise) and is_part:
            raise MorphError(f"{name}: its channels are a part of what {tensor} joins")
        if not is_part:
            if op.mixes:
                group.add(tensor)
            elif not graph[tensor].inputs:
                raise MorphError(f"{name}: its width is that of the network's input")
            elif _changes_channels(graph, tensor):
                raise MorphError(f"{name}: its width is tied to that of {tensor}")
            else:
                waiting.extend((source, False) for source in graph[tensor].inputs)
        for reader in graph.consumers[tensor]:
            if graph[reader].op.fixed_channels or not graph[reader].op.mixes:
                waiting.append((reader, is_part or _changes_channels(graph, reader)))
    return frozenset(group)


def _changes_channels(graph: Graph, name: str) -> bool:
    """Whether the node has other channels than its inputs: a concat, or a flatten of several positions."""
    widths = [graph.shapes[source][0] for source in graph[name].inputs]
    return widths != [graph.shapes[name][0]] * len(widths)


def _max_width(graph: Graph) -> int:
    """The largest width of a layer other than the output."""
    return max((node.op.width for node in graph.nodes[:-1] if isinstance(node.op, Producer)), default=0)


def _can_widen_input(graph: Graph, name: str) -> bool:
    """Whether the node's input can get more channels: every path from it reaches a layer that mixes channels before a
    sum, a gate, a grouped convolution or the output."""
    waiting, seen = [name], set[str]()
    while waiting:
        node = graph[waiting.pop()]
        if (node.op.mixes and not node.op.fixed_channels) or node.name in seen:
            continue
        if node.op.fixed_channels or isinstance(node.op, Elementwise) or node is graph.output:
            return False
        seen.add(node.name)
        waiting.extend(graph.consumers[node.name])
    return True


def _check_is_activation(morph: Morph, graph: Graph, name: str) -> None:
    if name not in graph or not isinstance(graph[name].op, Activation):
        raise MorphError(f"{morph}: {name} is no activation of the graph")


def _readers(morph: Morph, graph: Graph, name: str) -> list[str]:
    """Names of the nodes that read an activation; MorphError if it is the output or not an activation."""
    _check_is_activation(morph, graph, name)
    if name == graph.output.name:
        raise MorphError(f"{morph}: {name} is the network's output")
    return list(graph.consumers[name])


def _has_direct_path(graph: Graph, start: str, end: str) -> bool:
    """Whether a path leads from `start` to `end` without an activation between them."""
    waiting, seen = [*graph[end].inputs], set[str]()
    while waiting:
        name = waiting.pop()
        if name == start:
            return True
        if name not in seen and not isinstance(graph[name].op, Activation):
            seen.add(name)
            waiting.extend(graph[name].inputs)
    return False


def _check_skip(morph: Morph, graph: Graph, start: str, end: str) -> None:
    if not graph.has_path(start, end):
        raise MorphError(f"{morph}: {start} does not lead to {end}")
    if _has_direct_path(graph, start, end):
        raise MorphError(
            f"{morph}: {start} already leads to {end} without an activation between them, or by such a skip"
        )


def _resolution_ops(morph: Morph, graph: Graph, start: str, end: str) -> list[Op]:
    """Ops without weights that change the resolution as those between two nodes do; MorphError if there are none."""
    ops = [op for node in graph.path(start, end) if (op := node.op.shortcut_op()) is not None]
    shape = graph.shapes[start]
    with suppress(ShapeError):
        for op in ops:
            shape = op.shape(shape)
        if shape[1:] == graph.shapes[end][1:]:
            return ops
    raise MorphError(f"{morph}: no pooling turns {graph.shapes[start]} into the resolution of {graph.shapes[end]}")


def chain(graph: Graph, start: str, ops: Sequence[Op]) -> list[Node]:
    """New nodes with these ops in sequence, the first of which reads `start`."""
    names = graph.fresh_names(op.tag for op in ops)
    return [Node(name, op, (i,)) for name, op, i in zip(names, ops, (start, *names), strict=False)]


def _branch(graph: Graph, start: str, ops: list[Op], end: str) -> list[Node]:
    """A chain from `start` whose last op joins it to the node `end`."""
    *nodes, last = chain(graph, start, ops)
    return [*nodes, replace(last, inputs=(end, *last.inputs))]


def _new_nodes(old: Graph, grown: Graph) -> list[Node]:
    return [node for node in grown.nodes if node.name not in old]
