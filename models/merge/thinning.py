"""Thinning of task vectors δ (n entries): which of them are kept, and what is done to those that are.

A thinning is found from the magnitudes of the whole task vector, and applied to the task vector piece by piece, so that
of a large tensor only masks of a byte an entry stay in memory. The magnitudes are overwritten. Which entries are kept,
order and rounding follow mergekit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.errors import BadInput

PIECE = 2**16
"""Entries that are merged at a time: a few task vectors of so many stay in a core's cache."""
SORTED = 2**17
"""Entries up to which a sort decides which of equal magnitudes are kept, as in mergekit.

Such a sort takes twenty times as long as finding the threshold, is not stable, and chooses by the machine's instruction
set. In larger tensors the first ones are kept: that is quick and the same everywhere.
"""
TOO_SMALL_TO_RESCALE = 1e-7
"""L1 norm below which a thinned task vector is not rescaled."""

Rescale = bool | str
"""``True`` or ``l1`` keep the L1 norm as mergekit does, ``inverse_density`` the expectation of a random mask."""


@dataclass(frozen=True)
class Thinning:
    """What is done to a task vector; with nothing set, nothing."""

    keep: Tensor | None = None
    """Entries that are kept ``(n,)``, bool."""
    factor: Tensor | float | None = None
    """What they are multiplied with: one number, or one an entry ``(n,)``."""
    dtype: torch.dtype | None = None
    """What to compute in, where that is not the dtype of the task vector."""

    def __call__(self, delta: Tensor, piece: slice = slice(None)) -> Tensor:
        """A piece of the task vector, thinned; it may have any shape where it is the whole."""
        if self.keep is None:
            return delta
        thinned = delta.to(self.dtype or delta.dtype, copy=True).mul_(as_factor(self.keep[piece]).view_as(delta))
        if isinstance(self.factor, Tensor) and self.factor.dim() > 0:
            thinned *= self.factor[piece].view_as(delta)
        elif self.factor is not None:
            thinned *= self.factor
        return thinned.to(delta.dtype)


def as_factor(mask: Tensor) -> Tensor:
    """A mask to multiply by, without a copy: torch takes bytes five times as fast as bools."""
    return mask.view(torch.uint8)


def pieces(count: int) -> Iterator[slice]:
    """Consecutive ranges of at most ``PIECE`` entries that cover ``count``."""
    return (slice(start, min(start + PIECE, count)) for start in range(0, count, PIECE))


def trim(magnitude: Tensor, density: float, rescale: Rescale) -> Thinning:
    """Keep the ``int(density · n)`` entries of largest magnitude, one at least.

    Args:
        magnitude: that of a task vector ``(…)`` of n entries.
        density: share that is kept; 0 keeps nothing.
        rescale: multiply what is kept so that the L1 norm stays.
    """
    if density >= 1:
        return Thinning()
    magnitude = magnitude.flatten()
    if density <= 0:
        return Thinning(torch.zeros_like(magnitude, dtype=torch.bool))
    kept = max(1, int(density * len(magnitude)))
    return _of_norm(magnitude, largest(_sortable(magnitude), kept), rescale)


def trim_outliers(magnitude: Tensor, density: float, gamma: float, rescale: Rescale) -> Thinning:
    """Keep ``int(density · n)`` entries: without the ``int(gamma · n)`` of largest magnitude, the largest.

    Where that leaves too few, fewer of the largest are dropped.

    Args:
        magnitude: that of a task vector ``(…)`` of n entries.
        density: share that is kept.
        gamma: share that is dropped at the top.
        rescale: multiply what is kept so that the L1 norm stays.
    """
    if density >= 1:
        return Thinning()
    magnitude = magnitude.flatten()
    count = len(magnitude)
    kept = int(density * count)
    if kept == 0:
        return Thinning(torch.zeros_like(magnitude, dtype=torch.bool))
    first = max(0, count - kept - int(gamma * count))
    sortable = _sortable(magnitude)
    if count <= SORTED:
        keep = torch.zeros_like(magnitude, dtype=torch.bool)
        keep.index_fill_(0, sortable.sort().indices[first : first + kept], True)
    else:
        keep = largest(sortable, count - first).logical_and_(~largest(sortable, count - first - kept))
    return _of_norm(magnitude, keep, rescale)


def drop(magnitude: Tensor, density: float, generator: torch.Generator, rescale: Rescale) -> Thinning:
    """Keep each entry with probability ``density``. Masks are drawn on the CPU, so a seed gives one mask everywhere."""
    if density >= 1:
        return Thinning()
    dtype = _work_dtype(magnitude)
    magnitude = magnitude.flatten()
    probability = float(torch.tensor(density, dtype=dtype))
    keep = torch.empty(len(magnitude), dtype=torch.bool)
    drawn = torch.empty(min(PIECE, len(magnitude)))
    for piece in pieces(len(magnitude)):
        size = piece.stop - piece.start
        torch.lt(torch.rand(size, generator=generator, out=drawn[:size]), probability, out=keep[piece])
    keep = keep.to(magnitude.device)
    if rescale == "inverse_density":
        return Thinning(keep, 1 / density if density > 0 else None, dtype)
    return _of_norm(magnitude.to(dtype), keep, rescale, dtype)


