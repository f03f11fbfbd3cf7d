"""Split the examples into the training set, the validation set, and the examples that choose the final model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import GroupShuffleSplit, train_test_split

from morphnas.estimators.labels import hashable_values, label_array
from morphnas.estimators.sources import check_not_masked

Groups = ArrayLike | None
"""(n,) the group of each example; None: examples are independent."""

N_GROUP_SPLITS = 50
"""Number of random splits by groups, of which the best stratified one is used."""


@dataclass(frozen=True, eq=False)
class Split:
    """Indices of the training set, the validation set and the selection_set, see `Problem`."""

    train: NDArray[np.intp]
    valid: NDArray[np.intp] | None
    selection_set: NDArray[np.intp] | None


def groups_of(groups: Groups, n: int) -> NDArray[np.int64] | None:
    """Encode the groups of n examples as integers from 0, in order of appearance; ValueError if they are invalid."""
    if groups is None:
        return None
    check_not_masked(groups, "groups")
    column = label_array(groups)
    if column.shape != (n,):
        raise ValueError(f"groups must be ({n},), the group of each example, but their shape is {column.shape}")
    ids: dict[object, int] = {}
    codes = np.array([ids.setdefault(value, len(ids)) for value in hashable_values(column, "groups")], dtype=np.int64)
    if len(ids) < 2:
        raise ValueError("all examples belong to one group, so none can be held out")
    return codes


def split(strata: NDArray[np.int64], seed: int, groups: NDArray[np.int64] | None = None) -> Split:
    """Hold out a stratified 15 % of the examples, at most 5,000, but at least as many as there are strata; from 500
    examples on, half of them are the selection_set.

    The only example of a stratum (such as a class) is in the training set. If there are fewer than 50 other examples,
    or too few for the number of strata, nothing is held out. groups: examples of a group are never split; ValueError if
    a stratum then has no training example.
    """
    alone = np.bincount(strata)[strata] < 2
    if groups is not None:
        alone = np.isin(groups, groups[alone])
    index = np.flatnonzero(~alone)
    n, n_strata = len(index), len(np.unique(strata[index]))
    held = max(min(5000, round(0.15 * n)), n_strata)
    if n < 50 or n - held < n_strata or (groups is not None and len(np.unique(groups[index])) < 2):
        return Split(np.arange(len(strata)), None, None)
    if groups is None:
        train, valid = train_test_split(index, test_size=held, stratify=strata[index], random_state=seed)
    else:
        train, valid = _split_groups(index, strata, groups, held / n, seed)
        if missing := sorted(set(strata.tolist()) - set(strata[train].tolist()) - set(strata[alone].tolist())):
            n_groups = len(np.unique(groups[strata == missing[0]]))
            first = int(np.flatnonzero(strata == missing[0])[0])
            raise ValueError(
                f"groups cannot be held out: examples like {first} are in {n_groups} of {groups.max() + 1} groups only,"
                " and none would be left to train on; give validation_data instead"
            )
    train = np.concatenate([np.flatnonzero(alone), train])
    if n < 500:
        return Split(train, valid, None)
    if groups is not None:
        if len(np.unique(groups[valid])) < 2:
            return Split(train, valid, None)
        return Split(train, *_split_groups(valid, strata, groups, 0.5, seed))
    order = np.random.RandomState(seed).permutation(len(valid))  # classes may be too small to stratify again
    half = len(valid) - len(valid) // 2
    return Split(train, valid[order[:half]], valid[order[half:]])


def _split_groups(
    index: NDArray[np.intp], strata: NDArray[np.int64], groups: NDArray[np.int64], share: float, seed: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Split indices into two parts without a common group, the second with about that share of every stratum."""
    counts = np.bincount(strata[index])

    def imbalance(parts: tuple[NDArray[np.intp], NDArray[np.intp]]) -> tuple[int, float]:
        """Number of strata that are held out as a whole, and deviation from stratified counts."""
        held = np.bincount(strata[index[parts[1]]], minlength=len(counts))
        return int(((held == counts) & (counts > 0)).sum()), float(np.abs(held - share * counts).sum())

    splits = GroupShuffleSplit(N_GROUP_SPLITS, test_size=share, random_state=seed).split(index, groups=groups[index])
    train, held_out = min(splits, key=imbalance)
    return index[train], index[held_out]
