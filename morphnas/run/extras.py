"""What is said where packages are missing that only some users need: the extras in setup.py."""

from __future__ import annotations


def extra_missing(what: str, extra: str) -> ImportError:
    """The error of what cannot be done without an extra, which says how to install that."""
    return ImportError(f"{what}: pip install -e '.[{extra}]' in your clone of morphnas")
