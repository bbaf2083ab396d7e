"""The algorithm's parameters as flows take them, and as the form in Prefect's pages shows them.

Each block of params.yaml is a parameter of its own, shallow enough for a form. Its defaults are the project's own
values at the time of registration, so that a form that is sent off untouched overrides nothing.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel

from models.errors import BadInput
from models.files import validate
from tasks.project.workspace import find_root, read_yaml
from tasks.schema.params import DatasetParams, Params, ParetoParams, SampleParams, SearchParams, TrainParams, ZooParams

Block = TypeVar("Block", bound=BaseModel)


@cache
def project_params() -> Params:
    """params.yaml of the project around the working directory; the schema's defaults where there is none."""
    try:
        return validate(Params, read_yaml(find_root() / "params.yaml"), "params.yaml")
    except BadInput:
        return Params()  # whoever runs a flow there is told what is wrong


def of_project(block: type[Block]) -> type[Block]:
    """Give the fields of a block, which is called like its key in params.yaml, the project's values as defaults."""
    values = getattr(project_params(), block.__name__.lower())
    for name, field in block.model_fields.items():
        field.default = getattr(values, name)
    block.model_rebuild(force=True)
    return block


@of_project
class Zoo(ZooParams):
    """How a made family is trained. Only profiles with `made` read it."""


@of_project
class Sample(SampleParams):
    """Recipe search at the parameter level."""


@of_project
class Dataset(DatasetParams):
    """The offline data set of paths."""


@of_project
class Train(TrainParams):
    """Actor and critic."""


@of_project
class Search(SearchParams):
    """Online search over recipes and paths."""


@of_project
class Pareto(ParetoParams):
    """Which candidates become members of the front."""


def filled(params: Params) -> dict[str, Any]:
    """The arguments of a flow that say all of these parameters."""
    values = params.model_dump(mode="json", exclude={"profiles", "seed"})
    return {"seed": params.seed} | {name: FORMS[name](**block) for name, block in values.items()}


def merged(params: Params, seed: int, *blocks: BaseModel) -> Params:
    """Parameters with what a form gave in place of theirs, checked by the schema once more.

    A value that the form shows by itself is none that was given: it may be another than the profile's.

    Args:
        params: those of params.yaml, with what the profile sets for itself.
        seed: seed of every generator.
        blocks: of the form; a field that was not given stays as it is.

    Raises:
        BadInput: the schema refuses a value.
    """
    data = params.model_dump(mode="json")
    if seed != project_params().seed:
        data["seed"] = seed
    for block in blocks:
        data[type(block).__name__.lower()] |= block.model_dump(mode="json", exclude_defaults=True)
    return validate(Params, data, "parameters of the run")


FORMS: dict[str, type[BaseModel]] = {one.__name__.lower(): one for one in (Zoo, Sample, Dataset, Train, Search, Pareto)}
"""The form of each block, by its key in params.yaml."""
