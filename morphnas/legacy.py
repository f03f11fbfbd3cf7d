"""Names of AutoKeras 0.x that `morphnas` itself lacks, so that its scripts run with their imports changed. All of them
are in this module, whatever module of AutoKeras they were in.

>>> from morphnas.legacy import ImageClassifier  # was: from autokeras.image.image_supervised import ImageClassifier
>>> ImageClassifier(verbose=True).fit(x_train, y_train, time_limit=600)  # doctest: +SKIP

They behave as morphnas does: a folder that holds a run is only overwritten on request, time limits are kept, final
trainings do not use the test set for early stopping, and nothing is pickled. Names without a counterpart raise an
ImportError that says what to use instead.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, NoReturn, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score, mean_squared_error
from sklearn.preprocessing import LabelEncoder
from torch import Tensor, fx
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from morphnas import estimators
from morphnas.estimators.files import load_image_dataset
from morphnas.graph import Graph, Network
from morphnas.report import draw, visualize
from morphnas.run.files import RunError
from morphnas.run.store import Run, holds_run, load_run, user_path
from morphnas.search import BayesianSearcher, GreedySearcher

__all__ = [
    "MSE", "Accuracy", "BayesianSearcher", "CnnModule", "DataTransformerMlp", "GreedySearcher", "ImageClassifier",
    "ImageClassifier1D", "ImageClassifier3D", "ImageDataTransformer", "ImageRegressor", "ImageRegressor1D",
    "ImageRegressor3D", "MlpModule", "OneHotEncoder", "classification_loss", "load_image_dataset",
    "pickle_from_file", "regression_loss", "to_pdf", "visualize",
]  # fmt: skip

_PRETRAINED = "morphnas has no pretrained networks"
_FLAT = "all names are in morphnas.legacy itself"
_ELSEWHERE = {
    "CnnGenerator": "morphnas.graph.cnn builds such networks",
    "DenseNetGenerator": "morphnas.graph.densenet builds such networks",
    "FaceDetector": _PRETRAINED,
    "ModelTrainer": "CnnModule and MlpModule, or ImageClassifier(max_trials=1), train networks",
    "ObjectDetector": _PRETRAINED,
    "PortableImageSupervised": "pickle_from_file(path) gives it for what export_autokeras_model(path) has written",
    "ResNetGenerator": "morphnas.graph.resnet builds such networks",
    "SentimentAnalysis": _PRETRAINED,
    "TopicClassifier": _PRETRAINED,
    "VoiceGenerator": _PRETRAINED,
    "VoiceRecognizer": _PRETRAINED,
    **dict.fromkeys(("backend", "constant", "image", "nn", "preprocessor", "pretrained", "search", "utils"), _FLAT),
    **dict.fromkeys(("read_csv_file", "read_tsv_file", "ensure_dir"), "use pandas and pathlib"),
    "Constant": "max_trials=, limits= and searcher_args= of ImageClassifier set what its fields did",
    "DCGAN": "morphnas does not generate images",
    "MlpGenerator": "morphnas.graph.mlp builds such networks",
    "PortableImageClassifier": "pickle_from_file(path) gives it for what export_autokeras_model(path) has written",
    "PortableImageRegressor": "pickle_from_file(path) gives it for what export_autokeras_model(path) has written",
    "PredefinedDensenet": "ImageClassifier(initial_networks=[morphnas.graph.densenet(...)], max_trials=1) trains one",
    "PredefinedResnet": "ImageClassifier(initial_networks=[morphnas.graph.resnet(...)], max_trials=1) trains one",
    "Searcher": "a searcher is a function of the trials so far, see morphnas.search and examples/custom.py",
    "TabularClassifier": "ImageClassifier takes rows of numbers, (n, features)",
    "TabularRegressor": "ImageRegressor takes rows of numbers, (n, features)",
    "TextClassifier": "morphnas does not read text",
    "TextRegressor": "morphnas does not read text",
    "binary_classification_loss": "use classification_loss with two outputs, or ImageClassifier with multi-label y",
    "pickle_to_file": "nothing is pickled: a run is in its folder from the start, see export_autokeras_model",
}


def __getattr__(name: str) -> Any:
    if name in _ELSEWHERE:
        raise ImportError(f"{name} is not among the names of AutoKeras that morphnas has: {_ELSEWHERE[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# -- estimators


@dataclass(frozen=True)
class BestModel:
    """The network that makes the predictions."""

    graph: Graph
    produce_model: Callable[[], fx.GraphModule]
    """Returns it as a plain PyTorch module, for raw examples, channels first; see `ImageClassifier.to_module`."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"a BestModel has no {name}: its layers are graph.nodes, as PyTorch it is produce_model()")


