"""Network morphisms: edits of a network that keep its function, with the weights that keep it.

A morph is a small value with two readings: `grow` edits the graph (all that a searcher needs), `carry` makes the grown
graph's weights out of the old ones. Its sites are the activations of a network: a block is inserted after one, a skip
leads from one to another. After Wei et al. 2016 (arXiv:1603.01670) and Chen et al. 2016, Net2Net (arXiv:1511.05641).
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

from morphnas.graph.graph import SMALLEST, Graph, GraphError, Node
from morphnas.graph.kinds import known, register, type_name
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
    """A morph does not fit the graph; the message names the morph's site."""


MORPHS: dict[str, type[Morph]] = {}
"""Every kind of morph, the user's own included, by its tag."""


@dataclass(frozen=True)
class Limits:
    """How large a network may become; None: any size. `morphs` are the tags of the allowed morphs.

    max_work: of `Graph.work`, the cost of training on one example. max_memory: bytes of `Graph.peak_bytes` for the
    smallest possible step. max_latency_ms: milliseconds from a single example to its outputs, as predicted by
    `latency`. pace: seconds per node, FLOP and parameter on this machine; a fit measures them.
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
        pace = tuple(map(_plain, self.pace)) if isinstance(self.pace, (list, tuple)) else ()
        if len(pace) != 3 or not all(map(_seconds, pace)):
            raise ValueError(f"limits: pace must be three numbers of seconds, not {self.pace!r:.100}")
        object.__setattr__(self, "pace", pace)
        for f in fields(self):
            value = _plain(getattr(self, f.name))
            if f.name in ("morphs", "pace") or value is None:
                continue
            object.__setattr__(self, f.name, value)
            if f.name == "max_latency_ms":
                if not _seconds(value) or not value:
                    raise ValueError(f"limits: {f.name} must be None or a positive number, not {value!r}")
                continue
            if isinstance(value, float) and value.is_integer():  # as 1e6
                object.__setattr__(self, f.name, value := int(value))
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"limits: {f.name} must be None or a positive integer, not {value!r}")
        if unknown := [tag for tag in self.morphs if tag not in MORPHS]:
            raise ValueError(f"limits: unknown morphs {unknown}: {known(MORPHS)}")

    def refuse(self, graph: Graph) -> str | None:
        """Why the graph is too large, in words; None if it is not."""
        sizes: tuple[tuple[str, Callable[[], int], int | None], ...] = (
            ("parameters", lambda: graph.parameters, self.max_params),
            ("FLOPs", lambda: graph.flops, self.max_flops),
            ("FLOPs' worth of work in training", lambda: graph.work, self.max_work),
            ("layers of depth", lambda: graph.depth, self.max_depth),
            ("channels of width", lambda: _widest(graph), self.max_width),
            ("activation bytes", lambda: graph.activation_bytes, self.max_activation_bytes),
            ("bytes of memory in training", lambda: graph.peak_bytes(SMALLEST), self.max_memory),
        )
        for words, measure, limit in sizes:
            if limit is not None and (value := measure()) > limit:
                return f"{value:,} {words}, at most {limit:,} are allowed"
        most = self.max_latency_ms
        if most is not None and (latency := 1000 * self.latency(graph)) > most:
            return f"{latency:.3g} ms of latency (predicted), at most {most:g} are allowed"
        return None

    def latency(self, graph: Graph) -> float:
        """Predicted seconds from a single example to its outputs; 0 if nothing was measured."""
        sizes = (len(graph.nodes), graph.flops, graph.parameters)
        return sum(each * size for each, size in zip(self.pace, sizes, strict=True))


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's, which JSON can hold."""
    return value.item() if isinstance(value, np.generic) else value


