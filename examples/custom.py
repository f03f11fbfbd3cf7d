"""A custom searcher and search space: the best network is made deeper, by 5x5 convolutions only.

python examples/custom.py [--time-limit 30]
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import morphnas
from morphnas.graph import Deeper, Graph, Limits, Morph, cnn
from morphnas.search import Budget, Proposal, Space, Trial
from morphnas.train.recipe import Recipe


@dataclass(frozen=True)
class Fives:
    """Search space: the networks that can be made from the starts by inserting 5x5 convolutions."""

    starts: tuple[Graph, ...]

    def neighbours(self, graph: Graph) -> Iterator[Morph]:
        for node in graph.nodes:
            if node.op.tag == "relu" and len(graph.shapes[node.name]) == 3:
                yield Deeper(node.name, kernel=5)


@dataclass(frozen=True)
class Ladder:
    """Searcher: proposes the starts, then the first new neighbour of the best network so far."""

    space: Space
    recipe: Recipe
    limits: Limits
    seed: int = 0

    def ask(self, trials: Sequence[Trial], budget: Budget) -> Proposal | None:
        seen = {trial.graph.key for trial in trials}
        if budget.seconds <= 0 or budget.trials == 0:
            return None
        for start in self.space.starts:
            if start.key not in seen:
                return Proposal(start, (), self.recipe, {"reason": "start"})
        scored = [(trial.score, trial) for trial in trials if trial.kept and trial.score is not None]
        for _, trial in sorted(scored, key=lambda pair: pair[0], reverse=True):
            for morph in self.space.neighbours(trial.graph):
                graph = morph.grow(trial.graph)
                affordable = budget.predict(graph, self.recipe.epochs) <= budget.seconds
                if graph.key not in seen and affordable and self.limits.violation(graph) is None:
                    return Proposal(trial.id, (morph,), self.recipe, {"reason": "one rung up"})
        return None


def climb(space: Space, recipe: Recipe, limits: Limits, seed: int) -> Ladder:
    """A value for `search_type`: makes a searcher, given the default space, whose starts it uses in another space."""
    return Ladder(Fives(tuple(space.starts)), recipe, limits, seed)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time-limit", type=float, default=30.0)
    args = parser.parse_args(arguments)
    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        x.reshape(-1, 8, 8), y, test_size=0.2, stratify=y, random_state=0
    )
    starts = [cnn((1, 8, 8), 10, width=16, depth=depth) for depth in (1, 2)]
    classifier = morphnas.ImageClassifier(search_type=climb, initial_networks=starts, random_state=0)
    classifier.fit(x_train, y_train, time_limit=args.time_limit)
    print(morphnas.trials_table(classifier))
    print(f"accuracy on {len(y_test)} held-out digits: {classifier.evaluate(x_test, y_test):.2%}")


if __name__ == "__main__":
    main()
