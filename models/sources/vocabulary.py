"""Which token each row of an embedding belongs to, and the union of several vocabularies.

Tokens are compared as the strings of ``tokenizer.json``. A union begins with the base's tokens under the ids that they
have there; the other models' tokens follow behind the base's last, in the order of the models and of the ids in them.
They take the rows that pad the base's matrix, then new ones. What pads the other models' matrices is dropped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from models.errors import BadInput
from models.files import find_inside, read_object, reading
from models.sources.fields import COMPANIONS, TokenizerFile

TOKENIZER = "tokenizer.json"
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
"""Those of a token that no other tokenizer had to describe; the tokenizers library's own defaults."""


@dataclass(frozen=True)
class Rule:
    """Where a row comes from in models that lack its token."""

    model: str
    """Empty for a row of zeros."""
    row: int
    force: bool
    """Also in models that have the token."""


@dataclass(frozen=True)
class Vocabulary:
    """The rows of a model's embedding and head."""

    rows: int
    """Number of rows; 0 for a model without tokens."""
    tokens: Mapping[str, int] | None = None
    """Token → row; ``None`` where there is no ``tokenizer.json``. Tokens without a row are left out."""
    folder: Path | None = None
    """Where the tokenizer lies."""
    added: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Token → entry under ``added_tokens``, for tokens that are looked for in the text before it is split."""
    extra: tuple[str, ...] = ()
    """Tokens that the tokenizer in ``folder`` lacks."""
    rules: Mapping[int, Rule] = field(default_factory=dict)
    """Row → where it comes from, for tokens that a recipe names."""
    filled: int | None = None
    """Rows behind so many are the mean of those before; None: what pads the base's matrix stays."""

    def same(self, other: Vocabulary) -> bool:
        """Whether all rows mean the same, as far as is known."""
        if self.rules or other.rules or (self.filled or self.rows) != (other.filled or other.rows):
            return False
        return self.rows == other.rows and (None in (self.tokens, other.tokens) or self.tokens == other.tokens)

    def within(self, other: Vocabulary) -> bool:
        """Whether what its tokens read is the same by the other, which may have more."""
        if self.same(other):
            return True
        if other.rules or self.tokens is None or other.tokens is None:
            return False
        return self.tokens.items() <= other.tokens.items()


def read_vocabulary(folder: Path, rows: int) -> Vocabulary:
    """The vocabulary of a model, from the folder of its tokenizer and the rows of its embedding.

    Raises:
        BadInput: ``tokenizer.json`` can't be read.
    """
    if not rows or not find_inside(folder, TOKENIZER):
        return Vocabulary(rows)
    content = read_object(folder, TOKENIZER, TokenizerFile)
    added = {str(entry["content"]): entry for entry in content.get("added_tokens") or []}
    ids = _ids(content)
    return Vocabulary(rows, {token: row for token, row in ids.items() if row < rows}, folder, added)


def token_ids(folder: Path) -> dict[str, int]:
    """Token → id in ``tokenizer.json``, whether it has a row or not; nothing where there is no such file.

    Raises:
        BadInput: the file can't be read.
    """
    return _ids(read_object(folder, TOKENIZER, TokenizerFile)) if find_inside(folder, TOKENIZER) else {}


def _ids(content: Mapping[str, Any]) -> dict[str, int]:
    return _model_ids(content) | {entry["content"]: entry["id"] for entry in content.get("added_tokens") or []}


