"""Reference implementation of the edit distance in plain Python, for one pair of networks."""

from __future__ import annotations

from morphnas.search.distance import DOUBLING_COST, SKIP_COST, Sketch, Token


def insertion_cost(t: Token, skip_weight: float) -> float:
    """Cost of inserting or removing a layer."""
    return 1 + skip_weight * sum(t.skips)


def substitution_cost(s: Token, t: Token, skip_weight: float) -> float:
    """Cost of turning one layer into another."""
    sizes = 1.0
    if s.kind == t.kind:
        sizes = min(1.0, DOUBLING_COST * sum(abs(x - y) for x, y in zip(s.sizes, t.sizes, strict=True)))
    skips = sum(abs(x - y) for x, y in zip(s.skips, t.skips, strict=True))
    return sizes + skip_weight * max(skips, min(1.0, DOUBLING_COST * abs(s.reach - t.reach)))


def distance(a: Sketch, b: Sketch, skip_weight: float = SKIP_COST) -> float:
    """Levenshtein distance: `row[j]` is the cost of turning the layers of `a` so far into the first j of `b`."""
    row = [0.0]
    for t in b:
        row.append(row[-1] + insertion_cost(t, skip_weight))
    for s in a:
        diagonal, row[0] = row[0], row[0] + insertion_cost(s, skip_weight)
        for j, t in enumerate(b, start=1):
            removed, inserted = row[j] + insertion_cost(s, skip_weight), row[j - 1] + insertion_cost(t, skip_weight)
            diagonal, row[j] = row[j], min(removed, inserted, diagonal + substitution_cost(s, t, skip_weight))
    return row[-1]
