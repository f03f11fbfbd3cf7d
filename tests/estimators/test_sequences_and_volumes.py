"""Sequences and volumes: examples with one and three axes, with and without channels."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, TensorDataset

import morphnas
from morphnas import ImageClassifier, RunError, examine
from morphnas.estimators.inputs import Preprocessing
from morphnas.estimators.sources import Source

RNG = np.random.default_rng(0)
SMALL: dict[str, Any] = {"default_model_width": 8, "trainer_args": {"epochs": 6}}
Options = dict[str, Any]


def waves(n: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Noisy sine waves (n, 32) of random phase; the class is one of three frequencies."""
    y = np.arange(n) % 3
    phases = 2 * np.pi * RNG.random((n, 1))
    cycles = np.array([2, 4, 7])[y][:, None] * np.arange(32) / 32
    return np.sin(2 * np.pi * cycles + phases) + 0.3 * RNG.normal(size=(n, 32)), y


def volumes(n: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Noise (n, 6, 5, 4), brighter in one of three layers along the depth: the class."""
    y = np.arange(n) % 3
    x = RNG.normal(size=(n, 6, 5, 4))
    for i, label in enumerate(y):
        x[i, 2 * label : 2 * label + 2] += 1.0
    return x, y


def inferred(x: Any, image_shape: Any = None, image_size: Any = None, axes: int | None = None) -> Preprocessing:
    return Preprocessing.infer(Source.of(x, "x"), image_shape, image_size, axes)


@pytest.mark.parametrize(
    ("example_shape", "options", "shape"),
    [
        ((32,), {"axes": 1}, (1, 32)),
        ((32, 2), {"axes": 1}, (2, 32)),
        ((64,), {"axes": 1, "image_shape": (32, 2)}, (2, 32)),
        ((6, 5, 4), {"axes": 3}, (1, 6, 5, 4)),
        ((6, 5, 4, 2), {"axes": 3}, (2, 6, 5, 4)),
        ((6, 5, 4, 2), {}, (2, 6, 5, 4)),
        ((240,), {"axes": 3, "image_shape": (6, 5, 4, 2)}, (2, 6, 5, 4)),
        ((6, 5), {"axes": 2}, (1, 6, 5)),
        ((6, 5, 3), {"axes": 2}, (3, 6, 5)),
        ((36,), {"axes": 2, "image_shape": (6, 6)}, (1, 6, 6)),
    ],
)
def test_preprocessing_moves_channels_first(
    example_shape: tuple[int, ...], options: Options, shape: tuple[int, ...]
) -> None:
    x = RNG.normal(size=(7, *example_shape))
    preprocessing = inferred(x, **options)
    assert preprocessing.shape == shape
    stored = {"given": list(preprocessing.given), "shape": list(preprocessing.shape)}
    assert Preprocessing.from_json(stored) == preprocessing
    converted = preprocessing(Source.of(x, "x")).numpy()
    unflattened = x.reshape(7, *options.get("image_shape", example_shape))
    expected = unflattened[:, None] if unflattened.ndim == len(shape) else np.moveaxis(unflattened, -1, 1)
    assert converted == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("example_shape", "options", "message"),
    [
        ((6, 5, 4), {"axes": 1}, r"sequences have the shape \(length,\), or one more axis .* has \(6, 5, 4\)"),
        ((6, 5), {"axes": 3}, "volumes have the shape"),
        ((36,), {"axes": 2}, r"its shape is \(7, 36\)"),
        ((6, 5, 4, 2, 2), {}, "its shape is"),
        ((6, 5, 4, 2), {"axes": 2}, "its shape is"),
        ((64,), {"axes": 1, "image_shape": (32, 3)}, r"has \(64,\), not \(32, 3\)"),
        ((32, 2), {"axes": 1, "image_size": 16}, "only images are resized"),
        ((64,), {"axes": 1, "image_shape": 64}, "image_shape must be .* in whole numbers, not 64"),
        ((64,), {"image_shape": 64}, "image_shape must be .* in whole numbers, not 64"),
        ((64,), {"axes": 1, "image_shape": (32, 2.0)}, "image_shape must be"),
        ((6, 5), {"axes": 4}, "axes must be None, 1"),
        ((6, 5), {"axes": True}, "axes must be"),
        ((6, 5), {"axes": "1"}, "axes must be"),
    ],
)
def test_preprocessing_rejects_unsuitable_axes_and_shapes(
    example_shape: tuple[int, ...], options: Options, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        inferred(RNG.normal(size=(7, *example_shape)), **options)


def test_sequences_of_different_lengths_are_rejected() -> None:
    with pytest.raises(ValueError, match="sequences in x must all have the same shape"):
        inferred([RNG.normal(size=(30 + i % 2, 2)) for i in range(7)], axes=1)


def test_classifier_of_sequences(tmp_path: Path) -> None:
    x, y = waves(400)
    classifier = ImageClassifier(tmp_path / "run", axes=1, max_trials=1, random_state=0, searcher_args=SMALL)
    classifier.fit(x[:300], y[:300], time_limit=4)
    assert classifier.evaluate(x[300:], y[300:]) > 0.8
    assert morphnas.load(tmp_path / "run").evaluate(x[300:], y[300:]) == classifier.evaluate(x[300:], y[300:])
    with pytest.raises(ValueError, match="is expecting 32"):
        classifier.predict(x[:3, 1:])
    with pytest.raises(RunError, match="axes was 1 and is 2"):
        ImageClassifier(tmp_path / "run", axes=2, resume=True, random_state=0, searcher_args=SMALL).fit(
            x.reshape(400, 4, 8), y, time_limit=5
        )


@pytest.mark.slow
def test_classifier_of_volumes_with_export_and_report(tmp_path: Path) -> None:
    x, y = volumes(300)
    classifier = ImageClassifier(tmp_path / "run", axes=3, max_trials=1, random_state=0, searcher_args=SMALL)
    classifier.fit(x[:240], y[:240], time_limit=4)
    assert classifier.evaluate(x[240:], y[240:]) > 0.8
    morphnas.export(classifier, tmp_path / "net.py")
    with torch.no_grad():
        logits = runpy.run_path(str(tmp_path / "net.py"))["load"]()(torch.from_numpy(x[240:])[:, None])
    assert logits.softmax(1).numpy() == pytest.approx(classifier.predict_proba(x[240:]), abs=1e-5)
    assert "240 examples of 6 x 5 x 4" in morphnas.write_report(classifier.path_).read_text()


@pytest.mark.parametrize(("axes", "shape"), [(1, (2, 16)), (None, (2, 3, 4, 5)), (3, (2, 3, 4, 5)), (3, (3, 4, 5))])
def test_tensors_are_read_with_channels_first(axes: int | None, shape: tuple[int, ...]) -> None:
    x = torch.randn(60, *shape)
    dataset = TensorDataset(x, torch.arange(60) % 3)
    channels_last = x if len(shape) == axes else x.movedim(1, -1)
    expected = examine(channels_last.numpy(), np.arange(60) % 3, axes=axes).to_json() | {"seconds": 0}
    for arguments in (
        (dataset,),
        (DataLoader(dataset, batch_size=7),),
        (x, dataset.tensors[1]),
        (list(x), dataset.tensors[1]),
    ):
        assert examine(*arguments, axes=axes).to_json() | {"seconds": 0} == expected
