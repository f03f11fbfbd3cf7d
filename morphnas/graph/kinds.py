"""Registries of op and morph classes by tag: a class is registered, and can be read from a run, once it is defined."""

from __future__ import annotations

import sys
from dataclasses import Field
from typing import Any


def register(kinds: dict[str, Any], kind: type) -> None:
    """Add a class to `kinds` under its tag; one whose body defines no tag is skipped.

    A class that is defined again under the same name, as in a notebook, replaces the earlier one. TypeError if another
    class has the tag, or if it is not an identifier.
    """
    tag = vars(kind).get("tag")
    if not isinstance(tag, str):
        return
    if not tag.isidentifier():
        raise TypeError(f"{kind.__qualname__}: the tag must be an identifier, not {tag!r:.100}")
    other = kinds.get(tag, kind)
    if (_origin(other), other.__name__) != (_origin(kind), kind.__name__):
        raise TypeError(f"{kind.__qualname__}: {other.__module__}.{other.__qualname__} has the tag {tag!r} already")
    kinds[tag] = kind


def _origin(kind: type) -> str:
    """The file that defines the class, else its module name: a script may be loaded as two modules of one file."""
    return getattr(sys.modules.get(kind.__module__), "__file__", None) or kind.__module__


def describe_kinds(kinds: dict[str, Any]) -> str:
    """The registered tags, for error messages."""
    return f"there are {', '.join(kinds)}, and your own once the module that defines them is imported"


def type_name(field: Field[Any]) -> str:
    """The name of a field's type, whether its class was written with postponed annotations or not."""
    return field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
