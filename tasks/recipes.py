"""Recipes of a family: the plain merges that everybody tries, and the mixed space that the search explores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pymoo.core.variable import Choice, Real

from models.errors import BadInput
from models.merge.methods import SearchParameter, find_method, search_space
from models.merge.recipe import Recipe
from tasks.family import Family

DTYPE = "float32"
"""Merges are computed in single precision, whatever the sources are stored in."""


def make_recipe(
    method: str, family: Family, weights: Mapping[str, Mapping[str, float]], parameters: Mapping[str, float], seed: int
) -> Recipe:
    """A merge of all experts of a family in mergekit's terms.

    Args:
        method: name of the merge method.
        family: base and experts.
        weights: expert → its own parameters (``weight``, ``density``, …).
        parameters: parameters of the whole merge.
        seed: of the random masks, where the method draws any.
    """
    document: dict[str, Any] = {
        "merge_method": method,
        "models": [{"model": family.experts[name], "parameters": dict(own)} for name, own in weights.items()],
        "parameters": {**parameters, **({"seed": seed} if find_method(method).random else {})},
        "dtype": DTYPE,
    }
    if find_method(method).base != "ignored":
        document["base_model"] = family.base
    return Recipe.model_validate({key: value for key, value in document.items() if value != {}})


def plain_merges(family: Family, seed: int) -> dict[str, Recipe]:
    """The merges that people try first, at their usual settings.

    Uniform average (model soup, Wortsman et al. 2022); task arithmetic at 0.4, the value that its paper recommends
    untuned (Ilharco et al. 2023); TIES keeping 20 % at λ = 1 (Yadav et al. 2023, section 5); DARE-TIES as in mergekit's
    example, density 0.5 and weight 0.5.
    """

    def merge(method: str, own: Mapping[str, float], parameters: Mapping[str, float] | None = None) -> Recipe:
        return make_recipe(method, family, dict.fromkeys(family.experts, own), parameters or {}, seed)

    share = round(1 / len(family.experts), 6)
    return {
        "uniform average": merge("linear", {"weight": share}),
        "task arithmetic": merge("task_arithmetic", {"weight": 0.4}),
        "TIES": merge("ties", {"weight": 1.0, "density": 0.2}),
        "DARE-TIES": merge("dare_ties", {"weight": 0.5, "density": 0.5}),
    }


def mixed_space(methods: Sequence[str], experts: Sequence[str]) -> dict[str, Any]:
    """Variables of the search: the method, and each parameter once, with the widest range any method gives it.

    Sharing a parameter between methods lets a good set of weights survive a change of method. Methods that take a
    certain number of models, such as ``slerp``, are left out.

    Raises:
        BadInput: an unknown method, or nothing is left to search.
    """
    usable = [method for method in methods if find_method(method).takes_families]
    if not any(search_space(method) for method in usable):
        raise BadInput(
            f"params.yaml: sample.methods: {', '.join(methods)} leave nothing to search; add task_arithmetic"
        )
    space: dict[str, Any] = {"method": Choice(options=np.array(usable, dtype=object))}
    for parameter in (one for method in usable for one in search_space(method)):
        for key in [f"{parameter.name}.{expert}" for expert in experts] if parameter.per_model else [parameter.name]:
            low, high = parameter.low, parameter.high
            if key in space:
                low, high = min(low, space[key].bounds[0]), max(high, space[key].bounds[1])
            space[key] = Real(bounds=(low, high))
    return space


def build_recipe(point: Mapping[str, Any], family: Family, seed: int) -> Recipe:
    """The recipe at a point of :func:`mixed_space`; numbers to four places, as people would write them.

    Where the shared range is wider than the method's own, the nearest value in that counts.
    """
    method = str(point["method"])

    def value(parameter: SearchParameter, key: str) -> float:
        return round(min(max(float(point[key]), parameter.low), parameter.high), 4)

    own = [parameter for parameter in search_space(method) if parameter.per_model]
    whole = [parameter for parameter in search_space(method) if not parameter.per_model]
    return make_recipe(
        method,
        family,
        {expert: {one.name: value(one, f"{one.name}.{expert}") for one in own} for expert in family.experts},
        {one.name: value(one, one.name) for one in whole},
        seed,
    )
