"""`ImageRegressor`: predicts one or several numbers for an image."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score

from morphnas.estimators.base import ImageEstimator
from morphnas.estimators.targets import RegressionTarget, SampleWeight, amounts_of, given_weights


class ImageRegressor(RegressorMixin, ImageEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Finds a neural network that predicts numbers from images, or from rows of numbers, within a time limit.

    Arguments, attributes and methods are those of `ImageClassifier`, except for `classes_`, `multilabel_` and
    `predict_proba`. y is one finite number for each example, (n,) or (n, 1), or several, (n, k). Networks learn their
    deviations from the mean, by the mean squared error; several targets count alike. The metric of networks is the
    coefficient of determination, R2, which `score` returns too; their score is minus the log loss of normal
    distributions around the predictions, as wide as their errors. `evaluate` and `test_metric_` are mean squared
    errors, in the squared units of y.

    metric: as for `ImageClassifier`, for example "neg_mean_absolute_error"; `evaluate` then returns it. loss: a
    function or a module of predictions and y, both (n,), or (n, k) for several targets, float64 and in the units of y,
    for example `torch.nn.L1Loss()`.
    """

    _kinds = (RegressionTarget,)

    def predict(self, x_test: Any) -> NDArray[np.float64]:
        """Numbers (n,), or (n, k) if fit was given several, of examples (n, ...), or anything else `fit` takes."""
        source, _ = self._asked(x_test)
        return self._values.amounts(self._predicted(source).numpy())

    def evaluate(self, x_test: Any, y_test: Any = None, sample_weight: SampleWeight = None) -> float:
        """The mean squared error over examples with known y, in the squared units of y; or the `metric`.

        sample_weight: (n,) numbers, the weight of each example.
        """
        return super().evaluate(x_test, y_test, sample_weight)

    def score(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> float:  # noqa: N803  # scikit-learn's
        """The coefficient of determination, R2, as in scikit-learn."""
        said = self.predict(X)
        weights = None if sample_weight is None else given_weights(sample_weight, len(said))
        return float(r2_score(amounts_of(y, len(said)), said, sample_weight=weights))

    @staticmethod
    def _read(y: ArrayLike, n: int) -> tuple[RegressionTarget, NDArray[Any]]:
        return RegressionTarget.found(y, n)

    @property
    def _values(self) -> RegressionTarget:
        assert isinstance(self._model.target, RegressionTarget)
        return self._model.target
