"""A network's layers as a compact SVG, from top to bottom, without Graphviz. Colours are set by the page's CSS."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from html import escape

from morphnas.graph import Graph, Node, Op
from morphnas.report.folding import grouped

MAX_LAYERS = 400
"""Maximum number of layers that are drawn; of a deeper network, the first and the last ones."""

_ROW, _BAR, _LANE, _SIDE, _TEXT = 34, 84, 7, 10, 262


def layers_svg(graph: Graph, origins: Mapping[str, int] | None = None, root: int | None = None) -> str:
    """The network as an SVG element: a bar for each layer, wider for more channels, with a description beside it.

    Norms, activations and dropout are on the line of the layer that they follow. Skips are lines on the left.
    origins: by node, the id of the trial that added it; it is shown if it is not `root`.
    """
    origins = origins or {}
    blocks = grouped(graph, origins.get)
    row = {node.name: i for i, block in enumerate(blocks) for node in block}
    edges = {(row[source], row[node.name]) for node in graph.nodes for source in node.inputs}
    drawn = _rows(len(blocks))
    at = {i: 16 + _ROW * place for place, i in enumerate(drawn)}
    skips = sorted((e for e in edges if e[1] > e[0] + 1 and e[0] in at and e[1] in at), key=lambda e: (e[1] - e[0], e))
    lanes = _lanes(skips)
    step = min(_LANE, 110 / max(1, 1 + max(lanes.values(), default=0)))
    left = _SIDE + step * (1 + max(lanes.values(), default=-1)) + 6
    centre = left + _BAR / 2
    widest = max(graph.shapes[block[-1].name][0] for block in blocks)
    widths = {i: _width(graph.shapes[blocks[i][-1].name][0], widest) for i in drawn}
    parts = []
    for place, i in enumerate(drawn[:-1]):
        below = drawn[place + 1]
        if (i, below) in edges:
            parts.append(_line("wire", f"M{centre:g} {at[i] + 8}V{at[below] - 8}"))
        elif below != i + 1:
            gap = f'<text x="{left + _BAR + 10:g}" y="{at[i] + _ROW * 0.72:g}" class="faint">'
            parts.append(f"{gap}{below - i - 1} more layers</text>")
    for edge in skips:
        top, end = at[edge[0]], at[edge[1]]
        x = left - 6 - step * (1 + lanes[edge])
        radius = min(6.0, (end - top) / 2)
        begin, back = (centre - widths[i] / 2 for i in edge)
        parts.append(
            _line(
                "skip",
                f"M{begin:g} {top + 3}H{x + radius:g}Q{x:g} {top + 3} {x:g} {top + 3 + radius:g}"
                f"V{end - 3 - radius:g}Q{x:g} {end - 3} {x + radius:g} {end - 3}H{back:g}",
            )
        )
    for i in drawn:
        block, y = blocks[i], at[i]
        kind = "mixes" if block[0].op.mixes else "joins" if len(block[0].inputs) > 1 else "passes"
        id = origins.get(block[0].name)
        new = id is not None and id != root
        mark = f"{kind} new" if new else kind
        where = f'x="{centre - widths[i] / 2:g}" y="{y - 8}" width="{widths[i]:g}"'
        parts.append(f'<rect class="{mark}" {where} height="16" rx="3"/>')
        shape = " x ".join(map(str, graph.shapes[block[-1].name]))
        more = f' · <tspan class="brought" data-id="{id}">new in {id}</tspan>' if new else ""
        text_x = f"{left + _BAR + 10:g}"
        parts.append(f'<text x="{text_x}" y="{y - 1}">{escape(_describe(block))}</text>')
        parts.append(f'<text x="{text_x}" y="{y + 12}" class="faint">{shape}{more}</text>')
    size = f"0 0 {left + _BAR + 10 + _TEXT:g} {at[drawn[-1]] + 22}"
    title = escape(f"The network's {len(blocks)} layers, from the input at the top to the output")
    return (
        f'<svg class="layers" viewBox="{size}" role="img" aria-label="{title}" '
        f'width="{left + _BAR + 10 + _TEXT:g}">{"".join(parts)}</svg>'
    )


def _rows(n: int) -> list[int]:
    """Indices of the blocks to draw."""
    return list(range(n)) if n <= MAX_LAYERS else [*range(MAX_LAYERS // 2), *range(n - MAX_LAYERS // 2, n)]


def _lanes(skips: Sequence[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """The lane of each skip, 0 for the innermost, so that none overlap; shorter skips, which come first, are inside."""
    taken: list[list[tuple[int, int]]] = []
    lanes = {}
    for begin, end in skips:
        lane = next((i for i, lane in enumerate(taken) if all(e <= begin or b >= end for b, e in lane)), len(taken))
        taken[lane:] = [[*(taken[lane] if lane < len(taken) else []), (begin, end)], *taken[lane + 1 :]]
        lanes[begin, end] = lane
    return lanes


def _width(channels: int, widest: int) -> float:
    return round(14 + (_BAR - 14) * math.log2(1 + channels) / math.log2(1 + widest), 1)


def _describe(block: Sequence[Node]) -> str:
    """The ops of a block with their settings; only the first with settings if the text would be too long."""
    texts = [f"{node.op.tag} {_settings(node.op)}".strip() for node in block]
    return " · ".join(texts) if len(" · ".join(texts)) <= 42 else " · ".join([texts[0], *(n.op.tag for n in block[1:])])


def _settings(op: Op) -> str:
    """The kernel size, and the numbers that differ from their defaults."""
    texts = []
    for f in fields(op):
        value, default = getattr(op, f.name), op.default_of(f.name)
        if not isinstance(value, (bool, tuple)) and (default is MISSING or value != default or f.name == "kernel"):
            texts.append(f"{f.name} {value}")
    return ", ".join(texts)


def _line(kind: str, path: str) -> str:
    return f'<path class="{kind}" d="{path}"/>'
