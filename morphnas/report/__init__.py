"""Reports on a run: tables, drawings, an HTML page and a progress display. Functions that return text write no
files."""

from morphnas.report.compare import Comparison, compare_runs
from morphnas.report.drawing import GraphvizMissing, draw, draw_trials, graph_dot, tree_dot, visualize, write_drawing
from morphnas.report.explain import Explanation, explain
from morphnas.report.page import show, write_report
from morphnas.report.progress import Progress
from morphnas.report.tables import trials_table

__all__ = [
    "Comparison",
    "compare_runs",
    "Explanation",
    "GraphvizMissing",
    "Progress",
    "draw",
    "draw_trials",
    "explain",
    "graph_dot",
    "show",
    "tree_dot",
    "trials_table",
    "visualize",
    "write_drawing",
    "write_report",
]
