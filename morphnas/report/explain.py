"""Why a network: how it came about, what each edit gained, and what was expected of it when it was proposed."""

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
    "random": "random morphs",
    "larger": "the largest neighbour of the best",
    "tournament": "a random morph of the best of a random sample of networks",
    "climbing": "a child of the best network so far",
    "greedy": "a neighbour of the best network so far",
    "grid": "a point of the grid",
    "afresh": "the best network so far, with other settings",
    "acquisition": "the most promising candidate",
}
"""What the reasons that searchers note down mean."""
ACQUISITIONS = {
    "ei": "expected improvement",
    "ucb": "upper confidence bound",
    "ehvi": "expected hypervolume improvement",
}
"""What they call what a network promises."""


@dataclass(frozen=True)
class Step:
    """A network of a lineage, and what its morphs, and the training after them, made of its start.

    score: minus the log loss, or the metric where that is `by_metric`; gain: of the score over its start's; None where
    either has none. measure: what the metric is. noise: how far two accuracies may differ by chance, at 95 %, if they
    were of different examples; as they are of the same ones, chance makes less. clear: whether the accuracy has changed
    by more. expected, sd: of the score, when it was proposed; None where the searcher expects nothing. nearest: (id,
    edit distance) of the known networks that were most like it.
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
            came = "" if self.score is None else f", actually {number_words(self.score)}"
            what = self.measure if self.by_metric else "score"
            expected = f"{number_words(self.expected)} +/- {number_words(self.sd)}"
            lines.append(f"  expected {what} {expected}{came}")
        if self.nearest:
            near = ", ".join(f"{id} at {distance:.3g}" for id, distance in self.nearest)
            lines.append(f"  most like it, by edit distance: {near}")
        if self.score is None:
            lines.append("  no score")
        else:
            told = [] if self.by_metric else [f"score {number_words(self.score)}"]
            told += [] if self.metric is None else [measured_words(self.measure, self.metric)]
            lines.append(f"  {', '.join(told)}{self._gains()}")
        return "\n".join(lines)

    def _gains(self) -> str:
        if self.gain is None:
            return ""
        told = [] if self.by_metric else [f"{self.gain:+.4f}"]
        if self.metric_gain is not None:
            told.append(gain_words(self.metric_gain, self.measure) + self._beside_chance())
        return f"; gain {', '.join(told)}" if told else ""

    def _beside_chance(self) -> str:
        if self.noise is None:
            return ""
        return ": more than chance" if self.clear else f": within chance, up to {100 * self.noise:.2f}"


@dataclass(frozen=True, repr=False)
class Explanation:
    """The lineage of a network, from what the search began with; `str` of it is for people."""

    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.steps))

    __repr__ = __str__

    def to_json(self) -> list[dict[str, Any]]:
        return [asdict(step) for step in self.steps]


def explain(run: RunLike, trial: int | None = None) -> Explanation:
    """Why a network was tried, and what its morphs gained, from its first ancestor on.

    run: a run, the estimator that it belongs to, or its folder. trial: the network's id; None: the search's winner.
    That of a final training, such as `final_trial_`, also says why it goes on from which network.

    Gains include a training after the morphs: a child begins as its parent ended, and part of its gain would have come
    without any morph, from longer training. RunError for an id that the run does not have.
    """
    run = run_of(run)
    line = lineage(run.trials, run.trial(run.get_best_model_id() if trial is None else trial))
    return Explanation(tuple(_step(one, before, run.about) for before, one in zip([None, *line], line, strict=False)))


def _step(trial: Trial, before: Trial | None, about: Mapping[str, Any]) -> Step:
    why, outcome = trial.proposal.why, trial.outcome
    start = None if before is None else before.outcome
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
        gain=None if trial.score is None or before is None or before.score is None else trial.score - before.score,
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
    said = REASONS.get(reason, reason)
    looked = number(why.get("candidates"))
    rule = ACQUISITIONS.get(str(why.get("acquisition")))
    parts = (said, rule and f"by the {rule}", None if looked is None else f"of {looked:.0f}")
    return ", ".join(part for part in parts if part)


def _noise(one: Outcome, other: Outcome) -> float | None:
    """How far two shares of correct answers differ by chance, at 95 %, for other examples: the normal approximation,
    with a right and a wrong answer more (Agresti and Caffo 2000, The American Statistician 54, 280-288), and what these
    answers take off the difference."""
    if one.interval is None or other.interval is None or one.metric is None or other.metric is None:
        return None
    n, m = one.examples + 2, other.examples + 2
    p, q = (one.metric * one.examples + 1) / n, (other.metric * other.examples + 1) / m
    width = 1.959964 * math.sqrt(p * (1 - p) / n + q * (1 - q) / m)
    return width + abs((one.metric - other.metric) - (p - q))


def nearest(value: object) -> tuple[tuple[int, float], ...]:
    """What a searcher noted down, as far as it is pairs of an id and a distance."""
    pairs = value if isinstance(value, (list, tuple)) else ()
    found = [pair for pair in pairs if isinstance(pair, (list, tuple)) and len(pair) == 2]
    return tuple(
        (int(id), distance) for id, raw in found if isinstance(id, int) and (distance := number(raw)) is not None
    )
