"""The search space and the expected effort of a search, before it."""

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
from morphnas.run.expectation import Expectation, Ladder, SearchConditions, expectation
from morphnas.run.plan import Plan
from morphnas.search.trial import MorphSpace, Space
from morphnas.search.tuned import Ranges
from morphnas.train.recipe import Recipe


@dataclass(frozen=True)
class Starter:
    """A starter. neighbours: number of networks one morph away and within the limits, by the kind of morph. given:
    whether it begins with the user's weights."""

    key: str
    depth: int
    parameters: int
    flops: int
    neighbours: Mapping[str, int]
    given: bool


@dataclass(frozen=True, repr=False)
class SearchSpace:
    """The space and the plan of a search; `str` of it is a summary for people.

    seconds: time limit of the fit. starts: the starters. morphs: a description of each allowed kind of morph. limits:
    on the size of networks. recipe: of each training of the search, except for the fields in ranges, which are
    searched. expected: number of networks, disk space and memory.
    """

    seconds: float
    starts: tuple[Starter, ...]
    morphs: Mapping[str, str]
    limits: Limits
    recipe: Recipe
    ranges: Ranges
    expected: Expectation

    @staticmethod
    def of(
        plan: Plan, problem: Problem, settings: Settings, seconds: float, conditions: SearchConditions
    ) -> SearchSpace:
        """The search space of a fit. conditions: the fields that do not follow from the settings and the problem."""
        space: Space = MorphSpace(plan.starts, plan.limits.morphs)
        searcher = settings.searcher(space, recipe=plan.recipe, limits=plan.limits, seed=0)
        conditions = replace(
            conditions,
            workers=settings.place.parallel_trials,
            ladder=Ladder.of(searcher),
            keep=settings.keep,
            data=problem.bytes_in_memory,
        )
        free = shutil.disk_usage(settings.data_memory.disk).free
        expected = expectation(plan, (), plan.search_share * seconds, conditions, free=free)
        space = _space_of(searcher) or space
        given = {network.graph.key for network in settings.networks}
        starts = tuple(_starter(graph, space, plan.limits, graph.key in given) for graph in plan.starts)
        used_tags = [tag for start in starts for tag in start.neighbours]
        kinds = {tag: MORPHS[tag] for tag in (plan.limits.morphs if isinstance(space, MorphSpace) else used_tags)}
        descriptions = {tag: _description(kind) for tag, kind in kinds.items()}
        return SearchSpace(seconds, starts, descriptions, plan.limits, plan.recipe, settings.ranges, expected)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"a search within {duration(self.seconds)} begins with"]
        for start in self.starts:
            size = f"depth {start.depth}, {count(start.parameters)} parameters, {count(start.flops)} FLOPs"
            kinds = ", ".join(f"{n} {kind.replace('_', ' ')}" for kind, n in start.neighbours.items())
            size += ", with weights given" if start.given else ""
            lines.append(f"  {size}; one step leads to {sum(start.neighbours.values())} networks: {kinds or 'none'}")
        lines.append("a step is one or several of these, and preserves what the network computes:")
        lines += [f"  {kind.replace('_', ' ')}: {description}" for kind, description in self.morphs.items()]
        sizes = {
            name: value for name, value in asdict(self.limits).items() if name.startswith("max_") and value is not None
        }
        limits = ", ".join(f"{name} {value:,}" for name, value in sizes.items())
        lines.append(f"limits: {limits or 'none'}")
        part = "" if self.recipe.examples is None else f" of {self.recipe.examples:,} examples"
        rate = f"{self.recipe.optimizer}, rate {self.recipe.lr:.3g}, batches of {self.recipe.batch_size}"
        lines.append(f"a child is trained for {epochs_words(self.recipe.epochs)}{part}: {rate}")
        if any(start.given for start in self.starts):
            words = "and then all layers, gently or at the usual rates, whichever is better"
            lines.append(f"of a network with weights given first the last layer is trained, {words}")
        if self.ranges:
            lines.append("also searched: " + ", ".join(f"{name} {values}" for name, values in self.ranges.items()))
        return "\n".join([*lines, str(self.expected)])

    __repr__ = __str__


def _space_of(searcher: Any) -> Space | None:
    """The space of a searcher or of the one that it wraps; a user's searcher may have another than it was given."""
    while not hasattr(searcher, "space") and hasattr(searcher, "searcher"):
        searcher = searcher.searcher
    space: Space | None = getattr(searcher, "space", None)
    return space


def _description(kind: type[Morph]) -> str:
    """The first sentence of a morph's docstring, up to a colon."""
    return re.split(r"[.:](?:\s|$)", " ".join((kind.__doc__ or "").split()))[0]


def _starter(graph: Graph, space: Space, limits: Limits, given: bool) -> Starter:
    kinds = Counter[str]()
    for morph in space.neighbours(graph):
        with suppress(MorphError):
            if limits.violation(morph.grow(graph)) is None:
                kinds[morph.tag] += 1
    return Starter(graph.key, graph.depth, graph.parameters, graph.flops, dict(kinds), given)
