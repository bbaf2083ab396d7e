"""What a merge method is: a pure function of tensors, its parameters, and its search space."""

from __future__ import annotations

import keyword
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from typing import Literal

from torch import Tensor

Scalar = bool | int | float | str


@dataclass(frozen=True)
class Parameter:
    """A parameter as mergekit names it."""

    name: str
    kind: type[bool] | type[int] | type[float] | type[str]
    """What its values are; ``str`` takes nothing but ``choices``."""
    default: Scalar | None = None
    """Value where the recipe has none; without one the parameter is required unless it is ``optional``."""
    scope: Literal["shared", "model", "expert"] = "shared"
    """One value a tensor; one for each model that takes part; or one for each but the base."""
    low: float = float("-inf")
    high: float = float("inf")
    optional: bool = False
    choices: tuple[str, ...] = ()
    """Named values that it takes beside those of its kind; mergekit has none of them."""
    in_mergekit: bool = True
    """mergekit's method has this parameter."""

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


Merge = Callable[..., Tensor]


@dataclass
class Method:
    """A merge method. As a decorator it registers the function, the first line of whose docstring is its formula.

    The function takes ``(base, experts, **parameters)`` where a base means something to the method, else
    ``(models, **parameters)``; a parameter of scope ``model`` or ``expert`` arrives as a tuple with one value for each
    of those tensors. A random method also takes ``generators``, one an expert, and one that works by matrix
    ``linear_layer``: whether the tensor is the weight of a linear layer. One that learns takes ``learned``: what was
    learned for the tensor, None where nothing was.
    """

    name: str
    """In recipes."""
    title: str
    """For people."""
    reference: str
    """Address of the paper."""
    parameters: tuple[Parameter, ...]
    """What a recipe may set."""
    search: tuple[SearchParameter, ...] = ()
    """Ranges that the recipe search explores."""
    _: KW_ONLY
    base: Literal["required", "optional", "ignored"] = "ignored"
    """A recipe has to name a base, may name one, or names one that is a model like the others."""
    min_experts: int = 1
    """Fewest models that it takes beside the base, or in all where the base is like the others."""
    max_experts: int | None = None
    random: bool = False
    """It draws masks, so a recipe may hold a ``seed``."""
    by_matrix: bool = False
    """It treats the weights of linear layers as matrices, and other tensors in a plainer way."""
    learns: bool = False
    """What is read from texts of each expert's task decides its numbers, so every expert of a recipe names some."""
    in_mergekit: bool = True
    """mergekit has a method of this name and meaning."""
    merge: Merge = field(init=False)

    def __call__(self, merge: Merge) -> Merge:
        """Register the function."""
        self.merge = merge
        METHODS[self.name] = self
        return merge

    @property
    def takes_families(self) -> bool:
        """Whether it merges any number of experts from two on, and needs nothing but them."""
        return self.min_experts <= 2 and self.max_experts is None and not self.learns

    def parameter(self, name: str) -> Parameter | None:
        """The parameter of that name, if there is one."""
        return next((one for one in self.parameters if one.name == name), None)


METHODS: dict[str, Method] = {}
"""Filled as modules with methods are imported: read it from ``models.merge.methods``."""
