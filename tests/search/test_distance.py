"""The edit distance: its laws on random networks, and every number against a plain reference."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morphnas.graph import (
    AddSkip,
    ConcatSkip,
    Conv,
    Deeper,
    Dropout,
    Graph,
    Wider,
    cnn,
    densenet,
    mlp,
    resnet,
)
from morphnas.search.distance import OCTAVE, Sketch, Skip, Token, distances, sketch, substitution_costs
from tests.strategies import graphs, plain


def reference(a: Sketch, b: Sketch, skip_weight: float = 1.0) -> float:
    """The distance as a definition reads: recursions, one network against one."""

    def substitution(s: Token, t: Token) -> float:
        if s.kind != t.kind:
            return 1.0
        return min(1.0, OCTAVE * sum(abs(x - y) for x, y in zip(s.sizes, t.sizes, strict=True)))

    @cache
    def edit(i: int, j: int) -> float:
        if not i or not j:
            return float(i + j)
        substituted = edit(i - 1, j - 1) + substitution(a.layers[i - 1], b.layers[j - 1])
        return min(edit(i - 1, j) + 1, edit(i, j - 1) + 1, substituted)

    def matching(some: tuple[Skip, ...], others: tuple[Skip, ...]) -> float:
        if not some or not others:
            return float(len(some) + len(others))
        s, rest = some[0], some[1:]
        costs = [1 + matching(rest, others)]
        for i, t in enumerate(others):
            apart = 1.0 if s.kind != t.kind else min(1.0, abs(s.start - t.start) + abs(s.end - t.end))
            costs.append(apart + matching(rest, others[:i] + others[i + 1 :]))
        return min(costs)

    return edit(len(a.layers), len(b.layers)) + skip_weight * matching(a.skips, b.skips)


@given(st.lists(graphs((2,), morphs=6), min_size=1, max_size=4), st.lists(graphs((1, 2), morphs=6), max_size=3))
@settings(max_examples=40)
def test_batches_agree_with_the_reference(rows: list[Graph], columns: list[Graph]) -> None:
    a, b = (_few_skips(side) for side in (rows, columns))
    expected = np.array([[reference(s, t, 0.7) for t in b] for s in a]).reshape(len(a), len(b))
    np.testing.assert_allclose(distances(a, b, 0.7), expected, atol=1e-9)


def _few_skips(side: list[Graph]) -> list[Sketch]:
    """The reference tries all matchings, so that five skips must do."""
    return [Sketch(one.layers, one.skips[:5]) for one in map(sketch, side)]


@given(st.lists(graphs(morphs=12), min_size=3, max_size=6))
@settings(max_examples=60)
def test_is_a_distance(some: list[Graph]) -> None:
    sketches = [sketch(graph) for graph in some]
    d = distances(sketches, sketches)
    assert (np.diag(d) == 0).all()
    assert (d >= 0).all()
    np.testing.assert_allclose(d, d.T, atol=1e-9)
    assert (d[:, None, :] <= d[:, :, None] + d[None, :, :] + 1e-9).all()  # d(a, c) <= d(a, b) + d(b, c)


tokens = st.builds(Token, st.sampled_from(["conv", "pool"]), st.tuples(*[st.floats(0, 8) for _ in range(3)]))
skips = st.builds(Skip, st.sampled_from(["add", "concat"]), st.floats(0, 1), st.floats(0, 1))
sketches = st.builds(Sketch, st.lists(tokens, max_size=6).map(tuple), st.lists(skips, max_size=5).map(tuple))


@given(st.tuples(sketches, sketches, sketches))
@settings(max_examples=300)
def test_is_a_distance_between_any_sketches(some: tuple[Sketch, ...]) -> None:
    d = distances(some, some)
    np.testing.assert_allclose(d, d.T, atol=1e-9)
    assert (d[:, None, :] <= d[:, :, None] + d[None, :, :] + 1e-9).all()
    np.testing.assert_allclose(d[0, 1], reference(some[0], some[1]), atol=1e-9)


def test_of_no_networks() -> None:
    one = [sketch(mlp((4,), 2))]
    assert distances([], one).shape == (0, 1)
    assert distances(one, []).shape == (1, 0)
    assert distances([], []).shape == (0, 0)
    assert substitution_costs([]).shape == (0, 0)


def test_many_rows_are_computed_in_parts() -> None:
    some = [sketch(cnn((1, 8, 8), 2, width=w, depth=d)) for w in range(1, 14) for d in range(1, 7)]
    whole = distances(some, some[:3])
    np.testing.assert_array_equal(whole, np.concatenate([distances([one], some[:3]) for one in some]))


def test_sketch_of_a_residual_network() -> None:
    found = sketch(resnet((3, 8, 8), 10, width=4, depth=2))
    assert [token.kind for token in found.layers] == ["conv"] * 5 + ["avgpool", "conv", "dense"]
    assert found.skips == (Skip("add", 1 / 6, 3 / 6), Skip("add", 3 / 6, 5 / 6))


def test_main_path_of_a_dense_network_is_the_longest() -> None:
    found = sketch(densenet((3, 8, 8), 10, width=4, depth=2))
    assert {skip.kind for skip in found.skips} == {"concat"}
    assert all(skip.start < skip.end for skip in found.skips)


GRAPH = cnn((3, 16, 16), 10, width=8, depth=3)
RELUS = [node.name for node in GRAPH.nodes if node.op.tag == "relu"]


@pytest.mark.parametrize(
    ("grown", "expected"),
    [
        (GRAPH, 0.0),
        (Deeper(RELUS[0]).grow(GRAPH), 1.0),
        (Wider(GRAPH.nodes[1].name, 16).grow(GRAPH), OCTAVE * np.log2(17 / 9)),
        (ConcatSkip(RELUS[0], RELUS[2]).grow(GRAPH), 2.0),  # the skip, and the pool on its way
        (AddSkip(RELUS[0], RELUS[2]).grow(GRAPH), 3.0),  # and its 1x1 convolution
    ],
)
def test_counts_what_a_morph_changes(grown: Graph, expected: float) -> None:
    assert distances([sketch(GRAPH)], [sketch(grown)]).item() == pytest.approx(expected)


def test_sees_where_a_layer_is() -> None:
    early, late = (Deeper(relu).grow(cnn((3, 16, 16), 10, width=8, depth=1)) for relu in ["relu_3", "relu_3"])
    assert distances([sketch(early)], [sketch(late)]).item() == 0
    grown = [Deeper(relu).grow(GRAPH) for relu in RELUS]
    apart = distances([sketch(grown[0])], [sketch(graph) for graph in grown])[0]
    assert 0 == apart[0] < apart[1] <= apart[2]


def test_sees_settings_without_weights() -> None:
    a, b = (plain(Conv(4), Dropout(rate), shape=(1, 4, 4)) for rate in (0.1, 0.5))
    assert 0 < distances([sketch(a)], [sketch(b)]).item() < 1
