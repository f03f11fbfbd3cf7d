"""Facts derived from the trials of a run, for the page and the other reports: pure functions of values.

Trials are given in the order of their ids. Scores are higher for better networks (minus the log loss, or see
`Outcome`); times are seconds since the first training began.
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
"""Maximum number of landmarks, the networks that a map is laid out by: with 200, 1,000 networks take 0.2 s."""

Span = tuple[float, float]


def number(value: object) -> float | None:
    """A finite number as a float; None for anything else, as searchers may record any value."""
    return float(value) if is_number(value) else None


def searched(trials: Sequence[Trial]) -> list[Trial]:
    """The trials of the search, without the final trainings."""
    return [trial for trial in trials if not trial.final]


def failures(trials: Sequence[Trial]) -> list[Trial]:
    """Trials that failed, ran out of memory or diverged."""
    return [t for t in trials if t.outcome is not None and t.outcome.status in ("failed", "oom", "diverged")]


def best_of(trials: Sequence[Trial], about: Mapping[str, Any]) -> Trial | None:
    """The search's winner: the one that run.json names, else the one that would be chosen now. If it has no score, the
    final training takes its place, or the trial that this is scored by (`Trial.scored_by`), if that has one."""
    by_id = {trial.id: trial for trial in trials}
    named = by_id.get(about.get("best", -1)) or winner(searched(trials))
    for trial in (named, by_id.get(about.get("final", -1))):
        while trial is not None and trial.score is None and trial.scored_by < trial.id:
            trial = by_id.get(trial.scored_by)
        if trial is not None and trial.score is not None:
            return trial
    return named


def members(about: Mapping[str, Any]) -> list[tuple[int, float]]:
    """Ids and weights of the networks of the final model, as in run.json; the largest weight first."""
    weights = _numbers_by_id(about.get("members"))
    return sorted(weights, key=lambda member: (-member[1], member[0]))


def _numbers_by_id(value: object) -> list[tuple[int, float]]:
    """The items of a JSON object that are ids with finite numbers; anything else is ignored."""
    pairs = value.items() if isinstance(value, Mapping) else ()
    return [(int(id), finite) for id, raw in pairs if str(id).isdecimal() and (finite := number(raw)) is not None]


def choice(about: Mapping[str, Any], trial: int | None = None) -> str:
    """Which examples chose the network that a final training continues, and the scores on them; "" if none did.

    trial: id of the final training; None: that of the final model.
    """
    choices = about.get("chosen")
    record = choices.get(str(about.get("final") if trial is None else trial)) if isinstance(choices, Mapping) else None
    scores = _numbers_by_id(record.get("scores")) if isinstance(record, Mapping) else []
    if len(scores) < 2 or not isinstance(record, Mapping):
        return ""
    ranked = ", ".join(f"{score:.4g} (network {id})" for id, score in sorted(scores, key=lambda item: -item[1]))
    use = "also used for early stopping" if record.get("stopped") else "not used for early stopping"
    return f"Chosen on {record.get('examples')!s:.12} examples {use}; scores on them: {ranked}"


# -- time


def timeline(trials: Sequence[Trial]) -> dict[int, Span]:
    """Start and end of every training, by id; for one that is running, both are the start.

    Where a run was resumed, or the start is not recorded, a training starts when all before it have ended.
    """
    spans: dict[int, Span] = {}
    zero, latest, since = 0.0, 0.0, -1
    for trial in trials:
        start = latest
        if trial.started is not None:
            if trial.driver_start != since:
                zero, since = latest - trial.started, trial.driver_start
            start = zero + trial.started
        spans[trial.id] = (start, start + (0.0 if trial.outcome is None else trial.outcome.seconds))
        latest = max(latest, spans[trial.id][1])
    return spans


@dataclass(frozen=True)
class TimeSpent:
    """Seconds by use. between: proposing networks, transferring and checking weights, writing results."""

    training: float
    final: float
    between: float

    @property
    def total(self) -> float:
        return self.training + self.final + self.between


def time_spent(trials: Sequence[Trial]) -> TimeSpent:
    """The use of the time from the first training to the end of the last; concurrent trainings count once."""
    spans = timeline(trials)
    end = max((end for _, end in spans.values()), default=0.0)
    training = _covered([spans[trial.id] for trial in trials if not trial.final])
    all_trainings = _covered(list(spans.values()))
    return TimeSpent(training, all_trainings - training, end - all_trainings)


def _covered(spans: Sequence[Span]) -> float:
    """Length of the union of intervals."""
    total, reached = 0.0, -math.inf
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


# -- scores


def improvements(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that scored better than all that ended before them, in the order in which they ended; without those
    that are too slow to win."""
    spans = timeline(trials)
    result: list[Trial] = []
    best = -math.inf
    for trial in sorted(trials, key=lambda t: (spans[t.id][1], t.id)):
        if trial.score is not None and trial.score > best and not trial.slow:
            result.append(trial)
            best = trial.score
    return result