def _check_fitted(estimator: Any, owner: Any) -> None:
    """NotFittedError, which names the class of the owner, if the estimator is not fitted."""
    if not hasattr(estimator, "network_"):
        raise NotFittedError(f"This {type(owner).__name__} instance is not fitted yet. Call 'fit' first")


class _Searched:
    """The results of an estimator, by their names in AutoKeras."""

    def __init__(self, estimator: estimators.ImageClassifier | estimators.ImageRegressor) -> None:
        self._estimator = estimator

    @property
    def _fitted(self) -> estimators.ImageClassifier | estimators.ImageRegressor:
        _check_fitted(self._estimator, self)
        return self._estimator

    @property
    def searcher(self) -> Run:
        """The networks tried. RunError for an export, which has none."""
        return self._fitted.load_searcher()

    @property
    def best_model(self) -> BestModel:
        """The network that makes the predictions; after `final_fit`, the one that it has trained."""
        return BestModel(self._fitted.network_.graph, self._fitted.to_module)


@dataclass(frozen=True)
class _Removed:
    """An attribute of AutoKeras that does not exist here. instead: what to use."""

    instead: str

    def __get__(self, owner: object, kind: type) -> NoReturn:
        raise AttributeError(f"{kind.__name__} of morphnas.legacy lacks this attribute of AutoKeras: {self.instead}")


class _Exported:
    path_: str
    data_transformer = _Removed("networks normalise their examples themselves")
    resize_shape = _Removed("image_size= is the size that images are resized to")
    save_searcher = _Removed("a run is in its folder, path_, from the start")
    y_encoder = _Removed("classes_ holds the labels")

    @property
    def cnn(self) -> _Searched:
        """Has the attributes `searcher` and `best_model`; NotFittedError before `fit`."""
        _check_fitted(self, self)
        return _Searched(cast("estimators.ImageClassifier", self))

    def export_autokeras_model(self, model_file_name: str | os.PathLike[str]) -> None:
        """Write what prediction needs into a folder of this name, for `pickle_from_file` and `morphnas.load` to read.

        Nothing in it is a pickle. An earlier export there is replaced as a whole; RunError for a folder that holds a
        run, FileExistsError for anything else.
        """
        _check_fitted(self, self)
        folder = user_path(model_file_name)
        if holds_run(folder):
            raise RunError(f"{str(folder)!r} holds a run: export to another place")
        if folder.exists() and not (folder.is_dir() and {path.name for path in folder.iterdir()} <= {"model"}):
            raise FileExistsError(f"{str(folder)!r} exists already and is not an export: choose another name")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".morphnas-") as new:
            shutil.copytree(Path(self.path_) / "model", Path(new) / "new" / "model")
            if folder.exists():
                folder.rename(Path(new) / "old")
            (Path(new) / "new").rename(folder)

    def export_keras_model(self, model_file_name: str | os.PathLike[str]) -> None:
        """Not supported: raises NotImplementedError, which says what to use instead."""
        raise NotImplementedError(
            "morphnas makes PyTorch networks: morphnas.export(clf, file) writes them as .py, .pt2 or .onnx"
        )


class ImageClassifier(_Exported, estimators.ImageClassifier):
    """`morphnas.ImageClassifier`, with the additional attributes of AutoKeras."""


class ImageRegressor(_Exported, estimators.ImageRegressor):
    """`morphnas.ImageRegressor`, with the additional attributes of AutoKeras."""


