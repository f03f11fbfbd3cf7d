"""The one deadline of a job: made once at the top, handed down, looked at in every batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

POLL = 0.5
"""Seconds between looks at whether a stop is asked for, while somebody is waited for."""


class OutOfTime(Exception):
    """The deadline came before there was a result."""


class Stop:
    """Whether somebody wants the work to end now. Not heard of in other processes: executors tell those."""

    def __init__(self) -> None:
        self.asked = False


@dataclass(frozen=True)
class Deadline:
    """A moment on a clock; with `stop` it comes at once when that is asked for. Sent to another process as `left`, the
    seconds that remain."""

    at: float
    clock: Callable[[], float] = time.monotonic
    stop: Stop | None = None

    @classmethod
    def after(cls, seconds: float, clock: Callable[[], float] = time.monotonic, stop: Stop | None = None) -> Self:
        return cls(clock() + seconds, clock, stop)

    @property
    def stopped(self) -> bool:
        """Whether it came before its time."""
        return self.stop is not None and self.stop.asked

    @property
    def left(self) -> float:
        """Seconds until then, 0 afterwards."""
        return 0.0 if self.stopped else max(0.0, self.at - self.clock())

    @property
    def passed(self) -> bool:
        return self.stopped or self.clock() >= self.at

    def earlier(self, seconds: float) -> Deadline:
        """The deadline `seconds` before this one."""
        return replace(self, at=self.at - seconds)

    def heeding(self, stop: Stop | None) -> Deadline:
        """The deadline that comes when `stop` is asked for, too; None: only in its time."""
        return replace(self, stop=stop)


NEVER = Deadline(math.inf)
"""A deadline that does not come."""
