"""Targets: multi-label and regression y (single labels are in `labels.py`), encoded for training and decoded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.extmath import randomized_svd
from torch import Tensor, fx

from morphnas.estimators.labels import ClassTarget, LabelTarget, check_present, label_array
from morphnas.estimators.sources import as_array, check_not_masked
from morphnas.train.goal import Goal, MultiLabel, Regression
from morphnas.train.recipe import is_number

MAX_STRATA = MIN_STRATUM_SIZE = 20
"""Strata for splits of multi-label and regression data: their number, at most, and examples in each, at least."""


@dataclass(frozen=True, eq=False)
class MultiLabelTarget(LabelTarget):
    """Multi-label y: each example has any subset of k labels (scikit-learn's "multilabel-indicator").

    names: of the labels, from a data frame's columns; () if there are none.
    """

    k: int
    names: tuple[str, ...] = ()

    @staticmethod
    def infer(y: ArrayLike, n: int) -> tuple[MultiLabelTarget, NDArray[np.float32]]:
        """The labels of y, (n, k) of 0 and 1, and y encoded; ValueError if y is invalid or all its rows are equal."""
        target = MultiLabelTarget(_as_table(y).shape[1], _column_names(y))
        codes = target.encode(y, n)
        if (codes == codes[0]).all():
            raise ValueError(f"there is nothing to learn: y is {codes[0].astype(int).tolist()} for all {n:,} samples")
        return target, codes

    def encode(self, y: ArrayLike, n: int) -> NDArray[np.float32]:
        """y as float32 (n, k) for training; ValueError if it is not 0 and 1 for the labels of the fit."""
        check_present(y, "only a Dataset of (image, labels) contains it")
        table, names = _as_table(y), _column_names(y)
        if names and self.names and names != self.names:
            raise ValueError(f"the columns of y must be {self.names!r:.200}, as in the fit, not {names!r:.200}")
        if table.shape != (n, self.k):
            raise ValueError(
                f"y must be ({n}, {self.k}), one column for each label (multi-label), but its shape is {table.shape}"
            )
        if not _is_binary(table):
            raise ValueError("y must be 0 or 1 everywhere: whether an example has a label")
        return table.astype(np.float32, order="C")

    @property
    def classes(self) -> NDArray[Any]:
        """The names of the labels, or else their indices."""
        return np.array(self.names) if self.names else np.arange(self.k)

    @property
    def goal(self) -> Goal:
        return MultiLabel(self.k)

    def probabilities(self, outputs: Tensor) -> NDArray[np.float64]:
        """Probabilities (n, k) of the labels from logits (n, k)."""
        probabilities: NDArray[np.float64] = outputs.double().sigmoid().numpy()
        return probabilities

    def most_probable(self, probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
        """Predicted labels (n, k) of 0 and 1: those with a probability of at least 0.5."""
        return (probabilities >= 0.5).astype(np.int64)

    def strata(self, codes: NDArray[Any]) -> NDArray[np.int64]:
        """(n,) strata of examples with similar labels, for stratified splits."""
        return _strata(codes - codes.mean(0))

    def to_json(self) -> dict[str, Any]:
        return {"tags": self.k} | ({"names": list(self.names)} if self.names else {})

    @staticmethod
    def from_json(data: Any) -> MultiLabelTarget:
        """The target stored by `to_json`; ValueError if `data` is invalid."""
        k = data.get("tags") if isinstance(data, Mapping) else None
        if not isinstance(k, int) or isinstance(k, bool) or k < 2:
            raise ValueError(f"{data!r:.100} does not give the number of labels")
        names = data.get("names", [])
        if not isinstance(names, list) or len(names) not in (0, k) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{names!r:.100} are not the names of {k} labels")
        return MultiLabelTarget(k, tuple(names))


@dataclass(frozen=True, eq=False)
class RegressionTarget:
    """Regression with k values per example: networks learn them standardised.

    mean, std: (k,) float64 of the y of the fit; std is 1 for constant columns.
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    @staticmethod
    def infer(
        y: ArrayLike, n: int, weights: NDArray[np.float32] | None = None
    ) -> tuple[RegressionTarget, NDArray[np.float32]]:
        """Infer mean and std from y, (n,), (n, 1) or (n, k), and encode y, (n, k); ValueError for invalid y.

        weights: (n,) sample weights of mean and std; None: all are 1.
        """
        table = regression_values(y, n)
        rows, row_weights = (table, None) if weights is None else (table[weights > 0], weights[weights > 0])
        with np.errstate(over="ignore"):
            mean = np.average(rows, axis=0, weights=row_weights)
            std = np.sqrt(np.average((rows - mean) ** 2, axis=0, weights=row_weights))
        if not (np.isfinite(mean).all() and np.isfinite(std).all()):
            raise ValueError("y holds numbers that are too large: their squares overflow float64")
        constant = rows.max(0) - rows.min(0) <= 4 * np.finfo(np.float64).eps * np.abs(mean)
        if (std[~constant] ** 2 == 0).any():
            raise ValueError("y holds numbers that are too small: the squares of their deviations are 0 in float64")
        if constant.all():
            raise ValueError(f"there is nothing to learn: y is {table[0].tolist()} for all {n:,} samples")
        target = RegressionTarget(mean, np.where(constant, 1.0, std))
        return target, target._standardised(table)

    def encode(self, y: ArrayLike, n: int) -> NDArray[np.float32]:
        """y standardised for training, (n, k) float32; ValueError if it does not match the y of the fit."""
        table = regression_values(y, n)
        if table.shape[1] != len(self.mean):
            raise ValueError(f"y has {table.shape[1]} numbers for each example, but fit saw {len(self.mean)}")
        return self._standardised(table)

    def _standardised(self, table: NDArray[np.float64]) -> NDArray[np.float32]:
        codes = (table - self.mean) / self.std
        if not (np.abs(codes) < 1e30).all():
            raise ValueError("y holds numbers that are too large compared with those of the fit")
        return codes.astype(np.float32)

    def decode(self, outputs: NDArray[Any]) -> NDArray[np.float64]:
        """Undo the standardisation of outputs (n, k)."""
        values: NDArray[np.float64] = outputs.astype(np.float64) * self.std + self.mean
        return values

    def predictions(self, outputs: NDArray[Any]) -> NDArray[np.float64]:
        """Predictions from outputs (n, k): decoded, and (n,) if k is 1."""
        values = self.decode(outputs)
        return values[:, 0] if self.single_output else values

    @property
    def single_output(self) -> bool:
        """Whether there is one value per example, so that predictions are (n,) instead of (n, k)."""
        return len(self.mean) == 1

    @property
    def goal(self) -> Goal:
        return Regression(len(self.mean))

    def metric(self, outputs: Tensor, codes: Tensor, weights: NDArray[np.float32] | None = None) -> float:
        """The mean squared error in the units of y, averaged over its columns."""
        errors = (outputs - codes).double().numpy() * self.std
        return float(np.average(np.square(errors).mean(1), weights=weights))

    def format_metric(self, measured: float) -> str:
        return f"mean squared error {measured:.4g}"

    def add_decoding(self, module: fx.GraphModule, outputs: fx.Node, temperature: float) -> fx.Node:
        """Add a node to the module's graph that decodes the outputs, and return it.

        It computes in float64, since values of y may be large relative to their spread.
        """
        graph = module.graph
        module.register_buffer("unit", torch.from_numpy(self.std))
        module.register_buffer("centre", torch.from_numpy(self.mean))
        scaled = graph.call_function(torch.mul, (outputs, graph.get_attr("unit")))
        return graph.call_function(torch.add, (scaled, graph.get_attr("centre")))

    def strata(self, codes: NDArray[Any]) -> NDArray[np.int64]:
        """(n,) strata of examples with similar values, for stratified splits."""
        return _strata(codes)

    def to_json(self) -> dict[str, Any]:
        return {"amounts": {"mean": self.mean.tolist(), "std": self.std.tolist()}}

    @staticmethod
    def from_json(data: Any) -> RegressionTarget:
        """The target stored by `to_json`; ValueError if `data` is invalid."""
        amounts = data.get("amounts") if isinstance(data, Mapping) else None
        if not isinstance(amounts, Mapping) or set(amounts) != {"mean", "std"}:
            raise ValueError(f"{data!r:.100} does not give the mean and standard deviation of y")
        for numbers in amounts.values():
            if not (isinstance(numbers, list) and numbers and all(map(is_number, numbers))):
                raise ValueError(f"the mean or standard deviation of y cannot be {numbers!r:.100}")
        mean, std = (np.array(amounts[name], dtype=np.float64) for name in ("mean", "std"))
        if len(mean) != len(std) or min(std) <= 0:
            raise ValueError(f"the standard deviation of y cannot be {amounts['std']!r:.100}")
        return RegressionTarget(mean, std)


Target = ClassTarget | MultiLabelTarget | RegressionTarget
"""The kind of y in a fit, and how it is encoded."""

InferTarget = Callable[[ArrayLike, int], tuple[Target, NDArray[Any]]]
"""Infers the target from y and the number of examples, and encodes y; ValueError for invalid y."""

SampleWeight = ArrayLike | Literal["balanced"] | None
"""Sample weights: (n,) non-negative numbers, or "balanced" for labels: all classes have the same total weight."""


def weights_of(sample_weight: SampleWeight, n: int, codes: NDArray[Any], target: Target) -> NDArray[np.float32] | None:
    """Sample weights (n,) with mean 1; None if all are equal. ValueError for invalid weights.

    codes: encoded y.
    """
    if sample_weight is None:
        return None
    if isinstance(sample_weight, str):
        if sample_weight != "balanced" or not isinstance(target, ClassTarget):
            labels = isinstance(target, ClassTarget)
            words = 'None, numbers (n,) or "balanced"' if labels else "None or numbers (n,)"
            hint = "" if labels or sample_weight != "balanced" else ": only labels, one for each example, are balanced"
            raise ValueError(f"sample_weight must be {words}, not {sample_weight!r:.100}{hint}")
        sample_weight = compute_sample_weight("balanced", codes)
    weights = checked_weights(sample_weight, n)
    return None if (weights == weights[0]).all() else (weights / weights.mean()).astype(np.float32)


def checked_weights(sample_weight: ArrayLike, n: int) -> NDArray[np.float64]:
    """The sample weights (n,) as given; ValueError for invalid weights."""
    check_not_masked(sample_weight, "sample_weight")
    try:
        weights = as_array(sample_weight) if isinstance(sample_weight, torch.Tensor) else sample_weight
        weights = np.asarray(weights, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"sample_weight must hold numbers: {error}") from None
    if weights.shape != (n,):
        raise ValueError(f"sample_weight must be ({n},), a number for each example, but its shape is {weights.shape}")
    if not (np.isfinite(weights).all() and (weights >= 0).all() and np.isfinite(weights.sum()) and weights.any()):
        raise ValueError("sample_weight must be finite numbers, none negative and not all 0")
    return weights


def classification_target(y: ArrayLike, n: int) -> tuple[ClassTarget | MultiLabelTarget, NDArray[Any]]:
    """The target of a classifier, single-label or multi-label, and encoded y; ValueError for invalid y.

    y: (n,) or (n, 1) labels; (n, k) of 0 and 1 for multi-label data, which may be sparse. If all rows of such a matrix
    have exactly one 1, they are taken for one-hot labels, which is an error.
    """
    try:
        table = np.empty(0) if y is None else _as_table(y)
    except ValueError:  # raised again below, with a better message
        table = np.empty(0)
    binary = table.ndim == 2 and table.shape[1] > 1 and len(table) > 0 and _is_binary(table)
    return MultiLabelTarget.infer(y, n) if binary and (table.sum(1) != 1).any() else ClassTarget.infer(y, n)


def _as_table(y: Any) -> NDArray[Any]:
    """As `label_array`, but sparse matrices become dense, and numeric columns of several dtypes float64."""
    values = label_array(y.toarray() if hasattr(y, "toarray") else y)
    if values.ndim == 2 and values.dtype == object:
        with contextlib.suppress(TypeError, ValueError):
            return values.astype(np.float64)
    return values


def _column_names(y: Any) -> tuple[str, ...]:
    """The column names of a data frame, if all are distinct strings; else ()."""
    names = tuple(getattr(y, "columns", ()))
    return names if all(isinstance(name, str) for name in names) and len({*names}) == len(names) else ()


def _is_binary(values: NDArray[Any]) -> bool:
    return values.dtype.kind in "buif" and bool(((values == 0) | (values == 1)).all())


def _strata(codes: NDArray[Any]) -> NDArray[np.int64]:
    """(n,) quantiles of centred codes (n, k), or, if k is not 1, of their first principal component."""
    component = codes[:, 0]
    if codes.shape[1] > 1:
        component = codes @ randomized_svd(codes, n_components=1, random_state=0)[2][0]
    n_strata = max(1, min(MAX_STRATA, len(codes) // MIN_STRATUM_SIZE))
    rank = np.empty(len(codes), dtype=np.int64)
    rank[np.argsort(component, kind="stable")] = np.arange(len(codes))
    return rank * n_strata // len(codes)


def regression_values(y: ArrayLike, n: int) -> NDArray[np.float64]:
    """Regression values y as float64 (n, k); ValueError for invalid y."""
    check_present(y, "only a Dataset of (image, number) contains it")
    if isinstance(y, (list, tuple)):
        y = [item.tolist() if isinstance(item, torch.Tensor) else item for item in y]
    try:
        values = as_array(y) if isinstance(y, torch.Tensor) else np.asarray(y)
    except ValueError as error:
        raise ValueError(f"y cannot be made an array of numbers: {error}") from None
    hint = "use ImageClassifier for labels"
    if values.dtype.kind not in "buifOUS":
        word = "Complex data not supported: " if values.dtype.kind == "c" else ""
        raise ValueError(f"{word}y must hold numbers, but its dtype is {values.dtype}; {hint}")
    try:
        table = values.astype(np.float64, order="C")  # also of strings, as from a CSV file
    except (TypeError, ValueError) as error:
        raise ValueError(f"y must hold numbers: {error}; {hint}") from None
    if table.ndim == 1:
        table = table[:, None]
    if table.ndim != 2 or not table.shape[1]:
        raise ValueError(f"y must be (n,) or (n, k), but its shape is {values.shape}")
    if len(table) != n:
        raise ValueError(f"x has {n} examples but y has {len(table)}")
    if not (finite := np.isfinite(table).all(1)).all():
        raise ValueError(f"y contains NaN or infinity, first in y[{int(np.flatnonzero(~finite)[0])}]")
    return table


def target_from_json(data: Any) -> Target:
    """The target stored by `to_json`; ValueError if `data` is invalid."""
    kinds: dict[str, type[RegressionTarget | MultiLabelTarget]] = {
        "amounts": RegressionTarget,
        "tags": MultiLabelTarget,
    }
    kind = next((kinds[name] for name in kinds if isinstance(data, Mapping) and name in data), ClassTarget)
    return kind.from_json(data)
