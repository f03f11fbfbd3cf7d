"""Estimators: scikit-learn's conventions and the legacy names in one class each."""

from morphnas.estimators.classifier import ImageClassifier

__all__ = ["ImageClassifier"]
