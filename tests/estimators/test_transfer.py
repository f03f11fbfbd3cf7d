"""Searches whose starters are networks that were trained before, on other data or elsewhere."""

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
from morphnas.train.recipe import LAST_LAYER_EPOCHS
from tests.estimators.conftest import Data, stripes

FROZEN: dict[str, Any] = {
    "trainer_args": {"epochs": 1, "lr": 1e-12, "precision": "float32", "augment": morphnas.Augment()}
}
"""Trainings that change almost nothing but the statistics of batch norms."""


def make_classifier(path: Path, network: Any, **options: Any) -> ImageClassifier:
    settings: dict[str, Any] = {"max_trials": 1, "refit": False, "random_state": 0, "searcher_args": FROZEN}
    return ImageClassifier(path, **(settings | {"initial_networks": [network]} | options))


def test_network_of_a_run_keeps_its_weights(fitted_classifier: ImageClassifier, data: Data, tmp_path: Path) -> None:
    clf = make_classifier(tmp_path / "run", fitted_classifier.network_).fit(*data)
    assert clf.network_.graph == fitted_classifier.network_.graph
    assert clf.evaluate(*stripes(200, seed=9)) > 0.9
    (trial,) = clf.load_searcher().trials
    assert trial.proposal.why["weights"] == "given"
    assert "start, with weights given" in str(morphnas.explain(clf.load_searcher()))


def test_new_classes_and_sizes_keep_all_but_the_last_layer(fitted_classifier: ImageClassifier, tmp_path: Path) -> None:
    x, y = stripes(160, size=8)
    network = fitted_classifier.network_
    new_classes = np.array(["a", "b", "c", "d"])[(y + np.arange(160) // 80) % 4]
    clf = make_classifier(tmp_path / "run", network).fit(x, new_classes)
    assert clf.network_.graph.shapes["x"] == (1, 8, 8)
    assert clf.network_.graph.shapes[clf.network_.graph.output.name] == (4,)
    kept = [node.name for node in network.graph.nodes[:-1] if f"{node.name}.weight" in network.weights]
    assert kept
    for name in kept:
        assert torch.allclose(clf.network_.weights[f"{name}.weight"], network.weights[f"{name}.weight"], atol=1e-5)


def test_regressor_starts_from_network_of_classifier(
    fitted_classifier: ImageClassifier, data: Data, tmp_path: Path
) -> None:
    x, y = data
    settings: dict[str, Any] = {"max_trials": 1, "refit": False, "random_state": 0}
    regressor = ImageRegressor(tmp_path / "run", initial_networks=[fitted_classifier.network_], **settings)
    assert regressor.fit(x, y.astype(float), time_limit=10).score(x, y.astype(float)) > 0.3


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 3)
    )


@pytest.mark.parametrize("executor", [None, pytest.param("process", marks=pytest.mark.slow)])
def test_search_starts_from_module_and_can_be_resumed(executor: str | None, data: Data, tmp_path: Path) -> None:
    args = {"trainer_args": {"epochs": 3, "precision": "float32"}}
    settings: dict[str, Any] = {"search_type": "random", "max_trials": 4, "searcher_args": args, "executor": executor}
    network = from_module(module(), (1, 6, 6))
    clf = make_classifier(tmp_path / "run", network, **settings).fit(*data, time_limit=60)
    first, *others = clf.load_searcher().trials
    assert first.graph == network.graph
    assert all(trial.parent is not None for trial in others)
    outcomes = [trial.outcome for trial in others if trial.outcome]
    assert [outcome.status for outcome in outcomes] == ["finished"] * 3
    assert all(outcome.morph_error is None or outcome.morph_error < 1e-3 for outcome in outcomes)
    resumed = make_classifier(tmp_path / "run", network, resume=True, **settings | {"max_trials": 5})
    resumed.fit(*data, time_limit=60)
    assert len(resumed.load_searcher().trials) == 5
    other = Network(network.graph, {name: value + 1 for name, value in network.weights.items()})
    with pytest.raises(RunError, match="initial_networks was"):
        make_classifier(tmp_path / "run", other, resume=True, **settings).fit(*data)


