"""Checks of data that can be trained on but look wrong, run before the time for training is spent.

Data that cannot be trained on at all raise errors in `sources.py`, `inputs.py`, `labels.py` and `targets.py`. Findings
report counts, and are warnings only if they matter; there should be none on sound data.
"""

from __future__ import annotations

import math
import statistics
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
    MIN_EXAMPLES,
    CheckedData,
    ExampleStats,
    Finding,
    are,
    count_numbers,
    evenly_spaced,
    example_stats,
    have,
    name_list,
    number_of,
    occur,
    percent,
    repeat,
)  # fmt: skip
from morphnas.estimators.inputs import ImageSize, Problem
from morphnas.estimators.splits import Groups
from morphnas.estimators.targets import RegressionTarget, SampleWeight, classification_target
from morphnas.train.deadline import NEVER, Deadline
from morphnas.train.modes import usual_modes

MAX_TIME_SHARE = 0.02
"""Share of the time limit of a fit that the checks may take."""
MAX_SECONDS = 5.0
"""Seconds that the checks of a fit may take."""

MIN_LEAKED = 0.01
"""Share of the held-out examples that are also in the training set, from which on that is a warning."""
MIN_CONTRADICTORY = 0.005
"""Share of the examples that occur with different labels, from which on that is a warning."""
MIN_REPEATED = 0.05
"""Share of duplicates in the training set, from which on they are a warning; they do little harm by themselves."""
MIN_CONSTANT = 0.01
"""Share of constant images, from which on they are a warning."""
MIN_OUT_OF_RANGE = 0.005
"""Share of images out of the usual range of values, from which on they are a warning."""
RANGE_FACTOR = 50.0
"""An image is out of range if its largest absolute value is at least this many times the median of all images', or at
most the median divided by this."""
EXTREME_FACTOR = 1000.0
"""Times the median for which one image is enough for a warning: after normalisation, all others would be almost 0."""
MAX_RANGE_DIFFERENCE = 0.45
"""Largest difference between the ends of the value ranges of x and validation_data, as a share of the wider range."""
PREDICTION_RANGE_FACTOR = 10.0
"""Images to predict are out of range if the median of their largest absolute values is more than this many times the
largest value of the fit, or less than that of the darkest 1 % of the fit's images divided by this."""
MIN_NONZERO = 0.005
"""Share of non-zero values below which there is a warning."""
MAX_ROUGHNESS_RATIO = 0.7
"""Roughness of another reading of the axes, relative to the actual one, below which the axes seem to be exchanged."""
MIN_SIGNAL = 3.0
"""Standard errors above chance beyond which predictions by nearest neighbour or a linear model count as a signal."""
SIGNAL_EXAMPLES = 2000
"""Examples that the check for a signal uses, at most; it needs half as many."""
MIN_CLASS_EXAMPLES = 5
"""Examples per class that this check needs in its sample, or it is skipped: with only one, the nearest neighbour never
has the same class."""
MIN_FEATURES = 32
"""Values of an example from which on duplicates cannot be due to chance."""

LONG_TAILED = 0.3
"""Interquartile range in standard deviations, below which a feature has long tails: 1.35 for a normal distribution, .67
for a lognormal one whose logarithms have standard deviation 1, .07 for one where that is 2."""
_SAMPLED, _RANGE_SAMPLED = 500, 200
"""Maximum number of examples that the checks of a sample use, and that `range_of` and `warn_if_range_differs` use."""


class DataWarning(UserWarning):
    """Something is, or looks, wrong with the examples or labels given to a fit."""


