"""A small data set, and a fitted classifier that is shared by the tests that do not modify it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import morphnas

Data = tuple[NDArray[np.uint8], NDArray[np.int64]]


def stripes(n: int, seed: int = 0, size: int = 6) -> Data:
    """Noisy images (n, size, size) uint8 of horizontal (class 0), vertical (1) or no stripes (2)."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    x = rng.integers(0, 90, (n, size, size))
    for i, label in enumerate(y):
        start = rng.integers(2)
        if label == 0:
            x[i, start::2] += 120
        elif label == 1:
            x[i, :, start::2] += 120
    return x.astype(np.uint8), y


@pytest.fixture(scope="session")
def data() -> Data:
    return stripes(150)


@pytest.fixture(scope="session")
def fitted_classifier(tmp_path_factory: pytest.TempPathFactory, data: Data) -> morphnas.ImageClassifier:
    """A classifier fitted with at most 7 networks, which tests must not modify."""
    path = Path(tmp_path_factory.mktemp("runs")) / "run"
    settings = {"default_model_width": 8, "trainer_args": {"batch_size": 128}}
    limits = {"max_flops": 2_000_000}  # keeps final trainings short
    classifier = morphnas.ImageClassifier(path, searcher_args=settings, limits=limits, max_trials=7, random_state=0)
    return classifier.fit(*data, time_limit=200)  # enough for seven networks on slow machines
