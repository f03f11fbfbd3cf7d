"""Predicting the number of networks of a search, its disk space and memory, from the plan and the trials so far."""

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
from morphnas.run.plan import MAX_GROWTH, Plan
from morphnas.run.search import seconds_per_flop
from morphnas.run.store import Store
from morphnas.search import Patient, Pretrained, Promote, winner
from morphnas.search.candidates import memory_ratio
from morphnas.search.halving import HalvingSearcher
from morphnas.search.trial import Searcher, Trial
from morphnas.search.tuned import Tuned
from morphnas.train.recipe import Outcome

log = logging.getLogger("morphnas")

MEASURED_UNCERTAINTY = 1.25
"""Factor by which networks may take more or less time than predicted, if the times of some were measured."""
PLANNED_UNCERTAINTY = 2.0
"""The same if predictions are made from the plan alone."""
GROWTH = 0.4
"""Growth of the work from one child to the next, as a share of that of the network that the first one is made of."""
SLOW_GROWTH, FAST_GROWTH = 0.15, 1.2
"""Lower and higher growth for the range of expectations: it differs that much between runs."""
MAX_GROWTH_FACTOR = 10.0
"""Largest work of children, relative to the network that the first one is made of."""
RECENT_CHILDREN = 3
"""Number of the last children whose sizes predict that of the next one."""
MIN_CHILD_FACTOR = 1.15
"""Least work of a child, relative to the smallest starter."""
FITTED_SHARE = 0.75
"""Share of the time left for a network that is chosen because larger ones do not fit into that time."""
DEFAULT_OVERHEAD = 0.1
"""Seconds between two networks, for proposing, checking and storing them, assumed until they are measured."""
BYTES_PER_TRIAL = 20_000
"""Size of a trial's files without its weights."""
MAX_FINALS = 4
"""Maximum number of final trainings, each of which stores weights; the model has its own file of them."""
SMALL_WIDTH = 8
"""Width of starters that leaves time for more networks in a search."""
MAX_REPORT_DELAY = 60.0
"""Seconds after which the expectation is reported, even if few networks are measured yet."""
UPDATE_INTERVAL = 30.0
"""Seconds between two updates of the expectation in run.json."""
MAX_NETWORKS = 10_000
"""Largest number of networks that is predicted."""
MAX_TIME_LIMIT = 30 * 24 * 3600.0
"""Largest time limit in seconds that `seconds_for_search` tries."""


