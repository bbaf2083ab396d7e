"""Choosing a member: by utility on `selection`, among those that meet the requirements."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import BadInput
from models.front import choose, utility
from tasks.front.choice import SPLIT, choose_member, parse_requirement
from tasks.front.front import Front
from tests.fixtures_front import make_project


@pytest.fixture(scope="module")
def front(tmp_path_factory):
    return Front.read(make_project(tmp_path_factory.mktemp("choice")).run)


@settings(max_examples=30, deadline=None)
@given(weights=st.lists(st.integers(0, 9), min_size=4, max_size=4).filter(any))
def test_the_member_has_the_greatest_utility(front, weights):
    prefer = ",".join(f"{name}={weight}" for name, weight in zip(front.objectives, weights, strict=True))
    member = choose_member(front, prefer)
    preference = np.array(weights) / sum(weights)
    utilities = utility(front.costs(front.members, SPLIT), preference)
    assert utilities[front.members.index(member)] == utilities.max()


def test_without_a_preference_all_objectives_weigh_the_same(front):
    assert choose_member(front, None) == front.aliases()["balanced"]


def test_requirements_hold_for_the_member_and_leave_the_best_of_the_rest(front):
    member = choose_member(front, "code=1", ["math >= 0.7", "translation>0.62"], 4)
    fits = [
        one
        for one in front.members
        if one.scores[SPLIT]["math"] >= 0.7 and one.scores[SPLIT]["translation"] > 0.62 and one.layers <= 4
    ]
    assert member in fits
    assert member == fits[choose(front.costs(fits, SPLIT), np.array([0, 0, 1.0, 0]))]


def test_signs_mean_what_they_say(front):
    member = front.members[0]
    bound = member.scores[SPLIT]["math"]
    held = {
        sign for sign in (">=", "<=", ">", "<") if parse_requirement(f"math{sign}{bound}", front.tasks).holds(member)
    }
    assert held == {">=", "<="}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("math=0.6", "write it as objective>=number"),
        ("math>=", "write it as objective>=number"),
        ("math>=0.6, code>=0.5", "write it as objective>=number"),
        ("0.6<=math", "write it as objective>=number"),
        ("math>=high", "'high' is not a number"),
        ("math>=nan", "'nan' is not a number"),
        ("chess>=0.5", "unknown objective 'chess'; there are translation, math, code"),
        ("math==0.5", "write it as objective>=number"),
        ("layers<=3", "--max-layers N"),
    ],
)
def test_a_malformed_requirement_is_bad_input(front, text, message):
    with pytest.raises(BadInput, match=message):
        choose_member(front, None, [text])


def test_when_nobody_fits_the_best_values_are_named(front):
    with pytest.raises(BadInput, match=r"no member has math>=0.9 and at most 3 layers on selection; .*math 0.940"):
        choose_member(front, None, ["math>=0.9"], 3)
    with pytest.raises(BadInput, match="--max-layers 0"):
        choose_member(front, None, [], 0)
