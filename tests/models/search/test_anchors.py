"""Anchors serve the preferences together."""

from itertools import combinations

import numpy as np
import pytest

from models.front import utility
from models.preferences import preferences
from models.search.anchors import choose_anchors


def value(gains, chosen):
    return gains[list(chosen)].max(axis=0).mean()


@pytest.mark.parametrize("seed", range(5))
def test_each_adds_most_and_all_come_near_the_best_set(seed):
    rng = np.random.default_rng(seed)
    costs, wanted = rng.random((12, 3)), preferences(3, 16, rng)
    gains = utility(costs, wanted)
    chosen = choose_anchors(costs, wanted, 3)
    for count in (1, 2, 3):
        others = [value(gains, [*chosen[: count - 1], i]) for i in range(12) if i not in chosen[: count - 1]]
        assert value(gains, chosen[:count]) == pytest.approx(max(others))
    best = max(value(gains, some) for some in combinations(range(12), 3))
    worst = gains.min(axis=0).mean()
    assert value(gains, chosen) - worst >= (1 - 1 / np.e) * (best - worst)


def test_there_are_no_more_than_there_are_models():
    costs = np.array([[0.1, 0.9], [0.9, 0.1]])
    assert sorted(choose_anchors(costs, np.eye(2), 5)) == [0, 1]
    assert choose_anchors(costs, np.array([[1.0, 0.0]]), 1) == [0]
