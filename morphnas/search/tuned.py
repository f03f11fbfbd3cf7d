"""Hyperparameters: recipes are searched together with the networks that they train, whoever proposes these."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from morphnas.graph import Limits
from morphnas.search.candidates import Rules, budget_to_json
from morphnas.search.distance import sketch
from morphnas.search.network_surrogate import INHERITED, NetworkSurrogate
from morphnas.search.surrogate import expected_improvement
from morphnas.search.trial import Budget, Proposal, Searcher, Trial, check_numbers, grown
from morphnas.train.recipe import Recipe, at_usual_rate

UNTUNED = ("epochs", "examples", "precision", "cuda_graphs", "patience")
"""Fields of a recipe that are not searched: how long a network is trained, and how that is computed."""

STEP = 0.2
"""Standard deviation of a step away from a number, as a share of its range."""

_WHOLE = ("batch_size", "lr_examples")
"""Fields that are whole numbers."""
_LOG = ("lr", "lr_examples", "weight_decay", "batch_size", "bias_rate")
"""Fields whose ranges are gone through on a logarithmic scale, where they begin above 0."""


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, whole ones where both are. logarithmic: on which scale they lie evenly."""

    low: float
    high: float
    logarithmic: bool = False

    def __post_init__(self) -> None:
        bounds = (self.low, self.high)
        numbers = all(isinstance(n, (int, float)) and not isinstance(n, bool) for n in bounds)
        if not numbers or not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"a range is two finite numbers, the smaller one first, not {bounds}")

    def __str__(self) -> str:
        return f"from {self.low:g} to {self.high:g}"

    def drawn(self, rng: np.random.Generator, near: Any) -> float:
        """One of them: near another one, or where that is None from anywhere."""
        low, high = (self._place(bound) for bound in (self.low, self.high))
        place = rng.uniform(low, high) if near is None else rng.normal(self._place(near), STEP * (high - low))
        value = math.exp(place) if self.logarithmic else place
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        return min(max(round(value) if whole else float(f"{value:.3g}"), self.low), self.high)

    def holds(self, value: Any) -> bool:
        return bool(self.low <= value <= self.high)

    def _place(self, value: float) -> float:
        return math.log(max(value, self.low)) if self.logarithmic else value


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if len(self.values) < 2:
            raise ValueError(f"a choice is of two values at least, not {list(self.values)}")

    def __str__(self) -> str:
        return " or ".join(map(str, self.values))

    def drawn(self, rng: np.random.Generator, near: Any) -> Any:  # none is nearer than others
        return self.values[int(rng.integers(len(self.values)))]

    def holds(self, value: Any) -> bool:
        return value in self.values


Ranges = Mapping[str, Range | Choice]
"""What recipes are drawn from, by the names of their fields."""


def ranges_of(given: Mapping[str, Any]) -> dict[str, Range | Choice]:
    """Those among settings of a recipe: pairs of numbers in a tuple, and lists of values. ValueError that names one
    which is none, or has a bound or a value that a recipe cannot have."""
    found: dict[str, Range | Choice] = {}
    for name, value in given.items():
        if not isinstance(value, (tuple, list)):
            continue
        if name in UNTUNED:
            raise ValueError(f"{name} is not searched: give one value, not {value!r:.100}")
        try:
            if isinstance(value, tuple):
                if len(value) != 2:
                    raise ValueError(f"a range is two numbers, not {len(value)}")
                low, high = (n.item() if isinstance(n, np.generic) else n for n in value)
                values = Range(low, high, name in _LOG and low != 0)
                found[name] = values if name in _WHOLE else replace(values, low=float(low), high=float(high))
            else:
                found[name] = Choice(tuple(value))
            for end in value:
                replace(Recipe(), **{name: end})
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{name}: {error}; (low, high) is a range from low to high, [a, b] a choice of values"
            ) from None
    return found


