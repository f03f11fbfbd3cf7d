"""Early stopping of a search that no longer finds a better network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from morphnas.search.trial import Budget, Proposal, Searcher, Trial, check_numbers


@dataclass(frozen=True)
class Patient:
    """Proposes what `searcher` does, until `patience` networks in a row were no better than the best before them.

    Only trials that have ended count, in the order of their ids, including those that failed or whose networks exceed
    the latency limit; and only from the first score on.
    """

    searcher: Searcher
    patience: int = 20

    def __post_init__(self) -> None:
        check_numbers(self)

    def ask(self, trials: Sequence[Trial], budget: Budget) -> Proposal | None:
        """See `Searcher`."""
        return None if trials_since_best(trials) >= self.patience else self.searcher.ask(trials, budget)


def trials_since_best(trials: Sequence[Trial]) -> int:
    """Number of ended trials of the search after the best one that is not too slow; 0 if none has a score."""
    ended = [trial for trial in trials if trial.outcome is not None and not trial.final]
    scores = [(trial.score, -place) for place, trial in enumerate(ended) if trial.score is not None and not trial.slow]
    return len(ended) - 1 + max(scores)[1] if scores else 0
