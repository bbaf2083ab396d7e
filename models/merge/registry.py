"""What a merge method is: a pure function of tensors, its parameters, and its search space."""

from __future__ import annotations

import keyword
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Scalar = bool | float
Merge = Callable[..., Tensor]


@dataclass(frozen=True)
class Parameter:
    """A parameter as mergekit names it."""

    name: str
    kind: type[bool] | type[float]
    default: Scalar | None = None
    """Value where the recipe has none; without one the parameter is required unless it is ``optional``."""
    scope: Literal["shared", "model", "expert"] = "shared"
    """One value a tensor; one for each model that takes part; or one for each but the base."""
    low: float = float("-inf")
    high: float = float("inf")
    optional: bool = False

    @property
    def required(self) -> bool:
        """Whether every recipe has to say it."""
        return self.default is None and not self.optional

    @property
    def argument(self) -> str:
        """Name of the function's argument."""
        return f"{self.name}_" if keyword.iskeyword(self.name) else self.name


@dataclass(frozen=True)
class SearchParameter:
    """A range in which the recipe search looks for a parameter."""

    name: str
    low: float
    high: float
    default: float
    per_model: bool
    """One value for each expert, or one for the whole recipe."""


@dataclass(frozen=True)
class Method:
    """A registered merge method.

    ``merge`` takes ``(base, experts, **parameters)`` where the method needs a base, else ``(models, **parameters)``;
    a parameter of scope ``model`` or ``expert`` arrives as a tuple with one value for each of those tensors. A random
    method also takes ``generators``, one a model.
    """

    name: str
    title: str
    reference: str
    merge: Merge
    parameters: tuple[Parameter, ...]
    search: tuple[SearchParameter, ...]
    needs_base: bool
    random: bool
    max_models: int | None
    in_mergekit: bool

    def parameter(self, name: str) -> Parameter | None:
        """The parameter of that name, if there is one."""
        return next((one for one in self.parameters if one.name == name), None)


METHODS: dict[str, Method] = {}
"""Filled by :func:`merge_method` as modules with methods are imported: read it from ``models.merge.methods``."""


def merge_method(
    name: str,
    title: str,
    reference: str,
    parameters: Sequence[Parameter],
    search: Sequence[SearchParameter] = (),
    *,
    needs_base: bool = False,
    random: bool = False,
    max_models: int | None = None,
    in_mergekit: bool = True,
) -> Callable[[Merge], Merge]:
    """Register the function as a merge method.

    Args:
        name: its name in recipes.
        title: its name for people.
        reference: address of the paper.
        parameters: what a recipe may set.
        search: ranges that the recipe search explores.
        needs_base: it merges task vectors, so a recipe has to name a base.
        random: it draws masks, so a recipe may hold a ``seed``.
        max_models: most models that it takes.
        in_mergekit: mergekit has a method of this name and meaning.
    """

    def register(merge: Merge) -> Merge:
        METHODS[name] = Method(
            name,
            title,
            reference,
            merge,
            tuple(parameters),
            tuple(search),
            needs_base,
            random,
            max_models,
            in_mergekit,
        )
        return merge

    return register
