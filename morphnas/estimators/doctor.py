"""What is wrong with a user's examples though they can be trained on: found before the time is spent, told in numbers.

What cannot be trained on at all is refused by `inputs.py` and `labels.py`. Findings are facts that were counted, and
warn only where they matter; on data that are as they should be there are none.
"""

from __future__ import annotations

import hashlib
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from morphnas.estimators.inputs import ImageSize, Problem
from morphnas.train.deadline import NEVER, Deadline

SHARE = 0.02
"""Of the time of a fit, what looking at its data may take."""
LONGEST = 5.0
"""Seconds that it may take at most."""

LEAKED = 0.01
"""Share of the held-out examples that are trained on as well, from which on a warning says so."""
CONTRADICTORY = 0.005
"""Share of the examples that occur with several labels, likewise."""
REPEATED = 0.05
"""Share that repeats others: alone it does little harm."""
BLANK = 0.01
"""Share of the images that are constant."""
SCALED = 0.005
"""Share of the images whose values are of another size than the others'."""
FACTOR = 50.0
"""How many times as large the values of such images are, at least, or as small."""
WILD = 1000.0
"""The same where one image is enough: in deviations of the whole, all others are nothing beside it."""
APART = 0.45
"""Of the span of images' values: how far validation_data's may begin or end from x's."""
DARK = 0.005
"""Share of values that are not 0, at least."""
MAJORITY = 0.9
"""Share of the largest class from which on the accuracy says little."""
UNEQUAL = (10, 100)
"""Times that the largest class is as large as the smallest: told of, warned of."""
MIXED = 0.2
"""Total variation distance between the classes of x and of validation_data, beyond what chance makes it."""
SMOOTHER = 0.7
"""Share of the differences between neighbouring pixels that another reading of the same values has, at most."""
SIGNAL = 3.0
"""Standard errors above chance that labels can be told by at least: by neighbours, or by a linear map."""
FEW = 50
"""Examples below which nothing is said of shares."""
MANY = 500
"""Examples of which a class should be large enough to hold some out."""
PROBED = 2000
"""Examples that this is asked of, at most; and at least half as many."""
ALIKE = 5
"""Examples of a class, at least: an example's neighbour cannot be of its class where there is no other."""
FEATURES = 32
"""Values of an example from which on one that occurs twice is no chance."""

_PIECE = 2**22
_LOOKED_AT = 500
_BYTES = 2**26


class DataWarning(UserWarning):
    """Something is wrong with the examples or the labels that a fit was given, or looks so."""


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


@dataclass(frozen=True)
class Findings:
    """All that was found in data. examples: that there are. looked: those that were looked at before the time was up.

    seconds: that it took. `str()` is for people, `to_json()` is what run.json holds under "findings".
    """

    found: tuple[Finding, ...]
    examples: int
    looked: int
    seconds: float

    def __str__(self) -> str:
        seen = f"{self.examples:,} examples" if self.looked == self.examples else (
            f"{self.looked:,} of {self.examples:,} examples, for more there was no time"
        )  # fmt: skip
        return "\n".join([*map(str, self.found), f"{len(self.found) or 'nothing'} found in {seen}"])

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Those that matter."""
        return tuple(finding for finding in self.found if finding.warns)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def examine(
    x: Any,
    y: Any = None,
    validation_data: Any = None,
    *,
    image_shape: Sequence[int] | None = None,
    image_size: ImageSize | None = None,
    random_state: int = 0,
    time_limit: float | None = None,
) -> Findings:
    """What is wrong with examples, or looks so, without training anything: what `ImageClassifier.fit` looks for first.

    x, y, validation_data, image_shape, image_size: as `ImageClassifier` takes them. random_state: which examples would
    be held out. time_limit: seconds to look at examples; None: all are looked at. Exact copies in training and across
    the parts, contradictory labels, constant images, mixed ranges of values, wrong orders of axes, unequal, tiny and
    missing classes, labels that look like amounts, and labels that the images say nothing about. ValueError for what
    cannot be trained on at all.
    """
    room = (random_state, torch.device("cpu"), image_size)
    problem = Problem.found(x, y, validation_data, image_shape, *room)
    return look(problem, NEVER if time_limit is None else Deadline.after(time_limit))


def warn(findings: Findings, stacklevel: int = 3) -> None:
    """Warn of what matters, each by itself."""
    for finding in findings.warnings:
        warnings.warn(finding.text, DataWarning, stacklevel=stacklevel)


def look(problem: Problem, deadline: Deadline = NEVER) -> Findings:
    """What is found in a problem's examples until the deadline. ValueError where all of them are the same."""
    begun = time.perf_counter()
    given = _Given.of(problem)
    rows = _rows(given, deadline)
    if len(rows.index) == len(given) and len(np.unique(rows.digest)) == 1:
        raise ValueError(f"all {len(given):,} examples are the same: there is nothing to learn from x")
    found = [*_labels(given), *_classes(given), *_mixture(given), *_repeats(given, rows), *_blank(given, rows)]
    if given.images:
        found += [*_sizes(given, rows), *_ranges(given, rows), *_zeros(rows), *_channels(given, rows)]
        found += [] if problem.preprocessing.resized else _orders(given)
    if not deadline.passed:
        found += _signal(given, deadline)
    found.sort(key=lambda finding: not finding.warns)
    return Findings(tuple(found), len(given), len(rows.index), time.perf_counter() - begun)


