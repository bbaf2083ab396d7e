"""Anchors: the merged models that are kept because together they serve the preferences best."""

from __future__ import annotations

import numpy as np

from models.front import Array, utility


def choose_anchors(costs: Array, preferences: Array, count: int) -> list[int]:
    """Up to ``count`` different models, each the one that adds most to the mean best utility over the preferences.

    The mean best utility is submodular, so the greedy choice reaches at least 1 - 1/e of the best possible gain.

    Indices into the costs (N, K), as they were chosen under the preferences (M, K); ties go to the first.
    """
    gains = utility(costs, preferences)  # (N, M)
    chosen: list[int] = []
    reached = np.full(len(preferences), -np.inf)
    while len(chosen) < min(count, len(costs)):
        totals = np.maximum(gains, reached).mean(axis=1)
        totals[chosen] = -np.inf
        chosen.append(int(totals.argmax()))
        reached = np.maximum(reached, gains[chosen[-1]])
    return chosen
