"""Promotion: what did well after a short training is trained for longer, whoever proposed it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from morphnas.graph import Graph
from morphnas.search.candidates import budget_to_json
from morphnas.search.trial import Budget, Proposal, Searcher, Trial, check_numbers
from morphnas.train.recipe import MAX_EPOCHS, Recipe


@dataclass(frozen=True)
class Promote:
    """Asynchronous successive halving (Li et al. 2018, arXiv:1810.05934, algorithm 2) around any searcher.

    Trials that were promoted k times make up rung k. For every `keep` finished trials of a rung one is promoted:
    the best that has not been yet and is among the best 1 in `keep`, with the same network, inherited weights and
    `factor` times the epochs. The highest rung is considered first; if nothing is to be promoted, or could not finish
    in the time left, the searcher is asked.

    With the defaults 16 short trainings lead to 4 of four times the epochs and these to 1 of sixteen times, so that
    every rung takes about as long as the others. The paper promotes whatever is among the best at the time; in a
    search that keeps improving this would be nearly everything, hence the limit. Trials of a rung are compared by their
    scores: all of them have had as many epochs of their own.
    """

    searcher: Searcher
    factor: int = 4
    keep: int = 4
    rungs: int = 2
    share: float = 0.25

    def __post_init__(self) -> None:
        check_numbers(self, "rungs")

    def ask(self, trials: Sequence[Trial], budget: Budget) -> Proposal | None:
        """See `Searcher`."""
        if budget.over:
            return None
        rung = rungs(trials)
        promoted = {t.parent for t in trials if is_promotion(t)}
        taken = {_training(t.graph, t.proposal.recipe) for t in trials}
        for level in reversed(range(self.rungs)):
            here = [t for t in trials if rung[t.id] == level and not t.final]
            done = [t for t in here if t.outcome and t.outcome.status == "finished" and not t.slow]
            peers = sorted((-t.score, t.id, t) for t in done if t.score is not None)
            room = len(peers) // self.keep
            if sum(t.id in promoted for t in here) >= room:
                continue
            for place, (_, _, trial) in enumerate(peers[:room]):
                epochs = trial.epochs * self.factor
                if trial.id in promoted or epochs > MAX_EPOCHS or not trial.kept:
                    continue
                recipe = replace(trial.proposal.recipe, epochs=epochs)
                over = _training(trial.graph, recipe) in taken
                if not over and budget.predict(trial.graph, epochs) <= self.share * budget.seconds:
                    why = {"reason": "promotion", "rung": level + 1, "place": place + 1, "of": len(peers)}
                    return Proposal(trial.id, (), recipe, why | {"budget": budget_to_json(budget)})
        return self.searcher.ask(trials, budget)


def _training(graph: Graph, recipe: Recipe) -> tuple[str, Recipe]:
    """What one training has in common with another of the same network; whether images are mirrored is found out."""
    return graph.key, recipe.with_open_flip


def is_promotion(trial: Trial) -> bool:
    """Whether the trial trains its parent's network on, in the search."""
    return not trial.final and trial.proposal.trains_on


def rungs(trials: Sequence[Trial]) -> dict[int, int]:
    """How often every trial's network has been promoted without a morph between, by id."""
    found: dict[int, int] = {}
    for trial in trials:
        found[trial.id] = found.get(trial.parent, 0) + 1 if is_promotion(trial) and trial.parent is not None else 0
    return found