@dataclass(frozen=True)
class Findings:
    """The results of the checks.

    examples: number of examples. looked: how many were checked within the time. seconds: duration of the checks.
    `str()` is the report, `to_json()` what run.json has under "findings".
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
        """The findings that are warnings."""
        return tuple(finding for finding in self.found if finding.warns)

    def new_kinds(self, before: Any) -> Findings:
        """The findings whose kinds are not in `before`, the "findings" of run.json for earlier data."""
        found = before.get("found", ()) if isinstance(before, Mapping) else ()
        kinds = {finding.get("kind") for finding in found if isinstance(finding, Mapping)}
        return replace(self, found=tuple(finding for finding in self.found if finding.kind not in kinds))

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
    """Run the checks that `fit` runs first, without training anything: what is, or looks, wrong with the data.

    They look for exact duplicates within the training set and across the splits, contradictory labels, constant images,
    mixed value ranges, wrong axis orders, features with long tails, imbalanced classes, classes without examples or
    without held-out ones, classes that look like regression targets and the reverse, labels of multi-label data that no
    or all examples have, regression targets dominated by few examples, validation_data that differs from x, and y that
    cannot be predicted from the examples.

    Parameters
    ----------
    x, y, validation_data, sample_weight, groups
        As for `ImageClassifier.fit`.
    image_shape, image_size, axes : optional
        As for `ImageClassifier`.
    regression : bool
        Whether y are numbers, for an `ImageRegressor`.
    random_state : int
        Seed that decides which examples would be held out.
    time_limit : float, optional
        Seconds for the checks, not counting reading the data. None: no limit.

    Returns
    -------
    Findings
        Warnings, and other findings, as text and as figures. Print it, or use its fields.

    Raises
    ------
    ValueError
        If the data cannot be trained on at all.
    """
    with usual_modes():
        problem = Problem.infer(
            x,
            y,
            validation_data,
            image_shape,
            random_state,
            torch.device("cpu"),
            image_size=image_size,
            read=RegressionTarget.infer if regression else classification_target,
            sample_weight=sample_weight,
            axes=axes,
            groups=groups,
        )
        return check(problem, NEVER if time_limit is None else Deadline.after(time_limit))


def warn(findings: Findings, stacklevel: int = 3) -> None:
    """Issue a `DataWarning` for each finding that is a warning."""
    for finding in findings.warnings:
        warnings.warn(finding.text, DataWarning, stacklevel=stacklevel)


def range_of(images: Tensor) -> list[float]:
    """The value range of images (n, ...): minimum, maximum, and the 1 % quantile of their largest absolute values.

    Empty if all images are constant.
    """
    ends = _ends(images)
    return [ends.min().item(), ends.max().item(), ends.abs().amax(1).quantile(0.01).item()] if len(ends) else []


def warn_if_range_differs(images: Tensor, fitted: Sequence[float], stacklevel: int = 3) -> None:
    """Warn if images to predict have another range than `fitted`, the `range_of` the images of the fit."""
    ends = _ends(images)
    if not len(ends) or not fitted:
        return
    (low, high, darkest), size = fitted, ends.abs().amax(1).median().item()
    if not darkest / PREDICTION_RANGE_FACTOR <= size <= PREDICTION_RANGE_FACTOR * max(-low, high):
        new_range, fit_range = f"{ends.min():.4g} to {ends.max():.4g}", f"{low:.4g} to {high:.4g}"
        text = f"x_test has values from {new_range}, the images of the fit from {fit_range}: were both prepared alike?"
        warnings.warn(text, DataWarning, stacklevel=stacklevel)


def _ends(images: Tensor) -> Tensor:
    """(m, 2) minimum and maximum of evenly spaced images, without constant ones."""
    low, high = images[:: math.ceil(len(images) / _RANGE_SAMPLED)].flatten(1).aminmax(dim=1)
    return torch.stack([low, high], 1)[low < high].double()


def quick_check(problem: Problem, seconds: float) -> Findings:
    """`check` within a small share of the `seconds` that a fit has left."""
    return check(problem, Deadline.after(min(MAX_SECONDS, MAX_TIME_SHARE * seconds)))


def check(problem: Problem, deadline: Deadline = NEVER) -> Findings:
    """Run all checks on a problem's examples, until the deadline. ValueError if all examples are the same."""
    start = time.perf_counter()
    data = CheckedData.of(problem)
    stats = example_stats(data, deadline)
    if len(stats.index) == len(data) and len(np.unique(stats.digest)) == 1:
        same = f"all {len(data):,} examples are the same in float32"
        examples = "there is one example only" if len(data) == 1 else same
        raise ValueError(f"{examples}: there is nothing to learn from x")
    checks = [_duplicates(data, stats), _constant_images(data, stats)]
    axes = data.spatial_axes
    if axes:
        checks += [_mixed_ranges(data, stats), _validation_range(data, stats), _zeros(stats), _channels(data, stats)]
    else:
        checks.append(_long_tails(data))
    if axes == 1:
        checks.append(_sequence_axis_order(data))
    elif axes == 2 and not problem.preprocessing.resized:
        checks.append(_axis_order(data))
    findings = [*target_checks.check_target(data)]
    for found in (*checks, _signal(data, deadline)):
        findings += [] if deadline.passed else found
    findings.sort(key=lambda finding: not finding.warns)
    return Findings(tuple(findings), len(data), len(stats.index), time.perf_counter() - start)


