"""What a search will come to: networks, disk and memory, foretold from the plan and from the trials so far."""

from __future__ import annotations

import logging
import math
import shutil
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from morphnas.graph import Graph
from morphnas.run.keeping import is_final
from morphnas.run.plan import CHILD, GROWN, Plan
from morphnas.run.search import micro_batch, seconds_per_flop
from morphnas.run.store import Store
from morphnas.search import Promote
from morphnas.search.candidates import measured_memory
from morphnas.search.halving import HalvingSearcher
from morphnas.search.trial import Searcher, Trial
from morphnas.train.recipe import Outcome

log = logging.getLogger("morphnas")

SURE = 1.25
"""How far off the seconds of a network may be where some have been measured; and by the plan alone: """
UNSURE = 2.0
OVERHEAD = 0.1
"""Seconds between two networks, before they are measured: asking, proving, writing down."""
FILES = 20_000
"""Bytes of a trial's files beside its weights."""
FINALS = 4
"""Trainings of the final model, at most, each of which has weights; the model has them once more."""
SOON = 60.0
"""Seconds after which people are told, though not all first networks are measured yet."""
OFTEN = 30.0
"""Seconds between two looks that are written down."""
MOST = 100_000
LONGEST = 30 * 24 * 3600.0


@dataclass(frozen=True)
class Expectation:
    """What is expected of a search.

    networks: in all, those done included; fewest, most: the range they are in. measured: trials that this rests on; 0:
    on the plan alone. seconds_per_network: of a worker, on the average. final_share: of the time, for training the
    final model. disk: bytes that the run's folder comes to; to_write: of them, those not written yet; free: left on its
    disk now. memory: bytes that examples and trainings take at most, of a GPU where they are on one. for_search:
    seconds that a limit should have for a search of 8 networks or more; None: this is one, or none is known to.
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

    def __str__(self) -> str:
        spread = f" ({self.fewest:,} to {self.most:,})" if self.most > self.fewest else ""
        networks = f"about {self.networks:,} network{'s' if self.networks != 1 else ''}{spread} of"
        final = f", then {self.final_share:.0%} of the time for the final model" if self.final_share else ""
        rest = f"{final}; {_bytes(self.disk)} of disk, {_bytes(self.memory)} of memory"
        lines = [f"expected: {networks} {_seconds(self.seconds_per_network)} each{rest}"]
        if self.for_search is not None:
            lines.append(
                "only the first networks are compared, which gains more in this time than a search; a search begins at "
                f'about {_seconds(self.for_search)}, or with small networks, searcher_args={{"default_model_width": 8}}'
            )
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
        if isinstance(searcher, HalvingSearcher):
            return Ladder(searcher.factor, searcher.factor, searcher.rungs, Promote.share)
        if isinstance(searcher, Promote):
            return Ladder(searcher.factor, searcher.keep, searcher.rungs, searcher.share)
        return Ladder()


def expectation(
    plan: Plan,
    trials: Sequence[Trial],
    left: float,
    *,
    free: int,
    data: int = 0,
    overhead: float | None = None,
    max_trials: int | None = None,
    workers: int = 1,
    ladder: Ladder = Ladder(),
    keep: int | None = None,
    finals: bool = True,
    for_search: float | None = None,
) -> Expectation:
    """What to expect of a search that has come to these trials and has so many seconds left.

    free: bytes on the disk. data: that the examples take of memory. overhead: seconds between two trials; None: not
    measured yet. max_trials: of the search. workers: at a time. finals: whether the winner is trained longer.
    """
    searched = [trial for trial in trials if not is_final(trial)]
    done = [trial for trial in searched if trial.outcome is not None]
    pace = seconds_per_flop(searched, plan.seconds_per_flop)
    epochs, rest = plan.recipe.epochs, OVERHEAD if overhead is None else overhead
    new = {graph.key: graph for graph in plan.starts}
    for trial in searched:
        new.pop(trial.graph.key, None)
    starts = [epochs * graph.work * pace for graph in new.values()]
    ended = [(t.outcome, t.epochs) for t in done if t.outcome is not None and t.outcome.status == "finished"]
    costs = [outcome.seconds * epochs / meant for outcome, meant in ended]
    child = statistics.mean([*starts, *costs]) if starts or costs else 0.0
    most = math.inf if max_trials is None else max(0, max_trials - len(done))
    climbed = [sum(t.epochs == epochs * ladder.factor**level for t in done) for level in range(ladder.rungs + 1)]

    def more(factor: float) -> list[float]:
        """Seconds of each network still to come, if they take so many times as long as is thought."""
        return _rest([factor * cost for cost in starts], factor * child, rest, left, workers, ladder, climbed, most)

    come, sure = more(1.0), SURE if ended else UNSURE
    networks = len(done) + len(come)
    few, many = (len(done) + len(more(factor)) for factor in (sure, 1 / sure))
    if networks == len(done):  # one is begun however short the time
        networks = max(networks, 1)
    graphs = [*(t.graph for t in searched), *plan.starts]
    weights = statistics.mean(map(weight_bytes, graphs))
    there = sum(weight_bytes(t.graph) for t in trials if t.kept)
    kept = there + weights * len(come)
    if keep is not None:
        kept = min(kept, weights * (keep * (ladder.rungs + 1) + 2))
    largest = max(map(weight_bytes, graphs))
    disk = kept + networks * FILES + largest * (1 + (FINALS if finals else 0))
    return Expectation(
        networks,
        min(few, networks),
        max(many, networks),
        len(ended),
        statistics.mean([*come, *costs]) if come or costs else child,
        1 - plan.search_share if finals else 0.0,
        int(disk),
        int(max(0, disk - there)),
        free,
        int(data + min(workers, max(1, networks)) * GROWN * max(_training(plan, trials, graph) for graph in graphs)),
        for_search,
    )


def _training(plan: Plan, trials: Sequence[Trial], graph: Graph) -> float:
    """Bytes that training a graph takes."""
    batch = plan.recipe.batch_size
    micro = micro_batch(graph, batch, plan.limits.max_memory, trials) or batch
    return measured_memory(trials) * graph.peak_bytes(micro)


def _rest(
    starts: Sequence[float],
    child: float,
    overhead: float,
    left: float,
    workers: int,
    ladder: Ladder,
    climbed: Sequence[int],
    most: float,
) -> list[float]:
    """Seconds of every network that there is time for: the starts, then children, of which some are trained on.

    starts, child: their seconds. climbed: trials so far on each rung.
    """
    waiting, there, left = list(starts)[::-1], list(climbed), left * workers
    costs: list[float] = []
    while left > 0 and len(costs) < min(most, MOST):
        cost, level = child, 0
        if waiting:
            cost = waiting.pop()
        else:
            for rung in reversed(range(ladder.rungs)):
                longer = child * ladder.factor ** (rung + 1)
                if there[rung] // ladder.keep > there[rung + 1] and longer * workers <= ladder.share * left:
                    cost, level = longer, rung + 1
                    break
            if cost * workers > left:
                break
        if cost * workers > left:
            continue
        left -= cost + overhead
        costs.append(cost)
        there[level] += 1
    return costs


def weight_bytes(graph: Graph) -> int:
    """Bytes that a network's weights take on disk."""
    return 4 * sum(map(math.prod, graph.weight_shapes.values()))