@pytest.mark.parametrize(
    ("initial_networks", "message"),
    [
        ([module()], r"initial_networks must be None or a list of morphnas.Graph and .*use from_module"),
        (["with weights", mlp((1, 6, 6), 3)], r"initial_networks\[1\] has the same architecture"),
        ([cnn((1, 6, 6), 3), "flat"], r"initial_networks\[1\] cannot be adapted to the examples: dense_1"),
    ],
)
def test_fit_rejects_invalid_initial_networks(initial_networks: list[Any], message: str, tmp_path: Path) -> None:
    graphs: dict[str, Graph] = {"with weights": mlp((1, 6, 6), 3), "flat": mlp((7,), 3, width=4)}
    networks = [Network(graphs[n], fresh_weights(graphs[n])) if isinstance(n, str) else n for n in initial_networks]
    classifier = ImageClassifier(tmp_path / "run", initial_networks=networks, max_trials=1, searcher_args=FROZEN)
    with pytest.raises(ValueError, match=message):
        classifier.fit(*stripes(60), time_limit=5)
    assert not (tmp_path / "run").exists()


def test_equal_initial_networks_are_merged(tmp_path: Path) -> None:
    classifier = make_classifier(tmp_path / "run", mlp((1, 6, 6), 3), initial_networks=[mlp((1, 6, 6), 3)] * 2)
    assert len(classifier.fit(*stripes(60), time_limit=5).load_searcher().about["plan"]["starts"]) == 1


@pytest.mark.parametrize("change", [lambda w: w * torch.nan, lambda w: w.half(), lambda w: w.to("meta")])
def test_fit_rejects_invalid_initial_weights(change: Any, data: Data, tmp_path: Path) -> None:
    graph = cnn((1, 6, 6), 3, width=4)
    weights = {name: change(w) if w.is_floating_point() else w for name, w in fresh_weights(graph).items()}
    with pytest.raises(ValueError, match=r"initial_networks\[0\] has weights that are not finite float32 numbers"):
        make_classifier(tmp_path / "run", Network(graph, weights)).fit(*data)
    assert not (tmp_path / "run").exists()


def test_first_the_last_layer_and_then_all_layers(fitted_classifier: ImageClassifier, tmp_path: Path) -> None:
    """The whole fit of few images of other classes, with few networks."""
    x, y = stripes(60, seed=3)
    labels = np.array(["a", "b", "b"])[y]
    before = fitted_classifier.network_
    clf = ImageClassifier(tmp_path / "run", initial_networks=[before], max_trials=3, random_state=0)
    clf.fit(x, labels, time_limit=20)
    run = clf.load_searcher()
    first, gentle, usual, *finals = run.trials
    assert (first.proposal.recipe.layers, first.epochs) == ("last", LAST_LAYER_EPOCHS)
    assert [trial.proposal.why["reason"] for trial in (gentle, usual)] == ["rates", "rates"]
    assert [trial.proposal.recipe.freeze_norms for trial in (gentle, usual)] == [True, False]
    better = max((gentle, usual), key=lambda trial: trial.score or -9.0).proposal.recipe
    assert finals
    assert all(
        trial.proposal.recipe.optimizer == better.optimizer for trial in finals if trial.proposal.recipe.layers == "all"
    )
    head = before.graph.output.name
    trained = run.load_model_by_id(0).weights
    assert all(torch.equal(trained[name], before.weights[name]) for name in trained if not name.startswith(head))
    x, y = stripes(90, seed=4)
    assert clf.score(x, np.array(["a", "b", "b"])[y]) > 0.9
    assert "last layer" in str(morphnas.explain(run))


def test_last_layer_alone_on_request(fitted_classifier: ImageClassifier, data: Data, tmp_path: Path) -> None:
    args = {"trainer_args": {"layers": "last"}}
    before = fitted_classifier.network_
    clf = ImageClassifier(tmp_path / "run", initial_networks=[before], searcher_args=args, random_state=0)
    clf.fit(*data, time_limit=20)
    recipes = [trial.proposal.recipe for trial in clf.load_searcher().trials]
    assert [recipe.layers for recipe in recipes] == ["last", "last"]  # on all examples at the end
    for name, value in clf.network_.weights.items():
        assert torch.equal(value, before.weights[name]) == (not name.startswith(before.graph.output.name))
    morphnas.load(tmp_path / "run").final_fit(*data, *data, time_limit=2)
    assert {trial.proposal.recipe.layers for trial in clf.load_searcher().trials} == {"last"}
    with pytest.raises(ValueError, match='layers "last" keeps all other layers, so it excludes retrain'):
        clf.final_fit(*data, *data, retrain=True, trainer_args={"layers": "last"})
    clf.final_fit(*data, *data, time_limit=5, trainer_args={"layers": "all", "epochs": 1})
    assert "all" in [trial.proposal.recipe.layers for trial in clf.load_searcher().trials[2:]]


