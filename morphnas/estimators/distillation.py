"""Outputs of a teacher for knowledge distillation: another model, whose predictions networks learn as well as y."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from morphnas.estimators.labels import ClassTarget
from morphnas.estimators.sources import Source, as_array, check_not_masked
from morphnas.estimators.targets import RegressionTarget, Target

Teacher = Any
"""A fitted model with `predict_proba` (for labels also `classes_`; for regression `predict`), or its predictions."""

MIN_PROBABILITY = 1e-6
"""Probabilities of a teacher are clipped at this distance from 0 and 1, so that logits are finite."""
SUM_TOLERANCE = 1e-3
"""Largest deviation of the sum of an example's probabilities from 1."""


def teacher_outputs(teacher: Teacher, source: Source, target: Target) -> NDArray[np.float32] | None:
    """The teacher's predictions for the examples as outputs (n, outputs) of the target's goal; None without a teacher.

    A fitted model is called on the raw examples, piece by piece. ValueError for predictions that do not fit the
    examples and y.
    """
    if teacher is None:
        return None
    method = "predict" if isinstance(target, RegressionTarget) else "predict_proba"
    if predict := getattr(teacher, method, None):
        try:
            is_frame = hasattr(source.items, "obj")  # pandas: the teacher may refer to columns by name
            pieces = ([items] for _, items in source.slices()) if is_frame else (parts for _, parts in source.pieces())
            tables = [_as_table(predict(part)) for parts in pieces for part in parts]
        except TimeoutError:
            raise
        except Exception as error:  # the teacher may raise anything for examples of another kind than its own
            raise ValueError(f"the teacher's {method} fails on {source.name}: {error}") from error
        predictions = np.concatenate(tables)
    elif isinstance(teacher, (str, os.PathLike)):
        raise ValueError(f"teacher must be a fitted model, not its path: use morphnas.load({str(teacher)!r})")
    elif hasattr(teacher, "fit") or isinstance(teacher, torch.nn.Module):
        raise ValueError(f"a teacher needs {method}, which {type(teacher).__name__} does not have")
    else:
        predictions = _as_table(teacher)
    if isinstance(target, RegressionTarget):
        return target.encode(predictions, len(source))
    if isinstance(target, ClassTarget) and hasattr(teacher, "classes_"):
        same_shape = predictions.shape[1:] == np.shape(teacher.classes_)
        predictions = predictions[:, _class_columns(teacher.classes_, target)] if same_shape else predictions
    shape = (len(source), target.goal.outputs)
    if predictions.shape != shape:
        what = "of n examples and k classes" if isinstance(target, ClassTarget) else "of n examples and k labels"
        raise ValueError(f"a teacher's probabilities must be {shape}, {what}, but these are {predictions.shape}")
    if not (np.isfinite(predictions).all() and predictions.min() >= 0 and predictions.max() <= 1 + SUM_TOLERANCE):
        raise ValueError("a teacher's probabilities must be numbers from 0 to 1")
    clipped = np.clip(predictions, MIN_PROBABILITY, 1 - MIN_PROBABILITY)
    if not isinstance(target, ClassTarget):
        return (np.log(clipped) - np.log1p(-clipped)).astype(np.float32)
    if not np.allclose(predictions.sum(1), 1, atol=SUM_TOLERANCE):
        raise ValueError("a teacher's probabilities must sum to 1 for every example")
    return np.log(clipped).astype(np.float32)


def _as_table(predictions: Any) -> NDArray[np.float64]:
    """Predictions as (n, outputs): from that shape, from (n,), or from scikit-learn's list of (n, 2) for each label."""
    check_not_masked(predictions, "teacher")
    values = as_array(predictions) if isinstance(predictions, torch.Tensor) else predictions
    try:
        is_list = isinstance(values, list) and len(values) > 0 and all(np.ndim(part) == 2 for part in values)
        table = np.stack([np.asarray(part)[:, -1] for part in values], 1) if is_list else np.asarray(values)
        table = table.astype(np.float64)
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(f"teacher must be a fitted model or numbers, not {values!r:.100}: {error}") from None
    return table[:, None] if table.ndim == 1 else table


def _class_columns(classes: Any, target: ClassTarget) -> list[int]:
    """The columns of a teacher with these classes in the order of the target's; ValueError if the classes differ."""
    theirs, ours = list(np.asarray(classes).tolist()), list(target.classes.tolist())
    if missing := [label for label in ours if label not in theirs]:
        raise ValueError(f"the teacher does not know the class {missing[0]!r}")
    if more := [label for label in theirs if label not in ours]:
        raise ValueError(f"the teacher knows a class that is not in y: {more[0]!r}")
    return [theirs.index(label) for label in ours]
