"""Items of a task: split once by hash of their content, disjointly; and those of several tasks put in one order."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import count, islice
from typing import Any

from tasks.schema.profile import Splits

SPLITS = ("search", "selection", "test")

CALIBRATION = "calibration"
"""In place of a split: rows that are items of none."""

IDENTIFIER = re.compile(r"(^|_)(id|idx|ind|index)$")
"""Fields that number an item and say nothing of it: two items that differ in nothing else are the same item."""

ROWS = 250
"""Of a data set that are read at once: 1 GiB where each is as long as it may be."""

DIGITS = 12
"""Hexadecimal digits of a digest that place an item in [0, 1): all fit into a float."""


def digest(doc: Mapping[str, Any]) -> str:
    """Hex sha256 of an item's content."""
    content = {key: value for key, value in doc.items() if not IDENTIFIER.search(key)}
    return hashlib.sha256(json.dumps(content or doc, sort_keys=True, default=str).encode()).hexdigest()


def place(content: str) -> float:
    """Where a digest lies in [0, 1)."""
    return int(content[:DIGITS], 16) / float(16**DIGITS)


def split_of(content: str, shares: Splits) -> str:
    """The split of an item, which depends on its own digest and nothing else; ``shares`` of the splits in [0, 1]."""
    where = place(content)
    if where < shares.search:
        return "search"
    return "selection" if where < shares.search + shares.selection else "test"


def chosen(contents: Sequence[str], split: str, shares: Splits) -> list[int]:
    """The items of a split, by the digests of all, in the order of their hashes: any first n are a fair sample."""
    mine = [index for index, content in enumerate(contents) if split_of(content, shares) == split]
    return sorted(mine, key=lambda index: (contents[index], index))


def last_distinct(contents: Sequence[str], count: int) -> set[str]:
    """The last ``count`` distinct digests."""
    return set(islice(dict.fromkeys(reversed(contents)), count))


def rows_of(docs: Any) -> Iterator[Mapping[str, Any]]:
    """The rows of a data set, read many at a time: one by one takes several times as long."""
    if not hasattr(docs, "iter"):  # a list, from a task's own code
        yield from docs
        return
    for batch in docs.iter(ROWS):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))


def unused(docs: Any, used: Set[str], count: int) -> list[Any]:
    """The first ``count`` rows of a data set whose digests are not among ``used``, in the order of their hashes.

    Rows of one content count once.
    """
    found: dict[str, int] = {}
    for index, content in enumerate(map(digest, rows_of(docs))):
        if content not in used:
            found.setdefault(content, index)
    return [docs[found[content]] for content in sorted(found)[:count]]


def interleaved(weights: Sequence[float]) -> Iterator[int]:
    """Which task each item of an objective comes from, for ever.

    Each first n have of every task its share of n, rounded down or up, so that a plain mean over items is the mean of
    the tasks by their weights, which are positive (Balinski and Young's quota method, 1975).
    """
    shares = [weight / sum(weights) for weight in weights]
    taken = [0] * len(shares)
    for n in count(1):
        due = [task for task, share in enumerate(shares) if taken[task] < share * n]
        chosen_one = max(due, key=lambda task: (shares[task] / (taken[task] + 1), -task))
        taken[chosen_one] += 1
        yield chosen_one
