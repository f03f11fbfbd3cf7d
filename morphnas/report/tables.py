"""The trials of a search as a plain-text table."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from morphnas.report.words import count, duration, interval_words, metric_words, status_words, trial_words
from morphnas.run.store import Run, RunLike, run_of
from morphnas.search.trial import Trial


def _epochs(trial: Trial) -> str:
    """Epochs trained, with the planned number if the training stopped early."""
    if trial.outcome is None:
        return f"0/{trial.epochs}"
    done = trial.outcome.epochs
    return str(done) if done == trial.epochs else f"{done}/{trial.epochs}"


_COLUMNS: tuple[tuple[str, str, Callable[[Trial], str]], ...] = (
    ("id", ">", lambda t: str(t.id)),
    ("from", ">", lambda t: "" if t.parent is None else str(t.parent)),
    ("what", "<", trial_words),
    ("depth", ">", lambda t: str(t.graph.depth)),
    ("params", ">", lambda t: count(t.graph.parameters)),
    ("FLOPs", ">", lambda t: count(t.graph.flops)),
    ("epochs", ">", _epochs),
    ("time", ">", lambda t: "" if t.outcome is None else duration(t.outcome.seconds)),
    ("score", ">", lambda t: "" if t.score is None else f"{t.score:.4f}"),
    ("metric", ">", lambda t: metric_words(t.outcome)),
    ("95 %", "<", lambda t: interval_words(t.outcome)),
    ("status", "<", status_words),
)


def trials_table(trials: Sequence[Trial] | RunLike, best: int | None = None, widest: int = 60) -> str:
    """A table with one line per trial; "*" marks the trial with the id `best`.

    trials: such as a run's `trials` or its `front()`; or a run, the estimator that it belongs to, or its folder.
    widest: maximum width of a column.

    Columns: epochs: of this training, "3/8" if it stopped early. metric: the accuracy, with its 95 % confidence
    interval beside it, or another metric. score: minus the log loss or a user-defined loss; left out if it is the
    metric.
    """
    if isinstance(trials, (str, os.PathLike, Run)) or hasattr(trials, "load_searcher"):
        trials = run_of(trials).trials
    scored = [trial.outcome for trial in trials if trial.outcome and trial.outcome.metric is not None]
    by_metric = bool(scored) and all(outcome.by_metric for outcome in scored)
    columns = [column for column in _COLUMNS if not (by_metric and column[0] == "score")]
    rows = [[_cut(cell(trial), widest) for _, _, cell in columns] for trial in trials]
    header = [title for title, _, _ in columns]
    measures = {outcome.measure for outcome in scored}
    if len(measures) == 1:
        header[header.index("metric")] = measures.pop()
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(mark: str, cells: Sequence[str]) -> str:
        padded = (f"{cell:{side}{width}}" for cell, (_, side, _), width in zip(cells, columns, widths, strict=True))
        return f"{mark} {'  '.join(padded)}".rstrip()

    marks = ["*" if trial.id == best else " " for trial in trials]
    rule = "  " + "  ".join("-" * width for width in widths)
    lines = [line(" ", header), rule, *(line(mark, row) for mark, row in zip(marks, rows, strict=True))]
    return "\n".join([*lines, "* the best"] if "*" in marks else lines)


def _cut(text: str, widest: int) -> str:
    return text if len(text) <= widest else text[: widest - 3] + "..."
