"""The examples that no other test runs."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from morphnas.graph import cnn
from morphnas.search import Space
from tests.contracts import SpaceContract

EXAMPLES = Path(__file__).parent.parent / "examples"
CUSTOM = runpy.run_path(str(EXAMPLES / "custom.py"))
OWN_MORPH = runpy.run_path(str(EXAMPLES / "own_morph.py"))


class TestUserDefinedSpace(SpaceContract):
    @pytest.fixture
    def space(self) -> Space:
        space: Space = CUSTOM["Fives"]((cnn((2, 8, 8), 3, width=4), cnn((2, 8, 8), 3, width=4, depth=1)))
        return space


@pytest.mark.slow
def test_user_defined_searcher_and_space(capsys: pytest.CaptureFixture[str]) -> None:
    CUSTOM["main"](["--time-limit", "20"])
    output = capsys.readouterr().out
    assert "deeper" in output
    assert "wider" not in output
    assert float(output.split()[-1].rstrip("%")) > 80


@pytest.mark.slow
def test_user_defined_morph(capsys: pytest.CaptureFixture[str]) -> None:
    OWN_MORPH["main"](["--time-limit", "60"])
    output = capsys.readouterr().out
    assert "spread" in output
    assert float(output.split()[-1].rstrip("%")) > 80
