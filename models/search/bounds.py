"""A reward with bounds: any candidate within them is worth more than every one beyond."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.front import Array
from models.search.reward import Reward

FLOOR = -2.0
"""Utility just beyond the bounds. Costs end at 1.1, so that no utility within them is as low."""


@dataclass(frozen=True)
class BoundedReward(Reward):
    """u_λ within the bounds, and beyond them what is the lower the farther away it is (Deb 2000)."""

    costs_at_most: tuple[tuple[int, float], ...] = ()
    """Objective and the greatest cost that it may have."""
    costs_at_least: tuple[tuple[int, float], ...] = ()
    depth_at_most: int | None = None
    """Layers that a token may pass."""

    def wants_cuts(self, preferences: Array) -> bool:
        """See ``Reward``."""
        return super().wants_cuts(preferences) or (self.depth_counts and self.depth_at_most is not None)

    def utility(self, costs: Array, depths: npt.ArrayLike, preferences: Array) -> Array:
        """See ``Reward``."""
        u = super().utility(costs, depths, preferences)
        excess = self.excess(costs, depths)
        return np.asarray(np.where(excess > 0, FLOOR - excess, u))

    def excess(self, costs: Array, depths: npt.ArrayLike) -> Array:
        """How far costs (..., K) and depths (...,) are beyond the bounds, in costs and shares of the base's layers."""
        beyond = np.zeros(costs.shape[:-1])
        for k, most in self.costs_at_most:
            beyond = beyond + np.maximum(costs[..., k] - most, 0)
        for k, least in self.costs_at_least:
            beyond = beyond + np.maximum(least - costs[..., k], 0)
        if self.depth_at_most is not None:
            beyond = beyond + np.maximum(np.asarray(depths) - self.depth_at_most, 0) / self.layers
        return beyond
