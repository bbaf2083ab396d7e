"""What the members of a front are made of: the share of every expert in each layer, and a recipe in one line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from models.errors import BadInput
from models.files import YAML_BYTES, find_inside, read_text
from models.merge.path_recipe import runs_of
from models.merge.recipe import ModelInput, Recipe, parse_recipes
from models.merge.settings import resolve
from tasks.front.front import Front, Member
from tasks.project.family import load_family
from tasks.project.workspace import Workspace


@dataclass(frozen=True)
class Composition:
    """The recipes behind the models of a front's paths."""

    recipes: dict[str, Recipe]
    """Name in the pool → recipe."""
    sources: dict[str, str]
    """Folder → ``base`` or the expert's name."""
    layers: int
    """Layers of the base, L."""

    @classmethod
    def read(cls, workspace: Workspace, front: Front, members: Sequence[Member] | None = None) -> Composition:
        """The recipes of all members, or of some.

        Raises:
            BadInput: a recipe file is missing or no recipe.
        """
        family = load_family(workspace)
        recipes: dict[str, Recipe] = {}
        for member in front.members if members is None else members:
            *merged, last = parse_recipes(recipe_text(workspace.run, member), f"runs/{workspace.name}/{member.recipe}")
            recipes |= {one.name: one for one in merged if one.name}
            if not merged and member.host not in ("base", *family.experts):
                recipes[member.host] = last
        experts = {folder: name for name, folder in family.experts.items()}
        return cls(recipes, {family.base: "base", **experts}, front.layers)

    def shares(self, model: str, layer: int) -> dict[str, float]:
        """Share of base and experts in one layer of a model, by the size of their weights; sums to 1."""
        recipe = self.recipes.get(model)
        if recipe is None:
            return {self.sources.get(model, model): 1.0}
        parts = inputs(recipe, layer, self.layers)
        weights = [abs(weight(recipe, one, depth)) for one, _, depth in parts]
        total: dict[str, float] = {}
        for (one, own, _), size in zip(parts, weights, strict=True):
            part = size / sum(weights) if any(weights) else 1 / len(parts)
            for source, share in self.shares(one.model, own).items():
                total[source] = total.get(source, 0.0) + share * part
        return total

    def describe(self, member: Member) -> str:
        """A member in a line: the merge that it is, or the layers that a token passes."""
        if member.candidate.is_identity(self.layers):
            return self.describe_model(member.host)
        parts = []
        for model, group in groupby(runs_of(member.path), key=lambda run: run[0]):
            spans = [f"{first}–{stop - 1}" if stop - first > 1 else f"{first}" for _, first, stop in group]
            parts.append(f"{model} {', '.join(spans)}")
        text = " → ".join(parts)
        return text if len(member.candidate.models) == 1 else f"{text}; embedding and head of {member.host}"

    def merges(self, member: Member) -> dict[str, str]:
        """The merged models on a member's path, each in a line; none for a member that is itself a merge."""
        if member.candidate.is_identity(self.layers):
            return {}
        return {model: self.describe_model(model) for model in member.candidate.models if model in self.recipes}

    def describe_model(self, model: str) -> str:
        """A model of the pool in a line."""
        recipe = self.recipes.get(model)
        if recipe is None:
            return f"{model} as it is"
        if recipe.slices:
            return f"{recipe.merge_method} of slices"
        merged = [f"{self.sources.get(one.model, one.model)} {weight(recipe, one, 0.5):.2g}" for one in recipe.models]
        settings = {name: [value] for name, value in recipe.parameters.items() if name not in ("weight", "seed")}
        for name in sorted({name for one in recipe.models for name in one.parameters if name != "weight"}):
            settings[name] = [one.parameters[name] for one in recipe.models if name in one.parameters]
        rest = [f"{name} {'/'.join(dict.fromkeys(map(_short, values)))}" for name, values in settings.items()]
        return "; ".join([f"{recipe.merge_method}: {', '.join(merged)}", *rest])


def recipe_text(run: Path, member: Member) -> str:
    """The recipe file of a member.

    Raises:
        BadInput: see :func:`recipe_path`.
    """
    path = recipe_path(run, member)
    return read_text(path, str(path), YAML_BYTES)


def recipe_path(run: Path, member: Member) -> Path:
    """Where the recipe file of a member lies: among the profile's outs, or where a search has kept what it found.

    Raises:
        BadInput: it is missing, or leads out of the folder.
    """
    if Path(member.recipe).is_absolute():
        return Path(member.recipe)
    found = find_inside(run, member.recipe)
    if found is None:
        raise BadInput(f"runs/{run.name}/{member.recipe}: no such file; run stage `pareto` or `dvc pull`")
    return found


def inputs(recipe: Recipe, layer: int, layers: int) -> list[tuple[ModelInput, int, float]]:
    """Models that are merged into a layer of a recipe, the number of that layer in each, and its depth in [0, 1].

    The depth is relative to the slice, where the recipe has slices: gradients run over it.
    """
    if not recipe.slices:
        return [(one, layer, layer / max(1, layers - 1)) for one in recipe.models]
    first = 0
    for piece in recipe.slices:
        count = len(piece.sources[0].layers)
        if layer < first + count:
            depth = (layer - first) / max(1, count - 1)
            return [(one, one.layers[layer - first], depth) for one in piece.sources]
        first += count
    raise ValueError(f"layer {layer}: the recipe has {first}")


def weight(recipe: Recipe, one: ModelInput, depth: float) -> float:
    """Weight of a model at a relative depth; 1 in methods that know no weights."""
    parameter = recipe.method.parameter("weight")
    value = resolve(parameter, (one.parameters, recipe.parameters), "", depth) if parameter else None
    return 1.0 if value is None else float(value)


def _short(value: object) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value).lower()
