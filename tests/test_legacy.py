"""Scripts for AutoKeras 0.x, of which only the import is changed."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError

import morphnas
import morphnas.legacy as autokeras
from morphnas import RunError
from tests.estimators.conftest import Data, stripes

LABELS = np.array(["lying", "standing", "missing"])
TINY = {"trainer_args": {"max_iter_num": 4, "max_no_improvement_num": 2}, "default_model_width": 4}


@pytest.fixture(scope="module")
def data() -> Data:
    x, y = stripes(150)
    return x[..., None], LABELS[y]


@pytest.fixture(scope="module")
def run(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run made by a script for AutoKeras."""
    path = Path(tmp_path_factory.mktemp("runs")) / "run"
    clf = autokeras.ImageClassifier(path=str(path), searcher_args=TINY, search_type=autokeras.BayesianSearcher)
    clf.fit(*data, time_limit=4)
    clf.final_fit(*data, *data, {"max_iter_num": 3}, retrain=False, time_limit=2)
    return path


def test_classifier_script(run: Path, data: Data) -> None:
    clf = autokeras.pickle_from_file(run)
    assert clf.evaluate(*data) > 0.5
    assert set(clf.predict(data[0])) <= set(LABELS)
    best = clf.cnn.searcher.get_best_model_id()
    assert clf.cnn.searcher.get_metric_value_by_id(best) == clf.load_searcher().get_metric_value_by_id(best)
    raw = torch.from_numpy(data[0]).movedim(-1, 1)
    with torch.no_grad():
        probabilities = clf.cnn.best_model.produce_model()(raw).softmax(1)
    assert np.allclose(probabilities, clf.predict_proba(data[0]), atol=1e-5)


def test_exported_model_predicts_the_same(run: Path, data: Data, tmp_path: Path) -> None:
    clf = autokeras.pickle_from_file(run)
    clf.export_autokeras_model(tmp_path / "model.h5")
    clf.export_autokeras_model(tmp_path / "model.h5")
    for found in (autokeras.pickle_from_file(tmp_path / "model.h5"), morphnas.load(tmp_path / "model.h5")):
        assert np.array_equal(found.predict_proba(data[0]), clf.predict_proba(data[0]))
    loaded = autokeras.pickle_from_file(tmp_path / "model.h5")
    loaded.export_autokeras_model(tmp_path / "copies" / "second")
    assert {path.name for path in (tmp_path / "copies").iterdir()} == {"second"}
    assert loaded.cnn.best_model.graph == clf.cnn.best_model.graph
    with pytest.raises(RunError, match="holds no run"):
        _ = loaded.cnn.searcher
    with pytest.raises(NotImplementedError, match=r"morphnas\.export\(clf, file\)"):
        clf.export_keras_model("model.h5")
    with pytest.raises(RunError, match="holds no run"):
        autokeras.pickle_from_file(tmp_path / "nowhere")


def test_export_overwrites_only_exports(run: Path, tmp_path: Path) -> None:
    clf = autokeras.pickle_from_file(run)
    with pytest.raises(RunError, match="holds a run: export to another place"):
        clf.export_autokeras_model(run)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("mine")
    for existing in ("file", "folder"):
        with pytest.raises(FileExistsError, match="exists already and is not an export"):
            clf.export_autokeras_model(tmp_path / existing)
    (tmp_path / "old" / "model").mkdir(parents=True)
    (tmp_path / "old" / "model" / "old_file").touch()
    clf.export_autokeras_model(tmp_path / "old")
    assert not (tmp_path / "old" / "model" / "old_file").exists()
    with pytest.raises(NotFittedError, match="Call 'fit' first"):
        autokeras.ImageClassifier().export_autokeras_model(tmp_path / "new")


def test_pickle_files_of_tutorials_load_the_run(run: Path) -> None:
    assert autokeras.pickle_from_file(run / "module").searcher.history == morphnas.load_run(run).history
    assert autokeras.pickle_from_file(run / "classifier").path_ == str(run)


@pytest.mark.parametrize("suffix", ["", ".pdf"])
def test_to_pdf_draws_network(run: Path, tmp_path: Path, suffix: str) -> None:
    model = autokeras.pickle_from_file(run).cnn.best_model
    assert autokeras.to_pdf(model, str(tmp_path / "0") + suffix).read_bytes().startswith(b"%PDF")
    assert (tmp_path / "0.pdf").exists()


