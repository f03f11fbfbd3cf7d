"""Values and protocols of a search: proposals, trials, budgets, spaces and searchers."""

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
"""`Outcome.error` of a training that was ended by a request to stop."""


@dataclass(frozen=True)
class Proposal:
    """What to train next.

    start: a graph, trained from fresh weights (or from those that the run was given for it), or the id of a finished
        trial, whose weights are inherited.
    morphs: applied to the start, in order. With a trial as start and no morphs its training is continued.
    why: why the searcher proposed it, for users, as JSON values (NumPy's numbers and arrays are converted); numbers
        must be finite.

    ValueError if an argument is invalid.
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
        if not isinstance(self.morphs, (tuple, list)) or not all(isinstance(morph, Morph) for morph in self.morphs):
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
        """Id of the trial whose weights are inherited; None if the start is a graph."""
        return None if isinstance(self.start, Graph) else self.start

    @property
    def trains_on(self) -> bool:
        """Whether it continues the training of a trial's network without morphs."""
        return self.parent is not None and not self.morphs


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{value!r:.100} is not a JSON value")


@dataclass(frozen=True, repr=False)
class Trial:
    """A proposal that a driver process has started. outcome: None while it runs. kept: whether its weights are stored.

    driver_start: id of the first trial that the same driver started. started: seconds from the start of that trial to
    the start of this one; None if unknown.
    """

    id: int
    proposal: Proposal
    graph: Graph
    outcome: Outcome | None = None
    kept: bool = False
    driver_start: int = field(default=0, compare=False)
    started: float | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        start = "" if self.parent is None else f", from {self.parent}"
        morphs = "".join(f", {morph}" for morph in self.proposal.morphs)
        score = "" if self.score is None else f", score {self.score:.4g}"
        status = "running" if self.outcome is None else self.outcome.status
        return f"Trial({self.id}{start}{morphs}, {self.graph.parameters} parameters, {status}{score})"

    @property
    def final(self) -> bool:
        """Whether it is a final training, not part of the search."""
        return "final" in self.proposal.why

    @property
    def cut_short(self) -> bool:
        """Whether it is a trial of the search that a request to stop has ended: it can be used and be continued."""
        return not self.final and self.outcome is not None and self.outcome.error == STOPPED

    @property
    def scored_by(self) -> int:
        """Id of the trial whose score measures this network: its own, or, if it is a final training that included the
        validation set, that of the trial it continues."""
        source = self.proposal.why.get("score_of")
        return source if self.final and isinstance(source, int) else self.id

    @property
    def score(self) -> float | None:
        """Higher is better; None while it runs or if it could not be scored."""
        return None if self.outcome is None else self.outcome.score

    @cached_property
    def sketch(self) -> Sketch:
        """Its network as the edit distance sees it, see `morphnas.search.distance.sketch`."""
        return sketch(self.graph)

    @property
    def slow(self) -> bool:
        """Whether its network exceeds the latency limit, so that it cannot win."""
        return self.outcome is not None and self.outcome.slow

    @property
    def parent(self) -> int | None:
        """Id of the trial whose weights it inherited; None if it started from a graph."""
        return self.proposal.parent

    @property
    def epochs(self) -> int:
        """Planned epochs of its own, without those of its ancestors."""
        return self.proposal.recipe.epochs


@dataclass(frozen=True)
class Budget:
    """What remains of the search's budget when a proposal is requested.

    seconds: remaining. trials: how many more; None: any number. seconds_per_flop: predicted seconds of one epoch for
    every FLOP of a network's `work`.
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
    """A search space: networks to start from, and the neighbours of every network."""

    @property
    def starts(self) -> Sequence[Graph]: ...

    def neighbours(self, graph: Graph) -> Iterable[Morph]:
        """Morphs of the graph, in a fixed order. `grow` of one that does not fit raises MorphError."""
        ...


@dataclass(frozen=True)
class MorphSpace:
    """All networks that morphs of the given kinds can make from the starts."""

    starts: tuple[Graph, ...]
    morphs: tuple[str, ...] = Limits.morphs

    def neighbours(self, graph: Graph) -> Iterable[Morph]:
        return candidates(graph, self.morphs)


class Searcher(Protocol):
    """Proposes what to train next, given all trials so far: a pure function of its settings and its arguments."""

    def ask(self, trials: Sequence[Trial], budget: Budget) -> Proposal | None:
        """The next proposal; None if there is nothing to propose within the limits and the budget.

        trials: in the order of their ids, including running ones (outcome None). Equal arguments give equal proposals:
        random numbers come from the searcher's seed and len(trials).
        """
        ...


def check_numbers(searcher: Any, *from_zero: str) -> None:
    """Checks the settings of a searcher, a dataclass, whose defaults are numbers or tuples of numbers; ValueError that
    names an invalid one.

    Integers must be at least 1, except for the seed and those named in `from_zero`, which must be at least 0, as must
    floats. NumPy's numbers are converted to Python's.
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


def grow_proposal(proposal: Proposal, graphs: Mapping[int, Graph]) -> Graph:
    """The network of a proposal. graphs: networks of the trials that it may start from, by id. ValueError if its parent
    is not among them; MorphError if a morph does not fit."""
    if not isinstance(proposal.start, Graph) and proposal.start not in graphs:
        raise ValueError(f"it starts from trial {proposal.start}, which does not exist")
    graph = proposal.start if isinstance(proposal.start, Graph) else graphs[proposal.start]
    for morph in proposal.morphs:
        graph = morph.grow(graph)
    return graph


def lineage(trials: Sequence[Trial], trial: Trial) -> list[Trial]:
    """The trial's ancestors, oldest first, and the trial itself. It begins with a trial without a parent or, where a
    damaged trial is missing, with one whose parent is not among the trials.

    ValueError if a trial is its own ancestor.
    """
    by_id = {t.id: t for t in trials}
    line = {trial.id: trial}
    while (parent := trial.parent) is not None and parent in by_id:
        if parent in line:
            raise ValueError(f"trial {parent} is its own ancestor: the recorded parents form a cycle")
        trial = line[parent] = by_id[parent]
    return [*line.values()][::-1]


def comparable(trials: Sequence[Trial], data: str) -> list[Trial]:
    """The trials whose scores can be compared with those of the search: a final training may have another metric or
    loss, or other data. data: identifier of the search's data, as in `why["data"]` of the final trainings."""
    same_data = [trial for trial in trials if not trial.final or trial.proposal.why.get("data") == data]
    scored = [(trial, trial.outcome.objective) for trial in same_data if trial.outcome and trial.score is not None]
    return [trial for trial, objective in scored if objective == scored[0][1]]
