"""A batch is shared out by what each kind of proposal has gained."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.agent.shares import FLOOR, MEMORY, Shares

KINDS = ("recipe", "layered", "edit", "policy", "beam")
GAINS = st.just(0.0) | st.floats(1e-9, 1)
ROUNDS = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from(KINDS), GAINS),
        st.dictionaries(st.sampled_from(KINDS), st.integers(0, 5000)),
    ),
    max_size=8,
)


@given(ROUNDS, st.integers(0, 40))
def test_shares_sum_to_one_keep_the_floor_and_fill_the_batch(rounds, size):
    shares = Shares(KINDS)
    for gains, costs in rounds:
        shares.learn(gains, costs)
    found = shares.shares()
    assert tuple(found) == KINDS
    assert sum(found.values()) == pytest.approx(1)
    assert min(found.values()) >= FLOOR
    places = shares.places(size, np.random.default_rng(0))
    assert tuple(places) == KINDS
    assert sum(places.values()) == size
    assert all(places[kind] >= int(found[kind] * size) for kind in KINDS)


def test_kinds_of_which_nothing_is_known_share_alike():
    shares = Shares(KINDS)
    assert shares.shares() == dict.fromkeys(KINDS, 0.2)
    shares.learn({}, dict.fromkeys(KINDS, 100))
    assert shares.shares() == dict.fromkeys(KINDS, 0.2)


def test_what_gains_more_at_the_same_cost_gets_more_and_the_same_gain_counts_less_where_it_costs_more():
    shares = Shares(("a", "b", "c"))
    shares.learn({"a": 0.2, "b": 0.1}, {"a": 100, "b": 100, "c": 100})
    found = shares.shares()
    assert found["a"] > found["b"] > found["c"]
    shares = Shares(("a", "b"))
    shares.learn({"a": 0.1, "b": 0.1}, {"a": 100, "b": 300})
    assert shares.shares()["a"] > shares.shares()["b"]


def test_a_share_against_hand_calculation():
    shares = Shares(("a", "b"))
    shares.learn({"a": 0.3}, {"a": 100, "b": 200})
    # rate at large 0.001, evidence that each starts with: half of 150
    a, b = (0.3 + 0.001 * 75) / (100 + 75), 0.001 * 75 / (200 + 75)
    assert shares.shares()["a"] == pytest.approx(FLOOR + (1 - 2 * FLOOR) * a / (a + b))


def test_what_was_gained_long_ago_fades():
    shares = Shares(("a", "b"))
    shares.learn({"a": 1.0}, {"a": 100, "b": 100})
    first = shares.shares()["a"]
    for _ in range(30):
        shares.learn({"b": 0.1}, {"a": 100, "b": 100})
    assert first > 0.6
    assert shares.shares()["a"] < 0.4
    assert shares.gain["a"] == pytest.approx(MEMORY**30)


def test_the_rest_of_a_batch_is_drawn_by_lot_with_the_right_chances():
    shares = Shares(KINDS)
    rng = np.random.default_rng(0)
    counts = np.mean([list(shares.places(3, rng).values()) for _ in range(2000)], axis=0)
    np.testing.assert_allclose(counts, 0.6, atol=0.05)