def test_cnn_module_script(data: Data, tmp_path: Path) -> None:
    x, labels = data
    other_images, other_labels = stripes(60, seed=1)
    encoder = autokeras.OneHotEncoder()
    encoder.fit([*labels, "not present"])  # the third in sorted order
    assert encoder.n_classes == 4
    transformer = autokeras.ImageDataTransformer(x, augment=True)
    train = transformer.transform_train(x, encoder.transform(labels), batch_size=50)
    test = transformer.transform_test(other_images[..., None], encoder.transform(LABELS[other_labels]))
    module = autokeras.CnnModule(
        autokeras.classification_loss, autokeras.Accuracy, searcher_args=TINY, path=tmp_path / "run"
    )
    module.fit(encoder.n_classes, x.shape, train, test, time_limit=6)
    module.final_fit(train, test, trainer_args={"max_iter_num": 2})
    outputs = module.predict(transformer.transform_test(x))
    assert outputs.shape == (150, 4)
    net = module.best_model.produce_model()
    with torch.no_grad():
        logits = torch.cat([net(batch) for (batch,) in transformer.transform_test(x)])
    assert np.allclose(logits.log_softmax(1), outputs[:, [0, 1, 3]], atol=1e-4)
    assert autokeras.Accuracy.compute(outputs, encoder.transform(labels)) > 0.5
    assert autokeras.Accuracy.compute(outputs, encoder.transform(labels)) == (
        (encoder.inverse_transform(outputs) == labels).mean()
    )
    assert np.allclose(np.exp(outputs).sum(1), 1)
    assert "not present" not in encoder.inverse_transform(outputs), "no example was of this class"
    assert module.searcher.history
    assert module.best_model.graph.parameters > 0


def test_mlp_module_regression_script() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 2, 3)).astype(np.float32)
    y = x.reshape(200, 6)[:, :2] * [1, 10]
    transformer = autokeras.DataTransformerMlp(x)
    loader = transformer.transform_train(x, y)
    module = autokeras.MlpModule(autokeras.regression_loss, autokeras.MSE)
    module.fit(2, x.shape, loader, loader, time_limit=4)
    outputs = module.predict(transformer.transform_test(x))
    assert outputs.shape == y.shape
    assert autokeras.MSE.compute(outputs, y) < 5 < y.var()


def test_unfitted_encoder_raises() -> None:
    with pytest.raises(NotFittedError):
        autokeras.OneHotEncoder().transform([1])


def test_losses_and_metrics_have_expected_values() -> None:
    outputs, target = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1, 0], [1, 0]])
    probabilities = outputs.softmax(1)[:, 0]
    assert autokeras.classification_loss(outputs, target).item() == pytest.approx(-probabilities.log().mean().item())
    assert autokeras.regression_loss(outputs, target).item() == pytest.approx((1 + 0 + 1 + 1) / 4)
    assert autokeras.MSE.compute(outputs, target) == pytest.approx(0.75)
    assert autokeras.Accuracy.compute(outputs, target) == autokeras.Accuracy.evaluate(outputs, target) == 0.5
    assert autokeras.Accuracy.higher_better()
    assert not autokeras.MSE.higher_better()


@pytest.mark.parametrize(("name", "axes"), [("1D", 1), ("3D", 3)])
def test_1d_and_3d_estimators(name: str, axes: int) -> None:
    for kind in ("Classifier", "Regressor"):
        clf = getattr(autokeras, f"Image{kind}{name}")(verbose=True)
        assert (clf.axes, clf.augment, clf.verbose) == (axes, False, True)
        assert isinstance(clf, getattr(morphnas, f"Image{kind}"))


def test_import_error_of_missing_name_explains_it() -> None:
    for name, explanation in autokeras._ELSEWHERE.items():
        message = f"{name} is not among the names of AutoKeras that morphnas has: {explanation}"
        with pytest.raises(ImportError, match=f"^{re.escape(message)}$"):
            getattr(autokeras, name)
    with pytest.raises(ImportError, match="cannot import name 'Nothing'"):
        exec("from morphnas.legacy import Nothing")
    assert not hasattr(autokeras, "__wrapped__")
    for name in autokeras.__all__:
        assert getattr(autokeras, name) is not None


def test_cnn_of_unfitted_classifier_raises() -> None:
    with pytest.raises(NotFittedError, match="not fitted yet"):
        _ = autokeras.ImageClassifier().cnn.searcher


@pytest.mark.parametrize("kind", [autokeras.ImageClassifier, autokeras.ImageRegressor])
def test_error_of_missing_attribute_explains_it(kind: Any) -> None:
    for name in ("data_transformer", "resize_shape", "save_searcher", "y_encoder"):
        with pytest.raises(AttributeError, match=f"{kind.__name__} of morphnas.legacy lacks this attribute of AutoK"):
            getattr(kind(), name)
    none: Any = kind().path
    with pytest.raises(ValueError, match=r"not None; the folder of a fit without path is clf\.path_"):
        autokeras.visualize(none)
    with pytest.raises(ValueError, match="expected the path of a folder or file, not None"):
        autokeras.pickle_from_file(none)


def test_names_in_import_errors_exist() -> None:
    for message in autokeras._ELSEWHERE.values():
        for word in message.replace("(...)", "").replace(",", " ").replace("[", " ").replace("]", " ").split():
            if word.startswith("morphnas."):
                module, _, name = word.rpartition(".")
                assert hasattr(importlib.import_module(module), name) or importlib.import_module(word)


def test_timeout_error_suggests_time_limit() -> None:
    with pytest.raises(ValueError, match=r"unknown \['timeout'\].*; fit and final_fit take a time_limit"):
        autokeras.ImageClassifier(searcher_args={"trainer_args": {"timeout": 60}}).fit(*stripes(60), time_limit=5)


