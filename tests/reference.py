"""The edit distance as its definition reads: plain Python, one network against one."""

from __future__ import annotations

from morphnas.search.distance import OCTAVE, SKIP, Sketch, Token


def weight(t: Token, skip_weight: float) -> float:
    """What it costs to insert or remove a layer."""
    return 1 + skip_weight * sum(t.skips)


def change(s: Token, t: Token, skip_weight: float) -> float:
    """What it costs to turn one layer into another."""
    sizes = 1.0
    if s.kind == t.kind:
        sizes = min(1.0, OCTAVE * sum(abs(x - y) for x, y in zip(s.sizes, t.sizes, strict=True)))
    skips = sum(abs(x - y) for x, y in zip(s.skips, t.skips, strict=True))
    return sizes + skip_weight * max(skips, min(1.0, OCTAVE * abs(s.reach - t.reach)))


def distance(a: Sketch, b: Sketch, skip_weight: float = SKIP) -> float:
    """Levenshtein's distance: `row[j]` is what it costs to turn the layers of `a` so far into the first j of `b`."""
    row = [0.0]
    for t in b:
        row.append(row[-1] + weight(t, skip_weight))
    for s in a:
        diagonal, row[0] = row[0], row[0] + weight(s, skip_weight)
        for j, t in enumerate(b, start=1):
            removed, inserted = row[j] + weight(s, skip_weight), row[j - 1] + weight(t, skip_weight)
            diagonal, row[j] = row[j], min(removed, inserted, diagonal + change(s, t, skip_weight))
    return row[-1]
