"""Seams between models: a layer that follows one of another model, or one that has gone before."""

from __future__ import annotations

from collections.abc import Sequence

from models.candidate import Candidate, SourceLayer
from tasks.bench.repair.ground import MERGE, Ground

DEPTHS = (0.5,)
"""Where paths change over, relative to the number of layers."""


def changes(ground: Ground) -> list[str]:
    """Paths as rows name them: ``A 9 B`` goes on in model B behind A's layer 9; ``repeat`` and ``back`` pass again."""
    places = [int(share * ground.layers) for share in DEPTHS]
    experts = list(ground.engine.family.experts)
    pairs = [(MERGE, one) for one in experts] + [(one, MERGE) for one in experts] + [(experts[1], experts[0])]
    found = [f"{first} {place} {second}" for place in places for first, second in pairs]
    return found + [f"{word} {place}" for place in places for word in ("repeat", "back")]


def path(ground: Ground, text: str) -> Candidate:
    """The path of a change: whole models up to a place and from there on; ``back`` goes back by two layers."""
    words, layers = text.split(), ground.layers
    if words[0] in ("repeat", "back"):
        place = int(words[1])
        again = place if words[0] == "repeat" else place - 1
        order = [*range(place + 1), *range(again, layers)]
        return Candidate(MERGE, tuple((MERGE, layer) for layer in order))
    first, place, second = words[0], int(words[1]), words[2]
    steps: list[SourceLayer] = [(first, layer) for layer in range(place + 1)]
    return Candidate(MERGE, (*steps, *((second, layer) for layer in range(place + 1, layers))))


def paths(ground: Ground, texts: Sequence[str]) -> list[Candidate]:
    """The same for several."""
    return [path(ground, text) for text in texts]
