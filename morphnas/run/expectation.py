"""What a search will come to: networks, disk and memory, foretold from the plan and from the trials so far."""

from __future__ import annotations

import logging
import math
import shutil
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from morphnas.graph import Graph
from morphnas.run.jobs import micro_batch
from morphnas.run.plan import GROWN, Plan
from morphnas.run.search import seconds_per_flop
from morphnas.run.store import Store
from morphnas.search import Patient, Promote, winner
from morphnas.search.candidates import memory_ratio
from morphnas.search.halving import HalvingSearcher
from morphnas.search.trial import Searcher, Trial
from morphnas.search.tuned import Tuned
from morphnas.train.recipe import Outcome

log = logging.getLogger("morphnas")

SURE = 1.25
"""How many times as long, or as short, networks may take as is thought, where some have been measured."""
UNSURE = 2.0
"""The same where there is the plan alone."""
GROWTH = 0.4
"""By how much of the network that children are made of each is larger than the one before."""
SLOW, FAST = 0.15, 1.2
"""The same where the search grows its networks less, and more: it differs that much from run to run."""
LARGEST = 10.0
"""How many times as large as that network they become at most."""
LATE = 3
"""Children whose sizes say how large the next one will be."""
SMALL = 1.15
"""How much larger than the smallest start a child is at least."""
FITTED = 0.75
"""Share of the time left that the network takes which is chosen to fit into it."""
OVERHEAD = 0.1
"""Seconds between two networks, before they are measured: asking, proving, writing down."""
FILES = 20_000
"""Bytes of a trial's files beside its weights."""
FINALS = 4
"""Trainings of the final model, at most, each of which has weights; the model has them once more."""
SMALL_WIDTH = 8
"""Of the first networks, where a search is to have time for more of them."""
SOON = 60.0
"""Seconds after which people are told, though not all first networks are measured yet."""
OFTEN = 30.0
"""Seconds between two looks that are written down."""
MOST = 10_000
"""Networks that are counted, at most."""
LONGEST = 30 * 24 * 3600.0
"""Seconds of a limit that is looked at."""


