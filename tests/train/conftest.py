"""Fixtures for tests of training."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def random_states_unchanged() -> Iterator[None]:
    """Checks that a test leaves the global random states of PyTorch and Python unchanged."""
    before = torch.get_rng_state(), random.getstate()
    yield
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
