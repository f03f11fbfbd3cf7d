"""What a run shows, derived from its trials: pure functions of values, for the page and whoever else tells of a run.

Trials come in the order of their ids. Scores are higher for better networks (minus the log loss, or see `Outcome`);
times are seconds since the first training began; ids stand for trials.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import erf
from scipy.stats import rankdata

from morphnas.search import winner
from morphnas.search.distance import Array, ReferenceNetworks, distances
from morphnas.search.trial import Trial, lineage
from morphnas.train.recipe import is_number

LANDMARKS = 200
"""Networks that all others are compared with to lay out a map, at most: with 200, 1,000 networks take 0.2 s."""

Span = tuple[float, float]


def number(value: object) -> float | None:
    """A finite number as a float; None for anything else, as what a searcher notes down is its own affair."""
    return float(value) if is_number(value) else None


def searched(trials: Sequence[Trial]) -> list[Trial]:
    """The trials of the search alone."""
    return [trial for trial in trials if not trial.final]


def failures(trials: Sequence[Trial]) -> list[Trial]:
    """Trials that came to nothing, or diverged."""
    return [t for t in trials if t.outcome is not None and t.outcome.status in ("failed", "oom", "diverged")]


def best_of(trials: Sequence[Trial], about: Mapping[str, Any]) -> Trial | None:
    """The search's winner: the one that run.json names, else the one that would be chosen now. Where that has no score,
    the network that was trained further from it and has one, if there is any."""
    by_id = {trial.id: trial for trial in trials}
    named = by_id.get(about.get("best", -1)) or winner(searched(trials))
    for trial in (named, by_id.get(about.get("final", -1))):
        while trial is not None and trial.score is None and trial.scored_by < trial.id:
            trial = by_id.get(trial.scored_by)
        if trial is not None and trial.score is not None:
            return trial
    return named


def members(about: Mapping[str, Any]) -> list[tuple[int, float]]:
    """The networks of the final model and their shares in it, as run.json names them; the largest share first."""
    named = about.get("members")
    pairs = named.items() if isinstance(named, Mapping) else ()
    found = [(int(id), share) for id, value in pairs if str(id).isdecimal() and (share := number(value)) is not None]
    return sorted(found, key=lambda member: (-member[1], member[0]))


def choice(about: Mapping[str, Any], trial: int | None = None) -> str:
    """Which examples chose what a final training goes on from, and the scores that they gave; "" where none did.

    trial: its id; None: that of the final model.
    """
    every = about.get("chosen")
    noted = every.get(str(about.get("final") if trial is None else trial)) if isinstance(every, Mapping) else None
    scores = noted.get("scores") if isinstance(noted, Mapping) else None
    pairs = scores.items() if isinstance(scores, Mapping) else ()
    found = [(int(id), score) for id, value in pairs if str(id).isdecimal() and (score := number(value)) is not None]
    if len(found) < 2 or not isinstance(noted, Mapping):
        return ""
    told = ", ".join(f"{score:.4g} (network {id})" for id, score in sorted(found, key=lambda one: -one[1]))
    also = "which had stopped the trainings, too" if noted.get("stopped") else "which had stopped no training"
    return f"Chosen by {noted.get('examples')!s:.12} examples {also}; scores there: {told}"


# -- time


def timeline(trials: Sequence[Trial]) -> dict[int, Span]:
    """When every training began and ended, by id; one that runs ends as it begins.

    Where a run was gone on with, and where it is not known, a training begins when all before it have ended.
    """
    spans: dict[int, Span] = {}
    zero, latest, since = 0.0, 0.0, -1
    for trial in trials:
        begun = latest
        if trial.begun is not None:
            if trial.since != since:
                zero, since = latest - trial.begun, trial.since
            begun = zero + trial.begun
        spans[trial.id] = (begun, begun + (0.0 if trial.outcome is None else trial.outcome.seconds))
        latest = max(latest, spans[trial.id][1])
    return spans


@dataclass(frozen=True)
class TimeSpent:
    """Where the seconds went. Between: asking, carrying weights over, proving, writing down."""

    training: float
    final: float
    between: float

    @property
    def total(self) -> float:
        return self.training + self.final + self.between


def time_spent(trials: Sequence[Trial]) -> TimeSpent:
    """What the time went into, from the first training to the end of the last; several at a time count once."""
    spans = timeline(trials)
    end = max((end for _, end in spans.values()), default=0.0)
    training = _covered([spans[trial.id] for trial in trials if not trial.final])
    every = _covered(list(spans.values()))
    return TimeSpent(training, every - training, end - every)


def _covered(spans: Sequence[Span]) -> float:
    """Length of the union of intervals."""
    total, reached = 0.0, -math.inf
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


# -- scores


def improvements(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that were better than all that ended before them, in the order in which they ended; without those that
    are too slow to win."""
    spans = timeline(trials)
    found: list[Trial] = []
    best = -math.inf
    for trial in sorted(trials, key=lambda t: (spans[t.id][1], t.id)):
        if trial.score is not None and trial.score > best and not trial.slow:
            found.append(trial)
            best = trial.score
    return found


