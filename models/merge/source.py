"""A merged model as a source of tensors: one is computed when it is asked for, and none to name the model's content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from typing import Any

import torch
from torch import Tensor

from models.errors import BadInput
from models.merge.recipe import Group, Recipe, SliceSource
from models.merge.settings import resolve as resolve_setting
from models.merge.vocabularies import merged_vocabulary
from models.sources.architecture import architecture_of, with_layers
from models.sources.checkpoint import Source
from models.sources.compatibility import check_compatible, check_same_sizes
from models.sources.vocabulary import Vocabulary
from models.sources.vocabulary_source import align, vocabulary_of

MERGE_VERSION = 2
"""Goes into every digest. To be raised when a recipe no longer gives the same numbers."""

MOST_LAYERS = 2**12
"""Of a merged model; each layer costs time and memory before the first is merged."""

Resolve = Callable[[str], Source]
"""The model of a name in a recipe."""


@dataclass(frozen=True)
class Origin:
    """What a tensor of the merged model is made of."""

    group: Group
    t: float
    """Relative depth in the group, from 0 to 1, along which gradients run."""
    inputs: dict[str, str]
    """Name of the tensor in each model of the group."""


class MergedSource:
    """A recipe applied to models. Implements :class:`models.sources.checkpoint.Source`."""

    def __init__(self, recipe: Recipe, resolve: Resolve, device: str = "cpu") -> None:
        """Look the recipe's models up by their names, and see that they fit; what is merged stays on the device.

        Raises:
            BadInput: models of different sizes, or a layer that a model doesn't have.
        """
        self.recipe = recipe
        self.device = device
        self._sources = {name: resolve(name) for name in recipe.referenced}
        self.recipes = [recipe]
        """All that make it, each behind those that it needs."""
        self.vocabulary: Vocabulary | None = None
        """Which token each row of its embedding belongs to, if that was asked."""
        self._digests: dict[str, str] = {}
        first = self._sources[recipe.referenced[0]]
        self.architecture = architecture_of(first.config, recipe.referenced[0])
        for name, source in self._sources.items():
            (check_same_sizes if recipe.slices else check_compatible)(first, source, name)
        self.learned: dict[str, Any] = {}
        """What a method that learns has learned for each tensor."""
        self.merged: dict[str, Tensor] = {}
        """Tensors that had to be merged for it to learn."""
        self.texts = ""
        """Digest of the texts that it learned from."""
        self._origins: dict[str, Origin] = {}
        picks = self._trace()
        dtype = recipe.out_dtype or recipe.dtype
        self.config: dict[str, Any] = with_layers(first.config, picks) | ({"dtype": dtype} if dtype else {})

    @property
    def inputs(self) -> dict[str, Source]:
        """What it is made of, by the names in the recipe."""
        return dict(self._sources)

    def names(self) -> list[str]:
        """Names of its tensors, sorted. A head that is tied to the embedding is absent."""
        return sorted(self._origins)

    def tensor(self, name: str) -> Tensor:
        """One merged tensor, in ``out_dtype``, else ``dtype``, else the widest dtype of its inputs.

        Raises:
            BadInput: the inputs have different shapes, or a parameter has no value for this tensor.
        """
        if name in self.merged:
            return self.merged[name]
        origin, method = self._origins[name], self.recipe.method
        inputs = {model: self._sources[model].tensor(at).to(self.device) for model, at in origin.inputs.items()}
        shape, *others = {tensor.shape for tensor in inputs.values()}
        if others:
            shapes = ", ".join(f"{model}: {list(tensor.shape)}" for model, tensor in inputs.items())
            raise BadInput(f"{name}: shapes differ ({shapes}); only fine-tunes of one base can be merged")
        widest = reduce(torch.promote_types, (tensor.dtype for tensor in inputs.values()))
        dtype = getattr(torch, self.recipe.dtype) if self.recipe.dtype else widest
        inputs = {model: tensor.to(dtype) for model, tensor in inputs.items()}
        arguments = self._arguments(name)
        base = () if method.base == "ignored" else (inputs.pop(origin.group.base or "", None),)
        if method.random:
            arguments["generators"] = [mask_generator(self.recipe.seed, name, model) for model in inputs]
        if method.learns:
            arguments["learned"] = self.learned.get(name)
        turned = False
        if method.by_matrix:
            linear = self.architecture.split(name)[0] is not None and len(shape) == 2
            arguments["linear_layer"] = linear
            turned = linear and self.architecture.inputs_first
        tensors = tuple(tensor.T if turned else tensor for tensor in inputs.values())
        bases = tuple(tensor.T if turned and tensor is not None else tensor for tensor in base)
        merged = method.merge(*bases, tensors, **arguments)
        merged = merged.T if turned else merged
        return merged.to(getattr(torch, self.recipe.out_dtype)) if self.recipe.out_dtype else merged

    def digest(self, group: str) -> str:
        """Hex sha256 over the settings that hold for a tensor group and the content of its inputs; see ``Source``.

        Layers that are passed through unchanged keep the digest that they have where they come from.
        """
        if group not in self._digests:
            names = [name for name in self.names() if self.architecture.group(name) == group]
            self._digests[group] = self._unchanged(names) or self._described(names)
            repair = self.recipe.repair
            if repair is not None and self.architecture.split(names[0])[0] in repair.layers:
                told = f"{self._digests[group]}\n{self.recipe.model_dump_json()}"
                self._digests[group] = hashlib.sha256(told.encode()).hexdigest()
        return self._digests[group]

    def _trace(self) -> list[int]:
        """Fill the origins; returns for each layer which layer of its group's first model it is."""
        architecture = self.architecture
        held = {model: set(source.names()) for model, source in self._sources.items()}
        inner = {
            model: sorted({part for layer, part in map(architecture.split, names) if layer is not None})
            for model, names in held.items()
        }
        picks: list[int] = []
        for group in self.recipe.groups:
            rows = self._rows(group)
            for offset, row in enumerate(rows):
                t = offset / (len(rows) - 1) if len(rows) > 1 else 1.0  # mergekit's t of a slice of one layer
                for part in inner[group.sources[0].model]:
                    inputs = {model: architecture.join(layer, part) for model, layer in row.items()}
                    self._origins[architecture.join(len(picks), part)] = Origin(group, t, inputs)
                picks.append(row[group.sources[0].model])
            if len(picks) > MOST_LAYERS:
                raise BadInput(f"{group.place}: the model would have more than {MOST_LAYERS} layers; name fewer")
        first, last = self.recipe.groups[0], self.recipe.groups[-1]
        for is_part, group in ((architecture.is_before, first), (architecture.is_after, last)):
            for name in filter(is_part, held[group.sources[0].model]):
                self._origins[name] = Origin(group, 0.0, {source.model: name for source in group.sources})
        for origin in self._origins.values():
            for model, name in origin.inputs.items():
                if name not in held[model]:
                    raise BadInput(f"{model}: {name}: the other models have this tensor, it has not")
        return picks

    def _rows(self, group: Group) -> list[dict[str, int]]:
        """For each layer of a group, which layer of each of its models it is merged from."""
        columns = {}
        for source in group.sources:
            count = self.architecture.layers(self._sources[source.model].config)
            columns[source.model] = source.layers if isinstance(source, SliceSource) else range(count)
            if columns[source.model].stop > count:
                raise BadInput(
                    f"{group.place}: layer_range: layer {columns[source.model].stop - 1} is unknown;"
                    f" {source.model} has layers 0 to {count - 1}"
                )
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _arguments(self, name: str) -> dict[str, Any]:
        """The method's arguments for one tensor."""
        origin, recipe = self._origins[name], self.recipe
        arguments: dict[str, Any] = {}
        for parameter in recipe.method.parameters:
            if parameter.scope == "shared":
                scopes = recipe.scopes(origin.group)
                arguments[parameter.argument] = resolve_setting(parameter, scopes, name, origin.t)
                continue
            values = []
            for source in origin.group.sources:
                if parameter.scope == "expert" and source.model == origin.group.base:
                    continue
                scopes = recipe.scopes(origin.group, source)
                value = resolve_setting(parameter, scopes, origin.inputs[source.model], origin.t)
                if value is None and parameter.required:
                    raise BadInput(
                        f"{parameter.name}: has no value for {name} of {source.model}; add one without filter"
                    )
                values.append(value)
            arguments[parameter.argument] = tuple(values)
        return arguments

    def setting(self, name: str) -> Any:
        """The value of a parameter that is the same for all tensors."""
        return self._arguments(self.names()[0])[name]

    def _inputs_digest(self, name: str) -> dict[str, str]:
        inputs = self._origins[name].inputs
        return {model: self._sources[model].digest(self.architecture.group(at)) for model, at in inputs.items()}

    def _unchanged(self, names: Sequence[str]) -> str | None:
        """The inputs' digest if the tensors are theirs as they are."""
        recipe = self.recipe
        if recipe.merge_method != "passthrough" or recipe.dtype or recipe.out_dtype:
            return None
        if any(self._arguments(name)["scale"] != (None,) for name in names):
            return None
        digests = {digest for name in names for digest in self._inputs_digest(name).values()}
        return digests.pop() if len(digests) == 1 else None

    def _described(self, names: Sequence[str]) -> str:
        """Digest of everything that decides the tensors."""
        recipe = self.recipe
        described: list[Any] = [MERGE_VERSION, recipe.merge_method, recipe.dtype, recipe.out_dtype]
        described += [self.texts] if recipe.method.learns else []
        for name in names:
            digests = self._inputs_digest(name)
            base = self._origins[name].group.base if recipe.method.base != "ignored" else None
            described.append([self.architecture.split(name)[1], self._arguments(name), list(digests.values())])
            described.append(digests[base] if base else None)
            described.append([recipe.seed, name, list(digests)] if recipe.method.random else None)
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def mask_generator(seed: int, tensor: str, model: str) -> torch.Generator:
    """Generator of one tensor's random mask: it depends on the recipe's seed and two names, not on order or device."""
    digest = hashlib.sha256(f"{seed}\n{tensor}\n{model}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


Learn = Callable[[MergedSource], None]
"""Lets a source whose method learns do so."""


def open_recipes(
    recipes: Sequence[Recipe], resolve: Resolve, device: str = "cpu", learn: Learn | None = None
) -> MergedSource:
    """The model that the last recipe makes; the names of those before it count as models.

    Models whose vocabularies differ get a common one, as ``tokenizer_source`` says; see ``models.sources.vocabulary``.

    Recipes are as :func:`models.merge.recipe.parse_recipes` gives them; ``resolve`` gives the model of any other name.

    Raises:
        BadInput: models that don't fit together, or a method that has to learn where nothing lets it.
    """
    resolve = cache(resolve)
    named: dict[str, MergedSource] = {}
    for recipe in recipes:
        sources = {name: named[name] if name in named else resolve(name) for name in recipe.referenced}
        own = {name: vocabulary_of(source) for name, source in sources.items()}
        common = merged_vocabulary(recipe, own)
        if recipe.vocabulary_source is None and not all(one.same(common) for one in own.values()):
            recipe = recipe.model_copy(update={"tokenizer_source": "union"})  # written out: mergekit cuts them else
        merged = MergedSource(recipe, align(sources, own, common).__getitem__, device)
        merged.vocabulary = common
        if recipe.method.learns or recipe.repair:
            method = "repair:" if recipe.repair else f"merge_method: {recipe.merge_method}"
            what = "items" if recipe.repair else "texts"
            if learn is None:
                raise BadInput(f"{method} learns from {what}; make the model with `hm3 merge`")
            # items of a repair are token ids already
            if not all(one.within(common) if recipe.repair else one.same(common) for one in own.values()):
                raise BadInput(f"{method} takes models of one vocabulary; these have several")
            learn(merged)
        named[recipe.name or ""] = merged
    merged.recipes = [one.recipe for one in named.values()]
    return merged
