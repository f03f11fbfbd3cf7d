"""Promotion: networks that did well after a short training are trained for longer, with any searcher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from morphnas.graph import Graph
from morphnas.search.candidates import budget_to_json
from morphnas.search.pretrained import compares_ways
from morphnas.search.trial import Budget, Proposal, Searcher, Trial, check_numbers
from morphnas.train.recipe import MAX_EPOCHS, Recipe


@dataclass(frozen=True)
class Promote:
    """Asynchronous successive halving (Li et al. 2018, arXiv:1810.05934, algorithm 2) around any searcher.

    Trials that were promoted k times make up rung k. One trial is promoted for every `keep` finished trials of a rung:
    the best not yet promoted among the best 1 in `keep`, with the same network, inherited weights and `factor` times
    the epochs. The highest rung is considered first. If there is nothing to promote, or it is predicted to take more
    than `share` of the time left, the searcher proposes a network.

    With the defaults 16 short trainings lead to 4 of four times the epochs and these to 1 of sixteen times, so that
    every rung takes about as long as the others. The paper promotes every trial that is among the best at the time; in
    a search that keeps improving these would be nearly all trials, hence the limit. Trials of a rung are compared by
    their scores: all of them were trained for the same number of epochs of their own.

    rungs: how often a network can be promoted.
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
        taken = {_training_key(t.graph, t.proposal.recipe) for t in trials}
        for level in reversed(range(self.rungs)):
            here = [t for t in trials if rung[t.id] == level and not t.final]
            finished = [t for t in here if t.outcome and t.outcome.status == "finished" and not t.slow]
            ranking = sorted((-t.score, t.id, t) for t in finished if t.score is not None)
            quota = len(ranking) // self.keep
            if sum(t.id in promoted for t in here) >= quota:
                continue
            for place, (_, _, trial) in enumerate(ranking[:quota]):
                epochs = trial.epochs * self.factor
                if trial.id in promoted or epochs > MAX_EPOCHS or not trial.kept:
                    continue
                recipe = replace(trial.proposal.recipe, epochs=epochs)
                repeated = _training_key(trial.graph, recipe) in taken
                if not repeated and budget.predict(trial.graph, epochs) <= self.share * budget.seconds:
                    why = {"reason": "promotion", "rung": level + 1, "place": place + 1, "of": len(ranking)}
                    return Proposal(trial.id, (), recipe, why | {"budget": budget_to_json(budget)})
        return self.searcher.ask(trials, budget)


def _training_key(graph: Graph, recipe: Recipe) -> tuple[str, Recipe]:
    """Equal for equal trainings of equal networks. The horizontal flip is left out, as the run decides on it."""
    return graph.key, recipe.with_undecided_flip


def is_promotion(trial: Trial) -> bool:
    """Whether the trial continues the training of its parent's network for longer, as part of the search."""
    return not trial.final and trial.proposal.trains_on and not compares_ways(trial.proposal)


def rungs(trials: Sequence[Trial]) -> dict[int, int]:
    """The rung of every trial by id: how often its network has been promoted since the last morph."""
    result: dict[int, int] = {}
    for trial in trials:
        result[trial.id] = result.get(trial.parent, 0) + 1 if is_promotion(trial) and trial.parent is not None else 0
    return result
