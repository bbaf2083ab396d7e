"""Recipes to a Hugging Face folder, tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from models.checkpoint import Checkpoint, open_checkpoint, require_finite, require_new, write_checkpoint
from models.errors import BadInput
from models.merge.card import model_card
from models.merge.recipe import Dtype, Recipe, dump_recipes
from models.merge.source import MergedSource, open_recipes

RECIPE_FILE = "recipe.yaml"


class FiniteCheckpoint:
    """A checkpoint that refuses NaN and infinity in every tensor that is read."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.config: dict[str, Any] = checkpoint.config

    def names(self) -> list[str]:
        """See ``Source``."""
        return self.checkpoint.names()

    def tensor(self, name: str) -> Tensor:
        """See ``Source``.

        Raises:
            BadInput: it holds NaN or infinity.
        """
        return require_finite(self.checkpoint.tensor(name), f"{self.checkpoint.path}: {name}")

    def digest(self, group: str) -> str:
        """See ``Source``."""
        return self.checkpoint.digest(group)


def merge_to_disk(
    recipes: Sequence[Recipe],
    out: Path,
    resolve_folder: Callable[[str], Path],
    device: str = "cpu",
    dtype: Dtype | None = None,
    on_tensor: Callable[[int, int], None] | None = None,
) -> None:
    """Write the model that the last recipe makes, with tokenizer, recipe and model card.

    One shard and one tensor of each model are held in memory. Nothing is written unless all of it is.

    Args:
        recipes: as :func:`models.merge.recipe.parse_recipes` gives them.
        out: folder to make.
        resolve_folder: folder of a model that a recipe names.
        device: where tensors are merged.
        dtype: what is stored, instead of the last recipe's ``out_dtype``.
        on_tensor: is told after each tensor how many are written, and of how many.

    Raises:
        BadInput: ``out`` is there already; a checkpoint is missing, damaged or doesn't fit; a result isn't finite.
    """
    require_new(out)
    if dtype is not None:
        recipes = [*recipes[:-1], recipes[-1].model_copy(update={"out_dtype": dtype})]
    opened: dict[str, FiniteCheckpoint] = {}

    def resolve(model: str) -> FiniteCheckpoint:
        if model not in opened:
            opened[model] = FiniteCheckpoint(open_checkpoint(resolve_folder(model)))
        return opened[model]

    merged = open_recipes(recipes, resolve, device)
    lender = resolve_folder(tokenizer_model(recipes))
    if any(recipe.tokenizer_source for recipe in recipes):
        for one in opened.values():
            _check_tokens(lender, one.checkpoint.path)
    write_checkpoint(
        out,
        merged.config,
        _stream(merged, [one.checkpoint for one in opened.values()], on_tensor),
        tokenizer_from=lender,
        extra={RECIPE_FILE: dump_recipes(recipes), "README.md": model_card(out.name, recipes)},
    )


def tokenizer_model(recipes: Sequence[Recipe]) -> str:
    """The model that lends the last recipe its tokenizer: ``tokenizer_source``, else the base, else the first model."""
    named = {recipe.name: recipe for recipe in recipes[:-1]}
    recipe = recipes[-1]
    while True:
        source = recipe.tokenizer_source
        model = recipe.referenced[0] if source in (None, "base") else source
        assert model is not None  # noqa: S101 (narrowed above)
        if model not in named:
            return model
        recipe = named[model]


def _check_tokens(lender: Path, other: Path) -> None:
    """Refuse tokenizers that give tokens different ids: with ``tokenizer_source`` mergekit would reorder embeddings."""
    files = [folder / "tokenizer.json" for folder in (lender, other)]
    if all(file.is_file() for file in files):
        one, two = (json.loads(file.read_text(encoding="utf-8")) for file in files)
        if (one["model"].get("vocab"), _added(one)) != (two["model"].get("vocab"), _added(two)):
            raise BadInput(f"{other}: tokenizer.json: gives tokens other ids than {lender}; leave tokenizer_source out")


def _added(tokenizer: dict[str, Any]) -> dict[str, int]:
    return {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}


def _stream(
    merged: MergedSource, checkpoints: Sequence[Checkpoint], on_tensor: Callable[[int, int], None] | None
) -> Iterator[tuple[str, Tensor]]:
    """Tensors from the embedding through the layers in their order to the head."""
    architecture = merged.architecture

    def depth(name: str) -> tuple[float, str]:
        layer, inner = architecture.split(name)
        return (-1.0 if name == architecture.embedding else float("inf") if layer is None else layer), inner

    names = sorted(merged.names(), key=depth)
    group = None
    for number, name in enumerate(names):
        if architecture.group(name) != group:
            group = architecture.group(name)
            for checkpoint in checkpoints:
                checkpoint.release()
        yield name, _finite(merged.tensor(name), name)
        if on_tensor:
            on_tensor(number + 1, len(names))


def _finite(tensor: Tensor, name: str) -> Tensor:
    """The inputs were finite, so what isn't has left the range of the number format."""
    try:
        return require_finite(tensor, name)
    except BadInput:
        raise BadInput(f"{name}: the merge leaves the range of {tensor.dtype}; set dtype: float32") from None
