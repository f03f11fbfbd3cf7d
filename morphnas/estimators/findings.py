"""The data as the checks of `data_checks.py` and `target_checks.py` see it, findings, and helpers for their texts."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from morphnas.estimators.inputs import Problem
from morphnas.estimators.labels import ClassTarget
from morphnas.estimators.targets import MultiLabelTarget
from morphnas.train.deadline import Deadline

MIN_EXAMPLES = 50
"""Examples from which on checks that need statistics are run."""

_PIECE = 2**22
"""Approximate number of values in a chunk."""
_BYTES = 2**26
"""Memory for examples as float32."""


@dataclass(frozen=True)
class Finding:
    """One result of the checks.

    kind: a fixed identifier. warns: whether it is a warning, else information. text: the message. numbers: figures
    behind it, JSON values; `examples` are positions such as "x[3]" or "validation_data[0]".
    """

    kind: str
    warns: bool
    text: str
    numbers: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{'warning' if self.warns else 'information'}: {self.text}"


def rounded(values: NDArray[np.float64], decimals: Sequence[int]) -> NDArray[np.float64]:
    """Round the columns of (n, k) values to `decimals`; values for which that overflows stay as they are."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        result = np.stack([np.round(column, d) for column, d in zip(values.T, decimals, strict=True)], axis=1)
    return np.where(np.isfinite(result), result, values)