def seconds_for_search(planned: Callable[[float], Plan], seconds: float) -> float | None:
    """The first of growing limits, from `seconds` on, whose plan is a search and not only its first networks.

    planned: the plan for a limit. None: this is one, or none is found within a month.
    """
    if searches(planned(seconds)):
        return None
    limit = seconds
    while (limit := 1.25 * limit) < LONGEST:
        if searches(planned(limit)):
            return limit
    return None


def searches(plan: Plan) -> bool:
    """Whether there is time for more than the first networks."""
    return plan.search_share > (len(plan.starts) + 0.5) * CHILD + 1e-9


@dataclass
class Forecast:
    """An observer that works the expectation out, tells it once, and keeps the one in run.json up to date.

    It is told when the first networks are measured, or after a minute: by `tell`, or else in the log. A warning says
    when the disk is too small for it. left: seconds that the search has. expected: what `expectation` says of trials,
    seconds and overhead, with the bytes that are free.
    """

    store: Store
    plan: Plan
    left: Callable[[], float]
    settings: Mapping[str, Any]
    tell: Callable[[str], None] | None = None
    clock: Callable[[], float] = time.monotonic
    told: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._begun = self._noted = self.clock()
        self._before = {trial.id for trial in self.store.trials}

    def now(self) -> Expectation:
        """What is expected as things stand."""
        trials = self.store.trials
        mine = [t.outcome for t in trials if t.outcome is not None and t.id not in self._before]
        overhead = None
        if len(mine) > 1:
            gone = self.clock() - self._begun
            workers = self.settings.get("workers", 1)
            overhead = max(0.0, workers * gone - sum(outcome.seconds for outcome in mine)) / len(mine)
        free = shutil.disk_usage(self.store.path).free
        return expectation(self.plan, trials, self.left(), free=free, overhead=overhead, **self.settings)

    def trial_begins(self, trial: Trial) -> None:
        pass

    def epoch_done(self, trial: Trial, outcome: Outcome) -> None:
        if not self.told and self.clock() - self._begun >= SOON and not is_final(trial):
            self._tell()

    def trial_ends(self, trial: Trial) -> None:
        if is_final(trial):
            return
        if not self.told and sum(t.outcome is not None for t in self.store.trials) >= min(3, len(self.plan.starts)):
            self._tell()
        elif self.told and self.clock() - self._noted >= OFTEN:
            self._note(self.now())

    def _tell(self) -> None:
        self.told = True
        found = self.now()
        self._note(found)
        (self.tell or (lambda text: log.info("%s", text)))(str(found))
        if found.to_write > found.free:
            text = f"the run is expected to write {_bytes(found.to_write)} more, but {_bytes(found.free)} are free on"
            hint = ": keep=5 keeps the weights of the best networks only" if self.settings.get("keep") is None else ""
            warnings.warn(f"{text} the disk of {str(self.store.path)!r}{hint}", stacklevel=2)
        if found.networks < len(self.plan.starts) and self.settings.get("max_trials") is None:
            words = "there is time for %d of the %d networks that are to be compared first, of %s each: give more"
            log.warning(words, found.networks, len(self.plan.starts), _seconds(found.seconds_per_network))

    def _note(self, found: Expectation) -> None:
        self._noted = self.clock()
        self.store.note(expected=found.to_json())


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
