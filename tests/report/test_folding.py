"""Tests of folding: unfolded repeats give all items and edges, and deep networks are drawn in few boxes."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from morphnas.graph import Deeper, cnn, resnet
from morphnas.report.drawing import graph_dot
from morphnas.report.folding import MIN_REPEATS, folded

CHAIN = st.lists(st.sampled_from("ab"), max_size=14)


@given(keys=CHAIN, data=st.data())
def test_unfolding_restores_items_and_edges(keys: list[str], data: st.DataObject) -> None:
    pairs = [(i, j) for j in range(len(keys)) for i in range(j)]
    chain = [(i, i + 1) for i in range(len(keys) - 1)]
    skips = data.draw(st.lists(st.sampled_from(pairs), max_size=3)) if pairs else []
    edges = {*chain, *skips}
    repeats = folded(keys, edges)
    assert [i for repeat in repeats for i in range(repeat.start, repeat.end)] == list(range(len(keys)))
    unfolded = set()
    for repeat in repeats:
        assert repeat.times == 1 or repeat.times >= MIN_REPEATS
        for i in range(repeat.start, repeat.end):
            first, repetition = repeat.place(i)
            assert keys[first] == keys[i]
            assert first == i - repetition * repeat.length
            sources = {i - source for source, end in edges if end == i}
            assert sources == {first - source for source, end in edges if end == first}
            if repetition:
                assert all(source >= repeat.start for source, end in edges if end == i)
            if repetition < repeat.times - 1:
                assert all(end < repeat.end for source, end in edges if source == i)
            unfolded |= {(i - back, i) for back in sources}
    assert unfolded == edges


def test_repetitions_are_found() -> None:
    def repeats(chain: str) -> list[tuple[int, int]]:
        """The length and number of all repetitions in a chain of layers."""
        return [(r.length, r.times) for r in folded(chain, {(i, i + 1) for i in range(len(chain) - 1)}) if r.times > 1]

    assert repeats("xababababy") == [(2, 4)]
    assert repeats("aab") == []
    assert repeats("xaaaabbbb") == [(1, 4), (1, 4)]


def test_deep_network_is_drawn_in_few_boxes() -> None:
    def count_boxes(dot: str) -> int:
        return len(re.findall(r'^  "\w+" \[label', dot, re.MULTILINE))

    for graph in (cnn((3, 32, 32), 10, width=16, depth=100), resnet((3, 32, 32), 10, width=16, depth=50)):
        assert graph.depth > 100
        assert count_boxes(graph_dot(graph)) < 30
        assert count_boxes(graph_dot(graph, fold=False)) > 100
        assert re.search(r"\d\d times", graph_dot(graph))


def test_new_layers_are_not_folded() -> None:
    graph = cnn((3, 32, 32), 10, width=16, depth=20)
    child = Deeper("relu_30").grow(graph)
    (new,) = (node.name for node in child.nodes if node.name not in graph and node.name.startswith("conv"))
    assert f'"{new}" [label' in graph_dot(child, parent=graph)
