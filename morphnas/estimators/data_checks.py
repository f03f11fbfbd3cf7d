"""What is wrong with a user's examples though they can be trained on: found before the time is spent, told in numbers.

What cannot be trained on at all is refused by `sources.py`, `inputs.py`, `labels.py` and `targets.py`. Findings are
facts that were counted, and warn only where they matter; on data that are as they should be there are none.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from morphnas.estimators import target_checks
from morphnas.estimators.findings import (
    FEW,
    Finding,
    Given,
    Rows,
    are,
    counted,
    have,
    number_of,
    occur,
    percent,
    repeat,
    rows_of,
    some,
    spread,
)  # fmt: skip
from morphnas.estimators.inputs import ImageSize, Problem
from morphnas.estimators.splits import Groups
from morphnas.estimators.targets import RegressionTarget, SampleWeight, classes_of
from morphnas.train.deadline import NEVER, Deadline
from morphnas.train.modes import usual_modes

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
OTHER = 10.0
"""How many times as large, or as small, images to predict are than any of the fit, at least, to be of another range."""
DARK = 0.005
"""Share of values that are not 0, at least."""
SMOOTHER = 0.7
"""Share of the differences between neighbouring pixels that another reading of the same values has, at most."""
SIGNAL = 3.0
"""Standard errors above chance that labels can be told by at least: by neighbours, or by a linear map."""
PROBED = 2000
"""Examples that this is asked of, at most; and at least half as many."""
ALIKE = 5
"""Examples of a class, at least: an example's neighbour cannot be of its class where there is no other."""
FEATURES = 32
"""Values of an example from which on one that occurs twice is no chance."""

TAILED = 0.3
"""Share of a feature's standard deviation that half of its values lie within, below which its tails are long: 1.35 of a
normal distribution, .67 of a lognormal one whose logarithms have deviation 1, .07 of one where it is 2."""
_LOOKED_AT, _COMPARED = 500, 200


class DataWarning(UserWarning):
    """Something is, or looks, wrong with the examples or labels given to a fit."""


@dataclass(frozen=True)
class Findings:
    """All that was found in data. examples: their number. looked: how many were checked before the time was up.

    seconds: how long it took. `str()` is for people, `to_json()` is what run.json has under "findings".
    """

    found: tuple[Finding, ...]
    examples: int
    looked: int
    seconds: float

    def __str__(self) -> str:
        seen = f"{self.examples:,} examples" if self.looked == self.examples else (
            f"{self.looked:,} of {self.examples:,} examples (out of time)"
        )  # fmt: skip
        return "\n".join([*map(str, self.found), f"{len(self.found) or 'nothing'} found in {seen}"])

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings that matter."""
        return tuple(finding for finding in self.found if finding.warns)

    def beyond(self, before: Any) -> Findings:
        """The findings of kinds that run.json does not have for earlier data."""
        found = before.get("found", ()) if isinstance(before, Mapping) else ()
        kinds = {one.get("kind") for one in found if isinstance(one, Mapping)}
        return replace(self, found=tuple(one for one in self.found if one.kind not in kinds))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def examine(
    x: Any,
    y: Any = None,
    validation_data: Any = None,
    *,
    image_shape: Sequence[int] | None = None,
    image_size: ImageSize | None = None,
    axes: int | None = None,
    regression: bool = False,
    sample_weight: SampleWeight = None,
    groups: Groups = None,
    random_state: int = 0,
    time_limit: float | None = None,
) -> Findings:
    """What is, or looks, wrong with the data, without training anything: the checks that `fit` runs first.

    They look for exact duplicates within the training data and across the splits, contradictory labels, constant
    images, mixed value ranges, wrong axis orders, imbalanced, tiny and missing classes, classes that look like
    regression targets, labels of multi-label data that no example has, regression targets dominated by few examples,
    and y that the examples say nothing about.

    x, y, validation_data, sample_weight, groups, image_shape, image_size, axes: as for `ImageClassifier`. regression: y
    are numbers, for an `ImageRegressor`. random_state: decides which examples would be held out. time_limit: seconds
    for checking examples; None: all are checked. ValueError for what cannot be trained on at all.
    """
    with usual_modes():
        problem = Problem.found(
            x,
            y,
            validation_data,
            image_shape,
            random_state,
            torch.device("cpu"),
            image_size=image_size,
            read=RegressionTarget.found if regression else classes_of,
            sample_weight=sample_weight,
            axes=axes,
            groups=groups,
        )
        return look(problem, NEVER if time_limit is None else Deadline.after(time_limit))


def warn(findings: Findings, stacklevel: int = 3) -> None:
    """Warn of what matters, each by itself."""
    for finding in findings.warnings:
        warnings.warn(finding.text, DataWarning, stacklevel=stacklevel)


def range_of(images: Tensor) -> list[float]:
    """The range of images (n, ...): the lowest value, the highest, and the largest one, without its sign, of the
    darkest image, but for one in a hundred. Empty where all are constant."""
    ends = _ends(images)
    return [ends.min().item(), ends.max().item(), ends.abs().amax(1).quantile(0.01).item()] if len(ends) else []


def warn_of_others(images: Tensor, fitted: Sequence[float], stacklevel: int = 3) -> None:
    """Warn of images to predict whose range is another one than that of the fit's images, `fitted`, see `range_of`."""
    ends = _ends(images)
    if not len(ends) or not fitted:
        return
    (low, high, darkest), size = fitted, ends.abs().amax(1).median().item()
    if not darkest / OTHER <= size <= OTHER * max(-low, high):
        mine, theirs = f"{ends.min():.4g} to {ends.max():.4g}", f"{low:.4g} to {high:.4g}"
        text = f"x_test has values from {mine}, the images of the fit from {theirs}: were both prepared alike?"
        warnings.warn(text, DataWarning, stacklevel=stacklevel)