def _seconds(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf


@dataclass(frozen=True)
class Morph:
    """An edit that preserves a network's function; subclasses are the kinds, their fields the site and the size.

    A kind is a frozen dataclass with a `tag` of its own, by which `Limits.morphs` and stored runs name it, and with
    fields that are text or numbers. To define it suffices for it to be known.
    """

    tag: ClassVar[str]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        register(MORPHS, cls)

    @classmethod
    def candidates(cls, graph: Graph) -> Iterable[Morph]:  # noqa: ARG003  # other kinds look at it
        """Every morph of this kind, of a usual size, at every site, in a fixed order; some may not fit the graph."""
        return ()

    def grow(self, graph: Graph) -> Graph:
        """The edited graph; MorphError if the morph does not fit. Old nodes keep their names."""
        raise NotImplementedError

    def check(self, graph: Graph) -> None:
        """MorphError if the morph does not fit the graph; cheaper than `grow`."""
        self.grow(graph)

    def carry(self, graph: Graph, weights: Mapping[str, Tensor], generator: torch.Generator) -> Weights:
        """Weights for ``grow(graph)`` with which it computes in evaluation mode what `graph` does with `weights`.

        Widening breaks symmetry: readers divide a repeated channel unequally, which preserves the function. Computed in
        the dtype of `weights`: cast them to float64 first for full precision.
        """
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        return {"morph": self.tag} | asdict(self)

    def __str__(self) -> str:
        return f"{self.tag}({', '.join(str(value) for value in asdict(self).values())})"


# -- the one gather that carries weights for every morph


def inherit(
    old: Graph,
    new: Graph,
    weights: Mapping[str, Tensor],
    generator: torch.Generator,
    routes: Mapping[str, Route] | None = None,
    fresh: Mapping[str, Weights] | None = None,
) -> Weights:
    """Weights for `new`, which was grown from `old`, from the weights for `old`.

    routes: for nodes that begin a widening, where their output channels come from; the rest follows from the ops.
    fresh: weights of new nodes, by node name; other new nodes start with their op's initial weights.
    """
    routes, fresh = dict(routes or {}), fresh or {}
    dtype = next((t.dtype for t in weights.values() if t.is_floating_point()), torch.float32)
    flow: dict[str, Route | None] = {}  # None: the output has the channels it had
    carried: Weights = {}
    for node in new.nodes:
        op, shapes = node.op, new.input_shapes(node)
        reads = [flow[name] for name in node.inputs]
        if node.name in routes:
            flow[node.name] = routes[node.name]
        elif op.mixes or all(route is None for route in reads):
            flow[node.name] = None
        else:
            before = [old.shapes[name] for name in old[node.name].inputs]
            whole = [r or Route.identity(s[0]) for r, s in zip(reads, before, strict=True)]
            flow[node.name] = op.route(*zip(whole, before, strict=True))
        if not op.tensors(*shapes):
            continue
        out, into = flow[node.name], reads[0]
        if node.name not in old:
            start = fresh.get(node.name) or op.init(*shapes, generator=generator)
        elif out is None and into is None:
            start = {name: weights[f"{node.name}.{name}"] for name in op.tensors(*shapes)}
        else:
            new_ones = out is not None and bool((out.source < 0).any())
            drawn = op.init(*shapes, generator=generator) if new_ones else {}
            start = {name: weights[f"{node.name}.{name}"] for name in op.tensors(*shapes)}
            for name in start.keys() & op.axes.keys():
                begun = drawn[name].to(dtype) if new_ones else None
                start[name] = _gather(start[name], begun, op.axes[name], out, into)
        for name, value in start.items():
            value = value.to(dtype) if value.is_floating_point() else value
            stays = value is weights.get(f"{node.name}.{name}")
            carried[f"{node.name}.{name}"] = value.clone() if stays else value.contiguous()
    return carried


def _gather(kept: Tensor, begun: Tensor | None, axes: tuple[str, ...], out: Route | None, into: Route | None) -> Tensor:
    """`kept` with its input axis read through `into` and its output axis through `out`; new outputs are as `begun`."""
    if into is not None and "in" in axes:
        axis = axes.index("in")
        share = into.share.to(kept.dtype).reshape([-1 if i == axis else 1 for i in range(kept.ndim)])
        kept = kept.index_select(axis, into.source.clamp(min=0)).mul_(share)
    if out is not None:
        kept = kept.index_select(0, out.source.clamp(min=0))
    if out is not None and begun is not None:
        kept = torch.where((out.source >= 0).reshape(-1, *[1] * (kept.ndim - 1)), kept, begun)
    return kept


# -- the morphs


@dataclass(frozen=True)
class Insertion(Morph):
    """A morph that puts new nodes between a node and some of its readers: `plan` says which, `begin` their weights."""

    def plan(self, graph: Graph) -> tuple[list[Node], str, list[str]]:
        """The arguments of `Graph.splice`; MorphError when the morph does not fit."""
        raise NotImplementedError

    def begin(self, op: Op, *inputs: Shape) -> Weights:
        """The weights that a new node begins with, so that the function is kept; none: the op's own fresh ones."""
        return {}

    def check(self, graph: Graph) -> None:
        self.plan(graph)

    def grow(self, graph: Graph) -> Graph:
        return graph.splice(*self.plan(graph))

    def carry(self, graph: Graph, weights: Mapping[str, Tensor], generator: torch.Generator) -> Weights:
        grown = self.grow(graph)
        begun = {node.name: self.begin(node.op, *grown.input_shapes(node)) for node in _new(graph, grown)}
        return inherit(graph, grown, weights, generator, fresh=begun)


@dataclass(frozen=True)
class Deeper(Insertion):
    """Insert an identity block after a relu, or another activation that is never negative: conv-bn-relu where there are
    spatial axes, dense-relu on flat features.

    The block is the identity because its input is not negative.
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
            raise MorphError(f"{self}: {self.after} may be negative, so that a relu behind it would change it")
        ops: list[Op] = [Dense(shape[0]), ReLU()]
        if len(shape) > 1:
            try:
                ops = [Conv(shape[0], self.kernel), BatchNorm(), ReLU()]
            except ValueError as error:
                raise MorphError(f"{self}: {error}") from None
        return chain(graph, self.after, ops), self.after, readers

    def begin(self, op: Op, *inputs: Shape) -> Weights:
        if isinstance(op, Producer):
            return op.identity(*inputs)
        return op.neutral(*inputs) if isinstance(op, BatchNorm) else {}


class Widening(Morph):
    """A morph that gives layers more output channels, which repeat old ones drawn at random (Net2WiderNet)."""

    def groups(self, graph: Graph) -> list[tuple[frozenset[str], int, int]]:
        """Layers of tied width, the width that they have, and that they are to have; MorphError if it does not fit."""
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
        """See `Morph.carry`. fresh: layers whose new channels have fresh weights instead, and weight 0 for their
        readers: for those that are not trained, whose repeated channels would stay what they are."""
        routes: dict[str, Route] = {}
        for group, old, width in self.groups(graph):
            drawn = _repeats(old, width, generator) if group.isdisjoint(fresh) else _added(old, width - old)
            routes |= dict.fromkeys(group, drawn)
        return inherit(graph, self.grow(graph), weights, generator, routes=routes)


@dataclass(frozen=True)
class Wider(Widening):
    """Give a convolution or dense layer, and all that are tied to it by sums and gates, `width` output channels."""

    node: str
    width: int
    tag = "wider"

    @classmethod
    def candidates(cls, graph: Graph) -> Iterable[Wider]:
        for group in width_groups(graph):
            name = next(node.name for node in graph.nodes if node.name in group and isinstance(node.op, Producer))
            width = graph.shapes[name][0]
            for wider in sorted({_round(width + max(1, width // 2)), _round(2 * width)}):
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

    One step to a network for more time or data, where `Wider` takes one for every layer (Tan and Le 2019, EfficientNet,
    arXiv:1905.11946, also scale widths together).
    """

    percent: int = 200
    tag = "wider_all"

    @classmethod
    def candidates(cls, graph: Graph) -> Iterable[WiderAll]:
        return (cls(150), cls(200)) if len(width_groups(graph)) > 1 else ()

    def groups(self, graph: Graph) -> list[tuple[frozenset[str], int, int]]:
        found = _tied(graph)
        if self.percent <= 100 or not found:
            raise MorphError(f"{self}: there is no layer that it could widen")
        groups = [(group, old, max(old + 1, _round(old * self.percent // 100))) for group, old in found]
        if max(width for _, _, width in groups) > MAX_SIZE:
            raise MorphError(f"{self}: a layer has at most {MAX_SIZE:,} channels")
        return groups


def _widened(graph: Graph, widths: Mapping[str, int]) -> Graph:
    """The graph with other widths of the layers named."""
    ops = {name: graph[name].op for name in widths}
    return graph.replace_ops({n: op.widened(widths[n]) for n, op in ops.items() if isinstance(op, Producer)})


def narrowed(graph: Graph, times: int) -> Graph:
    """The graph with every width that can change divided by a number, rounded up."""
    return _widened(graph, {name: -(-width // times) for group, width in _tied(graph) for name in group})


def _tied(graph: Graph) -> list[tuple[frozenset[str], int]]:
    """The groups of layers whose widths are tied and can change, and the width of each."""
    return [(group, graph.shapes[min(group)][0]) for group in width_groups(graph)]


def _added(old: int, n: int) -> Route:
    """All the old channels, and n that are new."""
    new = Route(torch.full((n,), -1), torch.zeros(n, dtype=torch.float64))
    return Route.concat((Route.identity(old), old), (new, 0))


def _repeats(old: int, width: int, generator: torch.Generator) -> Route:
    """Channels that are all the old ones and, up to the width, some of them again, which share their weight out."""
    source = torch.cat([torch.arange(old), torch.randint(old, (width - old,), generator=generator)])
    part = 0.5 + torch.rand(width, generator=generator, dtype=torch.float64)
    share = part / torch.zeros(old, dtype=torch.float64).index_add(0, source, part)[source]
    return Route(source, share)


@dataclass(frozen=True)
class AddSkip(Insertion):
    """Add an activation's output to the input of a later one, through a 1x1 convolution and a batch norm of scale 0.

    Pooling and strides on the way are repeated in the branch (strided convolutions as average pools).
    """

    start: str
    end: str
    tag = "add_skip"

    @classmethod
    def candidates(cls, graph: Graph) -> Iterable[AddSkip]:
        return (cls(start, end) for start, end in _ways(graph))

    def plan(self, graph: Graph) -> tuple[list[Node], str, list[str]]:
        _joint(self, graph, self.start)
        _joint(self, graph, self.end)
        (target,) = graph[self.end].inputs
        _skippable(self, graph, self.start, self.end)
        width, flat = graph.shapes[target][0], len(graph.shapes[target]) == 1
        match = Dense(width, bias=False) if flat else Conv(width, 1)
        ops = [*_mirrors(self, graph, self.start, target), match, BatchNorm(), Add()]
        return _branch(graph, self.start, ops, target), target, [self.end]

    def begin(self, op: Op, *inputs: Shape) -> Weights:
        return op.neutral(*inputs, scale=0.0) if isinstance(op, BatchNorm) else {}


@dataclass(frozen=True)
class ConcatSkip(Insertion):
    """Let the layers that read an activation also read an earlier one, whose channels have weight 0 at first.

    Pooling and strides on the way are repeated in the branch. Readers that lead into a sum or a gate are unchanged.
    """

    start: str
    end: str
    tag = "concat_skip"

    @classmethod
    def candidates(cls, graph: Graph) -> Iterable[ConcatSkip]:
        return (cls(start, end) for start, end in _ways(graph))

    def plan(self, graph: Graph) -> tuple[list[Node], str, list[str]]:
        _joint(self, graph, self.start)
        readers = [name for name in _readers(self, graph, self.end) if _absorbs(graph, name)]
        if not readers:
            raise MorphError(f"{self}: all that reads {self.end} leads into a sum, a gate or the network's output")
        _skippable(self, graph, self.start, self.end)
        if any(_straight(graph, self.start, name) for name in readers if isinstance(graph[name].op, Concat)):
            raise MorphError(f"{self}: there is such a skip already")
        ops = [*_mirrors(self, graph, self.start, self.end), Concat()]
        return _branch(graph, self.start, ops, self.end), self.end, readers

    def carry(self, graph: Graph, weights: Mapping[str, Tensor], generator: torch.Generator) -> Weights:
        grown = self.grow(graph)
        kept, added = graph.shapes[self.end][0], graph.shapes[self.start][0]
        (concat,) = (node.name for node in _new(graph, grown) if isinstance(node.op, Concat))
        return inherit(graph, grown, weights, generator, routes={concat: _added(kept, added)})


@dataclass(frozen=True)
class UnknownMorph(Morph):
    """A morph of a kind that is defined elsewhere, as a run has it: reports can name it, but nothing can repeat it."""

    kind: str
    settings: tuple[tuple[str, Any], ...]

    @property
    def tag(self) -> str:  # type: ignore[override]  # every one has its own
        return self.kind

    def grow(self, graph: Graph) -> Graph:
        raise MorphError(f"{self}: import the module that defines {self.kind!r}")

    def to_json(self) -> dict[str, Any]:
        return {"morph": self.kind, **dict(self.settings)}

    def __str__(self) -> str:
        return f"{self.kind}({', '.join(str(value) for _, value in self.settings)})"


def stored_morph(data: Any) -> Morph:
    """As `morph_from_json`, but an `UnknownMorph` where the kind is defined elsewhere."""
    tag = data.get("morph") if isinstance(data, Mapping) else None
    if isinstance(tag, str) and tag.isidentifier() and tag not in MORPHS:
        return UnknownMorph(tag, tuple((name, value) for name, value in data.items() if name != "morph"))
    return morph_from_json(data)


def morph_from_json(data: Any) -> Morph:
    """The morph that `Morph.to_json` described; MorphError if it is invalid."""
    settings = dict(data) if isinstance(data, Mapping) else {}
    tag = settings.pop("morph", None)
    if not isinstance(tag, str) or tag not in MORPHS:
        raise MorphError(f"unknown morph {tag!r:.100}: {known(MORPHS)}")
    types = {f.name: type_name(f) for f in fields(MORPHS[tag])}
    needed = {f.name for f in fields(MORPHS[tag]) if f.default is MISSING and f.default_factory is MISSING}
    names = {name: type(value).__name__ for name, value in settings.items()}
    whole = {name for name, kind in names.items() if kind == "int" and types.get(name) == "float"}
    names |= dict.fromkeys(whole, "float")
    if not needed <= names.keys() or not names.items() <= types.items():
        raise MorphError(f"a {tag} has {types}, not {settings!r:.100}")
    return MORPHS[tag](**settings)


def check_stored(morph: Morph) -> None:
    """MorphError for one that a run would not give back as it is."""
    if isinstance(morph, UnknownMorph):
        return
    name, kind = type(morph).__qualname__, MORPHS.get(morph.tag)
    if kind is not type(morph):
        which = "is not known" if kind is None else f"is that of {kind.__module__}.{kind.__qualname__}"
        raise MorphError(f"{name}: its tag {morph.tag!r} {which}: give the class a tag of its own")
    if morph_from_json(json.loads(json.dumps(morph.to_json()))) != morph:
        raise MorphError(f"{morph}: its fields must be text, numbers or booleans, so that it can be stored")


def neighbours(graph: Graph, limits: Limits | None = None) -> Iterator[Morph]:
    """Every morph that fits the graph and, if limits are given, is allowed and leads to a graph within them."""
    for morph in candidates(graph, Limits.morphs if limits is None else limits.morphs):
        try:
            morph.check(graph)
        except MorphError:
            continue
        if limits is None or limits.refuse(morph.grow(graph)) is None:
            yield morph


def candidates(graph: Graph, tags: Collection[str] = Limits.morphs) -> Iterator[Morph]:
    """Every morph of these kinds, of a usual size, at every site, in a fixed order; some do not fit."""
    for tag, kind in MORPHS.items():
        if tag in tags:
            yield from kind.candidates(graph)


def sites(graph: Graph) -> list[str]:
    """Names of the activations, where morphs insert blocks and add skips."""
    return [node.name for node in graph.nodes if isinstance(node.op, Activation)]


def _ways(graph: Graph) -> Iterator[tuple[str, str]]:
    """Every activation with every later one that it leads to."""
    return ((start, end) for start, end in itertools.combinations(sites(graph), 2) if graph.leads(start, end))


def _round(width: int) -> int:
    """Up to a multiple of 8, from 8 on: kernels work on channels in such groups, so the others come for free."""
    return width if width < 8 else -(-width // 8) * 8


# -- what the morphs ask of a graph


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

    MorphError if their width cannot change: it is that of the network's input or output, or part of a concat.
    """
    if name not in graph or not graph[name].op.mixes:
        raise MorphError(f"{name} is no convolution or dense layer of the graph")
    group: set[str] = set()
    waiting, seen = [(name, False)], set()  # (tensor, whether its channels are but a part: behind a concat or flatten)
    while waiting:
        tensor, part = waiting.pop()
        if (tensor, part) in seen:
            continue
        seen.add((tensor, part))
        op = graph[tensor].op
        if tensor == graph.output.name:
            raise MorphError(f"{name}: its width is that of the network's output")
        if op.rigid:
            raise MorphError(f"{name}: the channels of {tensor} are in groups")
        if isinstance(op, Elementwise) and part:
            raise MorphError(f"{name}: its channels are a part of what {tensor} joins")
        if not part:
            if op.mixes:
                group.add(tensor)
            elif not graph[tensor].inputs:
                raise MorphError(f"{name}: its width is that of the network's input")
            elif _mixes_parts(graph, tensor):
                raise MorphError(f"{name}: its width is tied to that of {tensor}")
            else:
                waiting.extend((source, False) for source in graph[tensor].inputs)
        for reader in graph.consumers[tensor]:
            if graph[reader].op.rigid or not graph[reader].op.mixes:
                waiting.append((reader, part or _mixes_parts(graph, reader)))
    return frozenset(group)


def _mixes_parts(graph: Graph, name: str) -> bool:
    """Whether the node's channels are others than those of its inputs: a concat, or a flatten of several positions."""
    widths = [graph.shapes[source][0] for source in graph[name].inputs]
    return widths != [graph.shapes[name][0]] * len(widths)


def _widest(graph: Graph) -> int:
    """The largest width of a layer, that of the output aside."""
    return max((node.op.width for node in graph.nodes[:-1] if isinstance(node.op, Producer)), default=0)


def _absorbs(graph: Graph, name: str) -> bool:
    """Whether more channels into this node end in layers that mix them, before a sum, a gate or the output needs the
    old."""
    waiting, seen = [name], set[str]()
    while waiting:
        node = graph[waiting.pop()]
        if (node.op.mixes and not node.op.rigid) or node.name in seen:
            continue
        if node.op.rigid or isinstance(node.op, Elementwise) or node is graph.output:
            return False
        seen.add(node.name)
        waiting.extend(graph.consumers[node.name])
    return True


def _joint(morph: Morph, graph: Graph, name: str) -> None:
    if name not in graph or not isinstance(graph[name].op, Activation):
        raise MorphError(f"{morph}: {name} is no activation of the graph")


def _readers(morph: Morph, graph: Graph, name: str) -> list[str]:
    """Names of those that read an activation."""
    _joint(morph, graph, name)
    if name == graph.output.name:
        raise MorphError(f"{morph}: {name} is the network's output")
    return list(graph.consumers[name])


def _straight(graph: Graph, start: str, end: str) -> bool:
    """Whether a path without an activation leads from `start` into `end`."""
    waiting, seen = [*graph[end].inputs], set[str]()
    while waiting:
        name = waiting.pop()
        if name == start:
            return True
        if name not in seen and not isinstance(graph[name].op, Activation):
            seen.add(name)
            waiting.extend(graph[name].inputs)
    return False


def _skippable(morph: Morph, graph: Graph, start: str, end: str) -> None:
    if not graph.leads(start, end):
        raise MorphError(f"{morph}: {start} does not lead to {end}")
    if _straight(graph, start, end):
        raise MorphError(
            f"{morph}: {start} leads to {end} without an activation between them, or by such a skip, already"
        )


def _mirrors(morph: Morph, graph: Graph, start: str, end: str) -> list[Op]:
    """What changes the resolution between two nodes, without weights."""
    ops = [op for node in graph.path(start, end) if (op := node.op.mirror()) is not None]
    shape = graph.shapes[start]
    with suppress(ShapeError):
        for op in ops:
            shape = op.shape(shape)
        if shape[1:] == graph.shapes[end][1:]:
            return ops
    raise MorphError(f"{morph}: no pooling turns {graph.shapes[start]} into the resolution of {graph.shapes[end]}")


def chain(graph: Graph, start: str, ops: Sequence[Op]) -> list[Node]:
    """New nodes with these ops, one after the other, the first of which reads `start`."""
    names = graph.fresh_names(op.tag for op in ops)
    return [Node(name, op, (i,)) for name, op, i in zip(names, ops, (start, *names), strict=False)]


def _branch(graph: Graph, start: str, ops: list[Op], end: str) -> list[Node]:
    """A chain whose last op joins it to the node `end`."""
    *nodes, last = chain(graph, start, ops)
    return [*nodes, replace(last, inputs=(end, *last.inputs))]


def _new(old: Graph, grown: Graph) -> list[Node]:
    return [node for node in grown.nodes if node.name not in old]
