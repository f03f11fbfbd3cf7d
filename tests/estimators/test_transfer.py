"""Searches that begin with networks which were trained before, on other data or elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import morphnas
from morphnas import ImageClassifier, ImageRegressor, from_module
from morphnas.graph import Graph, Network, cnn, fresh_weights, mlp
from morphnas.run.files import RunError
from tests.estimators.conftest import Data, stripes

STILL: dict[str, Any] = {
    "trainer_args": {"epochs": 1, "lr": 1e-12, "precision": "float32", "augment": morphnas.Augment()}
}
"""Trainings that hardly change weights, except for the statistics of batch norms."""


def one(path: Path, given: Any, **more: Any) -> ImageClassifier:
    settings: dict[str, Any] = {"max_trials": 1, "refit": False, "random_state": 0, "searcher_args": STILL}
    return ImageClassifier(path, **(settings | {"initial_networks": [given]} | more))


def test_the_network_of_a_run_knows_what_it_knew(fitted: ImageClassifier, data: Data, tmp_path: Path) -> None:
    again = one(tmp_path / "run", fitted.network_).fit(*data)
    assert again.network_.graph == fitted.network_.graph
    assert again.evaluate(*stripes(200, seed=9)) > 0.9
    (trial,) = again.load_searcher().trials
    assert trial.proposal.why["weights"] == "given"
    assert "start, with weights given" in str(morphnas.explain(again.load_searcher()))


def test_other_classes_and_images_keep_all_but_the_last_layer(fitted: ImageClassifier, tmp_path: Path) -> None:
    x, y = stripes(160, size=8)
    given = fitted.network_
    found = one(tmp_path / "run", given).fit(x, np.array(["a", "b", "c", "d"])[(y + np.arange(160) // 80) % 4])
    assert found.network_.graph.shapes["x"] == (1, 8, 8)
    assert found.network_.graph.shapes[found.network_.graph.output.name] == (4,)
    kept = [node.name for node in given.graph.nodes[:-1] if f"{node.name}.weight" in given.weights]
    assert kept
    for name in kept:
        assert torch.allclose(found.network_.weights[f"{name}.weight"], given.weights[f"{name}.weight"], atol=1e-5)


def test_amounts_from_a_classifier(fitted: ImageClassifier, data: Data, tmp_path: Path) -> None:
    x, y = data
    made = ImageRegressor(
        tmp_path / "run", initial_networks=[fitted.network_], max_trials=1, refit=False, random_state=0
    )
    assert made.fit(x, y.astype(float), time_limit=10).score(x, y.astype(float)) > 0.3


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 3)
    )


@pytest.mark.parametrize("executor", [None, pytest.param("process", marks=pytest.mark.slow)])
def test_a_module_is_searched_on(executor: str | None, data: Data, tmp_path: Path) -> None:
    args = {"trainer_args": {"epochs": 3, "precision": "float32"}}
    settings: dict[str, Any] = {"search_type": "random", "max_trials": 4, "searcher_args": args, "executor": executor}
    given = from_module(module(), (1, 6, 6))
    found = one(tmp_path / "run", given, **settings).fit(*data, time_limit=60)
    first, *others = found.load_searcher().trials
    assert first.graph == given.graph
    assert all(trial.parent is not None for trial in others)
    outcomes = [trial.outcome for trial in others if trial.outcome]
    assert [outcome.status for outcome in outcomes] == ["finished"] * 3
    assert all(outcome.morph_error is None or outcome.morph_error < 1e-3 for outcome in outcomes)
    on = one(tmp_path / "run", given, resume=True, **settings | {"max_trials": 5}).fit(*data, time_limit=60)
    assert len(on.load_searcher().trials) == 5
    other = Network(given.graph, {name: value + 1 for name, value in given.weights.items()})
    with pytest.raises(RunError, match="initial_networks was"):
        one(tmp_path / "run", other, resume=True, **settings).fit(*data)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([module()], r"initial_networks must be None or a list of morphnas.Graph and .*use from_module"),
        (["with weights", mlp((1, 6, 6), 3)], r"initial_networks\[1\] has the same architecture"),
        ([cnn((1, 6, 6), 3), "flat"], r"initial_networks\[1\] cannot be adapted to the examples: dense_1"),
    ],
)
def test_networks_that_cannot_be_begun_with(given: list[Any], words: str, tmp_path: Path) -> None:
    made: dict[str, Graph] = {"with weights": mlp((1, 6, 6), 3), "flat": mlp((7,), 3, width=4)}
    networks = [Network(made[n], fresh_weights(made[n])) if isinstance(n, str) else n for n in given]
    classifier = ImageClassifier(tmp_path / "run", initial_networks=networks, max_trials=1, searcher_args=STILL)
    with pytest.raises(ValueError, match=words):
        classifier.fit(*stripes(60), time_limit=5)
    assert not (tmp_path / "run").exists()


def test_equal_graphs_are_one(tmp_path: Path) -> None:
    found = one(tmp_path / "run", mlp((1, 6, 6), 3), initial_networks=[mlp((1, 6, 6), 3)] * 2)
    assert len(found.fit(*stripes(60), time_limit=5).load_searcher().about["plan"]["starts"]) == 1


@pytest.mark.parametrize("change", [lambda w: w * torch.nan, lambda w: w.half(), lambda w: w.to("meta")])
def test_weights_that_cannot_be_trained_on_are_refused(change: Any, data: Data, tmp_path: Path) -> None:
    graph = cnn((1, 6, 6), 3, width=4)
    weights = {name: change(w) if w.is_floating_point() else w for name, w in fresh_weights(graph).items()}
    with pytest.raises(ValueError, match=r"initial_networks\[0\] has weights that are not finite float32 numbers"):
        one(tmp_path / "run", Network(graph, weights)).fit(*data)
    assert not (tmp_path / "run").exists()


def test_a_module_is_read_whatever_new_tensors_are_by_default() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    torch.set_default_dtype(torch.float64)
    try:
        found = from_module(module, (1, 6, 6))
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.graph == from_module(module, (1, 6, 6)).graph
