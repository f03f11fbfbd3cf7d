"""What a teacher says of examples: another model, which networks are to agree with as well as with y."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from morphnas.estimators.labels import ClassTarget
from morphnas.estimators.sources import Source, as_array, refuse_masked
from morphnas.estimators.targets import RegressionTarget, Target

Teacher = Any
"""A fitted model with `predict_proba`, and `classes_` for labels, or for amounts with `predict`; or what it says."""

SUREST = 1e-6
"""Probability that counts as none."""
ROUNDING = 1e-3
"""By which probabilities may miss a sum of 1."""


def taught_by(teacher: Teacher, source: Source, target: Target) -> NDArray[np.float32] | None:
    """What a teacher's outputs are, (n, outputs), as the target's goal reads them; None where there is none.

    It is asked of the raw examples, a piece at a time. ValueError for what does not go with the examples and y.
    """
    if teacher is None:
        return None
    asks = "predict" if isinstance(target, RegressionTarget) else "predict_proba"
    if ask := getattr(teacher, asks, None):
        try:
            frame = hasattr(source.items, "obj")  # of pandas: a teacher may know its columns by name
            asked = ([items] for _, items in source.slices()) if frame else (parts for _, parts in source.pieces())
            pieces = [_table(ask(part)) for parts in asked for part in parts]
        except TimeoutError:
            raise
        except Exception as error:  # whatever it raises for examples that it was not made for
            raise ValueError(f"the teacher's {asks} fails on {source.name}: {error}") from error
        said = np.concatenate(pieces)
    elif isinstance(teacher, (str, os.PathLike)):
        raise ValueError(f"teacher must be a fitted model, not its path: use morphnas.load({str(teacher)!r})")
    elif hasattr(teacher, "fit") or isinstance(teacher, torch.nn.Module):
        raise ValueError(f"a teacher needs {asks}, which {type(teacher).__name__} does not have")
    else:
        said = _table(teacher)
    if isinstance(target, RegressionTarget):
        return target.encode(said, len(source))
    if isinstance(target, ClassTarget) and hasattr(teacher, "classes_"):
        said = said[:, _columns(teacher.classes_, target)] if said.shape[1:] == np.shape(teacher.classes_) else said
    wanted = (len(source), target.goal.outputs)
    if said.shape != wanted:
        what = "of n examples and k classes" if isinstance(target, ClassTarget) else "of n examples and k labels"
        raise ValueError(f"a teacher's probabilities must be {wanted}, {what}, but these are {said.shape}")
    if not (np.isfinite(said).all() and said.min() >= 0 and said.max() <= 1 + ROUNDING):
        raise ValueError("a teacher's probabilities must be numbers from 0 to 1")
    likely = np.clip(said, SUREST, 1 - SUREST)
    if not isinstance(target, ClassTarget):
        return (np.log(likely) - np.log1p(-likely)).astype(np.float32)
    if not np.allclose(said.sum(1), 1, atol=ROUNDING):
        raise ValueError("a teacher's probabilities must sum to 1 for every example")
    return np.log(likely).astype(np.float32)


def _table(said: Any) -> NDArray[np.float64]:
    """(n, outputs), from (n,) too, and from scikit-learn's list of (n, 2) of no and yes for every tag."""
    refuse_masked(said, "teacher")
    said = as_array(said) if isinstance(said, torch.Tensor) else said
    try:
        several = isinstance(said, list) and len(said) > 0 and all(np.ndim(one) == 2 for one in said)
        table = np.stack([np.asarray(one)[:, -1] for one in said], 1) if several else np.asarray(said)
        table = table.astype(np.float64)
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(f"teacher must be a fitted model or numbers, not {said!r:.100}: {error}") from None
    return table[:, None] if table.ndim == 1 else table


def _columns(classes: Any, target: ClassTarget) -> list[int]:
    """Where the target's classes are among a teacher's; ValueError where these are not the same."""
    theirs, ours = list(np.asarray(classes).tolist()), list(target.classes.tolist())
    if missing := [label for label in ours if label not in theirs]:
        raise ValueError(f"the teacher does not know the class {missing[0]!r}")
    if more := [label for label in theirs if label not in ours]:
        raise ValueError(f"the teacher knows a class that is not in y: {more[0]!r}")
    return [theirs.index(label) for label in ours]
