"""The error for missing optional dependencies, the extras in setup.py."""

from __future__ import annotations


def extra_missing(what: str, extra: str) -> ImportError:
    """The error to raise if an extra is not installed, with the command that installs it.

    what: states what needs it, such as "trials run on a cluster by Ray".
    """
    return ImportError(f"{what}: pip install -e '.[{extra}]' in your clone of morphnas")
