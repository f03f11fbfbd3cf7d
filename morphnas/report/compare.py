"""Several runs on the same data side by side: would another run find the same, and would it find better?"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from morphnas.report import facts
from morphnas.report.words import count, duration
from morphnas.run.store import Run, RunLike, run_of, user_path
from morphnas.search.distance import distances
from morphnas.search.trial import Trial

GRID = 60
"""Times at which the best so far of the runs is compared."""
LENGTH = ("max_trials", "search_patience", "refit", "executor", "devices")
"""Settings that say for how long, and on how much, a run searches: it may be gone on with by others."""
SURE = 0.05
"""The probability by chance below which the winners are said to differ."""


@dataclass(frozen=True)
class Entry:
    """A run that is compared. networks: that have a score. value: of its winner, see `Comparison.measure`.

    interval: of the value, at 95 %, if it is a share. seconds: from the first training to the end of the last of the
    search. curve: the best value so far at each of the comparison's times; None before the first.
    """

    path: str
    networks: int
    best: int
    value: float
    interval: tuple[float, float] | None
    parameters: int
    flops: int
    depth: int
    seconds: float
    curve: tuple[float | None, ...]


@dataclass(frozen=True, repr=False)
class Comparison:
    """What runs on the same data have in common, `str` of it for people.

    measure: what the winners are compared by, "accuracy", minus the log loss, "score", or the metric that the networks
    were chosen by; of the validation part. times: seconds, of the curves, up to the end of the shortest run. mean, sd:
    of the best so far over runs, at these times, where all have one. alike: whether the runs have the same settings but
    for the seed, and seeds of their own, as draws of the same thing have. by_chance: the probability that the winners'
    accuracies differ as much where one is as good as the other (chi-squared test of homogeneity, which misses some real
    differences if runs hold out the same examples); None where they are no shares. winners_apart: edit distances of the
    runs' winners, (runs, runs). typical: median distance of networks of different runs. shared: networks that two runs
    have in common, as a share of those of both (Jaccard index), the mean over pairs. nearest: mean distance of a
    network to the nearest one of another run. next_better: the probability that a further run's winner has a higher
    value than all of these: 1 in n + 1, as each of n + 1 runs that differ in nothing but chance is as likely to be the
    best; None where they are not alike. next_value: where its value will be with a probability of 95 %, by Student's t
    for one more draw from a normal distribution (n >= 3, alike); from few runs no more can be known.
    """

    runs: tuple[Entry, ...]
    measure: str
    times: tuple[float, ...]
    mean: tuple[float | None, ...]
    sd: tuple[float | None, ...]
    alike: bool
    by_chance: float | None
    winners_apart: tuple[tuple[float, ...], ...]
    typical: float
    shared: float
    nearest: float
    next_better: float | None
    next_value: tuple[float, float] | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        rows = [("run", "networks", "winner", self.measure, "95 %", "params", "FLOPs", "depth", "time")]
        for run in self.runs:
            between = "" if run.interval is None else "{:.1f}-{:.1f}".format(*(100 * end for end in run.interval))
            size = (count(run.parameters), count(run.flops), str(run.depth), duration(run.seconds))
            rows.append((run.path, str(run.networks), str(run.best), self._words(run.value), between, *size))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = [
            "  ".join(
                f"{cell:{'<' if i == 0 else '>'}{width}}"
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        return "\n".join([*table, *self.sentences])

    __repr__ = __str__

    @property
    def sentences(self) -> list[str]:
        """Would another run find the same, and would it find better."""
        values = [run.value for run in self.runs]
        spread = f"The winners are between {self._words(min(values))} and {self._words(max(values))}"
        if self.by_chance is None:
            told = [f"{spread}."]
        else:
            differ = "more" if self.by_chance < SURE else "no more"
            chance = f"(p = {self.by_chance:.2g}, taking their held-out examples for independent)"
            told = [f"{spread}, {differ} different than chance would explain {chance}."]
        pairs = [self.winners_apart[i][j] for i, j in combinations(range(len(values)), 2)]
        same = sum(pair == 0 for pair in pairs)
        alike = f" ({same} of {len(pairs)} pairs are alike)" if same else ""
        told.append(
            f"They are {np.mean(pairs):.1f} edits apart{alike}, the median for networks of different runs is "
            f"{self.typical:.1f}; two runs share {100 * self.shared:.0f} % of their networks, the nearest one of "
            f"another run is {self.nearest:.1f} edits away on average."
        )
        if self.next_better is None:
            told.append("The runs have different settings, or the same seed, so they do not predict a further one.")
        else:
            further = f"A further run is better than these with a probability of 1 in {round(1 / self.next_better)}"
            if self.next_value is not None:
                share = self.by_chance is not None
                low, high = (self._words(min(max(end, 0.0), 1.0) if share else end) for end in self.next_value)
                further += f"; its result will be between {low} and {high} (95 %)"
            told.append(f"{further}.")
        return told

    def _words(self, value: float) -> str:
        return f"{100 * value:.2f} %" if self.by_chance is not None else f"{value:.4f}"

    def draw(self, file: str | os.PathLike[str]) -> Path:
        """The best so far of every run, and their mean with its standard deviation, as .svg; else ValueError."""
        target = user_path(file)
        if target.suffix.lower() != ".svg":
            raise ValueError(f"the curves are drawn as .svg, not as {str(target)!r}")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_svg(self), encoding="utf-8")
        return target


def compare_runs(runs: Sequence[RunLike]) -> Comparison:
    """Compare two or more runs on the same data: runs, their folders, or fitted estimators.

    RunError for a folder without a run; ValueError, which names the run, for fewer than two, for one named twice, for
    other data, if no network has a score yet, and if they do not have the same metric or loss.
    """
    if not isinstance(runs, Sequence) or isinstance(runs, (str, bytes)) or len(runs) < 2:
        raise ValueError(f"at least two runs are needed to compare, not {runs!r:.200}")
    loaded = [run_of(run) for run in runs]
    winners: list[Trial] = []
    for i, run in enumerate(loaded):
        if run.path.resolve() in (other.path.resolve() for other in loaded[:i]):
            raise ValueError(f"{str(run.path)!r} is named twice: a run cannot be compared with itself")
        if _data(run) is None:
            raise ValueError(f"nothing says on which data {str(run.path)!r} is a run: its run.json is lost or damaged")
        if _data(run) != _data(loaded[0]):
            same = "the same data (x, y, sample_weight, groups, teacher and validation_data)"
            raise ValueError(f"{str(run.path)!r} is not a run on {same} as {str(loaded[0].path)!r}")
        best = facts.best_of(run.trials, run.about)
        if best is None or best.score is None:
            raise ValueError(f"no network of {str(run.path)!r} has a score yet")
        winners.append(best)
    shares = all(best.outcome is not None and best.outcome.interval is not None for best in winners)
    objectives = [best.outcome.objective if best.outcome else "" for best in winners]
    if len(set(zip(objectives, map(_aims, loaded), strict=True))) > 1:
        aims = objectives if len(set(objectives)) > 1 else map(_aims, loaded)
        names = ", ".join(sorted(set(aims)))
        raise ValueError(
            f"the runs cannot be compared: their networks were chosen by different metrics or losses, {names}"
        )
    by_metric = winners[0].outcome is not None and winners[0].outcome.by_metric
    values = [_value(best, shares) for best in winners]
    searched = [facts.searched(run.trials) for run in loaded]
    ends = [max(end for _, end in facts.timeline(trials).values()) for trials in searched]
    times = np.linspace(0, min(ends), GRID + 1)[1:]
    curves = [_best_so_far(trials, times, shares) for trials in searched]
    table = np.array([[math.nan if v is None else v for v in curve] for curve in curves])
    everywhere = ~np.isnan(table).any(0)
    n = len(loaded)
    own_seeds = len({run.about.get("seed") for run in loaded}) == n
    alike = own_seeds and all(_settings(run) == _settings(loaded[0]) for run in loaded)
    typical, shared, nearest = _overlap(searched)
    sd = float(np.std(values, ddof=1))
    around = float(stats.t.ppf(0.975, n - 1)) * sd * math.sqrt(1 + 1 / n)
    apart = distances([best.sketch for best in winners], [best.sketch for best in winners])
    return Comparison(
        runs=tuple(
            Entry(
                path=str(run.path),
                networks=sum(t.score is not None for t in trials),
                best=best.id,
                value=value,
                interval=best.outcome.interval if best.outcome is not None and shares else None,
                parameters=best.graph.parameters,
                flops=best.graph.flops,
                depth=best.graph.depth,
                seconds=end,
                curve=tuple(curve),
            )
            for run, trials, best, value, end, curve in zip(
                loaded, searched, winners, values, ends, curves, strict=True
            )
        ),
        measure="accuracy" if shares else objectives[0] if by_metric else "score",
        times=tuple(times.tolist()),
        mean=tuple(float(m) if whole else None for m, whole in zip(table.mean(0), everywhere, strict=True)),
        sd=tuple(float(s) if whole else None for s, whole in zip(table.std(0, ddof=1), everywhere, strict=True)),
        alike=alike,
        by_chance=_homogeneous(winners) if shares else None,
        winners_apart=tuple(map(tuple, apart.tolist())),
        typical=typical,
        shared=shared,
        nearest=nearest,
        next_better=1 / (n + 1) if alike else None,
        next_value=(float(np.mean(values)) - around, float(np.mean(values)) + around) if alike and n > 2 else None,
    )


def _data(run: Run) -> Any:
    """What tells a run's examples from others, those to score by as well; None where run.json does not."""
    data = run.about.get("data")
    return (data["hash"], str(data.get("validation"))) if isinstance(data, dict) and "hash" in data else None


