"""Kinds of ops and of morphs by their tags: a class is known, and can be read from a run, once it is defined."""

from __future__ import annotations

from dataclasses import Field
from typing import Any


def register(kinds: dict[str, Any], kind: type) -> None:
    """Add a class that has a tag of its own; TypeError where another class has the same one.

    A class that is defined once more, as in a notebook, takes the place of the one before.
    """
    tag = vars(kind).get("tag")
    if not isinstance(tag, str):
        return
    other = kinds.get(tag, kind)
    if (other.__module__, other.__qualname__) != (kind.__module__, kind.__qualname__):
        raise TypeError(f"{kind.__qualname__}: {other.__module__}.{other.__qualname__} has the tag {tag!r} already")
    kinds[tag] = kind


def type_name(field: Field[Any]) -> str:
    """The name of a field's type, whether its class was written with postponed annotations or not."""
    return field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
