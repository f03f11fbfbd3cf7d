"""Encode labels of any hashable type as class indices, decode them, and store the classes as JSON."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.multiclass import check_classification_targets
from torch import Tensor, fx

from morphnas.estimators.sources import as_array, check_not_masked
from morphnas.train.goal import Classification, Goal

_UNITS = ("Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as")
DTYPES = {
    "object", "str", "bytes",
    *(np.dtype(code).name for code in "?" + np.typecodes["AllInteger"] + np.typecodes["Float"]),
    *(f"{time}64[{unit}]" for time in ("datetime", "timedelta") for unit in _UNITS),
}  # fmt: skip
"""Names of the NumPy dtypes that stored classes may have; other names in a file are refused."""


class LabelTarget(ABC):
    """What single-label and multi-label targets have in common: outputs are logits, and the metric is accuracy."""

    @property
    @abstractmethod
    def goal(self) -> Goal: ...

    def metric(self, outputs: Tensor, codes: Tensor, weights: NDArray[np.float32] | None = None) -> float:
        """The accuracy of outputs for encoded y; multi-label: the share of examples with all labels right."""
        return float(np.average((self.goal.errors(outputs, codes) == 0).numpy(), weights=weights))

    def format_metric(self, measured: float) -> str:
        return f"accuracy {measured:.2%}"

    def add_decoding(self, module: fx.GraphModule, outputs: fx.Node, temperature: float) -> fx.Node:
        """Add a node to the module's graph that computes calibrated logits, and return it."""
        return module.graph.call_function(torch.div, (outputs, temperature))