def _ends(images: Tensor) -> Tensor:
    """(m, 2) the lowest and the highest value of each of some images, from all over them, that is not constant."""
    low, high = images[:: math.ceil(len(images) / _COMPARED)].flatten(1).aminmax(dim=1)
    return torch.stack([low, high], 1)[low < high].double()


def glance(problem: Problem, seconds: float) -> Findings:
    """What is found in a small share of so many seconds, before these are spent on training; see `look`."""
    return look(problem, Deadline.after(min(LONGEST, SHARE * seconds)))


def look(problem: Problem, deadline: Deadline = NEVER) -> Findings:
    """What is found in a problem's examples until the deadline. ValueError where all of them are the same."""
    begun = time.perf_counter()
    given = Given.of(problem)
    rows = rows_of(given, deadline)
    if len(rows.index) == len(given) and len(np.unique(rows.digest)) == 1:
        same = f"all {len(given):,} examples are the same in float32"
        examples = "there is one example only" if len(given) == 1 else same
        raise ValueError(f"{examples}: there is nothing to learn from x")
    checks = [_repeats(given, rows), _blank(given, rows)]
    if given.images:
        checks += [_sizes(given, rows), _ranges(given, rows), _zeros(rows), _channels(given, rows)]
        checks += [] if problem.preprocessing.resized else [_orders(given)]
    else:
        checks.append(_tails(given))
    found = [*target_checks.look(given)]
    for check in (*checks, _signal(given, deadline)):
        found += [] if deadline.passed else check
    found.sort(key=lambda finding: not finding.warns)
    return Findings(tuple(found), len(given), len(rows.index), time.perf_counter() - begun)


# -- examples


def _repeats(given: Given, rows: Rows) -> Iterator[Finding]:
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
    what = given.what

    trained = np.zeros(len(counts), dtype=bool)
    trained[group[~held]] = True
    if count := int((leaked := held & trained[group]).sum()):
        share = count / max(1, int(held.sum()))
        twin = _first_twin(group, leaked, ~held)
        part = "validation_data" if given.own else "the examples held out"
        text = f"{count:,} of {part} ({percent(share)}) {are(count)} trained on as well, the same to the last bit"
        text += f", first {given.place(index[twin[0]])} as {given.place(index[twin[1]])}: scores are too optimistic"
        places = [given.place(i) for i in index[leaked][:10]]
        yield Finding("leak", share >= LEAKED and not usual, text, counted(count, share, places))

    low, high = np.full(len(counts), np.iinfo(np.int64).max), np.full(len(counts), -1)
    np.minimum.at(low, group, y)
    np.maximum.at(high, group, y)
    if count := int((mixed := (low != high)[group]).sum()):
        first = np.flatnonzero(mixed)[0]
        other = np.flatnonzero((group == group[first]) & (y != y[first]))[0]
        pair = " and ".join(f"{given.place(index[i])} is {given.names[y[i]]!r}" for i in (first, other))
        text = f"{number_of(what, count)} ({percent(count / n)}) {occur(count)} with different {given.said}: {pair}"
        places = [given.place(i) for i in index[mixed][:10]]
        yield Finding(
            "contradictory", count / n >= CONTRADICTORY and not usual, text, counted(count, count / n, places)
        )

    first_ones = np.unique(group[~held], return_index=True)[1]
    again = ~(low != high)[group[~held]]  # those of several labels have been told of
    again[first_ones] = False
    if count := int(again.sum()):
        share = count / len(again)
        repeated = np.flatnonzero(~held)[again]
        twin = _first_twin(group, repeated[:1], ~held)
        text = f"{number_of(what, count)} to train on ({percent(share)}) {repeat(count)} others, first"
        text += f" {given.place(index[twin[0]])} as {given.place(index[twin[1]])}"
        places = [given.place(i) for i in index[repeated][:10]]
        yield Finding("duplicates", share >= REPEATED and not usual, text, counted(count, share, places))


