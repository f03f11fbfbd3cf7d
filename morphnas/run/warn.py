"""Warnings that point at the line of the user's code that called the library."""

from __future__ import annotations

import contextlib
import sys
import warnings
from pathlib import Path

_INTERNAL = (str(Path(__file__).parents[1]), contextlib.__file__)


def warn(message: str) -> None:
    """Issue a UserWarning at the innermost frame outside this library."""
    level, frame = 1, sys._getframe()  # noqa: SLF001  # as warnings itself does
    while frame is not None and frame.f_code.co_filename.startswith(_INTERNAL):
        level, frame = level + 1, frame.f_back  # type: ignore[assignment]  # which may be None
    warnings.warn(message, stacklevel=level)
