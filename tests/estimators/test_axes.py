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
    turns = np.array([2, 4, 7])[y][:, None] * np.arange(32) / 32
    return np.sin(2 * np.pi * turns + phases) + 0.3 * RNG.normal(size=(n, 32)), y


def blocks(n: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Noise (n, 6, 5, 4), brighter in one of three layers along the depth, which is the class."""
    y = np.arange(n) % 3
    x = RNG.normal(size=(n, 6, 5, 4))
    for i, kind in enumerate(y):
        x[i, 2 * kind : 2 * kind + 2] += 1.0
    return x, y


def found(x: Any, image_shape: Any = None, image_size: Any = None, axes: int | None = None) -> Preprocessing:
    return Preprocessing.infer(Source.of(x, "x"), image_shape, image_size, axes)


@pytest.mark.parametrize(
    ("given", "options", "shape"),
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
def test_channels_come_first_whatever_the_axes(
    given: tuple[int, ...], options: Options, shape: tuple[int, ...]
) -> None:
    x = RNG.normal(size=(7, *given))
    one = found(x, **options)
    assert one.shape == shape
    assert Preprocessing.from_json({"given": list(one.given), "shape": list(one.shape)}) == one
    moved = one(Source.of(x, "x")).numpy()
    whole = x.reshape(7, *options.get("image_shape", given))
    expected = whole[:, None] if whole.ndim == len(shape) else np.moveaxis(whole, -1, 1)
    assert moved == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("given", "options", "words"),
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
def test_what_does_not_have_these_axes_is_refused(given: tuple[int, ...], options: Options, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        found(RNG.normal(size=(7, *given)), **options)


def test_spans_of_several_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"x\[0\] is not an image|must all have the same shape"):
        found([RNG.normal(size=(30 + i % 2, 2)) for i in range(7)], axes=1)


def test_spans_are_learnt_and_told(tmp_path: Path) -> None:
    x, y = waves(400)
    made = ImageClassifier(tmp_path / "run", axes=1, max_trials=1, random_state=0, searcher_args=SMALL)
    made.fit(x[:300], y[:300], time_limit=4)
    assert made.evaluate(x[300:], y[300:]) > 0.8
    assert morphnas.load(tmp_path / "run").evaluate(x[300:], y[300:]) == made.evaluate(x[300:], y[300:])
    with pytest.raises(ValueError, match="is expecting 32"):
        made.predict(x[:3, 1:])
    with pytest.raises(RunError, match="axes was 1 and is 2"):
        ImageClassifier(tmp_path / "run", axes=2, resume=True, random_state=0, searcher_args=SMALL).fit(
            x.reshape(400, 4, 8), y, time_limit=5
        )


@pytest.mark.slow
def test_volumes_are_learnt_told_and_handed_over(tmp_path: Path) -> None:
    x, y = blocks(300)
    made = ImageClassifier(tmp_path / "run", axes=3, max_trials=1, random_state=0, searcher_args=SMALL)
    made.fit(x[:240], y[:240], time_limit=4)
    assert made.evaluate(x[240:], y[240:]) > 0.8
    morphnas.export(made, tmp_path / "net.py")
    with torch.no_grad():
        logits = runpy.run_path(str(tmp_path / "net.py"))["load"]()(torch.from_numpy(x[240:])[:, None])
    assert logits.softmax(1).numpy() == pytest.approx(made.predict_proba(x[240:]), abs=1e-5)
    assert (
        "300 examples of 6 x 5 x 4" in morphnas.write_report(made.path_).read_text()
        or "240 examples of" in (tmp_path / "run" / "report.html").read_text()
    )


@pytest.mark.parametrize(("axes", "shape"), [(1, (2, 16)), (None, (2, 3, 4, 5)), (3, (2, 3, 4, 5)), (3, (3, 4, 5))])
def test_tensors_have_their_channels_first(axes: int | None, shape: tuple[int, ...]) -> None:
    x = torch.randn(60, *shape)
    data = TensorDataset(x, torch.arange(60) % 3)
    last = x if len(shape) == axes else x.movedim(1, -1)
    expected = examine(last.numpy(), np.arange(60) % 3, axes=axes).to_json() | {"seconds": 0}
    for given in ((data,), (DataLoader(data, batch_size=7),), (x, data.tensors[1]), (list(x), data.tensors[1])):
        assert examine(*given, axes=axes).to_json() | {"seconds": 0} == expected
