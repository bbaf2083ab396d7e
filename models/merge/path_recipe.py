"""A candidate as recipes that mergekit understands: the merges that it uses, then a passthrough of its path."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from models.candidate import Candidate, SourceLayer
from models.errors import BadInput
from models.merge.blocks import Repair
from models.merge.recipe import Recipe, Slice, SliceSource


def path_recipe(
    candidate: Candidate,
    recipes: Mapping[str, Recipe],
    locate: Callable[[str], str],
    layers: int,
    repair: Repair | None = None,
) -> list[Recipe]:
    """Recipes whose last one makes the candidate's model.

    mergekit takes embedding, final norm and head from the first and the last slice. Where those aren't the host's, an
    empty slice of the host stands before or behind, which adds no layer. The host is the ``base_model`` too: config and
    tokenizer are taken from there. A whole merged model is written as its own recipe alone.

    Args:
        recipes: recipes of merged models by name.
        locate: folder of any other model, as it is to stand in the recipe.
        layers: L of every model.
        repair: how its seams are repaired, if they are; not by mergekit.

    Raises:
        BadInput: the path is empty or has an unknown layer; what ``locate`` raises for an unknown model.
    """
    if not candidate.path:
        raise BadInput("path: is empty; it needs one layer at least")
    for model, layer in candidate.path:
        if not 0 <= layer < layers:
            raise BadInput(f"path: {model}.{layer}: layer is unknown; there are 0 to {layers - 1}")
    named = {name: recipe.model_copy(update={"name": name}) for name, recipe in recipes.items()}
    if candidate.host in recipes and candidate.is_identity(layers):
        whole = recipes[candidate.host].model_copy(update={"name": None})
        return [*(named[name] for name in _needed(whole.referenced, recipes)), whole]
    used = [named[name] for name in _needed(candidate.models, recipes)]
    names = {model: model if model in recipes else locate(model) for model in candidate.models}
    runs = runs_of(candidate.path)
    empty = (candidate.host, 0, 0)
    runs = [*([empty] if runs[0][0] != candidate.host else []), *runs]
    runs = [*runs, *([empty] if runs[-1][0] != candidate.host else [])]
    slices = tuple(
        Slice(sources=(SliceSource(model=names[model], layer_range=(first, stop)),)) for model, first, stop in runs
    )
    return [*used, Recipe(merge_method="passthrough", base_model=names[candidate.host], slices=slices, repair=repair)]


def _needed(models: Iterable[str], recipes: Mapping[str, Recipe]) -> dict[str, None]:
    """Names of the recipes that make these models, each behind those that it needs itself."""
    names: dict[str, None] = {}
    for model in models:
        if model in recipes:
            names |= _needed(recipes[model].referenced, recipes) | {model: None}
    return names


def runs_of(path: Sequence[SourceLayer]) -> list[tuple[str, int, int]]:
    """A path as runs of consecutive layers of one model: its name, first layer, layer after the last."""
    runs: list[tuple[str, int, int]] = []
    for model, layer in path:
        if runs and runs[-1][0] == model and runs[-1][2] == layer:
            runs[-1] = (model, runs[-1][1], layer + 1)
        else:
            runs.append((model, layer, layer + 1))
    return runs
