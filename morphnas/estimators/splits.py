"""Which examples are trained on, which stop and score, and which choose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import GroupShuffleSplit, train_test_split

from morphnas.estimators.labels import hashed, listed
from morphnas.estimators.sources import refuse_masked

Groups = ArrayLike | None
"""Which group every example is of, (n,); None: each is one of its own."""

TRIES = 50
"""Random ways to hold groups out, of which the one that holds out of all classes most alike is taken."""


@dataclass(frozen=True, eq=False)
class Split:
    """The parts of the training examples, as indices: to train on, to stop and score by, to choose by."""

    train: NDArray[np.intp]
    valid: NDArray[np.intp] | None
    chooser: NDArray[np.intp] | None


def groups_of(groups: Groups, n: int) -> NDArray[np.int64] | None:
    """The groups of n examples as numbers from 0 on, by their first example; ValueError for what are none."""
    if groups is None:
        return None
    refuse_masked(groups, "groups")
    column = listed(groups)
    if column.shape != (n,):
        raise ValueError(f"groups must be ({n},), the group of each example, but their shape is {column.shape}")
    numbers: dict[object, int] = {}
    codes = np.array([numbers.setdefault(value, len(numbers)) for value in hashed(column, "groups")], dtype=np.int64)
    if len(numbers) < 2:
        raise ValueError("all examples belong to one group, so none can be held out")
    return codes


def split(strata: NDArray[np.int64], seed: int, groups: NDArray[np.int64] | None = None) -> Split:
    """15 % of the examples, at most 5,000, held out stratified; half of them choose, from 500 examples on.

    The only example of a stratum, as a class, is trained on. No part is held out of less than 50 others. groups: those
    of one group are all in one part; ValueError where that leaves a stratum nothing to be trained on.
    """
    alone = np.bincount(strata)[strata] < 2
    if groups is not None:
        alone = np.isin(groups, groups[alone])
    index = np.flatnonzero(~alone)
    n, kinds = len(index), len(np.unique(strata[index]))
    held = max(min(5000, round(0.15 * n)), kinds)
    if n < 50 or n - held < kinds or (groups is not None and len(np.unique(groups[index])) < 2):
        return Split(np.arange(len(strata)), None, None)
    if groups is None:
        train, valid = train_test_split(index, test_size=held, stratify=strata[index], random_state=seed)
    else:
        train, valid = _apart(index, strata, groups, held / n, seed)
        if missing := sorted(set(strata.tolist()) - set(strata[train].tolist()) - set(strata[alone].tolist())):
            of = np.unique(groups[strata == missing[0]])
            first = int(np.flatnonzero(strata == missing[0])[0])
            raise ValueError(
                f"groups cannot be held out: examples like {first} are in {len(of)} of {groups.max() + 1} groups only, "
                "and none would be left to train on; give validation_data instead"
            )
    train = np.concatenate([np.flatnonzero(alone), train])
    if n < 500:
        return Split(train, valid, None)
    if groups is not None:
        if len(np.unique(groups[valid])) < 2:
            return Split(train, valid, None)
        return Split(train, *_apart(valid, strata, groups, 0.5, seed))
    half = np.random.RandomState(seed).permutation(len(valid))  # classes may be too small to stratify once more
    middle = len(valid) - len(valid) // 2
    return Split(train, valid[half[:middle]], valid[half[middle:]])


def _apart(
    index: NDArray[np.intp], strata: NDArray[np.int64], groups: NDArray[np.int64], share: float, seed: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Two parts of the indices without a group in common, the second one about that share of every stratum."""
    counts = np.bincount(strata[index])

    def uneven(way: tuple[NDArray[np.intp], NDArray[np.intp]]) -> tuple[int, float]:
        held = np.bincount(strata[index[way[1]]], minlength=len(counts))
        return int(((held == counts) & (counts > 0)).sum()), float(np.abs(held - share * counts).sum())

    ways = GroupShuffleSplit(TRIES, test_size=share, random_state=seed).split(index, groups=groups[index])
    train, rest = min(ways, key=uneven)
    return index[train], index[rest]