def _aims(run: Run) -> str:
    """The user's own metric, else loss, that networks were chosen by, as run.json describes it; "" for none."""
    decides = run.about.get("decides")
    return str((decides.get("metric") or decides.get("loss") or "") if isinstance(decides, dict) else "")


def _settings(run: Run) -> tuple[Any, ...]:
    """What decides what a run tries, and for how long, but for its seed."""
    decides, settings = run.about.get("decides"), run.about.get("settings")
    rest = {k: v for k, v in decides.items() if k != "random_state"} if isinstance(decides, dict) else None
    told = [settings.get(name) for name in LENGTH] if isinstance(settings, dict) else None
    return rest, told, run.about.get("time_limit")


def _value(trial: Trial, share: bool) -> float:
    value = trial.outcome.metric if share and trial.outcome is not None else trial.score
    return math.nan if value is None else value


def _best_so_far(trials: Sequence[Trial], times: np.ndarray[Any, Any], share: bool) -> list[float | None]:
    spans = facts.timeline(trials)
    ended = sorted((spans[t.id][1], _value(t, share)) for t in trials if t.score is not None)
    return [max((value for end, value in ended if end <= time), default=None) for time in times]


def _homogeneous(winners: Sequence[Trial]) -> float:
    """The probability that shares of right answers differ as much by chance alone."""
    outcomes = [best.outcome for best in winners if best.outcome is not None]
    right = np.array([round((o.metric or 0.0) * o.examples) for o in outcomes])
    of = np.array([o.examples for o in outcomes])
    if right.sum() in (0, of.sum()):
        return 1.0
    return float(stats.chi2_contingency([right, of - right], correction=False).pvalue)


