"""The vocabularies of merged models, one for each recipe of a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from models.merge.recipe import Recipe
from models.sources.checkpoint import Source
from models.sources.vocabulary import Vocabulary, common_vocabulary
from models.sources.vocabulary_source import vocabulary_of


def merged_vocabularies(recipes: Sequence[Recipe], resolve: Callable[[str], Source]) -> dict[str, Vocabulary]:
    """Name of each recipe, empty for one without → the vocabulary of the model that it makes.

    ``resolve`` gives the model of a name that is no recipe's.

    Raises:
        BadInput: vocabularies differ, and a model doesn't tell its tokens.
    """
    spoken: dict[str, Vocabulary] = {}
    for recipe in recipes:
        own = {name: spoken[name] if name in spoken else vocabulary_of(resolve(name)) for name in recipe.referenced}
        spoken[recipe.name or ""] = common_vocabulary(own, recipe.tokenizer_source)
    return spoken


def with_tokenizer_source(recipes: Sequence[Recipe], resolve: Callable[[str], Source]) -> list[Recipe]:
    """The recipes, each with ``union`` written out where it merges different vocabularies: mergekit cuts them else."""
    spoken = merged_vocabularies(recipes, resolve)
    told = []
    for recipe in recipes:
        own = [spoken[name] if name in spoken else vocabulary_of(resolve(name)) for name in recipe.referenced]
        differs = recipe.tokenizer_source is None and not all(one.same(own[0]) for one in own)
        told.append(recipe.model_copy(update={"tokenizer_source": "union"}) if differs else recipe)
    return told
