"""A summary of a run: its best networks."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any

from morphnas.report import facts
from morphnas.report.tables import trials_table
from morphnas.run.store import Run
from morphnas.search.trial import comparable


@dataclass(frozen=True, repr=False)
class Results:
    """The best networks of a run; its `str` is a table in which the winner is marked.

    run: with only these networks. winner: id of the search's winner, which need not be among them. tried: number of
    networks in the whole run. without_score: those of them without a score. choice: how the final model was chosen, see
    `morphnas.report.facts.choice`.
    """

    run: Run
    winner: int | None
    tried: int
    without_score: int
    choice: str = ""

    def to_json(self) -> list[dict[str, Any]]:
        """As `Run.history`, the best first."""
        return self.run.history

    def __str__(self) -> str:
        shown = len(self.run.trials)
        unscored = f", {self.without_score} of them without a score" if self.without_score else ""
        head = f"{str(self.run.path)!r}: the best {shown} of {self.tried} networks{unscored}"
        if not shown:
            return head
        final, lines = self.run.about.get("final"), [head, trials_table(self.run.trials, self.winner)]
        if isinstance(final, int) and self.winner not in (None, final):
            lines.append(f"the model is network {final}, which is network {self.winner} after its final training")
            if self.choice:
                lines.append(self.choice)
        return "\n".join(lines)

    __repr__ = __str__


def results_summary(run: Run, n: int = 10) -> Results:
    """The n networks of a run with the best scores, the best first. Final trainings are included, unless they were for
    another metric or loss, or on other data. ValueError unless n is a positive integer."""
    if isinstance(n, bool) or not isinstance(n, Integral) or n < 1:
        raise ValueError(f"n must be a positive integer, not {n!r}")
    scored = [(trial.score, -trial.id, trial) for trial in comparable(run.trials, run.data)]
    best = tuple(trial for _, _, trial in sorted(scored, key=lambda entry: entry[:2], reverse=True)[: int(n)])
    first = facts.best_of(run.trials, run.about)
    unscored = sum(trial.score is None for trial in run.trials)
    winner = None if first is None else first.id
    return Results(Run(run.path, run.about, best), winner, len(run.trials), unscored, facts.choice(run.about))
