"""Checkpoints on disk: from a recipe of one's own, and from a member of a front."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from models.merge.blocks import Dtype
from models.merge.recipe import Recipe, read_recipes
from models.merge.source import MergedSource
from models.merge.write import merge_to_disk
from models.sources.heads import Heads
from tasks.project.progress import Bar, Progress
from tasks.project.references import finder, model_finder
from tasks.project.workspace import Workspace, state_folder

if TYPE_CHECKING:  # merging a recipe needs no front, and what computes one takes a while to import
    from tasks.front.front import Member


def merge_recipe(
    recipe: Path, out: Path, places: Sequence[Path], device: str, dtype: Dtype | None, progress: Progress
) -> None:
    """Build a checkpoint from a recipe file, whose models are looked for from the ``places``, in order.

    Raises:
        BadInput: the recipe or a model can't be used, or ``out`` is there.
    """
    write(read_recipes(recipe), out, model_finder(state_folder(places[-1]), *places), progress, device, dtype)


def write_member(workspace: Workspace, member: Member, out: Path, progress: Progress) -> None:
    """Build a member's checkpoint; an encoder of images with the heads of all tasks and the base's image processor.

    Raises:
        BadInput: one of its models or heads is missing, or ``out`` is there.
    """
    from tasks.front.composition import recipe_path

    heads, extra = None, {}
    if any(one.images for one in workspace.profile.objectives):
        from tasks.objectives.images.heads import family_heads
        from tasks.objectives.images.items import PROCESSOR
        from tasks.objectives.images.objective import processor_folder

        heads = family_heads(workspace)
        extra[PROCESSOR] = (processor_folder(workspace) / PROCESSOR).read_text(encoding="utf-8")
    recipes = read_recipes(recipe_path(workspace.run, member))
    write(recipes, out, finder(workspace), progress, heads=heads, extra=extra)


def write(
    recipes: list[Recipe],
    out: Path,
    find: Callable[[str], Path],
    progress: Progress,
    device: str = "cpu",
    dtype: Dtype | None = None,
    heads: Heads | None = None,
    extra: Mapping[str, str] | None = None,
) -> None:
    """Stream the model of the last recipe into a folder."""

    def learning(source: MergedSource, tokenizer: Path) -> None:
        from models.learned.learn import learn

        with progress.bar(source.recipe.merge_method, None, "steps") as bar:
            learn(source, tokenizer, find, partial(told, bar))

    with progress.bar(f"writing {out.name}", None, "tensors") as bar:
        merge_to_disk(recipes, out, find, device, dtype, partial(told, bar), heads, extra, learning)


def told(bar: Bar, number: int, total: int) -> None:
    """Move a bar to where something is, of a total that is only known now."""
    bar.total = total
    bar.advance(number - bar.completed)
