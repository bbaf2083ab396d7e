"""Recipes: mergekit's YAML, one document or several, checked so that no key is ever ignored."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from models.errors import BadInput
from models.files import YAML_BYTES, parse_yaml, read_text, reading
from models.merge.blocks import Dtype, Repair, Strict, TokenizerBlock
from models.merge.chat_template import check_template
from models.merge.methods import find_method
from models.merge.registry import METHODS, Method
from models.merge.settings import Settings, check, normalise, scalars
from models.merge.spelling import HARMLESS, respell

Parameters = Annotated[dict[str, Any], BeforeValidator(normalise)]
Level = Literal["exact", "in-distribution", "no"]


class ModelInput(Strict):
    """A model that takes part with all its layers."""

    model: str
    parameters: Parameters = Field(default={})
    texts: str | None = None
    """JSON lines with a ``text`` of the model's task in each, for methods that learn from them."""


class SliceSource(ModelInput):
    """A model that takes part with the layers ``layer_range[0] … layer_range[1] − 1``."""

    layer_range: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]

    @property
    def layers(self) -> range:
        """The layers of the model."""
        return range(*self.layer_range)

    @model_validator(mode="after")
    def _is_a_range(self) -> SliceSource:
        if self.layer_range[0] > self.layer_range[1]:
            raise ValueError("layer_range: the second number is the layer after the last, so it can't be the smaller")
        return self


class Slice(Strict):
    """Consecutive layers of the output, merged from equally many layers of each source."""

    sources: tuple[SliceSource, ...] = Field(min_length=1)
    base_model: str | None = None
    parameters: Parameters = Field(default={})


@dataclass(frozen=True)
class Group:
    """Models that are merged with each other: all of a recipe's, or one slice's."""

    place: str
    sources: tuple[ModelInput, ...]
    base: str | None
    parameters: Settings


class Recipe(Strict):
    """One document."""

    name: str | None = None
    merge_method: str
    base_model: str | None = None
    models: tuple[ModelInput, ...] = ()
    slices: tuple[Slice, ...] = ()
    parameters: Parameters = Field(default={})
    dtype: Dtype | None = None
    out_dtype: Dtype | None = None
    tokenizer_source: str | None = None
    tokenizer: TokenizerBlock | None = None
    chat_template: str | None = None
    repair: Repair | None = None

    @property
    def vocabulary_source(self) -> str | None:
        """``union``, ``base`` or the model whose vocabulary is taken; None where nothing is said."""
        return self.tokenizer.source if self.tokenizer else self.tokenizer_source

    @property
    def method(self) -> Method:
        """Its merge method."""
        return find_method(self.merge_method)

    @property
    def seed(self) -> int:
        """Seed of its random masks."""
        return int(self.parameters.get("seed", 0))

    @property
    def referenced(self) -> tuple[str, ...]:
        """Every model that it names, the base first, each once."""
        bases = (self.base_model, *(group.base for group in self.groups))
        inputs = (source.model for group in self.groups for source in group.sources)
        return tuple(dict.fromkeys((*(base for base in bases if base), *inputs)))

    @property
    def groups(self) -> tuple[Group, ...]:
        """What is merged with each other, from the first layers to the last. ``models`` are joined by their base."""
        if self.slices:
            return tuple(
                Group(f"slices.{number}.sources", one.sources, one.base_model or self.base_model, one.parameters)
                for number, one in enumerate(self.slices)
            )
        alone = self.base_model is not None and self.base_model not in [one.model for one in self.models]
        joined = (ModelInput(model=self.base_model),) if self.base_model is not None and alone else ()
        return (Group("models", (*self.models, *joined), self.base_model, {}),)

    def scopes(self, group: Group, source: ModelInput | None = None) -> tuple[Settings, ...]:
        """Settings that hold for a model, or for what all models share, the nearest first."""
        return (*((source.parameters,) if source else ()), group.parameters, self.parameters)

    @model_validator(mode="after")
    def _is_consistent(self) -> Recipe:
        try:
            method = self.method
        except BadInput as error:
            raise ValueError(str(error)) from None
        if bool(self.models) == bool(self.slices):
            raise ValueError("models: give either `models` or `slices`")
        if self.vocabulary_source not in (None, "union", *self.referenced, *(("base",) if self.base_model else ())):
            key = "tokenizer.source" if self.tokenizer else "tokenizer_source"
            raise ValueError(f"{key}: must be `union`, `base` for the base_model, or one of the models")
        for token, how in (self.tokenizer.tokens if self.tokenizer else {}).items():
            model = how.source if isinstance(how.source, str) else getattr(how.source, "model", None)
            if model is not None and model not in self.referenced:
                raise ValueError(f"tokenizer.tokens.{token}: {model}: is none of the models")
        check_template(self.chat_template)
        if self.repair is not None:
            _check_repair(self.repair, self)
        if "seed" in self.parameters:
            _check_seed(method, self.parameters["seed"])
        _check_settings(method, "parameters", {k: v for k, v in self.parameters.items() if k != "seed"})
        for number, one in enumerate(self.slices):
            _check_settings(method, f"slices.{number}.parameters", one.parameters)
        for group in self.groups:
            _check_inputs(method, group)
            for number, source in enumerate(group.sources):
                _check_settings(method, f"{group.place}.{number}.parameters", source.parameters, of_model=True)
                missing = [
                    parameter.name
                    for parameter in method.parameters
                    if parameter.required
                    and not (parameter.scope == "expert" and source.model == group.base)
                    and not any(parameter.name in scope for scope in self.scopes(group, source))
                ]
                if missing:
                    raise ValueError(f"{group.place}: {source.model}: {missing[0]} is missing; {method.name} needs it")
        return self


