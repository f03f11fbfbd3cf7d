"""Summaries of the search space and of the results of a fit."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from morphnas import ImageClassifier, Limits, load_run, neighbours
from morphnas.graph import Network, cnn, fresh_weights
from morphnas.report.summary import results_summary
from tests.estimators.conftest import Data


def test_search_space_summary_before_a_fit(data: Data, tmp_path: Path) -> None:
    path = tmp_path / "run"
    settings: dict[str, Any] = {"random_state": 0, "max_trials": 3, "limits": {"max_depth": 9}}
    settings["searcher_args"] = {"default_model_width": 8}  # small enough for any machine
    classifier = ImageClassifier(path, device="cpu", **settings)
    space = classifier.search_space_summary(*data, time_limit=300)
    assert not path.exists()
    assert (space.seconds, space.limits.max_depth, space.expected.networks) == (300.0, 9, 3)
    assert list(space.morphs) == list(Limits().morphs)
    text = str(space)
    for phrase in (
        "a search within 5:00 begins with",
        "one step leads to",
        "wider all: Scale every convolution and dense layer whose width can change to `percent` of its output",
        "max_depth 9",
        "expected: about 3",
    ):
        assert phrase in text
    json.dumps(space.to_json(), allow_nan=False)
    classifier.set_params(refit=False).fit(*data, time_limit=20)
    starters = [t for t in load_run(path).trials if t.parent is None and not t.proposal.why.get("final")]
    assert len(starters) == len(space.starts)


def test_search_space_summary_counts_neighbours(data: Data) -> None:
    graph = cnn((1, *data[0].shape[1:3]), 3, width=8, depth=2)
    limits = {"morphs": ("deeper", "wider"), "max_params": 10 * graph.parameters}
    space = ImageClassifier(initial_networks=[graph], limits=limits, device="cpu").search_space_summary(
        *data, time_limit=200
    )
    (start,) = space.starts
    assert start.key == graph.key
    assert sum(start.neighbours.values()) == len(list(neighbours(graph, space.limits)))
    assert set(start.neighbours) == {"deeper", "wider"}
    assert "skip:" not in str(space)


def test_search_space_summary_tells_how_given_weights_are_trained(data: Data) -> None:
    graph = cnn((1, *data[0].shape[1:3]), 3, width=8, depth=2)
    space = ImageClassifier(initial_networks=[Network(graph, fresh_weights(graph))], device="cpu").search_space_summary(
        *data, time_limit=200
    )
    assert [start.given for start in space.starts] == [True]
    assert "with weights given; one step" in str(space)
    assert "first the last layer is trained" in str(space)
    assert "weights given" not in str(ImageClassifier(device="cpu").search_space_summary(*data, time_limit=200))


def test_search_space_summary_of_a_custom_searcher(data: Data) -> None:
    custom = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "custom.py"))
    graph = cnn((1, *data[0].shape[1:3]), 3, width=8, depth=2)
    space = ImageClassifier(initial_networks=[graph], search_type=custom["climb"], device="cpu").search_space_summary(
        *data, time_limit=200
    )
    (start,) = space.starts
    relus = [node for node in graph.nodes if node.op.tag == "relu" and len(graph.shapes[node.name]) == 3]
    assert start.neighbours == {"deeper": len(relus)}
    assert list(space.morphs) == ["deeper"]


def test_search_space_summary_rejects_invalid_arguments(data: Data) -> None:
    with pytest.raises(ValueError, match="time_limit must be a positive number"):
        ImageClassifier(device="cpu").search_space_summary(*data, time_limit=0)
    with pytest.raises(ValueError, match="NaN"):
        ImageClassifier(device="cpu").search_space_summary(np.full(data[0].shape, np.nan), data[1])


def test_results_summary_lists_the_best_networks_first(fitted_classifier: ImageClassifier) -> None:
    run = fitted_classifier.load_searcher()
    summary = fitted_classifier.results_summary(3)
    scores = [trial.score for trial in summary.run.trials]
    all_scores = sorted((t.score for t in run.trials if t.score is not None), reverse=True)
    assert scores == all_scores[:3]
    assert f"the best 3 of {len(run.trials)} networks" in str(summary)
    final, best = fitted_classifier.final_trial_, fitted_classifier.best_trial_
    assert f"the model is network {final}, which is network {best} after its final" in str(summary)
    assert [entry["model_id"] for entry in summary.to_json()] == [trial.id for trial in summary.run.trials]
    assert len(results_summary(run, 1000).run.trials) == len(all_scores)
    for invalid in (0, -1, True, 2.5):
        with pytest.raises(ValueError, match="n must be a positive integer"):
            fitted_classifier.results_summary(invalid)  # type: ignore[arg-type]
    with pytest.raises(NotFittedError):
        ImageClassifier().results_summary()
