"""A run's trials as rows of plain values, and as pandas data frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from morphnas.search.trial import Trial
from morphnas.train.recipe import Epoch, Outcome

_OPEN = Outcome("failed")
"""Has no result, like a trial that is not finished."""
_TRIAL = (
    "id", "parent", "morphs", "reason", "final", "depth", "parameters", "flops", "epochs", "epochs_planned", "seconds",
    "score", "measure", "metric", "metric_low", "metric_high", "status", "retries", "images_per_second", "latency",
    "peak_bytes", "morph_error", "kept", "key", "error",
)  # fmt: skip
SETTINGS = ("batch_size", "optimizer", "lr", "weight_decay", "dropout", "label_smoothing", "augment")
"""Of a recipe, what a table of trials has columns of as well."""
TRIAL = (*_TRIAL, *SETTINGS)
"""Columns of a table of trials."""
CURVE = ("trial", "epoch", *(field.name for field in fields(Epoch)))
"""Columns of a table of learning curves."""


def trial_rows(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """A row for every trial, those that run or failed too; what a trial does not have is None.

    parent: whose weights it began with. morphs: as text. reason: the searcher's. final: what a training of the final
    model is for. depth: layers of the longest path. flops: per example. epochs, epochs_planned: of its own. seconds: of
    the training. score: see `Outcome`. metric: of the kind `measure`, metric_low and metric_high the ends of the
    95 % interval of an accuracy. latency: seconds from one example to its outputs. morph_error: how far the morphs
    changed its start's outputs. kept: whether its weights are there. key: equal for equal networks. The others are
    settings of the recipe; augment as text.
    """
    return [_row(trial) for trial in trials]


def _row(trial: Trial) -> dict[str, Any]:
    outcome, graph, why = trial.outcome or _OPEN, trial.graph, trial.proposal.why
    low, high = outcome.interval or (None, None)
    status = "running" if trial.outcome is None else outcome.status
    measure = None if outcome.metric is None else outcome.measure
    recipe = trial.proposal.recipe
    values = (
        trial.id, trial.parent, "; ".join(map(str, trial.proposal.morphs)), why.get("reason"), why.get("final"),
        graph.depth, graph.parameters, graph.flops, outcome.epochs, trial.epochs, outcome.seconds or None,
        outcome.score, measure, outcome.metric, low, high, status, outcome.retries, outcome.images_per_second or None,
        outcome.latency, outcome.peak_bytes, outcome.morph_error, trial.kept, graph.key, outcome.error,
        *(getattr(recipe, name) for name in SETTINGS[:-1]), str(recipe.augment),
    )  # fmt: skip
    return dict(zip(TRIAL, values, strict=True))


def curve_rows(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """A row for every epoch of a trial that is scored: trial, epoch (from 1), and the fields of `Epoch`."""
    return [
        {"trial": trial.id, "epoch": number, **asdict(epoch)}
        for trial in trials
        if trial.outcome is not None
        for number, epoch in enumerate(trial.outcome.curve, 1)
    ]


def frame(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> Any:
    """The rows as a pandas.DataFrame; ImportError, which says what to install, without pandas."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError("data frames need pandas: pip install pandas") from error
    return pandas.DataFrame(list(rows), columns=list(columns))