# functions rather than subclasses, so that scikit-learn can clone the estimators that they return
ImageClassifier1D, ImageClassifier3D = (partial(ImageClassifier, axes=axes, augment=False) for axes in (1, 3))
ImageRegressor1D, ImageRegressor3D = (partial(ImageRegressor, axes=axes, augment=False) for axes in (1, 3))


def pickle_from_file(path: str | os.PathLike[str]) -> Any:
    """The estimator that was exported to a path, or that of a run, ready to predict; RunError if there is none.

    Paths of old scripts: `<run>/module` returns an object with the run as its `searcher`, also while it is searching,
    and `<run>/classifier` the run's estimator.
    """
    path = user_path(path)
    if path.name == "module" and not path.exists():
        return SimpleNamespace(searcher=load_run(path.parent))
    folder = path.parent if path.name == "classifier" and not path.exists() else path
    regressor = isinstance(estimators.load(folder), estimators.ImageRegressor)
    return ImageRegressor.load(folder) if regressor else ImageClassifier.load(folder)


def to_pdf(graph: Graph | Network | BestModel, path: str | os.PathLike[str]) -> Path:
    """Draw a network to `path`, with the suffix .pdf added if it lacks it; see `morphnas.draw`."""
    graph = graph.graph if isinstance(graph, BestModel) else graph
    return draw(graph, path if Path(path).suffix == ".pdf" else f"{os.fspath(path)}.pdf")


# -- modules


def classification_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of logits (n, classes) and one-hot targets (n, classes)."""
    return F.cross_entropy(prediction, target.argmax(1))


def regression_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error."""
    return F.mse_loss(prediction, target.float())


class Accuracy:
    """Share of rows whose largest output is that of the true class."""

    @staticmethod
    def higher_better() -> bool:
        """Whether more of it is better."""
        return True

    @staticmethod
    def compute(prediction: ArrayLike, target: ArrayLike) -> float:
        """prediction: (n, classes). target: (n, classes), one-hot."""
        return float(accuracy_score(np.asarray(target).argmax(1), np.asarray(prediction).argmax(1)))

    evaluate = compute


class MSE:
    """Mean squared error."""

    @staticmethod
    def higher_better() -> bool:
        """Whether more of it is better."""
        return False

    @staticmethod
    def compute(prediction: ArrayLike, target: ArrayLike) -> float:
        """Both (n, k)."""
        return float(mean_squared_error(target, prediction))

    evaluate = compute


class OneHotEncoder:
    """One-hot encoding of labels, (n,) or (n, 1)."""

    def __init__(self) -> None:
        self._labels = LabelEncoder()

    def fit(self, data: ArrayLike) -> None:
        """Learn the set of labels."""
        self._labels.fit(np.ravel(data))

    @property
    def n_classes(self) -> int:
        """Number of labels."""
        return len(self._labels.classes_)

    def transform(self, data: ArrayLike) -> NDArray[np.float32]:
        """(n, classes); ValueError for labels that `fit` did not see."""
        codes: NDArray[np.int64] = self._labels.transform(np.ravel(data))
        return np.eye(self.n_classes, dtype=np.float32)[codes]

    def inverse_transform(self, data: ArrayLike) -> NDArray[Any]:
        """The labels (n,) of the largest entries of rows (n, classes)."""
        labels: NDArray[Any] = self._labels.inverse_transform(np.asarray(data).argmax(1))
        return labels


class DataTransformerMlp:
    """Turns arrays into DataLoaders of rows, with their targets if there are any. It learns nothing from data: networks
    normalise their examples themselves, and trainings decide on augmentation.
    """

    def __init__(self, data: NDArray[Any]) -> None:
        del data

    def transform_train(
        self, data: NDArray[Any], targets: NDArray[Any] | None = None, batch_size: int | None = None
    ) -> DataLoader[Any]:
        """A loader in the order of the data; trainings shuffle it themselves."""
        x = torch.from_numpy(np.ascontiguousarray(self._arrange(np.asarray(data))))
        sets = (x,) if targets is None else (x, torch.from_numpy(np.asarray(targets)))
        return DataLoader(TensorDataset(*sets), batch_size=batch_size or 128)

    transform_test = transform_train

    @staticmethod
    def _arrange(data: NDArray[Any]) -> NDArray[Any]:
        return data.reshape(len(data), -1)


