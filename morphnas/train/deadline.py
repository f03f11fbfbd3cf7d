"""The one deadline of a job: made once at the top, handed down, looked at in every batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self


class OutOfTime(Exception):
    """The deadline came before there was a result."""


@dataclass(frozen=True)
class Deadline:
    """A moment on a clock. Sent to another process as `left`, the seconds that remain."""

    at: float
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def after(cls, seconds: float, clock: Callable[[], float] = time.monotonic) -> Self:
        return cls(clock() + seconds, clock)

    @property
    def left(self) -> float:
        """Seconds until then, 0 afterwards."""
        return max(0.0, self.at - self.clock())

    @property
    def passed(self) -> bool:
        return self.clock() >= self.at

    def earlier(self, seconds: float) -> Deadline:
        """The deadline `seconds` before this one."""
        return Deadline(self.at - seconds, self.clock)


NEVER = Deadline(math.inf)
"""A deadline that does not come."""
