"""Anchors: the merged models that are kept because together they serve the preferences best."""

from __future__ import annotations

from itertools import islice

from models.front import Array, greedy, utility


def choose_anchors(costs: Array, preferences: Array, count: int) -> list[int]:
    """Up to ``count`` different models, each the one that adds most to the mean best utility over the preferences.

    The mean best utility is submodular, so the greedy choice reaches at least 1 - 1/e of the best possible gain.

    Indices into the costs (N, K), as they were chosen under the preferences (M, K); ties go to the first.
    """
    chosen = greedy(utility(costs, preferences), count)
    others = (i for i in range(len(costs)) if i not in chosen)
    return chosen + list(islice(others, min(count, len(costs)) - len(chosen)))