class ImageDataTransformer(DataTransformerMlp):
    """Turns images, (n, ..., channels), into DataLoaders of images with channels first."""

    def __init__(self, data: NDArray[Any], augment: bool | None = None) -> None:
        super().__init__(data)
        del augment

    @staticmethod
    def _arrange(data: NDArray[Any]) -> NDArray[Any]:
        return np.moveaxis(data, -1, 1)


@dataclass(frozen=True)
class _Loss:
    """Adapts an AutoKeras loss to `ImageClassifier` and `ImageRegressor`."""

    loss: Callable[[Tensor, Tensor], Tensor]
    one_hot: bool

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        targets = F.one_hot(y, outputs.shape[1]).to(outputs) if self.one_hot else y
        return self.loss(outputs.reshape(len(y), -1), targets.reshape(len(y), -1))


@dataclass(frozen=True)
class _Metric:
    """Adapts an AutoKeras metric to `ImageClassifier` and `ImageRegressor`, where higher is better. It is computed of
    outputs such as `CnnModule.predict` returns."""

    metric: Any
    one_hot: bool

    @property
    def __name__(self) -> str:
        return str(getattr(self.metric, "__name__", type(self.metric).__name__))

    def __call__(self, estimator: Any, x: Any, y: NDArray[Any], sample_weight: Any = None) -> float:
        if sample_weight is not None:
            raise ValueError("a metric of morphnas.legacy takes no weights")
        targets = np.equal.outer(y, estimator.classes_).astype(np.float32) if self.one_hot else y.reshape(len(y), -1)
        with np.errstate(divide="ignore"):
            outputs = np.log(estimator.predict_proba(x)) if self.one_hot else estimator.predict(x).reshape(len(y), -1)
        value = float(self.metric.compute(outputs, targets))
        return value if self.metric.higher_better() else -value


