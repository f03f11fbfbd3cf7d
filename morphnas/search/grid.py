"""Grid search: convolutional networks of every depth and width, the baseline GRID of Jin, Song and Hu 2018, Auto-Keras
(arXiv:1806.10282), section 4."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from morphnas.graph import Graph, cnn, mlp
from morphnas.search.candidates import Rules, budget_to_json
from morphnas.search.starts import StartsFirst
from morphnas.search.trial import Proposal, Trial


@dataclass(frozen=True)
class GridSearcher(StartsFirst):
    """Trains the space's starts first; then a `cnn`, or for flat features an `mlp`, of every depth and width, those of
    least `Graph.work` first, all from fresh weights. Input shape and outputs are those of the first start."""

    depths: tuple[int, ...] = (2, 3, 4, 6, 8)
    widths: tuple[int, ...] = (8, 16, 32, 64, 128)

    def propose_next(self, trials: Sequence[Trial], rules: Rules, rng: np.random.Generator) -> Proposal | None:
        for (width, depth), graph in sorted(self._networks().items(), key=lambda item: item[1].work):
            if rules.new(graph) and rules.fits(graph):
                why = {"reason": "grid", "width": width, "depth": depth, "budget": budget_to_json(rules.budget)}
                return Proposal(graph, (), self.recipe, why)
        return None

    def _networks(self) -> dict[tuple[int, int], Graph]:
        """The networks of the grid by (width, depth)."""
        first = self.space.starts[0]
        shape, (n_classes,) = first.shapes[first.input.name], first.shapes[first.output.name]
        make = cnn if len(shape) > 1 else mlp
        return {(w, d): make(shape, n_classes, width=w, depth=d) for w in self.widths for d in self.depths}
