"""`ImageRegressor`: predicts one or several numbers for an image."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score

from morphnas.estimators.base import ImageEstimator
from morphnas.estimators.targets import RegressionTarget, SampleWeight, checked_weights, regression_values


class ImageRegressor(RegressorMixin, ImageEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Image regressor whose neural network is found by a search within a time limit.

    A scikit-learn estimator. y is one finite number for each example, (n,) or (n, 1), or several, (n, k). Networks
    learn the standardised y by the mean squared error, all targets with equal weight. Without a `metric` or `loss`, the
    score of a network is the mean log likelihood of the standardised y under normal distributions around the
    predictions, whose variance is the mean squared error; the coefficient of determination, R2, is shown beside it.

    Parameters not listed here, attributes and methods are those of `ImageClassifier`, except for `classes_`,
    `multilabel_` and `predict_proba`.

    Parameters
    ----------
    metric : str or callable, optional
        As for `ImageClassifier`, for example "neg_mean_absolute_error". None: networks are chosen by their score, and
        `evaluate` returns the mean squared error.
    loss : callable, optional
        As for `ImageClassifier`, but outputs are predictions: a function or module of predictions and y, both (n,), or
        (n, k) for several targets, float64 and in the units of y, for example `torch.nn.L1Loss()`. None: mean squared
        error.
    """

    _target_types = (RegressionTarget,)

    def predict(self, x_test: Any) -> NDArray[np.float64]:
        """Predict numbers.

        Parameters
        ----------
        x_test
            Examples (n, ...), or anything else that `fit` takes as x.

        Returns
        -------
        ndarray
            Predictions (n,) float64 in the units of y, or (n, k) if `fit` was given several targets.
        """
        source, _ = self._open(x_test)
        return self._target.predictions(self._predict_outputs(source).numpy())

    def evaluate(self, x_test: Any, y_test: Any = None, sample_weight: SampleWeight = None) -> float:
        """Mean squared error on examples with known y, or the `metric` if one is set.

        Parameters
        ----------
        x_test, y_test
            What `fit` takes as x and y.
        sample_weight : array-like, optional
            Weights (n,) of the examples.

        Returns
        -------
        float
            The mean squared error, in the squared units of y and averaged over targets, or the `metric`.

        Raises
        ------
        ValueError
            If y_test is not numbers, or does not have as many targets as the y of `fit`.
        """
        return super().evaluate(x_test, y_test, sample_weight)

    def score(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> float:  # noqa: N803  # scikit-learn's
        """Coefficient of determination, R2, as scikit-learn defines it, whatever the `metric`.

        Parameters
        ----------
        X
            As for `predict`.
        y : array-like
            Numbers (n,), or (n, k) for several targets.
        sample_weight : array-like, optional
            Weights (n,) of the examples.

        Returns
        -------
        float
            R2, averaged over targets.
        """
        predicted = self.predict(X)
        weights = None if sample_weight is None else checked_weights(sample_weight, len(predicted))
        return float(r2_score(regression_values(y, len(predicted)), predicted, sample_weight=weights))

    @staticmethod
    def _read_y(y: ArrayLike, n: int) -> tuple[RegressionTarget, NDArray[Any]]:
        return RegressionTarget.infer(y, n)

    @property
    def _target(self) -> RegressionTarget:
        assert isinstance(self._model.target, RegressionTarget)
        return self._model.target
