"""The result of a fit does not depend on the mode of PyTorch, which is restored afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import morphnas
from morphnas import ImageClassifier
from tests.estimators.conftest import stripes

X, Y = stripes(60)
ARGS: dict[str, Any] = {
    "searcher_args": {"default_model_width": 4, "trainer_args": {"epochs": 3, "precision": "float32"}},
    "device": "cpu",
    "random_state": 0,
    "max_trials": 1,
    "refit": False,  # the length of a final training depends on the machine
}


@contextlib.contextmanager
def default_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def default_device_meta() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


MODES: dict[str, Any] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64": default_float64,
    "default device": default_device_meta,
    "device": lambda: torch.device("meta"),
}


def torch_modes() -> tuple[Any, ...]:
    grad = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    return *grad, torch.is_autocast_enabled("cpu"), torch.get_default_dtype(), torch.get_default_device()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> ImageClassifier:
    return ImageClassifier(tmp_path_factory.mktemp("reference") / "run", **ARGS).fit(X, Y, time_limit=30)


@pytest.mark.parametrize("mode", MODES)
def test_fit_does_not_depend_on_the_torch_mode(mode: str, reference: ImageClassifier, tmp_path: Path) -> None:
    before = torch_modes()
    with MODES[mode]():
        inside = torch_modes()
        assert inside != before
        clf = ImageClassifier(tmp_path / "run", **ARGS).fit(X, Y, time_limit=30)
        probabilities = clf.predict_proba(X)
        assert morphnas.load(tmp_path / "run").evaluate(X, Y) == clf.evaluate(X, Y)
        module = clf.to_module()
        morphnas.export(clf, tmp_path / "net.py")
        clf.search_space_summary(X, Y, time_limit=5)
        morphnas.examine(X, Y)
        clf.final_fit(X, Y, trainer_args={"epochs": 1}, time_limit=20)
        assert torch_modes() == inside
    assert torch_modes() == before
    assert np.array_equal(probabilities, reference.predict_proba(X))
    module.train()(torch.from_numpy(X[:, None])).sum().backward()
    assert all(weight.grad is not None and weight.dtype == torch.float32 for weight in module.parameters())


def test_bfloat16_training_does_not_depend_on_autocast(tmp_path: Path) -> None:
    """torch.autocast caches converted weights until the outermost context ends."""
    args: dict[str, Any] = {"default_model_width": 4, "trainer_args": {"epochs": 3, "precision": "bfloat16"}}
    settings = ARGS | {"searcher_args": args}
    reference = ImageClassifier(tmp_path / "reference", **settings).fit(X, Y, time_limit=60)
    with torch.autocast("cpu", torch.bfloat16):
        clf = ImageClassifier(tmp_path / "run", **settings).fit(X, Y, time_limit=60)
    assert np.array_equal(clf.predict_proba(X), reference.predict_proba(X))
    assert not np.allclose(clf.predict_proba(X), clf.predict_proba(X)[:1]), "the network has learnt something"