def union(vocabularies: Mapping[str, Vocabulary]) -> Vocabulary:
    """The first vocabulary, the base's, and what other models' add to it; the first itself if they add nothing.

    Raises:
        BadInput: tokens must be compared, and a model doesn't tell its own.
    """
    name, base = next(iter(vocabularies.items()))
    if all(one.same(base) for one in vocabularies.values()):
        return base
    unknown = next((model for model, one in vocabularies.items() if one.tokens is None and one.rows != base.rows), None)
    if base.tokens is None or unknown is not None:
        rows = f"vocab_size is {vocabularies[unknown].rows}, but {name} has {base.rows}" if unknown else "others differ"
        raise BadInput(
            f"{unknown or name}: {TOKENIZER}: missing, so its tokens can't be told apart ({rows});"
            " put the tokenizer that it was trained with into its folder"
        )
    extra: dict[str, None] = {}
    added = dict(base.added)
    for one in vocabularies.values():
        tokens = one.tokens or {}
        extra |= dict.fromkeys(token for token in sorted(tokens, key=tokens.__getitem__) if token not in base.tokens)
        added = {**one.added, **added}
    if not extra:
        return base
    first = 1 + max(base.tokens.values(), default=-1)
    tokens = {**base.tokens, **{token: first + number for number, token in enumerate(extra)}}
    return replace(
        base, rows=max(base.rows, first + len(extra)), tokens=tokens, added=added, extra=(*base.extra, *extra)
    )


def tokenizer_texts(vocabulary: Vocabulary) -> dict[str, str]:
    """Files of the tokenizer that have to change for its extra tokens: name → text; none if it has none.

    Raises:
        BadInput: the tokenizer can't give the tokens these ids.
    """
    if not vocabulary.extra or vocabulary.folder is None or vocabulary.tokens is None:
        return {}
    folder, ids = vocabulary.folder, {token: vocabulary.tokens[token] for token in vocabulary.extra}
    content = read_object(folder, TOKENIZER, TokenizerFile)
    known = vocabulary.tokens
    model = content["model"]
    words = model.get("type") in ("WordLevel", "WordPiece")
    kept = [entry for entry in content.get("added_tokens") or [] if entry["content"] in known]
    new = {
        token: {"id": row, "content": token, **{flag: own.get(flag, default) for flag, default in FLAGS.items()}}
        for token, row in ids.items()
        if (own := vocabulary.added.get(token, {} if not words else None)) is not None
    }
    content["added_tokens"] = [*(entry for entry in kept if entry["content"] not in ids), *new.values()]
    if isinstance(model.get("vocab"), dict):  # an id that stands here is kept; others are counted on from the last
        model["vocab"] = {**model["vocab"], **ids}
    texts = {TOKENIZER: json.dumps(content, ensure_ascii=False, indent=2)}
    _require_ids(texts[TOKENIZER], ids, folder)
    for file, change in (("added_tokens.json", _with_ids), ("tokenizer_config.json", _with_decoder)):
        if find_inside(folder, file):
            texts[file] = json.dumps(
                change(read_object(folder, file, COMPANIONS[file]), new), ensure_ascii=False, indent=2
            )
    return texts


def _with_ids(content: dict[str, Any], new: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {**content, **{token: entry["id"] for token, entry in new.items()}}


def _with_decoder(content: dict[str, Any], new: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    if "added_tokens_decoder" not in content:
        return content
    entries = {str(entry["id"]): {key: entry[key] for key in ("content", *FLAGS)} for entry in new.values()}
    return {**content, "added_tokens_decoder": {**content["added_tokens_decoder"], **entries}}


def _require_ids(text: str, ids: Mapping[str, int], folder: Path) -> None:
    from tokenizers import Tokenizer  # few merges need it

    with reading(f"{folder}: {TOKENIZER}"):
        tokenizer = Tokenizer.from_str(text)
    wrong: Sequence[str] = [token for token, row in ids.items() if tokenizer.token_to_id(token) != row]
    if wrong:
        raise BadInput(
            f"{folder}: {TOKENIZER}: can't give {wrong[0]} the id {ids[wrong[0]]};"
            " leave the others' tokens out with tokenizer_source: base"
        )


def _model_ids(content: Mapping[str, Any]) -> dict[str, int]:
    """Tokens of the model part: a mapping to ids, or for Unigram a list of pieces with their scores."""
    vocab = content["model"].get("vocab") or {}
    if isinstance(vocab, list):
        return {str(piece[0]): row for row, piece in enumerate(vocab)}
    return {str(token): int(row) for token, row in vocab.items()}