@dataclass(frozen=True)
class Expectation:
    """What is expected of a search.

    networks: number in all, including those that are done; fewest, most: its range. measured: number of finished
    trials, which times are predicted from; 0: from the plan alone. seconds_per_network: mean, of one worker.
    final_share: share of the time for the final trainings. disk: bytes that the run folder will have; to_write: those
    of them that are still to be written; free: bytes that are free on its disk. memory: bytes that this process and its
    workers need, or on a GPU the examples and trainings. for_search: seconds of a time limit that has room for a search
    (`MIN_SEARCH_NETWORKS` networks, see `morphnas.run.plan`); None: this one has, or none that is known. small: whether
    starters of width `SMALL_WIDTH` would leave time for a search in this limit.
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
    """How a searcher promotes networks: one of every `keep` is trained for `factor` times as many epochs, up to `rungs`
    times, if that takes at most a `share` of the time left. No rungs: there are no promotions."""

    factor: int = 1
    keep: int = 1
    rungs: int = 0
    share: float = 0.0

    @staticmethod
    def of(searcher: Searcher) -> Ladder:
        if isinstance(searcher, Patient | Pretrained | Tuned):
            return Ladder.of(searcher.searcher)
        if isinstance(searcher, HalvingSearcher):
            return Ladder(searcher.factor, searcher.factor, searcher.rungs, Promote.share)
        if isinstance(searcher, Promote):
            return Ladder(searcher.factor, searcher.keep, searcher.rungs, searcher.share)
        return Ladder()


@dataclass(frozen=True)
class SearchConditions:
    """The conditions of a search beside its plan.

    max_trials: of the search; None: unlimited. finals: whether the winner is trained longer. workers: number that train
    at a time. separate_processes: whether they are other processes. ladder: promotions. keep: number of networks whose
    weights are kept; None: all. data: bytes of memory for the examples. for_search, small: see `Expectation`.
    """

    max_trials: int | None = None
    finals: bool = True
    workers: int = 1
    separate_processes: bool = False
    ladder: Ladder = Ladder()
    keep: int | None = None
    data: int = 0
    for_search: float | None = None
    small: bool = False


def expectation(
    plan: Plan,
    trials: Sequence[Trial],
    left: float,
    conditions: SearchConditions,
    *,
    free: int,
    process: int = 0,
    overhead: float | None = None,
) -> Expectation:
    """What to expect of a search that has these trials and so many seconds left.

    free: bytes that are free on the disk. process: bytes of memory of this process, with the examples; 0: only a GPU's
    memory counts. overhead: seconds between two trials; None: not measured yet.
    """
    data, workers, ladder = conditions.data, conditions.workers, conditions.ladder
    searched = [trial for trial in trials if not trial.final]
    done = [trial for trial in searched if trial.outcome is not None]
    pace = seconds_per_flop(searched, plan.seconds_per_flop)
    epochs = plan.recipe.epochs
    untried = {graph.key: graph for graph in plan.starts}
    for trial in searched:
        untried.pop(trial.graph.key, None)
    finished = [t.outcome for t in done if t.outcome is not None and t.outcome.status == "finished"]
    per_flop = epochs * pace
    base_work, max_growth = _child_work(plan, done)
    upcoming = _Upcoming(
        starts=tuple(per_flop * graph.work for graph in untried.values()),
        child=per_flop * base_work,
        max_growth=max_growth,
        smallest=MIN_CHILD_FACTOR * per_flop * min(graph.work for graph in plan.starts),
        overhead=DEFAULT_OVERHEAD if overhead is None else overhead,
        workers=workers,
        ladder=ladder,
        on_rung=tuple(sum(t.epochs == epochs * ladder.factor**rung for t in done) for rung in range(ladder.rungs + 1)),
    )
    trials_left = math.inf if conditions.max_trials is None else max(0, conditions.max_trials - len(done))
    graphs = [*(t.graph for t in searched), *plan.starts]
    training = max(_training_bytes(plan, trials, graph) for graph in graphs)
    if not process:
        memory = data + workers * MAX_GROWTH * training
    elif conditions.separate_processes:
        memory = process + workers * (process - data + MAX_GROWTH * training)
    else:
        memory = process + (MAX_GROWTH - 1) * training
    seconds = upcoming.seconds(left, trials_left)
    uncertainty = MEASURED_UNCERTAINTY if finished else PLANNED_UNCERTAINTY
    networks = len(done) + len(seconds)
    fewest = len(done) + len(upcoming.seconds(left, trials_left, uncertainty, FAST_GROWTH))
    most = len(done) + len(upcoming.seconds(left, trials_left, 1 / uncertainty, SLOW_GROWTH))
    if networks == len(done):  # one is started however short the time
        networks = max(networks, 1)
    mean_weights = statistics.mean(map(weight_bytes, graphs))
    written = sum(weight_bytes(t.graph) for t in trials if t.kept)
    mean_seconds = per_flop * statistics.mean(graph.work for graph in graphs)
    kept = written + mean_weights * max(float(len(seconds)), sum(seconds) / mean_seconds if mean_seconds else 0.0)
    if conditions.keep is not None:
        kept = min(kept, mean_weights * (conditions.keep * (ladder.rungs + 1) + 2))
    largest = max(map(weight_bytes, graphs))
    disk = kept + networks * BYTES_PER_TRIAL + largest * (1 + (MAX_FINALS if conditions.finals else 0))
    all_seconds = [*seconds, *(outcome.seconds for outcome in finished)]
    return Expectation(
        networks=networks,
        fewest=min(fewest, networks),
        most=max(most, networks),
        measured=len(finished),
        seconds_per_network=statistics.mean(all_seconds) if all_seconds else per_flop * base_work,
        final_share=1 - plan.search_share if conditions.finals else 0.0,
        disk=int(disk),
        to_write=int(max(0, disk - written)),
        free=free,
        memory=int(memory),
        for_search=conditions.for_search,
        small=conditions.small,
    )


def _training_bytes(plan: Plan, trials: Sequence[Trial], graph: Graph) -> float:
    """Bytes of memory for training a graph."""
    batch = plan.recipe.batch_size
    micro = micro_batch(graph, batch, plan.limits.max_memory, trials) or batch
    return memory_ratio(trials) * graph.peak_bytes(micro)


def _child_work(plan: Plan, done: Sequence[Trial]) -> tuple[float, float]:
    """The work of the network that the next child is made of, and the factor up to which children may still grow.

    The work is the mean of the last children's, or else that of the best network so far, or else the starters' mean.
    """
    recent = [t.graph for t in done if t.proposal.morphs][-RECENT_CHILDREN:]
    best = winner(done)
    graphs = recent or ([best.graph] if best is not None else list(plan.starts))
    work = statistics.mean(graph.work for graph in graphs)
    cap = math.inf if plan.limits.max_work is None else plan.limits.max_work / work
    return work, max(1.0, min(MAX_GROWTH_FACTOR, cap))


@dataclass(frozen=True)
class _Upcoming:
    """The networks that a search will still train: the remaining starters, then children, some of which are promoted.

    starts: seconds of each starter. child: seconds of the network that the first child is made of; children grow by a
    share of that, up to `max_growth` times. smallest: seconds of the smallest child. overhead: seconds between two
    networks. on_rung: trials so far on each rung of the ladder.
    """

    starts: tuple[float, ...]
    child: float
    max_growth: float
    smallest: float
    overhead: float
    workers: int
    ladder: Ladder
    on_rung: tuple[int, ...]

    def seconds(self, limit: float, trials_left: float, factor: float = 1.0, growth: float = GROWTH) -> list[float]:
        """Seconds of each network that is trained within the limit, if all take `factor` times as long as predicted.

        If the next child is too large for the time left, a smaller one is assumed that fits.
        """
        waiting, on_rung, left = list(self.starts)[::-1], list(self.on_rung), limit * self.workers
        costs: list[float] = []
        children = 0
        while left > 0 and len(costs) < min(trials_left, MAX_NETWORKS):
            room = left / self.workers
            if waiting:
                if (cost := factor * waiting.pop()) > room:
                    continue
                rung = 0
            else:
                child = factor * self.child * min(self.max_growth, 1 + growth * (children + 1))
                rung = self._promoted_to(on_rung, child, left)
                cost = child * self.ladder.factor**rung
                if cost > room:
                    cost = max(factor * self.smallest, FITTED_SHARE * room)
                if cost > room:
                    break
                children += not rung
            left -= cost + self.overhead
            costs.append(cost)
            on_rung[rung] += 1
        return costs

    def _promoted_to(self, on_rung: Sequence[int], child: float, left: float) -> int:
        """The rung that the next training promotes a network to; 0: it is no promotion."""
        for rung in reversed(range(self.ladder.rungs)):
            cost = child * self.ladder.factor ** (rung + 1)
            due = on_rung[rung] // self.ladder.keep > on_rung[rung + 1]
            if due and cost * self.workers <= self.ladder.share * left:
                return rung + 1
        return 0


def weight_bytes(graph: Graph) -> int:
    """Size of a network's weights on disk."""
    return 4 * sum(map(math.prod, graph.weight_shapes.values()))


