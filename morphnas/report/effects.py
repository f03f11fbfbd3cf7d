"""What the search has shown about its choices: the gain of each kind of morph, and the scores by recipe setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from morphnas.report.facts import gain, searched
from morphnas.search.trial import Trial
from morphnas.search.tuned import UNTUNED
from morphnas.train.recipe import Augment, Recipe

TRAINED_LONGER, SEVERAL = "trained longer", "several kinds"
WIDE_RANGE = 8
"""Ratio of the largest to the smallest value from which on a setting is drawn on a logarithmic scale."""


def kind(trial: Trial) -> str | None:
    """What turned the parent's network into a trial's: the kind of its morphs, or `TRAINED_LONGER`; None: no parent."""
    if trial.parent is None:
        return None
    tags = {morph.tag for morph in trial.proposal.morphs}
    return TRAINED_LONGER if not tags else SEVERAL if len(tags) > 1 else tags.pop().replace("_", " ")


def gains_by_kind(trials: Sequence[Trial]) -> dict[str, list[float]]:
    """The gains in score over the parent, of the search's trials, by the kind of their morphs.

    The most frequent kinds come first, `SEVERAL` and `TRAINED_LONGER` last. A child inherits weights and is trained for
    further epochs, so that a morph is worth as much as its gain exceeds that of `TRAINED_LONGER`.
    """
    by_id = {trial.id: trial for trial in trials}
    gains: dict[str, list[float]] = {}
    for trial in searched(trials):
        name, value = kind(trial), gain(trial, by_id)
        if name is not None and value is not None:
            gains.setdefault(name, []).append(value)
    order = {SEVERAL: 1, TRAINED_LONGER: 2}
    return dict(sorted(gains.items(), key=lambda item: (order.get(item[0], 0), -len(item[1]), item[0])))


@dataclass(frozen=True)
class Setting:
    """A setting of the recipe in which trials of a search differ.

    values: by trial id. options: the values in order of appearance if they are not numbers, else none.
    """

    name: str
    values: Mapping[int, float | str]
    options: tuple[str, ...] = ()

    @property
    def logarithmic(self) -> bool:
        """Whether its values, positive numbers, differ by a factor of at least `WIDE_RANGE`."""
        numbers = [value for value in self.values.values() if not isinstance(value, str)]
        return bool(numbers) and min(numbers) > 0 and max(numbers) >= WIDE_RANGE * min(numbers)


def varied_settings(trials: Sequence[Trial]) -> list[Setting]:
    """The settings of `Recipe` and `Augment` in which the search's trials differ.

    Without the length of a training, how it is computed (`UNTUNED`), and shift and flip, which `fit` decides for all.
    """
    recipes = {trial.id: trial.proposal.recipe for trial in searched(trials)}
    named = {f.name: {id: getattr(recipe, f.name) for id, recipe in recipes.items()} for f in fields(Recipe)}
    del named["augment"]
    named |= {f.name: {id: getattr(r.augment, f.name) for id, r in recipes.items()} for f in fields(Augment)}
    result = []
    for name, values in named.items():
        if name in (*UNTUNED, "shift", "flip") or len(set(values.values())) < 2:
            continue
        if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values.values()):
            result.append(Setting(name, values))
        else:
            words = {id: str(value) for id, value in values.items()}
            result.append(Setting(name, words, tuple(dict.fromkeys(words.values()))))
    return result
