"""Observers of a run, which show or record its progress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from morphnas.search.trial import Trial
from morphnas.train.recipe import Outcome


class Observer(Protocol):
    """Is notified of what a run does. It has no influence on the search, but an exception that it raises ends it."""

    def trial_begins(self, trial: Trial) -> None: ...

    def epoch_done(self, trial: Trial, outcome: Outcome) -> None: ...

    def trial_ends(self, trial: Trial) -> None: ...


@dataclass(frozen=True)
class Observers:
    """Several observers as one; they are notified in order."""

    observers: Sequence[Observer]

    def trial_begins(self, trial: Trial) -> None:
        for observer in self.observers:
            observer.trial_begins(trial)

    def epoch_done(self, trial: Trial, outcome: Outcome) -> None:
        for observer in self.observers:
            observer.epoch_done(trial, outcome)

    def trial_ends(self, trial: Trial) -> None:
        for observer in self.observers:
            observer.trial_ends(trial)