def _batches(*arrays: Any) -> Any:
    return [tuple(torch.as_tensor(array) for array in arrays)]


X, ONE_HOT = np.zeros((9, 1, 6, 6), dtype=np.float32), np.eye(3, dtype=np.float32)[[0, 1, 2] * 3]


@pytest.mark.parametrize(
    ("outputs", "shape", "loader", "message"),
    [
        (3, (9, 6, 6, 1), [], "train_data holds no examples"),
        (3, (9, 6, 6, 1), _batches(X), "train_data must hold batches of two"),
        (4, (9, 6, 6, 1), _batches(X, ONE_HOT), r"train_data must hold targets \(n, 4\), not \(9, 3\)"),
        (3, (9, 6, 6, 1), _batches(X, ONE_HOT.argmax(1)), r"train_data must hold targets \(n, 3\), not \(9,\)"),
        (3, (9, 6, 6, 1), _batches(X, ONE_HOT * 2), "must hold one-hot targets"),
        (3, (9, 6, 6, 1), _batches(X, ONE_HOT * 0), "must hold one-hot targets"),
        (3, (9, 1, 6, 6), _batches(X, ONE_HOT), "input_shape is .* but channels last train_data are"),
        (3, None, _batches(X, ONE_HOT), "input_shape is None, but"),
        (3, (9, 6, 6, 1), 5, "train_data must be a DataLoader, or a list of batches, not 5"),
        (3, (9, 6, 6, 1), _batches(X, ONE_HOT) + _batches(X[:, :, 1:], ONE_HOT), "must hold examples of one shape"),
        (3, (9, 36), _batches(X.reshape(9, 36), ONE_HOT), "train_data holds rows, .*: MlpModule is for these"),
    ],
)
def test_module_refuses_inconsistent_data(outputs: int, shape: Any, loader: Any, message: str) -> None:
    module = autokeras.CnnModule(autokeras.classification_loss, autokeras.Accuracy)
    with pytest.raises(ValueError, match=message):
        module.fit(outputs, shape, loader, loader, time_limit=5)
    with pytest.raises(NotFittedError, match="This CnnModule instance is not fitted yet"):
        module.predict(_batches(X))


class ProbabilityError:
    """An AutoKeras metric: mean absolute difference of probabilities from the one-hot targets."""

    @staticmethod
    def higher_better() -> bool:
        return False

    @staticmethod
    def compute(prediction: Any, target: Any) -> float:
        assert prediction.shape == target.shape
        return float(np.abs(np.exp(prediction) - target).mean())


@pytest.mark.parametrize(
    ("loss", "metric", "message"),
    [
        (autokeras.classification_loss, autokeras.MSE, "must be classification_loss and Accuracy, or"),
        (autokeras.regression_loss, autokeras.Accuracy, "must be classification_loss and Accuracy, or"),
        (print, ProbabilityError, r"loss and metric must be .* or one of them with one of your own"),
        ([], autokeras.MSE, "loss must be a function"),
        (autokeras.regression_loss, print, "metric must have higher_better"),
    ],
)
def test_invalid_loss_or_metric_is_refused(loss: Any, metric: Any, message: str) -> None:
    for module in (autokeras.CnnModule, autokeras.MlpModule):
        with pytest.raises(ValueError, match=message):
            module(loss, metric)


def test_module_takes_user_defined_loss_or_metric(tmp_path: Path) -> None:
    x, y = stripes(120)
    encoder = autokeras.OneHotEncoder()
    encoder.fit(y)
    batches = autokeras.DataTransformerMlp(x).transform_train(x, encoder.transform(y), batch_size=60)
    train, test = [[batch] for batch in batches]

    def brier(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (outputs.softmax(1) - target).square().mean()

    for loss, metric in ((brier, autokeras.Accuracy), (autokeras.classification_loss, ProbabilityError)):
        path = tmp_path / metric.__name__
        module = autokeras.MlpModule(loss, metric, {"trainer_args": {"max_iter_num": 3}}, path)
        module.fit(3, x.shape, train, test, time_limit=3)
        best = module.searcher.history[0]
        assert (best["loss"] is None) == (metric is ProbabilityError)
        assert metric is not ProbabilityError or -1 < best["metric_value"] < 0
        assert autokeras.Accuracy.compute(module.predict(train), encoder.transform(y[:60])) > 0.5


@pytest.mark.parametrize("retrain", [False, True])
def test_retrain_is_passed_to_estimator(run: Path, monkeypatch: pytest.MonkeyPatch, retrain: bool) -> None:
    passed: list[Any] = []
    monkeypatch.setattr(autokeras.ImageClassifier, "final_fit", lambda _, *arguments: passed.append(arguments[-2:]))
    module = autokeras.CnnModule(autokeras.classification_loss, autokeras.Accuracy)
    module._estimator, module.n_output_node = autokeras.pickle_from_file(run), 3
    batches = [(torch.zeros(6, 1, 6, 6), torch.eye(3).repeat(2, 1))]
    module.final_fit(batches, batches, {"lr": 0.1}, retrain)
    assert passed == [({"lr": 0.1}, retrain)]
