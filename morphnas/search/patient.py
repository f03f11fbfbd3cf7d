"""Patience: a search that finds nothing better any more ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from morphnas.search.trial import Budget, Proposal, Searcher, Trial, check_numbers


@dataclass(frozen=True)
class Patient:
    """Another searcher, until so many networks in a row, `patience`, were no better than the best before them.

    Only networks that have ended count, in the order of their ids, those that failed or are too slow as well; not
    before one has a score.
    """

    searcher: Searcher
    patience: int = 20

    def __post_init__(self) -> None:
        check_numbers(self)

    def ask(self, trials: Sequence[Trial], budget: Budget) -> Proposal | None:
        """See `Searcher`."""
        return None if stale(trials) >= self.patience else self.searcher.ask(trials, budget)


def stale(trials: Sequence[Trial]) -> int:
    """Networks of the search that have ended since the best one; 0 where none has a score."""
    ended = [trial for trial in trials if trial.outcome is not None and not trial.final]
    scores = [(trial.score, -place) for place, trial in enumerate(ended) if trial.score is not None and not trial.slow]
    return len(ended) - 1 + max(scores)[1] if scores else 0
