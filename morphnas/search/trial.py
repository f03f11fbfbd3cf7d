"""What a search is made of: proposals, trials, spaces and searchers. Pure values and the protocols over them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from morphnas.graph import Graph, Limits, Morph
from morphnas.graph.morphs import candidates
from morphnas.search.distance import Sketch, sketch
from morphnas.train.recipe import Outcome, Recipe

STOPPED = "stopped"
"""What is said to be wrong with a training that a stop has ended."""


@dataclass(frozen=True)
class Proposal:
    """What to train next.

    start: a graph, trained from fresh weights (or from those that the run was given for it), or the id of a finished
        trial, whose weights are inherited.
    morphs: edits of the start, in order; none with a trial as start means to train that network on.
    why: for people: what made the searcher propose this, as JSON values (NumPy's numbers and arrays become such);
        numbers must be finite.

    ValueError for what is none of these.
    """

    start: Graph | int
    morphs: tuple[Morph, ...]
    recipe: Recipe
    why: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.start, np.integer):
            object.__setattr__(self, "start", int(self.start))
        if isinstance(self.start, bool) or not isinstance(self.start, (Graph, int)):
            raise ValueError(f"the start of a proposal must be a Graph or the id of a trial, not {self.start!r:.100}")
        if not isinstance(self.morphs, (tuple, list)) or not all(isinstance(one, Morph) for one in self.morphs):
            raise ValueError(f"the morphs of a proposal must be a tuple of Morphs, not {self.morphs!r:.100}")
        object.__setattr__(self, "morphs", tuple(self.morphs))
        if not isinstance(self.recipe, Recipe):
            raise ValueError(f"the recipe of a proposal must be a Recipe, not {self.recipe!r:.100}")
        try:
            why = json.loads(json.dumps(dict(self.why), default=_plain, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(f"the why of a proposal must hold JSON values: {error}") from None
        object.__setattr__(self, "why", why)

    @property
    def parent(self) -> int | None:
        """Id of the trial whose weights are inherited; None: it starts from a graph."""
        return None if isinstance(self.start, Graph) else self.start

    @property
    def trains_on(self) -> bool:
        """Whether it is of a network that has been trained, and is not changed."""
        return self.parent is not None and not self.morphs


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{value!r:.100} is none")


@dataclass(frozen=True, repr=False)
class Trial:
    """A proposal that was taken up. outcome: None while it runs. kept: whether its weights are there to start from.

    since: id of the first trial that the same driver took up. begun: seconds from then to when it took up this one;
    None: not known.
    """

    id: int
    proposal: Proposal
    graph: Graph
    outcome: Outcome | None = None
    kept: bool = False
    since: int = field(default=0, compare=False)
    begun: float | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        start = "" if self.parent is None else f", from {self.parent}"
        morphs = "".join(f", {morph}" for morph in self.proposal.morphs)
        score = "" if self.score is None else f", score {self.score:.4g}"
        status = "running" if self.outcome is None else self.outcome.status
        return f"Trial({self.id}{start}{morphs}, {self.graph.parameters} parameters, {status}{score})"

    @property
    def final(self) -> bool:
        """Whether it is a training of the final model, not one of the search's."""
        return "final" in self.proposal.why

    @property
    def cut_short(self) -> bool:
        """Whether it is one of the search's that a stop has ended: it can be used, and be gone on with."""
        return not self.final and self.outcome is not None and self.outcome.error == STOPPED

    @property
    def scored_by(self) -> int:
        """Id of the trial whose score says how good the network is: its own, or, after a training on the examples that
        are to tell, that of the network it was before."""
        told = self.proposal.why.get("score_of")
        return told if self.final and isinstance(told, int) else self.id

    @property
    def score(self) -> float | None:
        """Higher is better; None while it runs and when nothing could be scored."""
        return None if self.outcome is None else self.outcome.score

    @cached_property
    def sketch(self) -> Sketch:
        """What the distance looks at in its network."""
        return sketch(self.graph)

    @property
    def slow(self) -> bool:
        """Whether its network takes longer for an example than it may, so that it cannot win."""
        return self.outcome is not None and self.outcome.slow

    @property
    def parent(self) -> int | None:
        """Id of the trial it started from."""
        return self.proposal.parent

    @property
    def epochs(self) -> int:
        """Epochs of its own that it was meant to train."""
        return self.proposal.recipe.epochs


@dataclass(frozen=True)
class Budget:
    """What remains of the budget when a proposal is asked for.

    seconds: of the search. trials: how many more; None: any number. seconds_per_flop: predicted seconds of one epoch
    for every FLOP of a network's `work`.
    """

    seconds: float
    trials: int | None = None
    seconds_per_flop: float = 0.0

    @property
    def over(self) -> bool:
        """Whether the budget allows no trial at all."""
        return self.seconds <= 0 or (self.trials is not None and self.trials <= 0)

    def predict(self, graph: Graph, epochs: int) -> float:
        """Seconds that a training is expected to take."""
        return epochs * graph.work * self.seconds_per_flop


class Space(Protocol):
    """The networks that can be reached: some to start from, and from every one its neighbours."""

    @property
    def starts(self) -> Sequence[Graph]: ...

    def neighbours(self, graph: Graph) -> Iterable[Morph]:
        """Morphs to try on the graph, in a fixed order. One that does not fit raises MorphError when it is grown."""
        ...


@dataclass(frozen=True)
class MorphSpace:
    """Everything that morphs of the allowed kinds can make from the starts."""

    starts: tuple[Graph, ...]
    morphs: tuple[str, ...] = Limits.morphs

    def neighbours(self, graph: Graph) -> Iterable[Morph]:
        return candidates(graph, self.morphs)


class Searcher(Protocol):
    """Says what to train next, given all trials so far: a pure function of its settings and its arguments."""

    def ask(self, trials: Sequence[Trial], budget: Budget) -> Proposal | None:
        """The next proposal, or None when there is nothing left to propose within the limits and the budget.

        trials: in the order of their ids, running ones (outcome None) included. Asked again with equal arguments a
        searcher answers alike: its random numbers come from its seed and len(trials).
        """
        ...


def check_numbers(searcher: Any, *from_zero: str) -> None:
    """ValueError that names a number among a searcher's settings, a dataclass's, which cannot be.

    Whole numbers are 1 at least, but for the seed and those named; others are 0 at least. NumPy's become Python's.
    """
    for setting in fields(searcher):
        default, value = setting.default, getattr(searcher, setting.name)
        if not isinstance(default, (int, float, tuple)):
            continue
        several = isinstance(default, tuple)
        whole = not isinstance(default, float)
        low = int(whole and setting.name not in ("seed", *from_zero))
        given = (value if isinstance(value, (list, tuple)) else ()) if several else [value]
        numbers = [n.item() if isinstance(n, np.generic) else n for n in given]
        kinds = (int,) if whole else (int, float)
        if not (
            numbers and all(isinstance(n, kinds) and not isinstance(n, bool) and low <= n < np.inf for n in numbers)
        ):
            kind = f"{'whole' if whole else 'finite'} number{'s' if several else ''} of at least {low}"
            raise ValueError(f"{setting.name} must be {'' if several else 'a '}{kind}, not {value!r:.100}")
        object.__setattr__(searcher, setting.name, tuple(numbers) if several else numbers[0])


def grown(proposal: Proposal, graphs: Mapping[int, Graph]) -> Graph:
    """The graph that a proposal describes, given those of the trials it may start from."""
    if not isinstance(proposal.start, Graph) and proposal.start not in graphs:
        raise ValueError(f"it starts from trial {proposal.start}, which is not there")
    graph = proposal.start if isinstance(proposal.start, Graph) else graphs[proposal.start]
    for morph in proposal.morphs:
        graph = morph.grow(graph)
    return graph


def lineage(trials: Sequence[Trial], trial: Trial) -> list[Trial]:
    """The trial's ancestors, oldest first, and itself; from one on whose parent is not there, as it cannot be read.

    ValueError where trials are ancestors of themselves.
    """
    by_id = {t.id: t for t in trials}
    line = {trial.id: trial}
    while (parent := trial.parent) is not None and parent in by_id:
        if parent in line:
            raise ValueError(f"the parents of trial {parent} lead in a circle back to it")
        trial = line[parent] = by_id[parent]
    return [*line.values()][::-1]


def comparable(trials: Sequence[Trial], data: str) -> list[Trial]:
    """Those with a score of what the first score is of, the search's, and on the same data: a final training may be for
    another metric or loss than the search was, or on other examples. data: the name of the search's."""
    alike = [trial for trial in trials if not trial.final or trial.proposal.why.get("data") == data]
    scored = [(trial, trial.outcome.objective) for trial in alike if trial.outcome and trial.score is not None]
    return [trial for trial, objective in scored if objective == scored[0][1]]
