"""Trainings of networks that begin with given weights: their last layer first, and then all layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from morphnas.graph import Dense, Graph
from morphnas.search.candidates import budget_to_json
from morphnas.search.trial import Budget, Proposal, Searcher, Trial, lineage
from morphnas.train.recipe import LAST_LAYER_EPOCHS, Recipe, default_learning_rate

FINE_TUNING_RATE = 1 / 40
"""Learning rate for fine-tuning, as a share of the default one of fresh networks (`benchmarks/pretrained.py`)."""

WAYS = "rates"
"""The reason of proposals that compare ways to train a network with given weights."""


def compares_ways(proposal: Proposal) -> bool:
    return proposal.why.get("reason") == WAYS


def recipe_for_all_layers(trials: Sequence[Trial], trial: Trial) -> Recipe:
    """The recipe with which all layers of a trial's network are to be trained.

    It is the trial's own, unless only the last layer was trained there: then the better of the two that were compared,
    or as long as one of these runs, and if none has a score, the one for fine-tuning.
    """
    recipe = trial.proposal.recipe
    if recipe.layers == "all":
        return recipe
    ways = _ways(trials, trial)
    scored = [(way.score, -way.id, way.proposal.recipe) for way in ways if way.score is not None]
    ended = all(way.outcome is not None for way in ways)
    return max(scored)[2] if scored and ended else replace(recipe, layers="all")


def _ways(trials: Sequence[Trial], root: Trial) -> list[Trial]:
    return [trial for trial in trials if trial.parent == root.id and compares_ways(trial.proposal)]


@dataclass(frozen=True)
class Pretrained:
    """Proposes what `searcher` does, with other recipes for networks that begin with given weights.

    At the usual rates, and with batch norms that adapt to a few batches, a network that was trained on other data may
    forget what it knows. So only its last layer is trained first, if that is dense, and then all layers: once gently,
    by AdamW, and once by the usual recipe, of which the better one is for all networks that morphs make of it (Kumar
    et al. 2022, arXiv:2202.10054, for the first two; small networks that were trained on similar data learn more at the
    usual rates, see `benchmarks/transfer.py`).

    Proposals with settings of their own, neither the usual ones nor those of the network that they start from, are left
    as they are.

    given: keys of the graphs of the networks with weights. recipe: the usual one. fixed: fields of recipes that the
    user has set.
    """

    searcher: Searcher
    given: frozenset[str]
    recipe: Recipe = field(default_factory=Recipe)
    fixed: frozenset[str] = frozenset()

    def ask(self, trials: Sequence[Trial], budget: Budget) -> Proposal | None:
        """See `Searcher`."""
        proposal = self.searcher.ask(trials, budget)
        first = proposal is not None and self._is_first(proposal, trials)
        if not first and (way := self._untried_way(trials, budget)) is not None:  # the other starts come first
            return way
        if proposal is None:
            return None
        parent = next((trial for trial in trials if trial.id == proposal.parent), None)
        root = parent and lineage(trials, parent)[0]
        start = root.proposal.start if root else proposal.start
        if not isinstance(start, Graph) or start.key not in self.given or self._has_own_settings(proposal, parent):
            return proposal
        recipe, may_change = proposal.recipe, "layers" not in self.fixed
        if parent and proposal.trains_on and may_change:  # on as before, but if that was the last layer alone, all
            recipe = replace(recipe_for_all_layers(trials, parent), epochs=recipe.epochs, examples=recipe.examples)
        elif root is None or recipe_for_all_layers(trials, root).freeze_norms:
            recipe = self._gentle(recipe, _searched(proposal))
        if first and may_change and isinstance(start.output.op, Dense):
            recipe = replace(recipe, layers="last")
        if recipe.layers == "last":
            recipe = replace(recipe, epochs=LAST_LAYER_EPOCHS)
        return replace(proposal, recipe=recipe)

    def _is_first(self, proposal: Proposal, trials: Sequence[Trial]) -> bool:
        """Whether it is a start, with given weights for the first time."""
        if not isinstance(proposal.start, Graph) or proposal.morphs:
            return False
        if proposal.start.key not in self.given:
            return proposal.why.get("reason") == "start"
        return all(trial.graph.key != proposal.start.key for trial in trials)

    def _has_own_settings(self, proposal: Proposal, parent: Trial | None) -> bool:
        """Whether the recipe differs from the usual one and from the parent's in more than length and augmentation, and
        in settings that are not searched."""
        searched = {name: getattr(self.recipe, name) for name in _searched(proposal)}
        same = {"epochs": 1, "examples": None, "augment": self.recipe.augment, **searched}
        known = [self.recipe] if parent is None else [self.recipe, parent.proposal.recipe]
        return replace(proposal.recipe, **same) not in [replace(recipe, **same) for recipe in known]

    def _untried_way(self, trials: Sequence[Trial], budget: Budget) -> Proposal | None:
        """A training of all layers of a network of which the last one has been trained: gently, or as usual."""
        if budget.over or {"layers", "freeze_norms", "optimizer"} & self.fixed:
            return None
        for root in trials:
            if root.proposal.recipe.layers != "last" or root.final or root.score is None or not root.kept:
                continue
            gentle = self._gentle(self.recipe)
            tried = [trial.proposal.recipe.freeze_norms for trial in _ways(trials, root)]
            for recipe in (gentle, self.recipe):
                fits = budget.predict(root.graph, recipe.epochs) <= budget.seconds
                if recipe.freeze_norms not in tried and fits:
                    return Proposal(root.id, (), recipe, {"reason": WAYS, "budget": budget_to_json(budget)})
        return None

    def _gentle(self, recipe: Recipe, searched: Iterable[str] = ()) -> Recipe:
        """The recipe for fine-tuning. A given or searched learning rate is meant for the optimizer that it was given
        with, so that this is kept, too. searched: names of settings."""
        kept = {*self.fixed, *searched}
        optimizer = recipe.optimizer if kept & {"lr", "optimizer"} else "adamw"
        settings: dict[str, Any] = {
            "optimizer": optimizer,
            "lr": FINE_TUNING_RATE * default_learning_rate(optimizer, recipe.batch_size),
            "lr_examples": None,
            "whiten": False,
            "freeze_norms": True,
        }
        return replace(recipe, **{name: value for name, value in settings.items() if name not in kept})


def _searched(proposal: Proposal) -> list[str]:
    """Names of the searched settings of a proposal's recipe, see `morphnas.search.tuned.Tuned`."""
    searched = proposal.why.get("recipe")
    known = {f.name for f in fields(Recipe)}
    return [name for name in searched if name in known] if isinstance(searched, Mapping) else []
