"""Every merge method there is."""

from __future__ import annotations

from models.errors import BadInput
from models.merge import (  # noqa: F401 (they register)
    averaging,
    competition,
    entrywise,
    learning,
    spherical,
    subspace,
    task_arithmetic,
)
from models.merge.registry import METHODS, Method, SearchParameter

__all__ = ["METHODS", "find_method", "search_space"]


def find_method(name: str) -> Method:
    """The merge method of that name.

    Raises:
        BadInput: there is none.
    """
    if name not in METHODS:
        raise BadInput(f"merge_method: {name} is unknown; there are {', '.join(METHODS)}")
    return METHODS[name]


def search_space(name: str) -> tuple[SearchParameter, ...]:
    """The ranges in which the recipe search looks for a method's parameters; those left out keep their defaults."""
    return find_method(name).search
