"""Models with different vocabularies, presented with one: what lies behind a row of the embedding is the same in all.

A token's row in a model that lacks the token is the base's row, else the mean over the models that have it, as in
mergekit with ``tokenizer_source: union``. A row of the output that no token names pads the model whose tokenizer is
taken; the others get its row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.errors import BadInput
from models.sources.architecture import architecture_of
from models.sources.checkpoint import Source
from models.sources.heads import share_heads
from models.sources.tying import share_tying
from models.sources.vocabulary import Vocabulary, union

CHUNK = 2**14
"""Rows that are gathered at a time."""

SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class Fill:
    """Rows that one model contributes to an embedding."""

    source: Source
    to: Tensor
    """Rows of the output ``(N,)``."""
    rows: Tensor
    """Rows of the source ``(N,)``."""
    share: Tensor
    """Weight of each row ``(N,)``; the shares of a row of the output sum to 1."""

    def digest(self, group: str) -> list[Any]:
        """What it depends on."""
        return [self.source.digest(group), self.to.tolist(), self.rows.tolist(), self.share.tolist()]


class VocabularySource:
    """A model with the rows of another vocabulary. Implements :class:`models.sources.checkpoint.Source`."""

    def __init__(self, source: Source, fills: tuple[Fill, ...], own: Vocabulary, out: Vocabulary, label: str) -> None:
        """The rows of embedding and head are gathered from the ``fills`` when they are asked for.

        The model has its ``own`` vocabulary, and is given the one ``out``.
        """
        self.source = source
        self.label = label
        self._fills = fills
        self._rows = (own.rows, out.rows)
        self._filled = out.rows if out.filled is None else out.filled
        architecture = architecture_of(source.config, label)
        self._group = architecture.group
        self._by_token = {name for name in (architecture.embedding, architecture.head) if name}
        self._digests: dict[str, str] = {}
        self.config: dict[str, Any] = {**source.config, **_special_ids(source.config, own, out), "vocab_size": out.rows}

    def names(self) -> list[str]:
        """See ``Source``."""
        return self.source.names()

    def tensor(self, name: str) -> Tensor:
        """See ``Source``.

        Raises:
            BadInput: embedding or head has another number of rows than the config says.
        """
        tensor = self.source.tensor(name)
        if name not in self._by_token:
            return tensor
        if tensor.shape[0] != self._rows[0]:
            raise BadInput(
                f"{self.label}: {name}: has {tensor.shape[0]} rows, but config.json has vocab_size {self._rows[0]}"
            )
        donors = [fill.source.tensor(name) for fill in self._fills]
        gathered = tensor.new_zeros((self._rows[1], *tensor.shape[1:]))
        for fill, donor in zip(self._fills, donors, strict=True):
            if donor.shape[1:] != tensor.shape[1:]:
                raise BadInput(f"{self.label}: {name}: rows of {list(tensor.shape[1:])} can't join {list(donor.shape)}")
            parts = (torch.split(part, CHUNK) for part in (fill.to, fill.rows, fill.share))
            for to, rows, share in zip(*parts, strict=True):
                part = donor[rows] if bool((share == 1).all()) else donor[rows] * share.to(donor).unsqueeze(1)
                gathered.index_add_(0, to, part.to(gathered.dtype))
        if self._filled < len(gathered):
            gathered[self._filled :] = gathered[: self._filled].mean(dim=0)
        return gathered

    def digest(self, group: str) -> str:
        """See ``Source``."""
        if group not in self._digests:
            digest = self.source.digest(group)
            if any(self._group(name) == group for name in self._by_token):
                described: list[Any] = [digest, self._rows, [fill.digest(group) for fill in self._fills]]
                described += [self._filled] if self._filled < self._rows[1] else []
                digest = hashlib.sha256(json.dumps(described).encode()).hexdigest()
            self._digests[group] = digest
        return self._digests[group]


def vocabulary_of(source: Source) -> Vocabulary:
    """A model's vocabulary; of one that doesn't lie in a folder no more than its size is known."""
    found = getattr(source, "vocabulary", None)
    return found if isinstance(found, Vocabulary) else Vocabulary(int(source.config.get("vocab_size") or 0))


def share_vocabulary(sources: Mapping[str, Source]) -> dict[str, Source]:
    """Models, the base first, with the union of their vocabularies; each as it is where it has that already.

    Raises:
        BadInput: vocabularies differ, and a model doesn't tell its tokens.
    """
    vocabularies = {name: vocabulary_of(source) for name, source in sources.items()}
    return align(sources, vocabularies, union(vocabularies))


def align(sources: Mapping[str, Source], vocabularies: Mapping[str, Vocabulary], out: Vocabulary) -> dict[str, Source]:
    """Models, the base first, of these vocabularies with the one ``out``; each as it is where it has that already.

    A model that doesn't tell its tokens, and has as many rows as the base, counts as one with the base's tokens.
    """
    sources = share_tying(share_heads(sources))
    base = next(iter(vocabularies.values()))
    told = {name: base if one.tokens is None and one.rows == base.rows else one for name, one in vocabularies.items()}
    if all(one.same(out) for one in told.values()):
        return dict(sources)
    held = {name: _rows_held(one, out) for name, one in told.items()}
    return {
        name: source
        if told[name].same(out)
        else VocabularySource(source, tuple(_fills(name, sources, held, out)), told[name], out, name)
        for name, source in sources.items()
    }


def _rows_held(own: Vocabulary, out: Vocabulary) -> Tensor:
    """For each row of the output the model's row ``(V,)``, −1 where it has none."""
    tokens = own.tokens or {}
    rows = torch.full((out.rows,), -1)
    if out.folder is not None and own.folder == out.folder:
        rows[: own.rows] = torch.arange(own.rows)[: out.rows]
    for token, row in (out.tokens or {}).items():
        rows[row] = tokens.get(token, -1)
    return rows


def _fills(model: str, sources: Mapping[str, Source], held: Mapping[str, Tensor], out: Vocabulary) -> Iterator[Fill]:
    """Rows that a recipe names, then own ones, the base's, the mean over all that have one; none behind the filled."""
    left = torch.ones_like(held[model], dtype=torch.bool)
    left[out.filled :] = left[out.filled :] & (out.filled is None)
    for row, rule in out.rules.items():
        if rule.force or held[model][row] < 0:
            left[row] = False
            if rule.model:
                yield Fill(sources[rule.model], torch.tensor([row]), torch.tensor([rule.row]), torch.ones(1))
    for name in dict.fromkeys((model, next(iter(held)))):
        to = (left & (held[name] >= 0)).nonzero()[:, 0]
        left[to] = False
        if len(to):
            yield Fill(sources[name], to, held[name][to], torch.ones(len(to)))
    count = torch.stack([rows >= 0 for rows in held.values()]).sum(0)
    for name, rows in held.items():
        to = (left & (rows >= 0)).nonzero()[:, 0]
        if len(to):
            yield Fill(sources[name], to, rows[to], 1 / count[to])


def _special_ids(config: Mapping[str, Any], own: Vocabulary, out: Vocabulary) -> dict[str, Any]:
    """The config's special tokens under their ids in another vocabulary; those that it lacks keep theirs."""
    tokens = {row: token for token, row in (own.tokens or {}).items()}

    def moved(row: Any) -> Any:
        if isinstance(row, list):
            return [moved(one) for one in row]
        return (out.tokens or {}).get(tokens.get(row, ""), row)

    return {key: moved(config[key]) for key in SPECIAL if config.get(key) is not None}
