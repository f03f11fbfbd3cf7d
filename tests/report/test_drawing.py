"""Tests of drawings: .dot sources show all layers and changes, and files of all formats have the same contents."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pypdf import PdfReader

from morphnas.graph import Graph, Wider
from morphnas.report import GraphvizMissing, draw, draw_trials, graph_dot, tree_dot, visualize, write_drawing
from morphnas.run.files import RunError
from morphnas.run.store import Run, Store, load_run
from tests.report.history import LARGE, SMALL, history
from tests.strategies import HAND_MADE, apply_morphs, graphs, random_morphs

needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not on the PATH")


def boxes(dot: str) -> dict[str, list[str]]:
    """The lines of text in every box, by the name of its first node."""
    matches = re.findall(r'^  "?(\w+)"? \[label=<(.*)>, (?:fillcolor|style)', dot, re.MULTILINE)
    return {name: [re.sub(r"<[^>]*>", "", cell) for cell in label.split("</tr>")[:-1]] for name, label in matches}


def members(lines: list[str], graph: Graph) -> list[str]:
    """The names of a box's nodes; its last line is the shape."""
    return [word for line in lines[:-1] for word in line.split() if word in graph]


def colour(dot: str, name: str) -> str:
    """The colour of a box's outline."""
    (line,) = (line for line in dot.splitlines() if line.startswith(f'  "{name}" [label'))
    return line.rpartition('color="')[2].partition('"')[0]


# -- a network


@settings(max_examples=30)
@given(graph=graphs(morphs=8))
def test_dot_has_every_node_once_and_every_edge(graph: Graph) -> None:
    dot = graph_dot(graph, "a network", fold=False)
    drawn = [name for lines in boxes(dot).values() for name in members(lines, graph)]
    assert sorted(drawn) == sorted(graph.shapes)
    arrows = len(re.findall(r"^  \S+ -> \S+", dot, re.MULTILINE))
    within_boxes = len(graph.nodes) - len(boxes(dot))
    assert arrows == sum(len(node.inputs) for node in graph.nodes) - within_boxes


def test_box_shows_settings_norm_activation_and_shape() -> None:
    text = boxes(graph_dot(LARGE))
    assert text["conv_1"] == ["conv_1  filters 8, kernel 3", "bn_2 · relu_3", "8 x 8 x 8"]
    assert text["conv_8"] == ["conv_8  filters 16, kernel 5, stride 2", "bn_9 · relu_10", "16 x 2 x 2"]
    assert text["x"] == ["x (input)", "1 x 8 x 8"]
    assert text["dense_12"] == ["dense_12  units 10", "10"]


def test_box_shows_padding_unless_half_the_kernel() -> None:
    text = boxes(graph_dot(HAND_MADE["mobile_2d"]()))
    assert text["conv_1"] == ["conv_1  filters 4, kernel 4, stride 2, padding 1", "4 x 4 x 4"]
    assert text["depthwise_3"] == ["depthwise_3  kernel 3", "bn_4 · silu_5", "4 x 4 x 4"]
    assert text["gate_11"] == ["gate_11", "4 x 4 x 4"]


@settings(max_examples=30)
@given(graph=graphs(morphs=3), seed=st.integers(0, 2**32))
def test_new_and_changed_boxes_are_coloured(graph: Graph, seed: int) -> None:
    child = apply_morphs(graph, random_morphs(graph, 3, seed))
    dot = graph_dot(child, parent=graph)
    plain = colour(graph_dot(graph, parent=graph), "x")
    for name, lines in boxes(dot).items():
        nodes = members(lines, child)
        assert len({node in graph for node in nodes}) == 1
        unchanged = all(node in graph and graph[node].op == child[node].op for node in nodes)
        assert (colour(dot, name) == plain) == unchanged
    assert colour(graph_dot(child), child.nodes[-1].name) == plain


def test_changed_settings_and_legend_are_shown() -> None:
    dot = graph_dot(Wider("dense_2", 12).grow(SMALL), parent=SMALL)
    assert boxes(dot)["dense_2"][0] == "dense_2  units 8 → 12, no bias"
    assert ">changed<" in dot
    assert ">as in the parent<" in dot
    assert ">new<" not in dot
    assert ">changed<" not in graph_dot(SMALL)


def test_titles_are_escaped() -> None:
    assert "a &lt;b&gt; &amp; &quot;c&quot;" in graph_dot(SMALL, 'a <b> & "c"')


# -- the tree


def test_tree_has_every_trial_and_an_arrow_from_its_parent() -> None:
    trials = history()
    dot = tree_dot(trials, best=5)
    assert list(boxes(dot)) == [f"t{trial.id}" for trial in trials]
    arrows = re.findall(r"^  t(\d+) -> t(\d+)", dot, re.MULTILINE)
    assert [(int(a), int(b)) for a, b in arrows] == [(t.parent, t.id) for t in trials if t.parent is not None]
    assert r"add skip relu_3 to relu_10\ndeeper relu_3, kernel 3" in dot
    assert 't2 -> t5 [label="same network, longer", style=dashed]' in dot
    titles = {name: lines[0] for name, lines in boxes(dot).items()}
    assert titles["t5"] == "5  96.00 %  best"
    assert titles["t4"] == "4  90.00 %  truncated"
    assert [titles[name] for name in ("t3", "t6", "t7")] == ["3  failed", "6  diverged", "7  running"]


