"""A candidate: a host and an inference path over the models of a pool."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from models.errors import BadInput, one_line

SourceLayer = tuple[str, int]
"""Layer ``l`` of model ``m`` of the pool: ``(m, l)``."""


@dataclass(frozen=True, order=True)
class Candidate:
    """One model that can be scored: the layers a token passes, between the embedding and the head of its host.

    A plain model or merge recipe is the identity path over itself.
    """

    host: str
    path: tuple[SourceLayer, ...]

    @classmethod
    def identity(cls, model: str, layers: int) -> Candidate:
        """All ``layers`` layers of one model in their own order."""
        return cls(model, tuple((model, layer) for layer in range(layers)))

    @property
    def depth(self) -> int:
        """Number of layers that a token passes, T."""
        return len(self.path)

    @property
    def models(self) -> tuple[str, ...]:
        """The pool models that it uses, host first, each once."""
        return tuple(dict.fromkeys((self.host, *(model for model, _ in self.path))))

    def is_identity(self, layers: int) -> bool:
        """Whether it is a plain model of ``layers`` layers."""
        return self == Candidate.identity(self.host, layers)

    def to_json(self) -> str:
        """Canonical text, the same for equal candidates."""
        return json.dumps({"host": self.host, "path": [list(step) for step in self.path]}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Candidate:
        """Inverse of :meth:`to_json`.

        Raises:
            BadInput: the text is of no candidate.
        """
        try:
            data = json.loads(text)
            path = tuple((str(model), int(layer)) for model, layer in data["path"])
            if not path or not isinstance(data["host"], str):
                raise ValueError("no path, or no host")
            return cls(data["host"], path)
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise BadInput(f"candidate {text[:80]!r}: {one_line(error, 80)}; take the file as hm3 wrote it") from None

    @property
    def id(self) -> str:
        """A short name that depends on host and path alone."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:10]
