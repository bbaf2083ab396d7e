"""The vocabularies of merged models, one for each recipe of a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from models.errors import BadInput
from models.merge.blocks import Token, TokenizerBlock, Zero
from models.merge.recipe import Recipe
from models.sources.checkpoint import Source
from models.sources.vocabulary import Rule, Vocabulary, common_vocabulary
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
        found = common_vocabulary(own, recipe.vocabulary_source)
        spoken[recipe.name or ""] = _with_tokens(found, own, recipe.tokenizer) if recipe.tokenizer else found
    return spoken


def _with_tokens(vocabulary: Vocabulary, own: Mapping[str, Vocabulary], block: TokenizerBlock) -> Vocabulary:
    """A vocabulary with the tokens of a recipe, and so many rows as a multiple asks for.

    Raises:
        BadInput: it has no tokenizer, or a model doesn't have the row that is named.
    """
    if vocabulary.tokens is None:
        raise BadInput("tokenizer: the models have no tokenizer.json, so tokens can't be named; leave it out")
    tokens, extra = dict(vocabulary.tokens), [*vocabulary.extra]
    for token in block.tokens:
        if token not in tokens:
            tokens[token] = 1 + max(tokens.values(), default=-1)
            extra.append(token)
    rules = {tokens[token]: _rule(token, how, own) for token, how in block.tokens.items()}
    rows = max(vocabulary.rows, 1 + max(tokens.values(), default=-1))
    known = rows
    if block.pad_to_multiple_of:
        known = 1 + max(tokens.values(), default=-1)
        rows = -(-known // block.pad_to_multiple_of) * block.pad_to_multiple_of
    return replace(vocabulary, rows=rows, tokens=tokens, extra=tuple(extra), rules=rules, filled=known)


def _rule(token: str, how: Token, own: Mapping[str, Vocabulary]) -> Rule:
    if isinstance(how.source, Zero):
        return Rule("", -1, how.force)
    model, wanted = (how.source, token) if isinstance(how.source, str) else (how.source.model, how.source.token)
    given = None if isinstance(how.source, str) else how.source.token_id
    row = given if given is not None else (own[model].tokens or {}).get(str(wanted))
    if row is None or row >= own[model].rows:
        raise BadInput(f"tokenizer.tokens.{token}: {model} has no token {wanted if given is None else given}")
    return Rule(model, row, how.force)


def with_tokenizer_source(recipes: Sequence[Recipe], resolve: Callable[[str], Source]) -> list[Recipe]:
    """The recipes, each with ``union`` written out where it merges different vocabularies: mergekit cuts them else."""
    spoken = merged_vocabularies(recipes, resolve)
    told = []
    for recipe in recipes:
        own = [spoken[name] if name in spoken else vocabulary_of(resolve(name)) for name in recipe.referenced]
        differs = recipe.vocabulary_source is None and not all(one.same(own[0]) for one in own)
        told.append(recipe.model_copy(update={"tokenizer_source": "union"}) if differs else recipe)
    return told
