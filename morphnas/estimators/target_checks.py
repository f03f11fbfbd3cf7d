"""What the data doctor finds in y: labels that are none, unequal classes, tags that nothing has, amounts that few
examples decide.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from morphnas.estimators.findings import FEW, Finding, Given, percent, some

MANY = 500
"""Examples of which a class should be large enough to hold some out."""
MAJORITY = 0.9
"""Share of the largest class from which on the accuracy says little."""
UNEQUAL = (10, 100)
"""Times that the largest class is as large as the smallest: told of, warned of."""
MIXED = 0.2
"""Total variation distance between the classes of x and of validation_data, beyond what chance makes it."""
ONE_HOT = 0.95
"""Share of the examples with exactly one tag from which on tags look like labels."""
FAR = 0.5
"""Share of all squared deviations that a hundredth of the amounts has, from which on it decides what is learnt."""
MOVED = 0.5
"""Deviations between the means of the amounts of x and of validation_data."""
KINDS = 20
"""Different whole numbers, at most, that look like classes where each occurs as often at least."""


def look(given: Given) -> Iterator[Finding]:
    """What is found in y."""
    by_kind = {"labels": (_labels, _classes, _mixture), "tags": (_tags,), "amounts": (_amounts,)}
    for findings in by_kind[given.said]:
        yield from findings(given)


def _labels(given: Given) -> Iterator[Finding]:
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
    looks = "are they numbers to predict, for an ImageRegressor?" if numeric else "are they names of examples?"
    text = f"y holds {k:,} different labels for {n:,} examples, half of them at most {typical:g} times: {looks}"
    yield Finding("labels", True, text, {"classes": k, "examples": n, "median": typical})


def _classes(given: Given) -> Iterator[Finding]:
    """Classes that are gone, that are much larger than others, and that nothing is held out of."""
    n, k = len(given.order), len(given.names)
    counts = np.bincount(given.y[:n], minlength=k)
    if len(gone := np.flatnonzero(counts == 0)):  # of the fit, whose network is trained on other data
        names, has = some([given.names[i] for i in gone]), "have" if len(gone) > 1 else "has"
        text = f"{names} {has} no example in x any more: further training will forget what they are like"
        yield Finding("gone", True, text, {"classes": len(gone)})
    if n < FEW:
        return
    largest, smallest = int(counts.argmax()), int(np.where(counts, counts, n).argmin())
    share, ratio = counts[largest] / n, counts[largest] / counts[smallest]
    if (ratio >= UNEQUAL[0] or share >= MAJORITY) and not given.weighted:
        warns = bool(ratio >= UNEQUAL[1] or share >= MAJORITY)
        most = f"{given.names[largest]!r} with {counts[largest]:,} examples ({percent(share)})"
        least = f"{given.names[smallest]!r} with {counts[smallest]:,}"
        text = (
            f"classes are imbalanced: {most} is the largest, {least} the smallest; always predicting the largest has an"
        )
        text += f" accuracy of {percent(share)}; with sample_weight='balanced' all classes count alike"
        numbers = {"largest": int(counts[largest]), "smallest": int(counts[smallest]), "share": float(share)}
        yield Finding("imbalance", warns, text, numbers)
    if not given.held:
        return
    held = np.bincount(given.y[given.train :], minlength=k)
    if len(missing := np.flatnonzero(held == 0)):
        part = "validation_data" if given.own else "the held-out part"
        names, has = some([given.names[i] for i in missing]), "have" if len(missing) > 1 else "has"
        text = f"{names} {has} no example in {part}: scores cannot tell how well they are recognised"
        warns = given.own > 0 or n >= MANY
        yield Finding("unjudged", warns, text, {"classes": len(missing)})


def _mixture(given: Given) -> Iterator[Finding]:
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
    one = f"{given.names[i]!r} is {percent(shares[0][i])} of x and {percent(shares[1][i])} of validation_data"
    text = f"class frequencies differ between validation_data and x: {one}; was sorted data split?"
    yield Finding("mixture", True, text, {"distance": distance, "by_chance": chance})


def _tags(given: Given) -> Iterator[Finding]:
    """Tags that no example has, or all have: of all, or of those that scores are of."""
    y = given.numbers
    if y is None or len(given.order) < FEW:
        return
    trained, held = (part.sum(0) for part in (y[: given.train], y[given.train :]))
    never, always = np.flatnonzero(trained == 0), np.flatnonzero(trained == given.train)
    for tags, have in ((never, "no training example has"), (always, "all training examples have")):
        if len(tags):
            text = f"{have} {some(tags.tolist(), 'label')}: nothing to learn about {'it' if len(tags) == 1 else 'them'}"
            yield Finding("constant_tags", True, text, {"tags": tags.tolist()})
    if given.held and len(unjudged := np.flatnonzero((held == 0) & (trained > 0))):
        part = "in validation_data" if given.own else "that is held out"
        they = "it is" if len(unjudged) == 1 else "they are"
        text = f"no example {part} has {some(unjudged.tolist(), 'label')}: scores ignore how well {they} recognised"
        yield Finding("unjudged", bool(given.own), text, {"tags": unjudged.tolist()})
    single = int((y.sum(1) == 1).sum())
    if single >= ONE_HOT * len(y):
        text = (
            f"{single:,} of {len(y):,} examples have exactly one label: if y should be one-hot, the others lack theirs,"
        )
        text += " or have too many; single labels, (n,), are learnt better than multi-label y"
        yield Finding("one_hot", True, text, {"single": single, "examples": len(y)})


def _amounts(given: Given) -> Iterator[Finding]:
    """Amounts that look like classes, that few examples decide, or that validation_data has others of."""
    n, y = len(given.order), given.numbers
    if y is None or n < FEW:
        return
    mine, theirs = y[:n], y[n:]
    counts = np.bincount(given.y[:n])
    different = int((counts > 0).sum())
    whole = all(isinstance(name, float) and name.is_integer() for name in given.names)
    if whole and different <= KINDS and n >= KINDS * different:
        text = f"y holds only {different} different whole numbers: if they are classes, use ImageClassifier"
        yield Finding("classes", False, text, {"different": different})
    squares = np.sort(np.square(mine, dtype=np.float64), axis=0)[::-1]
    shares = squares[: max(1, n // 100)].sum(0) / np.maximum(squares.sum(0), 1e-300)
    worst = int(shares.argmax())
    if shares[worst] >= FAR:
        row = int(np.abs(mine[:, worst]).argmax())
        which = "" if y.shape[1] == 1 else f" (column {worst})"
        text = (
            f"{max(1, n // 100):,} of {n:,} values of y{which} have {percent(shares[worst])} of all squared deviations,"
        )
        text += (
            f" the farthest, y[{given.order[row]}], is {abs(mine[row, worst]):.3g} standard deviations from the mean:"
        )
        text += " they dominate what is learnt. Are they right? Logarithms of y may be easier to learn"
        yield Finding("far", True, text, {"share": float(shares[worst]), "examples": [given.place(row)]})
    if len(theirs) < FEW:
        return
    apart = np.abs(mine.mean(0) - theirs.mean(0))
    chance = np.sqrt(mine.var(0) / n + theirs.var(0) / len(theirs))
    if (most := int((apart - 4 * chance).argmax())) >= 0 and apart[most] - 4 * chance[most] > MOVED:
        text = f"the mean of y in validation_data is {apart[most]:.2g} standard deviations away from that in x: were"
        yield Finding(
            "moved", True, f"{text} sorted data split, or is it in other units?", {"deviations": float(apart[most])}
        )
