"""Switches give legal paths, and all of a path's layers in their order where the rules let them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.candidate import Candidate
from models.search.environment import PathRules, PathSpace
from tasks.bench.baselines.slots import Slots

pytestmark = pytest.mark.lab

SPACES = st.builds(
    lambda models, layers, mask, repeats, forward: PathSpace(
        tuple("abcdef"[:models]), layers, PathRules(mask, forward=forward, repeats=repeats)
    ),
    st.integers(1, 4),
    st.integers(1, 9),
    st.sampled_from(["default", "none"]),
    st.integers(1, 3),
    st.integers(1, 5),
)


@settings(max_examples=150, deadline=None)
@given(SPACES, st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.05, 0.2, 0.5, 1.0]))
def test_any_switches_decode_to_a_legal_path(space, seed, share):
    slots = Slots(space)
    switches = np.random.default_rng(seed).random(len(slots)) < share
    path = slots.decode(switches)
    assert space.contains(path)
    again = slots.encode(path)
    assert again is None or slots.decode(again) == path


@settings(max_examples=60, deadline=None)
@given(SPACES, st.integers(0, 2**32 - 1))
def test_random_legal_paths_that_can_be_encoded_are_decoded_again(space, seed):
    slots, rng = Slots(space), np.random.default_rng(seed)
    path = space.random_path(rng)
    switches = slots.encode(path)
    if switches is not None:
        assert slots.decode(switches) == path
        assert switches.sum() == path.depth
    identity = space.identity(space.models[0])
    if space.contains(identity):
        assert slots.decode(slots.encode(identity)) == identity


@pytest.fixture
def slots():
    return Slots(PathSpace(("a", "b"), 6))


def test_one_switch_skips_or_repeats_a_layer_and_two_swap_it(slots):
    switches = slots.encode(Candidate.identity("a", 6))
    skip, swap, twice = switches.copy(), switches.copy(), switches.copy()
    skip[slots.actions.tolist().index(3)] = False
    assert [layer for _, layer in slots.decode(skip).path] == [0, 1, 2, 4, 5]
    swap[slots.actions.tolist().index(3)] = False
    swap[slots.actions.tolist().index(6 + 3)] = True
    assert slots.decode(swap).path[3] == ("b", 3)
    twice[slots.actions.tolist().index(6 + 3)] = True
    assert slots.decode(twice).path[3:5] == (("a", 3), ("b", 3))


def test_switches_cover_every_source_layer_as_often_as_it_may_be_used(slots):
    assert np.unique(slots.actions, return_counts=True)[1].tolist() == [2] * 12
    assert len(slots) == 24


def test_what_does_not_fit_is_not_encoded(slots):
    assert slots.encode(Candidate.identity("c", 6)) is None
    assert slots.encode(Candidate("b", Candidate.identity("a", 6).path)) is None
