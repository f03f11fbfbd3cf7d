"""Graphviz drawings of networks and of the tree of trials: .dot sources, and PDF, SVG or PNG files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from html import escape
from pathlib import Path

from morphnas.graph import Graph, Network, Node, Op
from morphnas.report.folding import Repeat, folded, grouped
from morphnas.report.words import count, epochs_words, metric_words, morph_words, status_words
from morphnas.run.store import RunLike, run_of, user_path
from morphnas.search.trial import Trial


class GraphvizMissing(RuntimeError):
    """Neither Graphviz' `dot` nor pygraphviz is installed, so that nothing can be drawn."""


FORMATS = (".pdf", ".svg", ".png")
"""Suffixes of rendered drawings; .dot is their source."""


_INK, _FAINT, _LINE = "#202124", "#5f6368", "#80868b"
_FONT = "Helvetica,Arial,sans-serif"
_LAYOUT = f"""\
  graph [fontname="{_FONT}", fontsize=13, fontcolor="{_INK}", labelloc=t, margin=0.2, nodesep=0.35, ranksep=0.3]
  node [fontname="{_FONT}", fontsize=11, fontcolor="{_INK}", shape=box, style="filled,rounded", margin="0.1,0.07"]
  edge [fontname="{_FONT}", fontsize=9, fontcolor="{_FAINT}", color="{_LINE}", arrowsize=0.6]"""


@dataclass(frozen=True)
class _Look:
    """The style of a box and its meaning. Line widths differ too, for readers who cannot distinguish the colours."""

    meaning: str
    fill: str
    line: str
    width: float

    @property
    def attributes(self) -> str:
        return f'fillcolor="{self.fill}", color="{self.line}", penwidth={self.width:g}'


_SAME = _Look("as in the parent", "#f8f9fa", _LINE, 1)
_NEW = _Look("new", "#d2e3fc", "#1a56b0", 2)
_CHANGED = _Look("changed", "#feefc3", "#b06000", 2)


# -- one network


def graph_dot(graph: Graph, title: str = "", parent: Graph | None = None, fold: bool = True) -> str:
    """The network as a Graphviz source: one box per layer, with the norm, activation and dropout that follow.

    A box shows its nodes with their settings, and the shape of its output. Given the parent, new and changed nodes
    (another op under the same name) are highlighted, with a legend; edges that the parent lacks are thick. fold: layers
    that repeat three times or more in a row are drawn once, in a frame with the number of repetitions; dotted edges
    lead from one repetition to the next.
    """
    blocks = grouped(graph, lambda name: parent is None or name in parent)
    home = {node.name: i for i, block in enumerate(blocks) for node in block}
    old_edges = {(source, node.name) for node in parent.nodes for source in node.inputs} if parent else set()
    looks = [_look(block, parent) for block in blocks]
    edges = [
        (home[source], home[node.name], parent is not None and (source, node.name) not in old_edges)
        for node in graph.nodes
        for source in node.inputs
        if home[source] != home[node.name]
    ]
    keys = [
        (tuple(node.op for node in block), graph.shapes[block[-1].name], look)
        for block, look in zip(blocks, looks, strict=True)
    ]
    repeats = folded(keys, {edge[:2] for edge in edges}) if fold else [Repeat(i) for i in range(len(blocks))]
    lines = []
    for repeat in repeats:
        boxes = [
            f'  "{blocks[i][0].name}" [label={_block_label(graph, blocks[i], parent)}, {looks[i].attributes}]'
            for i in range(repeat.start, repeat.start + repeat.length)
        ]
        if repeat.times > 1:
            frame = f'label=<<b>{repeat.times} times</b>>, labeljust=r, style="rounded,dashed", color="{_LINE}"'
            boxes = [f"  subgraph cluster_{repeat.start} {{", f"  graph [{frame}, fontsize=11]", *boxes, "  }"]
        lines += boxes
    lines += _edges([block[0].name for block in blocks], repeats, edges)
    facts = f"{count(graph.parameters)} parameters · {count(graph.flops)} FLOPs · depth {graph.depth}"
    legend = [look for look in (_SAME, _CHANGED, _NEW) if look in looks]
    return _digraph(lines, title, facts, legend if len(legend) > 1 else [])


def _edges(names: Sequence[str], repeats: Sequence[Repeat], edges: Sequence[tuple[int, int, bool]]) -> list[str]:
    """The .dot lines of the edges between drawn boxes. edges: (source, end, whether the edge is new)."""
    repeat_of = {i: repeat for repeat in repeats for i in range(repeat.start, repeat.end)}
    lines = []
    for source, end, new in edges:
        (drawn_source, source_time), (drawn_end, end_time) = (repeat_of[i].place(i) for i in (source, end))
        style = f' [color="{_NEW.line}", penwidth=2]' if new else ""
        if end_time:
            if source_time or repeat_of[source] != repeat_of[end]:
                continue  # the same as in the first repetition
            style = " [style=dotted, constraint=false]"
        lines.append(f'  "{names[drawn_source]}" -> "{names[drawn_end]}"{style}')
    return lines


