"""Warnings that point at the user's line, however deep inside they come from."""

from __future__ import annotations

import contextlib
import sys
import warnings
from pathlib import Path

_INSIDE = (str(Path(__file__).parents[1]), contextlib.__file__)


def warn(message: str) -> None:
    """A UserWarning at the innermost line that is not the library's."""
    level, frame = 1, sys._getframe()  # noqa: SLF001  # as warnings itself does
    while frame is not None and frame.f_code.co_filename.startswith(_INSIDE):
        level, frame = level + 1, frame.f_back  # type: ignore[assignment]  # which may be None
    warnings.warn(message, stacklevel=level)