class CnnModule(_Searched):
    """Searches networks for DataLoaders of images, channels first, with targets (n, k).

    loss: `classification_loss`, of one-hot targets, `regression_loss`, or a function of (outputs, targets). metric:
    `Accuracy`, `MSE`, or a class like these, with `higher_better` and `compute`. At least one of the two must be from
    morphnas.legacy, which determines whether targets are one-hot; else ValueError. searcher_args, path, verbose,
    search_type: see `morphnas.ImageClassifier`.
    """

    _rows: ClassVar[bool] = False

    def __init__(
        self,
        loss: Any,
        metric: Any,
        searcher_args: Mapping[str, Any] | None = None,
        path: str | os.PathLike[str] | None = None,
        verbose: bool = False,
        search_type: Any = None,
    ) -> None:
        classification, regression = (
            loss is own_loss or metric is own_metric
            for own_loss, own_metric in ((classification_loss, Accuracy), (regression_loss, MSE))
        )
        if classification == regression:
            raise ValueError(
                "loss and metric must be classification_loss and Accuracy, or regression_loss and MSE, of "
                f"morphnas.legacy, or one of them with one of your own, not {loss!r:.100} and {metric!r:.100}"
            )
        if not callable(loss):
            raise ValueError(f"loss must be a function of (outputs, targets), not {loss!r:.100}")
        if not all(callable(getattr(metric, name, None)) for name in ("higher_better", "compute")):
            raise ValueError(f"metric must have higher_better() and compute(outputs, targets), not {metric!r:.100}")
        kind = ImageClassifier if classification else ImageRegressor
        estimator = kind(path, verbose, searcher_args=searcher_args, search_type=search_type)
        estimator.loss = None if loss in (classification_loss, regression_loss) else _Loss(loss, classification)
        estimator.metric = None if metric in (Accuracy, MSE) else _Metric(metric, classification)
        super().__init__(estimator)

    def fit(
        self,
        n_output_node: int,
        input_shape: Sequence[int],
        train_data: Iterable[Any],
        test_data: Iterable[Any],
        time_limit: float = 24 * 3600.0,
    ) -> None:
        """Search within `time_limit` seconds, final training included.

        n_output_node: k, the number of classes or of regression targets. input_shape: (n, ..., channels), where n is
        ignored. train_data: the training set. test_data: the validation set, for early stopping, scores and the choice
        of the winner. Both are read into memory once. ValueError if these do not go together.
        """
        self.n_output_node = n_output_node
        x, y = self._read(train_data, "train_data")
        if not self._rows and (not isinstance(input_shape, Sequence) or x.shape[1:] != tuple(input_shape)[1:]):
            raise ValueError(f"input_shape is {input_shape!r:.100}, but channels last train_data are {x.shape}")
        self._estimator.set_params(axes=None if self._rows else x.ndim - 2)
        self._estimator.fit(x, y, time_limit, validation_data=self._read(test_data, "test_data"))

    def final_fit(
        self,
        train_data: Iterable[Any],
        test_data: Iterable[Any],
        trainer_args: Mapping[str, Any] | None = None,
        retrain: bool = False,
    ) -> None:
        """Train the winner longer, with the time limit of the fit; see `morphnas.ImageClassifier.final_fit`."""
        parts = self._read(train_data, "train_data"), self._read(test_data, "test_data")
        self._fitted.final_fit(*parts[0], *parts[1], trainer_args, retrain)

    def predict(self, test_loader: Iterable[Any]) -> NDArray[np.float64]:
        """Outputs (n, k): predicted numbers, or logarithms of probabilities, which are logits."""
        estimator = self._fitted
        x = self._examples(test_loader, "test_loader")[0]
        if not isinstance(estimator, estimators.ImageClassifier):
            return estimator.predict(x).reshape(len(x), -1)
        outputs = np.full((len(x), self.n_output_node), -np.inf)
        with np.errstate(divide="ignore"):
            outputs[:, estimator.classes_] = np.log(estimator.predict_proba(x))
        return outputs

    def _examples(self, loader: Iterable[Any], name: str) -> tuple[NDArray[Any], list[Any]]:
        """x, (n, ..., channels) or (n, d), and the batches."""
        if not isinstance(loader, Iterable):
            raise ValueError(f"{name} must be a DataLoader, or a list of batches, not {loader!r:.100}")
        batches = [batch if isinstance(batch, (list, tuple)) else (batch,) for batch in loader]
        if not batches:
            raise ValueError(f"{name} holds no examples")
        try:
            x = np.concatenate([np.asarray(batch[0]) for batch in batches])
        except ValueError as error:
            raise ValueError(f"{name} must hold examples of one shape: {error}") from None
        if self._rows:
            return x.reshape(len(x), -1), batches
        if x.ndim < 3:
            raise ValueError(f"{name} holds rows, {x.shape}: MlpModule is for these")
        return np.moveaxis(x, 1, -1), batches

    def _read(self, loader: Iterable[Any], name: str) -> tuple[NDArray[Any], NDArray[Any]]:
        """x and y in the layout of the estimators: channels last, and labels instead of one-hot targets."""
        x, batches = self._examples(loader, name)
        if any(len(batch) != 2 for batch in batches):
            raise ValueError(f"{name} must hold batches of two: examples and their targets")
        y = np.concatenate([np.asarray(batch[1]) for batch in batches])
        if y.ndim != 2 or y.shape[1] != self.n_output_node:
            raise ValueError(f"{name} must hold targets (n, {self.n_output_node}), not {y.shape}")
        if not isinstance(self._estimator, ImageClassifier):
            return x, y
        if not ((y == 0) | (y == 1)).all() or not (y.sum(1) == 1).all():
            raise ValueError(f"{name} must hold one-hot targets, as those of OneHotEncoder are")
        return x, y.argmax(1)


class MlpModule(CnnModule):
    """Searches dense networks: examples of any shape are flattened."""

    _rows = True
