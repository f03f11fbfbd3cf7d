"""The public names of `morphnas`; loaded when the first of them is used."""

from morphnas.bundles import bundle
from morphnas.estimators import ImageClassifier, ImageRegressor, load
from morphnas.estimators.ablation import ablate
from morphnas.estimators.data_checks import DataWarning, Findings, examine
from morphnas.estimators.files import load_image_dataset
from morphnas.exports import Exported, ExportError, export
from morphnas.graph import (
    Graph,
    GraphError,
    Limits,
    ModuleError,
    Morph,
    MorphError,
    Network,
    from_module,
    neighbours,
    to_module,
)
from morphnas.report import GraphvizMissing, compare_runs, draw, explain, show, trials_table, visualize, write_report
from morphnas.run.epochs import EpochReport, StopFit
from morphnas.run.files import RunError
from morphnas.run.store import Run, load_run
from morphnas.search import BayesianSearcher, EvolutionSearcher, MorphSpace, Promote, RandomSearcher
from morphnas.train.recipe import Augment, Outcome, Recipe

__all__ = [
    "Augment", "BayesianSearcher", "DataWarning", "EpochReport", "EvolutionSearcher", "ExportError", "Exported",
    "Findings", "Graph", "GraphError", "GraphvizMissing", "ImageClassifier", "ImageRegressor", "Limits", "ModuleError",
    "Morph", "MorphError", "MorphSpace", "Network", "Outcome", "Promote", "RandomSearcher", "Recipe", "Run", "RunError",
    "StopFit", "ablate", "bundle", "compare_runs", "draw", "examine", "explain", "export", "from_module", "load",
    "load_image_dataset", "load_run", "neighbours", "show", "to_module", "trials_table", "visualize", "write_report",
]  # fmt: skip