def seconds_for_search(planned: Callable[[float], Plan], seconds: float) -> float | None:
    """The first of growing time limits, from `seconds` on, whose plan has a search and not only starters.

    planned: returns the plan for a limit. None if the plan for `seconds` has one, or no plan up to a month has.
    """
    if planned(seconds).searches:
        return None
    limit = seconds
    while (limit := 1.25 * limit) < MAX_TIME_LIMIT:
        if planned(limit).searches:
            return limit
    return None


@dataclass
class ExpectationReporter:
    """An observer that reports what is expected of the search once, and keeps run.json up to date with it.

    It is passed to `report` at the end of a trial once three trials (or as many as there are starters) have ended, or a
    minute or a quarter of the time has passed, or at the end of an epoch after a minute. There is a warning if the disk
    is too small. left: returns the seconds that the search has left. gpu: whether the memory that counts is a GPU's.
    """

    store: Store
    plan: Plan
    left: Callable[[], float]
    conditions: SearchConditions
    report: Callable[[str], None]
    gpu: bool = False
    clock: Callable[[], float] = time.monotonic
    reported: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._start = self._noted = self.clock()
        self._delay = min(MAX_REPORT_DELAY, 0.25 * self.left())
        self._before = {trial.id for trial in self.store.trials}
        self._started: dict[int, float] = {}

    def now(self) -> Expectation:
        """What is expected now."""
        trials = self.store.trials
        ended = [t.outcome for t in trials if t.outcome is not None and t.id not in self._before]
        overhead = None
        if len(ended) > 1:
            now = self.clock()
            available = sum(now - start for start in sorted(self._started.values())[: self.conditions.workers])
            worked = sum(outcome.seconds for outcome in ended)
            worked += sum(now - self._started[t.id] for t in trials if t.outcome is None and t.id in self._started)
            overhead = max(0.0, available - worked) / len(ended)
        free, process = shutil.disk_usage(self.store.path).free, 0 if self.gpu else peak_memory()
        return expectation(
            self.plan, trials, self.left(), self.conditions, free=free, process=process, overhead=overhead
        )

    def trial_begins(self, trial: Trial) -> None:
        self._started[trial.id] = self.clock()

    def epoch_done(self, trial: Trial, outcome: Outcome) -> None:
        if not self.reported and self.clock() - self._start >= MAX_REPORT_DELAY and not trial.final:
            self._report()

    def trial_ends(self, trial: Trial) -> None:
        if trial.final:
            return
        measured = sum(t.outcome is not None for t in self.store.trials)
        enough = measured >= min(3, len(self.plan.starts)) or self.clock() - self._start >= self._delay
        if not self.reported and enough:
            self._report()
        elif self.reported and self.clock() - self._noted >= UPDATE_INTERVAL:
            self._note(self.now())

    def _report(self) -> None:
        self.reported = True
        expected = self.now()
        self._note(expected)
        self.report(str(expected))
        if expected.to_write > expected.free:
            to_write, free = _bytes(expected.to_write), _bytes(expected.free)
            hint = ": keep=5 keeps only the weights of the best networks" if self.conditions.keep is None else ""
            text = f"the run is expected to write {to_write} more, but {free} are free on the disk of"
            warnings.warn(f"{text} {str(self.store.path)!r}{hint}", stacklevel=2)
        if expected.networks == 1 and len(self.plan.starts) > 1 and self.conditions.max_trials is None:
            seconds = expected.for_search
            hint = "" if seconds is None else f"; a search needs a limit of about {_seconds(seconds)}"
            log.warning("there is only time for one network, without any comparison%s", hint)

    def _note(self, expected: Expectation) -> None:
        self._noted = self.clock()
        self.store.update_about(expected=expected.to_json())


def peak_memory() -> int:
    """Peak memory of this process in bytes; 0 on systems that do not report it."""
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