@dataclass(frozen=True)
class Expectation:
    """What is expected of a search.

    networks: in all, those done included; fewest, most: the range they are in. measured: trials that this rests on; 0:
    on the plan alone. seconds_per_network: of a worker, on the average. final_share: of the time, for training the
    final model. disk: bytes that the run's folder comes to; to_write: of them, those not written yet; free: left on its
    disk now. memory: bytes that this process and its workers come to, or, of a GPU, examples and trainings. for_search:
    seconds that a limit should have for a search of 8 networks or more; None: this is one, or none is known to. small:
    whether first networks of width `SMALL_WIDTH` leave time for one in this limit.
    """

    networks: int
    fewest: int
    most: int
    measured: int
    seconds_per_network: float
    final_share: float
    disk: int
    to_write: int
    free: int
    memory: int
    for_search: float | None = None
    small: bool = False

    def __str__(self) -> str:
        spread = f" ({self.fewest:,} to {self.most:,})" if self.most > self.fewest else ""
        networks = f"about {self.networks:,} network{'s' if self.networks != 1 else ''}{spread} of"
        final = f", then {self.final_share:.0%} of the time for the final model" if self.final_share else ""
        rest = f"{final}; {_bytes(self.disk)} of disk, {_bytes(self.memory)} of memory"
        lines = [f"expected: {networks} {_seconds(self.seconds_per_network)} each{rest}"]
        if self.for_search is not None:
            only = "only the first networks are compared, which gains more in this time than a search"
            small = f', or small networks: searcher_args={{"default_model_width": {SMALL_WIDTH}}}' if self.small else ""
            lines.append(f"{only}; a search needs a limit of about {_seconds(self.for_search)}{small}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Ladder:
    """How a searcher trains networks on: of every `keep` one, for `factor` times as long, up to `rungs` times, where
    that takes at most a `share` of the time left. No rungs: not at all."""

    factor: int = 1
    keep: int = 1
    rungs: int = 0
    share: float = 0.0

    @staticmethod
    def of(searcher: Searcher) -> Ladder:
        if isinstance(searcher, Patient | Tuned):
            return Ladder.of(searcher.searcher)
        if isinstance(searcher, HalvingSearcher):
            return Ladder(searcher.factor, searcher.factor, searcher.rungs, Promote.share)
        if isinstance(searcher, Promote):
            return Ladder(searcher.factor, searcher.keep, searcher.rungs, searcher.share)
        return Ladder()


@dataclass(frozen=True)
class Terms:
    """What a search is carried out under, beside its plan.

    max_trials: of the search; None: any number. finals: whether the winner is trained longer. workers: at a time.
    apart: whether they are other processes. ladder: how networks are trained on. keep: whose weights stay, so many;
    None: all. data: bytes that the examples take of memory. for_search, small: see `Expectation`.
    """

    max_trials: int | None = None
    finals: bool = True
    workers: int = 1
    apart: bool = False
    ladder: Ladder = Ladder()
    keep: int | None = None
    data: int = 0
    for_search: float | None = None
    small: bool = False


def expectation(
    plan: Plan,
    trials: Sequence[Trial],
    left: float,
    terms: Terms,
    *,
    free: int,
    process: int = 0,
    overhead: float | None = None,
) -> Expectation:
    """What to expect of a search that has come to these trials and has so many seconds left.

    free: bytes on the disk. process: that this process takes of memory, with the examples; 0: that does not matter,
    they are on a GPU. overhead: seconds between two trials; None: not measured yet.
    """
    data, workers, ladder = terms.data, terms.workers, terms.ladder
    searched = [trial for trial in trials if not trial.final]
    done = [trial for trial in searched if trial.outcome is not None]
    pace = seconds_per_flop(searched, plan.seconds_per_flop)
    epochs, rest = plan.recipe.epochs, OVERHEAD if overhead is None else overhead
    new = {graph.key: graph for graph in plan.starts}
    for trial in searched:
        new.pop(trial.graph.key, None)
    ended = [t.outcome for t in done if t.outcome is not None and t.outcome.status == "finished"]
    unit = epochs * pace
    starts = [unit * graph.work for graph in new.values()]
    least = SMALL * unit * min(graph.work for graph in plan.starts)
    first, grown = _children(plan, done)
    climbed = [sum(t.epochs == epochs * ladder.factor**level for t in done) for level in range(ladder.rungs + 1)]
    coming = _Coming(tuple(starts), unit * first, grown, least, rest, workers, ladder, tuple(climbed))
    most = math.inf if terms.max_trials is None else max(0, terms.max_trials - len(done))
    graphs = [*(t.graph for t in searched), *plan.starts]
    training = max(_training(plan, trials, graph) for graph in graphs)
    if not process:
        memory = data + workers * GROWN * training
    elif terms.apart:
        memory = process + workers * (process - data + GROWN * training)
    else:
        memory = process + (GROWN - 1) * training
    come, sure = coming.within(left, most), SURE if ended else UNSURE
    networks = len(done) + len(come)
    few = len(done) + len(coming.within(left, most, sure, FAST))
    many = len(done) + len(coming.within(left, most, 1 / sure, SLOW))
    if networks == len(done):  # one is begun however short the time
        networks = max(networks, 1)
    weights = statistics.mean(map(weight_bytes, graphs))
    there = sum(weight_bytes(t.graph) for t in trials if t.kept)
    usual = unit * statistics.mean(graph.work for graph in graphs)
    kept = there + weights * max(float(len(come)), sum(come) / usual if usual else 0.0)
    if terms.keep is not None:
        kept = min(kept, weights * (terms.keep * (ladder.rungs + 1) + 2))
    largest = max(map(weight_bytes, graphs))
    disk = kept + networks * FILES + largest * (1 + (FINALS if terms.finals else 0))
    return Expectation(
        networks=networks,
        fewest=min(few, networks),
        most=max(many, networks),
        measured=len(ended),
        seconds_per_network=(
            statistics.mean([*come, *(outcome.seconds for outcome in ended)]) if come or ended else unit * first
        ),
        final_share=1 - plan.search_share if terms.finals else 0.0,
        disk=int(disk),
        to_write=int(max(0, disk - there)),
        free=free,
        memory=int(memory),
        for_search=terms.for_search,
        small=terms.small,
    )


def _training(plan: Plan, trials: Sequence[Trial], graph: Graph) -> float:
    """Bytes that training a graph takes."""
    batch = plan.recipe.batch_size
    micro = micro_batch(graph, batch, plan.limits.max_memory, trials) or batch
    return memory_ratio(trials) * graph.peak_bytes(micro)


def _children(plan: Plan, done: Sequence[Trial]) -> tuple[float, float]:
    """Work of the network that the next child is made of, and how many times as large children may become yet.

    The children of late say that, or else the best network so far, or else the starts on the average.
    """
    late = [t.graph for t in done if t.proposal.morphs][-LATE:]
    best = winner(done)
    graphs = late or ([best.graph] if best is not None else list(plan.starts))
    work = statistics.mean(graph.work for graph in graphs)
    cap = math.inf if plan.limits.max_work is None else plan.limits.max_work / work
    return work, max(1.0, min(LARGEST, cap))


@dataclass(frozen=True)
class _Coming:
    """The networks that a search has before it: the starts that are left, then children, of which some are trained on.

    starts: seconds of each. child: of what the first child is made of; each child is larger by a part of that, until it
    is so many times as large (grown). least: of the smallest network there is. overhead: between two. climbed: trials
    so far on each rung of the ladder.
    """

    starts: tuple[float, ...]
    child: float
    grown: float
    least: float
    overhead: float
    workers: int
    ladder: Ladder
    climbed: tuple[int, ...]

    def within(self, seconds: float, most: float, factor: float = 1.0, growth: float = GROWTH) -> list[float]:
        """Seconds of each network that there is time for, at most so many, if all take `factor` times as long.

        Where the next child is too large, one is found that fits.
        """
        waiting, there, left = list(self.starts)[::-1], list(self.climbed), seconds * self.workers
        costs: list[float] = []
        children = 0
        while left > 0 and len(costs) < min(most, MOST):
            room = left / self.workers
            if waiting:
                if (cost := factor * waiting.pop()) > room:
                    continue
                level = 0
            else:
                child = factor * self.child * min(self.grown, 1 + growth * (children + 1))
                level = self._promoted(there, child, left)
                cost = child * self.ladder.factor**level
                if cost > room:
                    cost = max(factor * self.least, FITTED * room)
                if cost > room:
                    break
                children += not level
            left -= cost + self.overhead
            costs.append(cost)
            there[level] += 1
        return costs

    def _promoted(self, there: Sequence[int], child: float, left: float) -> int:
        """The rung that a network is trained on for next; 0: none is."""
        for rung in reversed(range(self.ladder.rungs)):
            longer = child * self.ladder.factor ** (rung + 1)
            if there[rung] // self.ladder.keep > there[rung + 1] and longer * self.workers <= self.ladder.share * left:
                return rung + 1
        return 0


def weight_bytes(graph: Graph) -> int:
    """Bytes that a network's weights take on disk."""
    return 4 * sum(map(math.prod, graph.weight_shapes.values()))


def seconds_for_search(planned: Callable[[float], Plan], seconds: float) -> float | None:
    """The first of growing limits, from `seconds` on, whose plan is a search and not only its first networks.

    planned: the plan for a limit. None: this is one, or none is found within a month.
    """
    if planned(seconds).searches:
        return None
    limit = seconds
    while (limit := 1.25 * limit) < LONGEST:
        if planned(limit).searches:
            return limit
    return None


@dataclass
class Forecast:
    """An observer that works the expectation out, tells it once, and keeps the one in run.json up to date.

    It is told to `tell` when the first networks are measured, or after a minute, or a quarter of the time. A warning
    says when the disk is too small for it. left: seconds that the search has. gpu: whether the memory that matters is a
    GPU's.
    """

    store: Store
    plan: Plan
    left: Callable[[], float]
    terms: Terms
    tell: Callable[[str], None]
    gpu: bool = False
    clock: Callable[[], float] = time.monotonic
    told: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._begun = self._noted = self.clock()
        self._soon = min(SOON, 0.25 * self.left())
        self._before = {trial.id for trial in self.store.trials}
        self._begins: dict[int, float] = {}

    def now(self) -> Expectation:
        """What is expected as things stand."""
        trials = self.store.trials
        mine = [t.outcome for t in trials if t.outcome is not None and t.id not in self._before]
        overhead = None
        if len(mine) > 1:
            now = self.clock()
            there = sum(now - begun for begun in sorted(self._begins.values())[: self.terms.workers])  # of all workers
            worked = sum(outcome.seconds for outcome in mine)
            worked += sum(now - self._begins[t.id] for t in trials if t.outcome is None and t.id in self._begins)
            overhead = max(0.0, there - worked) / len(mine)
        free, process = shutil.disk_usage(self.store.path).free, 0 if self.gpu else peak_memory()
        return expectation(self.plan, trials, self.left(), self.terms, free=free, process=process, overhead=overhead)

    def trial_begins(self, trial: Trial) -> None:
        self._begins[trial.id] = self.clock()

    def epoch_done(self, trial: Trial, outcome: Outcome) -> None:
        if not self.told and self.clock() - self._begun >= SOON and not trial.final:
            self._tell()

    def trial_ends(self, trial: Trial) -> None:
        if trial.final:
            return
        measured = sum(t.outcome is not None for t in self.store.trials)
        if not self.told and (measured >= min(3, len(self.plan.starts)) or self.clock() - self._begun >= self._soon):
            self._tell()
        elif self.told and self.clock() - self._noted >= OFTEN:
            self._note(self.now())

    def _tell(self) -> None:
        self.told = True
        found = self.now()
        self._note(found)
        self.tell(str(found))
        if found.to_write > found.free:
            text = f"the run is expected to write {_bytes(found.to_write)} more, but {_bytes(found.free)} are free on"
            hint = ": keep=5 keeps only the weights of the best networks" if self.terms.keep is None else ""
            warnings.warn(f"{text} the disk of {str(self.store.path)!r}{hint}", stacklevel=2)
        if found.networks == 1 and len(self.plan.starts) > 1 and self.terms.max_trials is None:
            more = "" if found.for_search is None else f"; a search needs a limit of about {_seconds(found.for_search)}"
            log.warning("there is only time for one network, without any comparison%s", more)

    def _note(self, found: Expectation) -> None:
        self._noted = self.clock()
        self.store.note(expected=found.to_json())


def peak_memory() -> int:
    """Bytes of memory that this process has had at most; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # on Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _seconds(seconds: float) -> str:
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _bytes(size: float) -> str:
    """A size to three digits.

    >>> _bytes(999), _bytes(12_345), _bytes(4_560_000_000)
    ('999 bytes', '12.3 kB', '4.56 GB')
    """
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= 0.9995 * factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:.0f} bytes"
