"""Within its bounds a reward is what it is without them; beyond, everything is worse than anything within."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.front import REFERENCE, Scale
from models.search.bounds import BoundedReward
from models.search.reward import Reward

SCALE = Scale(("math", "code", "layers"), (0.9, 0.8, 0.5), (0.3, 0.2, 1.0))
BOUNDED = BoundedReward(SCALE, 12, costs_at_most=((0, 0.5),), costs_at_least=((1, 0.1),), depth_at_most=10)
COSTS = st.tuples(*[st.floats(-1, REFERENCE)] * 3)
WEIGHTS = st.tuples(*[st.integers(0, 9)] * 3).filter(any)


def meets(costs, depth):
    return costs[0] <= 0.5 and costs[1] >= 0.1 and depth <= 10


@given(COSTS, st.integers(1, 15), COSTS, st.integers(1, 15), WEIGHTS)
def test_what_meets_the_bounds_is_worth_more_than_what_does_not(first, depth, second, other, weights):
    preference = np.array(weights) / sum(weights)
    costs, depths = np.array([first, second]), np.array([depth, other])
    values, free = BOUNDED.utility(costs, depths, preference), Reward(SCALE, 12).utility(costs, depths, preference)
    within = np.array([meets(first, depth), meets(second, other)])
    np.testing.assert_array_equal(values[within], free[within])
    assert (values[~within] < -1.9).all()
    assert (free > -1.9).all()


def test_the_farther_beyond_the_worse():
    costs = np.array([[0.6, 0.2, 0.0], [0.7, 0.2, 0.0], [0.7, 0.0, 0.0], [0.7, 0.0, 0.0]])
    values = BOUNDED.utility(costs, np.array([10, 10, 10, 12]), np.array([1.0, 0, 0]))
    assert (np.diff(values) < 0).all()


def test_many_preferences_at_once_see_the_same_bounds():
    costs, depths = np.random.default_rng(0).uniform(0, 1, (6, 1, 3)), np.arange(8, 14)[:, None]
    values = BOUNDED.utility(costs, depths, np.eye(3))
    assert values.shape == (6, 3)
    assert ((values < -1.9).all(axis=1) == (values < -1.9).any(axis=1)).all()
