"""Comparison of runs on the same data: how similar their results are, and what a further run would find."""

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
"""Number of times at which the best values so far of the runs are compared."""
EFFORT_SETTINGS = ("max_trials", "search_patience", "refit", "executor", "devices")
"""Settings that determine how long, and on how many devices, a run searches; they may change when it is resumed."""
SIGNIFICANCE = 0.05
"""The p-value below which the winners are reported to differ by more than chance."""


@dataclass(frozen=True)
class Entry:
    """One of the compared runs.

    networks: number of networks with a score. best: id of the winner. value: of the winner, see `Comparison.measure`.
    interval: 95 % confidence interval of the value if it is an accuracy. seconds: from the start of the first training
    to the end of the last one of the search. curve: the best value so far at each of the comparison's times; None
    before the first.
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
    """A comparison of runs on the same data; its `str` is a report.

    measure: what the winners are compared by, on the validation set: "accuracy", "score" (minus the log loss or a
    user-defined loss), or the metric that the networks were chosen by. times: seconds at which the curves are
    evaluated, up to the end of the shortest run. mean, sd: over runs, of the best value so far at these times; None
    until all runs have one. alike: whether the runs have the same settings except for the seed, and distinct seeds, so
    that they are draws from the same distribution. by_chance: p-value of the differences between the winners'
    accuracies (chi-squared test of homogeneity, which misses some real differences if runs hold out the same examples);
    None if the values are not accuracies. winners_apart: edit distances between the runs' winners, (runs, runs).
    typical: median distance between networks of different runs. shared: Jaccard index of the sets of networks of two
    runs, the mean over pairs. nearest: mean distance of a network to the nearest one of another run. next_better:
    probability that a further run's winner has a higher value than all of these: 1 / (n + 1), as each of n + 1 runs
    that differ only by chance is equally likely to be the best; None unless `alike`. next_value: 95 % prediction
    interval of its value, by Student's t for one more draw from a normal distribution; None for n < 3, and unless
    `alike`.
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
        """The conclusions: how much the winners and networks differ, and what to expect of a further run."""
        values = [run.value for run in self.runs]
        spread = f"The winners are between {self._words(min(values))} and {self._words(max(values))}"
        if self.by_chance is None:
            result = [f"{spread}."]
        else:
            differ = "more" if self.by_chance < SIGNIFICANCE else "no more"
            chance = f"(p = {self.by_chance:.2g}, assuming independent validation sets)"
            result = [f"{spread}, {differ} different than chance would explain {chance}."]
        pairs = [self.winners_apart[i][j] for i, j in combinations(range(len(values)), 2)]
        zeros = sum(pair == 0 for pair in pairs)
        equal = f" ({zeros} of {len(pairs)} pairs at distance 0)" if zeros else ""
        result.append(
            f"They are {np.mean(pairs):.1f} edits apart on average{equal}, against a median of {self.typical:.1f} "
            f"between networks of different runs. Two runs share {100 * self.shared:.0f} % of their networks; the "
            f"nearest network of another run is {self.nearest:.1f} edits away on average."
        )
        if self.next_better is None:
            result.append("The runs have different settings, or the same seed, so they do not predict a further run.")
        else:
            further = (
                f"A further run is better than all of these with a probability of 1 in {round(1 / self.next_better)}"
            )
            if self.next_value is not None:
                accuracy = self.by_chance is not None
                low, high = (self._words(min(max(end, 0.0), 1.0) if accuracy else end) for end in self.next_value)
                further += f"; its result will be between {low} and {high} (95 % prediction interval)"
            result.append(f"{further}.")
        return result

    def _words(self, value: float) -> str:
        return f"{100 * value:.2f} %" if self.by_chance is not None else f"{value:.4f}"

    def draw(self, file: str | os.PathLike[str]) -> Path:
        """Draw the runs' best values so far, their mean and standard deviation, as .svg; else ValueError."""
        target = user_path(file)
        if target.suffix.lower() != ".svg":
            raise ValueError(f"the curves are drawn as .svg, not as {str(target)!r}")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_svg(self), encoding="utf-8")
        return target