# -- examples


def _duplicates(data: CheckedData, stats: ExampleStats) -> Iterator[Finding]:
    """Bitwise equal examples: across the splits, with different y, and within the training set."""
    varied = ~stats.constant if data.spatial_axes else np.ones(len(stats.index), dtype=bool)
    index = stats.index[varied]
    if not len(index):
        return
    _, group, counts = np.unique(stats.digest[varied], return_inverse=True, return_counts=True)
    if len(counts) == len(index):
        return
    y, held, n = data.y[index], index >= data.n_train, len(index)
    by_chance = math.prod(data.parts[0].shape[1:]) < MIN_FEATURES  # examples of few values may well be equal

    trained = np.zeros(len(counts), dtype=bool)
    trained[group[~held]] = True
    if count := int((leaked := held & trained[group]).sum()):
        share = count / max(1, int(held.sum()))
        twin = _first_twin(group, leaked, ~held)
        part = "validation_data" if data.n_validation else "the examples held out"
        text = f"{count:,} of {part} ({percent(share)}) {are(count)} trained on as well, the same to the last bit"
        text += f", first {data.position(index[twin[0]])} as {data.position(index[twin[1]])}: scores are too optimistic"
        positions = [data.position(i) for i in index[leaked][:10]]
        yield Finding("leak", share >= MIN_LEAKED and not by_chance, text, count_numbers(count, share, positions))

    low, high = np.full(len(counts), np.iinfo(np.int64).max), np.full(len(counts), -1)
    np.minimum.at(low, group, y)
    np.maximum.at(high, group, y)
    if count := int((mixed := (low != high)[group]).sum()):
        first = np.flatnonzero(mixed)[0]
        other = np.flatnonzero((group == group[first]) & (y != y[first]))[0]
        pair = " and ".join(f"{data.position(index[i])} is {data.names[y[i]]!r}" for i in (first, other))
        share = count / n
        text = f"{number_of(data.noun, count)} ({percent(share)}) {occur(count)} with different {data.y_noun}: {pair}"
        positions = [data.position(i) for i in index[mixed][:10]]
        warns = share >= MIN_CONTRADICTORY and not by_chance
        yield Finding("contradictory", warns, text, count_numbers(count, share, positions))

    first_of_group = np.unique(group[~held], return_index=True)[1]
    repeats = ~(low != high)[group[~held]]  # contradictory ones are reported above
    repeats[first_of_group] = False
    if count := int(repeats.sum()):
        share = count / len(repeats)
        repeated = np.flatnonzero(~held)[repeats]
        twin = _first_twin(group, repeated[:1], ~held)
        text = f"{number_of(data.noun, count)} to train on ({percent(share)}) {repeat(count)} others, first"
        text += f" {data.position(index[twin[0]])} as {data.position(index[twin[1]])}"
        positions = [data.position(i) for i in index[repeated][:10]]
        warns = share >= MIN_REPEATED and not by_chance
        yield Finding("duplicates", warns, text, count_numbers(count, share, positions))


def _first_twin(group: NDArray[np.intp], subset: NDArray[Any], others: NDArray[np.bool_]) -> tuple[int, int]:
    """The first example of a subset (mask or indices), and the first equal one among the others (mask)."""
    first = int(np.flatnonzero(subset)[0]) if subset.dtype == bool else int(subset[0])
    twins = np.flatnonzero((group == group[first]) & others)
    return first, int(twins[twins != first][0])