def parse_recipes(text: str, label: str) -> list[Recipe]:
    """Recipes of a YAML text, the last of which makes the result; it may name those before it as models.

    Messages call the text by its ``label``.

    Raises:
        BadInput: no YAML, an unknown key or method, a value out of range, or names that don't fit.
    """
    documents = [document for document in parse_yaml(text, label) if document is not None]
    if not documents:
        raise BadInput(f"{label}: holds no recipe; see `hm3 merge --help` for an example")
    places = [label if len(documents) == 1 else f"{label}: document {number + 1}" for number in range(len(documents))]
    recipes = [_parse(document, place) for document, place in zip(documents, places, strict=True)]
    names = [recipe.name for recipe in recipes]
    for number, (recipe, place) in enumerate(zip(recipes, places, strict=True)):
        if recipe.name is None and recipe is not recipes[-1]:
            raise BadInput(f"{place}: name: missing; only the last document goes without")
        if recipe.name is not None and recipe.name in names[:number]:
            raise BadInput(f"{place}: name: {recipe.name} was used before; take another")
        if late := set(recipe.referenced) & {name for name in names[number:] if name}:
            raise BadInput(f"{place}: {min(late)}: a recipe can only use those before it; reorder the documents")
    return recipes


def dump_recipes(recipes: Sequence[Recipe]) -> str:
    """Canonical text: equal recipes give equal texts, and :func:`parse_recipes` gives them back."""
    documents = [recipe.model_dump(mode="json", exclude_defaults=True) for recipe in recipes]
    return yaml.safe_dump_all(documents, sort_keys=False, default_flow_style=None, allow_unicode=True, width=2**31)


def recipe_name(recipe: Recipe) -> str:
    """``r-`` and 8 hex digits, the same for recipes that differ in name only."""
    text = dump_recipes([recipe.model_copy(update={"name": None})])
    return f"r-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def mergekit_level(recipes: Sequence[Recipe]) -> Level:
    """Whether mergekit rebuilds the same model, one with other random masks, or none."""
    if not all(
        recipe.repair is None and recipe.method.in_mergekit and _says_what_mergekit_knows(recipe) for recipe in recipes
    ):
        return "no"
    return "in-distribution" if any(recipe.method.random for recipe in recipes) else "exact"


def _says_what_mergekit_knows(recipe: Recipe) -> bool:
    """Whether mergekit has every value in the recipe, or it is the default of what mergekit doesn't ask for."""
    if recipe.repair is not None:
        return False
    blocks = [recipe.parameters]
    for group in recipe.groups:
        blocks += [group.parameters, *(source.parameters for source in group.sources)]
    settings = [(recipe.method.parameter(name), setting) for block in blocks for name, setting in block.items()]
    return all(
        not isinstance(value, str) if parameter.in_mergekit else value == parameter.default
        for parameter, setting in settings
        if parameter is not None
        for value in scalars(setting)
    )


def read_recipes(path: Path) -> list[Recipe]:
    """The recipes of a file.

    Raises:
        BadInput: it is missing, no text, or no recipe.
    """
    return parse_recipes(read_text(path, str(path), YAML_BYTES), str(path))


