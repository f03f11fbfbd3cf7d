"""Kinds of ops and of morphs by their tags: a class is known, and can be read from a run, once it is defined."""

from __future__ import annotations

import sys
from dataclasses import Field
from typing import Any


def register(kinds: dict[str, Any], kind: type) -> None:
    """Add a class that has a tag of its own; TypeError where another class has the same one, or it is no identifier.

    A class that is defined once more, as in a notebook, takes the place of the one before.
    """
    tag = vars(kind).get("tag")
    if not isinstance(tag, str):
        return
    if not tag.isidentifier():
        raise TypeError(f"{kind.__qualname__}: the tag must be an identifier, not {tag!r:.100}")
    other = kinds.get(tag, kind)
    if (_home(other), other.__name__) != (_home(kind), kind.__name__):
        raise TypeError(f"{kind.__qualname__}: {other.__module__}.{other.__qualname__} has the tag {tag!r} already")
    kinds[tag] = kind


def _home(kind: type) -> str:
    """The file that it is defined in, which may be two modules: a script, and what imports that. Else its module."""
    return getattr(sys.modules.get(kind.__module__), "__file__", None) or kind.__module__


def known(kinds: dict[str, Any]) -> str:
    """Which kinds there are, for errors."""
    return f"there are {', '.join(kinds)}, and your own once the module is imported that defines them"


def type_name(field: Field[Any]) -> str:
    """The name of a field's type, whether its class was written with postponed annotations or not."""
    return field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