def _constant_images(data: CheckedData, stats: ExampleStats) -> Iterator[Finding]:
    """Images, sequences or volumes whose values are all equal."""
    pixels = math.prod(data.parts[0].shape[2:])
    if pixels == 1 or not (count := int((constant := stats.constant).sum())):
        return
    share = count / len(constant)
    positions = [data.position(i) for i in stats.index[constant][:10]]
    text = f"{number_of(data.noun, count)} ({percent(share)}) {are(count)} constant, all values the same"
    text += f", first {positions[0]}"
    yield Finding("constant", share >= MIN_CONSTANT, text, count_numbers(count, share, positions))


def _mixed_ranges(data: CheckedData, stats: ExampleStats) -> Iterator[Finding]:
    """Images whose values are many times larger or smaller than those of the others."""
    varied = ~stats.constant
    index, max_abs = stats.index[varied], stats.max_abs[varied]
    if len(index) < 2 or not (median := float(np.median(max_abs))):
        return
    for outliers, word in (
        (max_abs * RANGE_FACTOR <= median, "at most"),
        (max_abs >= RANGE_FACTOR * median, "up to"),
    ):
        if count := int(outliers.sum()):
            share, extreme = count / len(max_abs), float(max_abs[outliers].max())
            warns = share >= MIN_OUT_OF_RANGE or extreme >= EXTREME_FACTOR * median
            positions = [data.position(i) for i in index[outliers][:10]]
            text = f"{number_of(data.noun, count)} ({percent(share)}) {have(count)} values of {word} {extreme:.4g}"
            text += f", where the median of the {data.noun} is {median:.4g}, first {positions[0]}: "
            text += "were all brought to the same range?"
            numbers = count_numbers(count, share, positions) | {"extreme": extreme, "median": median}
            yield Finding("range", bool(warns), text, numbers)


def _validation_range(data: CheckedData, stats: ExampleStats) -> Iterator[Finding]:
    """validation_data with another range of values than x."""
    varied = ~stats.constant
    is_validation = stats.index[varied] >= len(data.order)
    if min(is_validation.sum(), (~is_validation).sum()) < 20:
        return
    low, high = stats.low[varied].min(1), stats.high[varied].max(1)
    ends = [(float(np.median(low[part])), float(np.median(high[part]))) for part in (~is_validation, is_validation)]
    span = max(end - start for start, end in ends)
    if max(abs(ends[0][i] - ends[1][i]) for i in (0, 1)) <= MAX_RANGE_DIFFERENCE * span:
        return
    x_range, validation_range = (f"{start:.4g} to {end:.4g}" for start, end in ends)
    text = f"{data.noun} of x typically have values from {x_range}, those of validation_data from {validation_range}:"
    text += " were both prepared alike?"
    yield Finding("preparation", True, text, {"x": list(ends[0]), "validation_data": list(ends[1])})


def _zeros(stats: ExampleStats) -> Iterator[Finding]:
    """Images that are almost all zeros, such as integers after an integer division."""
    if stats.nonzero < MIN_NONZERO and not stats.constant.all():
        text = f"{percent(1 - stats.nonzero)} of all values are 0: were whole numbers divided or cut off?"
        yield Finding("zeros", True, text, {"nonzero": stats.nonzero})


def _channels(data: CheckedData, stats: ExampleStats) -> Iterator[Finding]:
    """Channels that are constant over all images, or equal to each other."""
    n = stats.low.shape[1]
    if n == 1 or len(stats.index) < MIN_EXAMPLES:
        return
    constant = [i for i in range(n) if stats.low[:, i].min() == stats.high[:, i].max()]
    if constant and len(constant) < n:
        text = f"channels {constant} of {n} have the same value in all {data.noun}: they cost time and tell nothing"
        yield Finding("channels", False, text, {"constant": constant})
    images = data.sample(_SAMPLED)
    if n == 3 and not constant and bool((images[:, 1:] == images[:, :-1]).all()):
        text = "the three channels are equal: with one of them, x[..., :1], training is faster"
        yield Finding("channels", False, text, {"equal": n})


def _long_tails(data: CheckedData) -> Iterator[Finding]:
    """Features with a few values that are far larger than most."""
    values = data.sample(_SAMPLED).flatten(1).double()
    if len(values) < MIN_EXAMPLES:
        return
    quartiles = values.quantile(torch.tensor([0.25, 0.75], dtype=torch.float64), dim=0)
    iqr, std = quartiles[1] - quartiles[0], values.std(0)
    if columns := torch.nonzero((iqr > 0) & (iqr < LONG_TAILED * std)).flatten().tolist():
        text = f"{name_list(columns, 'feature')} {have(len(columns))} a few values that are far larger than most,"
        text += " beside which the others look alike: logarithms or ranks (sklearn.preprocessing.QuantileTransformer)"
        text += " may be easier to learn from"
        yield Finding("tails", True, text, {"features": columns})