def _look(block: Sequence[Node], parent: Graph | None) -> _Look:
    if parent is None or all(node.name in parent and parent[node.name].op == node.op for node in block):
        return _SAME
    return _CHANGED if block[0].name in parent else _NEW


def _block_label(graph: Graph, block: Sequence[Node], parent: Graph | None) -> str:
    """Names and settings of the block's nodes, the first on a line of its own, and the output shape."""
    texts = []
    for node in block:
        before = parent[node.name].op if parent is not None and node.name in parent else node.op
        name = node.name if node.name.startswith(node.op.tag) else f"{node.name} ({node.op.tag})"
        settings = escape(_settings(node.op, before))
        texts.append((f"<b>{name}</b>" if node is block[0] else name) + (f"  {settings}" if settings else ""))
    shape = " x ".join(map(str, graph.shapes[block[-1].name]))
    return _lines([texts[0], *([" · ".join(texts[1:])] if texts[1:] else []), _small(shape)])


def _settings(op: Op, before: Op) -> str:
    """The informative settings: integers above 1, those that differ from the default, and changed ones."""
    texts = []
    for f in fields(op):
        value, default = getattr(op, f.name), op.default_of(f.name)
        old = getattr(before, f.name, value)
        if isinstance(value, tuple):
            continue  # shown by the output shape
        if old != value:
            texts.append(f"{f.name} {old} → {value}")
        elif (
            default is MISSING
            or value != default
            or (type(value) is int and value > 1 and f.name not in op.resolution_settings)
        ):
            texts.append(f.name if value is True else f"{f.name} {value}" if value is not False else f"no {f.name}")
    return ", ".join(texts)


# -- the tree of trials


def tree_dot(trials: Sequence[Trial], best: int | None = None, title: str = "") -> str:
    """The trials as a Graphviz source: a box for each, and an arrow from the parent whose weights it started with.

    Arrows are labelled with the morphs; a dashed one leads to the same network, trained longer. The deeper the blue,
    the better the score among those of the tree; the best has a thick line.
    """
    scores = sorted({trial.score for trial in trials if trial.score is not None})
    shade = {score: i / max(1, len(scores) - 1) for i, score in enumerate(scores)}
    ids = {trial.id for trial in trials}
    lines = []
    for trial in trials:
        look = _trial_look(None if trial.score is None else shade[trial.score], trial.id == best)
        lines.append(f"  t{trial.id} [label={_trial_label(trial, trial.id == best)}, {look}]")
        if trial.parent in ids:
            words = [morph_words(morph) for morph in trial.proposal.morphs]
            style = "solid" if words else "dashed"
            label = r"\n".join(words) if words else "same network, longer"
            lines.append(f'  t{trial.parent} -> t{trial.id} [label="{label}", style={style}]')
    finished = sum(trial.outcome is not None for trial in trials)
    facts = f"{finished} trials · deeper blue: better score" + (" · thick line: the best" if best in ids else "")
    return _digraph(["  rankdir=LR", "  ranksep=0.5", *lines], title, facts, [])


def _trial_label(trial: Trial, best: bool) -> str:
    result = metric_words(trial.outcome, named=True) or ("" if trial.score is None else f"score {trial.score:.4f}")
    status = "" if status_words(trial) == "finished" else f"<b>{status_words(trial)}</b>"
    epochs = trial.epochs if trial.outcome is None else trial.outcome.epochs
    parts = (f"<b>{trial.id}</b>", result, status, "<b>best</b>" if best else "")
    size = f"{count(trial.graph.parameters)} parameters · {epochs_words(epochs)}"
    return _lines(["  ".join(part for part in parts if part), _small(size)])


def _trial_look(shade: float | None, best: bool) -> str:
    """shade: from 0 for the worst score to 1 for the best; None: no score, drawn with a dashed outline."""
    if shade is None:
        return f'fillcolor="white", color="{_LINE}", style="filled,rounded,dashed"'
    pale, deep = (255, 255, 255), (158, 195, 247)
    fill = "".join(f"{round(a + (b - a) * shade):02x}" for a, b in zip(pale, deep, strict=True))
    return f'fillcolor="#{fill}", color="{_NEW.line if best else _LINE}", penwidth={3 if best else 1}'


# -- texts and files


def _digraph(lines: Sequence[str], title: str, facts: str, legend: Sequence[_Look]) -> str:
    """A Graphviz source with a title. legend: the styles to explain below it."""
    head = [f"<b>{escape(title)}</b>"] * bool(title) + [_small(facts)]
    rows = "".join(f'<tr><td colspan="{max(1, len(legend))}">{line}</td></tr>' for line in head)
    cells = "".join(
        f'<td bgcolor="{look.fill}" border="{look.width:g}" color="{look.line}">{_small(look.meaning)}</td>'
        for look in legend
    )
    rows += f"<tr>{cells}</tr>" if legend else ""
    label = f'<<table border="0" cellborder="0" cellspacing="4" cellpadding="3">{rows}</table>>'
    return "\n".join(["digraph {", _LAYOUT, f"  label={label}", *lines, "}", ""])