def gain(trial: Trial, trials: Mapping[int, Trial]) -> float | None:
    """Its score less that of the trial it started from."""
    start = None if trial.parent is None else trials.get(trial.parent)
    return None if start is None or start.score is None or trial.score is None else trial.score - start.score


def introduced(trials: Sequence[Trial], trial: Trial) -> dict[str, int]:
    """For every node of a trial's network, the id of the ancestor whose morphs brought it, or of the first."""
    found: dict[str, int] = {}
    for ancestor in lineage(trials, trial):
        found = {node.name: found.get(node.name, ancestor.id) for node in ancestor.graph.nodes}
    return found


def family(trials: Sequence[Trial]) -> list[tuple[int, int]]:
    """The tree of trials from top to bottom: ids, each behind the one it started from, and how far below the first."""
    ids = {trial.id for trial in trials}
    below: dict[int | None, list[int]] = {}
    for trial in reversed(trials):
        below.setdefault(trial.parent if trial.parent in ids else None, []).append(trial.id)
    rows: list[tuple[int, int]] = []
    waiting = [(id, 0) for id in below.get(None, [])]
    while waiting:
        id, level = waiting.pop()
        rows.append((id, level))
        waiting += [(child, level + 1) for child in below.get(id, [])]
    return rows


# -- rankings


def rank_correlation(some: Sequence[float], others: Sequence[float]) -> float | None:
    """Spearman's, ties sharing their ranks; None for fewer than 3 pairs, and where either side is all alike."""
    if len(some) < 3:
        return None
    a, b = (rankdata(side) - (len(side) + 1) / 2 for side in (some, others))
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return max(-1.0, min(1.0, float(a @ b) / scale)) if scale else None


@dataclass(frozen=True)
class RankByEpoch:
    """How well scores rank networks before their trainings end.

    ids: the networks compared, which were trained for equally many epochs. correlations: with the ranking at the end,
    after 1, 2, ... epochs; the last is 1. places: (networks, epochs), from 1 for the best.
    """

    ids: tuple[int, ...]
    correlations: tuple[float, ...]
    places: tuple[tuple[int, ...], ...]

    def settled(self, enough: float = 0.9) -> int:
        """Epochs after which the correlation is as high and stays so."""
        low = [epoch for epoch, value in enumerate(self.correlations, start=1) if value < enough]
        return 1 + max(low, default=0)


def rank_by_epoch(trials: Sequence[Trial]) -> RankByEpoch | None:
    """Of the search's finished trials of the usual length: a network counts as what its best epoch so far scored.

    None for fewer than 3 of them, a single epoch, or scores that are all alike.
    """
    whole = [
        t
        for t in searched(trials)
        if t.outcome
        and t.outcome.status == "finished"
        and t.score is not None
        and len(t.outcome.curve) == t.epochs > 1
        and all(epoch.score is not None for epoch in t.outcome.curve)
    ]
    lengths = Counter(trial.epochs for trial in whole)
    usual = max(lengths, key=lambda epochs: (lengths[epochs], epochs), default=0)
    same = [trial for trial in whole if trial.epochs == usual]
    if len(same) < 3:
        return None
    curves = np.array([[e.score for e in t.outcome.curve] for t in same if t.outcome], dtype=np.float64)
    so_far = np.maximum.accumulate(curves, axis=1)
    end = so_far[:, -1].tolist()
    if len(set(end)) < 2:
        return None
    correlations = tuple(rank_correlation(column.tolist(), end) or 0.0 for column in so_far.T)
    places = np.stack([rankdata(-column, method="min") for column in so_far.T], axis=1).astype(int)
    return RankByEpoch(tuple(t.id for t in same), correlations, tuple(map(tuple, places.tolist())))


# -- what the surrogate believed


@dataclass(frozen=True)
class Forecast:
    """What the searcher believed of a network before it was trained, and what came of it."""

    id: int
    mean: float
    sd: float
    score: float

    @property
    def surprise(self) -> float:
        """How many standard deviations the score is from the mean."""
        return (self.score - self.mean) / self.sd

    @property
    def level(self) -> float:
        """The probability of the narrowest central interval of the normal belief that holds the score."""
        return float(erf(abs(self.surprise) / math.sqrt(2)))


