"""A batch is shared out by what each kind of proposal has gained."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.agent.shares import FLOOR, MEMORY, Shares, fair_gains

KINDS = ("recipe", "layered", "edit", "random", "other")
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


def some_value(seed, kinds):
    """A number for each set of kinds, that of nothing included."""
    rng = np.random.default_rng(seed)
    return {frozenset(some): rng.random() for count in range(len(kinds) + 1) for some in combinations(kinds, count)}


@given(st.integers(0, 2**32 - 1), st.permutations(KINDS))
def test_permuting_the_kinds_permutes_what_they_are_credited_and_all_of_it_is_given_away(seed, order):
    values = some_value(seed, KINDS)
    gains = fair_gains(KINDS, values.__getitem__)
    assert sum(gains.values()) == pytest.approx(values[frozenset(KINDS)] - values[frozenset()])
    assert fair_gains(order, values.__getitem__) == gains
    renamed = dict(zip(KINDS, order, strict=True))
    others = {frozenset(renamed[kind] for kind in some): value for some, value in values.items()}
    assert fair_gains(KINDS, others.__getitem__) == pytest.approx({renamed[kind]: gains[kind] for kind in KINDS})


def test_two_that_have_found_the_same_share_it_and_who_has_found_nothing_gets_nothing():
    values = {"": 1.0, "a": 3.0, "b": 3.0, "c": 1.0, "ab": 3.0, "ac": 3.0, "bc": 3.0, "abc": 3.0}
    assert fair_gains("abc", lambda some: values["".join(sorted(some))]) == {"a": 1.0, "b": 1.0, "c": 0.0}
    assert fair_gains((), lambda some: 0.5) == {}