def _first_twin(group: NDArray[np.intp], some: NDArray[Any], others: NDArray[np.bool_]) -> tuple[int, int]:
    """The first of some examples, and the first of others that is the same."""
    one = int(np.flatnonzero(some)[0]) if some.dtype == bool else int(some[0])
    twins = np.flatnonzero((group == group[one]) & others)
    return one, int(twins[twins != one][0])


def _blank(given: Given, rows: Rows) -> Iterator[Finding]:
    """Images without anything on them."""
    pixels = math.prod(given.parts[0].shape[2:])
    if not given.images or pixels == 1 or not (count := int((blank := rows.blank).sum())):
        return
    share = count / len(blank)
    places = [given.place(i) for i in rows.index[blank][:10]]
    text = f"{number_of('images', count)} ({percent(share)}) {are(count)} constant, every pixel the same"
    text += f", first {places[0]}"
    yield Finding("constant", share >= BLANK, text, counted(count, share, places))


def _sizes(given: Given, rows: Rows) -> Iterator[Finding]:
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
            text = f"{number_of('images', count)} ({percent(share)}) {have(count)} values of {word} {extreme:.4g}"
            text += f", where the median image has {median:.4g}, first {places[0]}: were all brought to the same range?"
            numbers = counted(count, share, places) | {"extreme": extreme, "median": median}
            yield Finding("range", bool(warns), text, numbers)


def _ranges(given: Given, rows: Rows) -> Iterator[Finding]:
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


def _zeros(rows: Rows) -> Iterator[Finding]:
    """Images of next to nothing but zeros, as whole numbers become by a division."""
    if rows.nonzero < DARK and not rows.blank.all():
        text = f"{percent(1 - rows.nonzero)} of all values are 0: were whole numbers divided or cut off?"
        yield Finding("zeros", True, text, {"nonzero": rows.nonzero})


def _channels(given: Given, rows: Rows) -> Iterator[Finding]:
    """Channels that say nothing."""
    n = rows.low.shape[1]
    if n == 1 or len(rows.index) < FEW:
        return
    still = [i for i in range(n) if rows.low[:, i].min() == rows.high[:, i].max()]
    if still and len(still) < n:
        text = f"channels {still} of {n} have the same value in all images: they cost time and carry no information"
        yield Finding("channels", False, text, {"constant": still})
    some = given.some(_LOOKED_AT)
    if n == 3 and not still and bool((some[:, 1:] == some[:, :-1]).all()):
        text = "the three channels are equal, the images are grey: with one of them, x[..., :1], training is faster"
        yield Finding("channels", False, text, {"equal": n})


def _tails(given: Given) -> Iterator[Finding]:
    """Features most of whose values are next to nothing beside a few."""
    values = given.some(_LOOKED_AT).flatten(1).double()
    if len(values) < FEW:
        return
    quarters = values.quantile(torch.tensor([0.25, 0.75], dtype=torch.float64), dim=0)
    usual, std = quarters[1] - quarters[0], values.std(0)
    if columns := torch.nonzero((usual > 0) & (usual < TAILED * std)).flatten().tolist():
        text = (
            f"{some(columns, 'feature')} {have(len(columns))} a few values that are far larger than most, beside which"
        )
        text += " the others look alike: logarithms or ranks (sklearn.preprocessing.QuantileTransformer) may be easier"
        text += " to learn from"
        yield Finding("tails", True, text, {"features": columns})


def _orders(given: Given) -> Iterator[Finding]:
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
        text = f"read with {name}, images have {percent(other / rough)} of the differences between neighbouring pixels:"
        text += f" are their axes in another order? {readings[name][1]} would read them like that"
        yield Finding("axes", True, text, {"roughness": rough, "other": other, "order": name})


def _roughness(images: Tensor) -> float:
    """Mean squared difference of neighbouring pixels (n, c, h, w), relative to the variance: 2 for noise."""
    variance = images.var(dim=(0, 2, 3), correction=0).mean().item()
    steps = [images.diff(dim=axis).square().mean().item() for axis in (2, 3)]
    return sum(steps) / 2 / variance if variance else 0.0


