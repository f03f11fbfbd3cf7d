"""The deadline of a job: created once at the top, passed down, and checked in every batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

POLL_SECONDS = 0.5
"""Seconds between checks for a stop request while waiting for something else."""


class OutOfTime(Exception):
    """The deadline passed before there was a result."""


class Stop:
    """A flag that requests the work to end now, for this process only: executors pass it on to their workers.

    requested: whether the work is to end.
    """

    def __init__(self) -> None:
        self.requested = False


@dataclass(frozen=True)
class Deadline:
    """A point in time on a clock, which passes at once when `stop` is requested.

    It is sent to other processes as `left`, the seconds that remain, since their clocks differ.
    """

    at: float
    clock: Callable[[], float] = time.monotonic
    stop: Stop | None = None

    @classmethod
    def after(cls, seconds: float, clock: Callable[[], float] = time.monotonic, stop: Stop | None = None) -> Self:
        return cls(clock() + seconds, clock, stop)

    @property
    def stopped(self) -> bool:
        """Whether a stop was requested."""
        return self.stop is not None and self.stop.requested

    @property
    def left(self) -> float:
        """Seconds that remain; 0 once it has passed."""
        return 0.0 if self.stopped else max(0.0, self.at - self.clock())

    @property
    def passed(self) -> bool:
        return self.stopped or self.clock() >= self.at

    def earlier(self, seconds: float) -> Deadline:
        """The deadline `seconds` before this one."""
        return replace(self, at=self.at - seconds)

    def with_stop(self, stop: Stop | None) -> Deadline:
        """This deadline with another stop flag; None: it passes by the clock alone."""
        return replace(self, stop=stop)


NEVER = Deadline(math.inf)
"""A deadline that never passes."""
