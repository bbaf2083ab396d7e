"""What a search of a family may cost: its budget and its rungs, from the items and the size of the models."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any

from models.sources.checkpoint import Model
from tasks.schema.params import Params

CANDIDATES, SMALL, FEWER, LEAST = 150, 10**7, 0.18, 100
"""Candidates on all search items that a budget is worth: ``CANDIDATES`` for models of ``SMALL`` parameters, fewer for
larger ones by a power of their size, and ``LEAST`` at least: sample and dataset take up to half of those."""


def parameter_count(source: Model) -> int:
    """Number of parameters of a checkpoint; its tensors are not read."""
    return sum(prod(source.tensor(name).shape) for name in source.names())


def fitting(params: Params, items: Iterable[int], size: int) -> dict[str, Any]:
    """What a profile sets for itself where params.yaml doesn't suit it.

    Args:
        params: of the project.
        items: search items of each objective.
        size: parameters of the base.
    """
    items = [*items]
    fewest, worth = min(items), max(LEAST, CANDIDATES * min(1.0, (SMALL / size) ** FEWER))
    thousands = max(1, round(worth * sum(items) / 1000))
    own: dict[str, Any] = {}
    search = {"budget": 1000 * thousands, "rungs": sorted({max(1, fewest // 4), fewest})}
    if search != {"budget": params.search.budget, "rungs": list(params.search.rungs)}:
        own["search"] = search
    if params.dataset.items > fewest:
        own["dataset"] = {"items": fewest}
    return own
