"""Finds what belongs together and what repeats itself in a network, so that a hundred layers can be drawn as a few."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass

from morphnas.graph import Graph, Node

LEAST = 3
"""Times that items must follow each other in the same way to be told once."""
LONGEST = 24
"""Items that may make up what is repeated."""


def grouped(graph: Graph, origin: Callable[[str], object]) -> list[list[Node]]:
    """The nodes in order, each together with those that only refine what it gives: norm, activation, dropout.

    origin: says of a node, by its name, where it is from; what is from elsewhere stays apart.
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
            and node.op.mirror() is None
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
    """Items from `start` on, `length` of them, which follow each other so many times in the same way."""

    start: int
    length: int = 1
    times: int = 1

    @property
    def end(self) -> int:
        return self.start + self.length * self.times

    def place(self, item: int) -> tuple[int, int]:
        """The item of the first time that it is alike, and which time it is of, from 0."""
        time, position = divmod(item - self.start, self.length)
        return self.start + position, time


def folded(keys: Sequence[Hashable], edges: Collection[tuple[int, int]]) -> list[Repeat]:
    """The items, in their order, in repeats; what is not repeated is a repeat of one item, once.

    keys: what each item is. edges: (source, end) by places, source before end. Items are alike if their keys are, and
    the distances to what they take from. Nothing but the first time takes from before a repeat, and nothing but the
    last gives to what is behind it: so no edge is lost but those that every time has.
    """
    sources: dict[int, set[int]] = defaultdict(set)
    last: dict[int, int] = {}
    for source, end in edges:
        sources[end].add(source)
        last[source] = max(end, last.get(source, end))
    alike = [(key, frozenset(i - source for source in sources[i])) for i, key in enumerate(keys)]

    def again(i: int, start: int, length: int) -> bool:
        """Whether the item is what the one `length` before it is, and takes from the repeat alone."""
        return alike[i] == alike[i - length] and min(sources[i], default=i) >= start

    def times(start: int, length: int) -> int:
        """How often the items from there on follow each other."""
        end = start + length
        while end + length <= len(keys) and all(again(i, start, length) for i in range(end, end + length)):
            end += length
        while end > start + length and any(last.get(i, i) >= end for i in range(start, end - length)):
            end -= length
        return (end - start) // length

    repeats = []
    at = 0
    while at < len(keys):
        best = Repeat(at)
        for length in range(1, min(LONGEST, (len(keys) - at) // LEAST) + 1):
            often = times(at, length)
            if often >= LEAST and length * (often - 1) > best.length * (best.times - 1):
                best = Repeat(at, length, often)
        repeats.append(best)
        at = best.end
    return repeats
