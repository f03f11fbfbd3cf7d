"""Tests of a run's rows and data frames."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from morphnas.run.frames import CURVE_COLUMNS, TRIAL_COLUMNS, curve_rows, trial_rows
from morphnas.run.store import Run
from morphnas.train.recipe import Epoch, Outcome
from tests.report.history import history, trial

TRIALS = history()


def test_trial_rows_has_one_row_per_trial() -> None:
    rows = trial_rows(TRIALS)
    assert [row["id"] for row in rows] == [t.id for t in TRIALS]
    for row, t in zip(rows, TRIALS, strict=True):
        assert tuple(row) == TRIAL_COLUMNS
        assert row["parent"] == t.parent
        assert row["score"] == t.score
        assert row["status"] == ("running" if t.outcome is None else t.outcome.status)
        assert (row["metric"] is None) == (row["metric_low"] is None)
        assert (row["parameters"], row["key"]) == (t.graph.parameters, t.graph.key)
    assert {"running", "finished"} < {row["status"] for row in rows}


def test_curve_rows_has_one_row_per_epoch() -> None:
    curve = tuple(Epoch(float(i), 1 / i, -1 / i, 1 - 1 / (i + 1)) for i in (1, 2, 3))
    with_curve = trial(9, TRIALS[0].graph, outcome=Outcome("finished", -0.5, 0.75, 3.0, 3, 3, curve, examples=100))
    rows = curve_rows([*TRIALS, with_curve])
    assert [(row["trial"], row["epoch"], row["score"]) for row in rows if row["trial"] == 9] == [
        (9, 1, -1), (9, 2, -1 / 2), (9, 3, -1 / 3)
    ]  # fmt: skip
    assert all(tuple(row) == CURVE_COLUMNS for row in rows)


@pytest.mark.parametrize("trials", [(), tuple(TRIALS)])
def test_dataframes_have_fixed_columns(trials: tuple) -> None:
    pytest.importorskip("pandas")
    run = Run(Path("run"), {}, trials)
    frame, curves = run.trials_dataframe(), run.curves()
    assert (tuple(frame.columns), tuple(curves.columns)) == (TRIAL_COLUMNS, CURVE_COLUMNS)
    assert len(frame) == len(trials)
    if trials:
        assert np.nanmax(frame["score"].astype(float)) == max(t.score for t in trials if t.score is not None)


def test_missing_pandas_raises_error_with_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        Run(Path("run"), {}, ()).trials_dataframe()
