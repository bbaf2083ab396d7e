"""Items of real data, split by hash, and metrics that need no free generation, at which a small model solves little."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

LONGEST = 360
"""Characters of prompt and answer together: longer rows take most of the time and teach the search little more."""

SHARES = {"search": 0.45, "selection": 0.25, "test": 0.30}
"""Of the rows of one file, by hash."""

END = "<|im_end|>"


def place(row: Mapping[str, Any]) -> float:
    """Where a row lies in [0, 1), by its content: decides its split, and its order in there."""
    text = json.dumps({key: row[key] for key in sorted(row)}, ensure_ascii=False)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


def short_rows(dataset: Any) -> Any:
    """The short rows in the order of their hash, which mixes what lies together in the file."""
    lengths = [sum(len(str(one)) for one in row.values()) for row in dataset]
    places = [(place(row), index) for index, row in enumerate(dataset) if lengths[index] <= LONGEST]
    return dataset.select([index for _, index in sorted(places)])


def rows(dataset: Any) -> Any:
    """The short rows of one file that belong to the split as which it was loaded; the splits share no row.

    A file of rows for training is loaded as ``train``, and all of its short rows are taken.
    """
    split, low = str(dataset.split), 0.0
    if split not in SHARES:
        return short_rows(dataset)
    for name, share in SHARES.items():
        if name == split:
            break
        low += share
    short = short_rows(dataset)
    kept = [index for index, row in enumerate(short) if low <= place(row) < low + SHARES[split]]
    return short.select(kept)


def answer(doc: Mapping[str, str]) -> str:
    """What the model is to say for an item, without the end token."""
    return next(doc[key] for key in ("de", "answer", "completion") if key in doc)


def process_results(doc: Mapping[str, str], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """Bits that the model needs for a byte of the answer, its end token included, and the share of tokens it gives.

    The share needs an answer token by token, which lm-eval's own models don't give: there it is no number.
    """
    bits = -results[0][0] / math.log(2)
    return {
        "bits_per_byte": bits / len(answer(doc).encode()),
        "token_accuracy": getattr(results[0], "matching", math.nan),
    }
