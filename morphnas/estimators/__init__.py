"""The estimators, which follow scikit-learn's conventions and keep the method names of AutoKeras 0.x."""

from __future__ import annotations

import os

from morphnas.estimators.classifier import ImageClassifier
from morphnas.estimators.model import read_stored_model
from morphnas.estimators.regressor import ImageRegressor
from morphnas.run.store import user_path


def load(path: str | os.PathLike[str]) -> ImageClassifier | ImageRegressor:
    """Load whichever estimator was fitted in the run folder `path`, see its `load`. RunError if there is no model."""
    target = read_stored_model(user_path(path))[1].get("target")
    is_regression = isinstance(target, dict) and "amounts" in target
    return ImageRegressor.load(path) if is_regression else ImageClassifier.load(path)


__all__ = ["ImageClassifier", "ImageRegressor", "load"]