@dataclass(frozen=True)
class Tuned:
    """Another searcher whose proposals are trained with recipes that are searched, too: of `ranges`.

    The networks that it starts with, and those that it trains on, keep their recipes. For every other one recipes are
    drawn, half of them from anywhere and half near those of the best trials, and the one with the largest expected
    improvement is taken: for the network that the searcher proposes or, trained afresh, for the best one so far.
    Before `startup` trials have a score it is one near that of the best. Where the searcher has nothing more to
    propose, the best network is trained afresh.

    candidates: recipes that are looked at for either network. best: trials that recipes are drawn near to.
    """

    searcher: Searcher
    ranges: Ranges
    recipe: Recipe = field(default_factory=Recipe)
    limits: Limits = field(default_factory=Limits)
    seed: int = 0
    startup: int = 6
    candidates: int = 64
    best: int = 4

    def __post_init__(self) -> None:
        check_numbers(self)

    def ask(self, trials: Sequence[Trial], budget: Budget) -> Proposal | None:
        """See `Searcher`."""
        proposal = self.searcher.ask(trials, budget)
        if proposal is not None and (proposal.why.get("reason") == "start" or proposal.trains_on):
            return proposal
        rules = Rules.of(trials, self.limits, budget, self.recipe.epochs)
        scored = [trial for trial in trials if trial.score is not None and not trial.final]
        if budget.over or not scored:
            return proposal
        rng = np.random.default_rng((self.seed, len(trials), 1))
        alike = self.recipe.epochs * (1 + INHERITED)
        belief = NetworkSurrogate.of([trial for trial in trials if not trial.final])
        known = belief.review(alike)[0]
        ranking = [scored[i] for i in np.argsort(-known, kind="stable")]
        again = next((t.graph for t in ranking if rules.fits(t.graph)), None)
        afresh = None if again is None else Proposal(again, (), self.recipe, {"reason": "afresh"})
        options = [one for one in (proposal, afresh) if one is not None]
        if not options:
            return None
        first = len(scored) < self.startup
        near = [trial.proposal.recipe for trial in ranking[: 1 if first else self.best]]
        close = [first or i % 2 == 1 for i in range(self.candidates)]
        recipes = [self._drawn(rng, near[i // 2 % len(near)] if close[i] else None) for i in range(self.candidates)]
        graphs = {trial.id: trial.graph for trial in trials}
        done = {
            (trial.graph.key, self._searched(recipe))
            for trial in trials
            for recipe in (trial.proposal.recipe, trial.proposal.recipe.with_open_flip)
        }
        found, sketches = list[tuple[Proposal, Recipe]](), []
        for option in options:
            graph = grown(option, graphs)
            new = [recipe for recipe in recipes if (graph.key, self._searched(recipe)) not in done]
            found += [(option, recipe) for recipe in new]
            sketches += [sketch(graph)] * len(new)
        if not found:
            return None
        if first:
            return self._with(*found[0], budget)
        mean, sd = belief.predict(sketches, alike, [recipe for _, recipe in found])
        promise = expected_improvement(mean, sd, float(known.max()))
        return self._with(*found[int(promise.argmax())], budget)

    def _searched(self, recipe: Recipe) -> str:
        """What of a recipe is searched."""
        return repr([getattr(recipe, name) for name in self.ranges])

    def _with(self, proposal: Proposal, recipe: Recipe, budget: Budget) -> Proposal:
        """The proposal with that recipe, and what of it was searched noted down."""
        searched = {name: getattr(recipe, name) for name in self.ranges}
        told = {name: value if isinstance(value, (int, float, str)) else str(value) for name, value in searched.items()}
        why = {"budget": budget_to_json(budget), **proposal.why, "recipe": told}
        return replace(proposal, recipe=recipe, why=why)

    def _drawn(self, rng: np.random.Generator, near: Recipe | None) -> Recipe:
        """A recipe from anywhere or, where each setting is changed every second time, near another one."""
        found: dict[str, Any] = {}
        for name, values in self.ranges.items():
            was = None if near is None else getattr(near, name)
            if near is not None and not values.holds(was):
                was = getattr(near.with_open_flip, name)
            stays = was is not None and values.holds(was) and rng.random() < 0.5
            found[name] = was if stays else values.drawn(rng, was)
        recipe = replace(self.recipe, **found)
        if "lr" not in found and {"optimizer", "batch_size"} & found.keys():
            was, usual = at_usual_rate(self.recipe), at_usual_rate(recipe)
            recipe = replace(usual, lr=usual.lr * self.recipe.lr / was.lr)
        return recipe
