"""Estimators: scikit-learn's conventions and the legacy names in one class each."""

from __future__ import annotations

import os

from morphnas.estimators.classifier import ImageClassifier
from morphnas.estimators.model import written
from morphnas.estimators.regressor import ImageRegressor
from morphnas.run.store import user_path


def load(path: str | os.PathLike[str]) -> ImageClassifier | ImageRegressor:
    """The estimator of the run in a folder, of either kind, ready to predict; RunError if there is none."""
    target = written(user_path(path))[1].get("target")
    amounts = isinstance(target, dict) and "amounts" in target
    return ImageRegressor.load(path) if amounts else ImageClassifier.load(path)


__all__ = ["ImageClassifier", "ImageRegressor", "load"]
