"""What a search could try, told before it begins."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from morphnas.estimators.inputs import Problem
from morphnas.estimators.settings import Settings
from morphnas.graph import Graph, Limits, Morph, MorphError
from morphnas.graph.morphs import MORPHS
from morphnas.report.words import count, duration, epochs_words
from morphnas.run.expectation import Expectation, Ladder, Terms, expectation
from morphnas.run.plan import Plan
from morphnas.search.trial import MorphSpace, Space
from morphnas.search.tuned import Ranges
from morphnas.train.recipe import Recipe


@dataclass(frozen=True)
class Start:
    """A network that a search begins with. neighbours: what one morph makes of it, by kind, within the limits."""

    key: str
    depth: int
    parameters: int
    flops: int
    neighbours: Mapping[str, int]


@dataclass(frozen=True, repr=False)
class SearchSpace:
    """What a search of so many `seconds` begins with and may do; `str` of it is for people.

    morphs: what each kind that is allowed does. limits: what networks may come to. recipe: of a child, but for what
    is searched: ranges. expected: how many networks, how much disk and memory.
    """

    seconds: float
    starts: tuple[Start, ...]
    morphs: Mapping[str, str]
    limits: Limits
    recipe: Recipe
    ranges: Ranges
    expected: Expectation

    @staticmethod
    def of(plan: Plan, problem: Problem, settings: Settings, seconds: float, terms: Terms) -> SearchSpace:
        """terms: as far as the settings and the problem do not say them."""
        space: Space = MorphSpace(plan.starts, plan.limits.morphs)
        searcher = settings.searcher(space, recipe=plan.recipe, limits=plan.limits, seed=0)
        terms = replace(
            terms,
            workers=settings.place.at_a_time,
            ladder=Ladder.of(searcher),
            keep=settings.keep,
            data=problem.bytes_in_memory,
        )
        free = shutil.disk_usage(settings.room.disk).free
        expected = expectation(plan, (), plan.search_share * seconds, terms, free=free)
        space = _space(searcher) or space
        starts = tuple(_start(graph, space, plan.limits) for graph in plan.starts)
        found = {tag: MORPHS[tag] for start in starts for tag in start.neighbours}
        kinds = {tag: MORPHS[tag] for tag in plan.limits.morphs} if isinstance(space, MorphSpace) else found
        does = {tag: _what(kind) for tag, kind in kinds.items()}
        return SearchSpace(seconds, starts, does, plan.limits, plan.recipe, settings.ranges, expected)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"a search within {duration(self.seconds)} begins with"]
        for start in self.starts:
            size = f"depth {start.depth}, {count(start.parameters)} parameters, {count(start.flops)} FLOPs"
            kinds = ", ".join(f"{n} {kind.replace('_', ' ')}" for kind, n in start.neighbours.items())
            lines.append(f"  {size}; one step leads to {sum(start.neighbours.values())} networks: {kinds or 'none'}")
        lines.append("a step is one or several of these, and preserves what the network computes:")
        lines += [f"  {kind.replace('_', ' ')}: {does}" for kind, does in self.morphs.items()]
        sizes = {
            name: value for name, value in asdict(self.limits).items() if name.startswith("max_") and value is not None
        }
        told = ", ".join(f"{name} {value:,}" for name, value in sizes.items())
        lines.append(f"limits: {told or 'none'}")
        part = "" if self.recipe.examples is None else f" of {self.recipe.examples:,} examples"
        rate = f"{self.recipe.optimizer}, rate {self.recipe.lr:.3g}, batches of {self.recipe.batch_size}"
        lines.append(f"a child is trained for {epochs_words(self.recipe.epochs)}{part}: {rate}")
        if self.ranges:
            lines.append("also searched: " + ", ".join(f"{name} {values}" for name, values in self.ranges.items()))
        return "\n".join([*lines, str(self.expected)])

    __repr__ = __str__


def _space(searcher: Any) -> Space | None:
    """That of a searcher, also of one around it; a user's own may be another than what it was given."""
    while not hasattr(searcher, "space") and hasattr(searcher, "searcher"):
        searcher = searcher.searcher
    found: Space | None = getattr(searcher, "space", None)
    return found


def _what(kind: type[Morph]) -> str:
    """The first sentence of what is written about it, without what follows a colon."""
    return re.split(r"[.:](?:\s|$)", " ".join((kind.__doc__ or "").split()))[0]


def _start(graph: Graph, space: Space, limits: Limits) -> Start:
    kinds = Counter[str]()
    for morph in space.neighbours(graph):
        with suppress(MorphError):
            if limits.refuse(morph.grow(graph)) is None:
                kinds[morph.tag] += 1
    return Start(graph.key, graph.depth, graph.parameters, graph.flops, dict(kinds))