def gain(trial: Trial, trials: Mapping[int, Trial]) -> float | None:
    """The trial's score minus its parent's; None if either is missing. trials: by id."""
    parent = None if trial.parent is None else trials.get(trial.parent)
    return None if parent is None or parent.score is None or trial.score is None else trial.score - parent.score


def introduced(trials: Sequence[Trial], trial: Trial) -> dict[str, int]:
    """By node of a trial's network, the id of the first trial of its lineage that had the node."""
    origins: dict[str, int] = {}
    for ancestor in lineage(trials, trial):
        origins = {node.name: origins.get(node.name, ancestor.id) for node in ancestor.graph.nodes}
    return origins


def family(trials: Sequence[Trial]) -> list[tuple[int, int]]:
    """The tree of trials in depth-first order, parents before children: ids and depths in the tree."""
    ids = {trial.id for trial in trials}
    children: dict[int | None, list[int]] = {}
    for trial in reversed(trials):
        children.setdefault(trial.parent if trial.parent in ids else None, []).append(trial.id)
    rows: list[tuple[int, int]] = []
    stack = [(id, 0) for id in children.get(None, [])]
    while stack:
        id, level = stack.pop()
        rows.append((id, level))
        stack += [(child, level + 1) for child in children.get(id, [])]
    return rows


# -- rankings


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Spearman's rank correlation, with average ranks for ties; None for fewer than 3 pairs or a constant side."""
    if len(x) < 3:
        return None
    a, b = (rankdata(side) - (len(side) + 1) / 2 for side in (x, y))
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return max(-1.0, min(1.0, float(a @ b) / scale)) if scale else None


@dataclass(frozen=True)
class RankByEpoch:
    """How well scores rank networks before their trainings end.

    ids: the networks compared, all trained for the same number of epochs. correlations: of the ranking after 1, 2, ...
    epochs with the final one; the last is 1. places: ranks, (networks, epochs), from 1 for the best.
    """

    ids: tuple[int, ...]
    correlations: tuple[float, ...]
    places: tuple[tuple[int, ...], ...]

    def settled(self, threshold: float = 0.9) -> int:
        """The first epoch from which on the correlation stays at or above the threshold."""
        low = [epoch for epoch, value in enumerate(self.correlations, start=1) if value < threshold]
        return 1 + max(low, default=0)


def rank_by_epoch(trials: Sequence[Trial]) -> RankByEpoch | None:
    """Ranking by epoch of the search's finished trials of the most common length, by the best score so far of each.

    None for fewer than 3 of them, a single epoch, or equal scores.
    """
    complete = [
        t
        for t in searched(trials)
        if t.outcome
        and t.outcome.status == "finished"
        and t.score is not None
        and len(t.outcome.curve) == t.epochs > 1
        and all(epoch.score is not None for epoch in t.outcome.curve)
    ]
    lengths = Counter(trial.epochs for trial in complete)
    length = max(lengths, key=lambda epochs: (lengths[epochs], epochs), default=0)
    same = [trial for trial in complete if trial.epochs == length]
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


# -- predictions of the surrogate


@dataclass(frozen=True)
class Forecast:
    """The predicted mean and standard deviation of a network's score before it was trained, and the score."""

    id: int
    mean: float
    sd: float
    score: float

    @property
    def z_score(self) -> float:
        """How many standard deviations the score is above the mean."""
        return (self.score - self.mean) / self.sd

    @property
    def level(self) -> float:
        """The probability of the narrowest central interval of the normal prediction that contains the score."""
        return float(erf(abs(self.z_score) / math.sqrt(2)))


def forecasts(trials: Sequence[Trial]) -> list[Forecast]:
    """The predictions for the search's trials with a score, where a mean and a positive standard deviation exist."""
    result = []
    for trial in searched(trials):
        mean, sd = (number(trial.proposal.why.get(name)) for name in ("mean", "sd"))
        if mean is not None and sd is not None and sd > 0 and trial.score is not None:
            result.append(Forecast(trial.id, mean, sd, trial.score))
    return result