def test_normalization_is_what_the_network_was_trained_with(data: Data, tmp_path: Path) -> None:
    """Nothing is trained here, so the outputs remain those of the module on values normalised like that."""
    net, (x, y) = module().eval(), data
    normalization = (np.array([100.0]), 40)
    args = {"trainer_args": {"layers": "all", "epochs": 1, "lr": 1e-12, "augment": morphnas.Augment()}}
    network = from_module(net, (1, 6, 6))
    clf = make_classifier(tmp_path / "run", network, normalization=normalization, searcher_args=args).fit(x, y)
    images = torch.from_numpy(x[:, None].astype(np.float32))
    with torch.no_grad():
        expected = net((images - 100) / 40)
    logits = clf.to_module()(images)
    assert torch.allclose(logits * (expected.std() / logits.std()), expected, atol=1e-4)  # up to the temperature
    loaded = morphnas.load(tmp_path / "run")
    assert np.allclose(loaded.predict_proba(x), clf.predict_proba(x))
    assert loaded.normalization == [[100.0], 40]
    loaded.final_fit(x, y, x, y, time_limit=5)
    assert loaded._model.mean == (100.0,)
    assert morphnas.load(tmp_path / "run")._model.std == (40.0,)
    resumed = make_classifier(
        tmp_path / "run", network, normalization=(100, 50), searcher_args=args, resume=True, max_trials=2
    )
    with pytest.raises(RunError, match="normalization was"):
        resumed.fit(x, y)


def test_normalization_of_channels_with_other_ranges(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((60, 20, 2)) * [1, 1e4]
    settings: dict[str, Any] = {"axes": 1, "max_trials": 1, "refit": False, "searcher_args": FROZEN}
    normalization = ([0.5, 5e3], [0.3, 3e3])
    clf = ImageClassifier(tmp_path / "run", normalization=normalization, **settings)
    clf.fit(x, np.arange(60) % 2, time_limit=5)
    assert clf._model.mean == (0.5, 5e3)


def test_retraining_from_fresh_weights_is_no_fine_tuning(
    fitted_classifier: ImageClassifier, data: Data, tmp_path: Path
) -> None:
    clf = make_classifier(tmp_path / "run", fitted_classifier.network_, searcher_args=None).fit(*data, time_limit=20)
    clf.final_fit(*data, *data, time_limit=3, retrain=True, trainer_args={"epochs": 1, "lr": 0.03})
    recipe = clf.load_searcher().trials[-1].proposal.recipe
    assert (recipe.freeze_norms, recipe.layers, recipe.optimizer) == (False, "all", "muon")


def test_given_network_is_kept_without_any_time(fitted_classifier: ImageClassifier, data: Data, tmp_path: Path) -> None:
    before = fitted_classifier.network_
    clf = ImageClassifier(tmp_path / "run", initial_networks=[before], random_state=0)
    with pytest.warns(UserWarning, match="too short to score"):
        clf.fit(*data, time_limit=1e-6)
    assert np.mean(clf.predict(data[0]) == data[1]) > 0.9


def test_rows_have_no_normalization(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="normalization is for images, sequences and volumes, not for rows"):
        ImageClassifier(tmp_path / "run", normalization=(0, 1)).fit(np.zeros((60, 5)), np.arange(60) % 2)


def test_from_module_does_not_depend_on_default_dtype() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    torch.set_default_dtype(torch.float64)
    try:
        network = from_module(module, (1, 6, 6))
    finally:
        torch.set_default_dtype(torch.float32)
    assert network.graph == from_module(module, (1, 6, 6)).graph