def compare_runs(runs: Sequence[RunLike]) -> Comparison:
    """Compare two or more runs on the same data.

    runs: each a run, its folder, or the fitted estimator that it belongs to.

    RunError for a folder without a run. ValueError for fewer than two runs, a run that is given twice, unknown or
    different data, different metrics or losses, and a run in which no network has a score yet.
    """
    if not isinstance(runs, Sequence) or isinstance(runs, (str, bytes)) or len(runs) < 2:
        raise ValueError(f"at least two runs are needed to compare, not {runs!r:.200}")
    loaded = [run_of(run) for run in runs]
    winners: list[Trial] = []
    for i, run in enumerate(loaded):
        if run.path.resolve() in (other.path.resolve() for other in loaded[:i]):
            raise ValueError(f"{str(run.path)!r} is named twice: a run cannot be compared with itself")
        if _data(run) is None:
            raise ValueError(f"the data of the run {str(run.path)!r} are unknown: its run.json is missing or damaged")
        if _data(run) != _data(loaded[0]):
            same = "the same data (x, y, sample_weight, groups, teacher and validation_data)"
            raise ValueError(f"{str(run.path)!r} is not a run on {same} as {str(loaded[0].path)!r}")
        best = facts.best_of(run.trials, run.about)
        if best is None or best.score is None:
            raise ValueError(f"no network of {str(run.path)!r} has a score yet")
        winners.append(best)
    by_accuracy = all(best.outcome is not None and best.outcome.interval is not None for best in winners)
    objectives = [best.outcome.objective if best.outcome else "" for best in winners]
    if len(set(zip(objectives, map(_custom_objective, loaded), strict=True))) > 1:
        differing = objectives if len(set(objectives)) > 1 else map(_custom_objective, loaded)
        names = ", ".join(sorted(set(differing)))
        raise ValueError(
            f"the runs cannot be compared: their networks were chosen by different metrics or losses, {names}"
        )
    by_metric = winners[0].outcome is not None and winners[0].outcome.by_metric
    values = [_value(best, by_accuracy) for best in winners]
    searched = [facts.searched(run.trials) for run in loaded]
    ends = [max(end for _, end in facts.timeline(trials).values()) for trials in searched]
    times = np.linspace(0, min(ends), GRID + 1)[1:]
    curves = [_best_so_far(trials, times, by_accuracy) for trials in searched]
    table = np.array([[math.nan if v is None else v for v in curve] for curve in curves])
    all_scored = ~np.isnan(table).any(0)
    n = len(loaded)
    distinct_seeds = len({run.about.get("seed") for run in loaded}) == n
    alike = distinct_seeds and all(_settings(run) == _settings(loaded[0]) for run in loaded)
    typical, shared, nearest = _overlap(searched)
    sd = float(np.std(values, ddof=1))
    half_width = float(stats.t.ppf(0.975, n - 1)) * sd * math.sqrt(1 + 1 / n)
    winner_distances = distances([best.sketch for best in winners], [best.sketch for best in winners])
    return Comparison(
        runs=tuple(
            Entry(
                path=str(run.path),
                networks=sum(t.score is not None for t in trials),
                best=best.id,
                value=value,
                interval=best.outcome.interval if best.outcome is not None and by_accuracy else None,
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
        measure="accuracy" if by_accuracy else objectives[0] if by_metric else "score",
        times=tuple(times.tolist()),
        mean=tuple(float(m) if known else None for m, known in zip(table.mean(0), all_scored, strict=True)),
        sd=tuple(float(s) if known else None for s, known in zip(table.std(0, ddof=1), all_scored, strict=True)),
        alike=alike,
        by_chance=_homogeneity_p_value(winners) if by_accuracy else None,
        winners_apart=tuple(map(tuple, winner_distances.tolist())),
        typical=typical,
        shared=shared,
        nearest=nearest,
        next_better=1 / (n + 1) if alike else None,
        next_value=(float(np.mean(values)) - half_width, float(np.mean(values)) + half_width)
        if alike and n > 2
        else None,
    )


def _data(run: Run) -> Any:
    """Identifies the examples and validation data of a run; None if run.json does not say."""
    data = run.about.get("data")
    return (data["hash"], str(data.get("validation"))) if isinstance(data, dict) and "hash" in data else None


def _custom_objective(run: Run) -> str:
    """The user-defined metric, else loss, that networks were chosen by, as described in run.json; "" for none."""
    decides = run.about.get("decides")
    return str((decides.get("metric") or decides.get("loss") or "") if isinstance(decides, dict) else "")


def _settings(run: Run) -> tuple[Any, ...]:
    """The settings that determine what a run tries and for how long, except for its seed."""
    decides, settings = run.about.get("decides"), run.about.get("settings")
    rest = {k: v for k, v in decides.items() if k != "random_state"} if isinstance(decides, dict) else None
    effort = [settings.get(name) for name in EFFORT_SETTINGS] if isinstance(settings, dict) else None
    return rest, effort, run.about.get("time_limit")


def _value(trial: Trial, by_accuracy: bool) -> float:
    value = trial.outcome.metric if by_accuracy and trial.outcome is not None else trial.score
    return math.nan if value is None else value


def _best_so_far(trials: Sequence[Trial], times: np.ndarray[Any, Any], by_accuracy: bool) -> list[float | None]:
    spans = facts.timeline(trials)
    scored = [t for t in trials if t.score is not None]
    allowed = [t for t in scored if not t.slow] or scored
    ended = sorted((spans[t.id][1], _value(t, by_accuracy)) for t in allowed)
    return [max((value for end, value in ended if end <= time), default=None) for time in times]


def _homogeneity_p_value(winners: Sequence[Trial]) -> float:
    """The probability that accuracies differ at least as much by chance alone: chi-squared test of homogeneity."""
    outcomes = [best.outcome for best in winners if best.outcome is not None]
    correct = np.array([round((o.metric or 0.0) * o.examples) for o in outcomes])
    total = np.array([o.examples for o in outcomes])
    if correct.sum() in (0, total.sum()):
        return 1.0
    return float(stats.chi2_contingency([correct, total - correct], correction=False).pvalue)


def _overlap(searched: Sequence[Sequence[Trial]]) -> tuple[float, float, float]:
    """Median distance between networks of different runs, mean Jaccard index of two runs' networks, and mean distance
    of a network to the nearest one of another run."""
    sketches = [list({t.graph.key: t.sketch for t in trials}.values()) for trials in searched]
    keys = [{t.graph.key for t in trials} for trials in searched]
    shared = [len(a & b) / len(a | b) for a, b in combinations(keys, 2)]
    matrices = [distances(a, b) for a, b in combinations(sketches, 2)]
    nearest = [side for matrix in matrices for side in (matrix.min(1), matrix.min(0))]
    typical = float(np.median(np.concatenate([matrix.ravel() for matrix in matrices])))
    return typical, float(np.mean(shared)), float(np.mean(np.concatenate(nearest)))


def _svg(comparison: Comparison) -> str:
    """The runs' curves, their mean as a thick line, and a band of one standard deviation around it."""
    width, height, left, right, top, bottom = 720, 380, 70, 700, 34, 330
    values = [v for run in comparison.runs for v in run.curve if v is not None]
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 0.01
    low, high = low - room, high + room
    end = comparison.times[-1]

    def at(time: float, value: float) -> str:
        x = left + time / end * (right - left)
        return f"{x:.1f} {bottom - (min(max(value, low), high) - low) / (high - low) * (bottom - top):.1f}"

    def path(curve: Sequence[float | None], style: str) -> str:
        points = [at(time, value) for time, value in zip(comparison.times, curve, strict=True) if value is not None]
        return f'<path d="M{"L".join(points)}" fill="none" {style}/>' if points else ""

    columns = zip(comparison.times, comparison.mean, comparison.sd, strict=True)
    summary = [(t, m, s) for t, m, s in columns if m is not None and s is not None]
    band = [at(t, m + s) for t, m, s in summary] + [at(t, m - s) for t, m, s in reversed(summary)]
    parts = [f'<path d="M{"L".join(band)}Z" fill="#2460a7" fill-opacity=".14"/>'] if summary else []
    for i in range(5):
        value = low + (high - low) * i / 4
        y = at(0, value).split()[1]
        text = f"{100 * value:.2f} %" if comparison.by_chance is not None else f"{value:.3f}"
        parts.append(f'<path d="M{left} {y}H{right}" stroke="#dfe3e8"/>')
        parts.append(f'<text x="{left - 8}" y="{float(y) + 4:g}" text-anchor="end">{text}</text>')
    for i in range(5):
        x = left + (right - left) * i / 4
        parts.append(f'<text x="{x:g}" y="{bottom + 18}" text-anchor="middle">{escape(duration(end * i / 4))}</text>')
    parts += [path(run.curve, 'stroke="#8a929d" stroke-width="1.3"') for run in comparison.runs]
    parts.append(path(comparison.mean, 'stroke="#2460a7" stroke-width="2.5"'))
    title = f"Best {comparison.measure} so far of {len(comparison.runs)} runs, with mean and standard deviation"
    parts.append(f'<text x="{left}" y="18" font-size="14" font-weight="600">{title}</text>')
    below = f'x="{(left + right) / 2:g}" y="{bottom + 40}" text-anchor="middle"'
    parts.append(f"<text {below}>time since the first training began</text>")
    look = 'font-family="Helvetica, Arial, sans-serif" font-size="12" fill="#1d2127"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'{look}><rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>'
    )