# -- what is looked at


@dataclass(frozen=True, eq=False)
class _Given:
    """A problem's examples, those of x first and then those of validation_data, where there is one.

    parts: their values, (n, *shape) each. y: (n,) class indices of all. order: which example of x each is. train: how
    many of them are trained on, the first ones. own: how many of validation_data. names: of the classes.
    """

    parts: tuple[Tensor, ...]
    y: NDArray[np.int64]
    order: NDArray[np.intp]
    train: int
    own: int
    names: list[Any]

    @staticmethod
    def of(problem: Problem) -> _Given:
        task = problem.task
        whole = task.train if problem.everything is None else problem.everything
        own = task.valid if problem.everything is None else None
        several = [whole] if own is None else [whole, own]
        y = np.concatenate([examples.y.cpu().numpy() for examples in several])
        names = problem.labels.classes.tolist()
        parts = tuple(examples.x for examples in several)
        return _Given(parts, y, problem.order, len(task.train), 0 if own is None else len(own), names)

    def __len__(self) -> int:
        return len(self.y)

    @property
    def images(self) -> bool:
        return self.parts[0].ndim == 4

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
        return self.at(_spread(np.arange(self.train), min(most, self.affordable)))

    @property
    def affordable(self) -> int:
        """How many examples may be held as float32."""
        return max(1, _BYTES // (4 * math.prod(self.parts[0].shape[1:])))

    def at(self, index: NDArray[np.intp]) -> Tensor:
        """Those examples of x, as float32 on the CPU."""
        there = torch.from_numpy(index).to(self.parts[0].device)
        return self.parts[0][there].cpu().to(torch.float32)


@dataclass(frozen=True, eq=False)
class _Rows:
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


def _rows(given: _Given, deadline: Deadline) -> _Rows:
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
    return _Rows(where[order], digest[order], low[order], high[order], nonzero / values)


def _spread(index: NDArray[np.intp], most: int) -> NDArray[np.intp]:
    """At most so many of them, at equal distances."""
    return index[np.unique(np.linspace(0, len(index) - 1, min(most, len(index))).astype(np.intp))]


# -- labels


def _labels(given: _Given) -> Iterator[Finding]:
    """Labels that are amounts or names of examples rather than classes."""
    y, n = given.y[: len(given.order)], len(given.order)
    counts = np.bincount(y, minlength=len(given.names))
    k, typical = len(counts), float(np.median(counts))
    if n < FEW or k < 20 or typical > 3:
        return
    numeric = all(isinstance(name, (int, float)) and not isinstance(name, bool) for name in given.names)
    in_a_row = numeric and np.ptp(given.names) == k - 1
    if numeric and in_a_row and counts.min() >= 0.5 * counts.max() and typical > 1:
        return  # classes that are numbered, with few examples each
    looks = "are they amounts, to be predicted by a regression?" if numeric else "are they names of examples?"
    text = f"y holds {k:,} different labels for {n:,} examples, half of them at most {typical:g} times: {looks}"
    yield Finding("labels", True, text, {"classes": k, "examples": n, "median": typical})


def _classes(given: _Given) -> Iterator[Finding]:
    """Classes that are much larger than others, and those that nothing is held out of."""
    n, k = len(given.order), len(given.names)
    counts = np.bincount(given.y[:n], minlength=k)
    if n < FEW:
        return
    largest, smallest = int(counts.argmax()), int(counts.argmin())
    share, ratio = counts[largest] / n, counts[largest] / counts[smallest]
    if ratio >= UNEQUAL[0] or share >= MAJORITY:
        warns = bool(ratio >= UNEQUAL[1] or share >= MAJORITY)
        most = f"{given.names[largest]!r} with {counts[largest]:,} examples ({_percent(share)})"
        least = f"{given.names[smallest]!r} with {counts[smallest]:,}"
        text = f"classes are unequal: {most} is the largest, {least} the smallest; who always says the largest has an"
        text += f" accuracy of {_percent(share)}"
        numbers = {"largest": int(counts[largest]), "smallest": int(counts[smallest]), "share": float(share)}
        yield Finding("imbalance", warns, text, numbers)
    single = np.flatnonzero(counts == 1)
    if not given.held:
        if len(single):
            names, one = _some([given.names[i] for i in single]), "one example each" if len(single) > 1 else "one"
            text = f"of {names} there is {one}: so none can be held out, and networks are scored on what they"
            yield Finding("single", True, f"{text} are trained on", {"classes": len(single)})
        return
    held = np.bincount(given.y[given.train :], minlength=k)
    if len(missing := np.flatnonzero(held == 0)):
        part = "validation_data" if given.own else "the part that is held out"
        names, has = _some([given.names[i] for i in missing]), "have" if len(missing) > 1 else "has"
        text = f"{names} {has} no example in {part}: no score says how well they are told apart"
        warns = given.own > 0 or n >= MANY
        yield Finding("unjudged", warns, text, {"classes": len(missing)})


def _mixture(given: _Given) -> Iterator[Finding]:
    """validation_data in which classes are as frequent as in other data than x."""
    n, k = len(given.order), len(given.names)
    if min(n, given.own) < 4 * FEW:
        return
    shares = [np.bincount(y, minlength=k) / len(y) for y in (given.y[:n], given.y[n:])]
    distance = 0.5 * float(np.abs(shares[0] - shares[1]).sum())
    spread = (shares[0] * (1 - shares[0])) * (1 / n + 1 / given.own)
    chance = 0.5 * float(np.sqrt(2 / np.pi * spread).sum())  # of two samples of the same data
    if distance - 2 * chance < MIXED:
        return
    i = int(np.abs(shares[0] - shares[1]).argmax())
    one = f"{given.names[i]!r} is {_percent(shares[0][i])} of x and {_percent(shares[1][i])} of validation_data"
    text = f"classes are not as frequent in validation_data as in x: {one}; were sorted data cut?"
    yield Finding("mixture", True, text, {"distance": distance, "by_chance": chance})


# -- examples


def _repeats(given: _Given, rows: _Rows) -> Iterator[Finding]:
    """Examples that are equal to the last bit: held out and trained on, with several labels, in training."""
    varied = ~rows.blank if given.images else np.ones(len(rows.index), dtype=bool)
    index = rows.index[varied]
    if not len(index):
        return
    _, group, counts = np.unique(rows.digest[varied], return_inverse=True, return_counts=True)
    if len(counts) == len(index):
        return
    y, held, n = given.y[index], index >= given.train, len(index)
    usual = math.prod(given.parts[0].shape[1:]) < FEATURES  # of few values many examples are equal by nature
    what = "images" if given.images else "rows"

    trained = np.zeros(len(counts), dtype=bool)
    trained[group[~held]] = True
    if count := int((leaked := held & trained[group]).sum()):
        share = count / max(1, int(held.sum()))
        twin = _first_twin(group, leaked, ~held)
        part = "validation_data" if given.own else "the examples held out"
        text = f"{count:,} of {part} ({_percent(share)}) {_are(count)} trained on as well, the same to the last bit"
        text += f", first {given.place(index[twin[0]])} as {given.place(index[twin[1]])}: scores are too good"
        places = [given.place(i) for i in index[leaked][:10]]
        yield Finding("leak", share >= LEAKED and not usual, text, _numbers(count, share, places))

    low, high = np.full(len(counts), np.iinfo(np.int64).max), np.full(len(counts), -1)
    np.minimum.at(low, group, y)
    np.maximum.at(high, group, y)
    if count := int((mixed := (low != high)[group]).sum()):
        first = np.flatnonzero(mixed)[0]
        other = np.flatnonzero((group == group[first]) & (y != y[first]))[0]
        pair = " and ".join(f"{given.place(index[i])} is {given.names[y[i]]!r}" for i in (first, other))
        text = f"{count:,} {what} ({_percent(count / n)}) occur with different labels: {pair}"
        places = [given.place(i) for i in index[mixed][:10]]
        yield Finding(
            "contradictory", count / n >= CONTRADICTORY and not usual, text, _numbers(count, count / n, places)
        )

    first_ones = np.unique(group[~held], return_index=True)[1]
    again = ~(low != high)[group[~held]]  # those of several labels have been told of
    again[first_ones] = False
    if count := int(again.sum()):
        share = count / len(again)
        repeated = np.flatnonzero(~held)[again]
        twin = _first_twin(group, repeated[:1], ~held)
        text = f"{count:,} {what} to train on ({_percent(share)}) {_repeat(count)} others, first"
        text += f" {given.place(index[twin[0]])} as {given.place(index[twin[1]])}"
        places = [given.place(i) for i in index[repeated][:10]]
        yield Finding("duplicates", share >= REPEATED and not usual, text, _numbers(count, share, places))


def _first_twin(group: NDArray[np.intp], some: NDArray[Any], others: NDArray[np.bool_]) -> tuple[int, int]:
    """The first of some examples, and the first of others that is the same."""
    one = int(np.flatnonzero(some)[0]) if some.dtype == bool else int(some[0])
    twins = np.flatnonzero((group == group[one]) & others)
    return one, int(twins[twins != one][0])


def _blank(given: _Given, rows: _Rows) -> Iterator[Finding]:
    """Images without anything on them."""
    pixels = math.prod(given.parts[0].shape[2:])
    if not given.images or pixels == 1 or not (count := int((blank := rows.blank).sum())):
        return
    share = count / len(blank)
    places = [given.place(i) for i in rows.index[blank][:10]]
    text = f"{count:,} images ({_percent(share)}) {_are(count)} constant, every pixel the same, first {places[0]}"
    yield Finding("constant", share >= BLANK, text, _numbers(count, share, places))


def _sizes(given: _Given, rows: _Rows) -> Iterator[Finding]:
    """Images whose values are many times as large, or as small, as those of the others."""
    varied = ~rows.blank
    index, top = rows.index[varied], rows.top[varied]
    if len(index) < 2 or not (median := float(np.median(top))):
        return
    for odd, word in ((top * FACTOR <= median, "at most"), (top >= FACTOR * median, "up to")):
        if count := int(odd.sum()):
            share, extreme = count / len(top), float(top[odd].max())
            warns = share >= SCALED or extreme >= WILD * median
            places = [given.place(i) for i in index[odd][:10]]
            text = (
                f"{count:,} images ({_percent(share)}) {_have(count)} values of {word} {extreme:.4g}, where the median"
            )
            text += f" image has {median:.4g}, first {places[0]}: were all brought to the same range?"
            numbers = _numbers(count, share, places) | {"extreme": extreme, "median": median}
            yield Finding("range", bool(warns), text, numbers)


def _ranges(given: _Given, rows: _Rows) -> Iterator[Finding]:
    """validation_data of another range of values than x."""
    varied = ~rows.blank
    own = rows.index[varied] >= len(given.order)
    if min(own.sum(), (~own).sum()) < 20:
        return
    low, high = rows.low[varied].min(1), rows.high[varied].max(1)
    ends = [(float(np.median(low[part])), float(np.median(high[part]))) for part in (~own, own)]
    span = max(end - start for start, end in ends)
    if max(abs(ends[0][i] - ends[1][i]) for i in (0, 1)) <= APART * span:
        return
    mine, theirs = (f"{start:.4g} to {end:.4g}" for start, end in ends)
    text = f"the median image of x has values from {mine}, that of validation_data from {theirs}: were both prepared"
    yield Finding("preparation", True, f"{text} alike?", {"x": list(ends[0]), "validation_data": list(ends[1])})


def _zeros(rows: _Rows) -> Iterator[Finding]:
    """Images of next to nothing but zeros, as whole numbers become by a division."""
    if rows.nonzero < DARK and not rows.blank.all():
        text = f"{_percent(1 - rows.nonzero)} of all values are 0: were whole numbers divided or cut off?"
        yield Finding("zeros", True, text, {"nonzero": rows.nonzero})


def _channels(given: _Given, rows: _Rows) -> Iterator[Finding]:
    """Channels that say nothing."""
    n = rows.low.shape[1]
    if n == 1 or len(rows.index) < FEW:
        return
    still = [i for i in range(n) if rows.low[:, i].min() == rows.high[:, i].max()]
    if still and len(still) < n:
        text = f"channels {still} of {n} have the same value in all images: they cost time and say nothing"
        yield Finding("channels", False, text, {"constant": still})
    some = given.some(_LOOKED_AT)
    if n == 3 and not still and bool((some[:, 1:] == some[:, :-1]).all()):
        text = "the three channels are equal, the images are grey: with one of them, x[..., :1], training is faster"
        yield Finding("channels", False, text, {"equal": n})


def _orders(given: _Given) -> Iterator[Finding]:
    """Images whose values lie in another order of axes than they were read in: there they are smoother."""
    some = given.some(_LOOKED_AT)
    n, c, h, w = some.shape
    if n < 20 or min(h, w) < 4:
        return
    flat = some.permute(0, 2, 3, 1).reshape(n, -1)
    readings: dict[str, tuple[Tensor, str]] = {}
    if c > 1:
        first = f"np.moveaxis(x.reshape(-1, {c}, {h}, {w}), 1, -1)"
        last = f"x.reshape(-1, {h}, {w}, {c}), where x are the values as they lie in tensors of ({c}, {h}, {w})"
        readings["channels first"] = flat.reshape(n, c, h, w), first
        readings["channels last"] = some.reshape(n, h, w, c).permute(0, 3, 1, 2), last
    if h != w:
        turned = f"x.reshape(-1, {w}, {h}{'' if c == 1 else f', {c}'})"
        readings["width and height exchanged"] = flat.reshape(n, w, h, c).permute(0, 3, 1, 2), turned
    rough = _roughness(some)
    other, name = min(((_roughness(reading), name) for name, (reading, _) in readings.items()), default=(math.inf, ""))
    if rough and other < SMOOTHER * rough:
        text = (
            f"read with {name}, images have {_percent(other / rough)} of the differences between neighbouring pixels:"
        )
        text += f" are their axes in another order? {readings[name][1]} reads them so"
        yield Finding("axes", True, text, {"roughness": rough, "other": other, "order": name})


def _roughness(images: Tensor) -> float:
    """Mean squared difference of neighbouring pixels (n, c, h, w), relative to the variance: 2 for noise."""
    variance = images.var(dim=(0, 2, 3), correction=0).mean().item()
    steps = [images.diff(dim=axis).square().mean().item() for axis in (2, 3)]
    return sum(steps) / 2 / variance if variance else 0.0


def _signal(given: _Given, deadline: Deadline) -> Iterator[Finding]:
    """Labels that the examples say nothing about, as where x and y are in different orders.

    Two ways to tell them are tried on examples that they have not seen: the nearest neighbour, and ridge regression. Of
    no class there are many times as many as of others, which would be hidden by it.
    """
    y, k = given.y[: given.train], len(given.names)
    counts = np.sort(np.bincount(y, minlength=k))
    each = min(min(PROBED, given.affordable) // k, 2 * int(counts[(k - 1) // 2]))
    index = np.sort(np.concatenate([_spread(np.flatnonzero(y == i), each) for i in np.unique(y)])) if each else y[:0]
    if each < ALIKE or len(index) < PROBED // 2:
        return
    x, y = given.at(index), y[index]
    if given.images and (small := max(1, math.isqrt(math.prod(x.shape[2:]) // 256))) > 1:
        x = F.avg_pool2d(x, small)
    x = x.flatten(1)
    if x.shape[1] > 1024:
        x = x[:, torch.linspace(0, x.shape[1] - 1, 1024).long()]
    x = x - x.mean(0)
    x = x / x.std(0).clamp(min=1e-12) if not given.images else x / x.std().clamp(min=1e-12)
    names = torch.from_numpy(y)
    for way in (_by_neighbour, _by_ridge):
        said, truth = way(x, names)
        right = float((said == truth).double().mean())
        frequent = [torch.bincount(labels, minlength=k).double() / len(labels) for labels in (said, truth)]
        chance = float((frequent[0] * frequent[1]).sum())
        if right - chance > SIGNAL * math.sqrt(max(chance * (1 - chance), 1e-12) / len(truth)) or deadline.passed:
            return
    what = "image" if given.images else "row"
    text = f"labels cannot be told from {what}s better than by chance, neither by the nearest {what} nor by a"
    text += f" linear map ({_percent(right)} right, by chance {_percent(chance)}; {len(y):,} looked at)"
    numbers = {"right": right, "by_chance": chance, "examples": len(y)}
    yield Finding("signal", True, f"{text}: are x and y in the same order?", numbers)


def _by_neighbour(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """What the nearest other example says of each, and its label."""
    squares = x.square().sum(1)
    apart = squares[:, None] - 2 * (x @ x.T) + squares
    apart.fill_diagonal_(math.inf)
    return y[apart.argmin(1)], y


def _by_ridge(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """What a linear map of every second example says of the others, and their labels."""
    seen, unseen = x[::2].double(), x[1::2].double()
    target = F.one_hot(y, int(y.max()) + 1).double()
    mean = target[::2].mean(0)
    square = seen.T @ seen + 0.1 * len(seen) * torch.eye(x.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(square, seen.T @ (target[::2] - mean))
    return (unseen @ weights + mean).argmax(1), y[1::2]


# -- words


def _percent(share: float) -> str:
    """A share to two digits or to tenths, never 0 or all where it is not.

    >>> _percent(0.123), _percent(0.00012), _percent(1.0)
    ('12.3 %', '0.012 %', '100.0 %')
    """
    return f"{100 * share:.1f} %" if share >= 0.001 else f"{100 * share:.2g} %"


def _some(names: Sequence[Any]) -> str:
    """The first classes by name, and how many there are."""
    more = f" and {len(names) - 5:,} others" if len(names) > 5 else ""
    return f"class{'es' if len(names) > 1 else ''} {', '.join(map(repr, names[:5]))}{more}"


def _plural(one: str, more: str) -> Callable[[int], str]:
    return lambda count: one if count == 1 else more


_are, _have, _repeat = _plural("is", "are"), _plural("has", "have"), _plural("repeats", "repeat")


def _numbers(count: int, share: float, places: Sequence[str]) -> dict[str, Any]:
    return {"count": count, "share": float(share), "examples": list(places)}
