"""Who is told what a run does, for people to see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from morphnas.search.trial import Trial
from morphnas.train.recipe import Outcome


class Observer(Protocol):
    """Is told what happens, for people to see. It has no say in the search; what it raises ends it."""

    def trial_begins(self, trial: Trial) -> None: ...

    def epoch_done(self, trial: Trial, outcome: Outcome) -> None: ...

    def trial_ends(self, trial: Trial) -> None: ...


@dataclass(frozen=True)
class Observers:
    """Several observers as one: they are told in their order."""

    several: Sequence[Observer]

    def trial_begins(self, trial: Trial) -> None:
        for observer in self.several:
            observer.trial_begins(trial)

    def epoch_done(self, trial: Trial, outcome: Outcome) -> None:
        for observer in self.several:
            observer.epoch_done(trial, outcome)

    def trial_ends(self, trial: Trial) -> None:
        for observer in self.several:
            observer.trial_ends(trial)
