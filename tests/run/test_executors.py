"""Every executor against its contract."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from morphnas.run.executors import Executor, SerialExecutor
from tests.contracts import ExecutorContract
from tests.run.doubles import Threads


class TestExecutors(ExecutorContract):
    @pytest.fixture(params=[SerialExecutor, Threads])
    def executor(self, request: pytest.FixtureRequest) -> Iterator[Executor]:
        """Threads are a double that the tests of the search use: it has to be like the real ones."""
        made: Executor = request.param()
        yield made
        made.shutdown()


def _interrupted() -> None:
    raise KeyboardInterrupt


def _stopped() -> None:
    raise SystemExit(3)


def test_ctrl_c_comes_through_the_serial_executor() -> None:
    with pytest.raises(KeyboardInterrupt):
        SerialExecutor().submit(_interrupted)
    with pytest.raises(SystemExit):
        SerialExecutor().submit(_stopped)


def test_the_serial_executor_is_done_when_submit_returns() -> None:
    seen: list[int] = []
    for i in range(3):
        assert SerialExecutor().submit(seen.append, i).done()
        assert seen == list(range(i + 1))