def forecasts(trials: Sequence[Trial]) -> list[Forecast]:
    """Of the search's trials with a score, for which a mean and a standard deviation above 0 were noted."""
    found = []
    for trial in searched(trials):
        mean, sd = (number(trial.proposal.why.get(name)) for name in ("mean", "sd"))
        if mean is not None and sd is not None and sd > 0 and trial.score is not None:
            found.append(Forecast(trial.id, mean, sd, trial.score))
    return found


def coverage(told: Sequence[Forecast], level: float) -> float:
    """The share of scores inside the central intervals of that probability; of a perfect belief it is the level."""
    return sum(one.level <= level for one in told) / len(told)


# -- where the search has been


@dataclass(frozen=True)
class Plane:
    """Networks laid out so that those alike are near each other. positions: by id, the first trial's x is not above 0.

    fidelity: the correlation of distances in the plane with edit distances; None where there are too few to say.
    """

    positions: Mapping[int, tuple[float, float]]
    fidelity: float | None


def plane(trials: Sequence[Trial]) -> Plane:
    """Classical scaling of the edit distances (Torgerson 1952, Psychometrika 17, 401-419).

    Of more than `LANDMARKS` networks, so many of all times are laid out and the others placed by their distances to
    them (de Silva and Tenenbaum 2004, Sparse multidimensional scaling using landmark points).
    """
    distinct = list({trial.graph.key: trial for trial in reversed(trials)}.values())[::-1]
    if not distinct:
        return Plane({}, None)
    few = np.unique(np.linspace(0, len(distinct) - 1, min(LANDMARKS, len(distinct))).astype(int))
    apart = distances([t.sketch for t in distinct], [distinct[i].sketch for i in few])  # (networks, landmarks)
    squared = apart[few] ** 2
    middle = squared.mean(0)
    inner = -0.5 * (squared - middle - middle[:, None] + middle.mean())
    values, vectors = np.linalg.eigh(inner)
    values, vectors = values[::-1][:2], vectors[:, ::-1][:, :2]
    real = values > 1e-9 * max(1.0, float(values[0]))
    # (landmarks, 2): pseudo-inverse of the landmarks' coordinates, which also gives the landmarks their own place
    inverse = np.where(real, vectors / np.sqrt(np.where(real, values, 1.0)), 0.0)
    found = np.zeros((len(distinct), 2))
    found[:, : inverse.shape[1]] = -0.5 * (apart**2 - middle) @ inverse
    found *= np.where(found[0] > 0, -1.0, 1.0)  # so that a map does not turn over when it is drawn again
    drawn = np.linalg.norm(found[:, None] - found[few], axis=2)
    at = {t.graph.key: (float(x), float(y)) for t, (x, y) in zip(distinct, found, strict=True)}
    pairs = np.arange(len(distinct))[:, None] != few  # not of a network with itself
    return Plane({t.id: at[t.graph.key] for t in trials}, _correlation(apart[pairs], drawn[pairs]))


def _correlation(a: Array, b: Array) -> float | None:
    if len(a) < 3:
        return None
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale else None


def leaders(trials: Sequence[Trial]) -> dict[int, int]:
    """For every trial of the search but those that were before any score: the best whose training had ended by then."""
    spans = timeline(trials)
    ended = sorted(searched(trials), key=lambda t: (spans[t.id][1], t.id))
    found: dict[int, int] = {}
    best: Trial | None = None
    at = 0
    for trial in sorted(searched(trials), key=lambda t: (spans[t.id][0], t.id)):
        while at < len(ended) and spans[ended[at].id][1] <= spans[trial.id][0] + 1e-6 and ended[at].id != trial.id:
            one, at = ended[at], at + 1
            better = one.score is not None and (best is None or best.score is None or one.score > best.score)
            if better and not one.slow:
                best = one
        if best is not None:
            found[trial.id] = best.id
    return found


def strides(trials: Sequence[Trial]) -> dict[int, float]:
    """By id, how far every new network of the search was from the best one at the time, in edits of a layer.

    Short ones exploit what is known, long ones explore. Networks that are trained longer are none.
    """
    by_id = {trial.id: trial for trial in trials}
    lead = {id: best for id, best in leaders(trials).items() if by_id[id].proposal.morphs or by_id[id].parent is None}
    best = sorted(set(lead.values()))
    gauge = ReferenceNetworks.of([by_id[id].sketch for id in best])
    apart = gauge.distances([by_id[id].sketch for id in lead])
    return {id: float(row[best.index(lead[id])]) for id, row in zip(lead, apart, strict=True)}
