"""Checks of y: labels that are not classes, imbalance, labels without examples, outliers in regression targets."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from morphnas.estimators.findings import MIN_EXAMPLES, CheckedData, Finding, name_list, percent

MIN_EXAMPLES_FOR_HELD_OUT_CLASSES = 500
"""Examples from which on it is a warning if a class has no held-out example."""
MAJORITY = 0.9
"""Share of the largest class from which on the accuracy says little."""
IMBALANCE_RATIOS = (10, 100)
"""Ratio of the largest class to the smallest from which on imbalance is reported, and is a warning."""
MAX_CLASS_DISTANCE = 0.2
"""Total variation distance between the class frequencies of x and of validation_data, in excess of twice the distance
expected by chance, from which on there is a warning."""
ONE_HOT_SHARE = 0.95
"""Share of multi-label examples with exactly one label, from which on y looks like one-hot labels."""
MAX_OUTLIER_SHARE = 0.5
"""Share of the total squared deviation that the most extreme 1 % of the regression targets have, from which on they
dominate training."""
MAX_MEAN_DIFFERENCE = 0.5
"""Difference between the means of regression targets of x and of validation_data, in standard deviations and in excess
of 4 standard errors, beyond which there is a warning."""
MAX_INTEGER_CLASSES = 20
"""Regression targets look like classes if they are at most this many distinct integers, and have at least this many
examples of each on average."""


def check_target(data: CheckedData) -> Iterator[Finding]:
    """Run the checks for the kind of y."""
    by_kind = {"labels": (_label_types, _class_counts, _class_shift), "tags": (_tags,), "amounts": (_regression,)}
    for check in by_kind[data.y_kind]:
        yield from check(data)


def _label_types(data: CheckedData) -> Iterator[Finding]:
    """Labels that look like regression targets or names of examples rather than classes."""
    y, n = data.y[: len(data.order)], len(data.order)
    counts = np.bincount(y, minlength=len(data.names))
    k, typical = len(counts), float(np.median(counts))
    if n < MIN_EXAMPLES or k < 20 or typical > 3:
        return
    numeric = all(isinstance(name, (int, float)) and not isinstance(name, bool) for name in data.names)
    consecutive = numeric and np.ptp(data.names) == k - 1
    if numeric and consecutive and counts.min() >= 0.5 * counts.max() and typical > 1:
        return  # numbered classes with few examples each
    looks = "are they numbers to predict, for an ImageRegressor?" if numeric else "are they names of examples?"
    text = f"y holds {k:,} different labels for {n:,} examples, half of them at most {typical:g} times: {looks}"
    yield Finding("labels", True, text, {"classes": k, "examples": n, "median": typical})


def _class_counts(data: CheckedData) -> Iterator[Finding]:
    """Classes without examples, class imbalance, and classes without held-out examples."""
    n, k = len(data.order), len(data.names)
    counts = np.bincount(data.y[:n], minlength=k)
    if len(gone := np.flatnonzero(counts == 0)):  # classes of the fit, if its network is trained further on other data
        names, has = name_list([data.names[i] for i in gone]), "have" if len(gone) > 1 else "has"
        text = f"{names} {has} no example in x any more: further training will forget what they are like"
        yield Finding("gone", True, text, {"classes": len(gone)})
    if n < MIN_EXAMPLES:
        return
    largest, smallest = int(counts.argmax()), int(np.where(counts, counts, n).argmin())
    share, ratio = counts[largest] / n, counts[largest] / counts[smallest]
    if (ratio >= IMBALANCE_RATIOS[0] or share >= MAJORITY) and not data.weighted:
        warns = bool(ratio >= IMBALANCE_RATIOS[1] or share >= MAJORITY)
        majority = f"{data.names[largest]!r} with {counts[largest]:,} examples ({percent(share)})"
        minority = f"{data.names[smallest]!r} with {counts[smallest]:,}"
        text = f"classes are imbalanced: {majority} is the largest, {minority} the smallest;"
        text += f" always predicting the largest has an accuracy of {percent(share)};"
        text += " with sample_weight='balanced' all classes count alike"
        numbers = {"largest": int(counts[largest]), "smallest": int(counts[smallest]), "share": float(share)}
        yield Finding("imbalance", warns, text, numbers)
    if not data.n_held_out:
        return
    held_out = np.bincount(data.y[data.n_train :], minlength=k)
    if len(missing := np.flatnonzero(held_out == 0)):
        part = "validation_data" if data.n_validation else "the held-out part"
        names, has = name_list([data.names[i] for i in missing]), "have" if len(missing) > 1 else "has"
        text = f"{names} {has} no example in {part}: scores cannot tell how well they are recognised"
        warns = data.n_validation > 0 or n >= MIN_EXAMPLES_FOR_HELD_OUT_CLASSES
        yield Finding("unjudged", warns, text, {"classes": len(missing)})


def _class_shift(data: CheckedData) -> Iterator[Finding]:
    """validation_data with other class frequencies than x."""
    n, k = len(data.order), len(data.names)
    if min(n, data.n_validation) < 4 * MIN_EXAMPLES:
        return
    shares = [np.bincount(y, minlength=k) / len(y) for y in (data.y[:n], data.y[n:])]
    distance = 0.5 * float(np.abs(shares[0] - shares[1]).sum())
    variance = (shares[0] * (1 - shares[0])) * (1 / n + 1 / data.n_validation)
    chance = 0.5 * float(np.sqrt(2 / np.pi * variance).sum())  # expected distance of two samples of the same data
    if distance - 2 * chance < MAX_CLASS_DISTANCE:
        return
    i = int(np.abs(shares[0] - shares[1]).argmax())
    largest = f"{data.names[i]!r} is {percent(shares[0][i])} of x and {percent(shares[1][i])} of validation_data"
    text = f"class frequencies differ between validation_data and x: {largest}; was sorted data split?"
    yield Finding("mixture", True, text, {"distance": distance, "by_chance": chance})


def _tags(data: CheckedData) -> Iterator[Finding]:
    """Labels of multi-label data that no or all training examples have, or no held-out one; y that looks one-hot."""
    y = data.codes
    if y is None or len(data.order) < MIN_EXAMPLES:
        return
    trained, held_out = (part.sum(0) for part in (y[: data.n_train], y[data.n_train :]))
    never, always = np.flatnonzero(trained == 0), np.flatnonzero(trained == data.n_train)
    for tags, have in ((never, "no training example has"), (always, "all training examples have")):
        if len(tags):
            them = "it" if len(tags) == 1 else "them"
            text = f"{have} {name_list(tags.tolist(), 'label')}: nothing to learn about {them}"
            yield Finding("constant_tags", True, text, {"tags": tags.tolist()})
    if data.n_held_out and len(missing := np.flatnonzero((held_out == 0) & (trained > 0))):
        part = "in validation_data" if data.n_validation else "that is held out"
        they = "it is" if len(missing) == 1 else "they are"
        text = f"no example {part} has {name_list(missing.tolist(), 'label')}: scores ignore how well {they} recognised"
        yield Finding("unjudged", bool(data.n_validation), text, {"tags": missing.tolist()})
    single = int((y.sum(1) == 1).sum())
    if single >= ONE_HOT_SHARE * len(y):
        text = (
            f"{single:,} of {len(y):,} examples have exactly one label: if y should be one-hot, the others lack theirs,"
        )
        text += " or have too many; single labels, (n,), are learnt better than multi-label y"
        yield Finding("one_hot", True, text, {"single": single, "examples": len(y)})


def _regression(data: CheckedData) -> Iterator[Finding]:
    """Regression targets that look like classes, are dominated by few examples, or differ in validation_data."""
    n, y = len(data.order), data.codes
    if y is None or n < MIN_EXAMPLES:
        return
    x_codes, validation_codes = y[:n], y[n:]
    counts = np.bincount(data.y[:n])
    distinct = int((counts > 0).sum())
    integer = all(isinstance(name, float) and name.is_integer() for name in data.names)
    if integer and distinct <= MAX_INTEGER_CLASSES and n >= MAX_INTEGER_CLASSES * distinct:
        text = f"y holds only {distinct} different whole numbers: if they are classes, use ImageClassifier"
        yield Finding("classes", False, text, {"different": distinct})
    squares = np.sort(np.square(x_codes, dtype=np.float64), axis=0)[::-1]
    shares = squares[: max(1, n // 100)].sum(0) / np.maximum(squares.sum(0), 1e-300)
    worst = int(shares.argmax())
    if shares[worst] >= MAX_OUTLIER_SHARE:
        row = int(np.abs(x_codes[:, worst]).argmax())
        column = "" if y.shape[1] == 1 else f" (column {worst})"
        text = f"{max(1, n // 100):,} of {n:,} values of y{column} have {percent(shares[worst])} of all squared"
        text += f" deviations, the farthest, y[{data.order[row]}], is {abs(x_codes[row, worst]):.3g} standard"
        text += " deviations from the mean:"
        text += " they dominate what is learnt. Are they right? Logarithms of y may be easier to learn"
        yield Finding("far", True, text, {"share": float(shares[worst]), "examples": [data.position(row)]})
    if len(validation_codes) < MIN_EXAMPLES:
        return
    difference = np.abs(x_codes.mean(0) - validation_codes.mean(0))
    error = np.sqrt(x_codes.var(0) / n + validation_codes.var(0) / len(validation_codes))
    column_index = int((difference - 4 * error).argmax())
    largest = difference[column_index]
    if largest - 4 * error[column_index] > MAX_MEAN_DIFFERENCE:
        text = f"the mean of y in validation_data is {largest:.2g} standard deviations away from that in x: was"
        text += " sorted data split, or is it in other units?"
        yield Finding("moved", True, text, {"deviations": float(largest)})
