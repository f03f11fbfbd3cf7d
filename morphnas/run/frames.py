"""A run's trials as rows of plain values and as pandas data frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from morphnas.search.trial import Trial
from morphnas.train.recipe import Epoch, Outcome

_NO_OUTCOME = Outcome("failed")
"""Stands for the outcome of a trial that is still running: all results are None or 0."""
_OWN_COLUMNS = (
    "id", "parent", "morphs", "reason", "final", "depth", "parameters", "flops", "epochs", "epochs_planned", "seconds",
    "score", "measure", "metric", "metric_low", "metric_high", "status", "retries", "images_per_second", "latency",
    "peak_bytes", "morph_error", "kept", "key", "error",
)  # fmt: skip
RECIPE_COLUMNS = ("batch_size", "optimizer", "lr", "weight_decay", "dropout", "label_smoothing", "augment")
"""Fields of a trial's recipe that are columns, too."""
TRIAL_COLUMNS = (*_OWN_COLUMNS, *RECIPE_COLUMNS)
"""Columns of the table of trials."""
CURVE_COLUMNS = ("trial", "epoch", *(field.name for field in fields(Epoch)))
"""Columns of the table of learning curves."""


def trial_rows(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """One row per trial, including those that are running or failed; values that a trial does not have are None, or 0
    for epochs, retries and peak_bytes.

    parent: id of the trial whose weights it started from. morphs: as text. reason: the searcher's. final: purpose of a
    final training. depth: layers of the longest path. flops: per example. epochs, epochs_planned: of this trial alone.
    seconds: of training and validation. metric: value of the metric named in `measure`; metric_low and metric_high:
    95 % interval of an accuracy. status: that of the outcome, or "running". latency: seconds from one example to its
    outputs. morph_error: how far the morphs changed the parent's outputs. kept: whether its weights are stored. key:
    equal for equal networks. augment: as text. For the other columns see `Outcome` and `Recipe`.
    """
    return [_row(trial) for trial in trials]


def _row(trial: Trial) -> dict[str, Any]:
    outcome, graph, why = trial.outcome or _NO_OUTCOME, trial.graph, trial.proposal.why
    low, high = outcome.interval or (None, None)
    status = "running" if trial.outcome is None else outcome.status
    measure = None if outcome.metric is None else outcome.measure
    recipe = trial.proposal.recipe
    values = (
        trial.id, trial.parent, "; ".join(map(str, trial.proposal.morphs)), why.get("reason"), why.get("final"),
        graph.depth, graph.parameters, graph.flops, outcome.epochs, trial.epochs, outcome.seconds or None,
        outcome.score, measure, outcome.metric, low, high, status, outcome.retries, outcome.images_per_second or None,
        outcome.latency, outcome.peak_bytes, outcome.morph_error, trial.kept, graph.key, outcome.error,
        *(getattr(recipe, name) for name in RECIPE_COLUMNS[:-1]), str(recipe.augment),
    )  # fmt: skip
    return dict(zip(TRIAL_COLUMNS, values, strict=True))


def curve_rows(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """One row per entry of the trials' learning curves: trial, epoch (from 1), and the fields of `Epoch`."""
    return [
        {"trial": trial.id, "epoch": number, **asdict(epoch)}
        for trial in trials
        if trial.outcome is not None
        for number, epoch in enumerate(trial.outcome.curve, 1)
    ]


def frame(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> Any:
    """The rows as a pandas.DataFrame; ImportError, which says how to install it, without pandas."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError("data frames need pandas: pip install pandas") from error
    return pandas.DataFrame(list(rows), columns=list(columns))