def _parse(document: Any, place: str) -> Recipe:
    if not isinstance(document, dict):
        raise BadInput(f"{place}: must be a mapping with merge_method and models or slices")
    known = METHODS.get(str(document.get("merge_method")))
    harmless = known is not None and known.parameter(HARMLESS[0]) is not None
    try:
        with reading(place, "mend it"):
            return Recipe.model_validate(respell(document, harmless))
    except BadInput as problem:
        error = problem.__cause__
        if isinstance(error, ValidationError):
            raise BadInput(f"{place}: {_first_problem(error)}") from None
        if type(error) is ValueError:  # ours, of a spelling
            raise BadInput(f"{place}: {error}") from None
        raise


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    field = "".join(f"{part}: " for part in [".".join(map(str, first["loc"]))] if part)
    if first["type"] == "extra_forbidden":
        return f"{field}unknown key; remove it or mend its spelling"
    return f"{field}{first['msg'].removeprefix('Value error, ')}"


def _check_repair(repair: Repair, recipe: Recipe) -> None:
    """Refuse a repair of what is no path through layers as they are."""
    depth = sum(len(one.sources[0].layers) for one in recipe.slices)
    plain = recipe.merge_method == "passthrough" and recipe.base_model is not None and not recipe.parameters
    if not (plain and recipe.slices) or any(
        len(one.sources) > 1 or one.parameters or one.sources[0].parameters for one in recipe.slices
    ):
        raise ValueError(
            "repair: is for slices of one model each under passthrough, with a base_model and no parameters"
        )
    if len(set(repair.layers)) < len(repair.layers) or max(repair.layers) >= depth:
        raise ValueError(f"repair.layers: must be different layers of the result, 0 to {depth - 1}")


def _check_inputs(method: Method, group: Group) -> None:
    """Refuse models that the method can't merge with each other."""
    models = [source.model for source in group.sources]
    if len(set(models)) < len(models):
        raise ValueError(f"{group.place}: names a model twice")
    if len({len(source.layers) for source in group.sources if isinstance(source, SliceSource)}) > 1:
        raise ValueError(f"{group.place}: layer_range: all need the same number of layers")
    if method.base == "required" and group.base is None:
        raise ValueError(f"base_model: missing; {method.name} needs it")
    if method.base != "ignored" and group.base is not None and group.base not in models:
        raise ValueError(f"{group.place}: {method.name} needs the base_model among them")
    based = method.base != "ignored" and group.base is not None
    experts = [model for model in models if not based or model != group.base]
    beside = " beside the base_model" if based else ""
    if based and not experts:
        raise ValueError(f"{group.place}: {method.name} needs a model{beside}")
    if method.learns and any(isinstance(source, SliceSource) for source in group.sources):
        raise ValueError(f"{group.place}: {method.name} merges whole models; name them under `models`")
    for number, source in enumerate(group.sources):
        if method.learns and source.model in experts and source.texts is None:
            raise ValueError(f"{group.place}.{number}: {method.name} learns from each model's texts; add `texts`")
        if source.texts is not None and not (method.learns and source.model in experts):
            raise ValueError(f"{group.place}.{number}.texts: {method.name} reads no texts of this model; remove it")
    if not method.min_experts <= len(experts) <= (method.max_experts or len(experts)):
        least = "at least " if method.max_experts is None else ""
        noun = "model" if method.min_experts == 1 else "models"
        raise ValueError(
            f"{group.place}: {method.name} takes {least}{method.min_experts} {noun}{beside}, not {', '.join(experts)}"
        )


def _check_seed(method: Method, seed: Any) -> None:
    if not method.random:
        raise ValueError(f"parameters.seed: {method.name} draws nothing at random; remove it")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"parameters.seed: {seed!r} must be a whole number, 0 or more")


def _check_settings(method: Method, place: str, settings: Settings, of_model: bool = False) -> None:
    """Refuse a setting that the method doesn't have, at a place where it would have no effect, or out of range."""
    for name, setting in settings.items():
        parameter = method.parameter(name)
        if parameter is None:
            known = ", ".join(one.name for one in method.parameters)
            raise ValueError(f"{place}.{name}: unknown key; {method.name} has {known}{', seed' * method.random}")
        if of_model and parameter.scope == "shared":
            raise ValueError(f"{place}.{name}: is for the whole recipe; move it to `parameters` at the top")
        try:
            check(parameter, setting)
        except ValueError as error:
            raise ValueError(f"{place}.{name}: {error}") from None
