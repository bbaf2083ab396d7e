"""The mixed space of merge recipes that a search explores: the method, and each of its parameters once.

A point is a mapping from names to values, as pymoo's mixed variables have it: ``method``, ``density``, ``weight.math``.
With ``stops`` above 1 each expert's parameter is a gradient over the layers, ``weight.math@0`` … ``weight.math@2``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from pymoo.core.variable import Choice, Real

from models.errors import BadInput
from models.front import Array
from models.merge.methods import find_method, search_space
from models.merge.recipe import Recipe
from models.merge.registry import SearchParameter

DTYPE = "float32"
"""Merges are computed in single precision, whatever the sources are stored in."""

PLACES = 4
"""Decimal places of numbers in a recipe: as people would write them."""

Point = Mapping[str, Any]


@dataclass(frozen=True)
class RecipeSpace:
    """All merges of a family's experts by some methods, within the ranges that the methods name.

    Sharing a parameter between methods lets a good set of weights survive a change of method. Methods that take a
    certain number of models, such as ``slerp``, are left out.
    """

    methods: tuple[str, ...]
    base: str
    """What recipes call the base."""
    experts: Mapping[str, str]
    """Expert → what recipes call it."""
    seed: int = 0
    """Of random masks."""
    stops: int = 1
    """Values of each expert's parameter, from the first layer to the last."""

    def __post_init__(self) -> None:
        usable = tuple(method for method in self.methods if find_method(method).takes_families)
        if not any(search_space(method) for method in usable):
            raise BadInput(
                f"params.yaml: sample.methods: {', '.join(self.methods)} leave nothing to search; add task_arithmetic"
            )
        object.__setattr__(self, "methods", usable)

    def with_stops(self, stops: int) -> RecipeSpace:
        """The same space with gradients of so many values."""
        return replace(self, stops=stops)

    def keys(self, parameter: SearchParameter) -> list[str]:
        """Names of a parameter's variables."""
        if not parameter.per_model:
            return [parameter.name]
        return [key for expert in self.experts for key in self.keys_of(parameter, expert)]

    def keys_of(self, parameter: SearchParameter, expert: str) -> list[str]:
        """Names of the variables of an expert's own parameter, from the first layer to the last."""
        name = f"{parameter.name}.{expert}"
        return [name] if self.stops == 1 else [f"{name}@{stop}" for stop in range(self.stops)]

    @cached_property
    def bounds(self) -> dict[str, tuple[float, float]]:
        """Each number's variable with the widest range that any method gives it."""
        found: dict[str, tuple[float, float]] = {}
        for parameter in (one for method in self.methods for one in search_space(method)):
            for key in self.keys(parameter):
                low, high = found.get(key, (parameter.low, parameter.high))
                found[key] = min(low, parameter.low), max(high, parameter.high)
        return found

    @cached_property
    def variables(self) -> dict[str, Any]:
        """The space in pymoo's terms."""
        reals = {key: Real(bounds=bounds) for key, bounds in self.bounds.items()}
        return {"method": Choice(options=np.array(self.methods, dtype=object)), **reals}

    def sample(self, count: int, rng: np.random.Generator) -> list[dict[str, Any]]:
        """Points that fill the space evenly: a Latin hypercube, with the methods in turn."""
        order = np.stack([rng.permutation(count) for _ in self.bounds], axis=1)
        unit = (order + rng.random(order.shape)) / count
        methods = rng.permutation(np.resize(np.arange(len(self.methods)), count))
        return [self.point(self.methods[m], row) for m, row in zip(methods, unit, strict=True)]

    def point(self, method: str, unit: Array) -> dict[str, Any]:
        """The point at coordinates (D,) in the unit cube, the numbers' variables in their order."""
        values = {key: low + u * (high - low) for u, (key, (low, high)) in zip(unit, self.bounds.items(), strict=True)}
        return {"method": method, **values}

    def unit(self, point: Point) -> Array:
        """Coordinates (D,) of a point in the unit cube."""
        return np.array([(point[key] - low) / (high - low) for key, (low, high) in self.bounds.items()])

    def recipe(self, point: Point) -> Recipe:
        """The recipe at a point. Where the shared range is wider than the method's own, its nearest value counts.

        Weights that are zero for all experts, which could not be normalised, are all the least that is written.
        """
        method = str(point["method"])

        def value(parameter: SearchParameter, key: str) -> float:
            return round(min(max(float(point[key]), parameter.low), parameter.high), PLACES)

        def weighed(parameter: SearchParameter, expert: str, stop: str) -> float:
            found = value(parameter, f"{parameter.name}.{expert}{stop}")
            others = (value(parameter, f"{parameter.name}.{one}{stop}") for one in self.experts)
            return found if parameter.name != "weight" or any(others) else 10.0**-PLACES

        def setting(parameter: SearchParameter, expert: str) -> float | list[float]:
            if self.stops == 1:
                return weighed(parameter, expert, "")
            values = [weighed(parameter, expert, f"@{stop}") for stop in range(self.stops)]
            return values if len(set(values)) > 1 else values[0]  # a merge has one recipe, and so one name

        own = [parameter for parameter in search_space(method) if parameter.per_model]
        whole = [parameter for parameter in search_space(method) if not parameter.per_model]
        return self.make(
            method,
            {expert: {one.name: setting(one, expert) for one in own} for expert in self.experts},
            {one.name: value(one, one.name) for one in whole},
        )

    def read(self, recipe: Recipe) -> dict[str, Any]:
        """The point of this space that is nearest to a recipe; what its method has no value for lies in the middle.

        A recipe of fewer stops is met exactly; one of more is read at this space's stops. Its method stays even where
        the space lacks it.
        """
        point: dict[str, Any] = {"method": recipe.merge_method}
        point |= {key: (low + high) / 2 for key, (low, high) in self.bounds.items()}
        inputs = {one.model: one.parameters for one in recipe.models}
        for parameter in search_space(recipe.merge_method):
            for expert, model in self.experts.items():
                block = {**recipe.parameters, **inputs.get(model, {})}
                values = np.atleast_1d(np.asarray(block.get(parameter.name, parameter.default), dtype=np.float64))
                places = np.linspace(0, 1, self.stops) if self.stops > 1 else np.array([0.5])
                read = np.interp(places, np.linspace(0, 1, len(values)), values) if len(values) > 1 else values
                keys = self.keys_of(parameter, expert) if parameter.per_model else [parameter.name]
                point |= {key: float(one) for key, one in zip(keys, np.resize(read, len(keys)), strict=True)}
        return point

    def make(
        self, method: str, own: Mapping[str, Mapping[str, Any]], parameters: Mapping[str, float] | None = None
    ) -> Recipe:
        """A merge of all experts, each with its ``own`` parameters (``weight``, …), in mergekit's terms."""
        document: dict[str, Any] = {
            "merge_method": method,
            "models": [{"model": self.experts[name], "parameters": dict(one)} for name, one in own.items()],
            "parameters": {**(parameters or {}), **({"seed": self.seed} if find_method(method).random else {})},
            "dtype": DTYPE,
        }
        if find_method(method).base != "ignored":
            document["base_model"] = self.base
        return Recipe.model_validate({key: value for key, value in document.items() if value != {}})

    def plain_merges(self) -> dict[str, Recipe]:
        """The merges that people try first, at their usual settings.

        Uniform average (model soup, Wortsman et al. 2022); task arithmetic at 0.4, the value that its paper recommends
        untuned (Ilharco et al. 2023); TIES keeping 20 % at λ = 1 (Yadav et al. 2023, section 5); DARE-TIES as in
        mergekit's example, density 0.5 and weight 0.5.
        """

        def merge(method: str, **own: float) -> Recipe:
            return self.make(method, dict.fromkeys(self.experts, own))

        return {
            "uniform average": merge("linear", weight=round(1 / len(self.experts), 6)),
            "task arithmetic": merge("task_arithmetic", weight=0.4),
            "TIES": merge("ties", weight=1.0, density=0.2),
            "DARE-TIES": merge("dare_ties", weight=0.5, density=0.5),
        }
