"""Hyperparameter search: recipes are searched together with networks, which any searcher may propose."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from morphnas.graph import Limits
from morphnas.search.candidates import Rules, budget_to_json
from morphnas.search.distance import sketch
from morphnas.search.network_surrogate import INHERITED_EPOCH_WEIGHT, NetworkSurrogate
from morphnas.search.surrogate import expected_improvement
from morphnas.search.trial import Budget, Proposal, Searcher, Trial, check_numbers, grow_proposal
from morphnas.train.recipe import Recipe, with_default_learning_rate

UNTUNED = ("epochs", "examples", "lr_examples", "precision", "cuda_graphs", "patience", "layers", "freeze_norms")
"""Fields of a recipe that cannot be searched: how long a network is trained, what only matters in long trainings, how
it is computed, and how a network with given weights is trained."""

STEP = 0.2
"""Standard deviation of a random step from a number, as a share of the width of its range."""

_INTEGER_FIELDS = ("batch_size",)
"""Fields of a recipe that are integers."""
_LOG_SCALE_FIELDS = ("lr", "weight_decay", "batch_size", "bias_rate")
"""Fields of a recipe that are sampled on a logarithmic scale if their range does not begin at 0."""


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, integers if both are. logarithmic: whether they are sampled on a logarithmic scale."""

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

    def sample(self, rng: np.random.Generator, near: Any) -> float:
        """A random number of the range: normally distributed around `near`, or uniformly if `near` is None."""
        low, high = (self._to_scale(bound) for bound in (self.low, self.high))
        scaled = rng.uniform(low, high) if near is None else rng.normal(self._to_scale(near), STEP * (high - low))
        value = math.exp(scaled) if self.logarithmic else scaled
        integer = isinstance(self.low, int) and isinstance(self.high, int)
        return min(max(round(value) if integer else float(f"{value:.3g}"), self.low), self.high)

    def holds(self, value: Any) -> bool:
        return bool(self.low <= value <= self.high)

    def _to_scale(self, value: float) -> float:
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

    def sample(self, rng: np.random.Generator, near: Any) -> Any:  # all values are equally near
        return self.values[int(rng.integers(len(self.values)))]

    def holds(self, value: Any) -> bool:
        return value in self.values


Ranges = Mapping[str, Range | Choice]
"""Search space of recipes, by the names of their fields."""


def ranges_of(given: Mapping[str, Any]) -> dict[str, Range | Choice]:
    """The ranges among settings of a recipe: tuples (low, high) and lists of values; other settings are left out.
    ValueError that names a setting whose range is malformed or has a bound or value that a recipe cannot have."""
    result: dict[str, Range | Choice] = {}
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
                values = Range(low, high, name in _LOG_SCALE_FIELDS and low != 0)
                result[name] = values if name in _INTEGER_FIELDS else replace(values, low=float(low), high=float(high))
            else:
                result[name] = Choice(tuple(value))
            for item in value:
                replace(Recipe(), **{name: item})
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{name}: {error}; (low, high) is a range from low to high, [a, b] a choice of values"
            ) from None
    return result


@dataclass(frozen=True)
class Tuned:
    """Proposes the networks of `searcher`, trained with recipes sampled from `ranges`.

    Starts, and networks whose training is continued, keep their recipes. For every other proposal recipes are sampled,
    half of them uniformly and half near those of the best trials, and the one with the largest expected improvement is
    taken: for the network that the searcher proposes or for the best network so far, trained from fresh weights.
    Before `startup` trials have a score all recipes are sampled near that of the best trial, and the first new one is
    taken. If the searcher has nothing more to propose, the best network is trained from fresh weights.

    candidates: recipes sampled for each proposal. best: number of the best trials near whose recipes they are sampled.
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
        fidelity = self.recipe.epochs * (1 + INHERITED_EPOCH_WEIGHT)
        surrogate = NetworkSurrogate.of([trial for trial in trials if not trial.final])
        means = surrogate.predict_observed(fidelity)[0]
        ranking = [scored[i] for i in np.argsort(-means, kind="stable")]
        best = next((t.graph for t in ranking if rules.fits(t.graph)), None)
        from_scratch = None if best is None else Proposal(best, (), self.recipe, {"reason": "afresh"})
        proposals = [option for option in (proposal, from_scratch) if option is not None]
        if not proposals:
            return None
        startup = len(scored) < self.startup
        near = [trial.proposal.recipe for trial in ranking[: 1 if startup else self.best]]
        local = [startup or i % 2 == 1 for i in range(self.candidates)]
        recipes = [self._sample(rng, near[i // 2 % len(near)] if local[i] else None) for i in range(self.candidates)]
        graphs = {trial.id: trial.graph for trial in trials}
        done = {
            (trial.graph.key, self._searched_key(recipe))
            for trial in trials
            for recipe in (trial.proposal.recipe, trial.proposal.recipe.with_undecided_flip)
        }
        candidates, sketches = list[tuple[Proposal, Recipe]](), []
        for option in proposals:
            graph = grow_proposal(option, graphs)
            new = [recipe for recipe in recipes if (graph.key, self._searched_key(recipe)) not in done]
            candidates += [(option, recipe) for recipe in new]
            sketches += [sketch(graph)] * len(new)
        if not candidates:
            return None
        if startup:
            return self._with_recipe(*candidates[0], budget)
        mean, sd = surrogate.predict(sketches, fidelity, [recipe for _, recipe in candidates])
        values = expected_improvement(mean, sd, float(means.max()))
        return self._with_recipe(*candidates[int(values.argmax())], budget)

    def _searched_key(self, recipe: Recipe) -> str:
        """Equal for recipes whose searched settings are equal."""
        return repr([getattr(recipe, name) for name in self.ranges])

    def _with_recipe(self, proposal: Proposal, recipe: Recipe, budget: Budget) -> Proposal:
        """The proposal with that recipe, and with the searched settings recorded in `why`."""
        searched = {name: getattr(recipe, name) for name in self.ranges}
        as_json = {name: v if isinstance(v, (int, float, str)) else str(v) for name, v in searched.items()}
        why = {"budget": budget_to_json(budget), **proposal.why, "recipe": as_json}
        return replace(proposal, recipe=recipe, why=why)

    def _sample(self, rng: np.random.Generator, near: Recipe | None) -> Recipe:
        """A random recipe: uniform if `near` is None, otherwise `near` with each setting changed with probability 1/2.

        Where the learning rate is not searched, but the optimizer or the batch size are, it keeps its ratio to the
        default one.
        """
        settings: dict[str, Any] = {}
        for name, values in self.ranges.items():
            old = None if near is None else getattr(near, name)
            if near is not None and not values.holds(old):
                old = getattr(near.with_undecided_flip, name)
            keep = old is not None and values.holds(old) and rng.random() < 0.5
            settings[name] = old if keep else values.sample(rng, old)
        recipe = replace(self.recipe, **settings)
        if "lr" not in settings and {"optimizer", "batch_size"} & settings.keys():
            before, after = with_default_learning_rate(self.recipe), with_default_learning_rate(recipe)
            recipe = replace(after, lr=after.lr * self.recipe.lr / before.lr)
        return recipe
