"""A user's examples as the data doctor looks at them, and the words for what it finds."""

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

FEW = 50
"""Examples below which nothing is said of shares."""

_PIECE = 2**22
_BYTES = 2**26


@dataclass(frozen=True)
class Finding:
    """One thing found. kind: a word for programs. warns: whether it matters; else it is good to know.

    text: for people. numbers: what was counted, JSON values; `examples` in it are places in x or validation_data.
    """

    kind: str
    warns: bool
    text: str
    numbers: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{'warning' if self.warns else 'information'}: {self.text}"


def rounded(values: NDArray[np.float64], decimals: Sequence[int]) -> NDArray[np.float64]:
    """(n, k) numbers to so many decimals of each column; where that is beyond float64, as they are."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        found = np.stack([np.round(column, d) for column, d in zip(values.T, decimals, strict=True)], axis=1)
    return np.where(np.isfinite(found), found, values)


@dataclass(frozen=True, eq=False)
class Given:
    """A problem's examples, those of x first and then those of validation_data, where there is one.

    parts: their values, (n, *shape) each. y: (n,) indices of what they are, of all. names: that those stand for. order:
    which example of x each is. train: how many of them are trained on, the first ones. own: how many of
    validation_data. weighted: whether they count for more and for less. said: what y are. numbers: (n, k) where they
    are not classes: tags, 0 or 1, or amounts in deviations from their mean.
    """

    parts: tuple[Tensor, ...]
    y: NDArray[np.int64]
    order: NDArray[np.intp]
    train: int
    own: int
    weighted: bool
    names: list[Any]
    said: Literal["labels", "tags", "amounts"]
    numbers: NDArray[np.float32] | None = None

    @staticmethod
    def of(problem: Problem) -> Given:
        task = problem.task
        whole = task.train if problem.everything is None else problem.everything
        own = task.valid if problem.everything is None else None
        several = [whole] if own is None else [whole, own]
        y = np.concatenate([examples.y.cpu().numpy() for examples in several])
        parts = tuple(examples.x for examples in several)
        own_ones, weighted = 0 if own is None else len(own), task.train.weights is not None
        counts = (problem.order, len(task.train), own_ones, weighted)
        target = problem.target
        if isinstance(target, ClassTarget):
            return Given(parts, y, *counts, target.classes.tolist(), "labels")
        different, index = np.unique(y, axis=0, return_inverse=True)
        if isinstance(target, MultiLabelTarget):
            sets = [tuple(np.flatnonzero(row).tolist()) for row in different]
            return Given(parts, index.reshape(-1), *counts, sets, "tags", y)
        decimals = [5 - math.floor(math.log10(std)) for std in target.std]  # as far as they tell amounts apart
        rows = [tuple(row) for row in rounded(target.decode(different), decimals).tolist()]
        names = [row[0] if target.flat else row for row in rows]
        return Given(parts, index.reshape(-1), *counts, names, "amounts", y)

    def __len__(self) -> int:
        return len(self.y)

    @property
    def images(self) -> bool:
        return self.parts[0].ndim == 4

    @property
    def what(self) -> str:
        """What the examples are."""
        return {2: "rows", 4: "images"}.get(self.parts[0].ndim, "examples")

    @property
    def held(self) -> int:
        """How many stop, score and choose."""
        return len(self) - self.train

    def place(self, row: int) -> str:
        """Where the user finds an example."""
        n = len(self.order)
        return f"x[{self.order[row]}]" if row < n else f"validation_data[{row - n}]"

    def pieces(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """All examples, those held out first, a piece at a time: the row of the first, and (k, *shape) on the CPU."""
        size = max(1, _PIECE // math.prod(self.parts[0].shape[1:]))
        n = len(self.order)
        spans = [(self.parts[-1], n, n + self.own), (self.parts[0], self.train, n), (self.parts[0], 0, self.train)]
        for x, first, end in spans:
            offset = n if first == n else 0
            for start in range(first, end, size):
                yield start, x[start - offset : min(end, start + size) - offset].cpu().numpy()

    def some(self, most: int) -> Tensor:
        """At most so many of the examples to train on, from all over them, as float32 on the CPU."""
        return self.at(spread(np.arange(self.train), min(most, self.affordable)))

    @property
    def affordable(self) -> int:
        """How many examples may be held as float32."""
        return max(1, _BYTES // (4 * math.prod(self.parts[0].shape[1:])))

    def at(self, index: NDArray[np.intp]) -> Tensor:
        """Those examples of x, as float32 on the CPU."""
        there = torch.from_numpy(index).to(self.parts[0].device)
        return self.parts[0][there].cpu().to(torch.float32)


@dataclass(frozen=True, eq=False)
class Rows:
    """What was counted of every example that was looked at. index: (m,) which they are, in order. digest: (m,) uint64.

    low, high: (m, channels) of values. nonzero: share of all values.
    """

    index: NDArray[np.intp]
    digest: NDArray[np.uint64]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    nonzero: float

    @property
    def blank(self) -> NDArray[np.bool_]:
        """(m,) whether an image has one value, or one for each channel. Of a single pixel all have."""
        constant: NDArray[np.bool_] = (self.low == self.high).all(1)
        return constant

    @property
    def top(self) -> NDArray[np.float32]:
        """(m,) largest values, without their signs."""
        largest: NDArray[np.float32] = np.maximum(np.abs(self.low), np.abs(self.high)).max(1)
        return largest


def rows_of(given: Given, deadline: Deadline) -> Rows:
    """Every example looked at once, as far as the deadline allows: at least a piece."""
    index, digests, lows, highs, nonzero, values = [], [], [], [], 0, 0
    for start, x in given.pieces():
        flat = np.ascontiguousarray(x).reshape(len(x), -1)
        index.append(np.arange(start, start + len(x)))
        digests.append(b"".join([hashlib.blake2b(row.data, digest_size=8).digest() for row in flat]))
        planes = flat.reshape(len(x), x.shape[1], -1) if given.images else flat[:, None]
        lows.append(planes.min(2).astype(np.float32))
        highs.append(planes.max(2).astype(np.float32))
        nonzero += int(np.count_nonzero(flat))
        values += flat.size
        if deadline.passed:
            break
    where = np.concatenate(index)
    order = np.argsort(where)
    digest = np.frombuffer(b"".join(digests), dtype=np.uint64)
    low, high = np.concatenate(lows), np.concatenate(highs)
    return Rows(where[order], digest[order], low[order], high[order], nonzero / values)


def spread(index: NDArray[np.intp], most: int) -> NDArray[np.intp]:
    """At most so many of them, at equal distances."""
    return index[np.unique(np.linspace(0, len(index) - 1, min(most, len(index))).astype(np.intp))]


# -- words


def percent(share: float) -> str:
    """A share to two digits or to tenths, never 0 or all where it is not.

    >>> percent(0.123), percent(0.00012), percent(0.99975), percent(1.0)
    ('12.3 %', '0.012 %', '99.98 %', '100.0 %')
    """
    if share < 0.001:
        return f"{100 * share:.2g} %"
    digits = max(1, -math.floor(math.log10(100 * (1 - share)))) if share < 1 else 1
    return f"{100 * share:.{digits}f} %"


def some(names: Sequence[Any], what: str = "class") -> str:
    """The first classes, or tags, by name, and how many there are."""
    more = f" and {len(names) - 5:,} others" if len(names) > 5 else ""
    several = {"class": "classes"}.get(what, f"{what}s")
    return f"{several if len(names) > 1 else what} {', '.join(map(repr, names[:5]))}{more}"


def plural(one: str, more: str) -> Callable[[int], str]:
    return lambda count: one if count == 1 else more


def number_of(things: str, count: int) -> str:
    """
    >>> number_of("images", 1), number_of("images", 3000)
    ('1 image', '3,000 images')
    """
    return f"{count:,} {things.removesuffix('s') if count == 1 else things}"


are, have = plural("is", "are"), plural("has", "have")
repeat, occur = plural("repeats", "repeat"), plural("occurs", "occur")


def counted(count: int, share: float, places: Sequence[str]) -> dict[str, Any]:
    return {"count": count, "share": float(share), "examples": list(places)}
