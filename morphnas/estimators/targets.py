"""What y is: labels of classes (`labels.py`), or tags or amounts, here; as networks learn it, and back."""

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

from morphnas.estimators.labels import ClassTarget, Named, check_there, listed
from morphnas.estimators.sources import as_array, refuse_masked
from morphnas.train.goal import Goal, MultiLabel, Regression
from morphnas.train.recipe import is_number

STRATA = 20
"""Groups of examples of like amounts, or tags, that parts are held out of alike, at most, and of as many examples at
least."""


@dataclass(frozen=True, eq=False)
class MultiLabelTarget(Named):
    """Which of k tags every example has: several, one or none (scikit-learn's "multilabel-indicator").

    names: of the tags, those of a data frame's columns; () where they have none.
    """

    k: int
    names: tuple[str, ...] = ()

    @staticmethod
    def found(y: ArrayLike, n: int) -> tuple[MultiLabelTarget, NDArray[np.float32]]:
        """The tags in y, (n, k) of 0 and 1, and y as networks learn it; ValueError for what is none."""
        tags = MultiLabelTarget(_table_of(y).shape[1], _names_of(y))
        codes = tags.encode(y, n)
        if (codes == codes[0]).all():
            raise ValueError(f"there is nothing to learn: y is {codes[0].astype(int).tolist()} for all {n:,} samples")
        return tags, codes

    def encode(self, y: ArrayLike, n: int) -> NDArray[np.float32]:
        """As networks learn them, (n, k); ValueError for others than those of the fit."""
        check_there(y, "only a Dataset of (image, tags) brings its own")
        there, names = _table_of(y), _names_of(y)
        if names and self.names and names != self.names:
            raise ValueError(f"the columns of y must be {self.names!r:.200}, as in the fit, not {names!r:.200}")
        if there.shape != (n, self.k):
            raise ValueError(
                f"y must be ({n}, {self.k}), one column for each label (multi-label), but its shape is {there.shape}"
            )
        if not _flags(there):
            raise ValueError("y must be 0 or 1 everywhere: whether an example has a label")
        return there.astype(np.float32, order="C")

    @property
    def classes(self) -> NDArray[Any]:
        """The names of the tags, or their numbers."""
        return np.array(self.names) if self.names else np.arange(self.k)

    @property
    def goal(self) -> Goal:
        return MultiLabel(self.k)

    def probabilities(self, outputs: Tensor) -> NDArray[np.float64]:
        """Of each tag, (n, k), for outputs (n, k)."""
        chances: NDArray[np.float64] = outputs.double().sigmoid().numpy()
        return chances

    def likeliest(self, probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
        """Which tags are likelier than not, (n, k) of 0 and 1."""
        return (probabilities >= 0.5).astype(np.int64)

    def strata(self, codes: NDArray[Any]) -> NDArray[np.int64]:
        """Groups (n,) of examples of like tags, so that parts are held out of all alike."""
        return _strata(codes - codes.mean(0))

    def to_json(self) -> dict[str, Any]:
        return {"tags": self.k} | ({"names": list(self.names)} if self.names else {})

    @staticmethod
    def from_json(data: Any) -> MultiLabelTarget:
        """The tags that `to_json` described; ValueError when they are none."""
        k = data.get("tags") if isinstance(data, Mapping) else None
        if not isinstance(k, int) or isinstance(k, bool) or k < 2:
            raise ValueError(f"{data!r:.100} does not say how many tags there are")
        names = data.get("names", [])
        if not isinstance(names, list) or len(names) not in (0, k) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{names!r:.100} are not the names of {k} tags")
        return MultiLabelTarget(k, tuple(names))


@dataclass(frozen=True, eq=False)
class RegressionTarget:
    """One amount for every example, or several: networks learn them in deviations from the mean of the fit's y.

    mean, std: (k,) float64 each; the deviation of an amount that is always the same counts as 1.
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    @staticmethod
    def found(
        y: ArrayLike, n: int, weights: NDArray[np.float32] | None = None
    ) -> tuple[RegressionTarget, NDArray[np.float32]]:
        """The amounts in y, (n,), (n, 1) or (n, k), and as networks learn them, (n, k); ValueError for what is none.

        weights: (n,) what each example counts for; None: all alike.
        """
        table = amounts_of(y, n)
        counted, counts = (table, None) if weights is None else (table[weights > 0], weights[weights > 0])
        with np.errstate(over="ignore"):
            mean = np.average(counted, axis=0, weights=counts)
            std = np.sqrt(np.average((counted - mean) ** 2, axis=0, weights=counts))
        if not (np.isfinite(mean).all() and np.isfinite(std).all()):
            raise ValueError("y holds numbers that are too large: their squares overflow float64")
        same = counted.max(0) - counted.min(0) <= 4 * np.finfo(np.float64).eps * np.abs(mean)
        if (std[~same] ** 2 == 0).any():
            raise ValueError("y holds numbers that are too small: the squares of their deviations are 0 in float64")
        if same.all():
            raise ValueError(f"there is nothing to learn: y is {table[0].tolist()} for all {n:,} samples")
        values = RegressionTarget(mean, np.where(same, 1.0, std))
        return values, values._coded(table)

    def encode(self, y: ArrayLike, n: int) -> NDArray[np.float32]:
        """As networks learn them, (n, k); ValueError for amounts that do not go with those of the fit."""
        table = amounts_of(y, n)
        if table.shape[1] != len(self.mean):
            raise ValueError(f"y has {table.shape[1]} numbers for each example, but fit saw {len(self.mean)}")
        return self._coded(table)

    def _coded(self, table: NDArray[np.float64]) -> NDArray[np.float32]:
        coded = (table - self.mean) / self.std
        if not (np.abs(coded) < 1e30).all():
            raise ValueError("y holds numbers that are too large compared with those of the fit")
        return coded.astype(np.float32)

    def decode(self, outputs: NDArray[Any]) -> NDArray[np.float64]:
        """The amounts (n, k) that outputs (n, k) stand for."""
        amounts: NDArray[np.float64] = outputs.astype(np.float64) * self.std + self.mean
        return amounts

    def amounts(self, outputs: NDArray[Any]) -> NDArray[np.float64]:
        """The same as users have them: (n,) where there is one amount."""
        amounts = self.decode(outputs)
        return amounts[:, 0] if self.flat else amounts

    @property
    def flat(self) -> bool:
        """Whether there is one amount, so that predictions are (n,) instead of (n, k)."""
        return len(self.mean) == 1

    @property
    def goal(self) -> Goal:
        return Regression(len(self.mean))

    def measured(self, outputs: Tensor, codes: Tensor, weights: NDArray[np.float32] | None = None) -> float:
        """The mean squared error, over several amounts alike."""
        errors = (outputs - codes).double().numpy() * self.std
        return float(np.average(np.square(errors).mean(1), weights=weights))

    def words(self, measured: float) -> str:
        return f"mean squared error {measured:.4g}"

    def decoded(self, module: fx.GraphModule, outputs: fx.Node, temperature: float) -> fx.Node:
        """The node, added to the module's graph, of amounts, in float64: they may be large beside their spread."""
        graph = module.graph
        module.register_buffer("unit", torch.from_numpy(self.std))
        module.register_buffer("centre", torch.from_numpy(self.mean))
        scaled = graph.call_function(torch.mul, (outputs, graph.get_attr("unit")))
        return graph.call_function(torch.add, (scaled, graph.get_attr("centre")))

    def strata(self, codes: NDArray[Any]) -> NDArray[np.int64]:
        """Groups (n,) of examples of like amounts, so that parts are held out of all alike."""
        return _strata(codes)

    def to_json(self) -> dict[str, Any]:
        return {"amounts": {"mean": self.mean.tolist(), "std": self.std.tolist()}}

    @staticmethod
    def from_json(data: Any) -> RegressionTarget:
        """The values that `to_json` described; ValueError when they are none."""
        amounts = data.get("amounts") if isinstance(data, Mapping) else None
        if not isinstance(amounts, Mapping) or set(amounts) != {"mean", "std"}:
            raise ValueError(f"{data!r:.100} does not say what the amounts are")
        for numbers in amounts.values():
            if not (isinstance(numbers, list) and numbers and all(map(is_number, numbers))):
                raise ValueError(f"amounts cannot have {numbers!r:.100} for their mean or deviation")
        mean, std = (np.array(amounts[name], dtype=np.float64) for name in ("mean", "std"))
        if len(mean) != len(std) or min(std) <= 0:
            raise ValueError(f"amounts cannot have the deviations {amounts['std']!r:.100}")
        return RegressionTarget(mean, std)


Target = ClassTarget | MultiLabelTarget | RegressionTarget
"""What the y of a fit turned out to be."""

ReadY = Callable[[ArrayLike, int], tuple[Target, NDArray[Any]]]
"""Says what the y of so many examples is, and gives it as networks learn it; ValueError for what it cannot be."""

SampleWeight = ArrayLike | Literal["balanced"] | None
"""What examples count for: (n,) numbers from 0 on, or of labels "balanced": each class as much as the others."""


def weights_of(sample_weight: SampleWeight, n: int, codes: NDArray[Any], target: Target) -> NDArray[np.float32] | None:
    """What n examples count for, (n,), 1 on average; None: all alike. ValueError for what cannot be that.

    codes: y as networks learn it.
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
    weights = given_weights(sample_weight, n)
    return None if (weights == weights[0]).all() else (weights / weights.mean()).astype(np.float32)


def given_weights(sample_weight: ArrayLike, n: int) -> NDArray[np.float64]:
    """What n examples count for, (n,), as it was given; ValueError for what cannot be that."""
    refuse_masked(sample_weight, "sample_weight")
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


def classes_of(y: ArrayLike, n: int) -> tuple[ClassTarget | MultiLabelTarget, NDArray[Any]]:
    """The labels, one for each example, or the tags, several or none, in the y of a classifier; ValueError for others.

    y: (n,) or (n, 1) labels; (n, k) of 0 and 1 for tags, which may be sparse. Where each example has just one, they are
    taken for labels that are one-hot, which is an error.
    """
    try:
        there = np.empty(0) if y is None else _table_of(y)
    except ValueError:  # which says more below
        there = np.empty(0)
    several = there.ndim == 2 and there.shape[1] > 1 and len(there) > 0 and _flags(there)
    return MultiLabelTarget.found(y, n) if several and (there.sum(1) != 1).any() else ClassTarget.found(y, n)


def _table_of(y: Any) -> NDArray[Any]:
    """As `listed`; sparse matrices as they would be, and numbers in columns of several kinds as numbers."""
    values = listed(y.toarray() if hasattr(y, "toarray") else y)
    if values.ndim == 2 and values.dtype == object:
        with contextlib.suppress(TypeError, ValueError):
            return values.astype(np.float64)
    return values


def _names_of(y: Any) -> tuple[str, ...]:
    """Those of a data frame's columns, if all are texts, and different."""
    names = tuple(getattr(y, "columns", ()))
    return names if all(isinstance(name, str) for name in names) and len({*names}) == len(names) else ()


def _flags(values: NDArray[Any]) -> bool:
    return values.dtype.kind in "buif" and bool(((values == 0) | (values == 1)).all())


def _strata(codes: NDArray[Any]) -> NDArray[np.int64]:
    """Groups (n,) of examples with like values (n, k), of mean 0: by these, or by their first principal component."""
    along = codes[:, 0]
    if codes.shape[1] > 1:
        along = codes @ randomized_svd(codes, n_components=1, random_state=0)[2][0]
    groups = max(1, min(STRATA, len(codes) // STRATA))
    place = np.empty(len(codes), dtype=np.int64)
    place[np.argsort(along, kind="stable")] = np.arange(len(codes))
    return place * groups // len(codes)


def amounts_of(y: ArrayLike, n: int) -> NDArray[np.float64]:
    """y as (n, k) float64; ValueError that says what is wrong with it."""
    check_there(y, "only a Dataset of (image, amount) brings its own")
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
        table = values.astype(np.float64, order="C")  # texts as they are in a CSV file, too
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
    """The target that `to_json` described; ValueError when it is none."""
    kinds: dict[str, type[RegressionTarget | MultiLabelTarget]] = {
        "amounts": RegressionTarget,
        "tags": MultiLabelTarget,
    }
    kind = next((kinds[name] for name in kinds if isinstance(data, Mapping) and name in data), ClassTarget)
    return kind.from_json(data)