def drop_by_magnitude(
    magnitude: Tensor, density: float, epsilon: float, generator: torch.Generator, rescale: Rescale
) -> Thinning:
    """Keep entries with probabilities from ``density − epsilon`` to ``density + epsilon``, by their rank in the row.

    ``inverse_density`` divides each entry by its own probability (DELLA's MagPrune, Deep et al. 2024).

    Raises:
        BadInput: a probability would leave (0, 1).
    """
    if density >= 1:
        return Thinning()
    if density <= 0:
        return Thinning(torch.zeros(magnitude.numel(), dtype=torch.bool, device=magnitude.device))
    if density + epsilon >= 1 or density - epsilon <= 0:
        raise BadInput(
            f"epsilon: {epsilon:g} takes density {density:g} out of the range from 0 to 1; choose a smaller one"
        )
    dtype = _work_dtype(magnitude)
    rows = magnitude.unsqueeze(0) if magnitude.dim() < 2 else magnitude
    keep = torch.empty(rows.shape, dtype=torch.bool)
    inverse = torch.empty(rows.shape, dtype=dtype, device=magnitude.device) if rescale == "inverse_density" else None
    length = max(1, rows[0].numel()) if len(rows) else 1
    for start in range(0, len(rows), max(1, PIECE // length)):
        piece = slice(start, start + max(1, PIECE // length))
        order = rows[piece].argsort(dim=1)
        places = torch.arange(order.shape[1], device=order.device).to(dtype) + 1
        places = places.view(1, -1, *(1,) * (order.dim() - 2)).expand_as(order)
        ranks = torch.empty_like(order, dtype=dtype).scatter_(1, order, places)
        lowest, highest = ranks.amin(dim=1, keepdim=True), ranks.amax(dim=1, keepdim=True)
        place = ((ranks - lowest) / (highest - lowest)).clamp_(0, 1).nan_to_num_(0.5)  # a single entry has no rank
        probability = (density - epsilon) + place * 2 * epsilon
        keep[piece] = torch.bernoulli(probability.cpu(), generator=generator).bool()
        if inverse is not None:
            inverse[piece] = 1 / probability
    flat = keep.flatten().to(magnitude.device)
    if inverse is not None:
        return Thinning(flat, inverse.flatten(), dtype)
    return _of_norm(magnitude.to(dtype).flatten(), flat, rescale, dtype)


def largest(values: Tensor, count: int) -> Tensor:
    """Mask of the ``count`` largest entries of a vector ``(n,)``, bool. See ``SORTED`` for entries that are equal."""
    if count <= 0:
        return torch.zeros_like(values, dtype=torch.bool)
    lowest = ranked(values, len(values) - count)[0]
    keep = values >= lowest
    surplus = int(keep.sum()) - count
    if surplus > 0 and len(values) <= SORTED:
        return torch.zeros_like(keep).index_fill_(0, values.argsort(descending=True)[:count], True)
    if surplus > 0:
        keep[(values == lowest).nonzero().flatten()[-surplus:]] = False
    return keep


def ranked(values: Tensor, *ranks: int) -> list[float | Tensor]:
    """The entries of a vector that have these ranks, counted from 0 at the smallest."""
    if values.device.type == "cpu":  # half the time of torch's kthvalue
        partitioned = np.partition(values.numpy(), ranks)
        return [float(partitioned[rank]) for rank in ranks]
    return [values.kthvalue(rank + 1).values for rank in ranks]


def _sortable(magnitude: Tensor) -> Tensor:
    """Magnitudes in the dtype in which mergekit sorts them."""
    return magnitude.float() if magnitude.device.type == "cpu" else magnitude


def _work_dtype(tensor: Tensor) -> torch.dtype:
    """Random masks are applied in float32 to float16, of which norms overflow."""
    return torch.float32 if tensor.dtype == torch.float16 else tensor.dtype


def _of_norm(magnitude: Tensor, keep: Tensor, rescale: Rescale, dtype: torch.dtype | None = None) -> Thinning:
    """The thinning by a mask; where asked, with the factor that keeps the L1 norm. Overwrites the magnitudes."""
    if rescale:
        before, after = magnitude.sum(), magnitude.mul_(as_factor(keep)).sum()
        if before >= TOO_SMALL_TO_RESCALE and after >= TOO_SMALL_TO_RESCALE:
            return Thinning(keep, before / after, dtype)
    return Thinning(keep, None, dtype)
