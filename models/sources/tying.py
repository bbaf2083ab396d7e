"""Heads that are the embedding, beside heads of their own: among such models each is given one that is written out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from models.sources.architecture import architecture_of, is_tied
from models.sources.checkpoint import Source


class UntiedSource:
    """A tied model whose embedding is its head, too, under the head's name. Implements ``Source``."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.config: dict[str, Any] = {**source.config, "tie_word_embeddings": False}
        self._architecture = architecture_of(source.config)
        self._head = str(self._architecture.head)

    def names(self) -> list[str]:
        """See ``Source``."""
        return sorted([*self.source.names(), self._head])

    def tensor(self, name: str) -> Tensor:
        """See ``Source``."""
        return self.source.tensor(self._architecture.embedding if name == self._head else name)

    def digest(self, group: str) -> str:
        """See ``Source``."""
        digest = self.source.digest(group)
        if self._architecture.group(self._head) != group:
            return digest
        return hashlib.sha256(f"untied {digest}".encode()).hexdigest()


def share_tying(sources: Mapping[str, Source]) -> dict[str, Source]:
    """Models of one family: each as it is where all are tied or none, else each with a head."""
    tied = {name: is_tied(source.config) for name, source in sources.items()}
    if len(set(tied.values())) == 1:
        return dict(sources)
    return {name: UntiedSource(source) if tied[name] else source for name, source in sources.items()}