def _axis_order(data: CheckedData) -> Iterator[Finding]:
    """Images that seem to have another order of axes than they are read in, since they are smoother in that order."""
    images = data.sample(_SAMPLED)
    n, c, h, w = images.shape
    if n < 20 or min(h, w) < 4:
        return
    flat = images.permute(0, 2, 3, 1).reshape(n, -1)
    readings: dict[str, tuple[Tensor, str]] = {}
    if c > 1:
        first = f"np.moveaxis(x.reshape(-1, {c}, {h}, {w}), 1, -1)"
        last = f"x.reshape(-1, {h}, {w}, {c}), where x are the values as they lie in tensors of ({c}, {h}, {w})"
        readings["channels first"] = flat.reshape(n, c, h, w), first
        readings["channels last"] = images.reshape(n, h, w, c).permute(0, 3, 1, 2), last
    if h != w:
        transposed = f"x.reshape(-1, {w}, {h}{'' if c == 1 else f', {c}'})"
        readings["width and height exchanged"] = flat.reshape(n, w, h, c).permute(0, 3, 1, 2), transposed
    rough = _roughness(images)
    other, name = min(((_roughness(reading), name) for name, (reading, _) in readings.items()), default=(math.inf, ""))
    if rough and other < MAX_ROUGHNESS_RATIO * rough:
        text = f"read with {name}, images have {percent(other / rough)} of the differences between neighbouring pixels:"
        text += f" are their axes in another order? {readings[name][1]} would read them like that"
        yield Finding("axes", True, text, {"roughness": rough, "other": other, "order": name})


def _sequence_axis_order(data: CheckedData) -> Iterator[Finding]:
    """Sequences with fewer positions than channels that are smoother along these: they seem to be exchanged."""
    sequences = data.sample(_SAMPLED)
    n, c, length = sequences.shape
    if n < 20 or c < 4 or c <= length:
        return
    rough, other = _roughness(sequences), _roughness(sequences.transpose(1, 2))
    if other < MAX_ROUGHNESS_RATIO * rough:
        text = f"sequences are read as {length} position{'' if length == 1 else 's'} of {c} channels, but neighbouring"
        text += f" channels have {percent(other / rough)} of the differences of neighbouring positions: are the two"
        text += " exchanged? Arrays of sequences have shape (n, length, channels), tensors (n, channels, length)"
        yield Finding("axes", True, text, {"roughness": rough, "other": other, "order": "channels first"})


def _roughness(examples: Tensor) -> float:
    """Mean squared difference between neighbouring positions of (n, c, *spatial), relative to the variance.

    2 for noise, and along axes with a single position.
    """
    variance = examples.var(dim=(0, *range(2, examples.ndim)), correction=0).mean().item()
    if not variance:
        return 0.0
    differences = (examples.diff(dim=axis).square() for axis in range(2, examples.ndim))
    return statistics.mean(d.mean().item() / variance if d.numel() else 2.0 for d in differences)


