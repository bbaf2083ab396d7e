"""What an item is, and how training examples are kept apart from the items of the splits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Example:
    """A prompt and the one line that answers it.

    The answer starts with a space and ends with a newline: exactly the continuation of the prompt that is scored.
    """

    prompt: str
    answer: str
    variable: str = ""
    """Name of the variable that a program reads; empty where the answer is no program."""

    def record(self, **fields: Any) -> dict[str, Any]:
        """The item as a JSON object, with an id that depends on its content alone."""
        content = {"prompt": self.prompt, "answer": self.answer, **fields}
        text = json.dumps(content, sort_keys=True, ensure_ascii=False)
        return {"id": hashlib.sha256(text.encode()).hexdigest()[:12], **content}


@dataclass(frozen=True)
class Kind:
    """Examples of one sort, and their share of a task."""

    share: float
    examples: Sequence[Example]
    held_out: bool = True
    """Whether items may be drawn from it; otherwise it is for training alone."""


HELD_OUT_SHARE = 0.3
"""Share of the prompts that no model is trained on."""


def is_held_out(prompt: str, seed: int) -> bool:
    """Whether a prompt belongs to the items rather than to training, by its hash alone."""
    digest = hashlib.sha256(f"{seed}:{prompt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT_SHARE * 2**64


def mix(kinds: Iterable[Kind], generator: np.random.Generator) -> list[Example]:
    """All examples, each kind in random order, interleaved so that every prefix holds each kind by its share."""
    keyed = [
        ((place + 0.5) / kind.share, number, kind.examples[index])
        for number, kind in enumerate(kinds)
        for place, index in enumerate(generator.permutation(len(kind.examples)))
    ]
    return [example for _, _, example in sorted(keyed, key=lambda entry: entry[:2])]


def divide(kinds: Sequence[Kind], seed: int, generator: np.random.Generator) -> tuple[list[Example], list[Example]]:
    """Training examples and held-out ones, both mixed by the kinds' shares; no prompt is in both."""
    training = [
        Kind(kind.share, [e for e in kind.examples if not (kind.held_out and is_held_out(e.prompt, seed))])
        for kind in kinds
    ]
    held_out = [
        Kind(kind.share, [e for e in kind.examples if is_held_out(e.prompt, seed)]) for kind in kinds if kind.held_out
    ]
    return mix(training, generator), mix(held_out, generator)
