"""Grid search: convolutional networks of every depth and width, the baseline GRID of Jin, Song and Hu 2018, Auto-Keras
(arXiv:1806.10282), section 4."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from morphnas.graph import Graph, Limits, cnn, mlp
from morphnas.search.candidates import Rules, first_start, what_is_left
from morphnas.search.trial import Left, Proposal, Space, Trial, check_numbers
from morphnas.train.recipe import Recipe


@dataclass(frozen=True)
class GridSearcher:
    """The space's starts first; then `cnn`, on flat features `mlp`, of every depth and width, the cheapest first, all
    from fresh weights. For inputs and outputs like those of the starts."""

    space: Space
    recipe: Recipe = field(default_factory=Recipe)
    limits: Limits = field(default_factory=Limits)
    seed: int = 0
    depths: tuple[int, ...] = (2, 3, 4, 6, 8)
    widths: tuple[int, ...] = (8, 16, 32, 64, 128)

    def __post_init__(self) -> None:
        check_numbers(self)

    def ask(self, trials: Sequence[Trial], left: Left) -> Proposal | None:
        """See `Searcher`."""
        rules = Rules.of(trials, self.limits, left, self.recipe.epochs)
        if rules.over:
            return None
        if (start := first_start(self.space, self.recipe, rules)) is not None:
            return start
        for (width, depth), graph in sorted(self._networks().items(), key=lambda one: one[1].work):
            if rules.new(graph) and rules.fits(graph):
                why = {"reason": "grid", "width": width, "depth": depth, "left": what_is_left(left)}
                return Proposal(graph, (), self.recipe, why)
        return None

    def _networks(self) -> dict[tuple[int, int], Graph]:
        first = self.space.starts[0]
        shape, (n_classes,) = first.shapes[first.input.name], first.shapes[first.output.name]
        make = cnn if len(shape) > 1 else mlp
        return {(w, d): make(shape, n_classes, width=w, depth=d) for w in self.widths for d in self.depths}
