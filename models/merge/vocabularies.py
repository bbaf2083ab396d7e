"""The vocabulary of a merged model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from models.errors import BadInput
from models.merge.blocks import Token, TokenizerBlock, Zero
from models.merge.recipe import Recipe
from models.sources.vocabulary import Rule, Vocabulary, union


def merged_vocabulary(recipe: Recipe, own: Mapping[str, Vocabulary]) -> Vocabulary:
    """The vocabulary of the model that a recipe makes, from those of its models, the base's first.

    Raises:
        BadInput: tokens must be compared, and a model doesn't tell its own; or a row is named that isn't there.
    """
    found, source = union(own), recipe.vocabulary_source  # refuses what can't be compared, whatever is chosen
    if source not in (None, "union"):
        found = next(iter(own.values())) if source == "base" else own[str(source)]
    return _with_tokens(found, own, recipe.tokenizer) if recipe.tokenizer else found


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
