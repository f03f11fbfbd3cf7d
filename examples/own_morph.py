"""A morph of one's own: blocks of a depthwise 5x5 convolution, searched together with the library's morphs.

python examples/own_morph.py [--time-limit 30]
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import morphnas
from morphnas.graph import (
    BatchNorm,
    Depthwise,
    Graph,
    Insertion,
    Limits,
    MorphError,
    Node,
    Op,
    ReLU,
    Shape,
    Weights,
    chain,
    sites,
)


@dataclass(frozen=True)
class Spread(Insertion):
    """Insert depthwise-bn-relu after a relu of an image, the identity at first, since a relu is never negative."""

    after: str
    kernel: int = 5
    tag = "spread"

    @classmethod
    def candidates(cls, graph: Graph) -> Iterator["Spread"]:
        """Where it may fit: what a search chooses from."""
        return (cls(name) for name in sites(graph))

    def plan(self, graph: Graph) -> tuple[list[Node], str, list[str]]:
        """The new nodes, what they come behind, and whose input they become."""
        if self.after not in graph or graph[self.after].op.tag != "relu" or len(graph.shapes[self.after]) != 3:
            raise MorphError(f"{self}: {self.after} is no relu of an image")
        ops = [Depthwise(self.kernel), BatchNorm(), ReLU()]
        return chain(graph, self.after, ops), self.after, list(graph.consumers[self.after])

    def initial_weights(self, op: Op, *inputs: Shape) -> Weights:
        """The weights that keep the function: kernels that are 1 in the middle, and a batch norm that does nothing."""
        if isinstance(op, BatchNorm):
            return op.neutral(*inputs)
        if isinstance(op, Depthwise):
            weight = torch.zeros(op.tensors(*inputs)["weight"])  # (channels, 1, kernel, kernel)
            weight[:, :, op.kernel // 2, op.kernel // 2] = 1
            return {"weight": weight}
        return {}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time-limit", type=float, default=30.0)
    args = parser.parse_args(arguments)
    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        x.reshape(-1, 8, 8), y, test_size=0.2, stratify=y, random_state=0
    )
    classifier = morphnas.ImageClassifier(
        limits={"morphs": (*Limits.morphs, "spread")},  # the library's, and this one
        searcher_args={"default_model_width": 8},  # small first networks leave time for a search
        random_state=0,
    )
    classifier.fit(x_train, y_train, time_limit=args.time_limit)
    print(morphnas.trials_table(classifier))
    print(f"accuracy on {len(y_test)} held-out digits: {classifier.evaluate(x_test, y_test):.2%}")


if __name__ == "__main__":
    main()
