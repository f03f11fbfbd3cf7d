"""Groups the nodes of a network into blocks and finds repetitions, so that a hundred layers are drawn as a few."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass

from morphnas.graph import Graph, Node

MIN_REPEATS = 3
"""Minimum number of repetitions that are folded into one."""
MAX_PERIOD = 24
"""Maximum number of items that are repeated together."""


def grouped(graph: Graph, origin: Callable[[str], object]) -> list[list[Node]]:
    """The nodes in order, in blocks: a node together with the norm, activation or dropout that follow it.

    origin: where a node, given by its name, comes from; nodes of different origin are never in the same block.
    """
    blocks: list[list[Node]] = []
    ends: dict[str, list[Node]] = {}
    for node in graph.nodes:
        source = node.inputs[0] if len(node.inputs) == 1 else ""
        joins = (
            source in ends
            and source != graph.input.name
            and len(graph.consumers[source]) == 1
            and graph.shapes[source] == graph.shapes[node.name]
            and all(len(shape) < 2 for shape in node.op.tensors(*graph.input_shapes(node)).values())
            and node.op.shortcut_op() is None
            and origin(source) == origin(node.name)
        )
        if joins:
            block = ends.pop(source)
            block.append(node)
        else:
            block = [node]
            blocks.append(block)
        ends[node.name] = block
    return blocks


@dataclass(frozen=True)
class Repeat:
    """A sequence of `length` items that occurs `times` times in a row, from index `start` on."""

    start: int
    length: int = 1
    times: int = 1

    @property
    def end(self) -> int:
        return self.start + self.length * self.times

    def place(self, item: int) -> tuple[int, int]:
        """The corresponding item of the first repetition, and the repetition that the item is in, from 0."""
        repetition, position = divmod(item - self.start, self.length)
        return self.start + position, repetition


def folded(keys: Sequence[Hashable], edges: Collection[tuple[int, int]]) -> list[Repeat]:
    """The items, in order, as repeats; an item that is not repeated is a repeat of length 1 that occurs once.

    keys: the identity of each item. edges: (source, end) indices, source < end. Items are equal if their keys and the
    distances to their sources are. Only the first repetition has sources before the repeat, and only the last one has
    readers after it: so the only edges that are not drawn are those that every repetition has.
    """
    sources: dict[int, set[int]] = defaultdict(set)
    last: dict[int, int] = {}
    for source, end in edges:
        sources[end].add(source)
        last[source] = max(end, last.get(source, end))
    signatures = [(key, frozenset(i - source for source in sources[i])) for i, key in enumerate(keys)]

    def is_repeated(i: int, start: int, length: int) -> bool:
        """Whether the item equals the one `length` before it, and all of its sources are in the repeat."""
        return signatures[i] == signatures[i - length] and min(sources[i], default=i) >= start

    def repetitions(start: int, length: int) -> int:
        """How often the `length` items from `start` on occur in a row."""
        end = start + length
        while end + length <= len(keys) and all(is_repeated(i, start, length) for i in range(end, end + length)):
            end += length
        while end > start + length and any(last.get(i, i) >= end for i in range(start, end - length)):
            end -= length
        return (end - start) // length

    repeats = []
    at = 0
    while at < len(keys):
        best = Repeat(at)
        for length in range(1, min(MAX_PERIOD, (len(keys) - at) // MIN_REPEATS) + 1):
            times = repetitions(at, length)
            if times >= MIN_REPEATS and length * (times - 1) > best.length * (best.times - 1):
                best = Repeat(at, length, times)
        repeats.append(best)
        at = best.end
    return repeats