def _lines(lines: Sequence[str]) -> str:
    """A Graphviz label of several lines, which may contain its HTML-like markup."""
    rows = "".join(f"<tr><td>{line}</td></tr>" for line in lines)
    return f'<<table border="0" cellborder="0" cellspacing="0" cellpadding="1">{rows}</table>>'


def _small(text: str) -> str:
    return f'<font point-size="9" color="{_FAINT}">{text}</font>'


def draw(
    what: Graph | Network | Trial | Sequence[Trial] | RunLike,
    file: str | os.PathLike[str],
    parent: Graph | Network | Trial | None = None,
    fold: bool = True,
) -> Path:
    """Draw a network, or the tree of some trials or of a run, to `file`, whose suffix is .pdf, .svg, .png or .dot.

    The .dot file is the source of the others, and is written beside them.

    what: a network, trials, a run, a fitted estimator, or the folder of a run. parent: a network against which
    differences are highlighted. fold: whether repeated layers are drawn once. ValueError for another suffix or anything
    else to draw, RunError for a folder without a run; GraphvizMissing as for `write_drawing`.
    """
    if isinstance(what, (Graph, Network, Trial)):
        title = _network_title(what, None) if isinstance(what, Trial) else ""
        source = graph_dot(_graph(what), title, None if parent is None else _graph(parent), fold)
    elif isinstance(what, Sequence) and not isinstance(what, (str, bytes)):
        if invalid := [trial for trial in what if not isinstance(trial, Trial)]:
            raise ValueError(f"only trials can be drawn together, not {invalid[0]!r:.100}")
        source = tree_dot(what)
    else:
        run = run_of(what)
        source = tree_dot(run.trials, run.about.get("best"), "The trials of the search")
    return write_drawing(source, file)


def _graph(what: Graph | Network | Trial) -> Graph:
    return what if isinstance(what, Graph) else what.graph


def write_drawing(dot_source: str, path: str | os.PathLike[str]) -> Path:
    """Draw a Graphviz source to a .pdf, .svg or .png file, and write the source beside it first, as .dot.

    Uses `dot` if it is on the PATH, else pygraphviz; else GraphvizMissing says how to install either. For a .dot file
    only the source is written. ValueError for any other suffix.
    """
    target = user_path(path)
    kind = target.suffix.lower()
    if kind not in (*FORMATS, ".dot"):
        raise ValueError(f"the name of a drawing must end in {', '.join(FORMATS)} or .dot, not {str(target)!r}")
    target.parent.mkdir(parents=True, exist_ok=True)
    source = target if kind == ".dot" else target.with_suffix(".dot")
    source.write_text(dot_source, encoding="utf-8")
    if kind == ".dot":
        return target
    temporary = target.with_name(f".{target.name}.tmp")
    if shutil.which("dot"):
        import graphviz

        temporary.write_bytes(graphviz.Source(dot_source).pipe(format=kind[1:], quiet=True))
    else:
        try:
            import pygraphviz
        except ImportError:
            raise GraphvizMissing(
                f"{target} cannot be drawn without Graphviz; its source is in {source}. Any one of these installs it: "
                "pip install pygraphviz | apt-get install graphviz | brew install graphviz | conda install graphviz"
            ) from None
        pygraphviz.AGraph(string=dot_source).draw(str(temporary), prog="dot", format=kind[1:])
    temporary.replace(target)
    return target


def visualize(run: RunLike, directory: str | os.PathLike[str] | None = None) -> list[Path]:
    """Draw all networks of a run and the tree of its trials, see `draw_trials`.

    run: a run, a fitted estimator, or the folder of a run. directory: None: its folder `graphs`.
    """
    run = run_of(run)
    return draw_trials(run.trials, run.path / "graphs" if directory is None else directory, run.about.get("best"))


def draw_trials(trials: Sequence[Trial], directory: str | os.PathLike[str], best: int | None = None) -> list[Path]:
    """Draw every trial's network, compared with that of its parent, and the tree of all trials.

    Returns the PDF files: tree.pdf, then 0.pdf and so on by the trials' ids. GraphvizMissing if Graphviz is not
    installed; all sources are written even then.
    """
    folder = user_path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    graphs = {trial.id: trial.graph for trial in trials}
    texts = {"tree": tree_dot(trials, best, "The trials of the search")}
    for trial in trials:
        parent = None if trial.parent is None else graphs.get(trial.parent)
        texts[str(trial.id)] = graph_dot(trial.graph, _network_title(trial, best), parent)
    for name, text in texts.items():
        (folder / f"{name}.dot").write_text(text, encoding="utf-8")
    return [write_drawing(text, folder / f"{name}.pdf") for name, text in texts.items()]


def _network_title(trial: Trial, best: int | None) -> str:
    metric = metric_words(trial.outcome, named=True)
    parts = [f"Trial {trial.id}", "" if trial.parent is None else f"from {trial.parent}", metric]
    return " · ".join(part for part in parts if part) + (" (the best)" if trial.id == best else "")
