"""Where trials run, behind the shape of `concurrent.futures`."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol


class Executor(Protocol):
    """Runs functions. workers: how many at a time."""

    @property
    def workers(self) -> int: ...

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        """Begin ``fn(*args)``; the future has its result, or the exception that it ended with."""
        ...

    def shutdown(self) -> None:
        """Cancel what has not begun and let the workers go. May be called twice."""
        ...


class SerialExecutor:
    """Runs each function in this process, before `submit` returns. Ctrl-C comes through to the caller."""

    workers = 1

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self) -> None:
        pass