def coverage(predictions: Sequence[Forecast], level: float) -> float:
    """The share of scores inside the central intervals of that probability; if calibrated, it is the level."""
    return sum(prediction.level <= level for prediction in predictions) / len(predictions)


# -- the map of architectures


@dataclass(frozen=True)
class Plane:
    """Networks laid out in two dimensions by similarity.

    positions: by id; the first trial's x is at most 0. fidelity: correlation of distances in the plane with edit
    distances; None if there are too few.
    """

    positions: Mapping[int, tuple[float, float]]
    fidelity: float | None


def plane(trials: Sequence[Trial]) -> Plane:
    """Classical multidimensional scaling of the edit distances (Torgerson 1952, Psychometrika 17, 401-419).

    Of more than `LANDMARKS` networks, that many, spread evenly over the run, are laid out, and the others are placed by
    their distances to them (de Silva and Tenenbaum 2004, Sparse multidimensional scaling using landmark points).
    """
    distinct = list({trial.graph.key: trial for trial in reversed(trials)}.values())[::-1]
    if not distinct:
        return Plane({}, None)
    landmarks = np.unique(np.linspace(0, len(distinct) - 1, min(LANDMARKS, len(distinct))).astype(int))
    edits = distances([t.sketch for t in distinct], [distinct[i].sketch for i in landmarks])  # (networks, landmarks)
    squared = edits[landmarks] ** 2
    mean = squared.mean(0)
    gram = -0.5 * (squared - mean - mean[:, None] + mean.mean())
    values, vectors = np.linalg.eigh(gram)
    values, vectors = values[::-1][:2], vectors[:, ::-1][:, :2]
    positive = values > 1e-9 * max(1.0, float(values[0]))
    # (landmarks, 2): pseudo-inverse of the landmarks' coordinates, which also reproduces the landmarks' own positions
    inverse = np.where(positive, vectors / np.sqrt(np.where(positive, values, 1.0)), 0.0)
    positions = np.zeros((len(distinct), 2))
    positions[:, : inverse.shape[1]] = -0.5 * (edits**2 - mean) @ inverse
    positions *= np.where(positions[0] > 0, -1.0, 1.0)  # a fixed sign, so that a redrawn map is not mirrored
    in_plane = np.linalg.norm(positions[:, None] - positions[landmarks], axis=2)
    at = {t.graph.key: (float(x), float(y)) for t, (x, y) in zip(distinct, positions, strict=True)}
    pairs = np.arange(len(distinct))[:, None] != landmarks  # without the distance of a network to itself
    return Plane({t.id: at[t.graph.key] for t in trials}, _correlation(edits[pairs], in_plane[pairs]))


def _correlation(a: Array, b: Array) -> float | None:
    """Pearson's correlation; None for fewer than 3 pairs or a constant side."""
    if len(a) < 3:
        return None
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale else None


def leaders(trials: Sequence[Trial]) -> dict[int, int]:
    """By id of the search's trials, the best trial that had ended when they started, of those that are not too slow;
    none before the first score."""
    spans = timeline(trials)
    ended = sorted(searched(trials), key=lambda t: (spans[t.id][1], t.id))
    result: dict[int, int] = {}
    best: Trial | None = None
    at = 0
    for trial in sorted(searched(trials), key=lambda t: (spans[t.id][0], t.id)):
        while at < len(ended) and spans[ended[at].id][1] <= spans[trial.id][0] + 1e-6 and ended[at].id != trial.id:
            other, at = ended[at], at + 1
            better = other.score is not None and (best is None or best.score is None or other.score > best.score)
            if better and not other.slow:
                best = other
        if best is not None:
            result[trial.id] = best.id
    return result


def strides(trials: Sequence[Trial]) -> dict[int, float]:
    """By id, the edit distance of every new network of the search from the best one when it started.

    Small ones exploit, large ones explore. Trainings that continue a network unchanged are left out.
    """
    by_id = {trial.id: trial for trial in trials}
    lead = {id: best for id, best in leaders(trials).items() if by_id[id].proposal.morphs or by_id[id].parent is None}
    best = sorted(set(lead.values()))
    reference = ReferenceNetworks.of([by_id[id].sketch for id in best])
    rows = reference.distances([by_id[id].sketch for id in lead])
    return {id: float(row[best.index(lead[id])]) for id, row in zip(lead, rows, strict=True)}
