"""Explains a network: its lineage, what each step gained, and the score predicted when it was proposed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from morphnas.report.facts import choice, number
from morphnas.report.words import (
    count,
    epochs_words,
    gain_words,
    measured_words,
    number_words,
    trial_words,
)
from morphnas.run.store import RunLike, run_of
from morphnas.search.trial import Trial, lineage
from morphnas.train.recipe import Outcome

REASONS = {
    "start": "one of the first networks",
    "narrower": "one of the first networks, narrower",
    "promotion": "one of the best so far, to be trained longer",
    "rates": "a network with weights given, to find out how to train all its layers",
    "random": "random morphs",
    "larger": "the largest neighbour of the best",
    "tournament": "a random morph of the best of a random sample of networks",
    "climbing": "a child of the best network so far",
    "greedy": "a neighbour of the best network so far",
    "grid": "a point of the grid",
    "afresh": "the best network so far, with other settings",
    "acquisition": "the most promising candidate",
}
"""Descriptions of the reasons that searchers record in `Proposal.why`."""
ACQUISITIONS = {
    "ei": "expected improvement",
    "ucb": "upper confidence bound",
    "ehvi": "expected hypervolume improvement",
}
"""Acquisition functions, by their names in `Proposal.why`."""


@dataclass(frozen=True)
class Step:
    """A network of a lineage, and what it gained over its parent by its morphs and the training after them.

    score: minus the log loss (or a user-defined loss), or the metric if `by_metric`. gain, metric_gain: of score and
    metric over the parent's; None if either has none. measure: name of the metric. noise: 95 % bound on the difference
    of the two accuracies by chance, if they were measured on different examples; on the same ones, as here, chance
    explains less. clear: whether the accuracy changed by more than that. expected, sd: predicted mean and standard
    deviation of the score at the time of the proposal; None if the searcher predicts none. nearest: (id, edit distance)
    of the most similar networks known then.
    """

    id: int
    what: str
    reason: str
    parameters: int
    epochs: int
    score: float | None
    metric: float | None
    gain: float | None
    measure: str
    metric_gain: float | None
    noise: float | None
    clear: bool | None
    expected: float | None
    sd: float | None
    nearest: tuple[tuple[int, float], ...]
    by_metric: bool = False

    def __str__(self) -> str:
        size = f"{count(self.parameters)} parameters, {epochs_words(self.epochs)}"
        lines = [f"network {self.id}: {self.what} ({size})", f"  why: {self.reason}"]
        if self.expected is not None and self.sd is not None:
            actual = "" if self.score is None else f", actually {number_words(self.score)}"
            name = self.measure if self.by_metric else "score"
            expected = f"{number_words(self.expected)} +/- {number_words(self.sd)}"
            lines.append(f"  expected {name} {expected}{actual}")
        if self.nearest:
            near = ", ".join(f"{id} ({distance:.3g})" for id, distance in self.nearest)
            lines.append(f"  most similar, by edit distance: {near}")
        if self.score is None:
            lines.append("  no score")
        else:
            values = [] if self.by_metric else [f"score {number_words(self.score)}"]
            values += [] if self.metric is None else [measured_words(self.measure, self.metric)]
            lines.append(f"  {', '.join(values)}{self._gains()}")
        return "\n".join(lines)

    def _gains(self) -> str:
        if self.gain is None:
            return ""
        gains = [] if self.by_metric else [f"{self.gain:+.4f}"]
        if self.metric_gain is not None:
            gains.append(gain_words(self.metric_gain, self.measure) + self._significance())
        return f"; gain {', '.join(gains)}" if gains else ""

    def _significance(self) -> str:
        if self.noise is None:
            return ""
        return ": more than chance" if self.clear else f": within chance (up to {100 * self.noise:.2f})"


@dataclass(frozen=True, repr=False)
class Explanation:
    """The lineage of a network, from its first ancestor on; its `str` is a report."""

    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.steps))

    __repr__ = __str__

    def to_json(self) -> list[dict[str, Any]]:
        return [asdict(step) for step in self.steps]


def explain(run: RunLike, trial: int | None = None) -> Explanation:
    """Why a network was tried, and what its morphs gained, from its first ancestor on.

    run: a run, the estimator that it belongs to, or its folder. trial: the network's id; None: the search's winner.
    For a final training, such as `final_trial_`, the explanation also says which scores chose the network it continues.

    Gains include the training after the morphs: a child starts where its parent ended, and part of its gain would have
    come without any morph, from longer training. RunError for an id that the run does not have.
    """
    run = run_of(run)
    line = lineage(run.trials, run.trial(run.get_best_model_id() if trial is None else trial))
    steps = zip(line, [None, *line], strict=False)
    return Explanation(tuple(_step(member, parent, run.about) for member, parent in steps))


def _step(trial: Trial, parent: Trial | None, about: Mapping[str, Any]) -> Step:
    why, outcome = trial.proposal.why, trial.outcome
    start = None if parent is None else parent.outcome
    metric_gain = noise = None
    if outcome and start and outcome.metric is not None and start.metric is not None:
        metric_gain, noise = outcome.metric - start.metric, _noise(outcome, start)
    return Step(
        id=trial.id,
        what=trial_words(trial),
        reason=f"a final training. {choice(about, trial.id)}".removesuffix(". ") if trial.final else _reason(why),
        parameters=trial.graph.parameters,
        epochs=0 if outcome is None else outcome.epochs,
        score=trial.score,
        metric=None if outcome is None else outcome.metric,
        gain=None if trial.score is None or parent is None or parent.score is None else trial.score - parent.score,
        measure="accuracy" if outcome is None else outcome.measure,
        metric_gain=metric_gain,
        noise=noise,
        clear=None if metric_gain is None or noise is None else abs(metric_gain) > noise,
        expected=number(why.get("mean")),
        sd=number(why.get("sd")),
        nearest=nearest(why.get("nearest")),
        by_metric=outcome is not None and outcome.by_metric,
    )


def _reason(why: Mapping[str, Any]) -> str:
    reason = str(why.get("reason", "not recorded"))
    candidates = number(why.get("candidates"))
    acquisition = ACQUISITIONS.get(str(why.get("acquisition")))
    parts = (
        REASONS.get(reason, reason),
        acquisition and f"by {acquisition}",
        None if candidates is None else f"out of {candidates:.0f}",
    )
    return ", ".join(part for part in parts if part)


def _noise(first: Outcome, second: Outcome) -> float | None:
    """95 % bound on the difference of two accuracies by chance, on different examples: the normal approximation with
    one more correct and one more wrong answer in each (Agresti and Caffo 2000, The American Statistician 54, 280-288),
    plus what these answers change of the difference."""
    if first.interval is None or second.interval is None or first.metric is None or second.metric is None:
        return None
    n, m = first.examples + 2, second.examples + 2
    p, q = (first.metric * first.examples + 1) / n, (second.metric * second.examples + 1) / m
    width = 1.959964 * math.sqrt(p * (1 - p) / n + q * (1 - q) / m)
    return width + abs((first.metric - second.metric) - (p - q))


def nearest(value: object) -> tuple[tuple[int, float], ...]:
    """The (id, distance) pairs in what a searcher recorded; anything else is ignored."""
    pairs = value if isinstance(value, (list, tuple)) else ()
    valid = [pair for pair in pairs if isinstance(pair, (list, tuple)) and len(pair) == 2]
    return tuple(
        (int(id), distance) for id, raw in valid if isinstance(id, int) and (distance := number(raw)) is not None
    )