def _signal(given: Given, deadline: Deadline) -> Iterator[Finding]:
    """Labels, or amounts, that the examples say nothing about, as where x and y are in different orders.

    Two ways to tell them are tried on examples that they have not seen: the nearest neighbour, and ridge regression. Of
    no class there are many times as many as of others, which would be hidden by it.
    """
    index, truth, compare = (_of_classes if given.numbers is None else _of_numbers)(given)
    if len(index) < PROBED // 2:
        return
    x = given.at(index)
    if given.images and (small := max(1, math.isqrt(math.prod(x.shape[2:]) // 256))) > 1:
        x = F.avg_pool2d(x, small)
    x = x.flatten(1)
    if x.shape[1] > 1024:
        x = x[:, torch.linspace(0, x.shape[1] - 1, 1024).long()]
    x = x - x.mean(0)
    x = x / x.std(0).clamp(min=1e-12) if not given.images else x / x.std().clamp(min=1e-12)
    numbers, told = dict[str, Any](), ""
    for way in (_by_neighbour, _by_ridge):
        sure, numbers, told = compare(*way(x, truth))
        if sure > SIGNAL or deadline.passed:
            return
    what = given.what.removesuffix("s")
    text = (
        f"{given.said} cannot be predicted from {what}s better than by chance, neither by the nearest {what} nor by a"
    )
    text += f" linear model ({told}; {len(index):,} looked at): are x and y in the same order?"
    yield Finding("signal", True, text, numbers | {"examples": len(index)})


_Compare = Callable[[Tensor, Tensor], tuple[float, dict[str, Any], str]]
"""By how many standard errors what is said (n, k) is nearer to what is true (n, k) than by chance; numbers; words."""


def _of_classes(given: Given) -> tuple[NDArray[np.intp], Tensor, _Compare]:
    """Examples to look at, what is true of them, (n, classes), and how to compare."""
    y, k = given.y[: given.train], len(given.names)
    counts = np.sort(np.bincount(y, minlength=k))
    each = min(min(PROBED, given.affordable) // k, 2 * int(counts[(k - 1) // 2]))
    each = 0 if each < ALIKE else each
    index = np.sort(np.concatenate([spread(np.flatnonzero(y == i), each) for i in np.unique(y)])) if each else y[:0]
    return index, F.one_hot(torch.from_numpy(y[index]), k).double(), _share_right


def _of_numbers(given: Given) -> tuple[NDArray[np.intp], Tensor, _Compare]:
    """The same of amounts, (n, amounts), or of tags."""
    assert given.numbers is not None
    index = spread(np.arange(given.train), min(PROBED, given.affordable))
    return index, torch.from_numpy(given.numbers[index]).double(), _correlation


def _by_neighbour(x: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """What the nearest other example says of each, and what is true, (n, k) both."""
    squares = x.square().sum(1)
    apart = squares[:, None] - 2 * (x @ x.T) + squares
    apart.fill_diagonal_(math.inf)
    return truth[apart.argmin(1)], truth


def _by_ridge(x: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """What a linear map of every second example says of the others, and what is true of these."""
    seen, unseen = x[::2].double(), x[1::2].double()
    mean = truth[::2].mean(0)
    square = seen.T @ seen + 0.1 * len(seen) * torch.eye(x.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(square, seen.T @ (truth[::2] - mean))
    return unseen @ weights + mean, truth[1::2]


def _share_right(said: Tensor, truth: Tensor) -> tuple[float, dict[str, Any], str]:
    """By how many more of the likeliest classes are right."""
    k, pair = truth.shape[1], (said.argmax(1), truth.argmax(1))
    right = float((pair[0] == pair[1]).double().mean())
    frequent = [torch.bincount(labels, minlength=k).double() / len(labels) for labels in pair]
    chance = float((frequent[0] * frequent[1]).sum())
    error = math.sqrt(max(chance * (1 - chance), 1e-12) / len(truth))
    told = f"{percent(right)} right, by chance {percent(chance)}"
    return (right - chance) / error, {"right": right, "by_chance": chance}, told


def _correlation(said: Tensor, truth: Tensor) -> tuple[float, dict[str, Any], str]:
    """By the largest correlation of an amount, or of a tag, less what the largest of so many is by chance."""
    one, other = (side - side.mean(0) for side in (said, truth))
    lengths = (one.square().sum(0) * other.square().sum(0)).sqrt().clamp(min=1e-300)
    most = float(((one * other).sum(0) / lengths).max())
    by_chance = math.sqrt(2 * math.log(truth.shape[1]))
    return most * math.sqrt(len(truth)) - by_chance, {"correlation": most}, f"correlation {most:.2f}"