def test_tree_of_some_trials_without_the_best() -> None:
    dot = tree_dot(history()[4:], best=2)
    assert "->" not in dot
    assert "the best" not in dot
    assert tree_dot([]).startswith("digraph {")


# -- files


@needs_dot
def test_pdf_has_text_on_one_page(tmp_path: Path) -> None:
    path = write_drawing(graph_dot(LARGE, "Trial 7 <best>"), tmp_path / "deep" / "resnet.pdf")
    (page,) = PdfReader(path).pages
    text = page.extract_text()
    assert "Trial 7 <best>" in text
    assert "filters 16, kernel 3" in text
    assert path.with_suffix(".dot").read_text(encoding="utf-8").startswith("digraph {")
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["resnet.dot", "resnet.pdf"]


@needs_dot
def test_draw_trials_writes_every_network_and_the_tree(tmp_path: Path) -> None:
    trials = history()[:4]
    paths = draw_trials(trials, tmp_path / "graphs", best=2)
    assert [path.name for path in paths] == ["tree.pdf", "0.pdf", "1.pdf", "2.pdf", "3.pdf"]
    assert all(len(PdfReader(path).pages) == 1 for path in paths)
    assert "Trial 2 · from 0 · 95.00 % (the best)" in PdfReader(paths[3]).pages[0].extract_text()
    assert draw_trials(trials, tmp_path / "graphs", best=2) == paths


@needs_dot
def test_visualize_draws_run_or_its_folder(tmp_path: Path) -> None:
    first = history()[0]
    assert first.outcome is not None
    store = Store.create(tmp_path / "run", {"best": 0})
    store.finish(store.claim(first.proposal).id, first.outcome, None)
    store.close()
    for run in (str(tmp_path / "run"), load_run(tmp_path / "run")):
        paths = visualize(run)
        assert paths == [tmp_path / "run" / "graphs" / name for name in ("tree.pdf", "0.pdf")]
    assert "best" in PdfReader(paths[0]).pages[0].extract_text()
    assert visualize(tmp_path / "run", tmp_path / "elsewhere")[0] == tmp_path / "elsewhere" / "tree.pdf"


def test_missing_graphviz_raises_error_after_writing_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pygraphviz", None)
    for word in ("pip install", "apt-get install graphviz", "brew install graphviz", "conda install graphviz"):
        with pytest.raises(GraphvizMissing, match=word):
            write_drawing("digraph {}", tmp_path / "empty.pdf")
    assert (tmp_path / "empty.dot").read_text(encoding="utf-8") == "digraph {}"
    with pytest.raises(GraphvizMissing):
        draw_trials(history(), tmp_path / "graphs")
    assert len(list((tmp_path / "graphs").glob("*.dot"))) == 1 + len(history())
    assert not list((tmp_path / "graphs").glob("*.pdf"))


def test_pygraphviz_draws_without_dot_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pygraphviz")
    monkeypatch.setenv("PATH", str(tmp_path))
    path = write_drawing(tree_dot(history(), best=5, title="The trials"), tmp_path / "tree.pdf")
    assert "The trials" in PdfReader(path).pages[0].extract_text()


@needs_dot
@pytest.mark.parametrize(
    ("suffix", "start"), [("pdf", b"%PDF"), ("svg", b"<?xml"), ("png", b"\x89PNG"), ("dot", b"digraph")]
)
def test_draw_supports_every_object_and_format(suffix: str, start: bytes, tmp_path: Path) -> None:
    trials = history()
    run = Run(tmp_path, {}, tuple(trials))
    objects: dict[str, Any] = {"graph": LARGE, "trial": trials[2], "trials": trials[:3], "run": run}
    for name, obj in objects.items():
        path = draw(obj, tmp_path / f"{name}.{suffix}")
        assert path.read_bytes().startswith(start)
    changed = draw(trials[2], tmp_path / f"changed.{suffix}", parent=trials[0])
    assert b"filters 8" in changed.with_suffix(".dot").read_bytes()


def test_invalid_drawings_raise_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.pdf, \.svg, \.png or \.dot, not .*a\.gif"):
        draw(LARGE, tmp_path / "a.gif")
    with pytest.raises(RunError, match="a network"):
        draw("a network", tmp_path / "a.pdf")
    with pytest.raises(ValueError, match="only trials can be drawn together, not 7"):
        draw([*history(), 7], tmp_path / "a.pdf")  # type: ignore[list-item]
    with pytest.raises(ValueError, match="expected a Run, a fitted estimator or the folder of a run, not 7"):
        draw(7, tmp_path / "a.pdf")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