@dataclass(frozen=True, eq=False)
class ClassTarget(LabelTarget):
    """A single label per example.

    classes: (k,) sorted; of dtype object if the labels have several types, or one that NumPy lacks, such as tuples.
    """

    classes: NDArray[Any]

    @staticmethod
    def infer(y: ArrayLike, n: int) -> tuple[ClassTarget, NDArray[np.int64]]:
        """Infer the classes from labels y, (n,) or (n, 1), and encode y, (n,); ValueError for invalid labels."""
        column = _column(y, n)
        if column.dtype != object:
            if column.dtype.kind == "f":
                try:
                    check_classification_targets(column)  # raises for what looks continuous
                except ValueError as error:
                    raise ValueError(f"{error} To predict numbers, use ImageRegressor, or regression=True.") from None
            classes, index = np.unique(column, return_inverse=True)
            target, codes = ClassTarget(classes), index.reshape(-1).astype(np.int64)
        else:
            values = list(hashable_values(column, "y"))
            classes = np.empty(len(set(values)), dtype=object)
            classes[:] = _sorted(set(values))
            if all(isinstance(value, str) for value in classes):
                texts = classes.astype(str)
                classes = texts if texts.tolist() == classes.tolist() else classes  # NumPy drops trailing "\0"
            target = ClassTarget(classes)
            codes = np.array([target._index[value] for value in values], dtype=np.int64)
        if len(target.classes) < 2:
            raise ValueError(f"y holds one class only, {target.classes.tolist()[0]!r}: a classifier needs at least 2")
        target.to_json()  # raises for labels that cannot be stored
        return target, codes

    @cached_property
    def _index(self) -> dict[Hashable, int]:
        return {label: i for i, label in enumerate(self.classes.tolist())}

    def encode(self, y: ArrayLike, n: int) -> NDArray[np.int64]:
        """Class indices (n,) of labels y; ValueError for labels that are not among the classes."""
        values = self.read(y, n)
        unseen = {value for value in values if value not in self._index}
        if unseen:
            examples = ", ".join(map(repr, _sorted(unseen)[:5]))
            known = self.classes.tolist()[:20]
            raise ValueError(f"y holds labels that fit did not see: {examples}; the classes are {known}")
        return np.array([self._index[value] for value in values], dtype=np.int64)

    def read(self, y: ArrayLike, n: int) -> list[Hashable]:
        """The n labels in y, (n,) or (n, 1), known or not; times in the fit's unit. ValueError if they are invalid."""
        column, dtype = _column(y, n), self.classes.dtype
        if column.dtype.kind == dtype.kind and dtype.kind in "mM":
            converted = column.astype(dtype)
            column = converted if (converted == column).all() else column  # unless that unit cannot hold them
        return list(hashable_values(column, "y")) if column.dtype == object else column.tolist()

    @property
    def goal(self) -> Goal:
        return Classification(len(self.classes))

    def probabilities(self, outputs: Tensor) -> NDArray[np.float64]:
        """Class probabilities (n, k) from logits (n, k)."""
        probabilities: NDArray[np.float64] = outputs.double().softmax(1).numpy()
        return probabilities

    def most_probable(self, probabilities: NDArray[np.float64]) -> NDArray[Any]:
        """(n,) the most probable class of each example."""
        labels: NDArray[Any] = self.classes[probabilities.argmax(1)]
        return labels

    def strata(self, codes: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) strata for stratified splits: the classes."""
        return codes

    def to_json(self) -> dict[str, Any]:
        """The dtype, one of `DTYPES`, and the classes; ValueError for labels that cannot be stored."""
        dtype = self.classes.dtype
        name = {"U": "str", "S": "bytes"}.get(dtype.kind, dtype.name)
        if name not in DTYPES:
            raise ValueError(f"labels of dtype {dtype} cannot be saved")
        values = self.classes.astype(np.int64) if dtype.kind in "mM" else self.classes
        return {"dtype": name, "values": [_to_json(value) for value in values.tolist()]}

    @staticmethod
    def from_json(data: dict[str, Any]) -> ClassTarget:
        """The target stored by `to_json`; ValueError if `data` is invalid."""
        name, values = data["dtype"], data["values"]
        if not (isinstance(name, str) and name in DTYPES and isinstance(values, list)):
            raise ValueError(f"labels of {name!r:.40} cannot be read")
        dtype = np.dtype(name)
        if dtype.kind == "O":
            classes = np.empty(len(values), dtype=object)
            classes[:] = [_from_json(value) for value in values]
        elif dtype.kind in "mM":
            classes = np.array(values, dtype=np.int64).astype(dtype)
        else:
            classes = np.array([_from_json(value) for value in values], dtype=dtype)  # strings get the width they need
        if classes.ndim != 1 or len(classes) < 2 or len({repr(value) for value in classes.tolist()}) < len(classes):
            raise ValueError("labels must be a list of different ones, at least 2")
        return ClassTarget(classes)


def check_present(y: Any, hint: str) -> None:
    """Raise ValueError if y is None or partly masked."""
    if y is None:
        raise ValueError(f"y is missing: this estimator requires y to be passed, but the target y is None; {hint}")
    check_not_masked(y, "y")


def _column(y: ArrayLike, n: int) -> NDArray[Any]:
    """Labels y as an array (n,); ValueError for other lengths, several columns and missing labels."""
    hint = "only a Dataset of (image, label), or with keys of these names, and a folder of sub-folders contain labels"
    check_present(y, hint)
    try:
        column = label_array(y)
    except ValueError as error:
        hint = "for several labels per example pass (n, k) of 0 and 1, as from scikit-learn's MultiLabelBinarizer"
        raise ValueError(f"y cannot be converted to an array of labels: {error}; {hint}") from None
    if column.dtype == object:
        kinds = {type(value) for value in column.flat}
        if all(issubclass(kind, np.generic) for kind in kinds) or kinds in ({bool}, {int}, {float}):
            column = np.array(list(column.flat)).reshape(column.shape)
    elif column.dtype.kind == "T":
        column = np.array(column.tolist(), dtype=object)
    if column.ndim == 2 and column.shape[1] == 1:
        column = column[:, 0]
    if column.ndim == 2:
        rows = column.dtype.kind in "buif" and bool(((column != 0).sum(1) == 1).all())
        what = "is one-hot" if rows and column.max() == 1 else f"has {column.shape[1]} columns"
        hint = (
            ": pass y.argmax(1)" if what == "is one-hot" else "; for several labels per example pass (n, k) of 0 and 1"
        )
        raise ValueError(f"y must be (n,) or (n, 1), but y {what}, its shape is {column.shape}{hint}")
    if not column.ndim:
        raise ValueError(f"y must be (n,) or (n, 1), not {y!r:.80}")
    if column.ndim != 1:
        raise ValueError(f"y must be (n,) or (n, 1), but its shape is {column.shape}")
    if len(column) != n:
        raise ValueError(f"x has {n} examples but y has {len(column)} labels")
    if column.dtype.kind == "f" and not np.isfinite(column).all():
        raise ValueError("y contains NaN or infinity")
    if column.dtype.kind in "mM" and np.isnat(column).any():
        raise ValueError("y contains NaT: labels are missing")
    return column


def label_array(y: Any) -> NDArray[Any]:
    """y as an array, as NumPy converts it, but lists of tuples, of string enumerations and of mixed types, and strings
    that NumPy would change, become an array of objects."""
    if isinstance(y, (list, tuple)):
        kinds = {type(value) for value in y}
        numbers = all(issubclass(kind, (int, float, np.number)) for kind in kinds)
        unsafe = any(issubclass(kind, str) and kind not in (str, np.str_) for kind in kinds)  # NumPy cuts their strings
        unsafe |= any(value[-1:] in ("\0", b"\0") for value in y if isinstance(value, (str, bytes)))  # NumPy drops it
        if kinds & {tuple, frozenset} or unsafe or (len(kinds) > 1 and not numbers):
            column = np.empty(len(y), dtype=object)
            column[:] = list(y)
            return column
    return as_array(y) if isinstance(y, torch.Tensor) else np.asarray(y)


def hashable_values(column: NDArray[Any], name: str) -> Iterable[Hashable]:
    """The values of an array (n,); ValueError for values that are missing, NaN or not hashable."""
    for i, value in enumerate(column.tolist()):
        if not isinstance(value, Hashable):
            raise ValueError(f"{name}[{i}] is not a label, because it cannot be hashed: {value!r:.80}")
        if isinstance(value, float) and math.isnan(value):
            raise ValueError(f"{name}[{i}] is NaN")
        if value is None or type(value).__name__ in ("NAType", "NaTType"):  # of pandas
            raise ValueError(f"{name}[{i}] is {value}")
        yield value


def _sorted(values: Iterable[Hashable]) -> list[Hashable]:
    """The values in order, by type and `repr` if they cannot be compared."""
    values = list(values)
    try:
        return sorted(values)  # type: ignore[type-var]
    except TypeError:
        return sorted(values, key=lambda value: (type(value).__name__, repr(value)))


def _to_json(value: Any) -> Any:
    """A label as JSON: numbers, strings, booleans and None as they are, tuples and bytes with a type tag."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"a label holds {value}, which cannot be saved")
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if isinstance(value, tuple):
        return {"tuple": [_to_json(item) for item in value]}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    kinds = "numbers, strings, bytes or tuples of them"
    raise ValueError(f"the label {value!r:.80} cannot be saved: labels are {kinds}")


def _from_json(value: Any) -> Any:
    if isinstance(value, dict) and "tuple" in value:
        return tuple(_from_json(item) for item in value["tuple"])
    if isinstance(value, dict) and "bytes" in value:
        return bytes.fromhex(value["bytes"])
    return value
