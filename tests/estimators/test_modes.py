"""Whatever mode of PyTorch a caller is in, a fit is the same, and the mode is in effect again afterwards."""

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
    "refit": False,  # how long a final training is depends on the machine
}


@contextlib.contextmanager
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def elsewhere() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


MODES: dict[str, Any] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64": double,
    "default device": elsewhere,
    "device": lambda: torch.device("meta"),
}


def state() -> tuple[Any, ...]:
    grad = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    return *grad, torch.is_autocast_enabled("cpu"), torch.get_default_dtype(), torch.get_default_device()


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> ImageClassifier:
    return ImageClassifier(tmp_path_factory.mktemp("usual") / "run", **ARGS).fit(X, Y, time_limit=30)


@pytest.mark.parametrize("mode", MODES)
def test_a_fit_is_the_same_in_every_mode(mode: str, usual: ImageClassifier, tmp_path: Path) -> None:
    before = state()
    with MODES[mode]():
        there = state()
        assert there != before
        found = ImageClassifier(tmp_path / "run", **ARGS).fit(X, Y, time_limit=30)
        said = found.predict_proba(X)
        assert morphnas.load(tmp_path / "run").evaluate(X, Y) == found.evaluate(X, Y)
        module = found.to_module()
        morphnas.export(found, tmp_path / "net.py")
        found.search_space_summary(X, Y, time_limit=5)
        morphnas.examine(X, Y)
        found.final_fit(X, Y, trainer_args={"epochs": 1}, time_limit=20)
        assert state() == there
    assert state() == before
    assert np.array_equal(said, usual.predict_proba(X))
    module.train()(torch.from_numpy(X[:, None])).sum().backward()
    assert all(weight.grad is not None and weight.dtype == torch.float32 for weight in module.parameters())


def test_steps_in_bfloat16_see_the_weights_as_they_are_in_every_mode(tmp_path: Path) -> None:
    """torch.autocast caches cast weights until the outermost context ends."""
    args: dict[str, Any] = {"default_model_width": 4, "trainer_args": {"epochs": 3, "precision": "bfloat16"}}
    settings = ARGS | {"searcher_args": args}
    usual = ImageClassifier(tmp_path / "usual", **settings).fit(X, Y, time_limit=60)
    with torch.autocast("cpu", torch.bfloat16):
        found = ImageClassifier(tmp_path / "run", **settings).fit(X, Y, time_limit=60)
    assert np.array_equal(found.predict_proba(X), usual.predict_proba(X))
    assert not np.allclose(found.predict_proba(X), found.predict_proba(X)[:1]), "it has learned something"