@dataclass(frozen=True, eq=False)
class CheckedData:
    """A problem's examples: those of x, in the order of the splits, then those of validation_data, if given.

    parts: the values of x, and of validation_data, (n, *shape) each. y: (n,) indices into `names` of all examples.
    names: the distinct classes, tag sets or regression values. order: index in x of each example of x. n_train: size of
    the training set, which comes first. n_validation: size of validation_data. weighted: whether there are sample
    weights. y_kind: the kind of y. codes: (n, k) encoded y of multi-label (0 and 1) and regression data (standardised);
    None for classes.
    """

    parts: tuple[Tensor, ...]
    y: NDArray[np.int64]
    order: NDArray[np.intp]
    n_train: int
    n_validation: int
    weighted: bool
    names: list[Any]
    y_kind: Literal["labels", "tags", "amounts"]
    codes: NDArray[np.float32] | None = None

    @staticmethod
    def of(problem: Problem) -> CheckedData:
        """The data of a problem."""
        task = problem.task
        whole = task.train if problem.all_examples is None else problem.all_examples
        validation = task.valid if problem.all_examples is None else None
        sets = [whole] if validation is None else [whole, validation]
        y = np.concatenate([examples.y.cpu().numpy() for examples in sets])
        parts = tuple(examples.x for examples in sets)
        n_validation, weighted = 0 if validation is None else len(validation), task.train.weights is not None
        shared = (problem.order, len(task.train), n_validation, weighted)
        target = problem.target
        if isinstance(target, ClassTarget):
            return CheckedData(parts, y, *shared, target.classes.tolist(), "labels")
        distinct, index = np.unique(y, axis=0, return_inverse=True)
        if isinstance(target, MultiLabelTarget):
            tag_sets = [tuple(np.flatnonzero(row).tolist()) for row in distinct]
            return CheckedData(parts, index.reshape(-1), *shared, tag_sets, "tags", y)
        decimals = [5 - math.floor(math.log10(std)) for std in target.std]  # enough to tell values apart
        rows = [tuple(row) for row in rounded(target.decode(distinct), decimals).tolist()]
        names = [row[0] if target.single_output else row for row in rows]
        return CheckedData(parts, index.reshape(-1), *shared, names, "amounts", y)

    def __len__(self) -> int:
        return len(self.y)

    @property
    def spatial_axes(self) -> int:
        """0 for rows, 1 for sequences, 2 for images, 3 for volumes."""
        return self.parts[0].ndim - 2

    @property
    def noun(self) -> str:
        """What to call the examples in texts."""
        return ("rows", "sequences", "images", "volumes")[self.spatial_axes]

    @property
    def y_noun(self) -> str:
        """What to call y in texts."""
        return "values of y" if self.y_kind == "amounts" else "labels"

    @property
    def n_held_out(self) -> int:
        """Number of examples that are not in the training set."""
        return len(self) - self.n_train

    def position(self, row: int) -> str:
        """Where example `row` is in the user's data."""
        n = len(self.order)
        return f"x[{self.order[row]}]" if row < n else f"validation_data[{row - n}]"

    def pieces(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """All examples in chunks, held-out ones first: the row of the first example, and (k, *shape) on the CPU."""
        size = max(1, _PIECE // math.prod(self.parts[0].shape[1:]))
        n = len(self.order)
        x, validation_x, n_train = self.parts[0], self.parts[-1], self.n_train
        spans = [(validation_x, n, n + self.n_validation), (x, n_train, n), (x, 0, n_train)]
        for values, first, end in spans:
            offset = n if first == n else 0
            for start in range(first, end, size):
                yield start, values[start - offset : min(end, start + size) - offset].cpu().numpy()

    def sample(self, limit: int) -> Tensor:
        """At most `limit` evenly spaced examples of the training set, as float32 on the CPU."""
        return self.take(evenly_spaced(np.arange(self.n_train), min(limit, self.max_floats)))

    @property
    def max_floats(self) -> int:
        """How many examples fit into the memory for examples as float32."""
        return max(1, _BYTES // (4 * math.prod(self.parts[0].shape[1:])))

    def take(self, rows: NDArray[np.intp]) -> Tensor:
        """These examples of x as float32 on the CPU."""
        index = torch.from_numpy(rows).to(self.parts[0].device)
        return self.parts[0][index].cpu().to(torch.float32)


@dataclass(frozen=True, eq=False)
class ExampleStats:
    """Statistics of the m examples that were read in time.

    index: (m,) their rows, ascending. digest: (m,) uint64 hashes of their values. low, high: (m, channels) minimum and
    maximum. nonzero: share of all values.
    """

    index: NDArray[np.intp]
    digest: NDArray[np.uint64]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    nonzero: float

    @property
    def constant(self) -> NDArray[np.bool_]:
        """(m,) whether all pixels of an image are equal; always true of a single pixel."""
        constant: NDArray[np.bool_] = (self.low == self.high).all(1)
        return constant

    @property
    def max_abs(self) -> NDArray[np.float32]:
        """(m,) largest absolute values."""
        largest: NDArray[np.float32] = np.maximum(np.abs(self.low), np.abs(self.high)).max(1)
        return largest


def example_stats(data: CheckedData, deadline: Deadline) -> ExampleStats:
    """Read the examples once, until the deadline, but at least one chunk."""
    index, digests, lows, highs, nonzero, values = [], [], [], [], 0, 0
    for start, x in data.pieces():
        flat = np.ascontiguousarray(x).reshape(len(x), -1)
        index.append(np.arange(start, start + len(x)))
        digests.append(b"".join([hashlib.blake2b(row.data, digest_size=8).digest() for row in flat]))
        planes = flat.reshape(len(x), x.shape[1], -1) if data.spatial_axes else flat[:, None]
        lows.append(planes.min(2).astype(np.float32))
        highs.append(planes.max(2).astype(np.float32))
        nonzero += int(np.count_nonzero(flat))
        values += flat.size
        if deadline.passed:
            break
    rows = np.concatenate(index)
    order = np.argsort(rows)
    digest = np.frombuffer(b"".join(digests), dtype=np.uint64)
    low, high = np.concatenate(lows), np.concatenate(highs)
    return ExampleStats(rows[order], digest[order], low[order], high[order], nonzero / values)


def evenly_spaced(index: NDArray[np.intp], limit: int) -> NDArray[np.intp]:
    """At most `limit` evenly spaced elements of `index`."""
    return index[np.unique(np.linspace(0, len(index) - 1, min(limit, len(index))).astype(np.intp))]


# -- texts


def percent(share: float) -> str:
    """A share in percent, to tenths or two digits; 0 and 100 only if exact.

    >>> percent(0.123), percent(0.00012), percent(0.99975), percent(1.0)
    ('12.3 %', '0.012 %', '99.98 %', '100.0 %')
    """
    if share < 0.001:
        return f"{100 * share:.2g} %"
    digits = max(1, -math.floor(math.log10(100 * (1 - share)))) if share < 1 else 1
    return f"{100 * share:.{digits}f} %"


def name_list(names: Sequence[Any], noun: str = "class") -> str:
    """The noun with the first five names, and the number of others."""
    others = f" and {len(names) - 5:,} others" if len(names) > 5 else ""
    nouns = {"class": "classes"}.get(noun, f"{noun}s")
    return f"{nouns if len(names) > 1 else noun} {', '.join(map(repr, names[:5]))}{others}"


def verb(singular: str, plural: str) -> Callable[[int], str]:
    """A function that returns the form of the verb for a count."""
    return lambda count: singular if count == 1 else plural


def number_of(nouns: str, count: int) -> str:
    """A count with its noun.

    >>> number_of("images", 1), number_of("images", 3000)
    ('1 image', '3,000 images')
    """
    return f"{count:,} {nouns.removesuffix('s') if count == 1 else nouns}"


are, have = verb("is", "are"), verb("has", "have")
repeat, occur = verb("repeats", "repeat"), verb("occurs", "occur")


def count_numbers(count: int, share: float, positions: Sequence[str]) -> dict[str, Any]:
    """`Finding.numbers` of a check that counts examples."""
    return {"count": count, "share": float(share), "examples": list(positions)}
