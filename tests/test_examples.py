"""The examples that nothing else runs."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from morphnas.graph import cnn
from morphnas.search import Space
from tests.contracts import SpaceContract

CUSTOM = runpy.run_path(str(Path(__file__).parent.parent / "examples" / "custom.py"))


class TestSpaceOfOnesOwn(SpaceContract):
    @pytest.fixture
    def space(self) -> Space:
        space: Space = CUSTOM["Fives"]((cnn((2, 8, 8), 3, width=4), cnn((2, 8, 8), 3, width=4, depth=1)))
        return space


@pytest.mark.slow
def test_a_searcher_and_a_space_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    CUSTOM["main"](["--time-limit", "20"])
    said = capsys.readouterr().out
    assert "deeper" in said
    assert "wider" not in said
    assert float(said.split()[-1].rstrip("%")) > 80