def _overlap(searched: Sequence[Sequence[Trial]]) -> tuple[float, float, float]:
    """Typical distance of networks of different runs, the share that two runs have in common, and how far it is to the
    nearest network of another run."""
    sketches = [list({t.graph.key: t.sketch for t in trials}.values()) for trials in searched]
    keys = [{t.graph.key for t in trials} for trials in searched]
    shared = [len(a & b) / len(a | b) for a, b in combinations(keys, 2)]
    apart = [distances(a, b) for a, b in combinations(sketches, 2)]
    nearest = [side for between in apart for side in (between.min(1), between.min(0))]
    typical = float(np.median(np.concatenate([between.ravel() for between in apart])))
    return typical, float(np.mean(shared)), float(np.mean(np.concatenate(nearest)))


def _svg(found: Comparison) -> str:
    """Curves as steps, their mean thick, a band of a standard deviation around it."""
    width, height, left, right, top, bottom = 720, 380, 70, 700, 34, 330
    values = [v for run in found.runs for v in run.curve if v is not None]
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 0.01
    low, high = low - room, high + room
    end = found.times[-1]

    def at(time: float, value: float) -> str:
        x = left + time / end * (right - left)
        return f"{x:.1f} {bottom - (min(max(value, low), high) - low) / (high - low) * (bottom - top):.1f}"

    def path(curve: Sequence[float | None], style: str) -> str:
        spots = [at(time, value) for time, value in zip(found.times, curve, strict=True) if value is not None]
        return f'<path d="M{"L".join(spots)}" fill="none" {style}/>' if spots else ""

    told = [
        (t, m, s) for t, m, s in zip(found.times, found.mean, found.sd, strict=True) if m is not None and s is not None
    ]
    band = [at(t, m + s) for t, m, s in told] + [at(t, m - s) for t, m, s in reversed(told)]
    parts = [f'<path d="M{"L".join(band)}Z" fill="#2460a7" fill-opacity=".14"/>'] if told else []
    for i in range(5):
        value = low + (high - low) * i / 4
        y = at(0, value).split()[1]
        text = f"{100 * value:.2f} %" if found.by_chance is not None else f"{value:.3f}"
        parts.append(f'<path d="M{left} {y}H{right}" stroke="#dfe3e8"/>')
        parts.append(f'<text x="{left - 8}" y="{float(y) + 4:g}" text-anchor="end">{text}</text>')
    for i in range(5):
        x = left + (right - left) * i / 4
        parts.append(f'<text x="{x:g}" y="{bottom + 18}" text-anchor="middle">{escape(duration(end * i / 4))}</text>')
    parts += [path(run.curve, 'stroke="#8a929d" stroke-width="1.3"') for run in found.runs]
    parts.append(path(found.mean, 'stroke="#2460a7" stroke-width="2.5"'))
    title = f"Best {found.measure} so far of {len(found.runs)} runs, their mean and a standard deviation"
    parts.append(f'<text x="{left}" y="18" font-size="14" font-weight="600">{title}</text>')
    below = f'x="{(left + right) / 2:g}" y="{bottom + 40}" text-anchor="middle"'
    parts.append(f"<text {below}>time since the first training began</text>")
    look = 'font-family="Helvetica, Arial, sans-serif" font-size="12" fill="#1d2127"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'{look}><rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>'
    )
