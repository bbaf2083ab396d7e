"""Texts of a task as batches of token ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from models.errors import BadInput
from models.files import parse_json
from models.sources.lines import lines_of


@dataclass(frozen=True)
class Texts:
    """Some texts, padded on the right: under causal attention no token sees the padding."""

    ids: Tensor
    """Token ids, ``(B, T)``."""
    real: Tensor
    """Which are no padding, ``(B, T)`` bool."""


def read_texts(path: Path) -> list[str]:
    """The ``text`` of each line of a file of JSON lines.

    Raises:
        BadInput: the file is missing or empty, or a line has no text.
    """
    texts: list[str] = []
    for number, line in lines_of(path):
        if not line.strip():
            continue
        data = parse_json(line, f"{path}: line {number}")
        text = data.get("text") if isinstance(data, dict) else None
        if not isinstance(text, str) or not text:
            raise BadInput(f'{path}: line {number}: has no text; each line must be {{"text": "…"}}')
        texts.append(text)
    if not texts:
        raise BadInput(f"{path}: holds no texts")
    return texts


def batches(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, rows: int, longest: int) -> list[Texts]:
    """Batches of ``rows`` texts in their order, each text cut off at ``longest`` tokens."""
    ids: list[list[int]] = [list(tokenizer(text)["input_ids"])[:longest] for text in texts]
    rest, made = iter([one for one in ids if one]), []
    while some := list(islice(rest, rows)):
        width = max(map(len, some))
        padded = torch.tensor([one + [0] * (width - len(one)) for one in some])
        made.append(Texts(padded, torch.tensor([[at < len(one) for at in range(width)] for one in some])))
    return made


def digest(texts: Sequence[Sequence[str]]) -> str:
    """Hex sha256 of the texts of all experts."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()