def _signal(data: CheckedData, deadline: Deadline) -> Iterator[Finding]:
    """y that cannot be predicted from the examples, as when x and y are in different orders.

    Two models are evaluated on unseen examples: the nearest neighbour, and ridge regression. The sample of classes is
    balanced, so that a large class does not hide a signal in the others.
    """
    index, truth, compare = (_class_sample if data.codes is None else _code_sample)(data)
    if len(index) < SIGNAL_EXAMPLES // 2:
        return
    x = data.take(index)
    if data.spatial_axes == 2 and (small := max(1, math.isqrt(math.prod(x.shape[2:]) // 256))) > 1:
        x = F.avg_pool2d(x, small)
    x = x.flatten(1)
    if x.shape[1] > 1024:
        x = x[:, torch.linspace(0, x.shape[1] - 1, 1024).long()]
    x = x - x.mean(0)
    x = x / (x.std() if data.spatial_axes == 2 else x.std(0)).clamp(min=1e-12)
    numbers, result = dict[str, Any](), ""
    for predict in (_nearest_neighbour, _ridge_regression):
        standard_errors, numbers, result = compare(*predict(x, truth))
        if standard_errors > MIN_SIGNAL or deadline.passed:
            return
    noun = data.noun.removesuffix("s")
    text = (
        f"{data.y_noun} cannot be predicted from {noun}s better than by chance, neither by the nearest {noun} nor by a"
    )
    text += f" linear model ({result}; {len(index):,} examples): are x and y in the same order?"
    yield Finding("signal", True, text, numbers | {"examples": len(index)})


_Compare = Callable[[Tensor, Tensor], tuple[float, dict[str, Any], str]]
"""From predictions and truth, (n, k) both: standard errors above chance; figures for JSON; a text."""


def _class_sample(data: CheckedData) -> tuple[NDArray[np.intp], Tensor, _Compare]:
    """Indices of a balanced sample of the training set, its one-hot classes (n, classes), and how to compare."""
    y, k = data.y[: data.n_train], len(data.names)
    counts = np.sort(np.bincount(y, minlength=k))
    per_class = min(min(SIGNAL_EXAMPLES, data.max_floats) // k, 2 * int(counts[(k - 1) // 2]))
    if per_class < MIN_CLASS_EXAMPLES:
        index = y[:0]
    else:
        index = np.sort(np.concatenate([evenly_spaced(np.flatnonzero(y == i), per_class) for i in np.unique(y)]))
    return index, F.one_hot(torch.from_numpy(y[index]), k).double(), _compare_accuracy


def _code_sample(data: CheckedData) -> tuple[NDArray[np.intp], Tensor, _Compare]:
    """Indices of a sample of the training set, its encoded y (n, k), and how to compare: multi-label and regression."""
    assert data.codes is not None
    index = evenly_spaced(np.arange(data.n_train), min(SIGNAL_EXAMPLES, data.max_floats))
    return index, torch.from_numpy(data.codes[index]).double(), _compare_correlation


def _nearest_neighbour(x: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Leave-one-out predictions by the nearest neighbour, and the truth, (n, k) both."""
    squares = x.square().sum(1)
    distances = squares[:, None] - 2 * (x @ x.T) + squares
    distances.fill_diagonal_(math.inf)
    return truth[distances.argmin(1)], truth


def _ridge_regression(x: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Predictions for every second example by ridge regression on the others, and the truth, (n, k) both."""
    seen, unseen = x[::2].double(), x[1::2].double()
    mean = truth[::2].mean(0)
    gram = seen.T @ seen + 0.1 * len(seen) * torch.eye(x.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, seen.T @ (truth[::2] - mean))
    return unseen @ weights + mean, truth[1::2]


def _compare_accuracy(predicted: Tensor, truth: Tensor) -> tuple[float, dict[str, Any], str]:
    """Compare the accuracy with that of independent predictions of the same class frequencies."""
    k, pair = truth.shape[1], (predicted.argmax(1), truth.argmax(1))
    accuracy = float((pair[0] == pair[1]).double().mean())
    frequencies = [torch.bincount(labels, minlength=k).double() / len(labels) for labels in pair]
    chance = float((frequencies[0] * frequencies[1]).sum())
    error = math.sqrt(max(chance * (1 - chance), 1e-12) / len(truth))
    text = f"{percent(accuracy)} right, by chance {percent(chance)}"
    return (accuracy - chance) / error, {"right": accuracy, "by_chance": chance}, text


def _compare_correlation(predicted: Tensor, truth: Tensor) -> tuple[float, dict[str, Any], str]:
    """Compare the largest correlation of a column with the largest that is expected of as many columns by chance."""
    a, b = (values - values.mean(0) for values in (predicted, truth))
    norms = (a.square().sum(0) * b.square().sum(0)).sqrt().clamp(min=1e-300)
    largest = float(((a * b).sum(0) / norms).max())
    by_chance = math.sqrt(2 * math.log(truth.shape[1]))
    return largest * math.sqrt(len(truth)) - by_chance, {"correlation": largest}, f"correlation {largest:.2f}"
